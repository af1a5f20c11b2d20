"""Linear probes, which measure how much of an image can be reconstructed from the features of a layer.

A probe is a ridge regression from the features of a layer to the pixels, fitted on training images and evaluated on
test images (Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes"). The R² of a
probe is a lower bound on the information in the features, because they can also encode information non-linearly.
"""

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.assignment.analysis.pixels import BLOCK, ImageMaps, high_pass, label_colours, remove_grey
from chromabox.colour.data.datasets import LabelledImages
from chromabox.colour.evaluation.metrics import NUM_GREY_SUMS, grey_lookup_baseline
from chromabox.colour.palette.palette import Palette

#: Ridge penalty for features of variance 1. On photographs, the penalty changes R² by less than 0.001.
RIDGE_PENALTY = 1e-4

FeatureRows = Float64[Tensor, "_ _"]


def predict_ridge(
    train_inputs: FeatureRows, train_outputs: FeatureRows, test_inputs: FeatureRows, penalty: float = RIDGE_PENALTY
) -> FeatureRows:
    """Predict the outputs of the test rows by ridge regression with an intercept, fitted on the training rows.

    The regression minimises the sum of squared errors plus ``penalty`` times the number of training rows times the sum
    of squared weights, on standardised features. Constant features have weight 0. Source: Hastie, Tibshirani and
    Friedman 2009, equation 3.44.
    """
    inputs_mean, outputs_mean = train_inputs.mean(0), train_outputs.mean(0)
    deviation = train_inputs.std(0, correction=0)
    scale = torch.where(deviation > 0, deviation, 1.0)
    standardised = (train_inputs - inputs_mean) / scale
    moments = standardised.T @ standardised + penalty * len(train_inputs) * torch.eye(len(scale), dtype=torch.float64)
    weights = torch.linalg.solve(moments, standardised.T @ (train_outputs - outputs_mean)) / scale[:, None]
    return (test_inputs - inputs_mean) @ weights + outputs_mean


def r_squared(y_pred: FeatureRows, y_true: FeatureRows) -> float:
    """Return the fraction of the total variance of ``y_true`` that ``y_pred`` explains, or NaN without variance."""
    variance = (y_true - y_true.mean(0)).square().sum().item()
    return 1 - (y_pred - y_true).square().sum().item() / variance if variance else float("nan")


def to_blocks(maps: Float[Tensor, "images channels height width"], block_size: int) -> FeatureRows:
    """Return one row per block of ``block_size`` × ``block_size`` positions, with its values channel by channel."""
    packed = F.pixel_unshuffle(maps, block_size)
    return packed.permute(0, 2, 3, 1).reshape(-1, packed.shape[1]).double()


def from_blocks(rows: FeatureRows, num_images: int, height: int, width: int) -> ImageMaps:
    """Return the maps with the given rows as their 4 × 4 blocks. This is the inverse of :func:`to_blocks`."""
    packed = rows.reshape(num_images, height // BLOCK, width // BLOCK, -1).permute(0, 3, 1, 2)
    return F.pixel_shuffle(packed, BLOCK)


@torch.no_grad()
def block_features(model: nn.Module, grey: Float[Tensor, "images 1 height width"]) -> dict[str, FeatureRows]:
    """Return the features of one of the assignment's models, keyed by layer, with one row per 4 × 4 block of pixels.

    "quarter" is the output of block 2 (one position per block of pixels), "half" is the output of block 1 (four
    positions), and "input" is the greyscale image (sixteen pixels).
    """
    half = model.get_submodule("block1")(grey)
    quarter = model.get_submodule("block2")(half)
    return {"quarter": to_blocks(quarter, 1), "half": to_blocks(half, 2), "input": to_blocks(grey, BLOCK)}


def probe_layers(
    model: nn.Module, train: LabelledImages, test: LabelledImages, palette: Palette
) -> dict[str, dict[str, float]]:
    """Fit a linear probe on ``train`` for each layer of :func:`block_features`, and return the scores on ``test``.

    * ``grey``: R² of the grey values.
    * ``grey_detail``, ``colour_detail``: R² of the grey values and of the true RGB values, after subtraction of the
      mean of each 4 × 4 block.
    * ``chroma``: R² of the true RGB values minus their mean over the channels.
    * ``lookup_table_accuracy``: accuracy of a lookup table from grey values to their most frequent colours, which is
      fitted on ``train`` and applied to the predicted grey values.
    """
    train_features, test_features = (block_features(model, images.grey) for images in (train, test))
    train_targets, true = (
        torch.cat([images.grey, label_colours(images.labels, palette)], 1) for images in (train, test)
    )
    true_parts, scores = _scored_parts(true.double()), {}
    for name, train_rows in train_features.items():
        rows = predict_ridge(train_rows, to_blocks(train_targets, BLOCK), test_features[name])
        predicted = from_blocks(rows, *test.labels.shape)
        sums = (predicted[:, 0].numpy() * 768).round().clip(0, NUM_GREY_SUMS - 1).astype(np.int16)
        table = grey_lookup_baseline(
            train.grey_sum.numpy(), train.labels.numpy(), sums, test.labels.numpy(), len(palette)
        )
        r2 = {part: r_squared(rows, true_parts[part]) for part, rows in _scored_parts(predicted).items()}
        scores[name] = {**r2, "lookup_table_accuracy": table.accuracy}
    return scores


def _scored_parts(maps: ImageMaps) -> dict[str, FeatureRows]:
    """Return the parts of the maps whose R² is computed. All are linear in the pixels, so that one probe suffices."""
    grey, colour = maps[:, :1], maps[:, 1:]
    parts = {"grey": grey, "grey_detail": high_pass(grey), "colour_detail": high_pass(colour)}
    return {name: to_blocks(part, BLOCK) for name, part in {**parts, "chroma": remove_grey(colour)}.items()}
