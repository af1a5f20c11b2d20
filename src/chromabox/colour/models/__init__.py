"""The networks that give every pixel a score for every palette colour.

The first three are figure 1 of the assignment that the package reproduces, to the letter: PoolUpsampleNet (1a),
ConvTransposeNet (1b) and UNet (1c; Ronneberger et al. 2015). All take grey pictures in [0, 1), float32
[batch, in, height, width] with sides that are multiples of ``net.multiple``, and return logits
[batch, colours, height, width]. Every kernel from 1 up keeps the figure's shapes: see :func:`same_padding` and
:func:`transposed_padding`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from chromabox.colour.models.baselines import ConvTransposeNet, PoolUpsampleNet, UNet
from chromabox.colour.models.colournet import ColourNet
from chromabox.colour.models.photonet import PhotoNet
from chromabox.errors import UsageError

#: The nets by the names of the command line.
NETS: Mapping[str, Callable[..., nn.Module]] = {
    "pool-upsample": PoolUpsampleNet,
    "conv-transpose": ConvTransposeNet,
    "unet": UNet,
    "colournet": ColourNet,
    "photo": PhotoNet,
}


def build_net(name: str, **settings: Any) -> nn.Module:
    """The net of that name with the settings of its class; UsageError for one it does not have."""
    try:
        # JSON, where settings are kept, knows lists but no tuples.
        return NETS[name](
            **{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        )
    except KeyError:
        raise UsageError(f"net {name!r}: unknown; there are {', '.join(NETS)}") from None
    except TypeError as error:
        raise UsageError(f"net {name!r} has no such setting ({error})") from error


def count_parameters(net: nn.Module) -> int:
    """How many numbers training adjusts."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
