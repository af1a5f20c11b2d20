"""Checkpoints that are all there or not there at all.

One safetensors file holds the tensors of any nested state, and in its header, as JSON, everything else; a crash
between two files therefore cannot leave a pair that disagrees. The ``.json`` beside it is a readable copy of the
description, for people. Nothing is ever pickled, so a stranger's checkpoint is only data.
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
from chromabox.io.atomic import atomic_write

CHECKPOINT_FORMAT = "chromabox-1"


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON, aside first and then renamed, so that no reader sees half a file."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


def save_checkpoint(path: Path, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Save a nested state of tensors, numbers, strings, lists and dictionaries.

    ``path`` ends in ``.safetensors``; ``description`` (JSON values) goes into the header and into ``.json`` beside it.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _flatten_state(state, "", tensors)
    # A description that is not JSON for people is refused here, before anything is replaced.
    described = json.dumps(metadata, allow_nan=False)
    header = {"format": CHECKPOINT_FORMAT, "state": json.dumps(skeleton), "description": described}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside:
        save_file(tensors, aside, metadata=header)
        aside.chmod(0o644)  # safetensors lets only the owner read; a checkpoint is a file like any other
    write_json(path.with_suffix(".json"), metadata)


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What a checkpoint of ours says of itself, without its tensors being read; None for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            return json.loads(header["description"]) if header.get("format") == CHECKPOINT_FORMAT else None
    except (SafetensorError, ValueError, KeyError, OSError):
        return None


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state and the description that :func:`save_checkpoint` was given.

    Raises ChromaboxError if the file is missing, broken, or not a checkpoint of ours.
    """
    if not path.is_file():
        raise ChromaboxError(f"{path}: there is no such checkpoint; give a .safetensors file that training wrote")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != CHECKPOINT_FORMAT:
                raise ChromaboxError(
                    f"{path}: not a chromabox checkpoint (its header does not say {CHECKPOINT_FORMAT!r})"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return _unflatten_state(json.loads(header["state"]), tensors), json.loads(header["description"])
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise ChromaboxError(f"{path}: broken or truncated checkpoint ({error}); take another copy") from error


def _flatten_state(value: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` with every tensor moved into ``tensors`` under its dotted name, and the name left in its place."""
    if isinstance(value, Tensor):
        # A clone, contiguous: safetensors refuses tensors that share memory or are stored with strides.
        # ``{"a.b": …, "a": {"b": …}}`` would use one name twice, and one name is the file format's own.
        while prefix in tensors or prefix == "__metadata__":
            prefix += "'"
        tensors[prefix] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": prefix}
    if isinstance(value, Mapping):
        # Pairs, not an object: optimisers number their parameters, and JSON would turn those keys into strings.
        items = [
            [key, _flatten_state(item, f"{prefix}.{key}" if prefix else str(key), tensors)]
            for key, item in value.items()
        ]
        return {"items": items}
    if isinstance(value, list | tuple):
        return [_flatten_state(item, f"{prefix}.{index}", tensors) for index, item in enumerate(value)]
    return value


def _unflatten_state(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`_take_tensors`; tuples come back as lists."""
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unflatten_state(item, tensors) for key, item in value["items"]}
    if isinstance(value, list):
        return [_unflatten_state(item, tensors) for item in value]
    return value
