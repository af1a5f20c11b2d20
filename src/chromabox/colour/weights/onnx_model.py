"""Exported colourisation models, run by ONNX Runtime and called like the PyTorch models they were exported from.

ONNX files are untrusted input. A file is rejected before ONNX Runtime opens it unless it has the metadata that
export.py writes, contains all its tensors and uses only the operators in ``ALLOWED_OPS``. These do not loop, branch,
draw random numbers or make large tensors from small ones. Libraries with custom operators are not loaded.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chromabox.errors import ChromaboxError, UsageError
from chromabox.runtime.session import one_line, open_session, require_onnx

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto
    from onnxruntime import InferenceSession

ONNX_FORMAT = "chromabox-onnx-1"
ONNX_INPUT, ONNX_OUTPUT = "grey", "scores"
#: Maximum size of a file in bytes: twelve times the size of the largest model of Chromabox.
MAX_MODEL_BYTES = 256 << 20
#: Operators of the default ONNX domain that a model may contain: arithmetic, layers, and changes of shape.
ARITHMETIC_OPS = frozenset(
    {
        "Abs",
        "Add",
        "Cast",
        "Clip",
        "Div",
        "Equal",
        "Exp",
        "Greater",
        "Less",
        "Log",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Pow",
        "Sqrt",
        "Sub",
        "Where",
    }
)
LAYER_OPS = frozenset(
    {
        "AveragePool",
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "Gemm",
        "GlobalAveragePool",
        "LeakyRelu",
        "LogSoftmax",
        "MatMul",
        "MaxPool",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Resize",
        "Softmax",
    }
)
SHAPE_OPS = frozenset(
    {
        "Concat",
        "Constant",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Shape",
        "Slice",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
ALLOWED_OPS = ARITHMETIC_OPS | LAYER_OPS | SHAPE_OPS
#: Maximum size divisor: height and width of the input must be multiples of the size divisor.
MAX_SIZE_DIVISOR = 256


class OnnxModel(nn.Module):
    """A colourisation model that ONNX Runtime runs on the CPU.

    It uses as many threads as PyTorch had when the file was opened. It has no parameters and cannot be trained.
    """

    def __init__(
        self, path: Path, session: "InferenceSession", size_divisor: int, stride: int, num_classes: int
    ) -> None:
        super().__init__()
        self.path, self.session = path, session
        self.size_divisor, self.stride, self.num_classes = size_divisor, stride, num_classes

    def train(self, mode: bool = True) -> "OnnxModel":
        """Set evaluation mode. Raise UsageError for training mode."""
        if mode:
            raise UsageError(
                f"{self.path}: an ONNX file cannot be trained; use the checkpoint from which it was exported"
            )
        super().train(False)
        return self

    def forward(
        self, grey: Float[Tensor, "batch 1 height width"]
    ) -> Float[Tensor, "batch classes small_height small_width"]:
        """Return the logits. Raise ChromaboxError if the file cannot be run or its output has another shape."""
        batch, _, height, width = grey.shape
        try:
            logits = self.session.run([ONNX_OUTPUT], {ONNX_INPUT: grey.detach().float().cpu().contiguous().numpy()})[0]
        except Exception as error:  # onnxruntime's exceptions have no other common base class.
            raise ChromaboxError(f"{self.path}: onnxruntime cannot run the model ({one_line(error)})") from error
        expected = (batch, self.num_classes, height // self.stride, width // self.stride)
        if logits.shape != expected:
            raise ChromaboxError(
                f"{self.path}: the output has the shape {list(logits.shape)}; expected {list(expected)}"
            )
        return torch.from_numpy(logits).to(grey.device)


def open_onnx(path: Path) -> tuple[OnnxModel, dict[str, Any]]:
    """Open a file that :func:`~chromabox.colour.weights.export.export_onnx` wrote; return the model and its metadata.

    The metadata has the keys of a checkpoint. Raise ChromaboxError for any other file, and UsageError if onnx or
    onnxruntime is not installed.
    """
    model = _read_onnx(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    try:
        if properties.get("format") != ONNX_FORMAT:
            raise ChromaboxError(
                f"{path}: not an ONNX file of chromabox (expected the format {ONNX_FORMAT!r} in its metadata)"
            )
        class_key = "bins" if "bins" in properties else "palette"
        colours = json.loads(properties[class_key])
        metadata = {**json.loads(properties["history"]), "net": properties["net"], class_key: colours}
        num_classes = len(colours["centres" if class_key == "bins" else "colours"])
        size_divisor, stride = (int(properties[name]) for name in ("multiple", "stride"))
        if not (1 <= stride <= size_divisor <= MAX_SIZE_DIVISOR and size_divisor % stride == 0):
            raise ValueError(f"multiple is {size_divisor} and stride {stride}")
    except (KeyError, TypeError, ValueError) as error:
        raise ChromaboxError(f"{path}: the metadata is damaged ({error}); export the model again") from error
    _check_graph(path, model)
    session = open_session(path, model.SerializeToString(), [ONNX_INPUT], [ONNX_OUTPUT])
    return OnnxModel(path, session, size_divisor, stride, num_classes), metadata


def _read_onnx(path: Path) -> "ModelProto":
    onnx, _ = require_onnx()
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise ChromaboxError(
                f"{path}: has {size:,} bytes; expected a file written by chromabox export, "
                f"of at most {MAX_MODEL_BYTES:,} bytes"
            )
        # This does not read tensors from external files; _check_graph rejects models that have any.
        return onnx.load_model_from_string(path.read_bytes())
    except ChromaboxError:
        raise
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be read ({error.strerror}); expected an ONNX file") from error
    except Exception as error:  # An exception of protobuf, which is not imported here.
        raise ChromaboxError(
            f"{path}: not an ONNX file, or truncated; expected one written by chromabox export"
        ) from error


def _check_graph(path: Path, model: "ModelProto") -> None:
    """Raise ChromaboxError for external tensors, functions, nested graphs and operators not in ``ALLOWED_OPS``."""
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    op_types = {f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph.node}
    tensors = [*model.graph.initializer, *(attribute.t for attribute in attributes)]
    tensors += [tensor for attribute in attributes for tensor in attribute.tensors]
    problem = None
    if any(_has_external_data(tensor) for tensor in tensors):
        problem = "stores tensors in external files"
    elif model.functions or model.training_info or model.graph.sparse_initializer:
        problem = "contains functions, training information or sparse tensors"
    elif any(attribute.HasField("g") or attribute.graphs for attribute in attributes):
        problem = "contains nested graphs"
    elif op_types - ALLOWED_OPS:
        problem = f"uses the operators {', '.join(sorted(op_types - ALLOWED_OPS)[:5])}"
    if problem:
        raise ChromaboxError(f"{path}: {problem}, which is not allowed; expected a file written by chromabox export")


def _has_external_data(tensor: "TensorProto") -> bool:
    return bool(tensor.data_location or tensor.external_data)
