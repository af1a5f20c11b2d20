"""Object detection in images: letterboxing, model, decoding, and non-maximum suppression."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64

from chromabox.detect.boxes import Letterbox, Pixels, box_area, letterbox_for, nms
from chromabox.detect.detections import Detections
from chromabox.detect.weights.onnx_model import DetectorModel, check_size_value
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import read_image
from chromabox.runtime.parallel import map_ordered


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
        """Return checked options for a detector; see :func:`detect_image`. Raise UsageError for an invalid value."""
        for name, value in (("confidence", confidence), ("iou", iou)):
            if not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}: expected a number from 0 to 1")
        check_size_value(size)
        size = detector.size if size is None else size
        detector.check_size(size)
        if not (classes is None or isinstance(classes, Iterable)):
            raise UsageError(f"classes is {classes!r}: expected a list of names or indices of classes")
        if classes is None:
            return cls(confidence, iou, None, size)
        indices = {str(index): index for index in range(len(detector.classes))}
        indices |= {name.lower(): index for index, name in enumerate(detector.classes)}
        for name_or_id in classes:
            if str(name_or_id).lower() not in indices:
                examples = ", ".join(detector.classes[:5]) + (", …" if len(detector.classes) > 5 else "")
                raise UsageError(
                    f"classes: {name_or_id} is not a class of the detector; expected names or indices of its "
                    f"classes (number of classes: {len(detector.classes)}; names: {examples})"
                )
        class_ids = [indices[str(name_or_id).lower()] for name_or_id in classes]
        return cls(confidence, iou, np.array(class_ids, np.int64), size)


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
        confidence: score threshold in [0, 1]. A box produces a detection for each class whose score exceeds
            the threshold, so one box can be detected as several classes.
        iou: IoU threshold of non-maximum suppression in [0, 1]. Suppression is applied to each class separately.
        classes: names (case-insensitive) or indices of the classes to detect; None for all classes.
        size: side length of the square network input in pixels, a multiple of the model's largest stride; None for the
            detector's default.

    Returns:
        Boxes in image pixels in decreasing order of score. The boxes are clipped to the image. Boxes completely outside
        the image are removed.

    Raise UsageError for values out of range or unknown classes.
    """
    return run_detector(pixels, detector, InferenceOptions.for_detector(detector, confidence, iou, classes, size))


def run_detector(pixels: Pixels, detector: DetectorModel, options: InferenceOptions) -> Detections:
    """Detect objects as in :func:`detect_image`, with options that have already been checked."""
    letterbox = letterbox_for(pixels.shape[:2], options.size, detector.variant)
    (boxes,), (scores,) = detector.predict(letterbox.apply_image(pixels)[None])
    image_boxes, kept_scores, class_ids = postprocess(
        boxes, scores, letterbox, confidence=options.confidence, iou=options.iou, class_ids=options.class_ids
    )
    names = np.array(detector.classes, dtype=str)[class_ids]
    return Detections(image_boxes.astype(np.float32), kept_scores, class_ids, names)


def detect_files(
    paths: Iterable[Path], detector: DetectorModel, options: InferenceOptions, *, workers: int | None = None
) -> Iterator[Detections | str]:
    """Yield, for each file in the given order, the detections or, if it cannot be read, an error message.

    The files are processed by ``workers`` threads (None: one per core).
    """

    def process(path: Path) -> Detections | str:
        try:
            return run_detector(read_image(path).pixels, detector, options)
        except ChromaboxError as error:
            return str(error)

    return map_ordered(paths, process, workers=workers)


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

    ``boxes`` are left, top, right and bottom in pixels of the model's input. ``scores`` are in [0, 1]. The other
    arguments are described in :func:`detect_image`.

    Returns:
        Boxes clipped to the image, their scores and their class indices, in decreasing order of score. Boxes completely
        outside the image are removed.
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
