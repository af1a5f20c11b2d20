"""Calls of constructors. Expected values: the sizes that the classes of this module record."""

from typing import Any

import pytest
from torch import Tensor, nn

from chromabox.assignment.check.source import DEFAULT_SIZES, ROLES, bind_constructor, guess_role

SIZES = {"kernel": 5, "num_filters": 7, "num_colours": 9, "num_in_channels": 2}


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
    build, _, missing_roles = bind_constructor(model_class, "UNet")
    assert build(SIZES).sizes == SIZES
    assert missing_roles == ()


class UnknownNames(Recording):
    def __init__(self, a, b, c, d, e=None):
        super().__init__(kernel=a, num_filters=b, num_colours=c, num_in_channels=d)


class SomeNames(Recording):
    def __init__(self, k, width, /, num_colours, depth):
        super().__init__(kernel=k, num_filters=width, num_colours=num_colours, num_in_channels=depth)


class VarPositional(Recording):
    def __init__(self, *args):
        super().__init__(kernel=args[0], num_filters=args[1], num_colours=args[2], num_in_channels=args[3])


@pytest.mark.parametrize(
    ("model_class", "arguments"),
    [
        (UnknownNames, "a=kernel, b=num_filters, c=num_colours, d=num_in_channels"),
        (SomeNames, "k=kernel, width=num_filters, num_colours=num_colours, depth=num_in_channels"),
        (VarPositional, "kernel, num_filters, num_colours, num_in_channels"),
    ],
)
def test_order_of_the_notebook_is_used_for_unknown_names(model_class: type[Recording], arguments: str) -> None:
    build, call, missing_roles = bind_constructor(model_class, "Net")
    assert build(SIZES).sizes == SIZES
    assert missing_roles == ()
    assert call == f"Net({arguments})"


class TwoInputNames(Recording):
    def __init__(self, in_size, in_channels, filters, kernel):
        super().__init__()


class OtherOrder(Recording):
    def __init__(self, in_channels, a, b, kernel):
        super().__init__()


class TwoParameters(Recording):
    def __init__(self, in_size, in_channels):
        super().__init__()


@pytest.mark.parametrize("model_class", [TwoInputNames, OtherOrder, TwoParameters])
def test_names_that_contradict_the_order_are_an_error(model_class: type[Recording]) -> None:
    message = "it is not clear which of the parameters in_.* are kernel, num_filters, num_colours, num_in_channels"
    with pytest.raises(TypeError, match=message):
        bind_constructor(model_class, "Net")


def test_sizes_that_cannot_be_set_are_missing() -> None:
    class Fixed(nn.Module):
        def __init__(self, kernel):
            super().__init__()

    class NoConstructor(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert bind_constructor(Fixed, "UNet")[2] == ROLES[1:]
    build, _, missing_roles = bind_constructor(NoConstructor, "UNet")
    assert missing_roles == ROLES
    assert isinstance(build(DEFAULT_SIZES), NoConstructor)


def test_failing_constructor_raises_its_error() -> None:
    class Broken(nn.Module):
        def __init__(self, *args):
            raise ValueError(f"no such {args[0]}")

    with pytest.raises(ValueError, match="no such 3"):
        bind_constructor(Broken, "UNet")[0](DEFAULT_SIZES)


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
