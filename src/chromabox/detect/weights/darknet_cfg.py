"""Reading and writing of Darknet's ``.cfg`` files: sections of ``key=value`` lines, one section per layer.

Options that define the model are read. Known options used only by training or by other programs are ignored. Any other
option raises an error with its line number, since ignoring it could silently change the model.
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
from chromabox.io.atomic import atomic_write

T = TypeVar("T")

#: Options of a [yolo] section that only training and other programs use.
YOLO_TRAINING_KEYS = {"jitter", "ignore_thresh", "truth_thresh", "random", "num", "max"}


@dataclass(frozen=True)
class CfgSection:
    """Section with its options, as values and line numbers; ``used`` contains the options that have been read."""

    path: Path
    name: str
    line: int
    options: dict[str, tuple[str, int]]
    used: set[str]

    def get_int(self, key: str, default: int) -> int:
        return self._get(key, int, default)

    def get_ints(self, key: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        return self._get(key, lambda text: tuple(int(part) for part in _split_commas(text)), default)

    def get_floats(self, key: str) -> tuple[float, ...]:
        return self._get(key, lambda text: tuple(float(part) for part in _split_commas(text)), ())

    def get_str(self, key: str, default: str) -> str:
        return self._get(key, str, default)

    def error(self, reason: str, line: int | None = None) -> ChromaboxError:
        return ChromaboxError(f"{self.path}: line {line or self.line}: [{self.name}] {reason}")

    def check_all_used(self, ignored: Iterable[str] = ()) -> None:
        """Raise ChromaboxError if an option is neither used nor in ``ignored``."""
        for key, (_, line) in self.options.items():
            if key not in self.used and key not in ignored:
                raise self.error(f"unknown option {key!r}; remove it if it does not change the model", line)

    def _get(self, key: str, convert: Callable[[str], T], default: T) -> T:
        self.used.add(key)
        if key not in self.options:
            return default
        text, line = self.options[key]
        try:
            return convert(text)
        except ValueError:
            raise self.error(f"{key}={text}: expected a number or comma-separated numbers", line) from None


def read_cfg(path: Path) -> Architecture:
    """Read the architecture in a Darknet configuration file; its name is the file name without suffix.

    The larger of ``width`` and ``height`` becomes its size.

    Raise ChromaboxError, with file and line, if a section or option is unknown or invalid, and ChromaboxError if the
    layers are inconsistent.
    """
    sections = _parse_sections(path)
    if not sections or sections[0].name not in ("net", "network"):
        raise ChromaboxError(f"{path}: line 1: expected [net], with which a Darknet configuration starts")
    head, *rest = sections
    layers: list[Layer] = []
    for section in rest:
        if section.name not in LAYER_PARSERS:
            raise section.error(f"is unknown; expected {', '.join(f'[{name}]' for name in LAYER_PARSERS)}")
        layers.append(LAYER_PARSERS[section.name](section, len(layers)))
    size = max(head.get_int("width", 416), head.get_int("height", 416))
    return Architecture(path.stem, tuple(layers), head.get_int("channels", 3), size)


def write_cfg(architecture: Architecture, path: Path) -> None:
    """Write a Darknet configuration file, which :func:`read_cfg` and Darknet can read; the folder must exist."""
    net = {"batch": 1, "width": architecture.size, "height": architecture.size, "channels": architecture.channels}
    parts = [_format_section("net", net)]
    parts += [_format_section(*_layer_options(layer, index)) for index, layer in enumerate(architecture.layers)]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def _parse_sections(path: Path) -> list[CfgSection]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ChromaboxError(f"{path}: cannot be read ({reason}); expected a Darknet configuration file") from error
    sections: list[CfgSection] = []
    for number, line in enumerate(lines, 1):
        text = line.split("#")[0].split(";")[0].strip()
        if not text:
            continue
        if text.startswith("["):
            if not text.endswith("]"):
                raise ChromaboxError(f"{path}: line {number}: {text!r} is not a section; expected [name]")
            sections.append(CfgSection(path, text[1:-1].strip(), number, {}, set()))
            continue
        key, equals, value = text.partition("=")
        if not equals or not sections:
            raise ChromaboxError(f"{path}: line {number}: {text!r} is not an option of a section; expected key=value")
        sections[-1].options[key.strip()] = (value.strip(), number)
    return sections


def _parse_convolution(section: CfgSection, index: int) -> Convolution:
    size = section.get_int("size", 1)
    # In Darknet, pad=1 means half the size and overrides padding=N.
    pad = None if section.get_int("pad", 0) else section.get_int("padding", 0)
    activation = section.get_str("activation", "logistic")
    if activation not in get_args(Activation):
        raise section.error(f"unknown activation {activation!r}; expected {', '.join(get_args(Activation))}")
    layer = Convolution(
        section.get_int("filters", 1),
        size,
        section.get_int("stride", 1),
        section.get_int("groups", 1),
        bool(section.get_int("batch_normalize", 0)),
        activation,  # type: ignore[arg-type]
        pad,
    )
    section.used.add("padding")
    section.check_all_used()
    return layer


def _parse_maxpool(section: CfgSection, index: int) -> MaxPool:
    stride = section.get_int("stride", 1)
    size = section.get_int("size", stride)
    if section.get_int("padding", size - 1) != size - 1:
        raise section.error(f"unsupported padding; expected {size - 1} (size − 1)")
    section.check_all_used()
    return MaxPool(size, stride)


def _parse_upsample(section: CfgSection, index: int) -> Upsample:
    stride = section.get_int("stride", 2)
    section.check_all_used()
    return Upsample(stride)


def _parse_route(section: CfgSection, index: int) -> Route:
    layers = tuple(_absolute_index(layer, index) for layer in section.get_ints("layers"))
    route = Route(layers, section.get_int("groups", 1), section.get_int("group_id", 0))
    section.check_all_used()
    return route


def _parse_shortcut(section: CfgSection, index: int) -> Shortcut:
    activation = section.get_str("activation", "linear")
    if activation != "linear":
        raise section.error(f"unsupported activation {activation!r}; expected linear")
    sources = section.get_ints("from")
    if len(sources) != 1:
        raise section.error("expected one layer in from=")
    section.check_all_used()
    return Shortcut(_absolute_index(sources[0], index))


def _parse_yolo(section: CfgSection, index: int) -> Yolo:
    values = section.get_floats("anchors")
    if not values or len(values) % 2:
        raise section.error("expected pairs of numbers in anchors=")
    anchors = tuple((width, height) for width, height in zip(values[::2], values[1::2], strict=True))
    mask = section.get_ints("mask", tuple(range(len(anchors))))
    yolo = Yolo(mask, anchors, section.get_int("classes", 20))
    section.check_all_used(YOLO_TRAINING_KEYS)
    return yolo


LAYER_PARSERS: dict[str, Callable[[CfgSection, int], Layer]] = {
    "convolutional": _parse_convolution,
    "maxpool": _parse_maxpool,
    "upsample": _parse_upsample,
    "route": _parse_route,
    "shortcut": _parse_shortcut,
    "yolo": _parse_yolo,
}


def _layer_options(layer: Layer, index: int) -> tuple[str, dict[str, Any]]:
    """Return the section name and options of a layer; defaults are written only where readers expect them."""
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
            return "route", {"layers": _join(layer.layers), **groups}
        case Shortcut():
            # Relative, which all versions of Darknet accept.
            return "shortcut", {"from": layer.source - index, "activation": "linear"}
        case Yolo():
            anchors = _join(_format_number(number) for anchor in layer.anchors for number in anchor)
            options = {"mask": _join(layer.mask), "anchors": anchors, "classes": layer.classes}
            return "yolo", options | {"num": len(layer.anchors)}


def _format_section(name: str, options: dict[str, Any]) -> str:
    return "\n".join([f"[{name}]", *(f"{key}={value}" for key, value in options.items()), ""])


def _join(values: Iterable[object]) -> str:
    return ",".join(str(value) for value in values)


def _split_commas(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _format_number(number: float) -> str:
    """Format a number, without a decimal point if it is an integer, as is usual for anchors."""
    return str(int(number)) if number == int(number) else str(number)


def _absolute_index(layer: int, index: int) -> int:
    return layer if layer >= 0 else index + layer
