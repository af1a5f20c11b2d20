"""Lists of layers: the published nets' counts, heads and references, and what does not fit.

Expected: the layer tables that darknet prints for yolov3.cfg and yolov3-tiny.cfg, and the counts of float32 numbers in
the published weights files (their sizes less 20 bytes, by four).
"""

from dataclasses import replace

import pytest

from chromabox.detect.models.architecture import (
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
from chromabox.errors import ChromaboxError, UsageError

ANCHORS = ((10.0, 14.0), (23.0, 27.0))


def with_head(*layers: Layer, channels: int = 12) -> tuple[Layer, ...]:
    """The layers, and after them a head of two anchors and one class."""
    return (*layers, Convolution(channels, 1, batch_normalise=False, activation="linear"), Yolo((0, 1), ANCHORS, 1))


def test_yolov3() -> None:
    net = yolov3()
    assert len(net.layers) == 107
    assert net.num_weights == (248_007_048 - 20) // 4
    assert (net.head_indices, net.strides, net.max_stride, net.num_classes) == ((82, 94, 106), (32, 16, 8), 32, 80)
    assert [net.layers[index] for index in (83, 86, 95, 98)] == [
        *(Route((79,)), Route((85, 61))),
        *(Route((91,)), Route((97, 36))),
    ]
    assert net.shapes[74] == FeatureShape(1024, 32)
    assert net.shapes[86] == FeatureShape(768, 16)
    assert net.shapes[98] == FeatureShape(384, 8)
    assert net.layers[4] == Shortcut(1)
    assert sum(isinstance(layer, Convolution) for layer in net.layers) == 75
    assert sum(isinstance(layer, Shortcut) for layer in net.layers) == 23


def test_yolov3_tiny() -> None:
    net = yolov3_tiny()
    assert len(net.layers) == 24
    assert net.num_weights == (35_434_956 - 20) // 4
    assert (net.head_indices, net.strides, net.max_stride) == ((16, 23), (32, 16), 32)
    assert (net.layers[17], net.layers[20], net.layers[11]) == (Route((13,)), Route((19, 8)), MaxPool(2, 1))
    assert [yolo.head_anchors[0] for yolo in net.yolo_layers] == [(81.0, 82.0), (23.0, 27.0)]


@pytest.mark.parametrize(("build", "inputs"), [(yolov3, 1024 + 512 + 256), (yolov3_tiny, 512 + 256)])
def test_a_class_more_is_three_rows_more_of_every_head(build: object, inputs: int) -> None:
    assert callable(build)
    heads = len(build(1).head_indices)
    assert build(7).num_weights - build(6).num_weights == 3 * (inputs + heads)


def test_classes_must_be_some() -> None:
    with pytest.raises(UsageError, match="classes is 0"):
        yolov3_tiny(0)


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ((Convolution(3, 1),), "has no yolo layer"),
        (with_head(channels=13), r"layer 1 \(yolo\) does not fit: 1 classes and mask \(0, 1\) of 2 anchors need 12"),
        (with_head(Route((5,))), r"layer 0 \(route\) does not fit: reads layers \(5,\)"),
        (with_head(Convolution(4, 3), Shortcut(-2)), "layer 1 .shortcut. does not fit: reads layers"),
        (with_head(Convolution(4, 3), Convolution(5, 3), Shortcut(0)), "adds 4 channels to 5"),
        (with_head(Convolution(4, 3), MaxPool(2, 2), Route((0, 1))), "different sizes"),
        (with_head(Upsample(2)), "more pixels than the picture has"),
        (with_head(Convolution(4, 3, groups=2)), "4 filters, 2 groups, 3 channels"),
        (with_head(Convolution(5, 3), Route((0,), 2, 1)), "takes part 1 of 2 groups"),
        (with_head(Convolution(4, 3), Route((0,), 2, 2)), "takes part 2 of 2 groups"),
        ((*with_head(), Convolution(3, 1)), "reads a yolo layer"),
        ((*with_head(), Route((0,)), Yolo((0,), ANCHORS, 7)), "different counts of classes"),
        ((*with_head()[:1], Yolo((0, 2), ANCHORS, 1)), "mask"),
    ],
)
def test_what_does_not_fit_is_named(layers: tuple[Layer, ...], sentence: str) -> None:
    with pytest.raises(ChromaboxError, match=f"^net: .*{sentence}"):
        Architecture("net", layers, size=64)


def test_the_size_must_suit_the_strides() -> None:
    with pytest.raises(ChromaboxError, match="size is 400; a multiple of 32 is needed"):
        replace(yolov3_tiny(), size=400)
