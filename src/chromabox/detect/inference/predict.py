"""Pictures → boxes: into the net's square, through the net, decoded, freed of doubles, back into the picture."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64

from chromabox.detect.boxes import Letterbox, Pixels, box_area, letterbox_for, nms
from chromabox.detect.detections import Detections
from chromabox.detect.inference.runtime import OptimizedDetector
from chromabox.detect.models.darknet import decode_candidates
from chromabox.detect.weights.load import Detector
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import read_image
from chromabox.runtime.parallel import map_ordered

#: A detector as it was loaded, or made ready for many pictures.
AnyDetector = Detector | OptimizedDetector


@dataclass(frozen=True)
class FileResult:
    """What became of one file: its pixels and what was found in them, or in one sentence why nothing could be."""

    path: Path
    pixels: Pixels | None = None
    detections: Detections | None = None
    error: str | None = None


def detect_image(
    pixels: Pixels,
    detector: AnyDetector,
    *,
    confidence: float = 0.5,
    iou: float = 0.45,
    classes: Sequence[str | int] | None = None,
    size: int | None = None,
) -> Detections:
    """What a detector finds in a picture.

    Args:
        pixels: RGB of 8 or 16 bits, upright.
        detector: of any kind.
        confidence: 0 to 1; pairs of box and class with a score above it are found, so that one box may stand for
            several classes.
        iou: 0 to 1; of two boxes of one class that overlap by more, the one with the lower score goes.
        classes: names or numbers of the only classes wanted.
        size: side of the net's square, a multiple of the net's greatest stride; the detector's own if None.

    Returns:
        Boxes in pixels of the picture, cut off at its edges (those wholly outside are left out), the highest score
        first; ``data["class_name"]`` has the names. Raises UsageError for values out of range and unknown classes.
    """
    return run_detector(pixels, detector, InferenceOptions.for_detector(detector, confidence, iou, classes, size))


@torch.inference_mode()
def run_detector(pixels: Pixels, detector: AnyDetector, options: "InferenceOptions") -> Detections:
    """:func:`detect_picture` for wishes that are checked already."""
    trained = unwrap_detector(detector)
    box = letterbox_for(pixels.shape[:2], options.size, trained.variant)
    square = torch.from_numpy(box.apply_image(pixels))[None]
    if isinstance(detector, OptimizedDetector):
        outputs = detector.forward(square)
    else:
        outputs = trained.model(square.to(next(trained.model.parameters()).device))
    ((corners, scores, numbers),) = decode_candidates(
        outputs, trained.architecture, trained.variant, options.size, options.confidence
    )
    return _postprocess(
        corners.cpu().numpy(), scores.cpu().numpy(), numbers.cpu().numpy(), box, trained.classes, options
    )


def detect_files(
    paths: Iterable[Path],
    detector: AnyDetector,
    *,
    confidence: float = 0.5,
    iou: float = 0.45,
    classes: Sequence[str | int] | None = None,
    size: int | None = None,
    workers: int | None = None,
) -> Iterator[FileResult]:
    """What a detector finds in many files, in their order; see :func:`detect_picture`.

    A file that cannot be read gives a ``Found`` with an error and does not stop the rest. ``workers`` as in
    :func:`in_order`.
    """
    wanted = InferenceOptions.for_detector(detector, confidence, iou, classes, size)
    return map_ordered(paths, lambda path: detect_file(path, detector, wanted), workers=workers)


def detect_file(path: Path, detector: AnyDetector, options: "InferenceOptions") -> FileResult:
    """What a detector finds in one file, or why nothing can be found."""
    try:
        pixels = read_image(path).pixels
    except ChromaboxError as error:
        return FileResult(path, error=str(error))
    return FileResult(path, pixels, run_detector(pixels, detector, options))


@dataclass(frozen=True)
class InferenceOptions:
    """What is looked for, checked: thresholds, class numbers (None: all), side of the square."""

    confidence: float
    iou: float
    class_ids: Int64[np.ndarray, " wanted"] | None
    size: int

    @classmethod
    def for_detector(
        cls,
        detector: AnyDetector,
        confidence: float,
        iou: float,
        classes: Sequence[str | int] | None,
        size: int | None,
    ) -> "InferenceOptions":
        """UsageError for values out of range, unknown classes and sizes that the net cannot take."""
        trained = unwrap_detector(detector)
        for name, value in (("confidence", confidence), ("iou", iou)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}: give a number from 0 to 1")
        side = trained.size if size is None else size
        multiple = trained.architecture.max_stride
        if side < multiple or side % multiple:
            raise UsageError(f"size is {side}: {trained.architecture.name} needs a multiple of {multiple}")
        numbers = None if classes is None else np.array([_resolve_class(one, trained) for one in classes], np.int64)
        return cls(confidence, iou, numbers, side)


def unwrap_detector(detector: AnyDetector) -> Detector:
    """The detector as it was loaded."""
    return detector.detector if isinstance(detector, OptimizedDetector) else detector


def _postprocess(
    boxes: Float32[np.ndarray, "found 4"],
    scores: Float32[np.ndarray, " found"],
    class_ids: Int64[np.ndarray, " found"],
    letterbox: Letterbox,
    class_names: tuple[str, ...],
    options: InferenceOptions,
) -> Detections:
    if options.class_ids is not None:
        own = np.isin(class_ids, options.class_ids)
        boxes, scores, class_ids = boxes[own], scores[own], class_ids[own]
    kept = nms(boxes, scores, class_ids, options.iou)
    height, width = letterbox.image_size
    upright = np.clip(letterbox.invert_boxes(boxes[kept].astype(np.float64)), 0, [width, height, width, height])
    # A box that lies wholly in the grey has nothing left.
    inside = box_area(upright) > 0
    kept, upright = kept[inside], upright[inside]
    return Detections(
        xyxy=upright.astype(np.float32),
        confidence=scores[kept],
        class_id=class_ids[kept],
        data={"class_name": np.array(class_names, dtype=str)[class_ids[kept]]},
    )


def _resolve_class(name_or_id: str | int, detector: Detector) -> int:
    """The number of a class given by its name (capitals count as small letters) or its number."""
    names = [name.lower() for name in detector.classes]
    text = str(name_or_id).lower()
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    some = ", ".join(detector.classes[:5]) + (", …" if len(names) > 5 else "")
    raise UsageError(
        f"classes: {name_or_id} is none of the detector's {len(names)} classes ({some}); give names or numbers"
    )
