"""A net from an ONNX file, run by onnxruntime: called like the PyTorch net from which it was exported.

A file from a stranger is data. Before onnxruntime sees it, it is refused unless it says what export.py writes into it,
holds all its numbers itself, and consists of operators that compute: nothing that loops, branches, draws lots, or makes
large tensors out of small ones. No library of other operators is ever loaded.
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
#: Twelve times what the largest net of ours takes.
MAX_MODEL_BYTES = 256 << 20
#: Operators of ONNX's own domain that nets may consist of.
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
#: What a net may ask of a picture's sides.
MAX_SIZE_DIVISOR = 256


class OnnxModel(nn.Module):
    """A net that onnxruntime runs on the CPU with as many threads as PyTorch has when the file is opened.

    It has no parameters of its own: UsageError where it is to be trained.
    """

    def __init__(
        self, path: Path, session: "InferenceSession", size_divisor: int, stride: int, num_classes: int
    ) -> None:
        super().__init__()
        self.path, self.session = path, session
        self.size_divisor, self.stride, self.num_classes = size_divisor, stride, num_classes

    def train(self, mode: bool = True) -> "OnnxModel":
        """Evaluation is all there is."""
        if mode:
            raise UsageError(f"{self.path}: an ONNX file cannot be trained; give the checkpoint it was exported from")
        super().train(False)
        return self

    def forward(
        self, grey: Float[Tensor, "batch 1 height width"]
    ) -> Float[Tensor, "batch classes small_height small_width"]:
        """The scores. Raises ChromaboxError if the file computes anything else."""
        batch, _, height, width = grey.shape
        try:
            values = self.session.run([ONNX_OUTPUT], {ONNX_INPUT: grey.detach().float().cpu().contiguous().numpy()})[0]
        except Exception as error:  # onnxruntime's exceptions have no common ancestor but this.
            raise ChromaboxError(f"{self.path}: onnxruntime cannot run it ({one_line(error)})") from error
        expected = (batch, self.num_classes, height // self.stride, width // self.stride)
        if values.shape != expected:
            found, right = list(values.shape), list(expected)
            raise ChromaboxError(f"{self.path}: answers with scores of the shape {found}; {right} is right")
        return torch.from_numpy(values).to(grey.device)


def open_onnx(path: Path) -> tuple[OnnxModel, dict[str, Any]]:
    """The net in a file that :func:`~chromabox.colour.weights.export.export_onnx` wrote, and its metadata.

    Raises ChromaboxError for any other file and UsageError where onnx or onnxruntime is missing.
    """
    model = _read_onnx(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    try:
        if properties.get("format") != ONNX_FORMAT:
            raise ChromaboxError(f"{path}: not an ONNX file of chromabox (its metadata does not say {ONNX_FORMAT!r})")
        kind = "bins" if "bins" in properties else "palette"
        colours = json.loads(properties[kind])
        description = {**json.loads(properties["history"]), "net": properties["net"], kind: colours}
        classes = len(colours["centres" if kind == "bins" else "colours"])
        multiple, stride = (int(properties[name]) for name in ("multiple", "stride"))
        if not (1 <= stride <= multiple <= MAX_SIZE_DIVISOR and multiple % stride == 0):
            raise ValueError(f"multiple is {multiple} and stride {stride}")
    except (KeyError, TypeError, ValueError) as error:
        raise ChromaboxError(f"{path}: its metadata is damaged ({error}); export the net again") from error
    _check_graph(path, model)
    session = open_session(path, model.SerializeToString(), [ONNX_INPUT], [ONNX_OUTPUT])
    return OnnxModel(path, session, multiple, stride, classes), description


def _read_onnx(path: Path) -> "ModelProto":
    onnx, _ = require_onnx()
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise ChromaboxError(
                f"{path}: has {size:,} bytes; the nets of chromabox have less than {MAX_MODEL_BYTES:,}, "
                "take one of them"
            )
        # Numbers in other files are not looked for, and refused below.
        return onnx.load_model_from_string(path.read_bytes())
    except ChromaboxError:
        raise
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be read ({error.strerror}); give an ONNX file") from error
    except Exception as error:  # Of protobuf, which has no other use here.
        raise ChromaboxError(f"{path}: not an ONNX file, or cut short; give one that chromabox export wrote") from error


def _check_graph(path: Path, model: "ModelProto") -> None:
    """ChromaboxError for what no export of ours holds: outside numbers, functions, graphs in graphs, operators."""
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    kinds = {f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph.node}
    tensors = [*model.graph.initializer, *(attribute.t for attribute in attributes)]
    tensors += [tensor for attribute in attributes for tensor in attribute.tensors]
    problem = None
    if any(_has_external_data(tensor) for tensor in tensors):
        problem = "keeps its numbers in other files"
    elif model.functions or model.training_info or model.graph.sparse_initializer:
        problem = "holds functions, training or sparse tensors"
    elif any(attribute.HasField("g") or attribute.graphs for attribute in attributes):
        problem = "holds graphs inside its graph"
    elif kinds - ALLOWED_OPS:
        problem = f"uses the operators {', '.join(sorted(kinds - ALLOWED_OPS)[:5])}"
    if problem:
        raise ChromaboxError(f"{path}: {problem}, as no net of chromabox does; give a file that chromabox export wrote")


def _has_external_data(tensor: "TensorProto") -> bool:
    return bool(tensor.data_location or tensor.external_data)
