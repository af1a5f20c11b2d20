"""Copies of a detector for other programs: read back, and refused where they would be another net."""

from pathlib import Path

import numpy as np
import pytest
import torch

from chromabox.detect.models.darknet import ULTRALYTICS_9_0, DarknetModel
from chromabox.detect.weights import convert as copies
from chromabox.detect.weights.convert import export_all_formats, export_darknet
from chromabox.detect.weights.load import Detector, load_detector
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.darknet_weights import read_darknet_weights, write_darknet_weights
from detector_fixtures import CLASS_NAMES, make_small_detector


def test_darknet_s_files_are_the_net_itself(tmp_path: Path) -> None:
    trained = make_small_detector()
    export_darknet(trained, tmp_path / "a.weights")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.cfg", "a.names", "a.weights"]
    assert (tmp_path / "a.names").read_text().splitlines() == list(CLASS_NAMES)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for one, other in zip(load_detector(tmp_path / "a.weights").model(images), trained.model(images), strict=True):
            assert torch.equal(one, other)


def test_files_that_hold_another_net_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nearly(path: Path, net: DarknetModel, seen: int = 0) -> None:
        real(path, net, seen)
        file = read_darknet_weights(path)
        numbers = file.values.copy()
        numbers[-1] = np.nextafter(numbers[-1], np.float32(9))
        write_darknet_weights(path, type(file)(numbers, seen))

    real = copies.write_darknet
    monkeypatch.setattr(copies, "write_darknet", nearly)
    with pytest.raises(ChromaboxError, match=r"a\.weights: not written, darknet's files would hold another net"):
        export_darknet(make_small_detector(), tmp_path / "a.weights")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(trained: Detector, path: Path) -> None:
        raise UsageError("exporting needs the library onnx")

    monkeypatch.setattr(copies, "export_detector", refuse)
    assert list(export_all_formats(make_small_detector(ULTRALYTICS_9_0), tmp_path)) == [
        "no best.onnx: exporting needs the library onnx"
    ]
    lines = list(export_all_formats(make_small_detector(), tmp_path))
    assert lines[1].startswith(f"for darknet: {tmp_path}/best.weights with best.cfg and best.names")
