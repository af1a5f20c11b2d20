"""Detection from Python in one call: a Pillow picture, a numpy array or a file in, supervision's Detections out."""

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
from chromabox.detect.inference.predict import detect_image
from chromabox.detect.inference.runtime import OptimizedDetector, optimize_for_inference
from chromabox.detect.weights.load import Detector, load_detector
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import from_float, read_image

#: What is used where nothing else is named; it is fetched at the first call.
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
    """What is in the picture, and where.

    ::

        import chromabox
        from PIL import Image

        found = chromabox.detect(Image.open("dog.jpg"))
        for box, name, score in zip(found.xyxy, found.data["class_name"], found.confidence):
            print(name, score, box)

    Args:
        image: a Pillow picture of any mode; a numpy array [height, width], [height, width, 1], [height, width, 3] or
            [height, width, 4] of uint8, uint16, or floats in [0, 1], RGB; or the path of a picture file. A Pillow
            picture is taken as it stands: a photograph lying on its side is better turned before
            (``PIL.ImageOps.exif_transpose``); a file is turned upright.
        weights: a name, a file, or what ``load_detector`` or ``make_ready`` returned. One named by its place is kept
            for further calls, until its file changes; several threads may call.
        confidence, iou, classes, size: as for :func:`chromabox.detect.inference.predict.detect_picture`.

    Returns:
        Boxes in pixels of the picture (``xyxy``), ``confidence``, ``class_id`` and ``data["class_name"]``, the highest
        score first. Raises UsageError for what is no such picture or option, ChromaboxError for unreadable files.
    """
    pixels = _to_pixels(image)
    wanted = [classes] if isinstance(classes, str) else classes
    return detect_image(pixels, _resolve_detector(weights), confidence=confidence, iou=iou, classes=wanted, size=size)


def _to_pixels(image: Any) -> Pixels:
    if isinstance(image, str | PathLike):
        return read_image(Path(image)).pixels
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            values = np.asarray(image)
            return _array_to_pixels(values.astype(np.uint16) if image.mode.startswith("I") else values)
        try:
            return _array_to_pixels(np.asarray(image.convert("RGB")))
        except (OSError, SyntaxError) as error:
            raise ChromaboxError(f"image cannot be decoded ({error}); a whole, undamaged picture is needed") from error
    if isinstance(image, np.ndarray):
        return _array_to_pixels(image)
    raise UsageError(f"image is a {type(image).__name__}: give a PIL.Image, a numpy array or the path of a picture")


def _array_to_pixels(array: np.ndarray) -> Pixels:
    shape = " × ".join(map(str, array.shape)) or "()"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise UsageError(f"image has the shape {shape}: height × width, alone or with 1, 3 or 4 channels, is right")
    if array.dtype.kind == "f":
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):
            raise UsageError(f"image has values {low:g} to {high:g}: 0 to 1 is right for {array.dtype}")
        array = from_float(array, 16)
    elif array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise UsageError(f"image is of {array.dtype}: uint8, uint16 or floats in [0, 1] are right")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    grey = array.ndim == 2 or array.shape[2] == 1
    return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2) if grey else array[..., :3]


_load_lock = Lock()


def _resolve_detector(weights: Any) -> Detector | OptimizedDetector:
    """The detector given, or the one at a place, which is read and made ready only once."""
    if isinstance(weights, Detector | OptimizedDetector):
        return weights
    if not isinstance(weights, str | PathLike):
        kind = type(weights).__name__
        raise UsageError(f"weights are a {kind}: give a name, a file or what load_detector returns")
    path = Path(weights)
    with _load_lock:  # so that two threads that ask at the same time wait for one reading
        return _load_cached(
            weights if isinstance(weights, str) else path, path.stat().st_mtime_ns if path.exists() else 0
        )


@lru_cache(maxsize=2)
def _load_cached(weights: str | Path, mtime_ns: int) -> OptimizedDetector:
    """The detector at ``place`` as it was at the time ``changed``."""
    return optimize_for_inference(load_detector(weights))
