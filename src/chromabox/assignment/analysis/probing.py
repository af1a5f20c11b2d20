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

from chromabox.assignment.analysis.predictions import BLOCK, FeatureMaps, high_pass, label_colours, remove_grey
from chromabox.colour.data.datasets import LabelledImages
from chromabox.colour.evaluation.metrics import NUM_GREY_SUMS, grey_lookup_baseline
from chromabox.colour.palette.palette import Palette

#: Ridge penalty beside the variance of each feature, which is 1: it changes an R² of real pictures by less than 0.001.
RIDGE_PENALTY = 1e-4

FeatureRows = Float64[Tensor, "_ _"]


@dataclass(frozen=True, eq=False)
class Ridge:
    """A linear map with an offset."""

    inputs_mean: Float64[Tensor, " features"]
    outputs_mean: Float64[Tensor, " outputs"]
    weights: Float64[Tensor, "features outputs"]

    def __call__(self, inputs: FeatureRows) -> FeatureRows:
        """What is predicted for each row."""
        return (inputs - self.inputs_mean) @ self.weights + self.outputs_mean


def fit_ridge(inputs: FeatureRows, outputs: FeatureRows, penalty: float = RIDGE_PENALTY) -> Ridge:
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


def r_squared(y_pred: FeatureRows, y_true: FeatureRows) -> float:
    """Share of the variance of all columns together that is predicted: 1 without error, 0 for the columns' means.

    Not-a-number where nothing varies.
    """
    variance = (y_true - y_true.mean(0)).square().sum().item()
    return 1 - (y_pred - y_true).square().sum().item() / variance if variance else float("nan")


def to_blocks(maps: Float[Tensor, "pictures channels height width"], block_size: int) -> FeatureRows:
    """A row for each ``side`` × ``side`` square of the maps: all its values, channel by channel."""
    packed = F.pixel_unshuffle(maps, block_size)
    return packed.permute(0, 2, 3, 1).reshape(-1, packed.shape[1]).double()


def from_blocks(rows: FeatureRows, num_images: int, height: int, width: int) -> FeatureMaps:
    """The inverse of :func:`blocks` for squares of 4 × 4."""
    packed = rows.reshape(num_images, height // BLOCK, width // BLOCK, -1).permute(0, 3, 1, 2)
    return F.pixel_shuffle(packed, BLOCK)


@torch.no_grad()
def block_features(model: nn.Module, grey: Float[Tensor, "pictures 1 height width"]) -> dict[str, FeatureRows]:
    """Features by layer, a row for each 4 × 4 block of pixels, of one of the assignment's nets.

    "quarter": the bottleneck, one place a block; "half": block 1's output, four places; "input": the sixteen pixels.
    """
    half = model.get_submodule("block1")(grey)
    quarter = model.get_submodule("block2")(half)
    return {"quarter": to_blocks(quarter, 1), "half": to_blocks(half, 2), "input": to_blocks(grey, BLOCK)}


@dataclass(frozen=True)
class ProbeScores:
    """What a linear map reads back from some layers, on test pictures."""

    grey: float
    """R² of the pixels' grey."""
    grey_detail: float
    """R² of what makes the pixels of a 4 × 4 block differ in grey."""
    colour_detail: float
    """R² of what makes them differ in their target colours' red, green and blue."""
    chroma: float
    """R² of what in their target colours is not grey."""
    lookup_table_accuracy: float
    """Share of pixels whose colour a table "grey value → its most frequent colour" finds by the grey read back."""


def probe_layers(
    model: nn.Module,
    train: LabelledImages,
    test: LabelledImages,
    palette: Palette,
    layer_groups: Mapping[str, tuple[str, ...]],
) -> dict[str, ProbeScores]:
    """Probe a net: for every source, a name with the layers (see :func:`layer_rows`) that are read together.

    The maps are fitted on ``train`` and judged on ``test``; the table is made from ``train``.
    """
    seen = [block_features(model, pictures.grey) for pictures in (train, test)]
    fitted, true = (torch.cat([one.grey, label_colours(one.labels, palette)], 1) for one in (train, test))
    found = {}
    for name, layers in layer_groups.items():
        inputs, judged = (torch.cat([rows[layer] for layer in layers], 1) for rows in seen)
        read = from_blocks(fit_ridge(inputs, to_blocks(fitted, BLOCK))(judged), *test.labels.shape)
        found[name] = _score_probe(read, true.double(), _lookup_table_accuracy(read[:, 0], train, test, len(palette)))
    return found


def _score_probe(predicted: FeatureMaps, true: FeatureMaps, table_accuracy: float) -> ProbeScores:
    """Detail and hue are linear in the pixels of a block, so that what is read of them is that of what is read."""
    grey, colour = slice(0, 1), slice(1, 4)

    def score(channels: slice, part: Callable[[FeatureMaps], FeatureMaps]) -> float:
        return r_squared(*(to_blocks(part(maps[:, channels]), BLOCK) for maps in (predicted, true)))

    return ProbeScores(
        grey=score(grey, lambda maps: maps),
        grey_detail=score(grey, high_pass),
        colour_detail=score(colour, high_pass),
        chroma=score(colour, remove_grey),
        lookup_table_accuracy=table_accuracy,
    )


def _lookup_table_accuracy(
    grey: Float64[Tensor, "pictures height width"], train: LabelledImages, test: LabelledImages, num_colours: int
) -> float:
    sums = (grey.numpy() * 768).round().clip(0, NUM_GREY_SUMS - 1).astype(np.int16)
    return grey_lookup_baseline(
        train.grey_sum.numpy(), train.labels.numpy(), sums, test.labels.numpy(), num_colours
    ).accuracy
