"""Checkpoints: exact round trips of nested states, and errors for other files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from chromabox.engine import checkpoint
from chromabox.engine.checkpoint import load_checkpoint, save_checkpoint, write_json
from chromabox.errors import ChromaboxError

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def strided(values: Tensor, layout: str) -> Tensor:
    """Return equal values in another memory layout, which safetensors alone rejects or flattens."""
    if layout == "channels_last" and values.ndim == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and values.ndim >= 2:
        return values.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "every other" and values.ndim:
        return values.repeat_interleave(2, dim=0)[::2]
    if layout == "expanded":
        return values[:1].expand(values.shape) if values.ndim and len(values) else values
    return values


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) * 50
    layout = draw(st.sampled_from(["plain", "channels_last", "transposed", "every other", "expanded"]))
    return strided(values.to(draw(st.sampled_from(DTYPES))), layout)


LEAVES = st.one_of(
    tensors(),
    st.none(),
    st.booleans(),
    st.integers(-(2**60), 2**60),
    st.floats(allow_nan=False),
    st.text(max_size=5),
)
STRING_KEYS = st.sampled_from(["a", "b", "a.b", "1", "", "tensor", "items", "__metadata__", "ä"])
KEYS = st.one_of(st.integers(0, 9), STRING_KEYS)
STATES = st.recursive(
    LEAVES, lambda children: st.lists(children, max_size=3) | st.dictionaries(KEYS, children, max_size=4), max_leaves=12
)


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for left, right in zip(one.values(), other.values(), strict=True):
            assert_same(left, right)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=st.dictionaries(STRING_KEYS, STATES, max_size=4))
def test_nested_state_round_trip(state: dict[Any, Any], tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.safetensors"
    metadata = {"epoch": 3, "colours": [1, 2], "name": "Pferd ä"}
    save_checkpoint(path, state, metadata)
    loaded, loaded_metadata = load_checkpoint(path)
    assert_same(loaded, state)
    assert loaded_metadata == metadata
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == metadata
    assert sorted(file.name for file in path.parent.iterdir()) == ["state.json", "state.safetensors"]


def test_tuples_become_lists(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", {"betas": (0.9, (0.5, None))}, {})
    assert load_checkpoint(tmp_path / "a.safetensors")[0] == {"betas": [0.9, [0.5, None]]}


def test_tensors_with_shared_memory_are_saved(tmp_path: Path) -> None:
    matrix = torch.arange(12.0).reshape(3, 4)
    state = {"matrix": matrix, "row": matrix[1], "same": matrix, "parameter": torch.nn.Parameter(matrix[:, 1])}
    save_checkpoint(tmp_path / "a.safetensors", state, {})
    loaded, _ = load_checkpoint(tmp_path / "a.safetensors")
    for name, value in state.items():
        assert torch.equal(loaded[name], value.detach())
    loaded["row"].zero_()
    assert torch.equal(loaded["matrix"], matrix)


def test_tensors_have_dotted_names_in_the_file(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3))
    save_checkpoint(tmp_path / "a.safetensors", {"net": model.state_dict()}, {})
    assert {name: value.shape for name, value in load_file(tmp_path / "a.safetensors").items()} == {
        "net.0.weight": (3, 2),
        "net.0.bias": (3,),
    }


def write_invalid(path: Path, case: str) -> None:
    save_checkpoint(path, {"a": torch.ones(100), "b": {"c": torch.ones(3)}}, {"epoch": 1})
    content = path.read_bytes()
    tensors = {"a": torch.ones(2)}
    header = {"format": "chromabox-1", "description": "{}"}
    {
        "missing": path.unlink,
        "folder": lambda: (path.unlink(), path.mkdir()),
        "truncated": lambda: path.write_bytes(content[:-50]),
        "truncated in the header": lambda: path.write_bytes(content[:40]),
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_text("<html>sorry</html>"),
        "other safetensors file": lambda: save_file(tensors, path),
        "other format": lambda: save_file(tensors, path, metadata={"format": "pt"}),
        "no state": lambda: save_file(tensors, path, metadata=header),
        "invalid JSON": lambda: save_file(tensors, path, metadata={**header, "state": "{"}),
        "invalid state": lambda: save_file(tensors, path, metadata={**header, "state": '{"items": 3}'}),
        "missing tensor": lambda: save_file(tensors, path, metadata={**header, "state": '{"tensor": "b"}'}),
    }[case]()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "checkpoint does not exist; expected a .safetensors file"),
        ("folder", "checkpoint does not exist"),
        ("truncated", "corrupt or truncated checkpoint .*; restore the file from a copy"),
        ("truncated in the header", "corrupt or truncated checkpoint"),
        ("empty", "corrupt or truncated checkpoint"),
        ("text", "corrupt or truncated checkpoint"),
        ("other safetensors file", "not a Chromabox checkpoint"),
        ("other format", "not a Chromabox checkpoint"),
        ("no state", "corrupt or truncated checkpoint"),
        ("invalid JSON", "corrupt or truncated checkpoint"),
        ("invalid state", "corrupt or truncated checkpoint"),
        ("missing tensor", "corrupt or truncated checkpoint"),
    ],
)
def test_invalid_checkpoint_raises_a_one_line_error(tmp_path: Path, case: str, message: str) -> None:
    path = tmp_path / "a.safetensors"
    write_invalid(path, case)
    with pytest.raises(ChromaboxError, match=message) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "metadata", "error"),
    [
        ({"a": object()}, {}, TypeError),
        ({"a": 1}, {"b": object()}, TypeError),
        ({"a": 1}, {"loss": float("nan")}, ValueError),
        # safetensors does not support this type; it fails while writing the file.
        ({"a": torch.zeros(2, dtype=torch.complex128)}, {}, KeyError),
    ],
)
def test_failed_save_leaves_only_the_old_checkpoint(
    tmp_path: Path, state: dict[str, Any], metadata: dict[str, Any], error: type[Exception]
) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"a": torch.ones(2)}, {"epoch": 1})
    with pytest.raises(error):
        save_checkpoint(path, state, metadata)
    loaded, loaded_metadata = load_checkpoint(path)
    assert torch.equal(loaded["a"], torch.ones(2))
    assert loaded_metadata == {"epoch": 1}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def test_failed_rename_leaves_no_temporary_file(tmp_path: Path) -> None:
    """A folder with the name of the final file makes the rename fail after a successful write."""
    for name in ("a.json", "b.safetensors"):
        (tmp_path / name / "x").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_json(tmp_path / "a.json", {})
    with pytest.raises(ChromaboxError, match=r"b\.safetensors: cannot be written \(.*directory"):
        save_checkpoint(tmp_path / "b.safetensors", {"a": torch.ones(2)}, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "b.safetensors"]


def test_failed_write_is_reported_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    (tmp_path / "file").touch()
    with pytest.raises(ChromaboxError, match=r"a\.safetensors: cannot be written \("):
        save_checkpoint(tmp_path / "file" / "a.safetensors", {}, {})
    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(ChromaboxError, match=r"a\.safetensors: cannot be written \(.*No space left"):
        save_checkpoint(tmp_path / "a.safetensors", {}, {})
