"""A detector as an ONNX file that finds boxes by itself, checked against PyTorch before it gets its name.

Batch normalisation is folded into the convolutions, and what the heads' numbers mean is part of the file: it puts out
boxes and scores. What remains for its user is the letterbox before it and the suppression of doubles after it.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from skimage import data as samples
from torch import Tensor, nn

import chromabox
from chromabox.detect.decode import decode
from chromabox.detect.nets import DetectorNet
from chromabox.detect.predict import letterbox_for
from chromabox.detect.weights import EXPORTED, TrainedDetector, describe_detector, load_detector
from chromabox.engine.export import LARGEST_DIFFERENCE, OPSET, convert, refuse_other_suffix, write_onnx
from chromabox.errors import UsageError
from chromabox.runtime.session import open_session

if TYPE_CHECKING:
    from onnx import ModelProto

INPUT, OUTPUTS = "images", ("boxes", "scores")
#: Photographs of scikit-image by which the file is compared.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


@dataclass(frozen=True)
class DetectorParity:
    """The largest differences between an exported file and PyTorch: of scores, and of boxes as parts of the side."""

    scores: float
    boxes: float
    pictures: int

    @property
    def worst(self) -> float:
        """Of both."""
        return float(torch.tensor([self.scores, self.boxes]).max())

    def __str__(self) -> str:
        return (
            f"checked against PyTorch on {self.pictures} photographs: scores differ by at most {self.scores:.1e}, "
            f"boxes by {self.boxes:.1e} of the side ({LARGEST_DIFFERENCE:.0e} is allowed)"
        )


class BoxesNet(nn.Module):
    """Images [batch, 3, size, size] → all boxes in pixels [batch, boxes, 4] and scores [batch, boxes, classes]."""

    def __init__(self, net: DetectorNet, size: int) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(
        self, images: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch boxes 4"], Float[Tensor, "batch boxes classes"]]:
        return decode(self.net(images), self.net.architecture, self.net.kind, self.size)


def export_detector(trained: TrainedDetector, path: Path, *, size: int | None = None) -> DetectorParity:
    """Write a detector to ``path``, an ONNX file, after comparing what it finds with PyTorch.

    Args:
        trained: on the CPU, in evaluation mode.
        path: ends in ``.onnx``; missing folders are made.
        size: side in pixels of the squares that the file takes; the detector's own if None.

    :func:`~chromabox.detect.weights.load_detector` reads the file, which then finds the same boxes to the bit. Raises
    UsageError for another suffix, a size that does not fit and missing libraries; ChromaboxError if PyTorch cannot
    export the net, the file finds something else or cannot be written. Nothing is left then.
    """
    refuse_other_suffix(path)
    side, multiple = size or trained.size, trained.architecture.multiple
    if side < multiple or side % multiple:
        raise UsageError(f"size is {side}: {trained.architecture.name} needs a multiple of {multiple}")
    folded = replace(trained, net=trained.net.fused(), size=side)
    model = _converted(BoxesNet(folded.net, side), side)
    return write_onnx(path, model, _properties(folded), lambda file: compare(trained, file, side))


@torch.no_grad()
def compare(trained: TrainedDetector, path: Path, size: int) -> DetectorParity:
    """What an exported file finds on photographs, singly and as a batch, run by onnxruntime and read by ourselves."""
    session = open_session(path, path.read_bytes(), [INPUT], OUTPUTS)
    photographs = [getattr(samples, name)() for name in PHOTOGRAPHS]
    squares = [letterbox_for(pixels.shape[:2], size, trained.kind).pixels_in(pixels) for pixels in photographs]
    images = torch.stack([torch.from_numpy(square) for square in squares])
    expected = BoxesNet(trained.net, size)(images)
    several = [torch.from_numpy(values) for values in session.run(list(OUTPUTS), {INPUT: images.numpy()})]
    single = [torch.from_numpy(values) for values in session.run(list(OUTPUTS), {INPUT: images[:1].numpy()})]
    again = BoxesNet(load_detector(path).net, size)(images)
    boxes, scores = (
        torch.stack([(theirs - ours[: len(theirs)]).abs().max() for theirs in three])
        for ours, *three in zip(expected, several, single, again, strict=True)
    )
    return DetectorParity(float(scores.max()), float(boxes.max()) / size, len(images))


def _converted(net: BoxesNet, size: int) -> "ModelProto":
    """The net as PyTorch's exporter writes it, for batches of any size."""
    example = torch.zeros(2, net.net.architecture.channels, size, size)
    return convert(net, example, {0: torch.export.Dim("batch", min=1)}, [INPUT], OUTPUTS, opset=OPSET)


def _properties(trained: TrainedDetector) -> dict[str, str]:
    """Everything that is needed to use the file alone, and what a checkpoint says of the detector."""
    kind, size = trained.kind, trained.size
    return {
        "format": EXPORTED,
        "version": chromabox.__version__,
        "input": f"float32 [batch, 3, {size}, {size}]: RGB in [0, 1], the picture brought to the square with its "
        f"proportions kept and grey ({kind.letterbox_grey:.4f}) around it",
        "boxes": f"float32 [batch, boxes, 4]: left, top, right, bottom in pixels of the square of {size}",
        "scores": "float32 [batch, boxes, classes], 0 to 1: independent of each other; keep those above a threshold, "
        "and of overlapping boxes of one class the one with the highest",
        "classes": json.dumps(list(trained.classes), ensure_ascii=False),
        "size": str(size),
        "letterbox_grey": repr(kind.letterbox_grey),
        "anchors": json.dumps([yolo.own_anchors for yolo in trained.architecture.yolos]),
        "detector": json.dumps(describe_detector(trained)),
    }
