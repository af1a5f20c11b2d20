"""The published YOLOv3-tiny weights: where they are to be had, and their numbers as darknet wrote them.

A darknet ``.weights`` file is a header (three int32: major, minor, revision; then the pictures seen, int64 from version
0.2 on) and float32 numbers in the order of the layers; a convolution with batch normalisation stores biases, scales,
running means, running variances and then its kernel [out, in, height, width]. Both wings begin here: the detector is
these weights, and the photo colouriser starts from their first layers.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from chromabox.errors import ChromaboxError
from chromabox.files.sources import Pinned, Progress, QuietProgress, Url, cache_folder, fetch

#: Trained on COCO by its authors (Redmon and Farhadi 2018), who put it into the public domain.
YOLOV3_TINY = Pinned(
    "yolov3-tiny.weights",
    sha256="dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
    size=35_434_956,
)
YOLOV3_TINY_SOURCES = (Url("https://pjreddie.com/media/files/yolov3-tiny.weights"),)


def fetch_yolov3_tiny(progress: Progress | None = None) -> Path:
    """The verified file in the cache; ChromaboxError where no source has it."""
    return fetch([YOLOV3_TINY], list(YOLOV3_TINY_SOURCES), cache_folder(), progress=progress or QuietProgress())[0]


def read_darknet(path: Path) -> Float32[np.ndarray, " numbers"]:
    """All numbers after the header, in file order. Raises ChromaboxError for a file that is not such a one."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be read ({error.strerror}); a darknet weights file is needed") from error
    header = np.frombuffer(content[:12], "<i4") if len(content) >= 12 else None
    if header is None or not (0 <= header[0] <= 10 and 0 <= header[1] <= 100):
        raise ChromaboxError(f"{path}: not a darknet weights file (its header is not a version number)")
    # darknet's own rule: before version 0.2, and from major version 1000 on, the count of pictures has 32 bits.
    start = 20 if header[0] * 10 + header[1] >= 2 else 16
    if (len(content) - start) % 4 or len(content) <= start:
        raise ChromaboxError(f"{path}: cut short; {len(content)} bytes are not a header and whole float32 numbers")
    return np.frombuffer(content, "<f4", offset=start).astype(np.float32, copy=False)


def convolutions(
    numbers: Float32[np.ndarray, " numbers"], shapes: Sequence[tuple[int, int, int]]
) -> list[dict[str, np.ndarray]]:
    """The first batch-normalised convolutions: ``bias``, ``weight``, ``mean``, ``variance`` and ``kernel`` of each.

    Args:
        shapes: of each layer outputs, inputs, and the side of its kernel.

    Raises ChromaboxError if there are fewer numbers than that.
    """
    needed = sum(outputs * (4 + inputs * side * side) for outputs, inputs, side in shapes)
    if needed > len(numbers):
        raise ChromaboxError(f"darknet weights: {len(numbers)} numbers; these layers need {needed}")
    layers, at = [], 0
    for outputs, inputs, side in shapes:
        layer: dict[str, np.ndarray] = {}
        for name in ("bias", "weight", "mean", "variance"):
            layer[name], at = numbers[at : at + outputs], at + outputs
        size = outputs * inputs * side * side
        layer["kernel"], at = numbers[at : at + size].reshape(outputs, inputs, side, side), at + size
        layers.append(layer)
    return layers
