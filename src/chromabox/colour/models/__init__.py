"""Colourisation models, which classify pixels into palette colours or chroma bins."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from chromabox.colour.models.baselines import ConvTransposeNet, PoolUpsampleNet, UNet
from chromabox.colour.models.colournet import ColourNet
from chromabox.colour.models.photonet import PhotoNet
from chromabox.errors import UsageError

#: Model classes, keyed by their names on the command line.
MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "pool-upsample": PoolUpsampleNet,
    "conv-transpose": ConvTransposeNet,
    "unet": UNet,
    "colournet": ColourNet,
    "photo": PhotoNet,
}


def build_model(name: str, **model_args: Any) -> nn.Module:
    """Return a new model. ``model_args`` are the keyword arguments of the model class.

    Raise UsageError if the name is unknown, or if an argument is unknown or missing.
    """
    if name not in MODELS:
        raise UsageError(f"unknown model {name!r}: expected one of {', '.join(MODELS)}")
    # Arguments that were read from JSON are lists instead of tuples.
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in model_args.items()}
    try:
        return MODELS[name](**arguments)
    except TypeError as error:
        raise UsageError(f"model {name!r}: invalid options ({error})") from error


def num_trainable_parameters(model: nn.Module) -> int:
    """Return the number of parameters that require a gradient."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
