"""Detector architectures as lists of layers, including YOLOv3 and YOLOv3-tiny, and the variants of detector weights.

Layers are numbered from 0, as in Darknet. The input of a layer is the output of the previous layer unless stated
otherwise. The input of the first layer is the image. References to other layers are absolute indices. Freezing n layers
freezes the layers 0 to n − 1.

Weights of the three variants have the same shapes but must be interpreted differently. Weights that are loaded with the
wrong variant cause no error but give worse detections. The variant is therefore specified when the weights are loaded
and stored with them. It is never inferred from shapes.
"""

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from chromabox.errors import ChromaboxError, UsageError

Activation = Literal["leaky", "linear", "relu", "mish"]
#: Width and height of each anchor in pixels.
Anchors = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Convolution:
    """Convolution with ``filters`` kernels of ``size`` × ``size``, zero padding, and an activation.

    ``pad`` is the padding in pixels on each side; None is half of ``size``, rounded down. With ``batch_normalise``,
    BatchNorm follows and the convolution has no bias. The meaning of the activation ``leaky`` depends on the weight
    variant.
    """

    filters: int
    size: int
    stride: int = 1
    groups: int = 1
    batch_normalise: bool = True
    activation: Activation = "leaky"
    pad: int | None = None


@dataclass(frozen=True)
class MaxPool:
    """Max-pooling over ``size`` × ``size`` pixels; see ``MaxPoolLayer`` for the padding."""

    size: int
    stride: int


@dataclass(frozen=True)
class Upsample:
    """Nearest-neighbour upsampling by ``stride`` in both directions."""

    stride: int


@dataclass(frozen=True)
class Route:
    """Concatenation of the outputs of ``layers`` along the channels.

    The channels of each output are divided into ``groups`` equal parts, of which only part ``group_id`` is used.
    """

    layers: tuple[int, ...]
    groups: int = 1
    group_id: int = 0


@dataclass(frozen=True)
class Shortcut:
    """Sum of the outputs of the previous layer and layer ``source``."""

    source: int


@dataclass(frozen=True)
class Yolo:
    """Detection head. ``anchors`` contains all anchors of the model.

    ``mask`` contains the indices of the anchors of this head. For each of these anchors, the previous layer outputs a
    box, the objectness, and ``classes`` class scores.
    """

    mask: tuple[int, ...]
    anchors: Anchors
    classes: int

    @property
    def head_anchors(self) -> Anchors:
        """Anchors of this head, in the order of its outputs."""
        return tuple(self.anchors[index] for index in self.mask)


Layer = Convolution | MaxPool | Upsample | Route | Shortcut | Yolo

#: Maximum side length of the input in pixels, and maximum product of the strides of consecutive layers. Inputs of
#: published networks have at most 1,536 pixels.
MAX_SIZE = 1 << 13
#: Maximum number of values of a feature map at the default size of the input (1 GB in float32).
MAX_FEATURES = 1 << 28
#: Maximum number of classes. The largest published datasets have 1,203 (LVIS) and 9,000 (YOLO9000).
MAX_CLASSES = 10_000

#: Layer types by their names in checkpoints.
LAYER_TYPES: dict[str, type[Layer]] = {layer_type.__name__: layer_type for layer_type in get_args(Layer)}


@dataclass(frozen=True)
class FeatureShape:
    """Shape of a feature map: number of channels, and stride in input pixels."""

    channels: int
    stride: int


@dataclass(frozen=True)
class Architecture:
    """Validated list of the layers of a detector.

    Args:
        name: name for messages and file names.
        layers: layers in Darknet's order.
        channels: number of channels of the image.
        size: default side length of the square input in pixels, a multiple of ``max_stride`` of at most MAX_SIZE.

    Raise ChromaboxError if the layers are inconsistent; the message names the architecture and the layer.
    """

    name: str
    layers: tuple[Layer, ...]
    channels: int = 3
    size: int = 416

    def __post_init__(self) -> None:
        if self.channels != 3:
            raise ChromaboxError(f"{self.name}: the number of input channels is {self.channels}; expected 3 (RGB)")
        if not self.head_indices:
            raise ChromaboxError(f"{self.name} has no yolo layer; expected at least one")
        if len({yolo.classes for yolo in self.yolo_layers}) > 1:
            raise ChromaboxError(
                f"{self.name}: the yolo layers have different numbers of classes; expected the same number in all"
            )
        if not 1 <= self.size <= MAX_SIZE or self.size % self.max_stride:
            expected = f"expected a multiple of {self.max_stride}, at most {MAX_SIZE}"
            raise ChromaboxError(f"{self.name}: size is {self.size}; {expected}")
        self._check_sides()

    @cached_property
    def head_indices(self) -> tuple[int, ...]:
        """Indices of the yolo layers."""
        return tuple(index for index, layer in enumerate(self.layers) if isinstance(layer, Yolo))

    @property
    def yolo_layers(self) -> tuple[Yolo, ...]:
        """Yolo layers, in the order of ``head_indices``."""
        return tuple(layer for layer in self.layers if isinstance(layer, Yolo))

    @property
    def num_classes(self) -> int:
        """Number of classes of each head."""
        return self.yolo_layers[0].classes

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each head in input pixels, in the order of ``head_indices``."""
        return tuple(self.shapes[index].stride for index in self.head_indices)

    @property
    def max_stride(self) -> int:
        """Largest stride of any layer. The height and width of the input must be multiples of this stride."""
        return max(shape.stride for shape in self.shapes.values())

    @cached_property
    def shapes(self) -> dict[int, FeatureShape]:
        """Output shape of each layer, by layer index; index −1 is the image."""
        shapes, heads = {-1: FeatureShape(self.channels, 1)}, set(self.head_indices)
        for index, layer in enumerate(self.layers):
            sources = self.sources(index)
            try:
                if not sources or not all(-1 <= source < index and source not in heads for source in sources):
                    raise ValueError(
                        f"its inputs are layers {sources}; expected earlier layers that are not yolo layers"
                    )
                shapes[index] = _output_shape(layer, [shapes[source] for source in sources])
            except ValueError as error:
                name = type(layer).__name__.lower()
                raise ChromaboxError(f"{self.name}: layer {index} ({name}) is invalid: {error}") from None
        return shapes

    def _check_sides(self) -> None:
        """Raise ChromaboxError if feature maps at the default size do not fit together, are empty or are too large.

        The strides do not determine the sizes, because the padding of a convolution is arbitrary.
        """
        sides = {-1: self.size}
        for index, layer in enumerate(self.layers):
            side, *other_sides = (sides[source] for source in self.sources(index))
            match layer:
                case Convolution():
                    padding = layer.size // 2 if layer.pad is None else layer.pad
                    sides[index] = (side + 2 * padding - layer.size) // layer.stride + 1
                case MaxPool():
                    sides[index] = -(-side // layer.stride)
                case Upsample():
                    sides[index] = side * layer.stride
                case _:
                    sides[index] = side
            name = f"{self.name}: layer {index} ({type(layer).__name__.lower()})"
            if any(other != side for other in other_sides):
                found = ", ".join(map(str, (side, *other_sides[:5])))
                raise ChromaboxError(f"{name} is invalid: its inputs have the sides {found}; expected equal sides")
            channels, side = self.shapes[index].channels, sides[index]
            if side < 1 or channels * side**2 > MAX_FEATURES:
                found = f"its output has {channels} × {side} × {side} values"
                raise ChromaboxError(f"{name} is invalid: {found}; expected at least 1 and at most {MAX_FEATURES:,}")

    @property
    def num_weights(self) -> int:
        """Number of float32 values in the Darknet weight file of this architecture."""
        total = 0
        for index, layer in enumerate(self.layers):
            if isinstance(layer, Convolution):
                kernel = self.input_shape(index).channels // layer.groups * layer.size**2
                total += layer.filters * (kernel + (4 if layer.batch_normalise else 1))
        return total

    def sources(self, index: int) -> tuple[int, ...]:
        """Return the indices of the input layers of layer ``index``; −1 is the image."""
        layer = self.layers[index]
        if isinstance(layer, Route):
            return layer.layers
        return (index - 1, layer.source) if isinstance(layer, Shortcut) else (index - 1,)

    def input_shape(self, index: int) -> FeatureShape:
        """Return the shape of the first input of layer ``index``."""
        return self.shapes[self.sources(index)[0]]


def _output_shape(layer: Layer, inputs: list[FeatureShape]) -> FeatureShape:
    """Return the output shape of a layer. Raise ValueError if the layer does not fit its inputs."""
    for option, minimum in {"filters": 1, "size": 1, "stride": 1, "groups": 1, "pad": 0}.items():
        if (value := getattr(layer, option, None)) is not None and value < minimum:
            raise ValueError(f"{option} is {value}; expected at least {minimum}")
    channels, stride = inputs[0].channels, inputs[0].stride
    if any(shape.stride != stride for shape in inputs):
        raise ValueError("its inputs have different sizes; expected equal sizes")
    match layer:
        case Convolution(filters=filters, groups=groups):
            if channels % groups or filters % groups:
                expected = (
                    f"expected a common divisor of the numbers of input channels ({channels}) and filters ({filters})"
                )
                raise ValueError(f"groups is {groups}; {expected}")
            return FeatureShape(filters, _total_stride(stride, layer))
        case MaxPool():
            return FeatureShape(channels, _total_stride(stride, layer))
        case Upsample():
            if stride % layer.stride:
                raise ValueError(
                    f"the upsampling factor does not divide the stride of its input; expected a divisor of {stride}"
                )
            return FeatureShape(channels, stride // layer.stride)
        case Route(groups=groups, group_id=group_id):
            if any(shape.channels % groups for shape in inputs) or not 0 <= group_id < groups:
                expected = "expected groups to divide the number of channels of each input, and 0 <= group_id < groups"
                raise ValueError(f"groups is {groups} and group_id is {group_id}; {expected}")
            return FeatureShape(sum(shape.channels // groups for shape in inputs), stride)
        case Shortcut():
            if inputs[1].channels != channels:
                raise ValueError(
                    f"its inputs have {channels} and {inputs[1].channels} channels; expected the same number"
                )
            return inputs[0]
        case Yolo(mask=mask, anchors=anchors, classes=classes):
            if not 1 <= classes <= MAX_CLASSES:
                raise ValueError(f"classes is {classes}; expected 1 to {MAX_CLASSES}")
            if channels != len(mask) * (5 + classes):
                expected = f"expected {len(mask) * (5 + classes)} (anchors: {len(mask)}, classes: {classes})"
                raise ValueError(f"its input has {channels} channels; {expected}")
            if not all(0 <= anchor < len(anchors) for anchor in mask):
                raise ValueError(f"mask is {mask}; expected anchor indices, at least 0 and below {len(anchors)}")
            if not all(0 < length < math.inf for anchor in anchors for length in anchor):
                raise ValueError("anchors has values that are not positive; expected widths and heights in pixels")
            return inputs[0]


def _total_stride(stride: int, layer: Convolution | MaxPool) -> int:
    if stride * layer.stride > MAX_SIZE:
        raise ValueError(f"the product of all strides is {stride * layer.stride}; expected at most {MAX_SIZE}")
    return stride * layer.stride


#: Anchor widths and heights in pixels: clusters of the boxes of COCO (Redmon and Farhadi 2018, section 2.3).
ANCHORS: Anchors = (
    *((10.0, 13.0), (16.0, 30.0), (33.0, 23.0), (30.0, 61.0), (62.0, 45.0)),
    *((59.0, 119.0), (116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)
TINY_ANCHORS: Anchors = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0), (81.0, 82.0), (135.0, 169.0), (344.0, 319.0))


def yolov3(num_classes: int = 80, *, anchors: Anchors = ANCHORS) -> Architecture:
    """Return YOLOv3 (Redmon and Farhadi 2018): Darknet-53 without its classifier, and heads at strides 32, 16 and 8.

    Raise UsageError if ``num_classes`` is less than 1.
    """
    layers: list[Layer] = [Convolution(32, 3)]
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        layers.append(Convolution(filters, 3, 2))
        for _ in range(blocks):
            start = len(layers) - 1
            layers += [Convolution(filters // 2, 1), Convolution(filters, 3), Shortcut(start)]
    # The last backbone layers with strides 16 and 8. The second and third head concatenate the outputs of these layers
    # with upsampled features.
    skips = {1: 61, 2: 36}
    for head, (filters, mask) in enumerate(((512, (6, 7, 8)), (256, (3, 4, 5)), (128, (0, 1, 2)))):
        if head:
            # Branch off at the 1×1 convolution that precedes the previous head's last two convolutions.
            layers += [Route((len(layers) - 4,)), Convolution(filters, 1), Upsample(2)]
            layers.append(Route((len(layers) - 1, skips[head])))
        layers += [Convolution(filters, 1), Convolution(2 * filters, 3)] * 3
        layers += _head_layers(mask, anchors, num_classes)
    return Architecture("yolov3", tuple(layers))


def yolov3_tiny(
    num_classes: int = 80, *, anchors: Anchors = TINY_ANCHORS, mask: tuple[int, ...] = (1, 2, 3)
) -> Architecture:
    """Return YOLOv3-tiny: a backbone of seven convolutions and six max-pooling layers, and heads at strides 32 and 16.

    ``mask`` contains the anchor indices of the second head. The published weights were trained with (1, 2, 3), but
    later configuration files contain (0, 1, 2). With the latter, the published weights load without an error but detect
    a third fewer objects.

    Raise UsageError if ``num_classes`` is less than 1.
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
        raise UsageError(f"the number of classes is {num_classes}: expected at least 1")
    filters = len(mask) * (5 + num_classes)
    return [Convolution(filters, 1, batch_normalise=False, activation="linear"), Yolo(mask, anchors, num_classes)]


@dataclass(frozen=True)
class Variant:
    """Variant of detector weights: settings of the model for which the weights were trained.

    Args:
        name: name in ``--variant`` and in checkpoints.
        activation: activation function of layers with the activation ``leaky``. ``leaky``: leaky ReLU with slope 0.1.
            ``silu``: SiLU.
        decode: how the raw outputs t are decoded to a box in pixels, given the cell (column, row), the stride of the
            head, and the anchor (width, height) in pixels. ``exp``: centre (σ(t) + cell)·stride, size e^t·anchor
            (Redmon and Farhadi 2018). ``sigmoid2``: centre (2σ(t) − 0.5 + cell)·stride, size (2σ(t))²·anchor.
        epsilon: value added to the variance in BatchNorm.
        momentum: weight of a new batch in the running statistics of BatchNorm (PyTorch's ``momentum``).
        letterbox_grey: grey value of the letterbox padding, in [0, 1].
        tiny_pool_padding: padding value at the right and bottom of the 2×2 max-pooling with stride 1.
        tiny_mask: anchor indices of YOLOv3-tiny's second head.
    """

    name: str
    activation: Literal["leaky", "silu"]
    decode: Literal["exp", "sigmoid2"]
    epsilon: float
    momentum: float
    letterbox_grey: float
    tiny_pool_padding: float
    tiny_mask: tuple[int, int, int]

    def as_json(self) -> dict[str, Any]:
        """Return the variant as JSON values for a checkpoint.

        The padding value is stored as a string, because JSON cannot represent infinity.
        """
        return {**asdict(self), "tiny_pool_padding": str(self.tiny_pool_padding), "tiny_mask": list(self.tiny_mask)}


DARKNET = Variant("darknet", "leaky", "exp", 1e-5, 0.01, 0.5, float("-inf"), (1, 2, 3))
ULTRALYTICS_9_0 = Variant("ultralytics-9.0", "leaky", "sigmoid2", 1e-3, 0.03, 114 / 255, 0.0, (0, 1, 2))
ULTRALYTICS_9_6 = Variant("ultralytics-9.6", "silu", "sigmoid2", 1e-3, 0.03, 114 / 255, 0.0, (0, 1, 2))
VARIANTS = {variant.name: variant for variant in (DARKNET, ULTRALYTICS_9_0, ULTRALYTICS_9_6)}


def get_variant(name: str) -> Variant:
    """Return the variant with this name. Raise UsageError if the name is unknown."""
    if name not in VARIANTS:
        raise UsageError(f"--variant is {name!r}: expected {', '.join(VARIANTS)}")
    return VARIANTS[name]


def variant_from_json(stored: dict[str, Any]) -> Variant:
    """Return the variant stored by :meth:`Variant.as_json`.

    Raise KeyError, TypeError or ValueError if the values do not describe a variant.
    """
    padding, mask = float(stored["tiny_pool_padding"]), tuple(stored["tiny_mask"])
    return Variant(**{**stored, "tiny_pool_padding": padding, "tiny_mask": mask})
