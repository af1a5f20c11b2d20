"""A trained net as an ONNX file that can be used alone, checked against PyTorch before it gets its name.

The file takes batches and pictures of any size; its metadata say what goes in, what comes out and which colours the
classes are. What the net looks like in the file is left to PyTorch's exporter; that it computes the same is measured.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

import chromabox
from chromabox.colour.weights.checkpoint import CIFAR_SCALES, PHOTO_SCALES, PaletteModel, PhotoModel
from chromabox.colour.weights.onnx_model import ONNX_FORMAT, ONNX_INPUT, ONNX_OUTPUT, OnnxModel, open_onnx
from chromabox.engine.export import MAX_DIFFERENCE, OPSET, require_onnx_suffix, save_verified, to_onnx
from chromabox.errors import UsageError

if TYPE_CHECKING:
    from onnx import ModelProto

#: Batch, height and width of what the check puts in; the sides in multiples of what the net needs.
TEST_SHAPES = ((1, 1, 1), (2, 3, 5), (1, 8, 6), (3, 2, 9))


@dataclass(frozen=True)
class ColourExportReport:
    """The largest differences between an exported file and PyTorch, over all inputs of the check."""

    max_probability_difference: float
    max_logit_difference: float
    num_inputs: int

    @property
    def max_difference(self) -> float:
        """Of probabilities, which decide the colours."""
        return self.max_probability_difference

    def __str__(self) -> str:
        return (
            f"checked against PyTorch on {self.num_inputs} inputs: probabilities differ by at most "
            f"{self.max_probability_difference:.1e} ({MAX_DIFFERENCE:.0e} is allowed), "
            f"scores by {self.max_logit_difference:.1e}"
        )


def export_onnx(colour_model: PaletteModel | PhotoModel, path: Path, *, opset: int = OPSET) -> ColourExportReport:
    """Write a trained net to ``path``, an ONNX file, after comparing what it computes with PyTorch.

    Args:
        trained: the net, of any kind, in evaluation mode on the CPU.
        path: ends in ``.onnx``; missing folders are made.
        opset: version of ONNX's operators.

    Raises UsageError for another suffix, a net that is an ONNX file already and missing libraries; ChromaboxError if
    PyTorch cannot export the net, the file computes something else or cannot be written. Nothing is left then.
    """
    require_onnx_suffix(path)
    if isinstance(colour_model.network, OnnxModel):
        raise UsageError(
            f"{colour_model.network.path}: is an ONNX file already; give the checkpoint it was exported from"
        )
    model = _to_onnx(colour_model.network, opset)
    return save_verified(
        path,
        model,
        _onnx_metadata(colour_model),
        lambda file: compare_outputs(colour_model.network, open_onnx(file)[0]),
    )


@torch.no_grad()
def compare_outputs(network: nn.Module, exported: OnnxModel) -> ColourExportReport:
    """Both nets on noise and on soft pictures of several sizes and batches, in float32."""
    probabilities, scores = [], []
    inputs = [picture for shape in TEST_SHAPES for picture in _test_images(shape, exported.size_divisor)]
    for grey in inputs:
        ours, theirs = network(grey), exported(grey)
        scores.append((ours - theirs).abs().max())
        probabilities.append((ours.softmax(1) - theirs.softmax(1)).abs().max())
    return ColourExportReport(float(torch.stack(probabilities).max()), float(torch.stack(scores).max()), len(inputs))


def _test_images(shape: tuple[int, int, int], size_divisor: int) -> Iterator[Float[Tensor, "batch 1 height width"]]:
    """Noise, then a soft picture with edges, in [0, 1): as in photographs, the coarse outweighs the fine."""
    generator = torch.Generator().manual_seed(sum(shape))
    batch, rows, columns = shape
    size = rows * size_divisor, columns * size_divisor
    yield torch.rand(batch, 1, *size, generator=generator)
    soft = torch.zeros(batch, 1, *size)
    for octave in range(1, 6):
        coarse = torch.rand(batch, 1, 2**octave, 2**octave, generator=generator)
        soft += F.interpolate(coarse, size, mode="nearest" if octave == 2 else "bilinear") / 2**octave
    yield soft * (255 / 256)


def _to_onnx(network: nn.Module, opset: int) -> "ModelProto":
    """The net as PyTorch's exporter writes it, for any batch and any sides that the net can take."""
    multiple = network.size_divisor
    assert isinstance(multiple, int)
    height, width = (multiple * torch.export.Dim(name, min=1) for name in ("rows", "columns"))
    dynamic = {0: torch.export.Dim("batch", min=1), 2: height, 3: width}
    return to_onnx(
        network, torch.zeros(2, 1, 4 * multiple, 5 * multiple), dynamic, [ONNX_INPUT], [ONNX_OUTPUT], opset=opset
    )


def _onnx_metadata(model: PaletteModel | PhotoModel) -> dict[str, str]:
    """Everything that is needed to use the file alone, and what the checkpoint said of the net."""
    photo = isinstance(model, PhotoModel)
    kind = "bins" if photo else "palette"
    history = {key: value for key, value in model.metadata.items() if key not in ("net", "bins", "palette")}
    lightness = "L* of CIELab (D65) divided by 100, 0 to 1"
    value = "8-bit sRGB grey (or the mean of red, green and blue) divided by 256, in [0, 1)"
    colours = "points (a*, b*) of CIELab" if photo else "colours, RGB divided by 256"
    stride = getattr(model.network, "stride", 1)
    return {
        "format": ONNX_FORMAT,
        "version": chromabox.__version__,
        "net": str(model.metadata["net"]),
        "input": f"float32 [batch, 1, height, width]: {lightness if photo else value}",
        "output": f"float32 [batch, classes, height / {stride}, width / {stride}]: softmax over the classes gives the "
        f"probabilities of {kind}, {colours}, in their order",
        "multiple": str(model.network.size_divisor),
        "stride": str(stride),
        "looks": json.dumps(PHOTO_SCALES if photo else CIFAR_SCALES),
        kind: json.dumps(model.metadata[kind]),
        "history": json.dumps(history),
    }
