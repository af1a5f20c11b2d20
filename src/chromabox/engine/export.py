"""ONNX export with PyTorch's exporter. A file is saved only if its outputs match those of the PyTorch model."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from chromabox.errors import ChromaboxError, UsageError, missing_package
from chromabox.io.atomic import atomic_write

if TYPE_CHECKING:
    from onnx import ModelProto

#: The oldest opset that PyTorch's exporter writes without conversion. All runtimes since 2023 support this opset.
OPSET = 18
#: Maximum allowed difference between the outputs of the exported file and the PyTorch model, both in float32.
MAX_DIFFERENCE = 1e-4


@runtime_checkable
class ExportReport(Protocol):
    """Comparison of the outputs of an exported file and the PyTorch model. ``str`` returns the result as a sentence."""

    @property
    def max_difference(self) -> float:
        """The largest difference between the outputs, which must not exceed ``MAX_DIFFERENCE``."""


ReportT = TypeVar("ReportT", bound=ExportReport)


def to_onnx(
    model: nn.Module,
    example_input: Tensor,
    dynamic_dims: Mapping[int, Any],
    input_names: Sequence[str],
    output_names: Sequence[str],
    *,
    opset: int = OPSET,
    optimize: bool = True,
) -> "ModelProto":
    """Export a model with one input to ONNX, using PyTorch's exporter.

    Args:
        model: the model, in evaluation mode and on the CPU.
        example_input: an input of the model. Its dimensions of size 1 are treated as fixed.
        dynamic_dims: a ``torch.export.Dim`` for the index of every dynamic dimension of the input.
        input_names, output_names: names of the input and the outputs in the file.
        opset: ONNX opset version.
        optimize: whether the exporter simplifies the graph, for example by folding BatchNorm into convolutions.

    Raise UsageError if a library is missing, and ChromaboxError if PyTorch cannot export the model.
    """
    # Suppress PyTorch's deprecation warnings and its message that the optional torchvision is missing.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (example_input,),
                dynamo=True,
                dynamic_shapes=(dict(dynamic_dims),),
                input_names=list(input_names),
                output_names=list(output_names),
                opset_version=opset,
                optimize=optimize,
                verbose=False,
            )
    except ImportError as error:
        raise missing_package("exporting", error) from error
    except Exception as error:  # The exporter raises many types of exceptions.
        reason = " ".join(str(error).split())[:300]
        raise ChromaboxError(f"the model cannot be exported to ONNX with opset {opset} ({reason})") from error
    assert program is not None
    proto: ModelProto = program.model_proto
    # Remove the exporter's source locations, which contain local paths.
    graph = proto.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    proto.ClearField("metadata_props")
    return proto


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch in one thread within the ``with`` block.

    If PyTorch has used several threads before a fork, it would wait forever for these threads in the child process.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def save_verified(
    path: Path, model: "ModelProto", metadata: Mapping[str, str], compare: Callable[[Path], ReportT]
) -> ReportT:
    """Write a model with its metadata to ``path``, and return the result of ``compare``, which runs the written file.

    Missing folders are created. Raise ChromaboxError if the outputs differ by more than ``MAX_DIFFERENCE`` or the file
    cannot be written. In either case, an existing file is left unchanged.
    """
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temp_path:
            temp_path.write_bytes(model.SerializeToString())
            report = compare(temp_path)
            # The negation also rejects NaN.
            if not report.max_difference <= MAX_DIFFERENCE:
                raise ChromaboxError(f"{path}: not written because its outputs would differ from PyTorch's; {report}")
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be written ({error.strerror or error})") from error
    return report


def require_onnx_suffix(path: Path) -> None:
    """Raise UsageError if the suffix is not ``.onnx``. Call this function before a slow export."""
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"{path}: expected the suffix .onnx; use, for example, {path.with_suffix('.onnx').name}")
