"""``chromabox.detect()``: object detection in a Pillow image, a NumPy array or an image file."""

import os
from collections.abc import Sequence
from functools import lru_cache
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from chromabox.detect.boxes import Pixels
from chromabox.detect.detections import Detections
from chromabox.detect.inference.load import open_detector
from chromabox.detect.inference.predict import detect_image
from chromabox.detect.weights.onnx_model import OnnxDetector
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import from_float, read_image

#: Default weights; downloaded on first use.
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
        image: a Pillow image of any mode (I: values 0 to 65535, F: 0 to 1); a NumPy array [height, width] or
            [height, width, 1] (grey), [height, width, 3] (RGB) or [height, width, 4] (RGB and alpha, which is ignored)
            of uint8, uint16, or float in [0, 1]; or the path of an image file. The EXIF orientation is applied to files
            only; apply it to a Pillow image with ``PIL.ImageOps.exif_transpose``.
        weights: the path of an exported .onnx file or of a run folder; a detector returned by ``open_detector``; or,
            if PyTorch is installed, the name ``"yolov3-tiny"`` or the path of a .safetensors, .weights, .onnx or .pt
            file, which is exported to the cache folder on first use. A detector given by name or path is cached until
            the file changes. Calls from several threads are safe.
        confidence: score threshold in [0, 1]. Each class of a box with a higher score is a separate detection; one box
            can therefore be detected as several classes.
        iou: IoU threshold of non-maximum suppression in [0, 1]. Suppression is applied to each class separately.
        classes: names (case-insensitive) or indices of the classes to detect, or a single name; None for all.
        size: side length of the square network input in pixels; None for the detector's default. The size of an
            exported file is fixed; for other weights, it must be a multiple of the model's largest stride.

    Returns:
        :class:`~chromabox.detect.detections.Detections` in decreasing order of score: ``xyxy``, float32 [detections,
        4], corners (left, top, right, bottom) of the boxes in pixels of the image, clipped to it; ``confidence``,
        float32 [detections], the scores in [0, 1]; ``class_id``, int64 [detections]; and ``class_names``, strings
        [detections].

    Raise UsageError for an unsupported image or an invalid option. Raise ChromaboxError, the base class of UsageError,
    if the image data cannot be decoded, the weights cannot be read, or a download fails.
    """
    pixels = _to_pixels(image)
    names = [classes] if isinstance(classes, str) else classes
    detector = _resolve_detector(weights, size)
    return detect_image(pixels, detector, confidence=confidence, iou=iou, classes=names, size=size)


def _to_pixels(image: Any) -> Pixels:
    if isinstance(image, str | PathLike):
        return read_image(Path(image)).pixels
    if isinstance(image, Image.Image):
        try:
            array = np.asarray(image if image.mode.startswith(("I", "F")) else image.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise ChromaboxError(f"image cannot be decoded: the data is truncated or corrupt ({error})") from error
        array = array.astype(np.uint16) if image.mode.startswith("I") else array
    elif isinstance(image, np.ndarray):
        array = image
    else:
        raise UsageError(
            f"image has type {type(image).__name__}: expected a PIL.Image, a NumPy array or the path of an image file"
        )
    shape = " × ".join(map(str, array.shape)) or "()"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise UsageError(f"image has shape {shape}: expected height × width, or height × width × 1, 3 or 4 channels")
    if array.dtype.kind == "f":
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):
            raise UsageError(f"image has values {low:g} to {high:g}: expected 0 to 1 for {array.dtype}")
        array = from_float(array, 16)
    elif array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise UsageError(f"image has dtype {array.dtype}: expected uint8, uint16, or float in [0, 1]")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    is_grey = array.ndim == 2 or array.shape[2] == 1
    return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2) if is_grey else array[..., :3]


_load_lock = Lock()


def _reset_after_fork() -> None:
    """Discard loaded detectors in a forked process: the threads of their sessions exist only in the parent."""
    global _load_lock
    _load_lock = Lock()
    _load_cached.cache_clear()


def _resolve_detector(weights: Any, size: int | None) -> OnnxDetector:
    """Return the given detector, or the one with the given name or path, which is loaded once per file version."""
    if isinstance(weights, OnnxDetector):
        return weights
    if not isinstance(weights, str | PathLike):
        raise UsageError(
            f"weights has type {type(weights).__name__}: expected a name, a file or a detector from open_detector"
        )
    path = Path(weights)
    with _load_lock:  # Concurrent first calls load the file only once.
        return _load_cached(path, size, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=2)
def _load_cached(path: Path, size: int | None, mtime_ns: int) -> OnnxDetector:
    """Load a detector; ``mtime_ns`` is part of the cache key: a changed file is loaded again."""
    return open_detector(path, size=size)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
