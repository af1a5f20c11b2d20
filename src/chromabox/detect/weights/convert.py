"""Conversion of weights (``chromabox weights``) and export of detectors to Darknet and ONNX files.

Each exported file is read back and compared with the detector.

In ONNX files, BatchNorm is fused into the convolutions. Decoding is part of the graph: the outputs are boxes and
scores. Letterboxing and non-maximum suppression are not part of the graph.
"""

import copy
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from skimage import data as skimage_data
from torch import Tensor, nn

import chromabox
from chromabox.detect.boxes import letterbox_for
from chromabox.detect.models.architecture import DARKNET, get_variant
from chromabox.detect.models.darknet import DarknetModel, decode_all
from chromabox.detect.weights.darknet_cfg import write_cfg
from chromabox.detect.weights.load import (
    Detector,
    detector_metadata,
    download_pretrained,
    load_detector,
    save_detector,
    tensors_in_file_order,
    write_darknet,
)
from chromabox.detect.weights.onnx_model import EXPORT_FORMAT, INPUT_NAME, OUTPUT_NAMES, PRETRAINED, load_onnx_detector
from chromabox.detect.weights.sanity_check import sanity_check
from chromabox.engine.export import MAX_DIFFERENCE, OPSET, require_onnx_suffix, save_verified, to_onnx
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.http import Progress
from chromabox.io.paths import check_outputs

log = logging.getLogger(__name__)

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
    overwrite: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Load pretrained weights or a weight file, run the sanity check, and write the weights.

    Args:
        weights: ``yolov3-tiny`` or a .weights, .onnx, .pt or .safetensors file.
        output: a .safetensors file (Chromabox) or a .weights file (Darknet), next to which a .cfg and a .names file are
            written. None: the cache folder for pretrained weights, otherwise the input path with the suffix
            .safetensors.
        architecture: ``yolov3``, ``yolov3-tiny`` or a .cfg file; see
            :func:`~chromabox.detect.weights.load.load_detector`.
        variant: a key of ``chromabox.detect.models.architecture.VARIANTS``.
        classes: class names.
        run_sanity_check: whether to run the detector on a reference image before the file is written. The check is
            skipped if the detector does not have the classes of the image.
        overwrite: replace existing output files.
        progress: callback for the progress of a download.

    Returns:
        The path of the written file.

    Raise ChromaboxError if a file cannot be read or the sanity check fails, and UsageError if an option is invalid.
    """
    is_pretrained = weights in PRETRAINED and not Path(weights).exists()
    if output is None and not is_pretrained:
        output = Path(weights).with_suffix(".safetensors")
    if output is not None and output.suffix not in (".safetensors", ".weights"):
        raise UsageError(f"{output}: unsupported suffix; expected .safetensors (Chromabox) or .weights (Darknet)")
    if output is not None:
        suffixes = (".weights", ".cfg", ".names") if output.suffix == ".weights" else (output.suffix,)
        written = [output.with_suffix(suffix) for suffix in suffixes]
        sources = [Path(path) for path in (weights, architecture) if path is not None]
        check_outputs(written, sources, overwrite=overwrite)
    stored_variant = None if variant is None else get_variant(variant)
    detector = load_detector(
        weights, architecture=architecture, variant=stored_variant, classes=classes, progress=progress
    )
    model = detector.architecture
    log.info(
        f"{model.name} from {' and '.join(_source_files(detector))}: variant "
        f"{detector.variant.name}, layers: {len(model.layers)}, weights: {model.num_weights:,}, "
        f"classes: {model.num_classes}"
    )
    quality = sanity_check(detector) if run_sanity_check else None
    if quality is not None:
        detector = replace(detector, metadata={**detector.metadata, "self_test": round(quality, 4)})
        log.info(f"sanity check passed (score {quality:.2f} out of 1; no other variant or mask scores clearly higher)")
    elif run_sanity_check:
        log.info("sanity check skipped: the detector does not have the classes of the reference image, person and cat")
    try:
        if output is None:
            output = download_pretrained(weights, progress)
        elif output.suffix == ".safetensors":
            save_detector(output, detector)
        else:
            output.parent.mkdir(parents=True, exist_ok=True)
            write_darknet(output, detector.model, _num_images_seen(detector))
            write_cfg(detector.architecture, output.with_suffix(".cfg"))
            _write_names(detector.classes, output.with_suffix(".names"))
    except OSError as error:
        reason = error.strerror or error
        raise ChromaboxError(f"{output}: cannot be written ({reason}); use a writable folder") from error
    log.info(f"weights written to {output}")
    return output


def _source_files(detector: Detector) -> list[str]:
    """Return the names of the files from which the weights and, if separate, the class names were read."""
    source = detector.metadata.get("source", {})
    return [str(source[key]) for key in ("file", "names") if key in source] or ["a checkpoint"]


def _write_names(classes: Sequence[str], path: Path) -> None:
    """Write a Darknet .names file: one class name per line."""
    path.write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")


def _num_images_seen(detector: Detector) -> int:
    """Return the number of images seen during training, or 0 if this number is unknown."""
    return int(detector.metadata.get("source", {}).get("seen", 0))


def export_all_formats(detector: Detector, folder: Path) -> Iterator[str]:
    """Write ``best.onnx`` and, for Darknet's variant, ``best.weights``, ``best.cfg`` and ``best.names``.

    Yield one line of text about each export. If an export fails because a library is missing or the outputs would
    differ, the line states the reason. No error is raised, because the detector itself has already been saved.
    """
    detector = replace(detector, model=copy.deepcopy(detector.model).cpu().eval())
    log.info(f"exporting the model to {folder / 'best.onnx'}")
    try:
        yield f"for any ONNX runtime: {folder}/best.onnx; {export_detector(detector, folder / 'best.onnx')}"
    except ChromaboxError as error:
        yield f"no best.onnx: {error}"
    if detector.variant != DARKNET:
        return
    try:
        export_darknet(detector, folder / "best.weights")
        yield f"for Darknet: {folder}/best.weights, best.cfg and best.names; verified bit-identical when read back"
    except ChromaboxError as error:
        yield f"no best.weights: {error}"


def export_darknet(detector: Detector, path: Path) -> None:
    """Write a detector in Darknet's format: the weights to ``path``, and a .cfg and a .names file next to it.

    The .cfg file contains the architecture, and the .names file contains one class name per line. Raise ChromaboxError
    and delete the files if the detector read back from them differs from the original.
    """
    files = path, path.with_suffix(".cfg"), path.with_suffix(".names")
    write_cfg(replace(detector.architecture, size=detector.size), files[1])
    _write_names(detector.classes, files[2])
    write_darknet(path, detector.model, _num_images_seen(detector))
    try:
        exported = load_detector(path)
        tensors = (tensors_in_file_order(one.model) for one in (exported, detector))
        is_equal = exported.architecture.layers == detector.architecture.layers and all(map(torch.equal, *tensors))
        is_equal = is_equal and exported.classes == detector.classes
    except ChromaboxError:  # For example, a class name with a line break.
        is_equal = False
    if not is_equal:
        for file in files:
            file.unlink()
        problem = "not written, because the detector cannot be stored exactly in Darknet format"
        raise ChromaboxError(f"{path}: {problem}; use the .safetensors file")


#: Photographs from scikit-image on which exported files are compared with PyTorch.
TEST_PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


@dataclass(frozen=True)
class DetectorExportReport:
    """Largest differences between the outputs of an exported file and the outputs of PyTorch.

    Box differences are relative to the side length of the input, or to the coordinate if that is larger.
    """

    score_difference: float
    box_difference: float
    num_images: int

    @property
    def max_difference(self) -> float:
        """Larger of the two differences."""
        return float(np.max([self.score_difference, self.box_difference]))

    def __str__(self) -> str:
        return (
            f"checked against PyTorch on {self.num_images} photographs: scores differ by at most "
            f"{self.score_difference:.1e}, boxes by {self.box_difference:.1e} of the side length "
            f"(tolerance {MAX_DIFFERENCE:.0e})"
        )


class ExportWrapper(nn.Module):
    """Model followed by the decoding of its outputs. The input is a batch of images [batch, 3, size, size].

    The outputs are boxes [batch, boxes, 4] in pixels, and scores [batch, boxes, classes].
    """

    def __init__(self, model: DarknetModel, size: int) -> None:
        super().__init__()
        # The attribute name is part of the tensor names in the exported files.
        self.net, self.size = model, size

    def forward(
        self, images: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch boxes 4"], Float[Tensor, "batch boxes classes"]]:
        return decode_all(self.net(images), self.net.architecture, self.net.variant, self.size)


def export_detector(detector: Detector, path: Path, *, size: int | None = None) -> DetectorExportReport:
    """Write a detector to an ONNX file, after comparing the outputs of the file with the outputs of PyTorch.

    :func:`~chromabox.detect.weights.load.load_detector` can read the file.

    Args:
        detector: detector on the CPU, in evaluation mode.
        path: path with the suffix ``.onnx``; missing folders are created.
        size: side length of the square input in pixels; None: the detector's default size.

    Returns:
        The largest differences between the outputs of the file and the outputs of PyTorch.

    Raise UsageError if the suffix or size is invalid or a library is missing. Raise ChromaboxError if PyTorch cannot
    export the model, if the outputs differ, or if the file cannot be written. In all these cases, no file is written.
    """
    require_onnx_suffix(path)
    side = detector.size if size is None else size
    detector.check_size(side)
    fused = replace(detector, model=detector.model.fuse(), size=side)
    model = _to_onnx(ExportWrapper(fused.model, side), side)
    # Instructions for using the file without Chromabox, and the metadata of the checkpoint.
    grey = fused.variant.letterbox_grey
    metadata = {
        "format": EXPORT_FORMAT,
        "version": chromabox.__version__,
        "input": f"float32 [batch, 3, {side}, {side}]: RGB in [0, 1], letterboxed: the image is resized with its "
        f"aspect ratio preserved and padded with grey ({grey:.4f})",
        "boxes": f"float32 [batch, boxes, 4]: left, top, right, bottom in pixels of the {side} × {side} input",
        "scores": "float32 [batch, boxes, classes]: independent scores in [0, 1]; apply a threshold and non-maximum "
        "suppression per class",
        "classes": json.dumps(list(fused.classes), ensure_ascii=False),
        "size": str(side),
        "letterbox_grey": repr(grey),
        "anchors": json.dumps([yolo.head_anchors for yolo in fused.architecture.yolo_layers]),
        "detector": json.dumps(detector_metadata(fused)),
    }
    return save_verified(path, model, metadata, lambda file: compare_exported_detector(detector, file, side))


def compare_exported_detector(detector: Detector, path: Path, size: int) -> DetectorExportReport:
    """Compare the outputs of an exported file with the outputs of PyTorch on photographs.

    ONNX Runtime runs the file with one image and with a batch. The file is also loaded as a PyTorch detector.
    """
    photos = [getattr(skimage_data, name)() for name in TEST_PHOTOS]
    letterboxes = [letterbox_for(pixels.shape[:2], size, detector.variant) for pixels in photos]
    images = np.stack([letterbox.apply_image(pixels) for letterbox, pixels in zip(letterboxes, photos, strict=True)])
    exported = load_onnx_detector(path)
    outputs = [exported.predict(images), exported.predict(images[:1]), load_detector(path).predict(images)]
    expected_boxes, expected_scores = detector.predict(images)
    # Coordinates far outside the input result from exponentials. The rounding errors of these coordinates are
    # proportional to the coordinates.
    scales = np.maximum(np.abs(expected_boxes), size)
    differences = []
    for boxes, scores in outputs:
        box_errors = np.abs(boxes - expected_boxes[: len(boxes)]) / scales[: len(boxes)]
        differences.append((np.abs(scores - expected_scores[: len(scores)]).max(), box_errors.max()))
    score_difference, box_difference = np.max(differences, axis=0).tolist()
    return DetectorExportReport(score_difference, box_difference, len(images))


def _to_onnx(model: ExportWrapper, size: int) -> "ModelProto":
    """Return the model in ONNX format, exported by PyTorch with a dynamic batch size."""
    example = torch.zeros(2, model.net.architecture.channels, size, size)
    return to_onnx(model, example, {0: torch.export.Dim("batch", min=1)}, [INPUT_NAME], OUTPUT_NAMES, opset=OPSET)
