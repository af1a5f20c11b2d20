"""Checkpoints hold any nested state, give it back to the last bit, and refuse what is not one of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

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
    """The same shape and values in another memory layout, which safetensors by itself refuses or flattens."""
    if layout == "channels_last" and values.ndim == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and values.ndim >= 2:
        return values.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "every second" and values.ndim:
        return values.repeat_interleave(2, dim=0)[::2]
    if layout == "expanded":
        return values[:1].expand(values.shape) if values.ndim and len(values) else values
    return values


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) * 50
    layout = draw(st.sampled_from(["plain", "channels_last", "transposed", "every second", "expanded"]))
    return strided(numbers.to(draw(st.sampled_from(DTYPES))), layout)


LEAVES = st.one_of(
    tensors(),
    st.none(),
    st.booleans(),
    st.integers(-(2**60), 2**60),
    st.floats(allow_nan=False),
    st.text(max_size=5),
)
WORDS = st.sampled_from(["a", "b", "a.b", "1", "", "tensor", "items", "__metadata__", "ä"])
NAMES = st.one_of(st.integers(0, 9), WORDS)
STATES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
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
@given(state=st.dictionaries(WORDS, STATES, max_size=4))
def test_any_nested_state_comes_back(state: dict[Any, Any], tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.safetensors"
    description = {"epoch": 3, "colours": [1, 2], "name": "Pferd ä"}
    save_checkpoint(path, state, description)
    loaded, described = load_checkpoint(path)
    assert_same(loaded, state)
    assert described == description
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == description
    assert sorted(each.name for each in path.parent.iterdir()) == ["state.json", "state.safetensors"]


def test_tuples_come_back_as_lists(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", {"betas": (0.9, (0.5, None))}, {})
    assert load_checkpoint(tmp_path / "a.safetensors")[0] == {"betas": [0.9, [0.5, None]]}


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"whole": whole, "row": whole[1], "again": whole, "parameter": torch.nn.Parameter(whole[:, 1])}
    save_checkpoint(tmp_path / "a.safetensors", state, {})
    loaded, _ = load_checkpoint(tmp_path / "a.safetensors")
    for name, value in state.items():
        assert torch.equal(loaded[name], value.detach())
    loaded["row"].zero_()
    assert torch.equal(loaded["whole"], whole)


def test_other_programs_find_the_tensors_by_dotted_name(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 3))
    save_checkpoint(tmp_path / "a.safetensors", {"net": net.state_dict()}, {})
    assert {name: value.shape for name, value in load_file(tmp_path / "a.safetensors").items()} == {
        "net.0.weight": (3, 2),
        "net.0.bias": (3,),
    }


def broken(path: Path, what: str) -> None:
    save_checkpoint(path, {"a": torch.ones(100), "b": {"c": torch.ones(3)}}, {"epoch": 1})
    whole = path.read_bytes()
    tensors = {"a": torch.ones(2)}
    ours = {"format": "chromabox-1", "description": "{}"}
    {
        "missing": path.unlink,
        "folder": lambda: (path.unlink(), path.mkdir()),
        "cut": lambda: path.write_bytes(whole[:-50]),
        "cut in the header": lambda: path.write_bytes(whole[:40]),
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_text("<html>sorry</html>"),
        "foreign": lambda: save_file(tensors, path),
        "another format": lambda: save_file(tensors, path, metadata={"format": "pt"}),
        "no state": lambda: save_file(tensors, path, metadata=ours),
        "bad state": lambda: save_file(tensors, path, metadata={**ours, "state": "{"}),
        "odd state": lambda: save_file(tensors, path, metadata={**ours, "state": '{"items": 3}'}),
        "tensor not there": lambda: save_file(tensors, path, metadata={**ours, "state": '{"tensor": "b"}'}),
    }[what]()


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("missing", "there is no such checkpoint; give a .safetensors file"),
        ("folder", "there is no such checkpoint"),
        ("cut", "broken or truncated checkpoint .*; take another copy"),
        ("cut in the header", "broken or truncated checkpoint"),
        ("empty", "broken or truncated checkpoint"),
        ("text", "broken or truncated checkpoint"),
        ("foreign", "not a chromabox checkpoint"),
        ("another format", "not a chromabox checkpoint"),
        ("no state", "broken or truncated checkpoint"),
        ("bad state", "broken or truncated checkpoint"),
        ("odd state", "broken or truncated checkpoint"),
        ("tensor not there", "broken or truncated checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_one_sentence(tmp_path: Path, what: str, sentence: str) -> None:
    path = tmp_path / "a.safetensors"
    broken(path, what)
    with pytest.raises(ChromaboxError, match=sentence) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "description", "error"),
    [
        ({"a": object()}, {}, TypeError),
        ({"a": 1}, {"b": object()}, TypeError),
        ({"a": 1}, {"loss": float("nan")}, ValueError),
        # Safetensors has no such type; the failure comes while the file is being written.
        ({"a": torch.zeros(2, dtype=torch.complex128)}, {}, KeyError),
    ],
)
def test_a_failed_save_leaves_the_old_checkpoint_and_nothing_else(
    tmp_path: Path, state: dict[str, Any], description: dict[str, Any], error: type[Exception]
) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"a": torch.ones(2)}, {"epoch": 1})
    with pytest.raises(error):
        save_checkpoint(path, state, description)
    loaded, described = load_checkpoint(path)
    assert torch.equal(loaded["a"], torch.ones(2))
    assert described == {"epoch": 1}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def test_a_disk_that_refuses_leaves_no_part_file(tmp_path: Path) -> None:
    """A folder in the way of the finished file lets the writing succeed and the renaming fail."""
    for name in ("a.json", "b.safetensors"):
        (tmp_path / name / "x").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_json(tmp_path / "a.json", {})
    with pytest.raises(OSError, match="directory"):
        save_checkpoint(tmp_path / "b.safetensors", {"a": torch.ones(2)}, {})
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.json", "b.safetensors"]
