"""Optional ONNX libraries, and ONNX Runtime sessions on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from chromabox.errors import ChromaboxError, UsageError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def require_onnx() -> tuple[Any, Any]:
    """Import and return onnx and onnxruntime. Raise UsageError if one is not installed."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UsageError(f"ONNX files require {error.name}: install it with pip install 'chromabox[export]'") from error
    return onnx, onnxruntime


def open_session(
    path: Path, model_bytes: bytes, input_names: Sequence[str], output_names: Sequence[str]
) -> "InferenceSession":
    """Create a session for the model in ``model_bytes``, read from ``path``, with PyTorch's current number of threads.

    Libraries with custom operators are not loaded. Raise ChromaboxError if onnxruntime cannot open the model or the
    names of its inputs and outputs are not as expected.
    """
    _, onnxruntime = require_onnx()
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Spinning threads would occupy cores that other work can use.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # Errors only; they are also raised.
    try:
        session = onnxruntime.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no other common base class.
        raise ChromaboxError(f"{path}: onnxruntime cannot open the model ({one_line(error)})") from error
    names = [[value.name for value in values] for values in (session.get_inputs(), session.get_outputs())]
    if names != [list(input_names), list(output_names)]:
        expected = f"{list(input_names)} and {list(output_names)}"
        raise ChromaboxError(f"{path}: has inputs {names[0]} and outputs {names[1]}; expected {expected}")
    return session


def one_line(error: Exception) -> str:
    """Return the message of an error on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
