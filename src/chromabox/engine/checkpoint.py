"""Checkpoints as single safetensors files, written atomically.

A checkpoint contains the tensors of a nested state and, as JSON in the header, all other values of the state. A single
file is used, because a crash while two files are written could leave them inconsistent. A ``.json`` file in the same
folder is a readable copy of the metadata. Checkpoints contain no pickled objects, so that loading an untrusted
checkpoint does not run code.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from chromabox.errors import ChromaboxError
from chromabox.io.atomic import atomic_write, parse_json

CHECKPOINT_FORMAT = "chromabox-1"


def write_json(path: Path, value: object) -> None:
    """Write ``value`` atomically as indented JSON. Bytes of file names that are not text become ``\\udcNN`` escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path) as temp_path:
        temp_path.write_text(text, encoding="utf-8", errors="backslashreplace")


def save_checkpoint(path: Path, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Save a nested state of tensors, numbers, strings, lists and dictionaries.

    ``path`` ends in ``.safetensors``. ``metadata`` (JSON values) is stored in the header and in a ``.json`` file
    with the same name. Raise ChromaboxError if a file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _flatten_state(state, "", tensors)
    # Invalid metadata raises an exception here, before an existing file is replaced.
    metadata_json = json.dumps(metadata, allow_nan=False)
    header = {"format": CHECKPOINT_FORMAT, "state": json.dumps(skeleton), "description": metadata_json}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temp_path:
            save_file(tensors, temp_path, metadata=header)
            temp_path.chmod(0o644)  # The safetensors package creates files that only the owner can read.
        write_json(path.with_suffix(".json"), metadata)
    except (OSError, SafetensorError) as error:  # SafetensorError includes a full disk and missing permissions.
        raise ChromaboxError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error


def read_metadata(path: Path) -> dict[str, Any] | None:
    """Return the metadata of a checkpoint without reading its tensors.

    Return None if the file is missing, truncated, corrupt, or not a Chromabox checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            metadata = parse_json(header["description"]) if header.get("format") == CHECKPOINT_FORMAT else None
            return metadata if isinstance(metadata, dict) else None
    except (SafetensorError, ValueError, KeyError, OSError):
        return None


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state and the metadata of a checkpoint.

    Raise ChromaboxError if the file is missing, corrupt, or not a Chromabox checkpoint.
    """
    if not path.is_file():
        raise ChromaboxError(f"{path}: the checkpoint does not exist; expected a .safetensors file written by training")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != CHECKPOINT_FORMAT:
                raise ChromaboxError(
                    f"{path}: not a Chromabox checkpoint (expected format {CHECKPOINT_FORMAT!r} in the header)"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            state, metadata = _unflatten_state(parse_json(header["state"]), tensors), parse_json(header["description"])
            if not isinstance(state, dict) or not isinstance(metadata, dict):
                raise ValueError("the state and the metadata are not JSON objects")
            return state, metadata
    except (SafetensorError, ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise ChromaboxError(
            f"{path}: corrupt or truncated checkpoint ({error}); restore the file from a copy"
        ) from error


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a tensor contains infinite values or NaN, as after a training run that diverged."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} contains values that are not finite")


def _flatten_state(value: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """Add the tensors in ``value`` to ``tensors`` under dotted names.

    Return ``value`` with its tensors replaced by their names.
    """
    if isinstance(value, Tensor):
        # Duplicate names are possible (``{"a.b": …, "a": {"b": …}}``), and ``__metadata__`` is reserved by the format.
        while prefix in tensors or prefix == "__metadata__":
            prefix += "'"
        # safetensors rejects tensors that share memory or are not contiguous.
        tensors[prefix] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": prefix}
    if isinstance(value, Mapping):
        # Key-value pairs are stored, because a JSON object would convert the optimizers' integer keys to strings.
        start = f"{prefix}." if prefix else ""
        return {"items": [[key, _flatten_state(item, f"{start}{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_flatten_state(item, f"{prefix}.{index}", tensors) for index, item in enumerate(value)]
    return value


def _unflatten_state(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the original value from a result of :func:`_flatten_state`, with lists in place of tuples."""
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unflatten_state(item, tensors) for key, item in value["items"]}
    if isinstance(value, list):
        return [_unflatten_state(item, tensors) for item in value]
    return value
