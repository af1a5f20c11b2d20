"""Darknet's weights files, and the published YOLOv3-tiny weights: where they are to be had.

A darknet ``.weights`` file is a header (three int32: major, minor, revision; then the pictures seen, int64 from version
0.2 on) and float32 numbers in the order of the layers; a convolution with batch normalisation stores biases, scales,
running means, running variances and then its kernel [out, in, height, width]; one without stores biases and kernel.
Both wings begin here: the detector is these weights, and the photo colouriser starts from their first layers.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from chromabox.errors import ChromaboxError
from chromabox.files.onnx import read_onnx_convolutions
from chromabox.files.sources import Pinned, Progress, QuietProgress, Url, cache_folder, fetch
from chromabox.files.wheels import PipWheel
from chromabox.files.whole import write_whole

#: Trained on COCO by its authors (Redmon and Farhadi 2018), who put it into the public domain.
YOLOV3_TINY = Pinned(
    "yolov3-tiny.weights",
    sha256="dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
    size=35_434_956,
)
YOLOV3_TINY_SOURCES = (
    Url("https://pjreddie.com/media/files/yolov3-tiny.weights"),
    Url("https://data.pjreddie.com/files/yolov3-tiny.weights"),
)

#: The same net as it went through Keras to ONNX, for where only a package index is reached. Kernels and the heads'
#: biases are the original's to the bit. Its batch normalisation is folded into scale and offset with Keras' epsilon of
#: 1e-3, from which the original's means and variances cannot be had back: scores differ in the third decimal.
YOLOV3_TINY_ONNX = Pinned(
    "tiny-yolov3-11.onnx",
    sha256="f715cc2d99740d22d312777e20d9de2b2ecdc250155be8fd3752ce7e8b823521",
    size=35_511_756,
)
YOLOV3_TINY_ONNX_SOURCES = (
    PipWheel(
        "object-detect",
        "0.0.3",
        sha256="7ff23d2a3da4151c8f02f1498155236b54fcccf08a857a05ff46e3d667fa5200",
        size=38_986_011,
    ),
)

#: What darknet adds to the variance, as PyTorch's batch normalisation counts it.
EPSILON = 1e-5
#: In darknet's order; a convolution without batch normalisation has only the first and the last.
PARTS = ("bias", "weight", "mean", "variance", "kernel")


@dataclass(frozen=True)
class DarknetFile:
    """All numbers after the header in file order, the pictures seen in training, and the format's version."""

    numbers: Float32[np.ndarray, " numbers"]
    seen: int = 0
    version: tuple[int, int, int] = (0, 2, 0)


def fetch_yolov3_tiny(progress: Progress | None = None) -> Path:
    """The verified file in the cache; ChromaboxError where no source has it."""
    return fetch([YOLOV3_TINY], list(YOLOV3_TINY_SOURCES), cache_folder(), progress=progress or QuietProgress())[0]


def fetch_yolov3_tiny_onnx(progress: Progress | None = None) -> Path:
    """The ONNX copy, verified, in the cache; ChromaboxError where no source has it."""
    sources = list(YOLOV3_TINY_ONNX_SOURCES)
    return fetch([YOLOV3_TINY_ONNX], sources, cache_folder(), progress=progress or QuietProgress())[0]


def yolov3_tiny_file(progress: Progress | None = None) -> tuple[DarknetFile, Pinned]:
    """The published weights, from the original file or else from its ONNX copy, and which of the two it was.

    Raises ChromaboxError where neither is to be had.
    """
    try:
        return read_darknet_file(fetch_yolov3_tiny(progress)), YOLOV3_TINY
    except ChromaboxError as error:
        original = error
    try:
        layers = read_onnx_convolutions(fetch_yolov3_tiny_onnx(progress))
    except ChromaboxError as copy:
        raise ChromaboxError(f"{original}; nor is its ONNX copy to be had: {copy}") from copy
    return DarknetFile(as_darknet(layers, EPSILON)), YOLOV3_TINY_ONNX


def read_darknet_file(path: Path) -> DarknetFile:
    """Numbers and header. Raises ChromaboxError for a file that is not such a one."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be read ({error.strerror}); a darknet weights file is needed") from error
    header = struct.unpack("<3i", content[:12]) if len(content) >= 12 else None
    if header is None or not (0 <= header[0] <= 10 and 0 <= header[1] <= 100):
        raise ChromaboxError(f"{path}: not a darknet weights file (its header is not a version number)")
    # darknet's own rule: before version 0.2, and from major version 1000 on, the count of pictures has 32 bits.
    start = 20 if header[0] * 10 + header[1] >= 2 else 16
    if (len(content) - start) % 4 or len(content) <= start:
        raise ChromaboxError(f"{path}: cut short; {len(content)} bytes are not a header and whole float32 numbers")
    seen = int.from_bytes(content[12:start], "little", signed=True)
    numbers = np.frombuffer(content, "<f4", offset=start).astype(np.float32, copy=False)
    return DarknetFile(numbers, seen, header)


def write_darknet_file(path: Path, file: DarknetFile) -> None:
    """Write what :func:`read_darknet_file` reads, bit for bit; the folder must exist."""
    wide = file.version[0] * 10 + file.version[1] >= 2
    header = struct.pack("<3iq" if wide else "<3ii", *file.version, file.seen)
    with write_whole(path) as aside:
        aside.write_bytes(header + file.numbers.astype("<f4", copy=False).tobytes())


def as_darknet(layers: Iterable[dict[str, np.ndarray]], epsilon: float) -> Float32[np.ndarray, " numbers"]:
    """Layers as :func:`~chromabox.files.onnx.read_onnx_convolutions` gives them, in darknet's order.

    Their variances have an epsilon in them already; what is stored is what gives the same with ``epsilon`` added.
    """
    numbers = []
    for layer in layers:
        given = dict(layer)
        if "variance" in given:
            given["variance"] = (given["variance"].astype(np.float64) - epsilon).astype(np.float32)
        numbers += [given[name].ravel() for name in PARTS if name in given]
    return np.concatenate(numbers)


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
        for name in PARTS[:4]:
            layer[name], at = numbers[at : at + outputs], at + outputs
        size = outputs * inputs * side * side
        layer["kernel"], at = numbers[at : at + size].reshape(outputs, inputs, side, side), at + size
        layers.append(layer)
    return layers
