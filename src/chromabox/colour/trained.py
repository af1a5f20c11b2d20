"""A trained colour net with the palette it speaks and the history it has, on disk and in memory."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from chromabox.colour.nets import build_net
from chromabox.colour.palette import Palette
from chromabox.engine.checkpoint import load_checkpoint
from chromabox.errors import ChromaboxError, UsageError

#: The shipped checkpoint that ``chromabox colour`` uses when none is named.
SHIPPED = "colour-cifar10.safetensors"


@dataclass(frozen=True)
class TrainedNet:
    """A net in evaluation mode, its palette, and what its checkpoint says of it."""

    net: nn.Module
    palette: Palette
    description: dict[str, Any]


def describe_net(name: str, settings: dict[str, Any], palette: Palette) -> dict[str, Any]:
    """What a checkpoint must say so that :func:`load_trained` can build the net again."""
    return {"net": name, "settings": settings, "palette": {"name": palette.name, "colours": palette.colours.tolist()}}


def load_trained(path: Path | None = None) -> TrainedNet:
    """Load a checkpoint, the best one of a run folder, or (None) the one that ships with the package.

    Raises ChromaboxError if it is missing, broken, or not of a colour net.
    """
    if path is None:
        with resources.as_file(resources.files("chromabox.assets") / SHIPPED) as shipped:
            return _load(shipped)
    return _load(checkpoint_of(path))


def checkpoint_of(path: Path) -> Path:
    """The checkpoint itself, or ``best.safetensors`` of a run folder; UsageError if there is no such thing."""
    if not path.exists():
        raise UsageError(f"{path}: there is no such run folder or checkpoint; give one that chromabox train wrote")
    if path.is_dir():
        best = path / "best.safetensors"
        if not best.is_file():
            raise UsageError(f"{path}: holds no best.safetensors; give a run folder with at least one finished epoch")
        return best
    return path


def _load(path: Path) -> TrainedNet:
    state, description = load_checkpoint(path)
    try:
        stored = description["palette"]
        palette = Palette(np.asarray(stored["colours"], np.float32), stored["name"])
        net = build_net(description["net"], **description["settings"])
        net.load_state_dict(state["net"])
    except (KeyError, TypeError, ValueError, RuntimeError, ChromaboxError) as error:
        reason = " ".join(str(error).split())  # PyTorch lists what does not fit in many lines.
        raise ChromaboxError(
            f"{path}: not a checkpoint of a colour net ({reason}); give one that chromabox train wrote"
        ) from error
    return TrainedNet(net.eval(), palette, description)
