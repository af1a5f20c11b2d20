"""The libraries for ONNX files, which are an extra, and a file run by one of them: onnxruntime, on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from chromabox.errors import ChromaboxError, UsageError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def require_onnx() -> tuple[Any, Any]:
    """The modules onnx and onnxruntime: UsageError where one is missing."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            f"ONNX files need the library {error.name}: install it with pip install 'chromabox[export]'"
        ) from error
    return onnx, onnxruntime


def open_session(
    path: Path, model_bytes: bytes, input_names: Sequence[str], output_names: Sequence[str]
) -> "InferenceSession":
    """A session of the model in ``content``, read from ``path``, with as many threads as PyTorch has now.

    No library of other operators is ever loaded. Raises ChromaboxError if onnxruntime cannot open it, or its inputs and
    outputs have other names.
    """
    _, onnxruntime = require_onnx()
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Threads that wait would otherwise spin, and take the cores from the rest of the work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # Errors, which are raised too.
    try:
        session = onnxruntime.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common ancestor but this.
        raise ChromaboxError(f"{path}: onnxruntime cannot open it ({one_line(error)})") from error
    found = [[value.name for value in some] for some in (session.get_inputs(), session.get_outputs())]
    if found != [list(input_names), list(output_names)]:
        right = f"{', '.join(input_names)} and {', '.join(output_names)}"
        raise ChromaboxError(f"{path}: has the inputs {found[0]} and outputs {found[1]}; {right} is right")
    return session


def one_line(error: Exception) -> str:
    """What onnxruntime complains of, which may have many lines."""
    return " ".join(str(error).split())[:300]
