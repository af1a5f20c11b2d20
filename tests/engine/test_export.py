"""What both wings' exports share: a file that differs is not written, whatever the reason; real nets are the wings'."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from chromabox.engine.export import MAX_DIFFERENCE, require_onnx_suffix, save_verified, to_onnx
from chromabox.errors import ChromaboxError, UsageError
from chromabox.runtime.session import open_session

onnx = pytest.importorskip("onnx", reason="the export extra writes and runs the files of these tests")


@dataclass(frozen=True)
class Difference:
    """Stands for a wing's own comparison."""

    worst: float


def doubling() -> "onnx.ModelProto":
    """y = x + x, made by onnx's own helpers."""
    make, floats = onnx.helper, onnx.TensorProto.FLOAT
    ends = [make.make_tensor_value_info(name, floats, ["n"]) for name in "xy"]
    graph = make.make_graph([make.make_node("Add", ["x", "x"], ["y"])], "doubling", ends[:1], ends[1:])
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize("worst", [MAX_DIFFERENCE * 1.01, float("inf"), float("nan")])
def test_a_file_that_differs_is_not_written(worst: float, tmp_path: Path) -> None:
    with pytest.raises(ChromaboxError, match=r"a\.onnx: not written, the file would compute something else"):
        save_verified(tmp_path / "a.onnx", doubling(), {}, lambda path: Difference(worst))
    assert not list(tmp_path.iterdir())


def test_what_is_compared_is_the_file_that_stays(tmp_path: Path) -> None:
    seen: list[bytes] = []

    def compare(path: Path) -> Difference:
        seen.append(path.read_bytes())
        return Difference(0.0)

    path = tmp_path / "new" / "a.onnx"
    assert save_verified(path, doubling(), {"said": "ä"}, compare) == Difference(0.0)
    assert path.read_bytes() == seen[0]
    assert [(entry.key, entry.value) for entry in onnx.load(path).metadata_props] == [("said", "ä")]
    session = open_session(path, path.read_bytes(), ["x"], ["y"])
    assert session.run(["y"], {"x": torch.tensor([1.5, -2.0]).numpy()})[0].tolist() == [3.0, -4.0]
    with pytest.raises(ChromaboxError, match=r"has the inputs \['x'\] and outputs \['y'\]; x and z is right"):
        open_session(path, path.read_bytes(), ["x"], ["z"])
    with pytest.raises(ChromaboxError, match="onnxruntime cannot open it"):
        open_session(path, b"nothing of the kind", ["x"], ["y"])


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ChromaboxError, match=r"a\.onnx: cannot be written"):
        save_verified(tmp_path / "file" / "a.onnx", doubling(), {}, lambda path: Difference(0.0))


def test_a_net_that_the_exporter_does_not_understand_is_refused() -> None:
    class Odd(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if float(images.sum()) > 0 else -images

    with pytest.raises(ChromaboxError, match="this net cannot be exported as ONNX with opset 18"):
        to_onnx(Odd().eval(), torch.zeros(2, 3), {0: torch.export.Dim("n")}, ["x"], ["y"])


def test_missing_libraries_and_other_suffixes(monkeypatch: pytest.MonkeyPatch) -> None:
    require_onnx_suffix(Path("a.ONNX"))
    with pytest.raises(UsageError, match=r"a\.pt: does not end in \.onnx; name the file a\.onnx, say"):
        require_onnx_suffix(Path("a.pt"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"ONNX files need the library onnxruntime: .*chromabox\[export\]"):
        to_onnx(nn.Identity(), torch.zeros(2), {}, ["x"], ["y"])
