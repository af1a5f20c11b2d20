"""The numbers of the convolutions in an ONNX file, and what it says of itself, without the onnx package.

An ONNX file is a protobuf message: fields of a number, a wire type and a value, nested. Read here are the graph's
nodes (which convolution has which kernel, and which batch normalisation follows it) and its initialisers, and of those
only float32 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). Nothing is computed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chromabox.errors import ChromaboxError

# Field numbers of onnx.proto.
MODEL_GRAPH, GRAPH_NODE, GRAPH_INITIALISER = 7, 1, 5
MODEL_METADATA, ENTRY_KEY, ENTRY_VALUE = 14, 1, 2
NODE_INPUT, NODE_OUTPUT, NODE_OPERATION, NODE_ATTRIBUTE = 1, 2, 4, 5
ATTRIBUTE_NAME, ATTRIBUTE_FLOAT = 1, 2
TENSOR_DIMENSION, TENSOR_TYPE, TENSOR_FLOATS, TENSOR_NAME, TENSOR_RAW = 1, 2, 4, 8, 9
FLOAT32 = 1


@dataclass(frozen=True)
class Node:
    """One operation: what it does, what it reads and puts out by name, and its float attributes."""

    operation: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    floats: dict[str, float]


def read_onnx_convolutions(path: Path) -> list[dict[str, np.ndarray]]:
    """Every convolution, in the order of the numbers in their kernels' names.

    Returns:
        Of each a dictionary of float32 arrays: ``kernel`` [out, in, height, width], ``bias`` [out] and, where a batch
        normalisation follows, ``weight``, ``mean`` and ``variance`` [out], the variance with the file's own epsilon
        already added to it.

    Raises ChromaboxError for a file that cannot be read or is no such file.
    """
    content = _content(path)
    try:
        graph = next(value for field, value in _fields(content) if field == MODEL_GRAPH)
        nodes, tensors = _graph(_message(graph))
        layers = _convolutions(nodes, tensors)
    except (StopIteration, ValueError, KeyError, IndexError) as error:
        raise ChromaboxError(f"{path}: not an ONNX file of plain convolutions, or cut short ({error!r})") from error
    if not layers:
        raise ChromaboxError(f"{path}: holds no convolution; the ONNX file of a detector is needed")
    return layers


def read_onnx_metadata(path: Path) -> dict[str, str]:
    """The entries that whoever wrote the file put beside the graph; ChromaboxError as for the convolutions."""
    try:
        found = [_message(value) for field, value in _fields(_content(path)) if field == MODEL_METADATA]
        entries = [dict(_fields(entry)) for entry in found]
        return {_text(entry[ENTRY_KEY]): _text(entry.get(ENTRY_VALUE, memoryview(b""))) for entry in entries}
    except (ValueError, KeyError, IndexError) as error:
        raise ChromaboxError(f"{path}: not an ONNX file, or cut short ({error!r})") from error


def _content(path: Path) -> memoryview:
    try:
        return memoryview(path.read_bytes())
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be read ({error.strerror}); an ONNX file is needed") from error


def _convolutions(nodes: list[Node], tensors: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    norms = {node.inputs[0]: node for node in nodes if node.operation == "BatchNormalization"}
    found = {}
    for node in nodes:
        if node.operation != "Conv":
            continue
        kernel = tensors[node.inputs[1]]
        layer = {"kernel": kernel, "bias": np.zeros(len(kernel), np.float32)}
        if len(node.inputs) > 2:
            layer["bias"] = tensors[node.inputs[2]]
        norm = norms.get(node.outputs[0])
        if norm is not None:
            names = zip(("weight", "bias", "mean", "variance"), norm.inputs[1:], strict=True)
            layer |= {name: tensors[given] for name, given in names}
            layer["variance"] = layer["variance"] + np.float32(norm.floats.get("epsilon", 1e-5))
        found[node.inputs[1]] = layer
    return [found[name] for name in sorted(found, key=_by_numbers)]


def _by_numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def _graph(graph: memoryview) -> tuple[list[Node], dict[str, np.ndarray]]:
    nodes, tensors = [], {}
    for field, value in _fields(graph):
        if field == GRAPH_NODE:
            nodes.append(_node(_message(value)))
        elif field == GRAPH_INITIALISER:
            name, tensor = _tensor(_message(value))
            if tensor is not None:
                tensors[name] = tensor
    return nodes, tensors


def _node(message: memoryview) -> Node:
    inputs, outputs, operation, floats = [], [], "", {}
    for field, value in _fields(message):
        if field == NODE_INPUT:
            inputs.append(_text(value))
        elif field == NODE_OUTPUT:
            outputs.append(_text(value))
        elif field == NODE_OPERATION:
            operation = _text(value)
        elif field == NODE_ATTRIBUTE:
            attribute = dict(_fields(_message(value)))
            if ATTRIBUTE_FLOAT in attribute:
                number = np.frombuffer(_message(attribute[ATTRIBUTE_FLOAT]), "<f4")
                floats[_text(attribute[ATTRIBUTE_NAME])] = float(number[0])
    return Node(operation, tuple(inputs), tuple(outputs), floats)


def _tensor(message: memoryview) -> tuple[str, np.ndarray | None]:
    """Name and values of an initialiser; None for values that are not float32."""
    dimensions: list[int] = []
    name, kind, parts = "", 0, []
    for field, value in _fields(message):
        if field == TENSOR_DIMENSION:
            dimensions += [value] if isinstance(value, int) else _packed(value)
        elif field == TENSOR_TYPE:
            kind = int(value) if isinstance(value, int) else 0
        elif field == TENSOR_NAME:
            name = _text(value)
        elif field in (TENSOR_FLOATS, TENSOR_RAW):
            parts.append(bytes(_message(value)))
    if kind != FLOAT32:
        return name, None
    return name, np.frombuffer(b"".join(parts), "<f4").astype(np.float32).reshape(dimensions)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a protobuf message: integers for wire type 0, bytes for all others. ValueError for no message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            number, at = _varint(message, at)
            yield key >> 3, number
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(message):
            raise ValueError("a field is cut short")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at ``at``, seven bits a byte from the lowest, and where the next thing begins."""
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _packed(message: memoryview) -> list[int]:
    numbers, at = [], 0
    while at < len(message):
        number, at = _varint(message, at)
        numbers.append(number)
    return numbers


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes are needed")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode()
