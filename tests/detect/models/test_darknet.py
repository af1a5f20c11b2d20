"""Nets of layers: every kind of layer against PyTorch's own functions, prefixes, folding, the kinds' differences."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from chromabox.detect.models.architecture import (
    Architecture,
    Convolution,
    Layer,
    MaxPool,
    Route,
    Shortcut,
    Upsample,
    Yolo,
    yolov3_tiny,
)
from chromabox.detect.models.darknet import (
    DARKNET,
    ULTRALYTICS_9_0,
    ULTRALYTICS_9_6,
    VARIANTS,
    ConvolutionLayer,
    DarknetModel,
    Variant,
    get_variant,
    variant_from_json,
)
from chromabox.errors import UsageError

ANCHORS = ((10.0, 14.0), (23.0, 27.0))
#: Every kind of layer, two heads, and a layer that only a far later one reads.
LAYERS: tuple[Layer, ...] = (
    Convolution(8, 3, 2),
    Convolution(8, 3, groups=2, activation="mish"),
    Shortcut(0),
    MaxPool(2, 2),
    MaxPool(2, 1),
    Convolution(14, 1, batch_normalise=False, activation="linear"),
    Yolo((0, 1), ANCHORS, 2),
    Route((4,), 2, 1),
    Upsample(2),
    Route((8, 2)),
    Convolution(14, 1, batch_normalise=False, activation="linear"),
    Yolo((1, 0), ANCHORS, 2),
)
SMALL = Architecture("small", LAYERS, size=32)


@torch.no_grad()
def random_net(kind: Variant = DARKNET, architecture: Architecture = SMALL) -> DarknetModel:
    torch.manual_seed(0)
    net = DarknetModel(architecture, kind)
    for layer in net.layers:
        if isinstance(layer, ConvolutionLayer) and layer.norm is not None:
            for tensor in (layer.norm.weight, layer.norm.bias, layer.norm.running_mean, layer.norm.running_var):
                assert tensor is not None
                tensor.copy_(0.2 + torch.rand(tensor.shape))
    return net.eval()


def by_hand(net: DarknetModel, images: Tensor, padding: float, activate: object) -> list[Tensor]:
    """The small net written out in PyTorch's functions."""
    assert callable(activate)

    def normalised(index: int, given: Tensor, **settings: int) -> Tensor:
        layer = net.layers[index]
        assert isinstance(layer, ConvolutionLayer)
        norm = layer.norm
        assert norm is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        out = F.conv2d(given, layer.convolution.weight, padding=1, **settings)
        mean, variance, weight, bias = (
            tensor[:, None, None] for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return (out - mean) / torch.sqrt(variance + net.variant.epsilon) * weight + bias

    def plain(index: int, given: Tensor) -> Tensor:
        layer = net.layers[index]
        assert isinstance(layer, ConvolutionLayer)
        return F.conv2d(given, layer.convolution.weight, layer.convolution.bias)

    first = activate(normalised(0, images, stride=2))
    second = F.mish(normalised(1, first, groups=2))
    added = first + second
    pooled = F.max_pool2d(F.pad(F.max_pool2d(added, 2), (0, 1, 0, 1), value=padding), 2, 1)
    coarse = plain(5, pooled).reshape(len(images), 2, 7, *pooled.shape[-2:])
    large = pooled[:, 4:].repeat_interleave(2, 2).repeat_interleave(2, 3)
    fine = plain(10, torch.cat([large, added], 1)).reshape(len(images), 2, 7, *added.shape[-2:])
    return [coarse, fine]


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "padding", "activate"),
    [
        (DARKNET, float("-inf"), lambda x: F.leaky_relu(x, 0.1)),
        (ULTRALYTICS_9_0, 0.0, lambda x: F.leaky_relu(x, 0.1)),
        (ULTRALYTICS_9_6, 0.0, F.silu),
    ],
)
def test_every_layer_is_what_pytorch_makes_of_it(kind: Variant, padding: float, activate: object) -> None:
    net = random_net(kind)
    # Mostly below zero, so that padding by zeros shows.
    for index in (0, 1):
        layer = net.layers[index]
        assert isinstance(layer, ConvolutionLayer)
        assert layer.norm is not None
        layer.norm.bias -= 1.5
    images = torch.rand(2, 3, 48, 32)
    found, expected = net(images), by_hand(net, images, padding, activate)
    assert [out.shape for out in found] == [(2, 2, 7, 12, 8), (2, 2, 7, 24, 16)]
    torch.testing.assert_close(found, expected)
    other = by_hand(net, images, 0.0 if padding else float("-inf"), activate)
    assert not torch.allclose(found[0], other[0])


@torch.no_grad()
@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2), (5, 1), (2, 1), (3, 3), (4, 2), (3, 1)])
@pytest.mark.parametrize("side", [8, 9, 13])
def test_pooling_as_darknet_counts(size: int, stride: int, side: int) -> None:
    """out = (in + size − 1 − size) / stride + 1; a window begins at out·stride − (size − 1) / 2, cut to the map."""
    layers = (Convolution(1, 1, batch_normalise=False, activation="linear"), MaxPool(size, stride))
    layers += (Convolution(6, 1, batch_normalise=False, activation="linear"), Yolo((0,), ANCHORS, 1))
    net = DarknetModel(Architecture("net", layers, size=6), DARKNET)
    given = torch.randn(1, 1, side, side)
    out = (side - 1) // stride + 1
    expected = torch.empty(out, out)
    for row in range(out):
        for column in range(out):
            top, left = row * stride - (size - 1) // 2, column * stride - (size - 1) // 2
            window = given[0, 0, max(0, top) : top + size, max(0, left) : left + size]
            expected[row, column] = window.max()
    torch.testing.assert_close(net.layers[1](given)[0, 0], expected, rtol=0, atol=0)


@torch.no_grad()
def test_a_prefix_and_the_rest_are_the_whole() -> None:
    net = random_net()
    images = torch.rand(1, 3, 32, 64)
    whole = net(images)
    for until in range(len(LAYERS) + 1):
        kept = net.forward_features(images, until)
        torch.testing.assert_close(net.forward_from(kept, until), whole, rtol=0, atol=0)
    # Kept is only what is still read: the head of layer 6, what layers 7 and 9 read.
    assert sorted(net.forward_features(images, 7)) == [2, 4, 6]


@torch.no_grad()
@pytest.mark.parametrize("kind", VARIANTS.values(), ids=VARIANTS)
def test_folding_changes_nothing_but_rounding(kind: Variant) -> None:
    net = random_net(kind)
    images = torch.rand(1, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    folded = net.fuse()
    torch.testing.assert_close(folded(images), net(images), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    torch.testing.assert_close(folded.fuse()(images), folded(images), rtol=0, atol=0)


@torch.no_grad()
def test_other_precision_and_layout() -> None:
    net = random_net().fuse()
    images = torch.rand(1, 3, 32, 32)
    expected = net(images)
    net = net.to(torch.bfloat16, memory_format=torch.channels_last)
    found = net(images.bfloat16().contiguous(memory_format=torch.channels_last))
    for mine, right in zip(found, expected, strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine.float(), right, rtol=0.05, atol=0.05)


def test_gradients_reach_the_first_layer() -> None:
    for kind in VARIANTS.values():
        net = DarknetModel(SMALL, kind).train()
        torch.stack([out.square().mean() for out in net(torch.rand(2, 3, 32, 32))]).sum().backward()
        first = net.layers[0]
        assert isinstance(first, ConvolutionLayer)
        assert first.convolution.weight.grad is not None
        assert first.convolution.weight.grad.abs().sum() > 0


def test_a_blank_net_is_filled_like_any_other() -> None:
    net = random_net()
    blank = DarknetModel.uninitialised(SMALL, DARKNET)
    counters = [value for name, value in blank.state_dict().items() if name.endswith("num_batches_tracked")]
    assert [int(counter) for counter in counters] == [0, 0]
    blank.load_state_dict(net.state_dict())
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(blank.eval()(images), net(images), rtol=0, atol=0)


@torch.no_grad()
def test_sizes_that_do_not_divide_are_refused() -> None:
    net = DarknetModel(yolov3_tiny(1), DARKNET).eval()
    with pytest.raises(UsageError, match="size is 64×80: yolov3-tiny needs multiples of 32"):
        net(torch.rand(1, 3, 80, 64))
    assert [out.shape[-2:] for out in net(torch.rand(1, 3, 32, 96))] == [(1, 3), (2, 6)]


def test_kinds_are_kept_as_json() -> None:
    for name, kind in VARIANTS.items():
        assert variant_from_json(kind.as_json()) == kind == get_variant(name)
    assert replace(DARKNET, epsilon=1e-3) != DARKNET
    with pytest.raises(UsageError, match="kind is 'yolov5': the kinds of detector weights are darknet, ultralytics"):
        get_variant("yolov5")
    with pytest.raises((KeyError, TypeError, ValueError)):
        variant_from_json({**DARKNET.as_json(), "more": 1})
