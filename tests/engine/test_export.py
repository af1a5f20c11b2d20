"""ONNX export: files with different outputs are not written. Real models are tested with the models."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from chromabox.engine.export import MAX_DIFFERENCE, one_thread, require_onnx_suffix, save_verified, to_onnx
from chromabox.errors import ChromaboxError, UsageError
from chromabox.runtime.session import open_session

onnx = pytest.importorskip("onnx", reason="the export extra writes and runs the files of these tests")


@dataclass(frozen=True)
class Difference:
    """Replacement for the report of a comparison."""

    max_difference: float


def doubling_model() -> "onnx.ModelProto":
    """Return the model y = x + x, built by onnx's helpers."""
    make, floats = onnx.helper, onnx.TensorProto.FLOAT
    values = [make.make_tensor_value_info(name, floats, ["n"]) for name in "xy"]
    graph = make.make_graph([make.make_node("Add", ["x", "x"], ["y"])], "doubling", values[:1], values[1:])
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize("max_difference", [MAX_DIFFERENCE * 1.01, float("inf"), float("nan")])
def test_file_with_different_outputs_is_not_written(max_difference: float, tmp_path: Path) -> None:
    with pytest.raises(ChromaboxError, match=r"a\.onnx: not written because its outputs would differ from PyTorch"):
        save_verified(tmp_path / "a.onnx", doubling_model(), {}, lambda path: Difference(max_difference))
    assert not list(tmp_path.iterdir())


def test_compared_file_is_saved(tmp_path: Path) -> None:
    contents: list[bytes] = []

    def compare(path: Path) -> Difference:
        contents.append(path.read_bytes())
        return Difference(0.0)

    path = tmp_path / "new" / "a.onnx"
    assert save_verified(path, doubling_model(), {"key": "ä"}, compare) == Difference(0.0)
    assert path.read_bytes() == contents[0]
    assert [(entry.key, entry.value) for entry in onnx.load(path).metadata_props] == [("key", "ä")]
    session = open_session(path, path.read_bytes(), ["x"], ["y"])
    assert session.run(["y"], {"x": torch.tensor([1.5, -2.0]).numpy()})[0].tolist() == [3.0, -4.0]


def test_path_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ChromaboxError, match=r"a\.onnx: cannot be written"):
        save_verified(tmp_path / "file" / "a.onnx", doubling_model(), {}, lambda path: Difference(0.0))


def test_unsupported_model_is_rejected() -> None:
    class DataDependent(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if float(images.sum()) > 0 else -images

    with pytest.raises(ChromaboxError, match="the model cannot be exported to ONNX with opset 18"):
        to_onnx(DataDependent().eval(), torch.zeros(2, 3), {0: torch.export.Dim("n")}, ["x"], ["y"])


def test_missing_libraries_and_other_suffixes_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    require_onnx_suffix(Path("a.ONNX"))
    with pytest.raises(UsageError, match=r"a\.pt: expected the suffix \.onnx; use, for example, a\.onnx"):
        require_onnx_suffix(Path("a.pt"))

    def fail_to_import(*args: object, **kwargs: object) -> None:
        raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")

    monkeypatch.setattr("torch.onnx.export", fail_to_import)
    with pytest.raises(UsageError, match=r"exporting requires onnxscript, .*chromabox\[train\]"):
        to_onnx(nn.Identity(), torch.zeros(2), {}, ["x"], ["y"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_one_thread_works_in_a_process_forked_after_threads_were_used() -> None:
    """Without ``one_thread``, the child waits forever for the threads of its parent."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        values = torch.rand(1 << 20)
        expected = values.exp().sum()
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            with one_thread():
                is_right = torch.get_num_threads() == 1 and torch.allclose(values.exp().sum(), expected)
            os._exit(0 if is_right and torch.get_num_threads() == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        torch.set_num_threads(threads)
