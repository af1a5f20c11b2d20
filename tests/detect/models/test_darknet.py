"""Darknet models: all layer types against PyTorch functions, partial forward passes, BatchNorm fusion and variants."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from chromabox.detect.models.architecture import (
    DARKNET,
    ULTRALYTICS_9_0,
    ULTRALYTICS_9_6,
    VARIANTS,
    Architecture,
    Convolution,
    Layer,
    MaxPool,
    Route,
    Shortcut,
    Upsample,
    Variant,
    Yolo,
    get_variant,
    variant_from_json,
    yolov3_tiny,
)
from chromabox.detect.models.darknet import ConvolutionLayer, DarknetModel
from chromabox.errors import UsageError

ANCHORS = ((10.0, 14.0), (23.0, 27.0))
#: All layer types, two heads, and a layer that is read only by a much later layer.
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
def random_model(variant: Variant = DARKNET, architecture: Architecture = SMALL) -> DarknetModel:
    torch.manual_seed(0)
    model = DarknetModel(architecture, variant)
    for layer in model.layers:
        if isinstance(layer, ConvolutionLayer) and layer.norm is not None:
            for tensor in (layer.norm.weight, layer.norm.bias, layer.norm.running_mean, layer.norm.running_var):
                assert tensor is not None
                tensor.copy_(0.2 + torch.rand(tensor.shape))
    return model.eval()


def reference_forward(model: DarknetModel, images: Tensor, padding: float, activate: object) -> list[Tensor]:
    """Compute the outputs of the small model with PyTorch functions."""
    assert callable(activate)

    def conv_bn(index: int, features: Tensor, **options: int) -> Tensor:
        layer = model.layers[index]
        assert isinstance(layer, ConvolutionLayer)
        norm = layer.norm
        assert norm is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        out = F.conv2d(features, layer.convolution.weight, padding=1, **options)
        mean, variance, weight, bias = (
            tensor[:, None, None] for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return (out - mean) / torch.sqrt(variance + model.variant.epsilon) * weight + bias

    def conv(index: int, features: Tensor) -> Tensor:
        layer = model.layers[index]
        assert isinstance(layer, ConvolutionLayer)
        return F.conv2d(features, layer.convolution.weight, layer.convolution.bias)

    first = activate(conv_bn(0, images, stride=2))
    second = F.mish(conv_bn(1, first, groups=2))
    added = first + second
    pooled = F.max_pool2d(F.pad(F.max_pool2d(added, 2), (0, 1, 0, 1), value=padding), 2, 1)
    coarse = conv(5, pooled).reshape(len(images), 2, 7, *pooled.shape[-2:])
    upsampled = pooled[:, 4:].repeat_interleave(2, 2).repeat_interleave(2, 3)
    fine = conv(10, torch.cat([upsampled, added], 1)).reshape(len(images), 2, 7, *added.shape[-2:])
    return [coarse, fine]


@torch.no_grad()
@pytest.mark.parametrize(
    ("variant", "padding", "activate"),
    [
        (DARKNET, float("-inf"), lambda x: F.leaky_relu(x, 0.1)),
        (ULTRALYTICS_9_0, 0.0, lambda x: F.leaky_relu(x, 0.1)),
        (ULTRALYTICS_9_6, 0.0, F.silu),
    ],
)
def test_layers_match_pytorch_functions(variant: Variant, padding: float, activate: object) -> None:
    model = random_model(variant)
    # Mostly negative activations, so that zero padding changes the result.
    for index in (0, 1):
        layer = model.layers[index]
        assert isinstance(layer, ConvolutionLayer)
        assert layer.norm is not None
        layer.norm.bias -= 1.5
    images = torch.rand(2, 3, 48, 32)
    outputs, expected = model(images), reference_forward(model, images, padding, activate)
    assert [out.shape for out in outputs] == [(2, 2, 7, 12, 8), (2, 2, 7, 24, 16)]
    torch.testing.assert_close(outputs, expected)
    other = reference_forward(model, images, 0.0 if padding else float("-inf"), activate)
    assert not torch.allclose(outputs[0], other[0])


@torch.no_grad()
@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2), (5, 1), (2, 1), (3, 3), (4, 2), (3, 1)])
@pytest.mark.parametrize("side", [8, 9, 13])
def test_max_pooling_matches_darknet(size: int, stride: int, side: int) -> None:
    """out = (in + size − 1 − size) / stride + 1; a window starts at out·stride − (size − 1) / 2, clipped to the map."""
    layers = (Convolution(1, 1, batch_normalise=False, activation="linear"), MaxPool(size, stride))
    layers += (Convolution(6, 1, batch_normalise=False, activation="linear"), Yolo((0,), ANCHORS, 1))
    model = DarknetModel(Architecture("net", layers, size=6), DARKNET)
    features = torch.randn(1, 1, side, side)
    out = (side - 1) // stride + 1
    expected = torch.empty(out, out)
    for row in range(out):
        for column in range(out):
            top, left = row * stride - (size - 1) // 2, column * stride - (size - 1) // 2
            window = features[0, 0, max(0, top) : top + size, max(0, left) : left + size]
            expected[row, column] = window.max()
    torch.testing.assert_close(model.layers[1](features)[0, 0], expected, rtol=0, atol=0)


@torch.no_grad()
def test_partial_forward_passes_equal_the_full_pass() -> None:
    model = random_model()
    images = torch.rand(1, 3, 32, 64)
    expected = model(images)
    for upto in range(len(LAYERS) + 1):
        features = model.forward_features(images, upto)
        torch.testing.assert_close(model.forward_from(features, upto), expected, rtol=0, atol=0)
    # Only outputs that are still needed are returned: the head (layer 6) and the inputs of layers 7 and 9.
    assert sorted(model.forward_features(images, 7)) == [2, 4, 6]


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_fusing_batch_norm_preserves_the_outputs(variant: Variant) -> None:
    model = random_model(variant)
    images = torch.rand(1, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = model.fuse()
    torch.testing.assert_close(fused(images), model(images), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(fused.fuse()(images), fused(images), rtol=0, atol=0)


@torch.no_grad()
def test_bfloat16_and_channels_last() -> None:
    model = random_model().fuse()
    images = torch.rand(1, 3, 32, 32)
    expected = model(images)
    model = model.to(torch.bfloat16, memory_format=torch.channels_last)
    outputs = model(images.bfloat16().contiguous(memory_format=torch.channels_last))
    for output, reference in zip(outputs, expected, strict=True):
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), reference, rtol=0.05, atol=0.05)


def test_gradients_reach_the_first_layer() -> None:
    for variant in VARIANTS.values():
        model = DarknetModel(SMALL, variant).train()
        torch.stack([out.square().mean() for out in model(torch.rand(2, 3, 32, 32))]).sum().backward()
        first = model.layers[0]
        assert isinstance(first, ConvolutionLayer)
        assert first.convolution.weight.grad is not None
        assert first.convolution.weight.grad.abs().sum() > 0


def test_uninitialised_model_loads_a_state_dict() -> None:
    model = random_model()
    uninitialised = DarknetModel.uninitialised(SMALL, DARKNET)
    counters = [value for name, value in uninitialised.state_dict().items() if name.endswith("num_batches_tracked")]
    assert [int(counter) for counter in counters] == [0, 0]
    uninitialised.load_state_dict(model.state_dict())
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(uninitialised.eval()(images), model(images), rtol=0, atol=0)


@torch.no_grad()
def test_size_that_is_not_a_multiple_of_the_stride_is_rejected() -> None:
    model = DarknetModel(yolov3_tiny(1), DARKNET).eval()
    with pytest.raises(UsageError, match="size is 64×80: expected multiples of 32 for yolov3-tiny"):
        model(torch.rand(1, 3, 80, 64))
    assert [out.shape[-2:] for out in model(torch.rand(1, 3, 32, 96))] == [(1, 3), (2, 6)]


def test_variants_round_trip_through_json() -> None:
    for name, variant in VARIANTS.items():
        assert variant_from_json(variant.as_json()) == variant == get_variant(name)
    assert replace(DARKNET, epsilon=1e-3) != DARKNET
    with pytest.raises(UsageError, match="--variant is 'yolov5': expected darknet, ultralytics"):
        get_variant("yolov5")
    with pytest.raises((KeyError, TypeError, ValueError)):
        variant_from_json({**DARKNET.as_json(), "more": 1})
