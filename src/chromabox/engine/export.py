"""ONNX export with PyTorch's exporter; a file is saved only if its outputs match PyTorch's."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from chromabox.errors import ChromaboxError, UsageError, missing_package
from chromabox.io.atomic import atomic_write

if TYPE_CHECKING:
    from onnx import ModelProto

#: The oldest opset that PyTorch's exporter writes without conversion; all runtimes since 2023 support it.
OPSET = 18
#: Maximum difference between the outputs of the exported file and PyTorch's, both in float32.
MAX_DIFFERENCE = 1e-4


@runtime_checkable
class ExportReport(Protocol):
    """Result of comparing an exported file with PyTorch; ``str`` returns it as one sentence."""

    @property
    def max_difference(self) -> float:
        """The maximum difference of the compared outputs."""


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
    """Export a model with one input, using PyTorch's exporter.

    Args:
        model: in evaluation mode, on the CPU.
        example_input: an input; its dimensions of size 1 are treated as fixed.
        dynamic_dims: the input's dynamic dimensions, as ``torch.export.Dim``.
        input_names, output_names: names in the file.
        opset: ONNX opset version.
        optimize: whether the exporter simplifies the graph, for example by folding BatchNorm into convolutions.

    Raise UsageError if a library is missing, and ChromaboxError if PyTorch cannot export the model.
    """
    try:
        with _suppress_export_warnings():
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
    return _strip_metadata(program.model_proto)


def save_verified(
    path: Path, model: "ModelProto", metadata: Mapping[str, str], compare: Callable[[Path], ReportT]
) -> ReportT:
    """Write a model with its metadata to ``path`` if, according to ``compare``, its outputs match PyTorch's.

    Missing folders are created. Raise ChromaboxError if the outputs differ by more than ``MAX_DIFFERENCE`` or the file
    cannot be written; in that case, an existing file is left unchanged.
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
    """Raise UsageError if the suffix is not ``.onnx``. Call this before a slow export, to fail early."""
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"{path}: expected the suffix .onnx; use, for example, {path.with_suffix('.onnx').name}")


def _strip_metadata(model: "ModelProto") -> "ModelProto":
    """Remove the exporter's source locations, which contain local paths, from the model and return it."""
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.ClearField("metadata_props")
    return model


@contextmanager
def _suppress_export_warnings() -> Iterator[None]:
    """Suppress the exporter's warnings about its deprecations and about torchvision, which is not required."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    previous_level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(previous_level)
