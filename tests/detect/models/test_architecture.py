"""Architectures: numbers of layers, heads and references of the published models, and inconsistent layers.

Expected values: the layer tables that Darknet prints for yolov3.cfg and yolov3-tiny.cfg, and the numbers of float32
values in the published weight files (file size minus 20 bytes, divided by 4).
"""

from dataclasses import replace

import pytest
import torch

from chromabox.detect.models.architecture import (
    DARKNET,
    Architecture,
    Convolution,
    FeatureShape,
    Layer,
    MaxPool,
    Route,
    Shortcut,
    Upsample,
    Yolo,
    yolov3,
    yolov3_tiny,
)
from chromabox.detect.models.darknet import DarknetModel
from chromabox.errors import ChromaboxError, UsageError

ANCHORS = ((10.0, 14.0), (23.0, 27.0))


def with_head(*layers: Layer, channels: int = 12) -> tuple[Layer, ...]:
    """Return the layers followed by a head with two anchors and one class."""
    return (*layers, Convolution(channels, 1, batch_normalise=False, activation="linear"), Yolo((0, 1), ANCHORS, 1))


def test_yolov3_matches_the_published_model() -> None:
    architecture = yolov3()
    assert len(architecture.layers) == 107
    assert architecture.num_weights == (248_007_048 - 20) // 4
    assert (architecture.head_indices, architecture.strides, architecture.max_stride, architecture.num_classes) == (
        (82, 94, 106),
        (32, 16, 8),
        32,
        80,
    )
    assert [architecture.layers[index] for index in (83, 86, 95, 98)] == [
        *(Route((79,)), Route((85, 61))),
        *(Route((91,)), Route((97, 36))),
    ]
    assert architecture.shapes[74] == FeatureShape(1024, 32)
    assert architecture.shapes[86] == FeatureShape(768, 16)
    assert architecture.shapes[98] == FeatureShape(384, 8)
    assert architecture.layers[4] == Shortcut(1)
    assert sum(isinstance(layer, Convolution) for layer in architecture.layers) == 75
    assert sum(isinstance(layer, Shortcut) for layer in architecture.layers) == 23


def test_yolov3_tiny_matches_the_published_model() -> None:
    architecture = yolov3_tiny()
    assert len(architecture.layers) == 24
    assert architecture.num_weights == (35_434_956 - 20) // 4
    assert (architecture.head_indices, architecture.strides, architecture.max_stride) == ((16, 23), (32, 16), 32)
    assert (architecture.layers[17], architecture.layers[20], architecture.layers[11]) == (
        Route((13,)),
        Route((19, 8)),
        MaxPool(2, 1),
    )
    assert [yolo.head_anchors[0] for yolo in architecture.yolo_layers] == [(81.0, 82.0), (23.0, 27.0)]


@pytest.mark.parametrize(("build", "num_inputs"), [(yolov3, 1024 + 512 + 256), (yolov3_tiny, 512 + 256)])
def test_additional_class_adds_three_outputs_to_each_head(build: object, num_inputs: int) -> None:
    assert callable(build)
    num_heads = len(build(1).head_indices)
    assert build(7).num_weights - build(6).num_weights == 3 * (num_inputs + num_heads)


def test_zero_classes_are_rejected() -> None:
    with pytest.raises(UsageError, match="the number of classes is 0"):
        yolov3_tiny(0)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((Convolution(3, 1),), "has no yolo layer; expected at least one"),
        (with_head(channels=13), r"layer 1 \(yolo\) is invalid: its input has 13 channels; expected 12 \(anchors: 2"),
        (with_head(Route((5,))), r"layer 0 \(route\) is invalid: its inputs are layers \(5,\)"),
        (with_head(Convolution(4, 3), Shortcut(-2)), "layer 1 .shortcut. is invalid: its inputs are layers"),
        (with_head(Convolution(4, 3), Convolution(5, 3), Shortcut(0)), "its inputs have 5 and 4 channels"),
        (with_head(Convolution(4, 3), MaxPool(2, 2), Route((0, 1))), "different sizes"),
        (
            with_head(Upsample(2)),
            "the upsampling factor does not divide the stride of its input; expected a divisor of 1",
        ),
        (
            with_head(Convolution(4, 3, groups=2)),
            r"groups is 2; expected a common divisor of the numbers of input channels \(3\) and filters \(4\)",
        ),
        (with_head(Convolution(5, 3), Route((0,), 2, 1)), "groups is 2 and group_id is 1; expected groups to divide"),
        (with_head(Convolution(4, 3), Route((0,), 2, 2)), "groups is 2 and group_id is 2; expected groups to divide"),
        ((*with_head(), Convolution(3, 1)), "expected earlier layers that are not yolo layers"),
        ((*with_head(), Route((0,)), Yolo((0,), ANCHORS, 7)), "different numbers of classes"),
        (
            (*with_head()[:1], Yolo((0, 2), ANCHORS, 1)),
            r"mask is \(0, 2\); expected anchor indices, at least 0 and below 2",
        ),
        (with_head(Convolution(4, 3, groups=0)), "groups is 0; expected at least 1"),
        (with_head(MaxPool(2, 0)), "stride is 0; expected at least 1"),
        (with_head(Convolution(4, 3, pad=-1)), "pad is -1; expected at least 0"),
        # The output has 64 + 2·0 − 65 + 1 = 0 pixels (PyTorch's documentation of Conv2d).
        (with_head(Convolution(4, 65, pad=0)), "its output has 4 × 0 × 0 values; expected at least 1"),
        (with_head(Convolution(4, 3, pad=10**8)), "its output has 4 × 200000062 × 200000062 values"),
        (with_head(Convolution(4, 3), Convolution(4, 3, pad=0), Shortcut(0)), "its inputs have the sides 62, 64;"),
        (with_head(Convolution(10**6, 1)), "its output has 1000000 × 64 × 64 values; expected .* at most 268,435,456"),
        ((*with_head()[:1], Yolo((0, 1), ANCHORS, 10**8)), "classes is 100000000; expected 1 to 10000"),
        ((*with_head()[:1], Yolo((0, 1), ((1.0, 2.0), (float("nan"), 3.0)), 1)), "anchors has values that are not pos"),
    ],
)
def test_inconsistent_layers_are_rejected(layers: tuple[Layer, ...], message: str) -> None:
    with pytest.raises(ChromaboxError, match=f"^net(: .*| ){message}"):
        Architecture("net", layers, size=64)


def test_size_of_a_layer_equals_the_size_of_its_output() -> None:
    """PyTorch computes the sizes of unpadded, strided and even convolutions."""
    layers = (Convolution(4, 3, pad=0), Convolution(4, 2, 2), MaxPool(3, 2), Upsample(2))
    sizes = [62, 32, 16, 32]
    model = DarknetModel(Architecture("net", with_head(*layers), size=64), DARKNET).eval()
    images = torch.zeros(1, 3, 64, 64)
    for layer, size in zip(model.layers[:4], sizes, strict=True):
        images = layer(images)
        assert images.shape[2:] == (size, size)
    for layer_count, size in enumerate(sizes, 1):
        # The two inputs of a shortcut have the computed size and the size of the image, which differ.
        with pytest.raises(ChromaboxError, match=f"different sizes|the sides {size}, 64"):
            Architecture("net", with_head(Convolution(4, 1), *layers[:layer_count], Shortcut(0)), size=64)


@pytest.mark.parametrize("changes", [{"size": 99_999_968}, {"size": 0}, {"size": 8224}, {"channels": 1}])
def test_input_of_another_size_or_kind_is_rejected(changes: dict[str, int]) -> None:
    with pytest.raises(ChromaboxError, match=r"yolov3-tiny: .*at most 8192|input channels is 1; expected 3 \(RGB\)"):
        replace(yolov3_tiny(), **changes)  # type: ignore[arg-type]


def test_size_that_is_not_a_multiple_of_the_stride_is_rejected() -> None:
    with pytest.raises(ChromaboxError, match="size is 400; expected a multiple of 32"):
        replace(yolov3_tiny(), size=400)
