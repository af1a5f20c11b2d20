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
from chromabox.io.atomic import write_whole
from chromabox.runtime.session import import_onnx

if TYPE_CHECKING:
    from onnx import ModelProto

#: The oldest that PyTorch's exporter writes without conversion; every runtime since 2023 reads it.
OPSET = 18
#: What counts may differ by so much between the file and PyTorch, both in float32.
LARGEST_DIFFERENCE = 1e-4


@runtime_checkable
class Parity(Protocol):
    """What came of comparing an exported file with PyTorch; as text one sentence for people."""

    @property
    def worst(self) -> float:
        """The largest difference of what counts."""


Compared = TypeVar("Compared", bound=Parity)


def convert(
    net: nn.Module,
    example: Tensor,
    dynamic: Mapping[int, Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
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
    import_onnx()
    try:
        with _quiet():
            program = torch.onnx.export(
                net,
                (example,),
                dynamo=True,
                dynamic_shapes=(dict(dynamic),),
                input_names=list(inputs),
                output_names=list(outputs),
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
    return _without_traces(program.model_proto)


def write_onnx(
    path: Path, model: "ModelProto", properties: Mapping[str, str], compare: Callable[[Path], Compared]
) -> Compared:
    """Write a model with its metadata to ``path``, after ``compare`` has compared the file with PyTorch.

    Missing folders are made. Raises ChromaboxError if what counts differs by more than ``LARGEST_DIFFERENCE`` or the
    file cannot be written; nothing is left then, and what stood there before stays.
    """
    for key, value in properties.items():
        model.metadata_props.add(key=key, value=value)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as aside:
            aside.write_bytes(model.SerializeToString())
            parity = compare(aside)
            # Written so that not-a-number, which no comparison holds for, is refused too.
            if not parity.worst <= LARGEST_DIFFERENCE:
                raise ChromaboxError(f"{path}: not written, the file would compute something else; {parity}")
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be written ({error.strerror or error})") from error
    return parity


def refuse_other_suffix(path: Path) -> None:
    """UsageError for a file that does not end in ``.onnx``; asked before the net is converted, which takes seconds."""
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"{path}: does not end in .onnx; name the file {path.with_suffix('.onnx').name}, say")


def _without_traces(model: "ModelProto") -> "ModelProto":
    """The model without the exporter's notes on where in the sources, and in whose folders, each node comes from."""
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.ClearField("metadata_props")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
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
