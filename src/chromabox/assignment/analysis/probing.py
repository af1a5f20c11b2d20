"""What a linear map can read back from inside a net: how much of a picture's detail a layer still holds.

A probe is a ridge regression from a layer's features to the pixels, fitted on training pictures and judged on others
(Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes"). What it finds is there;
what it does not find may be there in a form that is not linear, so its R² is a lower bound.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.assignment.analysis.predictions import BLOCK, Maps, colour_maps, without_block_means, without_grey
from chromabox.colour.data.datasets import Pictures
from chromabox.colour.evaluation.metrics import GREY_VALUES, grey_lookup_baseline
from chromabox.colour.palette.palette import Palette

#: Ridge penalty beside the variance of each feature, which is 1: it changes an R² of real pictures by less than 0.001.
PENALTY = 1e-4

Rows = Float64[Tensor, "_ _"]


@dataclass(frozen=True, eq=False)
class Ridge:
    """A linear map with an offset."""

    inputs_mean: Float64[Tensor, " features"]
    outputs_mean: Float64[Tensor, " outputs"]
    weights: Float64[Tensor, "features outputs"]

    def __call__(self, inputs: Rows) -> Rows:
        """What is predicted for each row."""
        return (inputs - self.inputs_mean) @ self.weights + self.outputs_mean


def fit_ridge(inputs: Rows, outputs: Rows, penalty: float = PENALTY) -> Ridge:
    """The linear map of least squared error plus ``penalty`` × rows × its squared weights on standardised features.

    Hastie, Tibshirani and Friedman 2009, equation 3.44. Features that do not vary get weight 0.
    """
    inputs_mean, outputs_mean = inputs.mean(0), outputs.mean(0)
    deviation = inputs.std(0, correction=0)
    scale = torch.where(deviation > 0, deviation, 1.0)
    standard = (inputs - inputs_mean) / scale
    moments = standard.T @ standard + penalty * len(inputs) * torch.eye(len(scale), dtype=torch.float64)
    weights = torch.linalg.solve(moments, standard.T @ (outputs - outputs_mean)) / scale[:, None]
    return Ridge(inputs_mean, outputs_mean, weights)


def r_squared(predicted: Rows, true: Rows) -> float:
    """Share of the variance of all columns together that is predicted: 1 without error, 0 for the columns' means.

    Not-a-number where nothing varies.
    """
    variance = (true - true.mean(0)).square().sum().item()
    return 1 - (predicted - true).square().sum().item() / variance if variance else float("nan")


def blocks(maps: Float[Tensor, "pictures channels height width"], side: int) -> Rows:
    """A row for each ``side`` × ``side`` square of the maps: all its values, channel by channel."""
    packed = F.pixel_unshuffle(maps, side)
    return packed.permute(0, 2, 3, 1).reshape(-1, packed.shape[1]).double()


def unblocked(rows: Rows, pictures: int, height: int, width: int) -> Maps:
    """The inverse of :func:`blocks` for squares of 4 × 4."""
    packed = rows.reshape(pictures, height // BLOCK, width // BLOCK, -1).permute(0, 3, 1, 2)
    return F.pixel_shuffle(packed, BLOCK)


@torch.no_grad()
def layer_rows(net: nn.Module, grey: Float[Tensor, "pictures 1 height width"]) -> dict[str, Rows]:
    """Features by layer, a row for each 4 × 4 block of pixels, of one of the assignment's nets.

    "quarter": the bottleneck, one place a block; "half": block 1's output, four places; "input": the sixteen pixels.
    """
    half = net.get_submodule("block1")(grey)
    quarter = net.get_submodule("block2")(half)
    return {"quarter": blocks(quarter, 1), "half": blocks(half, 2), "input": blocks(grey, BLOCK)}


@dataclass(frozen=True)
class Recovered:
    """What a linear map reads back from some layers, on test pictures."""

    grey: float
    """R² of the pixels' grey."""
    grey_detail: float
    """R² of what makes the pixels of a 4 × 4 block differ in grey."""
    colour_detail: float
    """R² of what makes them differ in their target colours' red, green and blue."""
    chroma: float
    """R² of what in their target colours is not grey."""
    table_accuracy: float
    """Share of pixels whose colour a table "grey value → its most frequent colour" finds by the grey read back."""


def recover(
    net: nn.Module, train: Pictures, test: Pictures, palette: Palette, sources: Mapping[str, tuple[str, ...]]
) -> dict[str, Recovered]:
    """Probe a net: for every source, a name with the layers (see :func:`layer_rows`) that are read together.

    The maps are fitted on ``train`` and judged on ``test``; the table is made from ``train``.
    """
    seen = [layer_rows(net, pictures.grey) for pictures in (train, test)]
    fitted, true = (torch.cat([one.grey, colour_maps(one.labels, palette)], 1) for one in (train, test))
    found = {}
    for name, layers in sources.items():
        inputs, judged = (torch.cat([rows[layer] for layer in layers], 1) for rows in seen)
        read = unblocked(fit_ridge(inputs, blocks(fitted, BLOCK))(judged), *test.labels.shape)
        found[name] = _scores(read, true.double(), _table_accuracy(read[:, 0], train, test, len(palette)))
    return found


def _scores(read: Maps, true: Maps, table_accuracy: float) -> Recovered:
    """Detail and hue are linear in the pixels of a block, so that what is read of them is that of what is read."""
    grey, colour = slice(0, 1), slice(1, 4)

    def score(channels: slice, part: Callable[[Maps], Maps]) -> float:
        return r_squared(*(blocks(part(maps[:, channels]), BLOCK) for maps in (read, true)))

    return Recovered(
        grey=score(grey, lambda maps: maps),
        grey_detail=score(grey, without_block_means),
        colour_detail=score(colour, without_block_means),
        chroma=score(colour, without_grey),
        table_accuracy=table_accuracy,
    )


def _table_accuracy(
    grey: Float64[Tensor, "pictures height width"], train: Pictures, test: Pictures, colours: int
) -> float:
    sums = (grey.numpy() * 768).round().clip(0, GREY_VALUES - 1).astype(np.int16)
    return grey_lookup_baseline(
        train.grey_sum.numpy(), train.labels.numpy(), sums, test.labels.numpy(), colours
    ).accuracy
