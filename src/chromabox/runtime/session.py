"""ONNX Runtime sessions: number of threads, execution providers, and loading of untrusted files."""

import contextlib
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

#: Execution provider for each device. ``auto`` selects the first available provider.
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
#: Key that marks a reference to a tensor in another file. The byte before the key is the last byte of the key's encoded
#: length: 8, or 0 if the length is padded. In a crafted file, the key can follow its value.
_EXTERNAL_DATA_KEY = re.compile(rb"location(?<=[\x00\x08]location)")


def resolve_provider(device: str = "auto") -> str:
    """Return the execution provider for a device: auto, cpu, cuda, coreml or directml.

    ``auto`` selects the first of cuda, coreml and directml that this build of ONNX Runtime supports, or else cpu.
    Raise UsageError for an unknown device and for a device that this build does not support.
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
) -> "_Session":
    """Create a session for the ONNX model in ``model_bytes``.

    Libraries with custom operators are not loaded, and tensors in other files are rejected. Several threads can use the
    session. In a forked process, or in any other process after pickling, the file is read again.

    Args:
        path: the file that contains the model, for error messages.
        model_bytes: content of the file.
        input_names, output_names: expected names of the inputs and outputs, in order.
        threads: number of threads per operator; None for one per available core.
        device: see :func:`resolve_provider`.

    Raise ChromaboxError if ONNX Runtime cannot open the model or if its inputs or outputs have other names. Raise
    UsageError if the device is not available.
    """
    provider = resolve_provider(device)
    if _EXTERNAL_DATA_KEY.search(model_bytes):
        raise ChromaboxError(f"{path}: the model refers to tensors in other files; expected a model in one file")
    onnxruntime.disable_telemetry_events()  # On Windows, the environment variable may be insufficient.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or num_cores()
    options.inter_op_num_threads = 1
    # Spinning threads would occupy cores that other work could use.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # Log errors only.
    providers = list(dict.fromkeys([provider, "CPUExecutionProvider"]))
    reopen = (path.absolute(), _file_state(path), tuple(input_names), tuple(output_names), threads, device)
    try:
        session = _Session(model_bytes, options, providers, reopen)
    except Exception as error:  # ONNX Runtime's exceptions have no more specific base class.
        raise ChromaboxError(
            f"{path}: ONNX Runtime cannot open the model ({one_line(error)}); expected an ONNX model"
        ) from error
    _sessions.add(session)
    names = [[value.name for value in values] for values in (session.get_inputs(), session.get_outputs())]
    if names != [list(input_names), list(output_names)]:
        expected = f"{list(input_names)} and {list(output_names)}"
        raise ChromaboxError(f"{path}: has inputs {names[0]} and outputs {names[1]}; expected {expected}")
    return session


class _Session(onnxruntime.InferenceSession):  # type: ignore[misc]
    """Session that opens the model again in a forked process, because the threads of a session exist only in one."""

    def __init__(
        self, model_bytes: bytes, options: onnxruntime.SessionOptions, providers: list[str], reopen: tuple[Any, ...]
    ) -> None:
        # The fallback would print messages and try the same provider again.
        super().__init__(model_bytes, options, providers=providers, enable_fallback=0)
        self._reopen_arguments, self._process_id = reopen, os.getpid()
        self._successor: _Session | None = None

    def run(self, *arguments: Any, **options: Any) -> Any:
        if self._process_id == os.getpid():
            return super().run(*arguments, **options)
        with _reopen_lock:
            if self._successor is None or self._successor._process_id != os.getpid():
                self._successor = _reopen_session(*self._reopen_arguments)
        return self._successor.run(*arguments, **options)

    def __reduce__(self) -> tuple[Callable[..., "_Session"], tuple[Any, ...]]:
        return _reopen_session, self._reopen_arguments


def _reopen_session(
    path: Path,
    file_state: tuple[int, int] | None,
    input_names: tuple[str, ...],
    output_names: tuple[str, ...],
    threads: int | None,
    device: str,
) -> _Session:
    """Open a model in another process. Raise ChromaboxError if the file has changed since it was first opened."""
    if file_state is None or _file_state(path) != file_state:
        raise ChromaboxError(f"{path}: has changed since the model was opened; open the model in this process")
    return open_session(path, path.read_bytes(), input_names, output_names, threads=threads, device=device)


def _file_state(path: Path) -> tuple[int, int] | None:
    """Return the size and the time of the last change of a file, or None if there is no such file."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    return None


def read_session_metadata(session: onnxruntime.InferenceSession, path: Path) -> dict[str, str]:
    """Return the metadata of a model. Raise ChromaboxError if they are not UTF-8 text."""
    try:
        return dict(session.get_modelmeta().custom_metadata_map)
    except UnicodeDecodeError as error:
        raise ChromaboxError(f"{path}: the metadata is damaged ({one_line(error)}); export the model again") from error


def one_line(error: Exception) -> str:
    """Return an error's message as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


_sessions: WeakSet[onnxruntime.InferenceSession] = WeakSet()
_reopen_lock = Lock()
# Windows has no fork.
_register_at_fork: Callable[..., None] = getattr(os, "register_at_fork", lambda **_: None)


def _keep_sessions_after_fork() -> None:
    """Prevent the destruction of the parent's sessions in a forked process.

    The threads of a session exist only in the parent. In the child, the destructor of the session would wait for them
    forever. Storing the sessions in a list would be insufficient, because the list is destroyed when the process exits.
    """
    global _reopen_lock
    _reopen_lock = Lock()  # A thread of the parent may have held the lock at the time of the fork.
    for session in list(_sessions):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


_register_at_fork(after_in_child=_keep_sessions_after_fork)

Loader = TypeVar("Loader", bound=Callable[..., Any])
ModelT = TypeVar("ModelT")


def load_unless_damaged(load: Callable[..., ModelT], path: Path, **options: Any) -> ModelT | None:
    """Return ``load(path, **options)``, or None if the file is damaged. Other errors of ``load`` are passed on."""
    try:
        return load(path, **options)
    except UsageError:
        raise
    except ChromaboxError:
        return None


def cache_models(maxsize: int) -> Callable[[Loader], Loader]:
    """Return a decorator that caches the ``maxsize`` most recent results of a function that loads a model.

    Simultaneous calls load a model only once. After a fork, the cache of the child is empty, because the threads of the
    cached sessions exist only in the parent.
    """

    def decorate(load: Loader) -> Loader:
        cached, lock = lru_cache(maxsize)(load), Lock()

        def reset() -> None:
            nonlocal lock
            lock = Lock()
            cached.cache_clear()

        _register_at_fork(after_in_child=reset)

        @wraps(load)
        def call(*arguments: Any) -> Any:
            with lock:
                return cached(*arguments)

        return call  # type: ignore[return-value]

    return decorate
