"""The nets against the assignment's figure 1 (its shapes, typed in from the figure) and against plain functions.

Expected paddings come from an exhaustive search with PyTorch's own layers, expected logits from torch.nn.functional
and a net's weights, expected counts from the formula worked out by hand for the figure.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.colour.models import MODELS, build_model, num_trainable_parameters
from chromabox.colour.models.baselines import (
    ConvTransposeNet,
    PoolUpsampleNet,
    UNet,
    same_conv,
    strided_padding,
    transposed_padding,
)
from chromabox.colour.models.colournet import ColourNet, ResidualBlock, hat_encoding
from chromabox.colour.models.photonet import GlobalContext, PhotoNet
from chromabox.errors import UsageError

NIC, NF, NC = 2, 5, 7
# What every layer of the figure puts out, in order: (layer, channels, height and width) for pictures of 32 × 32.
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
# What the convolutions take in: in the UNet block 1's output beside block 3's, and the input beside block 4's.
PLAIN_INPUTS = [(NIC, 32), (NF, 16), (2 * NF, 8), (NF, 16), (NC, 32)]
FIGURE = {
    PoolUpsampleNet: (POOL_UPSAMPLE, [(NIC, 32), (NF, 16), (2 * NF, 8), (NF, 16), (NC, 32)]),
    ConvTransposeNet: (CONV_TRANSPOSE, PLAIN_INPUTS),
    UNet: (CONV_TRANSPOSE, [*PLAIN_INPUTS[:3], (2 * NF, 16), (NC + NIC, 32)]),
}


@pytest.mark.parametrize("net_class", FIGURE)
@pytest.mark.parametrize("kernel", range(1, 10))
def test_every_layer_has_the_shape_of_the_figure(net_class: type[nn.Module], kernel: int) -> None:
    net = net_class(kernel=kernel, num_in_channels=NIC, num_filters=NF, num_colours=NC)
    outputs, inputs = [], []

    def watch(layer: nn.Module, taken: tuple[Tensor], given: Tensor) -> None:
        batch, channels, height, width = given.shape
        assert (batch, height) == (2, width)
        outputs.append((type(layer).__name__, channels, height))
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert layer.kernel_size == (kernel, kernel)
            inputs.append(tuple(taken[0].shape[1:3]))

    for layer in net.modules():
        if not list(layer.children()):
            layer.register_forward_hook(watch)
    net(torch.rand(2, NIC, 32, 32))
    assert (outputs, inputs) == FIGURE[net_class]


@pytest.mark.parametrize("name", MODELS)
def test_a_score_for_every_colour_of_every_pixel_at_any_fitting_size(name: str) -> None:
    net = build_model(name, num_colours=5).eval()
    side, stride = net.size_divisor, 8 if name == "photo" else 1
    for height, width in ((side, 3 * side), (32, 32), (5 * side, 2 * side)):
        logits = net(torch.rand(2, 1, height, width))
        assert logits.shape == (2, 5, height // stride, width // stride)
        assert logits.isfinite().all()


@pytest.mark.parametrize("dilation", [2, 3])
@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
@pytest.mark.parametrize("net_class", [ConvTransposeNet, UNet])
def test_dilation_keeps_the_shapes_and_spares_the_transposed(
    net_class: type[nn.Module], kernel: int, dilation: int
) -> None:
    net = net_class(kernel=kernel, num_filters=NF, num_colours=NC, dilation=dilation)
    shapes = []
    for block in (net.block1, net.block2, net.block3, net.block4):
        block.register_forward_hook(lambda layer, taken, given: shapes.append(tuple(given.shape[1:])))
    assert net(torch.rand(1, 1, 32, 32)).shape == (1, NC, 32, 32)
    assert shapes == [(NF, 16, 16), (2 * NF, 8, 8), (NF, 16, 16), (NC, 32, 32)]
    dilations = {type(layer).__name__: set() for layer in net.modules() if hasattr(layer, "dilation")}
    for layer in net.modules():
        if hasattr(layer, "dilation"):
            dilations[type(layer).__name__].add(layer.dilation)
    assert dilations == {"Conv2d": {(dilation, dilation)}, "ConvTranspose2d": {(1, 1)}}


def sizes_after(layer: nn.Module, sizes: tuple[int, ...]) -> tuple[int, ...] | None:
    """The widths that a layer makes of the given ones; None where it refuses one."""
    try:
        return tuple(layer(torch.zeros(1, 1, size, size)).shape[-1] for size in sizes)
    except (RuntimeError, ValueError):
        return None


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", range(1, 10))
def test_strided_padding_is_among_all_that_halve(kernel: int, dilation: int) -> None:
    halving = [
        padding
        for padding in range(16)
        if sizes_after(nn.Conv2d(1, 1, kernel, stride=2, padding=padding, dilation=dilation), (8, 16, 32)) == (4, 8, 16)
    ]
    assert strided_padding(kernel, dilation) in halving


@pytest.mark.parametrize("kernel", range(1, 10))
def test_transposed_padding_is_the_only_pair_that_doubles(kernel: int) -> None:
    doubling = [
        (padding, extra)
        for padding in range(kernel + 2)
        for extra in range(3)
        if sizes_after(nn.ConvTranspose2d(1, 1, kernel, stride=2, padding=padding, output_padding=extra), (4, 8, 16))
        == (8, 16, 32)
    ]
    assert doubling == [transposed_padding(kernel)]


# The assignment's own answer to part B.4.
@pytest.mark.parametrize(("kernel", "padding", "output_padding"), [(3, 1, 1), (4, 1, 0), (5, 2, 1)])
def test_padding_as_the_handout_answers(kernel: int, padding: int, output_padding: int) -> None:
    assert strided_padding(kernel) == padding
    assert transposed_padding(kernel) == (padding, output_padding)
    for layer in ConvTransposeNet(kernel=kernel).modules():
        if isinstance(layer, nn.ConvTranspose2d):
            assert (layer.padding, layer.output_padding) == ((padding,) * 2, (output_padding,) * 2)
        elif isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
            assert layer.padding == (padding, padding)


@pytest.mark.parametrize("kernel", range(1, 33))
def test_handouts_general_answer(kernel: int) -> None:
    assert transposed_padding(kernel) == ((kernel - 1) // 2, int(kernel % 2 == 1))
    assert strided_padding(kernel) == (kernel - 1) // 2


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"kernel": 0}, "kernel is 0"),
        ({"kernel": -3}, "kernel is -3"),
        ({"kernel": 34}, "reaches over 34 pixels, more than a picture of 32"),
        ({"num_filters": 0}, "num_filters is 0"),
        ({"num_colours": 0}, "num_colours is 0"),
        ({"num_in_channels": 0}, "num_in_channels is 0"),
    ],
)
@pytest.mark.parametrize("name", ["pool-upsample", "conv-transpose", "unet"])
def test_what_cannot_keep_the_shapes_is_refused_with_the_reason(name: str, settings: dict, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        build_model(name, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("unet", {"dilation": 0}, "dilation is 0"),
        ("conv-transpose", {"kernel": 9, "dilation": 5}, "kernel 9 with dilation 5 reaches over 41 pixels"),
        ("pool-upsample", {"dilation": 2}, "no such setting"),
        ("vgg", {}, "net 'vgg': unknown; there are pool-upsample, conv-transpose, unet"),
    ],
)
def test_unknown_nets_and_settings_are_refused(name: str, settings: dict, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        build_model(name, **settings)


def weights_by_hand(net_class: type[nn.Module], k: int, nic: int, nf: int, nc: int) -> int:
    """Weights of the figure's convolutions, layer by layer, collected by hand."""
    if net_class is UNet:
        return k * k * (nic * nf + 4 * nf**2 + 2 * nf * nc + (nc + nic) * nc)
    return k * k * (nic * nf + 4 * nf**2 + nf * nc + nc**2)


@pytest.mark.parametrize("sizes", [(3, 1, 32, 24), (4, 2, 5, 7), (1, 3, 8, 2)])
@pytest.mark.parametrize("net_class", FIGURE)
def test_parameters_are_those_of_the_formula(net_class: type[nn.Module], sizes: tuple[int, int, int, int]) -> None:
    kernel, nic, nf, nc = sizes
    net = net_class(kernel=kernel, num_in_channels=nic, num_filters=nf, num_colours=nc)
    layers = list(net.modules())
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    biases = nf + 2 * nf + nf + nc + nc
    normalisation = 2 * (nf + 2 * nf + nf + nc)
    weights = weights_by_hand(net_class, kernel, nic, nf, nc)
    assert sum(layer.weight.numel() for layer in convolutions) == weights
    assert sum(layer.bias.numel() for layer in convolutions) == biases
    assert sum(p.numel() for layer in layers if isinstance(layer, nn.BatchNorm2d) for p in layer.parameters()) == (
        normalisation
    )
    assert num_trainable_parameters(net) == weights + biases + normalisation


def test_frozen_parameters_are_not_counted() -> None:
    net = PoolUpsampleNet()
    every = num_trainable_parameters(net)
    net.last.weight.requires_grad_(False)
    assert num_trainable_parameters(net) == every - 9 * 24 * 24


def conv(values: Tensor, weights: dict[str, Tensor], name: str, stride: int, dilation: int = 1) -> Tensor:
    """A convolution on a picture padded by hand; where the padding is uneven, more at the right and bottom."""
    kernel = weights[f"{name}.weight"].shape[-1]
    reach = dilation * (kernel - 1)
    before, after = (reach // 2, reach - reach // 2) if stride == 1 else (reach // 2, reach // 2)
    padded = F.pad(values, (before, after, before, after))
    return F.conv2d(padded, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=stride, dilation=dilation)


def transposed_conv(values: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """Stride 2 by its definition: zeros between the pixels, then a correlation with the kernel turned around."""
    weight = weights[f"{name}.weight"]
    kernel, (batch, channels, height, width) = weight.shape[-1], values.shape
    spread = torch.zeros(batch, channels, 2 * height, 2 * width)
    spread[:, :, ::2, ::2] = values
    before = kernel - 1 - (kernel - 1) // 2
    padded = F.pad(spread, (before, kernel - 1 - before, before, kernel - 1 - before))
    return F.conv2d(padded, weight.flip(2, 3).transpose(0, 1), weights[f"{name}.bias"])


def normal(values: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """Batch normalisation with the running statistics, then ReLU."""
    mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    scale = weights[f"{name}.weight"] / (variance + 1e-5).sqrt()
    shaped = (values - mean[:, None, None]) * scale[:, None, None] + weights[f"{name}.bias"][:, None, None]
    return shaped.clamp(min=0)


def pool_upsample(grey: Tensor, weights: dict[str, Tensor], dilation: int) -> Tensor:
    half = normal(F.max_pool2d(conv(grey, weights, "block1.0", 1), 2), weights, "block1.2")
    quarter = normal(F.max_pool2d(conv(half, weights, "block2.0", 1), 2), weights, "block2.2")
    again = conv(quarter, weights, "block3.0", 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    again = conv(normal(again, weights, "block3.2"), weights, "block4.0", 1)
    full = normal(again.repeat_interleave(2, 2).repeat_interleave(2, 3), weights, "block4.2")
    return conv(full, weights, "last", 1)


def conv_transpose(grey: Tensor, weights: dict[str, Tensor], dilation: int, *, skips: bool = False) -> Tensor:
    half = normal(conv(grey, weights, "block1.0", 2, dilation), weights, "block1.1")
    quarter = normal(conv(half, weights, "block2.0", 2, dilation), weights, "block2.1")
    again = normal(transposed_conv(quarter, weights, "block3.0"), weights, "block3.1")
    full = transposed_conv(torch.cat([again, half], 1) if skips else again, weights, "block4.0")
    full = normal(full, weights, "block4.1")
    return conv(torch.cat([full, grey], 1) if skips else full, weights, "last", 1, dilation)


def unet(grey: Tensor, weights: dict[str, Tensor], dilation: int) -> Tensor:
    return conv_transpose(grey, weights, dilation, skips=True)


@pytest.mark.parametrize(
    ("net_class", "function", "dilation"),
    [
        (PoolUpsampleNet, pool_upsample, 1),
        (ConvTransposeNet, conv_transpose, 1),
        (ConvTransposeNet, conv_transpose, 2),
        (UNet, unet, 1),
        (UNet, unet, 3),
    ],
)
@pytest.mark.parametrize("kernel", [1, 3, 4, 5])
def test_logits_are_those_of_plain_functions(net_class: type[nn.Module], function, dilation: int, kernel: int) -> None:
    torch.manual_seed(kernel)
    given = {} if net_class is PoolUpsampleNet else {"dilation": dilation}
    net = net_class(kernel=kernel, num_in_channels=NIC, num_filters=NF, num_colours=NC, **given)
    net(torch.rand(4, NIC, 32, 32))  # in training mode, so that the running statistics are not 0 and 1
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
    grey = torch.rand(2, NIC, 32, 16)
    with torch.no_grad():
        expected = function(grey, net.state_dict(), dilation)
        torch.testing.assert_close(net.eval()(grey), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.01


@pytest.mark.parametrize("kernel", range(1, 10))
def test_stride_one_keeps_odd_sizes_too(kernel: int) -> None:
    assert same_conv(1, 1, kernel)(torch.zeros(1, 1, 7, 11)).shape == (1, 1, 7, 11)


def test_hats_are_numpys_linear_interpolation() -> None:
    # A hat function is what numpy.interp makes of one 1 among zeros; together they add up to 1 everywhere.
    grey = torch.linspace(0, 0.999, 97).reshape(1, 1, 1, -1)
    found = hat_encoding(grey, 8)[0, :, 0].T.numpy()
    expected = [np.interp(grey.flatten().numpy(), np.linspace(0, 1, 9), unit) for unit in np.eye(9)]
    np.testing.assert_allclose(found, np.stack(expected, axis=1), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_colournet_keeps_to_its_size() -> None:
    assert num_trainable_parameters(ColourNet()) <= 4_000_000


def test_colournet_in_evaluation_averages_the_picture_and_its_mirror_image() -> None:
    torch.manual_seed(0)
    net = ColourNet(widths=(8, 8, 8), blocks=(1, 1, 1)).eval()
    grey = torch.rand(2, 1, 16, 24)
    with torch.no_grad():
        found, mirrored = net(grey), net(grey.flip(-1))
        plain = net.logits(grey).softmax(1), net.logits(grey.flip(-1)).softmax(1).flip(-1)
    torch.testing.assert_close(found.exp(), (plain[0] + plain[1]) / 2)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2, 16, 24))
    torch.testing.assert_close(mirrored.flip(-1), found)


def test_a_residual_block_starts_as_the_identity() -> None:
    features = torch.rand(2, 8, 4, 4)
    torch.testing.assert_close(ResidualBlock(8).train()(features), features)


def small_photo_net(frozen: int = 0) -> PhotoNet:
    """With fewer channels in the decoder than the shipped one; the encoder's are given by YOLOv3-tiny."""
    torch.manual_seed(0)
    return PhotoNet(7, widths=(8, 12, 16), blocks=(1, 1, 1), frozen=frozen)


def test_context_starts_as_the_identity_and_tells_the_same_everywhere() -> None:
    features = torch.randn(2, 5, 4, 6)
    context = GlobalContext(5)
    assert torch.equal(context(features), features)
    nn.init.normal_(context.tell.weight)
    nn.init.normal_(context.tell.bias)
    told = (context(features) - features).flatten(2)
    expected = torch.relu(features.flatten(2).mean(-1)) @ context.tell.weight.T + context.tell.bias
    torch.testing.assert_close(told, expected[:, :, None].expand_as(told), atol=1e-5, rtol=1e-5)


def test_the_photo_nets_encoder_is_yolov3_tinys() -> None:
    # Convolution, batch normalisation, leaky ReLU of slope 0.1, then pooling by 2: yolov3-tiny.cfg.
    net = small_photo_net().eval()
    seen = []
    for layer in net.encode:
        layer.register_forward_hook(lambda layer, taken, given: seen.append(given))
    picture = torch.rand(1, 1, 64, 96)
    net(picture)
    features = picture
    for index, layer in enumerate(net.encode):
        weights = dict(layer.state_dict())
        pooled = F.max_pool2d(features, 2, 2) if index else features
        features = F.conv2d(pooled, weights["0.weight"], padding=1)
        statistics = (weights[f"1.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        features = F.leaky_relu(F.batch_norm(features, *statistics), 0.1)
        assert features.shape[1:] == (16 * 2**index, 64 // 2**index, 96 // 2**index)
        torch.testing.assert_close(seen[index], features, atol=1e-5, rtol=1e-4)


def test_the_photo_net_sees_the_whole_picture() -> None:
    net = small_photo_net().eval()
    for part in net.modules():
        if isinstance(part, GlobalContext):
            nn.init.normal_(part.tell.weight)
        if isinstance(part, ResidualBlock):  # which starts as the identity
            nn.init.normal_(part.branch[-1].weight)
    plain = torch.full((1, 1, 96, 512), 0.5)
    changed = plain.clone()
    changed[..., :64] = 0.9
    # 14 convolutions at 1/32 and finer reach less far than 448 pixels; the context tells it at the other end too.
    assert not torch.allclose(net(plain)[..., -1], net(changed)[..., -1], atol=1e-6)


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_frozen_layers_stay_bit_for_bit_through_training(frozen: int) -> None:
    net = small_photo_net(frozen).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    step = torch.optim.SGD([parameter for parameter in net.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(2):  # the first step only moves what starts at zero
        loss = net(torch.rand(4, 1, 32, 64)).square().mean()
        step.zero_grad()
        loss.backward()
        step.step()
    assert all(parameter.grad is None for parameter in net.encode[:frozen].parameters())
    still = {name for name, value in net.state_dict().items() if torch.equal(value, before[name])}
    expected = {name for name in before if name.startswith("encode.") and int(name.split(".")[1]) < frozen}
    moving = {name for name in before if name.startswith("encode.")} - expected
    assert expected <= still
    assert not moving & still
    assert num_trainable_parameters(net) == sum(
        value.numel() for name, value in net.named_parameters() if name not in expected
    )


def test_photo_settings_come_from_json_lists_too() -> None:
    net = build_model("photo", num_colours=3, widths=[8, 8, 8], blocks=[1, 1, 1], frozen=2)
    assert isinstance(net, PhotoNet)
    assert net.eval()(torch.rand(1, 1, 32, 32)).shape == (1, 3, 4, 4)
    with pytest.raises(UsageError, match="no such setting"):
        build_model("photo", num_colours=3, kernel=3)
