"""ONNX Runtime sessions: threads, execution providers, and loading of untrusted files."""

import ctypes
import os
import re
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakSet

import onnxruntime

from chromabox.errors import ChromaboxError, UsageError
from chromabox.runtime.parallel import num_cores

#: Execution providers for each device, best first. ``auto`` uses the first available one.
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
#: Key of a reference to a tensor in another file, preceded by its length; the last byte of a padded length is 0. In a
#: crafted file, the key can follow its value.
_EXTERNAL_DATA_KEY = re.compile(rb"location(?<=[\x00\x08]location)")


def resolve_provider(device: str = "auto") -> str:
    """Return the execution provider for a device: auto, cpu, cuda, coreml or directml.

    ``auto`` selects the first of cuda, coreml and directml that this build of ONNX Runtime supports, otherwise cpu.
    Raise UsageError for an unknown device and for one that this build does not support.
    """
    available = onnxruntime.get_available_providers()
    if device == "auto":
        return next(provider for provider in PROVIDERS.values() if provider in available)
    if device not in PROVIDERS:
        raise UsageError(f"--device is {device!r}: expected auto, {', '.join(PROVIDERS)}")
    if PROVIDERS[device] not in available:
        supported = ", ".join(name for name, provider in PROVIDERS.items() if provider in available)
        raise UsageError(f"--device {device}: this installation of ONNX Runtime supports {supported} only")
    return PROVIDERS[device]


def open_session(
    path: Path,
    model_bytes: bytes,
    input_names: Sequence[str],
    output_names: Sequence[str],
    *,
    threads: int | None = None,
    device: str = "auto",
) -> onnxruntime.InferenceSession:
    """Create a session for the model in ``model_bytes``, read from ``path``.

    Libraries with custom operators are not loaded, and tensors in other files are rejected.

    Args:
        path: the file, for error messages.
        model_bytes: contents of an ONNX file.
        input_names, output_names: expected names of the inputs and outputs, in order.
        threads: number of threads per operator; None: one per available core.
        device: see :func:`resolve_provider`.

    Raise ChromaboxError if ONNX Runtime cannot open the model or its inputs or outputs have other names, and UsageError
    if the device is not available.
    """
    provider = resolve_provider(device)
    if _EXTERNAL_DATA_KEY.search(model_bytes):
        raise ChromaboxError(f"{path}: the model refers to tensors in other files; expected a model in one file")
    onnxruntime.disable_telemetry_events()  # On Windows, the environment variable may not suffice.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or num_cores()
    options.inter_op_num_threads = 1
    # Spinning threads would occupy cores that other work could use.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # Errors only; they are also raised.
    try:
        session = onnxruntime.InferenceSession(
            model_bytes, options, providers=list(dict.fromkeys([provider, "CPUExecutionProvider"]))
        )
    except Exception as error:  # ONNX Runtime's exceptions have no other common base class.
        raise ChromaboxError(f"{path}: ONNX Runtime cannot open the model ({one_line(error)})") from error
    _sessions.add(session)
    names = [[value.name for value in values] for values in (session.get_inputs(), session.get_outputs())]
    if names != [list(input_names), list(output_names)]:
        expected = f"{list(input_names)} and {list(output_names)}"
        raise ChromaboxError(f"{path}: has inputs {names[0]} and outputs {names[1]}; expected {expected}")
    return session


def one_line(error: Exception) -> str:
    """Return an error's message as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


_sessions: WeakSet[onnxruntime.InferenceSession] = WeakSet()


def _keep_sessions_after_fork() -> None:
    """Make the parent's sessions immortal in a forked process.

    A session's threads exist only in the parent; in the child, its destructor would wait for them forever. A list of
    the sessions does not suffice: it is destroyed when the process exits.
    """
    for session in list(_sessions):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_sessions_after_fork)


Loader = TypeVar("Loader", bound=Callable[..., Any])


def cache_models(maxsize: int) -> Callable[[Loader], Loader]:
    """Return a decorator that caches the last ``maxsize`` results of a function that loads a model.

    Simultaneous calls load a model only once. The cache is empty after a fork: the threads of a model's session exist
    only in the parent process.
    """

    def decorate(load: Loader) -> Loader:
        cached, lock = lru_cache(maxsize)(load), Lock()

        def reset() -> None:
            nonlocal lock
            lock = Lock()
            cached.cache_clear()

        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=reset)

        @wraps(load)
        def call(*arguments: Any) -> Any:
            with lock:
                return cached(*arguments)

        return call  # type: ignore[return-value]

    return decorate
