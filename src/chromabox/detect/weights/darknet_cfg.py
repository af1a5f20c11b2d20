"""Darknet's ``.cfg`` files, read and written: sections of ``key=value`` lines, one a layer.

What a detector's net is made of is read; what only training or another program needs is passed over by name; anything
else is refused with its line, since an option that changes what a layer does must not be lost without a word.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from chromabox.detect.models.architecture import (
    Activation,
    Architecture,
    Convolution,
    Layer,
    MaxPool,
    Route,
    Shortcut,
    Upsample,
    Yolo,
)
from chromabox.errors import ChromaboxError
from chromabox.io.atomic import write_whole

Value = TypeVar("Value")

#: What a [yolo] section says to training and to other programs.
YOLO_TRAINING = {"jitter", "ignore_thresh", "truth_thresh", "random", "num", "max"}


@dataclass(frozen=True)
class Section:
    """One section with its options; ``taken`` are those that were asked for."""

    path: Path
    name: str
    line: int
    options: dict[str, tuple[str, int]]
    taken: set[str]

    def integer(self, key: str, default: int) -> int:
        return self._value(key, int, default)

    def integers(self, key: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        return self._value(key, lambda text: tuple(int(part) for part in _parts(text)), default)

    def numbers(self, key: str) -> tuple[float, ...]:
        return self._value(key, lambda text: tuple(float(part) for part in _parts(text)), ())

    def word(self, key: str, default: str) -> str:
        return self._value(key, str, default)

    def error(self, reason: str, line: int | None = None) -> ChromaboxError:
        return ChromaboxError(f"{self.path}: line {line or self.line}: [{self.name}] {reason}")

    def done(self, passed_over: Iterable[str] = ()) -> None:
        """Refuse an option that nobody asked for."""
        for key, (_, line) in self.options.items():
            if key not in self.taken and key not in passed_over:
                raise self.error(
                    f"has an option {key!r}, which is not known here; take it out if it changes nothing", line
                )

    def _value(self, key: str, convert: Callable[[str], Value], default: Value) -> Value:
        self.taken.add(key)
        if key not in self.options:
            return default
        text, line = self.options[key]
        try:
            return convert(text)
        except ValueError:
            raise self.error(f"{key}={text}: a number or numbers between commas are needed", line) from None


def read_cfg(path: Path) -> Architecture:
    """The net of a darknet configuration file, named like the file.

    The greater of ``width`` and ``height`` becomes its size. Raises ChromaboxError with file and line for what is not
    known, not a number, or does not fit.
    """
    sections = _sections(path)
    if not sections or sections[0].name not in ("net", "network"):
        raise ChromaboxError(f"{path}: line 1: a darknet configuration begins with [net]")
    head, *rest = sections
    layers: list[Layer] = []
    for section in rest:
        if section.name not in READERS:
            raise section.error(f"is not known here; known are {', '.join(f'[{name}]' for name in READERS)}")
        layers.append(READERS[section.name](section, len(layers)))
    size = max(head.integer("width", 416), head.integer("height", 416))
    return Architecture(path.stem, tuple(layers), head.integer("channels", 3), size)


def write_cfg(architecture: Architecture, path: Path) -> None:
    """Write a net as a darknet configuration file, which :func:`read_cfg` and darknet read; the folder must exist."""
    net = {"batch": 1, "width": architecture.size, "height": architecture.size, "channels": architecture.channels}
    parts = [_section("net", net)]
    parts += [_section(*_options(layer, index)) for index, layer in enumerate(architecture.layers)]
    with write_whole(path) as aside:
        aside.write_text("\n".join(parts), encoding="utf-8")


def _sections(path: Path) -> list[Section]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ChromaboxError(f"{path}: cannot be read ({reason}); a darknet configuration file is needed") from error
    sections: list[Section] = []
    for number, line in enumerate(lines, 1):
        text = line.split("#")[0].split(";")[0].strip()
        if not text:
            continue
        if text.startswith("["):
            if not text.endswith("]"):
                raise ChromaboxError(f"{path}: line {number}: {text!r} is no section; write [name]")
            sections.append(Section(path, text[1:-1].strip(), number, {}, set()))
            continue
        key, equals, value = text.partition("=")
        if not equals or not sections:
            raise ChromaboxError(f"{path}: line {number}: {text!r} is no option of a section; write key=value")
        sections[-1].options[key.strip()] = (value.strip(), number)
    return sections


def _convolution(section: Section, index: int) -> Convolution:
    size = section.integer("size", 1)
    # darknet: pad=1 means half the size and takes the place of padding=N.
    pad = None if section.integer("pad", 0) else section.integer("padding", 0)
    activation = section.word("activation", "logistic")
    if activation not in get_args(Activation):
        raise section.error(f"has the activation {activation!r}; known are {', '.join(get_args(Activation))}")
    layer = Convolution(
        section.integer("filters", 1),
        size,
        section.integer("stride", 1),
        section.integer("groups", 1),
        bool(section.integer("batch_normalize", 0)),
        activation,  # type: ignore[arg-type]
        pad,
    )
    section.taken.add("padding")
    section.done()
    return layer


def _maxpool(section: Section, index: int) -> MaxPool:
    stride = section.integer("stride", 1)
    size = section.integer("size", stride)
    if section.integer("padding", size - 1) != size - 1:
        raise section.error(f"has a padding other than {size - 1}, size − 1, which alone is known here")
    section.done()
    return MaxPool(size, stride)


def _upsample(section: Section, index: int) -> Upsample:
    stride = section.integer("stride", 2)
    section.done()
    return Upsample(stride)


def _route(section: Section, index: int) -> Route:
    layers = tuple(_absolute(layer, index) for layer in section.integers("layers"))
    route = Route(layers, section.integer("groups", 1), section.integer("group_id", 0))
    section.done()
    return route


def _shortcut(section: Section, index: int) -> Shortcut:
    activation = section.word("activation", "linear")
    if activation != "linear":
        raise section.error(f"has the activation {activation!r}; only linear is known here")
    sources = section.integers("from")
    if len(sources) != 1:
        raise section.error("needs one layer in from=")
    section.done()
    return Shortcut(_absolute(sources[0], index))


def _yolo(section: Section, index: int) -> Yolo:
    numbers = section.numbers("anchors")
    if not numbers or len(numbers) % 2:
        raise section.error("needs pairs of numbers in anchors=")
    anchors = tuple((width, height) for width, height in zip(numbers[::2], numbers[1::2], strict=True))
    mask = section.integers("mask", tuple(range(len(anchors))))
    yolo = Yolo(mask, anchors, section.integer("classes", 20))
    section.done(YOLO_TRAINING)
    return yolo


READERS: dict[str, Callable[[Section, int], Layer]] = {
    "convolutional": _convolution,
    "maxpool": _maxpool,
    "upsample": _upsample,
    "route": _route,
    "shortcut": _shortcut,
    "yolo": _yolo,
}


def _options(layer: Layer, index: int) -> tuple[str, dict[str, Any]]:
    """Section name and options of a layer; what is darknet's default is written only where people look for it."""
    match layer:
        case Convolution():
            options: dict[str, Any] = {"batch_normalize": int(layer.batch_normalise), "filters": layer.filters}
            options |= {"size": layer.size, "stride": layer.stride}
            options |= {"pad": 1} if layer.pad is None else {"padding": layer.pad}
            options |= {"groups": layer.groups} if layer.groups > 1 else {}
            return "convolutional", options | {"activation": layer.activation}
        case MaxPool():
            return "maxpool", {"size": layer.size, "stride": layer.stride}
        case Upsample():
            return "upsample", {"stride": layer.stride}
        case Route():
            groups = {"groups": layer.groups, "group_id": layer.group_id} if layer.groups > 1 else {}
            return "route", {"layers": _joined(layer.layers), **groups}
        case Shortcut():
            # Relative, as darknet takes it in every version.
            return "shortcut", {"from": layer.source - index, "activation": "linear"}
        case Yolo():
            anchors = _joined(_plain(number) for anchor in layer.anchors for number in anchor)
            options = {"mask": _joined(layer.mask), "anchors": anchors, "classes": layer.classes}
            return "yolo", options | {"num": len(layer.anchors)}


def _section(name: str, options: dict[str, Any]) -> str:
    return "\n".join([f"[{name}]", *(f"{key}={value}" for key, value in options.items()), ""])


def _joined(values: Iterable[object]) -> str:
    return ",".join(str(value) for value in values)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _plain(number: float) -> str:
    """Without a fraction where there is none, as people write anchors."""
    return str(int(number)) if number == int(number) else str(number)


def _absolute(layer: int, index: int) -> int:
    return layer if layer >= 0 else index + layer
