"""A fine-tuned run looked into: what moved in its layers, its class term computed a second way, two of its pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from chromabox.detect.data.augment import letterbox_sample
from chromabox.detect.data.dataset import Sample
from chromabox.detect.detections import Detections
from chromabox.detect.inference.predict import detect_image
from chromabox.detect.inference.runtime import optimize_for_inference
from chromabox.detect.models.architecture import Convolution
from chromabox.detect.training.assigner import Assignments
from chromabox.detect.training.batches import stack_targets
from chromabox.detect.training.config import FinetuneConfig, read_finetune_config
from chromabox.detect.training.loss import DetectionLoss
from chromabox.detect.training.setup import InitialState, build_loss, initialise_run
from chromabox.detect.weights.load import Detector, load_detector
from chromabox.io.images import read_image

#: Held-out pictures that the class term is computed for, and that are drawn.
NUM_VERIFIED_IMAGES, NUM_SAMPLE_IMAGES = 8, 2
#: Boxes with a lower score are not drawn.
MIN_DRAWN_CONFIDENCE = 0.25


@dataclass(frozen=True)
class LayerWeightChange:
    """What became of one convolution with what belongs to it, from the first to the best checkpoint."""

    layer: int
    num_parameters: int
    max_change: float
    """Largest change of a parameter."""
    relative_change: float
    """Root of the summed squares of all parameters' changes, as a part of that of the parameters."""
    max_stats_change: float
    """Largest change of a mean or variance of batch normalisation; 0 where the layer has none."""


@dataclass(frozen=True)
class ClassLossCheck:
    """The class term of held-out pictures as training computes it, and from its definition."""

    positive_weight: float
    """``cls_pw``."""
    num_positions: int
    actual: float
    expected: float
    max_gradient: float
    """The largest slope of the term in a logit."""
    max_gradient_difference: float
    """The largest difference between automatic and written slopes."""


@dataclass(frozen=True)
class SampleDetections:
    """A held-out picture, what is true of it, and what is found in it before and after."""

    sample: Sample
    before: Detections
    after: Detections


@dataclass(frozen=True)
class OpenedRun:
    """A run with its data: how it began, and its result."""

    config: FinetuneConfig
    initial: InitialState
    detector: Detector
    loss: DetectionLoss


def open_run(run: Path) -> OpenedRun:
    """Raises UsageError or ChromaboxError where the configuration cannot be read or the data are not there."""
    config = read_finetune_config(run)
    begun, after = initialise_run(config, run), load_detector(run)
    return OpenedRun(config, begun, after, build_loss(after.model, config))


def weight_changes(run: Path) -> list[LayerWeightChange]:
    """Of every convolution of a run, what moved between ``start.safetensors`` and ``best.safetensors``."""
    start, best = load_detector(run / "start.safetensors"), load_detector(run / "best.safetensors")
    layers = [index for index, layer in enumerate(start.architecture.layers) if isinstance(layer, Convolution)]
    return [_layer_weight_change(layer, start.model.state_dict(), best.model.state_dict()) for layer in layers]


def _layer_weight_change(layer: int, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> LayerWeightChange:
    names = [name for name in before if name.startswith(f"layers.{layer}.") and "num_batches" not in name]
    learnt = [name for name in names if "running" not in name]
    counted = [name for name in names if "running" in name]
    moved, was = (
        torch.cat([one.double().flatten() for one in some])
        for some in ([after[name] - before[name] for name in learnt], [before[name] for name in learnt])
    )
    return LayerWeightChange(
        layer=layer,
        num_parameters=len(was),
        max_change=float(moved.abs().max()),
        relative_change=float(moved.norm() / was.norm()),
        max_stats_change=max((float((after[name] - before[name]).abs().max()) for name in counted), default=0.0),
    )


def verify_class_loss(run: OpenedRun, positive_weight: float) -> ClassLossCheck:
    """The class term of the first held-out pictures by the loss and from its definition, positives weighing so much.

    The definition is written out with logarithms of σ, in float64; where boxes are learnt is taken from the loss.
    """
    loss = replace(run.loss, cls_pw=positive_weight)
    heads, targets = _head_outputs(run)
    for head in heads:
        head.requires_grad_()
    term = loss(heads, targets)["class"]
    found = torch.autograd.grad(term, heads, allow_unused=True)
    value, slopes, places = _class_loss_from_definition(loss, heads, targets)
    automatic = [np.zeros(head.shape) if one is None else one.numpy() for head, one in zip(heads, found, strict=True)]
    return ClassLossCheck(
        positive_weight=positive_weight,
        num_positions=places,
        actual=float(term.detach()),
        expected=value,
        max_gradient=max(float(np.abs(one).max()) for one in slopes),
        max_gradient_difference=max(float(np.abs(one - two).max()) for one, two in zip(automatic, slopes, strict=True)),
    )


@torch.no_grad()
def _head_outputs(run: OpenedRun) -> tuple[list[Tensor], Tensor]:
    """What the result puts out for some held-out pictures, in float64, and their true boxes."""
    pictures = run.initial.splits.val.samples[:NUM_VERIFIED_IMAGES]
    views = [letterbox_sample(one, run.config.size, run.detector.variant) for one in pictures]
    images = torch.stack([torch.from_numpy(pixels) for pixels, _ in views])
    return [head.double() for head in run.detector.model(images)], stack_targets([boxes for _, boxes in views]).double()


def _class_loss_from_definition(
    loss: DetectionLoss, heads: Sequence[Tensor], targets: Tensor
) -> tuple[float, list[Float64[np.ndarray, "..."]], int]:
    """The class term, its slopes in the heads' numbers, and how many places learn a class."""
    share = loss.loss_weights(len(heads[0]))["class"]
    learnt = loss.variant.decode == "exp" or loss.num_classes > 1 or loss.recipe == "default"
    total, slopes, count = 0.0, [], 0
    for head, places in zip(heads, loss.assign(heads, targets), strict=True):
        slope = np.zeros(head.shape)
        if learnt and len(places.target):
            value, own = _class_loss_at_positions(head.detach().numpy(), places, targets.numpy(), loss)
            total, count = total + share * value, count + len(own)
            for row, at in zip(own, zip(*_assignment_indices(places), strict=True), strict=True):
                picture, anchor, down, across = at
                slope[picture, anchor, 5:, down, across] += share * row
        slopes.append(slope)
    return total, slopes, count


def _class_loss_at_positions(
    head: Float64[np.ndarray, "batch anchors numbers rows columns"],
    assignments: Assignments,
    targets: Float64[np.ndarray, "boxes 6"],
    loss: DetectionLoss,
) -> tuple[float, Float64[np.ndarray, "places classes"]]:
    """−(cls_pw·y·log σ(x) + (1 − y)·log(1 − σ(x))), summed (kinds with means: averaged), and its slopes in x."""
    picture, anchor, row, column = _assignment_indices(assignments)
    sure = 1 / (1 + np.exp(-head[picture, anchor, 5:, row, column]))
    truth = np.zeros_like(sure)
    truth[np.arange(len(truth)), targets[assignments.target.numpy(), 1].astype(int)] = 1
    weight = loss.cls_pw
    errors = -(weight * truth * np.log(sure) + (1 - truth) * np.log(1 - sure))
    slopes = (1 - truth) * sure - weight * truth * (1 - sure)
    parts = 1 if loss.variant.decode == "exp" else errors.size
    return float(errors.sum() / parts), slopes / parts


def _assignment_indices(assignments: Assignments) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return assignments.image.numpy(), assignments.anchor.numpy(), assignments.row.numpy(), assignments.column.numpy()


def sample_detections(run: OpenedRun) -> list[SampleDetections]:
    """The first held-out pictures on which something is to be found, looked at before and after."""
    marked = [one for one in run.initial.splits.val.samples if len(one.boxes)][:NUM_SAMPLE_IMAGES]
    before, after = optimize_for_inference(run.initial.detector), optimize_for_inference(run.detector)
    size = run.config.size
    shown = []
    for one in marked:
        pixels = read_image(one.path).pixels
        found = [
            detect_image(pixels, detector, confidence=MIN_DRAWN_CONFIDENCE, size=size) for detector in (before, after)
        ]
        shown.append(SampleDetections(one, *found))
    return shown
