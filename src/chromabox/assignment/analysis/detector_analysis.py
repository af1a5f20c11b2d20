"""A fine-tuned run looked into: what moved in its layers, its class term computed a second way, two of its pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from chromabox.detect.data.augment import plain_view
from chromabox.detect.data.dataset import Labelled
from chromabox.detect.detections import Detections
from chromabox.detect.inference.predict import detect_picture
from chromabox.detect.inference.runtime import make_ready
from chromabox.detect.models.architecture import Convolution
from chromabox.detect.training.assigner import Places
from chromabox.detect.training.batches import targets_of
from chromabox.detect.training.config import FinetuneConfig, read_finetune_config
from chromabox.detect.training.loss import DetectionLoss
from chromabox.detect.training.setup import Beginning, begin, loss_of
from chromabox.detect.weights.load import TrainedDetector, load_detector
from chromabox.io.images import read_picture

#: Held-out pictures that the class term is computed for, and that are drawn.
CHECKED, DRAWN = 8, 2
#: Boxes with a lower score are not drawn.
SURE = 0.25


@dataclass(frozen=True)
class LayerChange:
    """What became of one convolution with what belongs to it, from the first to the best checkpoint."""

    layer: int
    parameters: int
    largest: float
    """Largest change of a parameter."""
    relative: float
    """Root of the summed squares of all parameters' changes, as a part of that of the parameters."""
    statistics: float
    """Largest change of a mean or variance of batch normalisation; 0 where the layer has none."""


@dataclass(frozen=True)
class TermCheck:
    """The class term of held-out pictures as training computes it, and from its definition."""

    positive: float
    """``cls_pw``."""
    places: int
    ours: float
    defined: float
    slope: float
    """The largest slope of the term in a logit."""
    slope_difference: float
    """The largest difference between automatic and written slopes."""


@dataclass(frozen=True)
class Shown:
    """A held-out picture, what is true of it, and what is found in it before and after."""

    one: Labelled
    before: Detections
    after: Detections


@dataclass(frozen=True)
class Opened:
    """A run with its data: how it began, and its result."""

    config: FinetuneConfig
    begun: Beginning
    after: TrainedDetector
    loss: DetectionLoss


def open_run(run: Path) -> Opened:
    """Raises UsageError or ChromaboxError where the configuration cannot be read or the data are not there."""
    config = read_finetune_config(run)
    begun, after = begin(config, run), load_detector(run)
    return Opened(config, begun, after, loss_of(after.net, config))


def layer_changes(run: Path) -> list[LayerChange]:
    """Of every convolution of a run, what moved between ``start.safetensors`` and ``best.safetensors``."""
    start, best = load_detector(run / "start.safetensors"), load_detector(run / "best.safetensors")
    layers = [index for index, layer in enumerate(start.architecture.layers) if isinstance(layer, Convolution)]
    return [_change(layer, start.net.state_dict(), best.net.state_dict()) for layer in layers]


def _change(layer: int, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> LayerChange:
    names = [name for name in before if name.startswith(f"layers.{layer}.") and "num_batches" not in name]
    learnt = [name for name in names if "running" not in name]
    counted = [name for name in names if "running" in name]
    moved, was = (
        torch.cat([one.double().flatten() for one in some])
        for some in ([after[name] - before[name] for name in learnt], [before[name] for name in learnt])
    )
    return LayerChange(
        layer=layer,
        parameters=len(was),
        largest=float(moved.abs().max()),
        relative=float(moved.norm() / was.norm()),
        statistics=max((float((after[name] - before[name]).abs().max()) for name in counted), default=0.0),
    )


def check_class_term(opened: Opened, positive: float) -> TermCheck:
    """The class term of the first held-out pictures by the loss and from its definition, positives weighing so much.

    The definition is written out with logarithms of σ, in float64; where boxes are learnt is taken from the loss.
    """
    loss = replace(opened.loss, cls_pw=positive)
    heads, targets = _heads(opened)
    for head in heads:
        head.requires_grad_()
    term = loss(heads, targets)["class"]
    found = torch.autograd.grad(term, heads, allow_unused=True)
    value, slopes, places = _defined(loss, heads, targets)
    automatic = [np.zeros(head.shape) if one is None else one.numpy() for head, one in zip(heads, found, strict=True)]
    return TermCheck(
        positive=positive,
        places=places,
        ours=float(term.detach()),
        defined=value,
        slope=max(float(np.abs(one).max()) for one in slopes),
        slope_difference=max(float(np.abs(one - two).max()) for one, two in zip(automatic, slopes, strict=True)),
    )


@torch.no_grad()
def _heads(opened: Opened) -> tuple[list[Tensor], Tensor]:
    """What the result puts out for some held-out pictures, in float64, and their true boxes."""
    pictures = opened.begun.parts.judge.pictures[:CHECKED]
    views = [plain_view(one, opened.config.size, opened.after.kind) for one in pictures]
    images = torch.stack([torch.from_numpy(pixels) for pixels, _ in views])
    return [head.double() for head in opened.after.net(images)], targets_of([boxes for _, boxes in views]).double()


def _defined(
    loss: DetectionLoss, heads: Sequence[Tensor], targets: Tensor
) -> tuple[float, list[Float64[np.ndarray, "..."]], int]:
    """The class term, its slopes in the heads' numbers, and how many places learn a class."""
    share = loss.shares(len(heads[0]))["class"]
    learnt = loss.kind.decode == "exp" or loss.classes > 1 or loss.recipe == "default"
    total, slopes, count = 0.0, [], 0
    for head, places in zip(heads, loss.places(heads, targets), strict=True):
        slope = np.zeros(head.shape)
        if learnt and len(places.truth):
            value, own = _at_places(head.detach().numpy(), places, targets.numpy(), loss)
            total, count = total + share * value, count + len(own)
            for row, at in zip(own, zip(*_indices(places), strict=True), strict=True):
                picture, anchor, down, across = at
                slope[picture, anchor, 5:, down, across] += share * row
        slopes.append(slope)
    return total, slopes, count


def _at_places(
    head: Float64[np.ndarray, "batch anchors numbers rows columns"],
    places: Places,
    targets: Float64[np.ndarray, "boxes 6"],
    loss: DetectionLoss,
) -> tuple[float, Float64[np.ndarray, "places classes"]]:
    """−(cls_pw·y·log σ(x) + (1 − y)·log(1 − σ(x))), summed (kinds with means: averaged), and its slopes in x."""
    picture, anchor, row, column = _indices(places)
    sure = 1 / (1 + np.exp(-head[picture, anchor, 5:, row, column]))
    truth = np.zeros_like(sure)
    truth[np.arange(len(truth)), targets[places.truth.numpy(), 1].astype(int)] = 1
    weight = loss.cls_pw
    errors = -(weight * truth * np.log(sure) + (1 - truth) * np.log(1 - sure))
    slopes = (1 - truth) * sure - weight * truth * (1 - sure)
    parts = 1 if loss.kind.decode == "exp" else errors.size
    return float(errors.sum() / parts), slopes / parts


def _indices(places: Places) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return places.picture.numpy(), places.anchor.numpy(), places.row.numpy(), places.column.numpy()


def shown_pictures(opened: Opened) -> list[Shown]:
    """The first held-out pictures on which something is to be found, looked at before and after."""
    marked = [one for one in opened.begun.parts.judge.pictures if len(one.boxes)][:DRAWN]
    before, after = make_ready(opened.begun.trained), make_ready(opened.after)
    size = opened.config.size
    shown = []
    for one in marked:
        pixels = read_picture(one.path).pixels
        found = [detect_picture(pixels, detector, confidence=SURE, size=size) for detector in (before, after)]
        shown.append(Shown(one, *found))
    return shown
