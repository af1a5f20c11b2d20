"""The assignment's networks against its figure 1 (shapes, typed in from the figure) and against plain functions.

Expected paddings come from an exhaustive search with PyTorch's layers, expected logits from torch.nn.functional and the
model's weights, expected numbers of parameters from formulas derived by hand from the figure.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.colour.models import build_model, num_trainable_parameters
from chromabox.colour.models.baselines import (
    ConvTransposeNet,
    PoolUpsampleNet,
    UNet,
    same_conv,
    strided_padding,
    transposed_padding,
)
from chromabox.errors import UsageError

NIC, NF, NC = 2, 5, 7
# Outputs of the figure's layers, in order, for images of 32 × 32: (layer, channels, height = width).
POOL_UPSAMPLE = [
    *[("Conv2d", NF, 32), ("MaxPool2d", NF, 16), ("BatchNorm2d", NF, 16), ("ReLU", NF, 16)],
    *[("Conv2d", 2 * NF, 16), ("MaxPool2d", 2 * NF, 8), ("BatchNorm2d", 2 * NF, 8), ("ReLU", 2 * NF, 8)],
    *[("Conv2d", NF, 8), ("Upsample", NF, 16), ("BatchNorm2d", NF, 16), ("ReLU", NF, 16)],
    *[("Conv2d", NC, 16), ("Upsample", NC, 32), ("BatchNorm2d", NC, 32), ("ReLU", NC, 32)],
    ("Conv2d", NC, 32),
]
CONV_TRANSPOSE = [
    *[("Conv2d", NF, 16), ("BatchNorm2d", NF, 16), ("ReLU", NF, 16)],
    *[("Conv2d", 2 * NF, 8), ("BatchNorm2d", 2 * NF, 8), ("ReLU", 2 * NF, 8)],
    *[("ConvTranspose2d", NF, 16), ("BatchNorm2d", NF, 16), ("ReLU", NF, 16)],
    *[("ConvTranspose2d", NC, 32), ("BatchNorm2d", NC, 32), ("ReLU", NC, 32)],
    ("Conv2d", NC, 32),
]
# Inputs of the convolutions. The UNet concatenates block 1's output with block 3's, and the input with block 4's.
PLAIN_INPUTS = [(NIC, 32), (NF, 16), (2 * NF, 8), (NF, 16), (NC, 32)]
FIGURE = {
    PoolUpsampleNet: (POOL_UPSAMPLE, [(NIC, 32), (NF, 16), (2 * NF, 8), (NF, 16), (NC, 32)]),
    ConvTransposeNet: (CONV_TRANSPOSE, PLAIN_INPUTS),
    UNet: (CONV_TRANSPOSE, [*PLAIN_INPUTS[:3], (2 * NF, 16), (NC + NIC, 32)]),
}


@pytest.mark.parametrize("model_class", FIGURE)
@pytest.mark.parametrize("kernel", range(1, 10))
def test_layer_shapes_match_the_figure(model_class: type[nn.Module], kernel: int) -> None:
    model = model_class(kernel=kernel, num_in_channels=NIC, num_filters=NF, num_colours=NC)
    output_shapes, input_shapes = [], []

    def record_shapes(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        batch, channels, height, width = output.shape
        assert (batch, height) == (2, width)
        output_shapes.append((type(layer).__name__, channels, height))
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert layer.kernel_size == (kernel, kernel)
            input_shapes.append(tuple(inputs[0].shape[1:3]))

    for layer in model.modules():
        if not list(layer.children()):
            layer.register_forward_hook(record_shapes)
    model(torch.rand(2, NIC, 32, 32))
    assert (output_shapes, input_shapes) == FIGURE[model_class]


@pytest.mark.parametrize("dilation", [2, 3])
@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
@pytest.mark.parametrize("model_class", [ConvTransposeNet, UNet])
def test_dilation_keeps_shapes_and_does_not_affect_transposed_convolutions(
    model_class: type[nn.Module], kernel: int, dilation: int
) -> None:
    model = model_class(kernel=kernel, num_filters=NF, num_colours=NC, dilation=dilation)
    shapes = []
    for block in (model.block1, model.block2, model.block3, model.block4):
        block.register_forward_hook(lambda layer, inputs, output: shapes.append(tuple(output.shape[1:])))
    assert model(torch.rand(1, 1, 32, 32)).shape == (1, NC, 32, 32)
    assert shapes == [(NF, 16, 16), (2 * NF, 8, 8), (NF, 16, 16), (NC, 32, 32)]
    dilations = {type(layer).__name__: set() for layer in model.modules() if hasattr(layer, "dilation")}
    for layer in model.modules():
        if hasattr(layer, "dilation"):
            dilations[type(layer).__name__].add(layer.dilation)
    assert dilations == {"Conv2d": {(dilation, dilation)}, "ConvTranspose2d": {(1, 1)}}


def output_sizes(layer: nn.Module, sizes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the output widths of a layer for the given input sizes; None if it raises an error for one of them."""
    try:
        return tuple(layer(torch.zeros(1, 1, size, size)).shape[-1] for size in sizes)
    except (RuntimeError, ValueError):
        return None


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", range(1, 10))
def test_strided_padding_halves_even_sizes(kernel: int, dilation: int) -> None:
    halving = [
        padding
        for padding in range(16)
        if output_sizes(nn.Conv2d(1, 1, kernel, stride=2, padding=padding, dilation=dilation), (8, 16, 32))
        == (4, 8, 16)
    ]
    assert strided_padding(kernel, dilation) in halving


@pytest.mark.parametrize("kernel", range(1, 10))
def test_transposed_padding_is_the_only_pair_that_doubles_all_sizes(kernel: int) -> None:
    doubling = [
        (padding, output_padding)
        for padding in range(kernel + 2)
        for output_padding in range(3)
        if output_sizes(
            nn.ConvTranspose2d(1, 1, kernel, stride=2, padding=padding, output_padding=output_padding), (4, 8, 16)
        )
        == (8, 16, 32)
    ]
    assert doubling == [transposed_padding(kernel)]


# The assignment's answer to part B.4.
@pytest.mark.parametrize(("kernel", "padding", "output_padding"), [(3, 1, 1), (4, 1, 0), (5, 2, 1)])
def test_padding_matches_the_assignments_answer(kernel: int, padding: int, output_padding: int) -> None:
    assert strided_padding(kernel) == padding
    assert transposed_padding(kernel) == (padding, output_padding)
    for layer in ConvTransposeNet(kernel=kernel).modules():
        if isinstance(layer, nn.ConvTranspose2d):
            assert (layer.padding, layer.output_padding) == ((padding,) * 2, (output_padding,) * 2)
        elif isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
            assert layer.padding == (padding, padding)


@pytest.mark.parametrize("kernel", range(1, 33))
def test_padding_matches_the_assignments_general_formula(kernel: int) -> None:
    assert transposed_padding(kernel) == ((kernel - 1) // 2, int(kernel % 2 == 1))
    assert strided_padding(kernel) == (kernel - 1) // 2


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ({"kernel": 0}, "kernel is 0"),
        ({"kernel": -3}, "kernel is -3"),
        ({"kernel": 34}, "covers 34 pixels: expected at most 33, for images of 32"),
        ({"num_filters": 0}, "num_filters is 0"),
        ({"num_colours": 0}, "num_colours is 0"),
        ({"num_in_channels": 0}, "num_in_channels is 0"),
    ],
)
@pytest.mark.parametrize("name", ["pool-upsample", "conv-transpose", "unet"])
def test_invalid_sizes_are_rejected(name: str, model_args: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model(name, **model_args)


def expected_num_weights(model_class: type[nn.Module], kernel: int, nic: int, nf: int, nc: int) -> int:
    """Return the number of weights of the figure's convolutions, by formulas derived by hand."""
    if model_class is UNet:
        return kernel * kernel * (nic * nf + 4 * nf**2 + 2 * nf * nc + (nc + nic) * nc)
    return kernel * kernel * (nic * nf + 4 * nf**2 + nf * nc + nc**2)


@pytest.mark.parametrize("sizes", [(3, 1, 32, 24), (4, 2, 5, 7), (1, 3, 8, 2)])
@pytest.mark.parametrize("model_class", FIGURE)
def test_num_parameters_matches_the_formula(model_class: type[nn.Module], sizes: tuple[int, int, int, int]) -> None:
    kernel, nic, nf, nc = sizes
    model = model_class(kernel=kernel, num_in_channels=nic, num_filters=nf, num_colours=nc)
    layers = list(model.modules())
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    batch_norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    biases = nf + 2 * nf + nf + nc + nc
    normalisation = 2 * (nf + 2 * nf + nf + nc)
    weights = expected_num_weights(model_class, kernel, nic, nf, nc)
    assert sum(layer.weight.numel() for layer in convolutions) == weights
    assert sum(layer.bias.numel() for layer in convolutions) == biases
    assert sum(parameter.numel() for layer in batch_norms for parameter in layer.parameters()) == normalisation
    assert num_trainable_parameters(model) == weights + biases + normalisation


def conv(values: Tensor, weights: dict[str, Tensor], name: str, stride: int, dilation: int = 1) -> Tensor:
    """Convolve an explicitly padded image; uneven padding has one pixel more at the right and bottom."""
    kernel = weights[f"{name}.weight"].shape[-1]
    padding = dilation * (kernel - 1)
    before, after = (padding // 2, padding - padding // 2) if stride == 1 else (padding // 2, padding // 2)
    padded = F.pad(values, (before, after, before, after))
    return F.conv2d(padded, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=stride, dilation=dilation)


def transposed_conv(values: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """Compute a transposed convolution of stride 2 by its definition.

    Insert zeros between the pixels, then correlate with the kernel rotated by 180°.
    """
    weight = weights[f"{name}.weight"]
    kernel, (batch, channels, height, width) = weight.shape[-1], values.shape
    dilated = torch.zeros(batch, channels, 2 * height, 2 * width)
    dilated[:, :, ::2, ::2] = values
    before = kernel - 1 - (kernel - 1) // 2
    padded = F.pad(dilated, (before, kernel - 1 - before, before, kernel - 1 - before))
    return F.conv2d(padded, weight.flip(2, 3).transpose(0, 1), weights[f"{name}.bias"])


def batch_norm_relu(values: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """Apply batch normalisation with the running statistics, then ReLU."""
    mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    scale = weights[f"{name}.weight"] / (variance + 1e-5).sqrt()
    normalised = (values - mean[:, None, None]) * scale[:, None, None] + weights[f"{name}.bias"][:, None, None]
    return normalised.clamp(min=0)


def pool_upsample(grey: Tensor, weights: dict[str, Tensor], dilation: int) -> Tensor:
    half = batch_norm_relu(F.max_pool2d(conv(grey, weights, "block1.0", 1), 2), weights, "block1.2")
    quarter = batch_norm_relu(F.max_pool2d(conv(half, weights, "block2.0", 1), 2), weights, "block2.2")
    decoded = conv(quarter, weights, "block3.0", 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    decoded = conv(batch_norm_relu(decoded, weights, "block3.2"), weights, "block4.0", 1)
    full = batch_norm_relu(decoded.repeat_interleave(2, 2).repeat_interleave(2, 3), weights, "block4.2")
    return conv(full, weights, "last", 1)


def conv_transpose(grey: Tensor, weights: dict[str, Tensor], dilation: int, *, skips: bool = False) -> Tensor:
    half = batch_norm_relu(conv(grey, weights, "block1.0", 2, dilation), weights, "block1.1")
    quarter = batch_norm_relu(conv(half, weights, "block2.0", 2, dilation), weights, "block2.1")
    decoded = batch_norm_relu(transposed_conv(quarter, weights, "block3.0"), weights, "block3.1")
    full = transposed_conv(torch.cat([decoded, half], 1) if skips else decoded, weights, "block4.0")
    full = batch_norm_relu(full, weights, "block4.1")
    return conv(torch.cat([full, grey], 1) if skips else full, weights, "last", 1, dilation)


def unet(grey: Tensor, weights: dict[str, Tensor], dilation: int) -> Tensor:
    return conv_transpose(grey, weights, dilation, skips=True)


@pytest.mark.parametrize(
    ("model_class", "function", "dilation"),
    [
        (PoolUpsampleNet, pool_upsample, 1),
        (ConvTransposeNet, conv_transpose, 1),
        (ConvTransposeNet, conv_transpose, 2),
        (UNet, unet, 1),
        (UNet, unet, 3),
    ],
)
@pytest.mark.parametrize("kernel", [1, 3, 4, 5])
def test_logits_match_plain_functions(model_class: type[nn.Module], function, dilation: int, kernel: int) -> None:
    torch.manual_seed(kernel)
    model_args = {} if model_class is PoolUpsampleNet else {"dilation": dilation}
    model = model_class(kernel=kernel, num_in_channels=NIC, num_filters=NF, num_colours=NC, **model_args)
    model(torch.rand(4, NIC, 32, 32))  # in training mode, to change the running statistics from 0 and 1
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
    grey = torch.rand(2, NIC, 32, 16)
    with torch.no_grad():
        expected = function(grey, model.state_dict(), dilation)
        torch.testing.assert_close(model.eval()(grey), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.01


@pytest.mark.parametrize("kernel", range(1, 10))
def test_convolution_of_stride_one_keeps_odd_sizes(kernel: int) -> None:
    assert same_conv(1, 1, kernel)(torch.zeros(1, 1, 7, 11)).shape == (1, 1, 7, 11)
