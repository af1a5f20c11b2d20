"""Checkpoints of colour nets: what was saved comes back, and everything else is refused in one sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch

from chromabox.colour.models import MODELS, build_model
from chromabox.colour.palette.io import load_palette
from chromabox.colour.weights.checkpoint import load_model, model_metadata, resolve_checkpoint
from chromabox.engine.checkpoint import save_checkpoint
from chromabox.errors import ChromaboxError, UsageError

HORSE24 = load_palette("horse24")
SETTINGS = {"num_filters": 4, "num_colours": 24}


def save(path: Path, name: str = "unet", **changes: object) -> torch.nn.Module:
    """Save a net under a description of which some entries are changed."""
    net = build_model(name, **SETTINGS)
    net(torch.rand(2, 1, 16, 16))  # moves the running statistics
    save_checkpoint(path, {"net": net.state_dict()}, {**model_metadata(name, SETTINGS, HORSE24), **changes})
    return net


@pytest.mark.parametrize("name", MODELS)
def test_the_net_its_palette_and_its_history_come_back(tmp_path: Path, name: str) -> None:
    if name not in ("pool-upsample", "conv-transpose", "unet"):
        pytest.skip(f"{name} has settings of its own")
    net = save(tmp_path / "net.safetensors", name, data="cifar10:horse", seed=3)
    found = load_model(tmp_path / "net.safetensors")
    assert not found.network.training
    np.testing.assert_array_equal(found.palette.colours, HORSE24.colours)
    assert found.palette.name == "horse24"
    assert (found.metadata["data"], found.metadata["seed"]) == ("cifar10:horse", 3)
    grey = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(found.network(grey), net.eval()(grey))


def test_a_run_folder_means_its_best_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "best.safetensors")
    assert resolve_checkpoint(tmp_path) == tmp_path / "best.safetensors"
    assert load_model(tmp_path).metadata["net"] == "unet"
    save(tmp_path / "other.safetensors")
    assert resolve_checkpoint(tmp_path / "other.safetensors") == tmp_path / "other.safetensors"


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no best\.safetensors"):
        load_model(tmp_path)


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such run folder or checkpoint"):
        load_model(tmp_path / "none.safetensors")
    save(tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ChromaboxError, match="corrupt or truncated checkpoint"):
        load_model(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"net": "resnet"},
        {"net": "pool-upsample"},  # other weights than its name says
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
    ],
)
def test_a_description_that_does_not_fit_is_one_sentence_with_exit_code_1(tmp_path: Path, changes: dict) -> None:
    path = tmp_path / "net.safetensors"
    save(path, **changes)
    with pytest.raises(ChromaboxError, match="not a checkpoint of a colour net") as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
