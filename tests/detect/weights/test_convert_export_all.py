"""Export of a detector to other formats: files are read back, and no file is left if it would differ."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chromabox.detect.models.architecture import ULTRALYTICS_9_0
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.weights import convert
from chromabox.detect.weights.convert import export_all_formats, export_darknet
from chromabox.detect.weights.load import Detector, load_detector
from chromabox.engine.darknet_weights import read_darknet_weights, write_darknet_weights
from chromabox.errors import ChromaboxError, UsageError
from detector_fixtures import CLASS_NAMES, make_small_detector


def test_darknet_files_contain_the_same_model(tmp_path: Path) -> None:
    detector = make_small_detector()
    export_darknet(detector, tmp_path / "a.weights")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.cfg", "a.names", "a.weights"]
    assert (tmp_path / "a.names").read_text().splitlines() == list(CLASS_NAMES)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = load_detector(tmp_path / "a.weights").model(images)
        for output, expected in zip(outputs, detector.model(images), strict=True):
            assert torch.equal(output, expected)
    assert load_detector(tmp_path / "a.weights").classes == CLASS_NAMES


@pytest.mark.parametrize("name", ["red\nfox", " fox", "cat"])
def test_class_names_that_a_names_file_cannot_contain_are_reported(name: str, tmp_path: Path) -> None:
    detector = replace(make_small_detector(), classes=(*CLASS_NAMES[:2], name))
    with pytest.raises(ChromaboxError, match=r"a\.weights: not written, because the detector cannot be stored exactly"):
        export_darknet(detector, tmp_path / "a.weights")
    assert not list(tmp_path.iterdir())


def test_files_with_different_weights_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_modified(path: Path, model: DarknetModel, seen: int = 0) -> None:
        original(path, model, seen)
        file = read_darknet_weights(path)
        values = file.values.copy()
        values[-1] = np.nextafter(values[-1], np.float32(9))
        write_darknet_weights(path, type(file)(values, seen))

    original = convert.write_darknet
    monkeypatch.setattr(convert, "write_darknet", write_modified)
    with pytest.raises(
        ChromaboxError,
        match=r"a\.weights: not written, because the detector cannot be stored exactly in Darknet format",
    ):
        export_darknet(make_small_detector(), tmp_path / "a.weights")
    assert not list(tmp_path.iterdir())


def test_failed_export_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(detector: Detector, path: Path) -> None:
        raise UsageError("exporting needs the library onnx")

    monkeypatch.setattr(convert, "export_detector", fail)
    assert list(export_all_formats(make_small_detector(ULTRALYTICS_9_0), tmp_path)) == [
        "no best.onnx: exporting needs the library onnx"
    ]
    lines = list(export_all_formats(make_small_detector(), tmp_path))
    assert lines[1].startswith(f"for Darknet: {tmp_path}/best.weights, best.cfg and best.names")
