"""Loading of trained colourisation models from checkpoints and ONNX files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.models import build_model
from chromabox.colour.palette.palette import Palette
from chromabox.colour.weights.onnx_model import (
    BUNDLED_MODEL,
    ColourModel,
    load_onnx_model,
    read_classes,
    resolve_checkpoint,
)
from chromabox.engine.checkpoint import check_finite, load_checkpoint
from chromabox.errors import ChromaboxError, UsageError


@dataclass(frozen=True)
class PaletteModel:
    """A palette model in evaluation mode, with its palette and the metadata of its checkpoint."""

    network: nn.Module
    palette: Palette
    metadata: dict[str, Any]


@dataclass(frozen=True)
class PhotoModel:
    """A photo model in evaluation mode, with its chroma bins and the metadata of its checkpoint."""

    network: nn.Module
    bins: ChromaBins
    metadata: dict[str, Any]


def model_metadata(name: str, model_args: dict[str, Any], classes: Palette | ChromaBins) -> dict[str, Any]:
    """Return the checkpoint metadata from which :func:`load_model` rebuilds a model."""
    if isinstance(classes, ChromaBins):
        return {"net": name, "settings": model_args, "bins": classes.as_json()}
    palette = {"name": classes.name, "colours": classes.colours.tolist()}
    return {"net": name, "settings": model_args, "palette": palette}


def load_model(path: Path | None = None) -> PaletteModel | PhotoModel:
    """Load a colourisation model in evaluation mode.

    Args:
        path: a checkpoint, a run folder, from which the best checkpoint is loaded, or an exported ONNX file. None loads
            the bundled photo model.

    Raise UsageError if the path does not exist, a run folder has no best checkpoint, or a library required for an ONNX
    file is not installed. Raise ChromaboxError if the file is corrupt or is not a colourisation model.
    """
    if path is None:
        return _load_bundled()
    path = resolve_checkpoint(path)
    network: nn.Module
    if path.suffix.lower() == ".onnx":
        onnx_model = load_onnx_model(path)
        network, classes, metadata = OnnxNetwork(onnx_model), onnx_model.output, onnx_model.metadata
    else:
        state, metadata = load_checkpoint(path)
        try:
            name, model_args = metadata["net"], metadata["settings"]
            if max(model_args.get("blocks", [0])) > len(state["net"]):
                raise ValueError("the settings define more blocks than the file contains")
            with torch.device("meta"):  # Compare the shapes before memory is allocated for the weights.
                build_model(name, **model_args).load_state_dict(state["net"], assign=True)
            network = build_model(name, **model_args)
            network.load_state_dict(state["net"])
            check_finite(network.state_dict())
            classes = read_classes(metadata)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, ChromaboxError) as error:
            reason = " ".join(str(error).split())  # PyTorch lists mismatched tensors on several lines.
            raise ChromaboxError(
                f"{path}: not a checkpoint of a colourisation model ({reason}); expected one written by chromabox train"
            ) from error
    if isinstance(classes, ChromaBins):
        return PhotoModel(network.eval(), classes, metadata)
    return PaletteModel(network.eval(), classes, metadata)


def load_palette_model(path: Path | None = None) -> PaletteModel:
    """Load a palette model as :func:`load_model` does. Raise UsageError for a photo model."""
    model = load_model(path)
    if isinstance(model, PhotoModel):
        raise UsageError(f"{path or 'the bundled model'} is a photo model; expected a model trained with a palette")
    return model


def _load_bundled() -> PhotoModel:
    """Return the bundled photo model.

    Its ONNX file stores a weight under its name, in float16 (``_half``), or as integers with one scale per output
    channel (``_int8`` and ``_scale``).
    """
    import onnx

    model = load_onnx_model(BUNDLED_MODEL)
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(model.path).graph.initializer}
    network = build_model(model.metadata["net"], **model.metadata["settings"])
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                if f"{name}_int8" in tensors:
                    values = tensors[f"{name}_int8"] * tensors[f"{name}_scale"]
                else:
                    values = tensors[name if name in tensors else f"{name}_half"]
                value.copy_(torch.from_numpy(values.astype(np.float32)))
    assert isinstance(model.output, ChromaBins)
    return PhotoModel(network.eval(), model.output, model.metadata)


class OnnxNetwork(nn.Module):
    """An exported model as a module in evaluation mode. It has no parameters and runs on the CPU."""

    def __init__(self, model: ColourModel) -> None:
        super().__init__()
        self.model, self.size_divisor, self.stride = model, model.size_divisor, model.stride

    def train(self, mode: bool = True) -> "OnnxNetwork":
        """Set evaluation mode. Raise UsageError for training mode."""
        if mode:
            raise UsageError(
                f"{self.model.path}: an ONNX file cannot be trained; use the checkpoint from which it was exported"
            )
        super().train(False)
        return self

    def forward(self, grey: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch classes _ _"]:
        """Return the logits."""
        return torch.from_numpy(self.model.predict(grey.detach().float().cpu().contiguous().numpy())).to(grey.device)


#: Short sides, in pixels, to which images are resized for the test-time augmentation of a photo model.
PHOTO_SCALES = (160, 224)

#: Short sides, in pixels, for palette models: the size of all CIFAR-10 images.
CIFAR_SCALES = (32,)
