"""How classes are called. Expected: the sizes that each of these classes, written for it, notes down."""

from typing import Any

import pytest
from torch import Tensor, nn

from chromabox.assignment.check.source import DEFAULT_SIZES, ROLES, bind_constructor, guess_role
from chromabox.colour.models import num_trainable_parameters
from chromabox.colour.models.baselines import PoolUpsampleNet, UNet

SIZES = {"kernel": 5, "num_filters": 7, "num_colours": 9, "num_in_channels": 2}
PARAMETERS = num_trainable_parameters(PoolUpsampleNet(**DEFAULT_SIZES))


class Noted(nn.Module):
    """Keeps what it was made with."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.sizes = sizes


class Course(Noted):
    def __init__(self, kernel, num_filters, num_colours, num_in_channels=1):
        super().__init__(
            kernel=kernel, num_filters=num_filters, num_colours=num_colours, num_in_channels=num_in_channels
        )


class OtherWords(Noted):
    def __init__(self, in_channels, n_classes, features, kernel_size=3, padding=1, dilation=1, *, bias=True):
        super().__init__(kernel=kernel_size, num_filters=features, num_colours=n_classes, num_in_channels=in_channels)


class Letters(Noted):
    def __init__(self, NIC, NF, NC, k):
        super().__init__(kernel=k, num_filters=NF, num_colours=NC, num_in_channels=NIC)


@pytest.mark.parametrize("found", [Course, OtherWords, Letters])
def test_names_that_tell_are_used(found: type[Noted]) -> None:
    call = bind_constructor(found, "UNet", PARAMETERS)
    assert call.build(SIZES).sizes == SIZES
    assert call.missing_roles == ()


class Unnamed(PoolUpsampleNet):
    """Ours, by positions that tell nothing."""

    def __init__(self, a, b, c, d):
        super().__init__(c, d, a, b)


class Stars(PoolUpsampleNet):
    def __init__(self, *args):
        super().__init__(args[0], args[3], args[1], args[2])


class NamedAmiss(UNet):
    """Two names that say the same: the order has to be tried."""

    def __init__(self, in_size, in_channels, filters, kernel):
        super().__init__(kernel, in_size, filters, in_channels)


@pytest.mark.parametrize("found", [Unnamed, Stars, NamedAmiss])
def test_else_orders_are_tried(found: type[nn.Module]) -> None:
    parameters = num_trainable_parameters(UNet(**DEFAULT_SIZES)) if found is NamedAmiss else PARAMETERS
    made = bind_constructor(found, "Net", parameters).build(SIZES)
    expected = UNet(**SIZES) if found is NamedAmiss else PoolUpsampleNet(**SIZES)
    assert [one.shape for one in made.parameters()] == [one.shape for one in expected.parameters()]


def test_the_notebook_s_order_comes_first_and_is_written_out() -> None:
    assert (
        bind_constructor(Stars, "PoolUpsampleNet", PARAMETERS).signature
        == "PoolUpsampleNet(kernel, num_filters, num_colours, num_in_channels)"
    )


def test_what_cannot_be_set_is_missing() -> None:
    class Fixed(nn.Module):
        def __init__(self, kernel):
            super().__init__()

    class Without(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert bind_constructor(Fixed, "UNet", PARAMETERS).missing_roles == ROLES[1:]
    assert bind_constructor(Without, "UNet", PARAMETERS).missing_roles == ROLES
    assert isinstance(bind_constructor(Without, "UNet", PARAMETERS).build(DEFAULT_SIZES), Without)


def test_a_constructor_that_never_works_raises_its_own_error() -> None:
    class Broken(nn.Module):
        def __init__(self, *args):
            raise ValueError(f"no such {args[0]}")

    with pytest.raises(ValueError, match="no such 3"):
        bind_constructor(Broken, "UNet", PARAMETERS).build(DEFAULT_SIZES)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("num_colors", "num_colours"),
        ("numColours", "num_colours"),
        ("out_ch", "num_colours"),
        ("NIC", "num_in_channels"),
        ("input_channels", "num_in_channels"),
        ("kernelSize", "kernel"),
        ("n_filters", "num_filters"),
        ("dilation", None),
        ("padding", None),
        ("a", None),
    ],
)
def test_words_for_sizes(name: str, role: str | None) -> None:
    assert guess_role(name) == role
