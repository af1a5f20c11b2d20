"""Weights of every origin on small nets: what is read, what is written back to the bit, and what is refused."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chromabox.detect.data.dataset import COCO_CLASSES, default_class_names
from chromabox.detect.models.architecture import (
    Architecture,
    Convolution,
    MaxPool,
    Route,
    Shortcut,
    Upsample,
    Yolo,
    yolov3_tiny,
)
from chromabox.detect.models.darknet import DARKNET, ULTRALYTICS_9_0, ULTRALYTICS_9_6, ConvolutionLayer, DarknetModel
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
NET = Architecture(
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
#: By hand: (3·9 + 4)·4 + (2·9 + 4)·4 + 8·14 + 14.
NUMBERS = 338


def darknet_file(path: Path, numbers: np.ndarray, seen: int = 5) -> Path:
    path.write_bytes(struct.pack("<3iq", 0, 2, 0, seen) + numbers.astype("<f4").tobytes())
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Random weights of the small net, with its configuration beside them."""
    write_cfg(NET, tmp_path / "net.cfg")
    numbers = np.random.default_rng(0).uniform(0.1, 1, NUMBERS)
    return darknet_file(tmp_path / "net.weights", numbers)


def test_darknets_order(weights: Path) -> None:
    darknet_file(weights, np.arange(NUMBERS))
    trained = load_detector(weights)
    first, second, last = (trained.model.layers[index] for index in (0, 1, 6))
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
    assert not trained.model.training
    assert (trained.variant, trained.size, trained.classes) == (DARKNET, 32, ("class 0", "class 1"))
    assert trained.metadata["source"] == {"file": "net.weights", "seen": 5}


def test_written_weights_are_the_file_that_was_read(weights: Path, tmp_path: Path) -> None:
    trained = load_detector(weights)
    write_darknet(tmp_path / "again.weights", trained.model, seen=5)
    assert (tmp_path / "again.weights").read_bytes() == weights.read_bytes()


@torch.no_grad()
def test_our_own_form_says_everything(weights: Path, tmp_path: Path) -> None:
    read = load_detector(weights, classes=["cat", "dog"], variant=ULTRALYTICS_9_6)
    save_detector(tmp_path / "own.safetensors", read)
    again = load_detector(tmp_path / "own.safetensors")
    assert (again.architecture, again.variant, again.classes, again.size) == (NET, ULTRALYTICS_9_6, ("cat", "dog"), 32)
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(again.model(images), read.model(images), rtol=0, atol=0)
    said = json.loads((tmp_path / "own.json").read_text())
    assert said["kind"]["activation"] == "silu"
    assert said["kind"]["epsilon"] == 1e-3
    assert said["architecture"]["layers"][7]["mask"] == [1, 0]
    assert said["classes"] == ["cat", "dog"]
    (tmp_path / "run").mkdir()
    (tmp_path / "own.safetensors").rename(tmp_path / "run" / "best.safetensors")
    assert load_detector(tmp_path / "run").classes == ("cat", "dog")
    assert load_detector(tmp_path / "run", classes=["a", "b"]).classes == ("a", "b")


def test_architectures_are_kept_as_json() -> None:
    for net in (NET, yolov3_tiny(3)):
        assert architecture_from_json(json.loads(json.dumps(architecture_as_json(net)))) == net


@pytest.mark.parametrize(("change", "what"), [(-1, "cut short"), (1, "too long"), (-100, "cut short")])
def test_short_and_long_files_are_refused_with_the_counts(weights: Path, change: int, what: str) -> None:
    darknet_file(weights, np.ones(NUMBERS + change))
    sentence = rf"net\.weights: {what} or of another net: it holds {NUMBERS + change:,} numbers; net with 2 classes"
    with pytest.raises(ChromaboxError, match=rf"{sentence} needs {NUMBERS}"):
        load_detector(weights)


def test_numbers_that_are_none_are_refused(weights: Path) -> None:
    numbers = np.ones(NUMBERS)
    numbers[17] = np.nan
    with pytest.raises(ChromaboxError, match="holds numbers that are not finite"):
        load_detector(darknet_file(weights, numbers))


@pytest.mark.parametrize("classes", [80, 1, 20])
def test_known_nets_are_known_by_their_count(tmp_path: Path, classes: int) -> None:
    net = yolov3_tiny(classes)
    path = darknet_file(tmp_path / "some.weights", np.full(net.num_weights, 0.5))
    assert load_detector(path).architecture == net
    assert load_detector(path, architecture="yolov3-tiny").architecture == net
    assert load_detector(path, variant=ULTRALYTICS_9_0).architecture.yolo_layers[1].mask == (0, 1, 2)
    with pytest.raises(ChromaboxError, match=r"of no net known by count \(yolov3 with 80 classes needs 62,001,757\)"):
        load_detector(path, architecture="yolov3")
    write_cfg(NET, tmp_path / "net.cfg")
    with pytest.raises(ChromaboxError, match="too long or of another net"):
        load_detector(path, architecture=tmp_path / "net.cfg")


def test_an_unknown_count_names_what_is_known(tmp_path: Path) -> None:
    path = darknet_file(tmp_path / "some.weights", np.ones(8_858_735))
    with pytest.raises(ChromaboxError, match=r"8,858,735 numbers .* yolov3-tiny with 80 classes needs 8,858,734"):
        load_detector(path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"classes": ["cat"]}, "1 different names are given; the weights know 2"),
        ({"classes": ["cat", "cat"]}, "1 different names"),
        ({"architecture": "yolov9"}, "architecture is yolov9: give yolov3, yolov3-tiny or a .cfg"),
    ],
)
def test_options_that_do_not_fit(weights: Path, settings: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load_detector(weights, **settings)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no such weights; give a file, or one of the names"):
        load_detector(tmp_path / "none.weights")
    (tmp_path / "a.txt").write_text("weights")
    with pytest.raises(UsageError, match=r"weights are .safetensors, .weights, .onnx or .pt files, not .txt"):
        load_detector(tmp_path / "a.txt")
    (tmp_path / "a.weights").write_bytes(b"<html>404</html>")
    with pytest.raises(ChromaboxError, match="not a Darknet weight file"):
        load_detector(tmp_path / "a.weights")
    with pytest.raises(UsageError, match="yolov9: no published weights have that name"):
        download_pretrained("yolov9")
    with pytest.raises(UsageError, match=r"a\.pth: our own weights are written to a .safetensors file"):
        save_detector(tmp_path / "a.pth", Detector(DarknetModel(NET, DARKNET), ("a", "b"), 32, {}))


def test_checkpoints_of_something_else_are_refused(weights: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", {"net": {"a": torch.ones(2)}}, {"net": "unet"})
    with pytest.raises(ChromaboxError, match=r"not a checkpoint of a detector \(it holds unet\)"):
        load_detector(tmp_path / "a.safetensors")
    trained = load_detector(weights)
    save_detector(tmp_path / "own.safetensors", trained)
    with pytest.raises(UsageError, match="its weights are of kind darknet, not ultralytics"):
        load_detector(tmp_path / "own.safetensors", variant=ULTRALYTICS_9_0)
    with pytest.raises(UsageError, match="says its architecture itself"):
        load_detector(tmp_path / "own.safetensors", architecture="yolov3")
    wrong = Detector(trained.model, ("a", "b", "c"), 32, {})
    save_detector(tmp_path / "wrong.safetensors", wrong)
    with pytest.raises(UsageError, match="3 different names are given; the weights know 2"):
        load_detector(tmp_path / "wrong.safetensors")
    whole = (tmp_path / "own.safetensors").read_bytes()
    (tmp_path / "own.safetensors").write_bytes(whole[:-9])
    with pytest.raises(ChromaboxError, match=r"own\.safetensors: corrupt or truncated checkpoint"):
        load_detector(tmp_path / "own.safetensors")


@pytest.mark.parametrize("layer", ["Dropout", "__import__", "Architecture"])
def test_a_checkpoint_cannot_name_other_things_than_layers(layer: str) -> None:
    stored = architecture_as_json(NET)
    stored["layers"][0] = {"layer": layer}
    with pytest.raises(KeyError):
        architecture_from_json(stored)


def test_conversion_there_and_back(weights: Path, tmp_path: Path) -> None:
    said: list[str] = []
    own = convert_weights(str(weights), log=said.append)
    assert own == tmp_path / "net.safetensors"
    assert said[0] == "net from net.weights: 8 layers, 338 numbers, 2 classes, kind darknet"
    assert "self-test left out" in said[1]
    back = convert_weights(str(own), tmp_path / "new" / "back.weights", log=said.append)
    assert back.read_bytes() == weights.read_bytes()
    assert replace(load_detector(back).architecture, name="net") == NET


@pytest.mark.parametrize(
    ("output", "sentence"),
    [("net.weights", "is the file that is read"), ("net.onnx", "weights are written as .safetensors")],
)
def test_conversion_into_the_wrong_place(weights: Path, tmp_path: Path, output: str, sentence: str) -> None:
    before = weights.read_bytes()
    with pytest.raises(UsageError, match=sentence):
        convert_weights(str(weights), tmp_path / output, log=lambda line: None)
    assert weights.read_bytes() == before


def test_untrained_weights_fail_the_self_test(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = DarknetModel(yolov3_tiny(), DARKNET)
    write_darknet(tmp_path / "random.weights", net)
    with pytest.raises(ChromaboxError, match=r"fails the self-test .* the weights are of another net"):
        convert_weights(str(tmp_path / "random.weights"), log=lambda line: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["random.weights"]
    assert convert_weights(str(tmp_path / "random.weights"), run_sanity_check=False, log=lambda line: None).is_file()


def test_class_names() -> None:
    assert len(set(COCO_CLASSES)) == 80
    assert (COCO_CLASSES[0], COCO_CLASSES[15], COCO_CLASSES[16], COCO_CLASSES[79]) == (
        "person",
        "cat",
        "dog",
        "toothbrush",
    )
    assert default_class_names(2) == ("class 0", "class 1")
