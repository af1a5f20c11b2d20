"""Counts against brute force: numbers of tensors, and kernels of ones laid over pictures of ones.

A convolution of ones over ones, without padding and on a picture so much greater that the same places remain, puts out
for every place the number of its products; the sum is the number of connections. So does a transposed one that nothing
is cropped from. Where there is no padding, they are also the entries of the Jacobian that are not 0.
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

Three = tuple[int, int, int]


def brute_force(net: nn.Module, channels: int, height: int, width: int) -> Three:
    """Weights, outputs and connections of the convolutions and linear layers that one look of a net runs."""
    weights = outputs = connections = 0

    def watch(layer: nn.Module, taken: tuple[Tensor], given: Tensor) -> None:
        nonlocal weights, outputs, connections
        weights += layer.weight.numel()
        outputs += given.numel()
        connections += products(layer, taken[0].shape, given.shape)

    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.register_forward_hook(watch)
    look = getattr(net.eval(), "logits", net)  # ColourNet looks twice otherwise.
    with torch.no_grad():
        look(torch.rand(1, channels, height, width))
    return weights, outputs, connections


def products(layer: nn.Module, taken: torch.Size, given: torch.Size) -> int:
    """Every product of an input by a weight, computed as a sum of ones."""
    ones = torch.ones_like(layer.weight, dtype=torch.float64)
    if isinstance(layer, nn.Linear):
        return int(F.linear(torch.ones(taken, dtype=torch.float64), ones).sum())
    if isinstance(layer, nn.ConvTranspose2d):
        whole = torch.ones(taken, dtype=torch.float64)
        return int(F.conv_transpose2d(whole, ones, stride=layer.stride, groups=layer.groups).sum())
    sides = [
        (places - 1) * stride + dilation * (kernel - 1) + 1
        for places, stride, dilation, kernel in zip(
            given[2:], layer.stride, layer.dilation, layer.kernel_size, strict=True
        )
    ]
    wide = torch.ones(*taken[:2], *sides, dtype=torch.float64)
    return int(F.conv2d(wide, ones, stride=layer.stride, dilation=layer.dilation, groups=layer.groups).sum())


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
def test_the_figures_nets_agree_with_brute_force(name: str, numbers: dict[str, int], height: int, width: int) -> None:
    count = count_model(name, height=height, width=width, **numbers)
    assert count.total().evaluate(count.values) == brute_force(
        build_model(name, **numbers), numbers["num_in_channels"], height, width
    )
    doubled = brute_force(build_model(name, **numbers), numbers["num_in_channels"], 2 * height, 2 * width)
    assert count.total().evaluate({**count.values, **count.doubled_size}) == doubled


@pytest.mark.parametrize("dilation", [2, 3])
def test_dilation_changes_nothing(dilation: int) -> None:
    dilated = count_model("unet", dilation=dilation, kernel=4)
    assert dilated.total() == count_model("unet", kernel=4).total()
    net = build_model("unet", dilation=dilation, kernel=4)
    assert dilated.total().evaluate(dilated.values) == brute_force(net, 1, 32, 32)


@pytest.mark.parametrize(
    ("name", "numbers"), [("colournet", {"widths": (3, 4, 5), "blocks": (1, 1, 1)}), ("photo", {"widths": (3, 4, 5)})]
)
def test_our_own_nets_agree_with_brute_force(name: str, numbers: dict) -> None:
    numbers = {"num_colours": 5, **numbers}
    count = count_model(name, height=64, width=96, **numbers)
    assert count.values == {NC: numbers["num_colours"], H: 64, W: 96}
    assert count.total().evaluate(count.values) == brute_force(build_model(name, **numbers), 1, 64, 96)


def test_pool_upsample_has_the_formulas_that_were_worked_out_by_hand() -> None:
    count = count_model("pool-upsample")
    weights = K**2 * (NIC * NF + 4 * NF**2 + NF * NC + NC**2)
    outputs = 1600 * NF + 1280 * NC
    connections = K**2 * (1024 * NIC * NF + 640 * NF**2 + 256 * NF * NC + 1024 * NC**2)
    found = count.total().subs(count.size)
    assert [expand(one) for one in found.as_tuple] == [expand(one) for one in (weights, outputs, connections)]
    doubled = count.total().subs(count.doubled_size)
    assert [expand(one) for one in doubled.as_tuple] == [expand(one) for one in (weights, 4 * outputs, 4 * connections)]
    # k = 3, NIC = 1, NF = 32, NC = 24: 9·5472, 51200 + 30720, 9·1474560.
    assert count.total().evaluate(count.values) == (49_248, 81_920, 13_271_040)


def test_biases_batch_norm_and_other_layers_count_on_request() -> None:
    """By hand for the figure: biases 4·NF + 2·NC; BatchNorm after the poolings and upsamplings, ReLU after that."""
    count = count_model("pool-upsample", num_filters=5, num_colours=7)
    plain = count.total()
    after_blocks = H * W * (NF / 4 + 2 * NF / 16 + NF / 4 + NC)
    more = {
        CountOptions(biases=True): (4 * NF + 2 * NC, 0, 0),
        CountOptions(batch_norm=True): (2 * (4 * NF + NC), after_blocks, after_blocks),
        CountOptions(activations=True): (0, 2 * after_blocks, 0),
    }
    for what, expected in more.items():
        found = count.total(what).subtract(plain)
        assert all(expand(mine - its) == 0 for mine, its in zip(found.as_tuple, expected, strict=True)), what
    everything = count.total(CountOptions(True, True, True)).evaluate(count.values)
    net = build_model("pool-upsample", num_filters=5, num_colours=7)
    assert everything[0] == sum(parameter.numel() for parameter in net.parameters())
    outputs = []
    for layer in net.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda layer, taken, given: outputs.append(given.numel()))
    net(torch.rand(1, 1, 32, 32))
    assert everything[1] == sum(outputs)


def test_layers_come_in_order_of_execution_and_add_up() -> None:
    count = count_model("unet")
    rows = count.counted_layers()
    assert [layer.name for layer, _ in rows] == ["block1.0", "block2.0", "block3.0", "block4.0", "last"]
    assert [layer.kind for layer, _ in rows] == [*["Conv2d"] * 2, *["ConvTranspose2d"] * 2, "Conv2d"]
    # The concatenations: block 4 takes in 2·NF channels, the last one NC + NIC.
    assert expand(rows[3][1].weights - 2 * K**2 * NF * NC) == 0
    assert expand(rows[4][1].weights - K**2 * (NC + NIC) * NC) == 0
    for index, total in enumerate(count.total().as_tuple):
        assert expand(total - sum(one.as_tuple[index] for _, one in rows)) == 0
    kinds = [layer.kind for layer, _ in count.counted_layers(CountOptions(activations=True))]
    assert kinds.count("ReLU") == 4
    assert "BatchNorm2d" not in kinds


def jacobian_entries(net: nn.Module, shape: tuple[int, ...]) -> int:
    """How many pairs of an input and an output are connected."""
    jacobian = torch.autograd.functional.jacobian(net, torch.rand(1, *shape))
    return int(jacobian.count_nonzero())


@pytest.mark.parametrize(
    "net",
    [
        nn.Conv2d(2, 3, 3),
        nn.Conv2d(4, 6, (1, 3), stride=(2, 1), groups=2),
        nn.Conv2d(2, 2, 2, dilation=2, bias=False),
        nn.ConvTranspose2d(2, 3, 2, stride=2),
        nn.ConvTranspose2d(4, 2, 3, stride=3, groups=2),
    ],
    ids=lambda net: str(net),
)
def test_connections_are_the_jacobians_entries_where_there_is_no_border(net: nn.Module) -> None:
    count = count_module(net, channels=net.in_channels, multiple=4, height=8, width=8)
    given = net(torch.rand(1, net.in_channels, 8, 8))
    expected = (net.weight.numel(), given.numel(), jacobian_entries(net, (net.in_channels, 8, 8)))
    assert count.total().evaluate(count.values) == expected


class Twice(nn.Module):
    """One convolution that runs twice, and another whose weights are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 2, 3, padding=1)
        self.other = nn.Conv2d(2, 2, 3, padding=1)
        self.other.weight = self.one.weight

    def forward(self, pictures: Tensor) -> Tensor:
        return self.other(self.one(self.one(pictures)))


def test_weights_that_run_again_are_weights_once_and_connect_again() -> None:
    count = count_module(Twice(), channels=2, multiple=1, height=5, width=7)
    assert [layer.name for layer in count.layers] == ["one", "one", "other"]
    assert count.total().evaluate(count.values) == (36, 3 * 70, 3 * 36 * 35)
    assert count.total(CountOptions(biases=True)).weights == 36 + 2 + 2


def test_a_net_is_left_as_it_was() -> None:
    settings = {"widths": (2, 3, 4), "blocks": (1, 1, 1), "hats": 3}
    net = build_model("colournet", **settings).eval()
    net.middle.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [layer.training for layer in net.modules()]
    once = count_module(net, channels=1, multiple=8, height=32, width=32)
    assert [layer.training for layer in net.modules()] == modes
    assert not any(layer._forward_hooks for layer in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    # As its formulas by name, and in evaluation, too, one look.
    named = count_model("colournet", **settings).total()
    assert once.total().evaluate(once.values) == named.evaluate({**once.values, NC: 24})


class Unused(nn.Module):
    """Has a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.idle = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layer(pictures)


class Branching(nn.Module):
    """Runs another layer for large pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.ReLU(), nn.Sigmoid()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        return (self.small if pictures.shape[-1] < 3 else self.large)(self.layer(pictures))


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.PReLU()), "1.weight: takes part in no convolution"),
        (Unused(), "idle.weight: takes part in no convolution"),
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(1, return_indices=True)), "1: gives a tuple"),
        (Branching(), "other layers at other settings"),
        (nn.Conv2d(1, 1, 3, stride=2, padding=1), "Conv2d: one of its sides is 1, 1, 1, 2, 2"),
    ],
    ids=["weights of another kind", "unused", "no tensor", "branches", "rounding"],
)
def test_what_cannot_be_counted_is_refused_by_name(net: nn.Module, reason: str) -> None:
    with pytest.raises(ChromaboxError, match=reason):
        count_module(net, channels=1, multiple=1, height=4, width=4)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("vgg", {}, "net 'vgg': unknown"),
        ("unet", {"height": 30}, "size is 32×30: .*multiple of 4"),
        ("colournet", {"width": 36}, "size is 36×32: .*multiple of 8"),
        ("unet", {"height": 0}, "size is 32×0"),
        ("unet", {"width": 4 * MAX_VALUE}, f"up to {MAX_VALUE:,}"),
        ("unet", {"num_filters": 0}, "num_filters is 0"),
        ("unet", {"num_filters": MAX_VALUE + 1}, "num_filters is 100001"),
        ("colournet", {"num_filters": 3}, "no such setting"),
        ("colournet", {"num_in_channels": 3}, "num_in_channels is 3"),
        ("unet", {"kernel": 34}, "reaches over 34 pixels"),
        ("photo", {}, "num_colours"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, settings: dict, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        count_model(name, **settings)


def test_settings_at_the_edge_of_what_a_net_takes() -> None:
    """A kernel of 33 is the greatest; with a dilation of 32 only 1 and 2 are possible, with 40 only 1."""
    assert count_model("unet", kernel=33).values[K] == 33
    assert K in count_model("unet", kernel=2, dilation=32).values
    fixed = count_model("unet", kernel=1, dilation=40)
    assert K not in fixed.values
    assert fixed.total().evaluate(fixed.values) == brute_force(build_model("unet", kernel=1), 1, 32, 32)


@given(st.lists(st.tuples(st.integers(-9, 9), *[st.integers(0, 2)] * 4), max_size=5))
def test_tidy_changes_no_value(terms: list[tuple[int, ...]]) -> None:
    symbols = (K, H, NF, NC)
    expression = sum((number * K**a * H**b * NF**c * NC**d for number, a, b, c, d in terms), start=NF * 0)
    assert expand(simplify_counts(expression) - expression) == 0
    assert simplify_counts(expression).subs(dict.fromkeys(symbols, 3)) == expression.subs(dict.fromkeys(symbols, 3))
