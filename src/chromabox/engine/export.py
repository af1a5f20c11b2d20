"""Nets written as ONNX files by PyTorch's exporter; a file gets its name only after it computed the same as PyTorch."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import atomic_write
from chromabox.runtime.session import require_onnx

if TYPE_CHECKING:
    from onnx import ModelProto

#: The oldest that PyTorch's exporter writes without conversion; every runtime since 2023 reads it.
OPSET = 18
#: What counts may differ by so much between the file and PyTorch, both in float32.
MAX_DIFFERENCE = 1e-4


@runtime_checkable
class ExportReport(Protocol):
    """What came of comparing an exported file with PyTorch; as text one sentence for people."""

    @property
    def max_difference(self) -> float:
        """The largest difference of what counts."""


ReportT = TypeVar("ReportT", bound=ExportReport)


def to_onnx(
    model: nn.Module,
    example_input: Tensor,
    dynamic_dims: Mapping[int, Any],
    input_names: Sequence[str],
    output_names: Sequence[str],
    *,
    opset: int = OPSET,
) -> "ModelProto":
    """A net of one input as PyTorch's exporter writes it.

    Args:
        net: in evaluation mode, on the CPU.
        example: an input; sides of it that are 1 are taken for fixed.
        dynamic: of the input's dimensions those that any size fits, as ``torch.export.Dim``.
        inputs, outputs: their names in the file.

    Raises UsageError where libraries are missing, ChromaboxError if PyTorch cannot export the net.
    """
    require_onnx()
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
                verbose=False,
            )
    except ImportError as error:
        raise UsageError(
            f"exporting needs the library {error.name}: install it with pip install 'chromabox[export]'"
        ) from error
    except Exception as error:  # The exporter has many kinds; each means the same to the user.
        reason = " ".join(str(error).split())[:300]
        raise ChromaboxError(f"this net cannot be exported as ONNX with opset {opset} ({reason})") from error
    assert program is not None
    return _strip_metadata(program.model_proto)


def save_verified(
    path: Path, model: "ModelProto", metadata: Mapping[str, str], compare: Callable[[Path], ReportT]
) -> ReportT:
    """Write a model with its metadata to ``path``, after ``compare`` has compared the file with PyTorch.

    Missing folders are made. Raises ChromaboxError if what counts differs by more than ``LARGEST_DIFFERENCE`` or the
    file cannot be written; nothing is left then, and what stood there before stays.
    """
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as aside:
            aside.write_bytes(model.SerializeToString())
            parity = compare(aside)
            # Written so that not-a-number, which no comparison holds for, is refused too.
            if not parity.max_difference <= MAX_DIFFERENCE:
                raise ChromaboxError(f"{path}: not written, the file would compute something else; {parity}")
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be written ({error.strerror or error})") from error
    return parity


def require_onnx_suffix(path: Path) -> None:
    """UsageError for a file that does not end in ``.onnx``; asked before the net is converted, which takes seconds."""
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"{path}: does not end in .onnx; name the file {path.with_suffix('.onnx').name}, say")


def _strip_metadata(model: "ModelProto") -> "ModelProto":
    """The model without the exporter's notes on where in the sources, and in whose folders, each node comes from."""
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.ClearField("metadata_props")
    return model


@contextmanager
def _suppress_export_warnings() -> Iterator[None]:
    """PyTorch's exporter warns of its own deprecations and of torchvision, which is not needed."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
