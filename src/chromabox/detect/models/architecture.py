"""Detectors as ordered lists of layers, counted as darknet counts them, and the two that are known by name.

A layer reads the one before it unless it says otherwise; the first reads the picture. "Freeze the first N" has its
meaning by these indices. References to other layers are absolute.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from chromabox.errors import ChromaboxError, UsageError

Activation = Literal["leaky", "linear", "relu", "mish"]
#: Widths and heights in pixels.
Anchors = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Convolution:
    """``filters`` kernels of ``size`` × ``size`` pixels; ``pad`` pixels of zeros around (None: half the size).

    With ``batch_normalise`` the convolution has no bias of its own. ``leaky`` is what the net's kind makes of it.
    """

    filters: int
    size: int
    stride: int = 1
    groups: int = 1
    batch_normalise: bool = True
    activation: Activation = "leaky"
    pad: int | None = None

    @property
    def padding(self) -> int:
        return self.size // 2 if self.pad is None else self.pad


@dataclass(frozen=True)
class MaxPool:
    """The greatest of ``size`` × ``size`` pixels; size − 1 pixels of padding in all, the odd one right and below."""

    size: int
    stride: int


@dataclass(frozen=True)
class Upsample:
    """Every pixel ``stride`` times in both directions."""

    stride: int


@dataclass(frozen=True)
class Route:
    """The channels of ``layers`` one after another; of each only the part ``group_id`` of ``groups`` equal ones."""

    layers: tuple[int, ...]
    groups: int = 1
    group_id: int = 0


@dataclass(frozen=True)
class Shortcut:
    """The sum of the layer before and the layer ``source``."""

    source: int


@dataclass(frozen=True)
class Yolo:
    """A head: the layer before gives, for every anchor of ``mask``, box, objectness and ``classes`` class scores.

    ``anchors`` are all of the net's, in pixels (width, height); ``mask`` are indices into them.
    """

    mask: tuple[int, ...]
    anchors: Anchors
    classes: int

    @property
    def head_anchors(self) -> Anchors:
        """The anchors of this head, in the order of its outputs."""
        return tuple(self.anchors[index] for index in self.mask)


Layer = Convolution | MaxPool | Upsample | Route | Shortcut | Yolo

#: The kinds of layer by the names that checkpoints have them under.
LAYER_TYPES: dict[str, type[Layer]] = {
    kind.__name__: kind for kind in (Convolution, MaxPool, Upsample, Route, Shortcut, Yolo)
}


@dataclass(frozen=True)
class FeatureShape:
    """What a layer puts out for a picture: channels, and input pixels a pixel of its own covers."""

    channels: int
    stride: int


@dataclass(frozen=True)
class Architecture:
    """A net as its layers, checked to fit each other.

    Args:
        name: for people and file names.
        layers: in darknet's order.
        channels: of the picture.
        size: side in pixels of the square that the net is usually shown, a multiple of ``multiple``.

    Raises ChromaboxError, naming net and layer, where layers do not fit.
    """

    name: str
    layers: tuple[Layer, ...]
    channels: int = 3
    size: int = 416

    def __post_init__(self) -> None:
        if not self.head_indices:
            raise ChromaboxError(f"{self.name}: has no yolo layer; a detector needs at least one head")
        if len({layer.classes for layer in self.layers if isinstance(layer, Yolo)}) > 1:
            raise ChromaboxError(f"{self.name}: its heads have different counts of classes; one count is needed")
        if self.size < 1 or self.size % self.max_stride:
            raise ChromaboxError(f"{self.name}: size is {self.size}; a multiple of {self.max_stride} is needed")

    @cached_property
    def head_indices(self) -> tuple[int, ...]:
        """Indices of the yolo layers."""
        return tuple(index for index, layer in enumerate(self.layers) if isinstance(layer, Yolo))

    @property
    def yolo_layers(self) -> tuple[Yolo, ...]:
        """The yolo layers, in the order of ``heads``."""
        return tuple(layer for layer in self.layers if isinstance(layer, Yolo))

    @property
    def num_classes(self) -> int:
        """How many classes every head scores."""
        return self.yolo_layers[0].classes

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per cell of each head, in the order of ``heads``."""
        return tuple(self.shapes[index].stride for index in self.head_indices)

    @property
    def max_stride(self) -> int:
        """Sides of pictures must be multiples of this."""
        return max(shape.stride for shape in self.shapes)

    @cached_property
    def shapes(self) -> tuple[FeatureShape, ...]:
        """Channels and stride of every layer's output."""
        shapes: list[FeatureShape] = []
        for index in range(len(self.layers)):
            shapes.append(self._output_shape(index, shapes))
        return tuple(shapes)

    @property
    def num_weights(self) -> int:
        """How many float32 numbers darknet's weights file of this net holds."""
        total = 0
        for index, layer in enumerate(self.layers):
            if isinstance(layer, Convolution):
                kernel = self.input_shape(index).channels // layer.groups * layer.size**2
                total += layer.filters * (kernel + (4 if layer.batch_normalise else 1))
        return total

    def sources(self, index: int) -> tuple[int, ...]:
        """The layers that layer ``index`` reads; −1 is the picture."""
        layer = self.layers[index]
        if isinstance(layer, Route):
            return layer.layers
        return (index - 1, layer.source) if isinstance(layer, Shortcut) else (index - 1,)

    def input_shape(self, index: int) -> FeatureShape:
        """Channels and stride of what layer ``index`` reads first."""
        first = self.sources(index)[0]
        return FeatureShape(self.channels, 1) if first < 0 else self.shapes[first]

    def _output_shape(self, index: int, before: list[FeatureShape]) -> FeatureShape:
        """The output of layer ``index`` after all those before it; every rule of fitting stands here."""
        layer, sources = self.layers[index], self.sources(index)
        if not all(-1 <= source < index for source in sources) or not sources:
            raise self._mismatch(index, f"reads layers {sources}; only those before it can be read")
        if any(isinstance(self.layers[source], Yolo) for source in sources if source >= 0):
            raise self._mismatch(index, "reads a yolo layer; boxes are no picture")
        given = [before[source] if source >= 0 else FeatureShape(self.channels, 1) for source in sources]
        if len({shape.stride for shape in given}) > 1:
            raise self._mismatch(index, "brings together layers of different sizes")
        channels, stride = given[0].channels, given[0].stride
        match layer:
            case Convolution():
                if channels % layer.groups or layer.filters % layer.groups or layer.filters < 1 or layer.size < 1:
                    raise self._mismatch(index, f"{layer.filters} filters, {layer.groups} groups, {channels} channels")
                return FeatureShape(layer.filters, stride * layer.stride)
            case MaxPool():
                return FeatureShape(channels, stride * layer.stride)
            case Upsample():
                if stride % layer.stride:
                    raise self._mismatch(index, f"makes more pixels than the picture has (stride {layer.stride})")
                return FeatureShape(channels, stride // layer.stride)
            case Route():
                if any(shape.channels % layer.groups for shape in given) or not 0 <= layer.group_id < layer.groups:
                    raise self._mismatch(index, f"takes part {layer.group_id} of {layer.groups} groups")
                return FeatureShape(sum(shape.channels // layer.groups for shape in given), stride)
            case Shortcut():
                if given[1].channels != channels:
                    raise self._mismatch(index, f"adds {given[1].channels} channels to {channels}")
                return given[0]
            case Yolo():
                needed = len(layer.mask) * (5 + layer.classes)
                if channels != needed or not all(0 <= mask < len(layer.anchors) for mask in layer.mask):
                    raise self._mismatch(
                        index,
                        f"{layer.classes} classes and mask {layer.mask} of {len(layer.anchors)} anchors need "
                        f"{needed} channels before it, and there are {channels}",
                    )
                return given[0]

    def _mismatch(self, index: int, reason: str) -> ChromaboxError:
        kind = type(self.layers[index]).__name__.lower()
        return ChromaboxError(f"{self.name}: layer {index} ({kind}) does not fit: {reason}")


#: Widths and heights in pixels, from clustering COCO's boxes (Redmon and Farhadi 2018, section 2.3).
ANCHORS: Anchors = (
    *((10.0, 13.0), (16.0, 30.0), (33.0, 23.0), (30.0, 61.0), (62.0, 45.0)),
    *((59.0, 119.0), (116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)
TINY_ANCHORS: Anchors = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0), (81.0, 82.0), (135.0, 169.0), (344.0, 319.0))


def yolov3(num_classes: int = 80, *, anchors: Anchors = ANCHORS) -> Architecture:
    """YOLOv3 (Redmon and Farhadi 2018): Darknet-53 without its classifier, and heads at strides 32, 16 and 8."""
    layers: list[Layer] = [Convolution(32, 3)]
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        layers.append(Convolution(filters, 3, 2))
        for _ in range(blocks):
            start = len(layers) - 1
            layers += [Convolution(filters // 2, 1), Convolution(filters, 3), Shortcut(start)]
    # The last layers of strides 16 and 8, which the later heads read beside what comes down to them.
    skips = {1: 61, 2: 36}
    for head, (filters, mask) in enumerate(((512, (6, 7, 8)), (256, (3, 4, 5)), (128, (0, 1, 2)))):
        if head:
            # Four back: the 1×1 convolution before the last 3×3, the linear one and the head above.
            layers += [Route((len(layers) - 4,)), Convolution(filters, 1), Upsample(2)]
            layers.append(Route((len(layers) - 1, skips[head])))
        layers += [Convolution(filters, 1), Convolution(2 * filters, 3)] * 3
        layers += _head_layers(mask, anchors, num_classes)
    return Architecture("yolov3", tuple(layers))


def yolov3_tiny(
    num_classes: int = 80,
    *,
    anchors: Anchors = TINY_ANCHORS,
    mask: tuple[int, ...] = (1, 2, 3),
) -> Architecture:
    """YOLOv3-tiny: seven convolutions and six poolings, heads at strides 32 and 16.

    ``mask`` are the anchors of the second head. The published weights were trained with 1, 2, 3: with 0, 1, 2, as
    later configuration files have it, they load and find a third fewer objects.
    """
    layers: list[Layer] = []
    for filters in (16, 32, 64, 128, 256):
        layers += [Convolution(filters, 3), MaxPool(2, 2)]
    layers += [Convolution(512, 3), MaxPool(2, 1), Convolution(1024, 3), Convolution(256, 1), Convolution(512, 3)]
    layers += _head_layers((3, 4, 5), anchors, num_classes)
    layers += [Route((13,)), Convolution(128, 1), Upsample(2), Route((19, 8)), Convolution(256, 3)]
    layers += _head_layers(mask, anchors, num_classes)
    return Architecture("yolov3-tiny", tuple(layers))


def _head_layers(mask: tuple[int, ...], anchors: Anchors, num_classes: int) -> list[Layer]:
    if num_classes < 1:
        raise UsageError(f"classes is {num_classes}: a detector needs at least 1")
    filters = len(mask) * (5 + num_classes)
    return [Convolution(filters, 1, batch_normalise=False, activation="linear"), Yolo(mask, anchors, num_classes)]
