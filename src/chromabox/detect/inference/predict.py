"""Object detection in images: letterboxing, model, decoding, and non-maximum suppression."""

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

#: A detector as loaded, or optimised for inference.
AnyDetector = Detector | OptimizedDetector


@dataclass(frozen=True)
class FileResult:
    """Result of one file: pixels and detections, or the reason why it could not be read."""

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
    """Detect objects in an image.

    Args:
        pixels: upright RGB image [height, width, 3] of uint8 or uint16.
        detector: as loaded, or optimised for inference.
        confidence: score threshold in [0, 1]. Each class of a box with a higher score is one detection, so that a box
            can be detected as several classes.
        iou: IoU threshold of non-maximum suppression in [0, 1]. Suppression is done for each class separately.
        classes: names or indices of the classes to detect; None for all.
        size: side length of the square network input in pixels, a multiple of the model's largest stride; None for the
            detector's default.

    Returns:
        Boxes in pixels of the image, clipped to it (boxes completely outside are removed), in decreasing order of
        score; ``data["class_name"]`` contains the names.

    Raise UsageError for values out of range and unknown classes.
    """
    return run_detector(pixels, detector, InferenceOptions.for_detector(detector, confidence, iou, classes, size))


@torch.inference_mode()
def run_detector(pixels: Pixels, detector: AnyDetector, options: "InferenceOptions") -> Detections:
    """Detect objects as :func:`detect_image`, with options that have already been checked."""
    loaded = unwrap_detector(detector)
    letterbox = letterbox_for(pixels.shape[:2], options.size, loaded.variant)
    batch = torch.from_numpy(letterbox.apply_image(pixels))[None]
    if isinstance(detector, OptimizedDetector):
        outputs = detector.forward(batch)
    else:
        outputs = loaded.model(batch.to(next(loaded.model.parameters()).device))
    ((boxes, scores, class_ids),) = decode_candidates(
        outputs, loaded.architecture, loaded.variant, options.size, options.confidence
    )
    return _postprocess(
        boxes.cpu().numpy(), scores.cpu().numpy(), class_ids.cpu().numpy(), letterbox, loaded.classes, options
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
    """Detect objects in many files and yield the results in the order of the files; see :func:`detect_image`.

    A file that cannot be read yields a :class:`FileResult` with an error, and the others are still processed. For
    ``workers``, see :func:`map_ordered`. Raise UsageError for invalid options before the first file is read.
    """
    options = InferenceOptions.for_detector(detector, confidence, iou, classes, size)
    return map_ordered(paths, lambda path: detect_file(path, detector, options), workers=workers)


def detect_file(path: Path, detector: AnyDetector, options: "InferenceOptions") -> FileResult:
    """Detect objects in one file; return the detections, or the error if the file cannot be read."""
    try:
        pixels = read_image(path).pixels
    except ChromaboxError as error:
        return FileResult(path, error=str(error))
    return FileResult(path, pixels, run_detector(pixels, detector, options))


@dataclass(frozen=True)
class InferenceOptions:
    """Checked options: thresholds, class indices (None: all classes), and side length of the input in pixels."""

    confidence: float
    iou: float
    class_ids: Int64[np.ndarray, " classes"] | None
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
        """Check the options of :func:`detect_image`. Raise UsageError for an invalid value."""
        loaded = unwrap_detector(detector)
        for name, value in (("confidence", confidence), ("iou", iou)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}: expected 0 to 1")
        size = loaded.size if size is None else size
        multiple = loaded.architecture.max_stride
        if size < multiple or size % multiple:
            raise UsageError(f"size is {size}: expected a multiple of {multiple} for {loaded.architecture.name}")
        class_ids = None if classes is None else np.array([_resolve_class(each, loaded) for each in classes], np.int64)
        return cls(confidence, iou, class_ids, size)


def unwrap_detector(detector: AnyDetector) -> Detector:
    """Return the detector as loaded."""
    return detector.detector if isinstance(detector, OptimizedDetector) else detector


def _postprocess(
    boxes: Float32[np.ndarray, "candidates 4"],
    scores: Float32[np.ndarray, " candidates"],
    class_ids: Int64[np.ndarray, " candidates"],
    letterbox: Letterbox,
    class_names: tuple[str, ...],
    options: InferenceOptions,
) -> Detections:
    if options.class_ids is not None:
        selected = np.isin(class_ids, options.class_ids)
        boxes, scores, class_ids = boxes[selected], scores[selected], class_ids[selected]
    kept = nms(boxes, scores, class_ids, options.iou)
    height, width = letterbox.image_size
    image_boxes = np.clip(letterbox.invert_boxes(boxes[kept].astype(np.float64)), 0, [width, height, width, height])
    # A box inside the padding of the letterbox is empty after clipping.
    is_inside = box_area(image_boxes) > 0
    kept, image_boxes = kept[is_inside], image_boxes[is_inside]
    return Detections(
        xyxy=image_boxes.astype(np.float32),
        confidence=scores[kept],
        class_id=class_ids[kept],
        data={"class_name": np.array(class_names, dtype=str)[class_ids[kept]]},
    )


def _resolve_class(name_or_id: str | int, detector: Detector) -> int:
    """Return the index of a class given by its name (case-insensitive) or its index."""
    names = [name.lower() for name in detector.classes]
    text = str(name_or_id).lower()
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    examples = ", ".join(detector.classes[:5]) + (", …" if len(names) > 5 else "")
    raise UsageError(
        f"classes: {name_or_id} is not one of the detector's {len(names)} classes ({examples}); use names or indices"
    )
