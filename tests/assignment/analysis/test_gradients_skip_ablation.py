"""Ablated skips against UNet's forward pass written out, with the skips changed by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from chromabox.assignment.analysis.gradients import ABLATIONS, ablate_skips, ablated_skips
from chromabox.colour.data.datasets import encode_images
from chromabox.colour.models.baselines import UNet
from chromabox.colour.palette.io import load_palette

PICTURES = encode_images(
    np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8), load_palette("horse24")
)


@pytest.fixture(scope="module")
def net() -> UNet:
    torch.manual_seed(0)
    return UNet(num_filters=4).eval()


def by_hand(net: UNet, skip: str, how: str) -> torch.Tensor:
    grey = PICTURES.grey
    half = net.block1(grey)
    change = {"zeroed": lambda carried: 0 * carried, "shuffled": lambda carried: carried[[4, 0, 1, 2, 3]]}[how]
    carried = change(half) if skip in ("half", "both") else half
    again = torch.cat([net.block3(net.block2(half)), carried], 1)
    carried = change(grey) if skip in ("input", "both") else grey
    return net.last(torch.cat([net.block4(again), carried], 1))


@pytest.mark.parametrize("how", ["zeroed", "shuffled"])
@pytest.mark.parametrize("skip", ["half", "input", "both"])
def test_a_changed_skip_is_that_of_the_net_written_out(net: UNet, skip: str, how: str) -> None:
    with torch.no_grad():
        expected = F.cross_entropy(by_hand(net, skip, how), PICTURES.labels.long()).item()
    loss, accuracy = ablate_skips(net, PICTURES)[skip, how]
    assert loss == pytest.approx(expected, rel=1e-5)
    assert 0 <= accuracy <= 1
    assert abs(loss - ablate_skips(net, PICTURES)["none", "intact"][0]) > 1e-6


def test_the_net_is_as_before_even_after_an_error(net: UNet) -> None:
    with torch.no_grad():
        before = net(PICTURES.grey)
        with (
            pytest.raises(RuntimeError),
            ablated_skips(net, {"half": ABLATIONS["zeroed"], "input": ABLATIONS["zeroed"]}),
        ):
            net(PICTURES.grey[:, :, :-1])
        assert torch.equal(net(PICTURES.grey), before)
