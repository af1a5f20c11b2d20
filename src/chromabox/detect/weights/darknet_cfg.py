"""Reading and writing Darknet's ``.cfg`` files: sections of ``key=value`` lines, one section per layer.

Options that define the model are read. Known options that are used only in training or by other programs are ignored.
Any other option raises an error with its line number, because it could change the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

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
from chromabox.io.atomic import atomic_write, read_bytes

#: Maximum size of a file. The largest configuration published with Darknet has less than 50 kB.
MAX_CFG_BYTES = 1 << 18
#: Options of a [yolo] section that are used only in training or by other programs.
YOLO_TRAINING_KEYS = {"jitter", "ignore_thresh", "truth_thresh", "random", "num", "max"}


@dataclass(frozen=True)
class CfgSection:
    """Section of a file, with the value and line number of each option."""

    path: Path
    name: str
    line: int
    options: dict[str, tuple[str, int]]

    def pop(self, key: str, default: Any, convert: Callable[[str], Any] = int) -> Any:
        """Remove an option and return its converted value, or return ``default`` if the option is missing."""
        if key not in self.options:
            return default
        text, line = self.options.pop(key)
        try:
            return convert(text)
        except ValueError:
            raise self.error(f"{key}={text}: expected a number or comma-separated numbers", line) from None

    def pop_numbers(self, key: str, convert: Callable[[str], Any] = int) -> tuple[Any, ...]:
        """Remove an option and return its comma-separated numbers. Return an empty tuple if the option is missing."""
        return self.pop(key, (), lambda text: tuple(convert(part) for part in text.split(",") if part.strip()))

    def error(self, reason: str, line: int | None = None) -> ChromaboxError:
        return ChromaboxError(f"{self.path}: line {line or self.line}: [{self.name}] {reason}")


def read_cfg(path: Path) -> Architecture:
    """Read the architecture from a Darknet configuration file.

    The architecture is named after the file, without the suffix. The input size is the larger of ``width`` and
    ``height``.

    Raise ChromaboxError if the file cannot be read, if a section or option is unknown or invalid (with the line
    number), or if the layers are inconsistent.
    """
    sections = _parse_sections(path)
    if not sections or sections[0].name not in ("net", "network"):
        raise ChromaboxError(f"{path}: line 1: the file does not start with a [net] section")
    head, *rest = sections
    layers: list[Layer] = []
    for section in rest:
        layers.append(_parse_layer(section, len(layers)))
        for key, (_, line) in section.options.items():
            if section.name != "yolo" or key not in YOLO_TRAINING_KEYS:
                raise section.error(f"unknown option {key!r}; remove it if it does not change the model", line)
    size = max(head.pop("width", 416), head.pop("height", 416))
    channels = head.pop("channels", 3)
    try:
        return Architecture(path.stem, tuple(layers), channels, size)
    except ChromaboxError as error:
        raise ChromaboxError(f"{path}: {error}") from None


def write_cfg(architecture: Architecture, path: Path) -> None:
    """Write a configuration file that Darknet and :func:`read_cfg` can read. The folder must exist."""
    net = {"batch": 1, "width": architecture.size, "height": architecture.size, "channels": architecture.channels}
    sections = [("net", net), *(_layer_options(layer, index) for index, layer in enumerate(architecture.layers))]
    parts = [
        "".join([f"[{name}]\n", *(f"{key}={value}\n" for key, value in options.items())]) for name, options in sections
    ]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def _parse_sections(path: Path) -> list[CfgSection]:
    try:
        lines = read_bytes(path, "a Darknet configuration file", MAX_CFG_BYTES).decode().splitlines()
    except UnicodeDecodeError as error:
        message = f"{path}: cannot be read (not UTF-8 text); expected a Darknet configuration file"
        raise ChromaboxError(message) from error
    sections: list[CfgSection] = []
    for number, line in enumerate(lines, 1):
        text = line.split("#")[0].split(";")[0].strip()
        key, equals, value = text.partition("=")
        if text.startswith("[") and text.endswith("]"):
            sections.append(CfgSection(path, text[1:-1].strip(), number, {}))
        elif sections and equals:
            sections[-1].options[key.strip()] = (value.strip(), number)
        elif text:
            expected = "expected [name], or key=value within a section"
            raise ChromaboxError(f"{path}: line {number}: {text!r} is not valid; {expected}")
    return sections


def _parse_layer(section: CfgSection, index: int) -> Layer:
    """Return the layer that a section describes. Options that are not read remain in the section."""
    match section.name:
        case "convolutional":
            activation = section.pop("activation", "logistic", str)
            if activation not in get_args(Activation):
                raise section.error(f"unknown activation {activation!r}; expected {', '.join(get_args(Activation))}")
            sizes: dict[str, Any] = {key: section.pop(key, 1) for key in ("filters", "size", "stride", "groups")}
            padding, normalise = section.pop("padding", 0), bool(section.pop("batch_normalize", 0))
            # In Darknet, pad=1 means padding by half the kernel size and overrides padding=N.
            pad = None if section.pop("pad", 0) else padding
            return Convolution(**sizes, batch_normalise=normalise, activation=activation, pad=pad)
        case "maxpool":
            stride = section.pop("stride", 1)
            size = section.pop("size", stride)
            if section.pop("padding", size - 1) != size - 1:
                raise section.error(f"unsupported padding; expected {size - 1} (size − 1)")
            return MaxPool(size, stride)
        case "upsample":
            return Upsample(section.pop("stride", 2))
        case "route":
            layers = tuple(layer if layer >= 0 else index + layer for layer in section.pop_numbers("layers"))
            return Route(layers, section.pop("groups", 1), section.pop("group_id", 0))
        case "shortcut":
            activation = section.pop("activation", "linear", str)
            if activation != "linear":
                raise section.error(f"unsupported activation {activation!r}; expected linear")
            sources = section.pop_numbers("from")
            if len(sources) != 1:
                raise section.error(f"option 'from' lists {len(sources)} layers; expected one")
            return Shortcut(sources[0] if sources[0] >= 0 else index + sources[0])
        case "yolo":
            values = section.pop_numbers("anchors", float)
            if not values or len(values) % 2:
                raise section.error(
                    f"the number of values in anchors is {len(values)}; expected an even number above 0"
                )
            anchors = tuple(zip(values[::2], values[1::2], strict=True))
            mask = section.pop_numbers("mask") or tuple(range(len(anchors)))
            return Yolo(mask, anchors, section.pop("classes", 20))
        case _:
            expected = "[convolutional], [maxpool], [upsample], [route], [shortcut] or [yolo]"
            raise section.error(f"is an unknown section; expected {expected}")


def _layer_options(layer: Layer, index: int) -> tuple[str, dict[str, Any]]:
    """Return the name and options of the section for a layer. Most options that have default values are omitted."""
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
            return "route", {"layers": ",".join(map(str, layer.layers)), **groups}
        case Shortcut():
            # A relative index, which all versions of Darknet accept.
            return "shortcut", {"from": layer.source - index, "activation": "linear"}
        case Yolo():
            # Integers are written without a decimal point, as in Darknet's files.
            anchors = ",".join(str(int(side) if side == int(side) else side) for pair in layer.anchors for side in pair)
            options = {"mask": ",".join(map(str, layer.mask)), "anchors": anchors, "classes": layer.classes}
            return "yolo", options | {"num": len(layer.anchors)}
