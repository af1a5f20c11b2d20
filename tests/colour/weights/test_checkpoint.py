"""Checkpoints of colourisation models: saving and loading round trips, and rejection of invalid files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from chromabox.colour.chroma.distribution import softmax
from chromabox.colour.chroma.recolour import lightness
from chromabox.colour.inference.load import open_model
from chromabox.colour.models import MODELS, build_model
from chromabox.colour.palette.io import load_palette
from chromabox.colour.weights.checkpoint import PhotoModel, load_model, load_palette_model, model_metadata
from chromabox.colour.weights.onnx_model import resolve_checkpoint
from chromabox.engine.checkpoint import save_checkpoint
from chromabox.errors import ChromaboxError, UsageError

HORSE24 = load_palette("horse24")
SETTINGS = {"num_filters": 4, "num_colours": 24}


def save_model(path: Path, name: str = "unet", **changes: object) -> torch.nn.Module:
    """Save a model with some metadata entries changed, and return it."""
    model = build_model(name, **SETTINGS)
    model(torch.rand(2, 1, 16, 16))  # updates the BatchNorm statistics
    save_checkpoint(path, {"net": model.state_dict()}, {**model_metadata(name, SETTINGS, HORSE24), **changes})
    return model


@pytest.mark.parametrize("name", MODELS)
def test_load_model_restores_weights_palette_and_metadata(tmp_path: Path, name: str) -> None:
    if name not in ("pool-upsample", "conv-transpose", "unet"):
        pytest.skip(f"{name} has other settings")
    model = save_model(tmp_path / "net.safetensors", name, data="cifar10:horse", seed=3)
    loaded = load_model(tmp_path / "net.safetensors")
    assert not loaded.network.training
    np.testing.assert_array_equal(loaded.palette.colours, HORSE24.colours)
    assert loaded.palette.name == "horse24"
    assert (loaded.metadata["data"], loaded.metadata["seed"]) == ("cifar10:horse", 3)
    grey = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded.network(grey), model.eval()(grey))


def test_run_folder_resolves_to_best_checkpoint(tmp_path: Path) -> None:
    save_model(tmp_path / "best.safetensors")
    assert resolve_checkpoint(tmp_path) == tmp_path / "best.safetensors"
    assert load_model(tmp_path).metadata["net"] == "unet"
    save_model(tmp_path / "other.safetensors")
    assert resolve_checkpoint(tmp_path / "other.safetensors") == tmp_path / "other.safetensors"


def test_folder_without_best_checkpoint_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"contains no best\.safetensors"):
        load_model(tmp_path)


def test_missing_or_truncated_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such run folder or checkpoint"):
        load_model(tmp_path / "none.safetensors")
    save_model(tmp_path / "truncated.safetensors")
    content = (tmp_path / "truncated.safetensors").read_bytes()
    (tmp_path / "truncated.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ChromaboxError, match="corrupt or truncated checkpoint"):
        load_model(tmp_path / "truncated.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"net": "resnet"},
        {"net": "pool-upsample"},  # the weights are those of another model
        {"settings": {"num_filters": 8}},
        {"settings": {"depth": 3}},
        {"settings": {"kernel": 0}},
        {"settings": None},
        {"palette": None},
        {"palette": {"name": "x"}},
        {"palette": {"name": "x", "colours": [[0, 0, 0], [1, 1]]}},
        {"palette": {"name": "x", "colours": [[0, 0, 0]]}},
        {"palette": {"name": "x", "colours": [[0, 0, 0], [2, 2, 2]]}},
        {"palette": {"name": "x", "colours": ["red", "blue"]}},
        {"palette": {"name": "x", "colours": [[10**400, 0, 0], [1, 1, 1]]}},
        {"bins": {"centres": [[0, 0], [10**9, 0]], "frequencies": [0.5, 0.5], "spacing": 10}},
        {"bins": {"centres": [[0, 0], [10, 0]], "frequencies": [0.5, 0.5], "spacing": 10**400}},
    ],
)
def test_invalid_metadata_gives_one_line_error_with_exit_code_1(tmp_path: Path, changes: dict) -> None:
    path = tmp_path / "net.safetensors"
    save_model(path, **changes)
    with pytest.raises(ChromaboxError, match="not a checkpoint of a colourisation model") as raised:
        load_model(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 1


def test_checkpoint_with_values_that_are_not_finite_is_rejected(tmp_path: Path) -> None:
    state = save_model(tmp_path / "net.safetensors").state_dict()
    next(iter(state.values())).view(-1)[1] = float("nan")
    save_checkpoint(tmp_path / "net.safetensors", {"net": state}, model_metadata("unet", SETTINGS, HORSE24))
    with pytest.raises(ChromaboxError, match=r"net\.safetensors: .*contains values that are not finite"):
        load_model(tmp_path / "net.safetensors")


def test_bundled_model_in_pytorch_equals_the_onnx_file() -> None:
    """The network is rebuilt from the tensors of the file, of which some are stored in half precision."""
    model, opened = load_model(), open_model()
    assert isinstance(model, PhotoModel)
    assert not model.network.training
    np.testing.assert_array_equal(model.bins.centres, opened.centres)
    for photograph in (data.astronaut()[:192, :256], data.coffee()[:256, :128]):
        grey = (lightness(photograph) / 100)[None, None]
        with torch.no_grad():
            logits = model.network(torch.from_numpy(grey)).numpy()
        assert np.ptp(logits, axis=(0, 2, 3)).max() > 1
        np.testing.assert_allclose(softmax(opened.predict(grey), 1), softmax(logits, 1), atol=1e-4)
    with pytest.raises(UsageError, match="the bundled model is a photo model"):
        load_palette_model()
