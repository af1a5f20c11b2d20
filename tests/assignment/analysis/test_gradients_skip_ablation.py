"""Ablation of skip connections compared with UNet's forward pass written out with changed skip connections."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from chromabox.assignment.analysis.gradients import ablate_skips
from chromabox.colour.data.datasets import encode_images
from chromabox.colour.models.baselines import UNet
from chromabox.colour.palette.io import load_palette

IMAGES = encode_images(
    np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8), load_palette("horse24")
)


@pytest.fixture(scope="module")
def model() -> UNet:
    torch.manual_seed(0)
    return UNet(num_filters=4).eval()


def forward_by_hand(model: UNet, skip: str, ablation: str) -> torch.Tensor:
    grey = IMAGES.grey
    half = model.block1(grey)
    change = {"zeroed": lambda features: 0 * features, "shuffled": lambda features: features[[4, 0, 1, 2, 3]]}[ablation]
    half_skip = change(half) if skip in ("half", "both") else half
    decoded = torch.cat([model.block3(model.block2(half)), half_skip], 1)
    input_skip = change(grey) if skip in ("input", "both") else grey
    return model.last(torch.cat([model.block4(decoded), input_skip], 1))


@pytest.mark.parametrize("ablation", ["zeroed", "shuffled"])
@pytest.mark.parametrize("skip", ["half", "input", "both"])
def test_ablation_equals_the_forward_pass_written_out(model: UNet, skip: str, ablation: str) -> None:
    with torch.no_grad():
        expected = F.cross_entropy(forward_by_hand(model, skip, ablation), IMAGES.labels.long()).item()
    loss, accuracy = ablate_skips(model, IMAGES)[skip, ablation]
    assert loss == pytest.approx(expected, rel=1e-5)
    assert 0 <= accuracy <= 1
    assert abs(loss - ablate_skips(model, IMAGES)["none", "intact"][0]) > 1e-6


def test_forward_pass_written_out_equals_the_model(model: UNet) -> None:
    with torch.no_grad():
        assert torch.equal(forward_by_hand(model, "none", "zeroed"), model(IMAGES.grey))
