"""Colourisation models: networks that return a score for every pixel and palette colour, and their registry."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from chromabox.colour.models.baselines import ConvTransposeNet, PoolUpsampleNet, UNet
from chromabox.colour.models.colournet import ColourNet
from chromabox.colour.models.photonet import PhotoNet
from chromabox.errors import UsageError

#: The nets by the names of the command line.
MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "pool-upsample": PoolUpsampleNet,
    "conv-transpose": ConvTransposeNet,
    "unet": UNet,
    "colournet": ColourNet,
    "photo": PhotoNet,
}


def build_model(name: str, **model_args: Any) -> nn.Module:
    """The net of that name with the settings of its class; UsageError for one it does not have."""
    try:
        # JSON, where settings are kept, knows lists but no tuples.
        return MODELS[name](
            **{key: tuple(value) if isinstance(value, list) else value for key, value in model_args.items()}
        )
    except KeyError:
        raise UsageError(f"net {name!r}: unknown; there are {', '.join(MODELS)}") from None
    except TypeError as error:
        raise UsageError(f"net {name!r} has no such setting ({error})") from error


def num_trainable_parameters(model: nn.Module) -> int:
    """How many numbers training adjusts."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
