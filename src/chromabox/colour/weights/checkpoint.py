"""A trained colour net with the palette it speaks and the history it has, on disk and in memory."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.models import build_model
from chromabox.colour.palette.palette import Palette
from chromabox.colour.weights.onnx_model import OnnxModel, open_onnx
from chromabox.engine.checkpoint import load_checkpoint
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.manifest import sha256_file

#: The shipped checkpoint that ``chromabox colour`` uses when none is named.
DEFAULT_CHECKPOINT = "photo.safetensors"


@dataclass(frozen=True)
class PaletteModel:
    """A net in evaluation mode, its palette, and what its checkpoint says of it."""

    network: nn.Module
    palette: Palette
    metadata: dict[str, Any]


@dataclass(frozen=True)
class PhotoModel:
    """A photo net in evaluation mode, the chroma bins it scores, and what its checkpoint says of it."""

    network: nn.Module
    bins: ChromaBins
    metadata: dict[str, Any]


def photo_model_metadata(model_args: dict[str, Any], bins: ChromaBins) -> dict[str, Any]:
    """What a photo net's checkpoint must say so that :func:`load_trained` can build the net again."""
    return {"net": "photo", "settings": model_args, "bins": bins.as_json()}


def model_metadata(name: str, model_args: dict[str, Any], palette: Palette) -> dict[str, Any]:
    """What a checkpoint must say so that :func:`load_trained` can build the net again."""
    return {"net": name, "settings": model_args, "palette": {"name": palette.name, "colours": palette.colours.tolist()}}


def load_model(path: Path | None = None) -> PaletteModel | PhotoModel:
    """Load a checkpoint, the best one of a run folder, an exported ONNX file, or (None) what ships with the package.

    Raises ChromaboxError if it is missing, broken, or not of a colour net; for an ONNX file UsageError where the
    libraries for it are missing.
    """
    if path is None:
        with resources.as_file(resources.files("chromabox.assets") / DEFAULT_CHECKPOINT) as shipped:
            return _load(shipped)
    return _load(resolve_checkpoint(path))


def checkpoint_sha256(path: Path | None = None) -> str:
    """SHA-256 of the file that :func:`load_trained` would load: two nets of one digest colour alike."""
    if path is None:
        with resources.as_file(resources.files("chromabox.assets") / DEFAULT_CHECKPOINT) as shipped:
            return sha256_file(shipped)
    return sha256_file(resolve_checkpoint(path))


def load_palette_model(path: Path | None = None) -> PaletteModel:
    """The same for those who need a net with a palette: UsageError for a photo net."""
    trained = load_model(path)
    if isinstance(trained, PhotoModel):
        raise UsageError(f"{path or 'the shipped net'}: is a photo net; a net that was trained on a palette is needed")
    return trained


def resolve_checkpoint(path: Path) -> Path:
    """The checkpoint itself, or ``best.safetensors`` of a run folder; UsageError if there is no such thing."""
    if not path.exists():
        raise UsageError(f"{path}: there is no such run folder or checkpoint; give one that chromabox train wrote")
    if path.is_dir():
        best = path / "best.safetensors"
        if not best.is_file():
            raise UsageError(f"{path}: holds no best.safetensors; give a run folder with at least one finished epoch")
        return best
    return path


def _load(path: Path) -> PaletteModel | PhotoModel:
    opened, description = open_onnx(path) if path.suffix.lower() == ".onnx" else load_checkpoint(path)
    try:
        net = opened if isinstance(opened, OnnxModel) else _build(opened, description)
        if "bins" in description:
            return PhotoModel(net.eval(), ChromaBins.from_json(description["bins"]), description)
        stored = description["palette"]
        palette = Palette(np.asarray(stored["colours"], np.float32), stored["name"])
    except (KeyError, TypeError, ValueError, RuntimeError, ChromaboxError) as error:
        reason = " ".join(str(error).split())  # PyTorch lists what does not fit in many lines.
        raise ChromaboxError(
            f"{path}: not a checkpoint of a colour net ({reason}); give one that chromabox train wrote"
        ) from error
    return PaletteModel(net.eval(), palette, description)


def _build(state: dict[str, Any], metadata: dict[str, Any]) -> nn.Module:
    net = build_model(metadata["net"], **metadata["settings"])
    net.load_state_dict(state["net"])
    return net


#: Short sides, in pixels, at which a photo net looks at a picture.
PHOTO_SCALES = (192, 256)

#: The same for a net trained on CIFAR-10: the only size it knows.
CIFAR_SCALES = (32,)
