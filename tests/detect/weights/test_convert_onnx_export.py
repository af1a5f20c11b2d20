"""Exported detectors against PyTorch, and against onnx's own reference evaluator, which is plain numpy."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from chromabox.detect.inference.predict import detect_image
from chromabox.detect.inference.runtime import optimize_for_inference
from chromabox.detect.models.architecture import Architecture, Convolution, MaxPool, Route, Shortcut, Upsample, Yolo
from chromabox.detect.models.darknet import DARKNET, ULTRALYTICS_9_6, DarknetModel, Variant, decode_all
from chromabox.detect.weights import convert as export
from chromabox.detect.weights.convert import DetectorExportReport, export_detector
from chromabox.detect.weights.load import Detector, is_detector, load_detector
from chromabox.errors import ChromaboxError, UsageError
from detector_fixtures import CLASS_NAMES, make_small_detector

onnx = pytest.importorskip("onnx", reason="the export extra writes and runs the files of these tests")


def two_heads(kind: Variant = ULTRALYTICS_9_6) -> Detector:
    """Every kind of layer once, two heads of different anchors, and numbers that are all drawn."""
    anchors = ((8.0, 9.0), (20.0, 12.0), (30.0, 40.0))
    layers = (
        Convolution(4, 3, 2),
        Convolution(4, 3),
        Shortcut(0),
        MaxPool(2, 2),
        MaxPool(2, 1),
        Convolution(2 * 7, 1, batch_normalise=False, activation="linear"),
        Yolo((1, 2), anchors, 2),
        Route((4,)),
        Upsample(2),
        Route((8, 2)),
        Convolution(7, 1, batch_normalise=False, activation="linear"),
        Yolo((0,), anchors, 2),
    )
    generator = torch.Generator().manual_seed(3)
    net = DarknetModel(Architecture("two", layers, size=32), kind).eval()
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) - (-0.5 if "var" in name else 0.4))
    return Detector(net, ("one", "two words"), 32, {"seed": 7})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, Path, DetectorExportReport]:
    trained, path = two_heads(), tmp_path_factory.mktemp("onnx") / "new" / "two.onnx"
    return trained, path, export_detector(trained, path, size=64)


def test_the_file_computes_boxes_and_scores_for_any_batch(
    exported: tuple[Detector, Path, DetectorExportReport],
) -> None:
    trained, path, parity = exported
    assert 0 < parity.max_difference <= 1e-4
    assert parity.num_images == 4
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = decode_all(trained.model(images), trained.architecture, trained.variant, 64)
    assert expected[1].std() > 1e-3  # else any net would pass
    reference = onnx.reference.ReferenceEvaluator(onnx.load(path))
    for count in (1, 3):
        boxes, scores = reference.run(None, {"images": images[:count].numpy()})
        np.testing.assert_allclose(boxes, expected[0][:count], atol=1e-3)
        np.testing.assert_allclose(scores, expected[1][:count], atol=1e-5)


@pytest.mark.parametrize("kind", [DARKNET, ULTRALYTICS_9_6])
def test_what_is_found_is_the_same_to_the_bit(kind: Variant, tmp_path: Path) -> None:
    trained = make_small_detector(kind)
    export_detector(trained, tmp_path / "a.onnx")
    assert is_detector(tmp_path / "a.onnx")
    back = load_detector(tmp_path / "a.onnx")
    assert (back.classes, back.size, back.variant) == (CLASS_NAMES, 64, kind)
    pixels = data.coffee()
    ours, theirs = (detect_image(pixels, optimize_for_inference(one), confidence=0.1) for one in (trained, back))
    assert len(ours.xyxy) > 3
    np.testing.assert_array_equal(theirs.xyxy, ours.xyxy)
    np.testing.assert_array_equal(theirs.confidence, ours.confidence)
    np.testing.assert_array_equal(theirs.data["class_name"], ours.data["class_name"])


def test_the_metadata_are_enough_for_a_user_without_chromabox(
    exported: tuple[Detector, Path, DetectorExportReport],
) -> None:
    trained, path, _ = exported
    model = onnx.load(path)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["classes"]) == ["one", "two words"]
    assert (said["size"], float(said["letterbox_grey"])) == ("64", 114 / 255)
    assert json.loads(said["anchors"]) == [[[20.0, 12.0], [30.0, 40.0]], [[8.0, 9.0]]]
    assert json.loads(said["detector"])["kind"]["name"] == "ultralytics-9.6"
    sides = [one.dim_param or one.dim_value for one in model.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["batch", 3, 64, 64]
    assert b".py" not in path.read_bytes()
    assert load_detector(path).metadata["seed"] == trained.metadata["seed"]


def test_a_file_that_finds_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export._to_onnx

    def spoilt(net: export.ExportWrapper, size: int) -> "onnx.ModelProto":
        model = real(net, size)
        bias = next(one for one in model.graph.initializer if one.name.endswith("layers.5.convolution.bias"))
        values = onnx.numpy_helper.to_array(bias) + np.float32(0.01)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return model

    monkeypatch.setattr(export, "_to_onnx", spoilt)
    (tmp_path / "a.onnx").write_bytes(b"older")
    with pytest.raises(ChromaboxError, match=r"a\.onnx: not written because its outputs would differ from PyTorch"):
        export_detector(make_small_detector(), tmp_path / "a.onnx")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.onnx", b"older")]


def test_what_does_not_fit_is_refused_before_anything_is_converted(
    exported: tuple[Detector, Path, DetectorExportReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_to_onnx", None)
    with pytest.raises(UsageError, match=r"a\.pt: expected the suffix \.onnx"):
        export_detector(make_small_detector(), tmp_path / "a.pt")
    with pytest.raises(UsageError, match="size is 65: small needs a multiple of 32"):
        export_detector(make_small_detector(), tmp_path / "a.onnx", size=65)
    _, path, _ = exported
    with pytest.raises(UsageError, match=r"two\.onnx: says its architecture itself"):
        load_detector(path, architecture="yolov3-tiny")
    with pytest.raises(UsageError, match=r"of kind ultralytics-9\.6, not darknet"):
        load_detector(path, variant=DARKNET)


@pytest.mark.parametrize("said", ["", "{", '{"net": "unet"}', '{"net": "detector"}'])
def test_damaged_metadata_are_refused(
    said: str, exported: tuple[Detector, Path, DetectorExportReport], tmp_path: Path
) -> None:
    model = onnx.load(exported[1])
    next(entry for entry in model.metadata_props if entry.key == "detector").value = said
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ChromaboxError, match=r"a\.onnx: (its metadata is damaged|not a checkpoint of a detector)"):
        load_detector(tmp_path / "a.onnx")


def test_other_files_are_no_detectors(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"something")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert not is_detector(tmp_path / "a.onnx")
    assert not is_detector(tmp_path / "a.png")
    assert not is_detector(tmp_path / "none.onnx")


def test_not_a_number_is_no_parity() -> None:
    assert not DetectorExportReport(float("nan"), 0.0, 4).max_difference <= 1e-4
    assert replace(DetectorExportReport(1e-6, 2e-6, 4)).max_difference == pytest.approx(2e-6)
