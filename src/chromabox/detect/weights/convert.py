"""From weights of any origin to a file of ours or darknet's: what ``chromabox weights`` does.

A trained detector in the forms that other programs read, each read back and compared before it is told of.

A detector as an ONNX file that finds boxes by itself, checked against PyTorch before it gets its name.

Batch normalisation is folded into the convolutions, and what the heads' numbers mean is part of the file: it puts out
boxes and scores. What remains for its user is the letterbox before it and the suppression of doubles after it.
"""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from skimage import data as samples
from torch import Tensor, nn

import chromabox
from chromabox.detect.boxes import letterbox_for
from chromabox.detect.models.darknet import DARKNET, DarknetModel, decode_all, get_variant
from chromabox.detect.weights.darknet_cfg import write_cfg
from chromabox.detect.weights.load import (
    EXPORT_FORMAT,
    PRETRAINED,
    Detector,
    detector_metadata,
    download_pretrained,
    load_detector,
    save_detector,
    write_darknet,
)
from chromabox.detect.weights.sanity_check import sanity_check
from chromabox.engine.export import MAX_DIFFERENCE, OPSET, require_onnx_suffix, save_verified, to_onnx
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.http import Progress
from chromabox.runtime.session import open_session

if TYPE_CHECKING:
    from onnx import ModelProto


def convert_weights(
    weights: str,
    output: Path | None = None,
    *,
    architecture: str | None = None,
    variant: str | None = None,
    classes: Sequence[str] | None = None,
    run_sanity_check: bool = True,
    log: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> Path:
    """Fetch published weights or read a file, test what they mean, and write them.

    Args:
        weights: ``yolov3-tiny`` or a .weights, .onnx, .pt or .safetensors file.
        output: .safetensors (ours) or .weights (darknet's, with its .cfg beside it); None: the cache for a name, else
            the file's own name as .safetensors.
        architecture: ``yolov3``, ``yolov3-tiny`` or a .cfg file; kind: a name of ``models.darknet.KINDS``; classes:
            names. See :func:`~chromabox.detect.weights.load.load_detector`.
        test: show the net a known picture before anything is written, if it knows what is on it.

    Returns the file that was written. Raises ChromaboxError for files that cannot be read or fail the test, UsageError
    for options that do not fit.
    """
    named = weights in PRETRAINED and not Path(weights).exists()
    path = _resolve_output(weights, output, named)
    trained = load_detector(
        weights,
        architecture=architecture,
        variant=None if variant is None else get_variant(variant),
        classes=classes,
        progress=progress,
    )
    log(_describe(trained))
    reached = sanity_check(trained) if run_sanity_check else None
    if reached is not None:
        trained = replace(trained, metadata={**trained.metadata, "self_test": round(reached, 4)})
        log(f"self-test on the known picture: {reached:.2f} of 1, and no other meaning does better")
    elif run_sanity_check:
        log("self-test left out: these classes have no person and cat, which the known picture shows")
    if path is None:
        path = download_pretrained(weights, progress)
    else:
        _write_weights(path, trained)
    log(f"weights are in {path}")
    return path


def _resolve_output(weights: str, output: Path | None, is_pretrained: bool) -> Path | None:
    """Where to write; None for published weights that stay in the cache."""
    if output is None:
        if is_pretrained:
            return None
        output = Path(weights).with_suffix(".safetensors")
    if output.suffix not in (".safetensors", ".weights"):
        raise UsageError(f"{output}: weights are written as .safetensors (ours) or .weights (darknet's)")
    if not is_pretrained and output.exists() and Path(weights).exists() and output.samefile(weights):
        raise UsageError(f"{output}: is the file that is read; give another with -o")
    return output


def _describe(detector: Detector) -> str:
    net, source = detector.architecture, detector.metadata.get("source", {})
    return (
        f"{net.name} from {source.get('file', 'a checkpoint')}: {len(net.layers)} layers, {net.num_weights:,} numbers, "
        f"{net.num_classes} classes, kind {detector.variant.name}"
    )


def _write_weights(path: Path, detector: Detector) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_detector(path, detector)
            return
        write_darknet(path, detector.model, int(detector.metadata.get("source", {}).get("seen", 0)))
        write_cfg(detector.architecture, path.with_suffix(".cfg"))
    except OSError as error:
        remedy = "choose a folder that can be written"
        raise ChromaboxError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from error


def export_all_formats(detector: Detector, folder: Path) -> Iterator[str]:
    """Write ``best.onnx``, and of darknet's kind ``best.weights``, ``best.cfg`` and ``best.names``; a line on each.

    What cannot be written, since a library is missing or a file would find something else, is told of instead: the
    detector itself is saved already.
    """
    detector = replace(detector, model=copy.deepcopy(detector.model).cpu().eval())
    try:
        yield f"for any ONNX runtime: {folder}/best.onnx; {export_detector(detector, folder / 'best.onnx')}"
    except ChromaboxError as error:
        yield f"no best.onnx: {error}"
    if detector.variant != DARKNET:
        return
    try:
        export_darknet(detector, folder / "best.weights")
        yield f"for darknet: {folder}/best.weights with best.cfg and best.names; read back they are the same to the bit"
    except ChromaboxError as error:
        yield f"no best.weights: {error}"


def export_darknet(detector: Detector, path: Path) -> None:
    """Write darknet's three files: ``path``, the net as .cfg beside it, and the classes as .names, a line each.

    Raises ChromaboxError, and leaves none of them, if what is read back is not the same net.
    """
    files = path, path.with_suffix(".cfg"), path.with_suffix(".names")
    seen = int(detector.metadata.get("source", {}).get("seen", 0))
    write_cfg(replace(detector.architecture, size=detector.size), files[1])
    files[2].write_text("".join(f"{name}\n" for name in detector.classes), encoding="utf-8")
    write_darknet(path, detector.model, seen)
    back = load_detector(path)
    ours, theirs = detector.model.state_dict(), back.model.state_dict()
    same = back.architecture.layers == detector.architecture.layers and ours.keys() == theirs.keys()
    # Batches are counted by PyTorch alone.
    if not same or not all(torch.equal(ours[name], theirs[name]) for name in ours if "num_batches" not in name):
        for file in files:
            file.unlink()
        raise ChromaboxError(f"{path}: not written, darknet's files would hold another net; use the .safetensors file")


INPUT_NAME, OUTPUT_NAMES = "images", ("boxes", "scores")

#: Photographs of scikit-image by which the file is compared.
TEST_PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


@dataclass(frozen=True)
class DetectorExportReport:
    """The largest differences between an exported file and PyTorch: of scores, and of boxes as parts of the side."""

    score_difference: float
    box_difference: float
    num_images: int

    @property
    def max_difference(self) -> float:
        """Of both."""
        return float(torch.tensor([self.score_difference, self.box_difference]).max())

    def __str__(self) -> str:
        return (
            f"checked against PyTorch on {self.num_images} photographs: scores differ by at most {self.score_difference:.1e}, "
            f"boxes by {self.box_difference:.1e} of the side ({MAX_DIFFERENCE:.0e} is allowed)"
        )


class ExportWrapper(nn.Module):
    """Images [batch, 3, size, size] → all boxes in pixels [batch, boxes, 4] and scores [batch, boxes, classes]."""

    def __init__(self, model: DarknetModel, size: int) -> None:
        super().__init__()
        self.net, self.size = model, size

    def forward(
        self, images: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch boxes 4"], Float[Tensor, "batch boxes classes"]]:
        return decode_all(self.net(images), self.net.architecture, self.net.variant, self.size)


def export_detector(detector: Detector, path: Path, *, size: int | None = None) -> DetectorExportReport:
    """Write a detector to ``path``, an ONNX file, after comparing what it finds with PyTorch.

    Args:
        trained: on the CPU, in evaluation mode.
        path: ends in ``.onnx``; missing folders are made.
        size: side in pixels of the squares that the file takes; the detector's own if None.

    :func:`~chromabox.detect.weights.load.load_detector` reads the file. Raises
    UsageError for another suffix, a size that does not fit and missing libraries; ChromaboxError if PyTorch cannot
    export the net, the file finds something else or cannot be written. Nothing is left then.
    """
    require_onnx_suffix(path)
    side, multiple = size or detector.size, detector.architecture.max_stride
    if side < multiple or side % multiple:
        raise UsageError(f"size is {side}: {detector.architecture.name} needs a multiple of {multiple}")
    folded = replace(detector, model=detector.model.fuse(), size=side)
    model = _to_onnx(ExportWrapper(folded.model, side), side)
    return save_verified(
        path, model, _onnx_metadata(folded), lambda file: compare_exported_detector(detector, file, side)
    )


@torch.no_grad()
def compare_exported_detector(detector: Detector, path: Path, size: int) -> DetectorExportReport:
    """What an exported file finds on photographs, singly and as a batch, run by onnxruntime and read by ourselves."""
    session = open_session(path, path.read_bytes(), [INPUT_NAME], OUTPUT_NAMES)
    photographs = [getattr(samples, name)() for name in TEST_PHOTOS]
    squares = [letterbox_for(pixels.shape[:2], size, detector.variant).apply_image(pixels) for pixels in photographs]
    images = torch.stack([torch.from_numpy(square) for square in squares])
    expected = ExportWrapper(detector.model, size)(images)
    several = [torch.from_numpy(values) for values in session.run(list(OUTPUT_NAMES), {INPUT_NAME: images.numpy()})]
    single = [torch.from_numpy(values) for values in session.run(list(OUTPUT_NAMES), {INPUT_NAME: images[:1].numpy()})]
    again = ExportWrapper(load_detector(path).model, size)(images)
    boxes, scores = (
        torch.stack([(theirs - ours[: len(theirs)]).abs().max() for theirs in three])
        for ours, *three in zip(expected, several, single, again, strict=True)
    )
    return DetectorExportReport(float(scores.max()), float(boxes.max()) / size, len(images))


def _to_onnx(model: ExportWrapper, size: int) -> "ModelProto":
    """The net as PyTorch's exporter writes it, for batches of any size."""
    example = torch.zeros(2, model.net.architecture.channels, size, size)
    return to_onnx(model, example, {0: torch.export.Dim("batch", min=1)}, [INPUT_NAME], OUTPUT_NAMES, opset=OPSET)


def _onnx_metadata(detector: Detector) -> dict[str, str]:
    """Everything that is needed to use the file alone, and what a checkpoint says of the detector."""
    kind, size = detector.variant, detector.size
    return {
        "format": EXPORT_FORMAT,
        "version": chromabox.__version__,
        "input": f"float32 [batch, 3, {size}, {size}]: RGB in [0, 1], the picture brought to the square with its "
        f"proportions kept and grey ({kind.letterbox_grey:.4f}) around it",
        "boxes": f"float32 [batch, boxes, 4]: left, top, right, bottom in pixels of the square of {size}",
        "scores": "float32 [batch, boxes, classes], 0 to 1: independent of each other; keep those above a threshold, "
        "and of overlapping boxes of one class the one with the highest",
        "classes": json.dumps(list(detector.classes), ensure_ascii=False),
        "size": str(size),
        "letterbox_grey": repr(kind.letterbox_grey),
        "anchors": json.dumps([yolo.head_anchors for yolo in detector.architecture.yolo_layers]),
        "detector": json.dumps(detector_metadata(detector)),
    }
