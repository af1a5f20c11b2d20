"""Counts compared with brute force: sizes of tensors, and convolutions of ones with ones.

A convolution of ones with ones outputs, for every position, the number of its products; the sum is the number of
connections. It runs without padding, on an image enlarged by the padding, so that the positions are the same. A
transposed convolution of ones runs without cropping. Without padding, connections are also the non-zero entries of the
Jacobian.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy import expand
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.assignment.count import (
    MAX_VALUE,
    NC,
    NF,
    NIC,
    CountOptions,
    H,
    K,
    W,
    count_model,
    count_module,
    simplify_counts,
)
from chromabox.colour.models import build_model
from chromabox.errors import ChromaboxError, UsageError

CountTuple = tuple[int, int, int]


def brute_force(model: nn.Module, channels: int, height: int, width: int) -> CountTuple:
    """Return weights, outputs and connections of the convolutions and linear layers of one forward pass."""
    weights = outputs = connections = 0

    def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal weights, outputs, connections
        weights += layer.weight.numel()
        outputs += output.numel()
        connections += count_products(layer, inputs[0].shape, output.shape)

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.register_forward_hook(hook)
    forward = getattr(model.eval(), "logits", model)  # In evaluation mode ColourNet runs two forward passes.
    with torch.no_grad():
        forward(torch.rand(1, channels, height, width))
    return weights, outputs, connections


def count_products(layer: nn.Module, input_shape: torch.Size, output_shape: torch.Size) -> int:
    """Count the products of inputs and weights as a sum of ones."""
    ones = torch.ones_like(layer.weight, dtype=torch.float64)
    if isinstance(layer, nn.Linear):
        return int(F.linear(torch.ones(input_shape, dtype=torch.float64), ones).sum())
    if isinstance(layer, nn.ConvTranspose2d):
        inputs = torch.ones(input_shape, dtype=torch.float64)
        return int(F.conv_transpose2d(inputs, ones, stride=layer.stride, groups=layer.groups).sum())
    sides = [
        (positions - 1) * stride + dilation * (kernel - 1) + 1
        for positions, stride, dilation, kernel in zip(
            output_shape[2:], layer.stride, layer.dilation, layer.kernel_size, strict=True
        )
    ]
    enlarged = torch.ones(*input_shape[:2], *sides, dtype=torch.float64)
    return int(F.conv2d(enlarged, ones, stride=layer.stride, dilation=layer.dilation, groups=layer.groups).sum())


NUMBERS = st.fixed_dictionaries(
    {
        "kernel": st.integers(1, 5),
        "num_in_channels": st.integers(1, 4),
        "num_filters": st.integers(1, 6),
        "num_colours": st.integers(1, 6),
    }
)
SIDES = st.integers(1, 5).map(lambda side: 4 * side)


@pytest.mark.parametrize("name", ["pool-upsample", "conv-transpose", "unet"])
@settings(max_examples=3, deadline=None)
@given(numbers=NUMBERS, height=SIDES, width=SIDES)
def test_counts_of_figure_1_models_equal_brute_force(
    name: str, numbers: dict[str, int], height: int, width: int
) -> None:
    count = count_model(name, height=height, width=width, **numbers)
    assert count.total().evaluate(count.values) == brute_force(
        build_model(name, **numbers), numbers["num_in_channels"], height, width
    )
    doubled = brute_force(build_model(name, **numbers), numbers["num_in_channels"], 2 * height, 2 * width)
    assert count.total().evaluate({**count.values, **count.doubled_size}) == doubled


@pytest.mark.parametrize("dilation", [2, 3])
def test_dilation_does_not_change_the_counts(dilation: int) -> None:
    dilated = count_model("unet", dilation=dilation, kernel=4)
    assert dilated.total() == count_model("unet", kernel=4).total()
    model = build_model("unet", dilation=dilation, kernel=4)
    assert dilated.total().evaluate(dilated.values) == brute_force(model, 1, 32, 32)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("colournet", {"widths": (3, 4, 5), "blocks": (1, 1, 1)}), ("photo", {"widths": (3, 4, 5, 8)})],
)
def test_counts_of_colournet_and_photo_equal_brute_force(name: str, numbers: dict) -> None:
    numbers = {"num_colours": 5, **numbers}
    count = count_model(name, height=64, width=96, **numbers)
    assert count.values == {NC: numbers["num_colours"], H: 64, W: 96}
    assert count.total().evaluate(count.values) == brute_force(build_model(name, **numbers), 1, 64, 96)


def test_formulas_of_pool_upsample_equal_those_derived_by_hand() -> None:
    count = count_model("pool-upsample")
    weights = K**2 * (NIC * NF + 4 * NF**2 + NF * NC + NC**2)
    outputs = 1600 * NF + 1280 * NC
    connections = K**2 * (1024 * NIC * NF + 640 * NF**2 + 256 * NF * NC + 1024 * NC**2)
    formulas = count.total().subs(count.size)
    assert [expand(formula) for formula in formulas] == [expand(formula) for formula in (weights, outputs, connections)]
    doubled = count.total().subs(count.doubled_size)
    assert [expand(formula) for formula in doubled] == [
        expand(formula) for formula in (weights, 4 * outputs, 4 * connections)
    ]
    # k = 3, NIC = 1, NF = 32, NC = 24: 9·5472, 51200 + 30720, 9·1474560.
    assert count.total().evaluate(count.values) == (49_248, 81_920, 13_271_040)


def test_biases_batch_norm_and_activations_are_counted_if_enabled() -> None:
    """Expected by hand: 4·NF + 2·NC biases; BatchNorm follows pooling and upsampling, ReLU follows BatchNorm."""
    count = count_model("pool-upsample", num_filters=5, num_colours=7)
    default = count.total()
    norm_outputs = H * W * (NF / 4 + 2 * NF / 16 + NF / 4 + NC)
    additional = {
        CountOptions(biases=True): (4 * NF + 2 * NC, 0, 0),
        CountOptions(batch_norm=True): (2 * (4 * NF + NC), norm_outputs, norm_outputs),
        CountOptions(activations=True): (0, 2 * norm_outputs, 0),
    }
    for options, expected in additional.items():
        triples = zip(count.total(options), default, expected, strict=True)
        assert all(expand(actual - before - formula) == 0 for actual, before, formula in triples), options
    totals = count.total(CountOptions(True, True, True)).evaluate(count.values)
    model = build_model("pool-upsample", num_filters=5, num_colours=7)
    assert totals[0] == sum(parameter.numel() for parameter in model.parameters())
    output_sizes = []
    for layer in model.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda layer, inputs, output: output_sizes.append(output.numel()))
    model(torch.rand(1, 1, 32, 32))
    assert totals[1] == sum(output_sizes)


def test_layers_are_in_execution_order_and_sum_to_the_total() -> None:
    count = count_model("unet")
    rows = count.counted_layers()
    assert [layer.name for layer, _ in rows] == ["block1.0", "block2.0", "block3.0", "block4.0", "last"]
    assert [layer.kind for layer, _ in rows] == [*["Conv2d"] * 2, *["ConvTranspose2d"] * 2, "Conv2d"]
    # After the concatenations, block 4 has 2·NF input channels and the last layer NC + NIC.
    assert expand(rows[3][1].weights - 2 * K**2 * NF * NC) == 0
    assert expand(rows[4][1].weights - K**2 * (NC + NIC) * NC) == 0
    for index, total in enumerate(count.total()):
        assert expand(total - sum(counts[index] for _, counts in rows)) == 0
    kinds = [layer.kind for layer, _ in count.counted_layers(CountOptions(activations=True))]
    assert kinds.count("ReLU") == 4
    assert "BatchNorm2d" not in kinds


def jacobian_entries(layer: nn.Module, shape: tuple[int, ...]) -> int:
    """Count the pairs of an input and an output that are connected."""
    jacobian = torch.autograd.functional.jacobian(layer, torch.rand(1, *shape))
    return int(jacobian.count_nonzero())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, 3),
        nn.Conv2d(4, 6, (1, 3), stride=(2, 1), groups=2),
        nn.Conv2d(2, 2, 2, dilation=2, bias=False),
        nn.ConvTranspose2d(2, 3, 2, stride=2),
        nn.ConvTranspose2d(4, 2, 3, stride=3, groups=2),
    ],
    ids=lambda layer: str(layer),
)
def test_connections_without_padding_equal_non_zero_entries_of_the_jacobian(layer: nn.Module) -> None:
    count = count_module(layer, channels=layer.in_channels, multiple=4, height=8, width=8)
    output = layer(torch.rand(1, layer.in_channels, 8, 8))
    expected = (layer.weight.numel(), output.numel(), jacobian_entries(layer, (layer.in_channels, 8, 8)))
    assert count.total().evaluate(count.values) == expected


class SharedWeights(nn.Module):
    """A convolution that runs twice, and another one that shares its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 2, 3, padding=1)
        self.other = nn.Conv2d(2, 2, 3, padding=1)
        self.other.weight = self.one.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.other(self.one(self.one(images)))


def test_shared_weights_are_counted_once_but_their_connections_each_time() -> None:
    count = count_module(SharedWeights(), channels=2, multiple=1, height=5, width=7)
    assert [layer.name for layer in count.layers] == ["one", "one", "other"]
    assert count.total().evaluate(count.values) == (36, 3 * 70, 3 * 36 * 35)
    assert count.total(CountOptions(biases=True)).weights == 36 + 2 + 2


def test_counting_does_not_modify_the_model() -> None:
    settings = {"widths": (2, 3, 4), "blocks": (1, 1, 1), "hats": 3}
    model = build_model("colournet", **settings).eval()
    model.middle.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [layer.training for layer in model.modules()]
    count = count_module(model, channels=1, multiple=8, height=32, width=32)
    assert [layer.training for layer in model.modules()] == modes
    assert not any(layer._forward_hooks for layer in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    # Equal to the formulas by name; a model in evaluation mode is also counted for one forward pass.
    by_name = count_model("colournet", **settings).total()
    assert count.total().evaluate(count.values) == by_name.evaluate({**count.values, NC: 24})


class Unused(nn.Module):
    """Model with a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images)


class Branching(nn.Module):
    """Model that runs a different layer for large images."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.ReLU(), nn.Sigmoid()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return (self.small if images.shape[-1] < 3 else self.large)(self.layer(images))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.PReLU()), "1.weight: not used by a convolution"),
        (Unused(), "unused.weight: not used by a convolution"),
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(1, return_indices=True)), "1: returns a tuple"),
        (Branching(), "different layers in different configurations"),
        (nn.Conv2d(1, 1, 3, stride=2, padding=1), "Conv2d: a dimension is 1, 1, 1, 2, 2"),
    ],
    ids=["other-kind-of-weights", "unused-layer", "no-tensor", "branches", "rounding"],
)
def test_models_that_cannot_be_counted_are_rejected(model: nn.Module, message: str) -> None:
    with pytest.raises(ChromaboxError, match=message):
        count_module(model, channels=1, multiple=1, height=4, width=4)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vgg", {}, "unknown model 'vgg'"),
        ("unet", {"height": 30}, "size is 32×30: .*multiples of 4"),
        ("colournet", {"width": 36}, "size is 36×32: .*multiples of 8"),
        ("unet", {"height": 0}, "size is 32×0"),
        ("unet", {"width": 4 * MAX_VALUE}, f"up to {MAX_VALUE:,}"),
        ("unet", {"num_filters": 0}, "num_filters is 0"),
        ("unet", {"num_filters": MAX_VALUE + 1}, "num_filters is 100001"),
        ("colournet", {"num_filters": 3}, "invalid options"),
        ("colournet", {"num_in_channels": 3}, "num_in_channels is 3"),
        ("unet", {"kernel": 34}, "covers 34 pixels"),
        ("photo", {}, "num_colours"),
    ],
)
def test_invalid_settings_are_rejected(name: str, settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        count_model(name, **settings)


def test_settings_at_the_limits_of_a_model_are_counted() -> None:
    """The largest kernel is 33; with dilation 32 only kernels 1 and 2 are valid, with dilation 40 only kernel 1."""
    assert count_model("unet", kernel=33).values[K] == 33
    assert K in count_model("unet", kernel=2, dilation=32).values
    fixed = count_model("unet", kernel=1, dilation=40)
    assert K not in fixed.values
    assert fixed.total().evaluate(fixed.values) == brute_force(build_model("unet", kernel=1), 1, 32, 32)


@given(st.lists(st.tuples(st.integers(-9, 9), *[st.integers(0, 2)] * 4), max_size=5))
def test_simplification_preserves_the_value(terms: list[tuple[int, ...]]) -> None:
    symbols = (K, H, NF, NC)
    expression = sum((number * K**a * H**b * NF**c * NC**d for number, a, b, c, d in terms), start=NF * 0)
    assert expand(simplify_counts(expression) - expression) == 0
    assert simplify_counts(expression).subs(dict.fromkeys(symbols, 3)) == expression.subs(dict.fromkeys(symbols, 3))
