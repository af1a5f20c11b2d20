"""ONNX Runtime sessions of small models built by onnx's helpers; expected outputs from direct calculation."""

import sys
from pathlib import Path

import numpy as np
import pytest

from chromabox.errors import ChromaboxError, UsageError
from chromabox.runtime.session import one_line, open_session, require_onnx

onnx = pytest.importorskip("onnx", reason="the export extra builds and runs the models of these tests")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write the model y = x + x and return its path."""
    make, floats = onnx.helper, onnx.TensorProto.FLOAT
    values = [make.make_tensor_value_info(name, floats, ["n"]) for name in "xy"]
    graph = make.make_graph([make.make_node("Add", ["x", "x"], ["y"])], "doubling", values[:1], values[1:])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def test_session_runs_the_model(path: Path) -> None:
    session = open_session(path, path.read_bytes(), ["x"], ["y"])
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.run(["y"], {"x": np.array([1.5, -2.0], np.float32)})[0].tolist() == [3.0, -4.0]


def test_other_input_and_output_names_are_rejected(path: Path) -> None:
    with pytest.raises(ChromaboxError, match=r"has inputs \['x'\] and outputs \['y'\]; expected \['x'\] and \['z'\]"):
        open_session(path, path.read_bytes(), ["x"], ["z"])


def test_invalid_model_raises_a_one_line_error(path: Path) -> None:
    with pytest.raises(ChromaboxError, match=r"a\.onnx: onnxruntime cannot open the model") as caught:
        open_session(path, b"not a model", ["x"], ["y"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_missing_library_is_reported_with_the_extra(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"ONNX files require {name}: .*chromabox\[export\]"):
        require_onnx()


def test_one_line_joins_lines_and_limits_the_length() -> None:
    assert one_line(ValueError("first\n  second\n")) == "first second"
    assert len(one_line(ValueError("x" * 500))) == 300
