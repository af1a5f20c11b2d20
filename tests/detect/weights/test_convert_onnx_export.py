"""Exported detectors against PyTorch, and against the reference evaluator of onnx, which uses NumPy."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from chromabox.detect.inference.predict import detect_image
from chromabox.detect.models.architecture import (
    DARKNET,
    ULTRALYTICS_9_6,
    Architecture,
    Convolution,
    MaxPool,
    Route,
    Shortcut,
    Upsample,
    Variant,
    Yolo,
)
from chromabox.detect.models.darknet import DarknetModel, decode_all
from chromabox.detect.weights import convert
from chromabox.detect.weights.convert import DetectorExportReport, export_detector
from chromabox.detect.weights.load import Detector, is_detector, load_detector
from chromabox.errors import ChromaboxError, UsageError
from detector_fixtures import CLASS_NAMES, make_small_detector

onnx = pytest.importorskip("onnx", reason="the export extra writes and runs the files of these tests")


def make_two_head_detector(variant: Variant = ULTRALYTICS_9_6) -> Detector:
    """Return a detector with all layer types, two heads with different anchors, and random weights."""
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
    model = DarknetModel(Architecture("two", layers, size=32), variant).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) - (-0.5 if "var" in name else 0.4))
    return Detector(model, ("one", "two words"), 32, {"seed": 7})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, Path, DetectorExportReport]:
    detector, path = make_two_head_detector(), tmp_path_factory.mktemp("onnx") / "new" / "two.onnx"
    return detector, path, export_detector(detector, path, size=64)


def test_exported_file_computes_boxes_and_scores_for_any_batch_size(
    exported: tuple[Detector, Path, DetectorExportReport],
) -> None:
    detector, path, report = exported
    assert 0 < report.max_difference <= 1e-4
    assert report.num_images == 4
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = decode_all(detector.model(images), detector.architecture, detector.variant, 64)
    assert expected[1].std() > 1e-3  # Otherwise any model would pass.
    reference = onnx.reference.ReferenceEvaluator(onnx.load(path))
    for count in (1, 3):
        boxes, scores = reference.run(None, {"images": images[:count].numpy()})
        np.testing.assert_allclose(boxes, expected[0][:count], atol=1e-3)
        np.testing.assert_allclose(scores, expected[1][:count], atol=1e-5)


@pytest.mark.parametrize("variant", [DARKNET, ULTRALYTICS_9_6])
def test_detections_of_exported_file_are_bit_identical(variant: Variant, tmp_path: Path) -> None:
    detector = make_small_detector(variant)
    export_detector(detector, tmp_path / "a.onnx")
    assert is_detector(tmp_path / "a.onnx")
    loaded = load_detector(tmp_path / "a.onnx")
    assert (loaded.classes, loaded.size, loaded.variant) == (CLASS_NAMES, 64, variant)
    pixels = data.coffee()
    expected, detections = (detect_image(pixels, one, confidence=0.1) for one in (detector.fused(), loaded.fused()))
    assert len(expected.xyxy) > 3
    np.testing.assert_array_equal(detections.xyxy, expected.xyxy)
    np.testing.assert_array_equal(detections.confidence, expected.confidence)
    np.testing.assert_array_equal(detections.class_names, expected.class_names)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_very_large_boxes_are_compared_by_their_relative_difference(seed: int, tmp_path: Path) -> None:
    """These random weights give sides of thousands to millions of pixels."""
    report = export_detector(make_small_detector(seed=seed), tmp_path / "a.onnx")
    assert 0 < report.box_difference < 5e-5


def test_metadata_describe_the_use_without_chromabox(
    exported: tuple[Detector, Path, DetectorExportReport],
) -> None:
    detector, path, _ = exported
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["classes"]) == ["one", "two words"]
    assert (metadata["size"], float(metadata["letterbox_grey"])) == ("64", 114 / 255)
    assert json.loads(metadata["anchors"]) == [[[20.0, 12.0], [30.0, 40.0]], [[8.0, 9.0]]]
    assert json.loads(metadata["detector"])["kind"]["name"] == "ultralytics-9.6"
    shape = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 3, 64, 64]
    assert b".py" not in path.read_bytes()
    assert load_detector(path).metadata["seed"] == detector.metadata["seed"]


def test_file_with_different_outputs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = convert._to_onnx

    def export_modified(wrapper: convert.ExportWrapper, size: int) -> "onnx.ModelProto":
        model = original(wrapper, size)
        bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("layers.5.convolution.bias"))
        values = onnx.numpy_helper.to_array(bias) + np.float32(0.01)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return model

    monkeypatch.setattr(convert, "_to_onnx", export_modified)
    (tmp_path / "a.onnx").write_bytes(b"older")
    with pytest.raises(ChromaboxError, match=r"a\.onnx: not written because its outputs would differ from PyTorch"):
        export_detector(make_small_detector(), tmp_path / "a.onnx")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.onnx", b"older")]


def test_invalid_options_are_rejected_before_the_export(
    exported: tuple[Detector, Path, DetectorExportReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_to_onnx", None)
    with pytest.raises(UsageError, match=r"a\.pt: expected the suffix \.onnx"):
        export_detector(make_small_detector(), tmp_path / "a.pt")
    with pytest.raises(UsageError, match="size is 65: expected a multiple of 32 for small"):
        export_detector(make_small_detector(), tmp_path / "a.onnx", size=65)
    _, path, _ = exported
    with pytest.raises(UsageError, match=r"two\.onnx: the file defines the architecture"):
        load_detector(path, architecture="yolov3-tiny")
    with pytest.raises(UsageError, match=r"the variant of the weights is ultralytics-9\.6, not darknet"):
        load_detector(path, variant=DARKNET)


@pytest.mark.parametrize("content", ["", "{", '{"net": "unet"}', '{"net": "detector"}'])
def test_damaged_metadata_are_rejected(
    content: str, exported: tuple[Detector, Path, DetectorExportReport], tmp_path: Path
) -> None:
    model = onnx.load(exported[1])
    next(entry for entry in model.metadata_props if entry.key == "detector").value = content
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ChromaboxError, match=r"a\.onnx: (the metadata is damaged|not a checkpoint of a detector)"):
        load_detector(tmp_path / "a.onnx")


def test_other_files_are_not_detectors(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"something")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert not is_detector(tmp_path / "a.onnx")
    assert not is_detector(tmp_path / "a.png")
    assert not is_detector(tmp_path / "none.onnx")


def test_nan_difference_exceeds_the_tolerance() -> None:
    assert not DetectorExportReport(float("nan"), 0.0, 4).max_difference <= 1e-4
    assert replace(DetectorExportReport(1e-6, 2e-6, 4)).max_difference == pytest.approx(2e-6)
