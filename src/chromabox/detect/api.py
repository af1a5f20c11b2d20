"""``chromabox.detect()``: object detection in a Pillow image, a NumPy array or an image file."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from chromabox.detect.detections import Detections
from chromabox.detect.inference.load import open_detector
from chromabox.detect.inference.predict import detect_image
from chromabox.detect.weights.onnx_model import OnnxDetector, check_size_value
from chromabox.errors import UsageError
from chromabox.io.arrays import to_pixels
from chromabox.io.images import check_not_url, read_image
from chromabox.runtime.session import cache_models

#: Default weights. They are downloaded on first use.
DEFAULT_WEIGHTS = "yolov3-tiny"


def detect(
    image: Any,
    *,
    weights: Any = DEFAULT_WEIGHTS,
    confidence: float = 0.5,
    iou: float = 0.45,
    classes: str | Sequence[str | int] | None = None,
    size: int | None = None,
) -> Detections:
    """Detect objects in an image.

    ::

        import chromabox
        from PIL import Image

        detections = chromabox.detect(Image.open("dog.jpg"))
        for box, name, score in zip(detections.xyxy, detections.class_names, detections.confidence):
            print(name, score, box)

    Args:
        image: a Pillow image of any mode (mode I: values 0 to 65535, mode F: 0 to 1); a NumPy array [height, width] or
            [height, width, 1] (grey), [height, width, 3] (RGB) or [height, width, 4] (RGB and alpha, which is ignored)
            of uint8, uint16, or float in [0, 1]; or the path of an image file. The EXIF orientation of a file is
            applied. Apply the orientation of a Pillow image with ``PIL.ImageOps.exif_transpose``.
        weights: the path of an exported .onnx file or of a run folder; a detector returned by ``open_detector``; or,
            if PyTorch is installed, the name ``"yolov3-tiny"`` or the path of a .safetensors, .weights, .onnx or .pt
            file, which is exported to the cache folder on first use. A detector given by name or path is cached until
            the file changes. Calls from several threads are safe.
        confidence: score threshold in [0, 1]. Every class of a box whose score exceeds the threshold gives a detection.
            One box can therefore be detected as several classes.
        iou: IoU threshold of non-maximum suppression in [0, 1]. Suppression is applied to each class separately.
        classes: names (case-insensitive) or indices of the classes to detect, or a single name; None for all classes.
        size: side length of the square network input in pixels; None for the detector's default. The size of an
            exported file is fixed. For other weights, the size must be a multiple of the model's largest stride.

    Returns:
        :class:`~chromabox.detect.detections.Detections` in decreasing order of score: ``xyxy``, float32 [detections,
        4], the left, top, right and bottom of the boxes in pixels of the image, clipped to the image; ``confidence``,
        float32 [detections], the scores in [0, 1]; ``class_id``, int64 [detections]; and ``class_names``, strings
        [detections].

    Raise UsageError for an unsupported image or an invalid option. Raise ChromaboxError, the base class of UsageError,
    if the image data cannot be decoded, the weights cannot be read, or a download fails.
    """
    if isinstance(image, str | PathLike):
        check_not_url(str(image))
        pixels = read_image(Path(image)).pixels
    else:
        pixels, _, _ = to_pixels(image)
    if not isinstance(weights, OnnxDetector | str | PathLike):
        raise UsageError(
            f"weights has type {type(weights).__name__}: expected a name, a path or a detector from open_detector"
        )
    check_size_value(size)  # The cache of models requires a hashable value.
    if isinstance(weights, OnnxDetector):
        detector = weights
    else:
        path = Path(weights)
        mtime_ns = path.stat().st_mtime_ns if path.exists() else 0
        detector = _load(weights if isinstance(weights, str) else path, mtime_ns, size)
    names = [classes] if isinstance(classes, str) else classes
    return detect_image(pixels, detector, confidence=confidence, iou=iou, classes=names, size=size)


@cache_models(maxsize=2)
def _load(weights: str | Path, mtime_ns: int, size: int | None) -> OnnxDetector:
    """Load a detector. ``mtime_ns`` is part of the cache key, so that a changed file is loaded again."""
    return open_detector(weights, size=size)
