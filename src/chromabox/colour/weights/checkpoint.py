"""Trained colourisation models: loading from checkpoints and ONNX files, and their metadata."""

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

#: The bundled checkpoint that ``chromabox colour`` uses by default.
DEFAULT_CHECKPOINT = "photo.safetensors"


@dataclass(frozen=True)
class PaletteModel:
    """A colourisation model in evaluation mode, with its palette and the metadata of its checkpoint."""

    network: nn.Module
    palette: Palette
    metadata: dict[str, Any]


@dataclass(frozen=True)
class PhotoModel:
    """A photo model in evaluation mode, with the chroma bins that are its classes and its checkpoint's metadata."""

    network: nn.Module
    bins: ChromaBins
    metadata: dict[str, Any]


def photo_model_metadata(model_args: dict[str, Any], bins: ChromaBins) -> dict[str, Any]:
    """Return the checkpoint metadata from which :func:`load_model` rebuilds a photo model."""
    return {"net": "photo", "settings": model_args, "bins": bins.as_json()}


def model_metadata(name: str, model_args: dict[str, Any], palette: Palette) -> dict[str, Any]:
    """Return the checkpoint metadata from which :func:`load_model` rebuilds a model with a palette."""
    return {"net": name, "settings": model_args, "palette": {"name": palette.name, "colours": palette.colours.tolist()}}


def load_model(path: Path | None = None) -> PaletteModel | PhotoModel:
    """Load a colourisation model in evaluation mode.

    Args:
        path: a checkpoint, a run folder (its best checkpoint is loaded) or an exported ONNX file; None loads the
            default model of the package.

    Raise UsageError if the path does not exist, a run folder has no best checkpoint, or an ONNX file is to be loaded
    and a library for it is not installed. Raise ChromaboxError if the file is corrupt or is not a colourisation model.
    """
    if path is None:
        with resources.as_file(resources.files("chromabox.assets") / DEFAULT_CHECKPOINT) as shipped:
            return _load(shipped)
    return _load(resolve_checkpoint(path))


def checkpoint_sha256(path: Path | None = None) -> str:
    """Return the SHA-256 digest of the file that :func:`load_model` would load; it identifies the model."""
    if path is None:
        with resources.as_file(resources.files("chromabox.assets") / DEFAULT_CHECKPOINT) as shipped:
            return sha256_file(shipped)
    return sha256_file(resolve_checkpoint(path))


def load_palette_model(path: Path | None = None) -> PaletteModel:
    """Load a model with a palette, as :func:`load_model` does. Raise UsageError for a photo model."""
    model = load_model(path)
    if isinstance(model, PhotoModel):
        name = path or "the default model"
        raise UsageError(f"{name}: is a photo model; expected a model that was trained on a palette")
    return model


def resolve_checkpoint(path: Path) -> Path:
    """Return ``best.safetensors`` of a run folder, or the path of a file. Raise UsageError if it does not exist."""
    if not path.exists():
        raise UsageError(f"{path}: no such run folder or checkpoint; expected one written by chromabox train")
    if path.is_dir():
        best = path / "best.safetensors"
        if not best.is_file():
            raise UsageError(
                f"{path}: contains no best.safetensors; expected a run folder with at least one finished epoch"
            )
        return best
    return path


def _load(path: Path) -> PaletteModel | PhotoModel:
    loaded, metadata = open_onnx(path) if path.suffix.lower() == ".onnx" else load_checkpoint(path)
    try:
        network = loaded if isinstance(loaded, OnnxModel) else _build(loaded, metadata)
        if "bins" in metadata:
            return PhotoModel(network.eval(), ChromaBins.from_json(metadata["bins"]), metadata)
        stored = metadata["palette"]
        palette = Palette(np.asarray(stored["colours"], np.float32), stored["name"])
    except (KeyError, TypeError, ValueError, RuntimeError, ChromaboxError) as error:
        reason = " ".join(str(error).split())  # PyTorch lists mismatched tensors on several lines.
        raise ChromaboxError(
            f"{path}: not a checkpoint of a colourisation model ({reason}); expected one written by chromabox train"
        ) from error
    return PaletteModel(network.eval(), palette, metadata)


def _build(state: dict[str, Any], metadata: dict[str, Any]) -> nn.Module:
    network = build_model(metadata["net"], **metadata["settings"])
    network.load_state_dict(state["net"])
    return network


#: Short sides, in pixels, to which images are resized for the test-time augmentation of a photo model.
PHOTO_SCALES = (192, 256)

#: The same for a model trained on CIFAR-10, whose images are all of this size.
CIFAR_SCALES = (32,)
