"""Calls of constructors. Expected values: the sizes that the classes of this module record."""

from typing import Any

import pytest
from torch import Tensor, nn

from chromabox.assignment.check.source import DEFAULT_SIZES, ROLES, bind_constructor, guess_role
from chromabox.colour.models import num_trainable_parameters
from chromabox.colour.models.baselines import PoolUpsampleNet, UNet

SIZES = {"kernel": 5, "num_filters": 7, "num_colours": 9, "num_in_channels": 2}
NUM_PARAMETERS = num_trainable_parameters(PoolUpsampleNet(**DEFAULT_SIZES))


class Recording(nn.Module):
    """Module that records its sizes."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.sizes = sizes


class CourseNames(Recording):
    def __init__(self, kernel, num_filters, num_colours, num_in_channels=1):
        super().__init__(
            kernel=kernel, num_filters=num_filters, num_colours=num_colours, num_in_channels=num_in_channels
        )


class OtherNames(Recording):
    def __init__(self, in_channels, n_classes, features, kernel_size=3, padding=1, dilation=1, *, bias=True):
        super().__init__(kernel=kernel_size, num_filters=features, num_colours=n_classes, num_in_channels=in_channels)


class Abbreviations(Recording):
    def __init__(self, NIC, NF, NC, k):
        super().__init__(kernel=k, num_filters=NF, num_colours=NC, num_in_channels=NIC)


@pytest.mark.parametrize("model_class", [CourseNames, OtherNames, Abbreviations])
def test_recognised_parameter_names_are_used(model_class: type[Recording]) -> None:
    constructor = bind_constructor(model_class, "UNet", NUM_PARAMETERS)
    assert constructor.build(SIZES).sizes == SIZES
    assert constructor.missing_roles == ()


class UnknownNames(PoolUpsampleNet):
    """PoolUpsampleNet with parameter names without meaning."""

    def __init__(self, a, b, c, d):
        super().__init__(c, d, a, b)


class VarPositional(PoolUpsampleNet):
    def __init__(self, *args):
        super().__init__(args[0], args[3], args[1], args[2])


class AmbiguousNames(UNet):
    """UNet with two names for the same size, so that orders are tried."""

    def __init__(self, in_size, in_channels, filters, kernel):
        super().__init__(kernel, in_size, filters, in_channels)


@pytest.mark.parametrize("model_class", [UnknownNames, VarPositional, AmbiguousNames])
def test_orders_are_tried_if_names_are_not_recognised(model_class: type[nn.Module]) -> None:
    is_unet = model_class is AmbiguousNames
    num_parameters = num_trainable_parameters(UNet(**DEFAULT_SIZES)) if is_unet else NUM_PARAMETERS
    model = bind_constructor(model_class, "Net", num_parameters).build(SIZES)
    expected = UNet(**SIZES) if is_unet else PoolUpsampleNet(**SIZES)
    assert [parameter.shape for parameter in model.parameters()] == [
        parameter.shape for parameter in expected.parameters()
    ]


def test_order_of_the_notebook_is_tried_first_and_described() -> None:
    assert (
        bind_constructor(VarPositional, "PoolUpsampleNet", NUM_PARAMETERS).signature
        == "PoolUpsampleNet(kernel, num_filters, num_colours, num_in_channels)"
    )


def test_sizes_that_cannot_be_set_are_missing() -> None:
    class Fixed(nn.Module):
        def __init__(self, kernel):
            super().__init__()

    class NoConstructor(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert bind_constructor(Fixed, "UNet", NUM_PARAMETERS).missing_roles == ROLES[1:]
    assert bind_constructor(NoConstructor, "UNet", NUM_PARAMETERS).missing_roles == ROLES
    assert isinstance(bind_constructor(NoConstructor, "UNet", NUM_PARAMETERS).build(DEFAULT_SIZES), NoConstructor)


def test_failing_constructor_raises_its_error() -> None:
    class Broken(nn.Module):
        def __init__(self, *args):
            raise ValueError(f"no such {args[0]}")

    with pytest.raises(ValueError, match="no such 3"):
        bind_constructor(Broken, "UNet", NUM_PARAMETERS).build(DEFAULT_SIZES)


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
def test_roles_of_parameter_names(name: str, role: str | None) -> None:
    assert guess_role(name) == role
