"""Object detection in images: letterboxing, model, decoding, and non-maximum suppression."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64

from chromabox.detect.boxes import Letterbox, Pixels, box_area, letterbox_for, nms
from chromabox.detect.detections import Detections
from chromabox.detect.weights.onnx_model import DetectorModel
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import read_image
from chromabox.runtime.parallel import map_ordered


@dataclass(frozen=True)
class FileResult:
    """Result of one file: detections, or the reason why it could not be read."""

    path: Path
    detections: Detections | None = None
    error: str | None = None


def detect_image(
    pixels: Pixels,
    detector: DetectorModel,
    *,
    confidence: float = 0.5,
    iou: float = 0.45,
    classes: Sequence[str | int] | None = None,
    size: int | None = None,
) -> Detections:
    """Detect objects in an image.

    Args:
        pixels: upright RGB image [height, width, 3], uint8 or uint16.
        detector: the detector.
        confidence: score threshold in [0, 1]. Each class of a box with a higher score is one detection, so that a box
            can be detected as several classes.
        iou: IoU threshold of non-maximum suppression in [0, 1]. It is applied to each class separately.
        classes: names or indices of the classes to detect; None for all.
        size: side length of the square network input in pixels, a multiple of the model's largest stride; None for the
            detector's default.

    Returns:
        Boxes in image pixels, clipped to the image (boxes completely outside are removed), in decreasing order of
        score.

    Raise UsageError for values out of range or unknown classes.
    """
    return run_detector(pixels, detector, InferenceOptions.for_detector(detector, confidence, iou, classes, size))


def run_detector(pixels: Pixels, detector: DetectorModel, options: "InferenceOptions") -> Detections:
    """Detect objects as in :func:`detect_image`, with options that have already been checked."""
    letterbox = letterbox_for(pixels.shape[:2], options.size, detector.variant)
    (boxes,), (scores,) = detector.predict(letterbox.apply_image(pixels)[None])
    image_boxes, kept_scores, class_ids = postprocess(
        boxes, scores, letterbox, confidence=options.confidence, iou=options.iou, class_ids=options.class_ids
    )
    names = np.array(detector.classes, dtype=str)[class_ids]
    return Detections(image_boxes.astype(np.float32), kept_scores, class_ids, names)


def postprocess(
    boxes: Float32[np.ndarray, "boxes 4"],
    scores: Float32[np.ndarray, "boxes classes"],
    letterbox: Letterbox,
    *,
    confidence: float,
    iou: float,
    class_ids: Int64[np.ndarray, " selected"] | None = None,
) -> tuple[Float64[np.ndarray, "kept 4"], Float32[np.ndarray, " kept"], Int64[np.ndarray, " kept"]]:
    """Apply the confidence threshold and non-maximum suppression, and convert boxes to image pixels.

    Args:
        boxes: left, top, right, bottom in pixels of the model's input.
        scores: scores in [0, 1] of every box for every class.
        letterbox: placement of the image in the input.
        confidence: score threshold; every class with a higher score is one detection.
        iou: IoU threshold of non-maximum suppression, which is applied to each class separately.
        class_ids: classes to keep; None for all.

    Returns:
        Boxes clipped to the image (boxes completely outside are removed), their scores and their class indices, in
        decreasing order of score.
    """
    box_indices, classes = np.nonzero(scores > confidence)
    if class_ids is not None:
        selected = np.isin(classes, class_ids)
        box_indices, classes = box_indices[selected], classes[selected]
    candidates, candidate_scores = boxes[box_indices], scores[box_indices, classes]
    kept = nms(candidates, candidate_scores, classes, iou)
    height, width = letterbox.image_size
    image_boxes = np.clip(letterbox.invert_boxes(candidates[kept].astype(np.float64)), 0, [width, height] * 2)
    # A box entirely inside the letterbox padding is empty after clipping.
    is_inside = box_area(image_boxes) > 0
    return image_boxes[is_inside], candidate_scores[kept[is_inside]], classes[kept[is_inside]]


def detect_files(
    paths: Iterable[Path],
    detector: DetectorModel,
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

    def process(path: Path) -> FileResult:
        try:
            pixels = read_image(path).pixels
        except ChromaboxError as error:
            return FileResult(path, error=str(error))
        return FileResult(path, run_detector(pixels, detector, options))

    return map_ordered(paths, process, workers=workers)


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
        detector: DetectorModel,
        confidence: float,
        iou: float,
        classes: Sequence[str | int] | None,
        size: int | None,
    ) -> "InferenceOptions":
        """Check the options of :func:`detect_image`; the case of class names is ignored.

        Raise UsageError for an invalid value.
        """
        for name, value in (("confidence", confidence), ("iou", iou)):
            if not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}: expected 0 to 1")
        size = detector.size if size is None else size
        detector.check_size(size)
        if classes is None:
            return cls(confidence, iou, None, size)
        names = [name.lower() for name in detector.classes]
        class_ids = []
        for name_or_id in classes:
            text = str(name_or_id).lower()
            if text not in names and not (text.isdecimal() and int(text) < len(names)):
                examples = ", ".join(detector.classes[:5]) + (", …" if len(names) > 5 else "")
                raise UsageError(
                    f"classes: {name_or_id} is not one of the detector's {len(names)} classes ({examples}); use names "
                    "or indices"
                )
            class_ids.append(names.index(text) if text in names else int(text))
        return cls(confidence, iou, np.array(class_ids, np.int64), size)
