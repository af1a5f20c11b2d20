"""Loading and saving of detectors with small architectures: formats, bit-identical round trips, and errors."""

import contextlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from chromabox.detect.data.dataset import COCO_CLASSES, default_class_names
from chromabox.detect.models.architecture import (
    DARKNET,
    ULTRALYTICS_9_0,
    ULTRALYTICS_9_6,
    Architecture,
    Convolution,
    MaxPool,
    Route,
    Shortcut,
    Upsample,
    Yolo,
    yolov3_tiny,
)
from chromabox.detect.models.darknet import ConvolutionLayer, DarknetModel
from chromabox.detect.weights.convert import convert_weights
from chromabox.detect.weights.darknet_cfg import write_cfg
from chromabox.detect.weights.load import (
    Detector,
    architecture_as_json,
    architecture_from_json,
    download_pretrained,
    load_detector,
    save_detector,
    write_darknet,
)
from chromabox.engine.checkpoint import save_checkpoint
from chromabox.errors import ChromaboxError, UsageError

ANCHORS = ((10.0, 14.5), (23.0, 27.0))
ARCHITECTURE = Architecture(
    "net",
    (
        Convolution(4, 3, 2),
        Convolution(4, 3, groups=2),
        Shortcut(0),
        MaxPool(2, 2),
        Upsample(2),
        Route((4, 0)),
        Convolution(14, 1, batch_normalise=False, activation="linear"),
        Yolo((1, 0), ANCHORS, 2),
    ),
    size=32,
)
#: Computed by hand: (3·9 + 4)·4 + (2·9 + 4)·4 + 8·14 + 14.
NUM_WEIGHTS = 338


def write_darknet_file(path: Path, values: np.ndarray, seen: int = 5) -> Path:
    path.write_bytes(struct.pack("<3iq", 0, 2, 0, seen) + values.astype("<f4").tobytes())
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Random weights of the small architecture, with its configuration in the same folder."""
    write_cfg(ARCHITECTURE, tmp_path / "net.cfg")
    values = np.random.default_rng(0).uniform(0.1, 1, NUM_WEIGHTS)
    return write_darknet_file(tmp_path / "net.weights", values)


def test_tensors_are_in_darknet_order(weights: Path) -> None:
    write_darknet_file(weights, np.arange(NUM_WEIGHTS))
    detector = load_detector(weights)
    first, second, last = (detector.model.layers[index] for index in (0, 1, 6))
    assert isinstance(first, ConvolutionLayer)
    assert isinstance(second, ConvolutionLayer)
    assert isinstance(last, ConvolutionLayer)
    assert first.norm is not None
    assert second.norm is not None
    assert first.norm.running_mean is not None
    assert first.norm.running_var is not None
    assert last.convolution.bias is not None
    assert first.norm.bias.tolist() == [0, 1, 2, 3]
    assert first.norm.weight.tolist() == [4, 5, 6, 7]
    assert first.norm.running_mean.tolist() == [8, 9, 10, 11]
    assert first.norm.running_var.tolist() == [12, 13, 14, 15]
    # Kernel [out, in, height, width] in C order.
    assert first.convolution.weight[2, 1, 0, 2] == 16 + ((2 * 3 + 1) * 3 + 0) * 3 + 2
    assert second.norm.bias[0] == 124
    assert last.convolution.bias.tolist() == list(range(212, 226))
    assert last.convolution.weight.flatten().tolist() == list(range(226, 338))
    assert not detector.model.training
    assert (detector.variant, detector.size, detector.classes) == (DARKNET, 32, ("class 0", "class 1"))
    assert detector.metadata["source"] == {"file": "net.weights", "seen": 5}


def test_written_weights_are_bit_identical_to_the_file_read(weights: Path, tmp_path: Path) -> None:
    detector = load_detector(weights)
    write_darknet(tmp_path / "again.weights", detector.model, seen=5)
    assert (tmp_path / "again.weights").read_bytes() == weights.read_bytes()


@torch.no_grad()
def test_safetensors_file_contains_all_metadata(weights: Path, tmp_path: Path) -> None:
    original = load_detector(weights, classes=["cat", "dog"], variant=ULTRALYTICS_9_6)
    save_detector(tmp_path / "own.safetensors", original)
    loaded = load_detector(tmp_path / "own.safetensors")
    assert (loaded.architecture, loaded.variant, loaded.classes, loaded.size) == (
        ARCHITECTURE,
        ULTRALYTICS_9_6,
        ("cat", "dog"),
        32,
    )
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(loaded.model(images), original.model(images), rtol=0, atol=0)
    metadata = json.loads((tmp_path / "own.json").read_text())
    assert metadata["kind"]["activation"] == "silu"
    assert metadata["kind"]["epsilon"] == 1e-3
    assert metadata["architecture"]["layers"][7]["mask"] == [1, 0]
    assert metadata["classes"] == ["cat", "dog"]
    (tmp_path / "run").mkdir()
    (tmp_path / "own.safetensors").rename(tmp_path / "run" / "best.safetensors")
    assert load_detector(tmp_path / "run").classes == ("cat", "dog")
    assert load_detector(tmp_path / "run", classes=["a", "b"]).classes == ("a", "b")


@pytest.mark.parametrize("category_ids", [[1], [1, 1], ["1", "2"], [True, False], "12", {"cat": 1}, [1.0, 2.0]])
def test_damaged_category_ids_are_rejected(weights: Path, tmp_path: Path, category_ids: object) -> None:
    detector = load_detector(weights, classes=["cat", "dog"], variant=ULTRALYTICS_9_6)
    save_detector(tmp_path / "own.safetensors", replace(detector, metadata={"category_ids": category_ids}))
    with pytest.raises(ChromaboxError, match=r"own.safetensors: not a checkpoint of a detector \(category_ids"):
        load_detector(tmp_path / "own.safetensors")


def test_architectures_round_trip_through_json() -> None:
    for architecture in (ARCHITECTURE, yolov3_tiny(3)):
        assert architecture_from_json(json.loads(json.dumps(architecture_as_json(architecture)))) == architecture


@pytest.mark.parametrize(("change", "problem"), [(-1, "truncated"), (1, "too long"), (-100, "truncated")])
def test_file_of_wrong_size_is_rejected_with_both_sizes(weights: Path, change: int, problem: str) -> None:
    write_darknet_file(weights, np.ones(NUM_WEIGHTS + change))
    message = rf"net\.weights: {problem} or for another architecture \({NUM_WEIGHTS + change:,} values\)"
    with pytest.raises(ChromaboxError, match=rf"{message}; expected {NUM_WEIGHTS} for net \(classes: 2\)"):
        load_detector(weights)


def test_non_finite_weights_are_rejected(weights: Path) -> None:
    values = np.ones(NUM_WEIGHTS)
    values[17] = np.nan
    with pytest.raises(ChromaboxError, match="contains values that are not finite"):
        load_detector(write_darknet_file(weights, values))


@pytest.mark.parametrize("num_classes", [80, 1, 20])
def test_architecture_is_inferred_from_the_number_of_weights(tmp_path: Path, num_classes: int) -> None:
    architecture = yolov3_tiny(num_classes)
    path = write_darknet_file(tmp_path / "some.weights", np.full(architecture.num_weights, 0.5))
    assert load_detector(path).architecture == architecture
    assert load_detector(path, architecture="yolov3-tiny").architecture == architecture
    assert load_detector(path, variant=ULTRALYTICS_9_0).architecture.yolo_layers[1].mask == (0, 1, 2)
    with pytest.raises(ChromaboxError, match=r"match no known architecture \(yolov3 with 80 classes has 62,001,757\)"):
        load_detector(path, architecture="yolov3")
    write_cfg(ARCHITECTURE, tmp_path / "net.cfg")
    with pytest.raises(ChromaboxError, match="too long or for another architecture"):
        load_detector(path, architecture=tmp_path / "net.cfg")


def test_unknown_number_of_weights_is_rejected_with_the_known_numbers(tmp_path: Path) -> None:
    path = write_darknet_file(tmp_path / "some.weights", np.ones(8_858_735))
    with pytest.raises(ChromaboxError, match=r"8,858,735 values .* yolov3-tiny with 80 classes has 8,858,734"):
        load_detector(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["cat"]}, r"\(different names: 1\); expected 2"),
        ({"classes": ["cat", "cat"]}, r"\(different names: 1\)"),
        ({"architecture": "yolov9"}, "--architecture is yolov9: expected yolov3, yolov3-tiny or a .cfg"),
    ],
)
def test_invalid_option_is_rejected(weights: Path, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_detector(weights, **options)


def test_missing_and_unsupported_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="weights do not exist; expected a file or the name of pretrained weights"):
        load_detector(tmp_path / "none.weights")
    (tmp_path / "a.txt").write_text("weights")
    with pytest.raises(UsageError, match=r"unsupported suffix .txt; expected .safetensors, .weights, .onnx or .pt"):
        load_detector(tmp_path / "a.txt")
    (tmp_path / "a.weights").write_bytes(b"<html>404</html>")
    with pytest.raises(ChromaboxError, match="not a Darknet weight file"):
        load_detector(tmp_path / "a.weights")
    with pytest.raises(UsageError, match="yolov9: unknown pretrained weights"):
        download_pretrained("yolov9")
    with pytest.raises(UsageError, match=r"a\.pth: unsupported suffix; expected .safetensors"):
        save_detector(tmp_path / "a.pth", Detector(DarknetModel(ARCHITECTURE, DARKNET), ("a", "b"), 32, {}))


def test_other_and_damaged_checkpoints_are_rejected(weights: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", {"net": {"a": torch.ones(2)}}, {"net": "unet"})
    with pytest.raises(ChromaboxError, match=r"not a checkpoint of a detector \(it contains unet\)"):
        load_detector(tmp_path / "a.safetensors")
    detector = load_detector(weights)
    save_detector(tmp_path / "own.safetensors", detector)
    with pytest.raises(UsageError, match="the variant of the weights is darknet, not ultralytics"):
        load_detector(tmp_path / "own.safetensors", variant=ULTRALYTICS_9_0)
    with pytest.raises(UsageError, match="the file defines the architecture"):
        load_detector(tmp_path / "own.safetensors", architecture="yolov3")
    wrong = Detector(detector.model, ("a", "b", "c"), 32, {})
    save_detector(tmp_path / "wrong.safetensors", wrong)
    with pytest.raises(ChromaboxError, match=r"wrong\.safetensors: .* 3 class names; expected 2 different names"):
        load_detector(tmp_path / "wrong.safetensors")
    content = (tmp_path / "own.safetensors").read_bytes()
    (tmp_path / "own.safetensors").write_bytes(content[:-9])
    with pytest.raises(ChromaboxError, match=r"own\.safetensors: corrupt or truncated checkpoint"):
        load_detector(tmp_path / "own.safetensors")


@pytest.mark.parametrize("layer", ["Dropout", "__import__", "Architecture"])
def test_unknown_layer_type_in_a_checkpoint_is_rejected(layer: str) -> None:
    stored = architecture_as_json(ARCHITECTURE)
    stored["layers"][0] = {"layer": layer}
    with pytest.raises(KeyError):
        architecture_from_json(stored)


def test_conversion_round_trip(weights: Path, tmp_path: Path, messages: list[str]) -> None:
    converted = convert_weights(str(weights))
    assert converted == tmp_path / "net.safetensors"
    assert messages[0] == "net from net.weights: variant darknet, layers: 8, weights: 338, classes: 2"
    assert "sanity check skipped" in messages[1]
    restored = convert_weights(str(converted), tmp_path / "new" / "back.weights")
    assert restored.read_bytes() == weights.read_bytes()
    assert replace(load_detector(restored).architecture, name="net") == ARCHITECTURE


# The format of Darknet's data/coco.names: one name per line, in the order of the indices.
@pytest.mark.parametrize("content", ["cat\ndog\n", "\ufeffcat\r\ndog", "cat \ndog\n\n"])
def test_class_names_are_read_from_the_file_next_to_the_weights(weights: Path, content: str) -> None:
    weights.with_suffix(".names").write_bytes(content.encode())
    detector = load_detector(weights)
    assert detector.classes == ("cat", "dog")
    assert detector.metadata["source"]["names"] == "net.names"
    # Explicit names have priority.
    assert load_detector(weights, classes=["hat", "fog"]).classes == ("hat", "fog")


@pytest.mark.parametrize(
    "content", ["cat\n", "cat\ncat\n", "cat\ndog\nfox\n", "cat\n\ndog\n", "", "\0" * (1 << 20) + "\n"]
)
def test_class_names_that_do_not_fit_the_weights_are_rejected(weights: Path, content: str) -> None:
    weights.with_suffix(".names").write_text(content)
    with pytest.raises(ChromaboxError, match=r"net\.names: .*expected (2 different names|class names of at most)"):
        load_detector(weights)
    assert load_detector(weights, classes=["cat", "dog"]).classes == ("cat", "dog")


def test_conversion_to_darknet_keeps_the_class_names(weights: Path, tmp_path: Path) -> None:
    original = load_detector(weights, classes=["кошка", "猫 2"])
    save_detector(tmp_path / "a.safetensors", original)
    convert_weights(str(tmp_path / "a.safetensors"), tmp_path / "b.weights", run_sanity_check=False)
    assert (tmp_path / "b.names").read_bytes().decode() == "кошка\n猫 2\n"
    assert load_detector(tmp_path / "b.weights").classes == original.classes
    (tmp_path / "b.weights").unlink()
    with pytest.raises(UsageError, match=r"b\.cfg.*: exists; use --overwrite"):
        convert_weights(
            str(tmp_path / "a.safetensors"), tmp_path / "b.weights", run_sanity_check=False, overwrite=False
        )


def test_conversion_of_a_file_that_is_not_an_onnx_model_is_rejected_in_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    path = tmp_path / "junk.onnx"
    path.write_bytes(b"not an ONNX model")
    with pytest.raises(ChromaboxError) as caught:
        convert_weights(str(path))
    assert str(caught.value) == f"{path}: the file is not an ONNX model or is damaged; use another file"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("net.weights", "is the same file as the input"),
        ("net.onnx", "unsupported suffix; expected .safetensors"),
    ],
)
def test_conversion_to_invalid_output_is_rejected(weights: Path, tmp_path: Path, output: str, message: str) -> None:
    before = weights.read_bytes()
    with pytest.raises(UsageError, match=message):
        convert_weights(str(weights), tmp_path / output)
    assert weights.read_bytes() == before


def test_untrained_weights_fail_the_sanity_check(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DarknetModel(yolov3_tiny(), DARKNET)
    write_darknet(tmp_path / "random.weights", model)
    with pytest.raises(ChromaboxError, match=r"sanity check failed .* the weights are untrained"):
        convert_weights(str(tmp_path / "random.weights"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["random.weights"]
    assert convert_weights(str(tmp_path / "random.weights"), run_sanity_check=False).is_file()


def test_default_class_names() -> None:
    assert len(set(COCO_CLASSES)) == 80
    assert (COCO_CLASSES[0], COCO_CLASSES[15], COCO_CLASSES[16], COCO_CLASSES[79]) == (
        "person",
        "cat",
        "dog",
        "toothbrush",
    )
    assert default_class_names(2) == ("class 0", "class 1")


def test_weights_are_counted_before_memory_is_allocated(tmp_path: Path) -> None:
    """A kernel of 30,000 × 30,000 would have 4·3·30000² = 10.8·10⁹ values, or 43 GB."""
    write_darknet_file(tmp_path / "a.weights", np.zeros(10, np.float32))
    convolution = "[convolutional]\nfilters=4\nsize=30000\npad=1\nactivation=leaky\n"
    head = "[convolutional]\nfilters=6\nactivation=linear\n[yolo]\nanchors=1,2\nclasses=1\n"
    (tmp_path / "a.cfg").write_text(f"[net]\nwidth=63\n{convolution}{head}".replace("width=63", "width=64\nheight=64"))
    with pytest.raises(ChromaboxError, match=r"a\.weights: truncated .* \(10 values\); expected 10,800,000,034"):
        load_detector(tmp_path / "a.weights")


@pytest.mark.parametrize("value", [None, True, -1, 10**9, 10**30, 1.5, float("inf"), "x", [[]], {"a": 1}])
@pytest.mark.parametrize(
    "key", ["architecture", "classes", "size", "kind", "layers", "filters", "stride", "anchors", "tiny_mask"]
)
def test_metadata_of_another_type_is_rejected(tmp_path: Path, key: str, value: object) -> None:
    detector = Detector(DarknetModel(ARCHITECTURE, DARKNET).eval(), ("cat", "dog"), 32, {})
    save_detector(tmp_path / "a.safetensors", detector)
    metadata = json.loads((tmp_path / "a.json").read_text())
    layers = metadata["architecture"]["layers"]
    parents = {"layers": metadata["architecture"], "filters": layers[0], "stride": layers[3], "anchors": layers[-1]}
    parents.get(key, metadata["kind"] if key == "tiny_mask" else metadata)[key] = value
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        header = file.metadata()
    save_file(
        load_file(tmp_path / "a.safetensors"),
        tmp_path / "b.safetensors",
        {**header, "description": json.dumps(metadata)},
    )
    with contextlib.suppress(ChromaboxError):  # Some values are valid, such as a mask of letters or no stride.
        assert load_detector(tmp_path / "b.safetensors").size == 32


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_checkpoint_with_values_that_are_not_finite_is_rejected(tmp_path: Path, value: float) -> None:
    model = DarknetModel(ARCHITECTURE, DARKNET).eval()
    with torch.no_grad():
        model.layers[0].norm.running_mean[1] = value
    save_detector(tmp_path / "a.safetensors", Detector(model, ("cat", "dog"), 32, {}))
    with pytest.raises(
        ChromaboxError, match=r"a\.safetensors: .*norm\.running_mean contains values that are not finite"
    ):
        load_detector(tmp_path / "a.safetensors")
