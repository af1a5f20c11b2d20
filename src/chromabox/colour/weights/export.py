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
from chromabox.colour.weights.checkpoint import CIFAR_LOOKS, PHOTO_LOOKS, TrainedNet, TrainedPhotoNet
from chromabox.colour.weights.onnx_model import FORMAT, INPUT, OUTPUT, OnnxNet, open_onnx
from chromabox.engine.export import LARGEST_DIFFERENCE, OPSET, convert, refuse_other_suffix, write_onnx
from chromabox.errors import UsageError

if TYPE_CHECKING:
    from onnx import ModelProto

#: Batch, height and width of what the check puts in; the sides in multiples of what the net needs.
CHECKED = ((1, 1, 1), (2, 3, 5), (1, 8, 6), (3, 2, 9))


@dataclass(frozen=True)
class Parity:
    """The largest differences between an exported file and PyTorch, over all inputs of the check."""

    probabilities: float
    scores: float
    inputs: int

    @property
    def worst(self) -> float:
        """Of probabilities, which decide the colours."""
        return self.probabilities

    def __str__(self) -> str:
        return (
            f"checked against PyTorch on {self.inputs} inputs: probabilities differ by at most "
            f"{self.probabilities:.1e} ({LARGEST_DIFFERENCE:.0e} is allowed), scores by {self.scores:.1e}"
        )


def export_onnx(trained: TrainedNet | TrainedPhotoNet, path: Path, *, opset: int = OPSET) -> Parity:
    """Write a trained net to ``path``, an ONNX file, after comparing what it computes with PyTorch.

    Args:
        trained: the net, of any kind, in evaluation mode on the CPU.
        path: ends in ``.onnx``; missing folders are made.
        opset: version of ONNX's operators.

    Raises UsageError for another suffix, a net that is an ONNX file already and missing libraries; ChromaboxError if
    PyTorch cannot export the net, the file computes something else or cannot be written. Nothing is left then.
    """
    refuse_other_suffix(path)
    if isinstance(trained.net, OnnxNet):
        raise UsageError(f"{trained.net.path}: is an ONNX file already; give the checkpoint it was exported from")
    model = _converted(trained.net, opset)
    return write_onnx(path, model, _properties(trained), lambda file: compare(trained.net, open_onnx(file)[0]))


@torch.no_grad()
def compare(net: nn.Module, exported: OnnxNet) -> Parity:
    """Both nets on noise and on soft pictures of several sizes and batches, in float32."""
    probabilities, scores = [], []
    inputs = [picture for shape in CHECKED for picture in _pictures(shape, exported.multiple)]
    for grey in inputs:
        ours, theirs = net(grey), exported(grey)
        scores.append((ours - theirs).abs().max())
        probabilities.append((ours.softmax(1) - theirs.softmax(1)).abs().max())
    return Parity(float(torch.stack(probabilities).max()), float(torch.stack(scores).max()), len(inputs))


def _pictures(shape: tuple[int, int, int], multiple: int) -> Iterator[Float[Tensor, "batch 1 height width"]]:
    """Noise, then a soft picture with edges, in [0, 1): as in photographs, the coarse outweighs the fine."""
    generator = torch.Generator().manual_seed(sum(shape))
    batch, rows, columns = shape
    size = rows * multiple, columns * multiple
    yield torch.rand(batch, 1, *size, generator=generator)
    soft = torch.zeros(batch, 1, *size)
    for octave in range(1, 6):
        coarse = torch.rand(batch, 1, 2**octave, 2**octave, generator=generator)
        soft += F.interpolate(coarse, size, mode="nearest" if octave == 2 else "bilinear") / 2**octave
    yield soft * (255 / 256)


def _converted(net: nn.Module, opset: int) -> "ModelProto":
    """The net as PyTorch's exporter writes it, for any batch and any sides that the net can take."""
    multiple = net.multiple
    assert isinstance(multiple, int)
    height, width = (multiple * torch.export.Dim(name, min=1) for name in ("rows", "columns"))
    dynamic = {0: torch.export.Dim("batch", min=1), 2: height, 3: width}
    return convert(net, torch.zeros(2, 1, 4 * multiple, 5 * multiple), dynamic, [INPUT], [OUTPUT], opset=opset)


def _properties(trained: TrainedNet | TrainedPhotoNet) -> dict[str, str]:
    """Everything that is needed to use the file alone, and what the checkpoint said of the net."""
    photo = isinstance(trained, TrainedPhotoNet)
    kind = "bins" if photo else "palette"
    history = {key: value for key, value in trained.description.items() if key not in ("net", "bins", "palette")}
    lightness = "L* of CIELab (D65) divided by 100, 0 to 1"
    value = "8-bit sRGB grey (or the mean of red, green and blue) divided by 256, in [0, 1)"
    colours = "points (a*, b*) of CIELab" if photo else "colours, RGB divided by 256"
    stride = getattr(trained.net, "stride", 1)
    return {
        "format": FORMAT,
        "version": chromabox.__version__,
        "net": str(trained.description["net"]),
        "input": f"float32 [batch, 1, height, width]: {lightness if photo else value}",
        "output": f"float32 [batch, classes, height / {stride}, width / {stride}]: softmax over the classes gives the "
        f"probabilities of {kind}, {colours}, in their order",
        "multiple": str(trained.net.multiple),
        "stride": str(stride),
        "looks": json.dumps(PHOTO_LOOKS if photo else CIFAR_LOOKS),
        kind: json.dumps(trained.description[kind]),
        "history": json.dumps(history),
    }
