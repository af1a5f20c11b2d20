"""Analysis of fine-tuning runs: weight changes, verification of the class loss, and sample detections."""

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
from chromabox.detect.models.architecture import Convolution
from chromabox.detect.training.assigner import Assignments
from chromabox.detect.training.batches import stack_targets
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.loss import DetectionLoss
from chromabox.detect.training.setup import InitialState, build_loss, initialise_run
from chromabox.detect.weights.load import Detector, load_detector
from chromabox.engine.runs import RunDir
from chromabox.io.images import read_image

#: Numbers of held-out images for the verification of the class loss and for sample detections.
NUM_VERIFIED_IMAGES, NUM_SAMPLE_IMAGES = 8, 2
#: Confidence threshold for drawn boxes.
MIN_DRAWN_CONFIDENCE = 0.25


@dataclass(frozen=True)
class LayerWeightChange:
    """Change of one convolution and its BatchNorm from the first to the best checkpoint."""

    layer: int
    num_parameters: int
    max_change: float
    """Largest absolute change of a parameter."""
    relative_change: float
    """Euclidean norm of the change of all parameters, divided by the norm of the initial parameters."""
    max_stats_change: float
    """Largest absolute change of a BatchNorm mean or variance; 0 for layers without BatchNorm."""


@dataclass(frozen=True)
class ClassLossCheck:
    """Class loss of held-out images, computed as in training and from its definition."""

    positive_weight: float
    """Weight of positive examples, ``cls_pw``."""
    num_positions: int
    """Number of positions that contribute to the class loss."""
    actual: float
    expected: float
    max_gradient: float
    """Largest absolute gradient of the class loss with respect to a logit."""
    max_gradient_difference: float
    """Largest difference between gradients by autograd and from the definition."""


@dataclass(frozen=True)
class SampleDetections:
    """A held-out image with its ground truth, and its detections before and after fine-tuning."""

    sample: Sample
    before: Detections
    after: Detections


@dataclass(frozen=True)
class OpenedRun:
    """A run with its configuration, data, initial state and result."""

    config: FinetuneConfig
    initial: InitialState
    detector: Detector
    loss: DetectionLoss


def open_run(run: Path) -> OpenedRun:
    """Open a run. Raise UsageError or ChromaboxError if its configuration cannot be read or its data are missing."""
    config = RunDir(run).load_config(FinetuneConfig)
    initial, detector = initialise_run(config, run), load_detector(run)
    return OpenedRun(config, initial, detector, build_loss(detector.model, config))


def weight_changes(run: Path) -> list[LayerWeightChange]:
    """Return the changes of all convolutions of a run between ``start.safetensors`` and ``best.safetensors``."""
    start, best = load_detector(run / "start.safetensors"), load_detector(run / "best.safetensors")
    layers = [index for index, layer in enumerate(start.architecture.layers) if isinstance(layer, Convolution)]
    return [_layer_weight_change(layer, start.model.state_dict(), best.model.state_dict()) for layer in layers]


def _layer_weight_change(layer: int, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> LayerWeightChange:
    names = [name for name in before if name.startswith(f"layers.{layer}.") and "num_batches" not in name]
    parameters = [name for name in names if "running" not in name]
    statistics = [name for name in names if "running" in name]
    change, initial = (
        torch.cat([tensor.double().flatten() for tensor in tensors])
        for tensors in ([after[name] - before[name] for name in parameters], [before[name] for name in parameters])
    )
    return LayerWeightChange(
        layer=layer,
        num_parameters=len(initial),
        max_change=float(change.abs().max()),
        relative_change=float(change.norm() / initial.norm()),
        max_stats_change=max((float((after[name] - before[name]).abs().max()) for name in statistics), default=0.0),
    )


def verify_class_loss(run: OpenedRun, positive_weight: float) -> ClassLossCheck:
    """Compute the class loss of the first held-out images with the training code and from its definition.

    ``positive_weight`` is the weight of positive examples. The definition is evaluated in float64 with logarithms of σ;
    boxes are assigned to positions as in the loss.
    """
    loss = replace(run.loss, cls_pw=positive_weight)
    heads, targets = _head_outputs(run)
    for head in heads:
        head.requires_grad_()
    class_loss = loss(heads, targets)["class"]
    autograd_gradients = torch.autograd.grad(class_loss, heads, allow_unused=True)
    expected, gradients, num_positions = _class_loss_from_definition(loss, heads, targets)
    actual_gradients = [
        np.zeros(head.shape) if gradient is None else gradient.numpy()
        for head, gradient in zip(heads, autograd_gradients, strict=True)
    ]
    return ClassLossCheck(
        positive_weight=positive_weight,
        num_positions=num_positions,
        actual=float(class_loss.detach()),
        expected=expected,
        max_gradient=max(float(np.abs(gradient).max()) for gradient in gradients),
        max_gradient_difference=max(
            float(np.abs(first - second).max()) for first, second in zip(actual_gradients, gradients, strict=True)
        ),
    )


@torch.no_grad()
def _head_outputs(run: OpenedRun) -> tuple[list[Tensor], Tensor]:
    """Return the head outputs of the fine-tuned detector for held-out images, in float64, and their targets."""
    samples = run.initial.splits.val.samples[:NUM_VERIFIED_IMAGES]
    views = [letterbox_sample(sample, run.config.size, run.detector.variant) for sample in samples]
    images = torch.stack([torch.from_numpy(pixels) for pixels, _ in views])
    return [head.double() for head in run.detector.model(images)], stack_targets([boxes for _, boxes in views]).double()


def _class_loss_from_definition(
    loss: DetectionLoss, heads: Sequence[Tensor], targets: Tensor
) -> tuple[float, list[Float64[np.ndarray, "..."]], int]:
    """Return the class loss, its gradients with respect to the head outputs, and the number of positions."""
    loss_weight = loss.loss_weights(len(heads[0]))["class"]
    has_class_loss = loss.variant.decode == "exp" or loss.num_classes > 1 or loss.recipe == "default"
    total, gradients, count = 0.0, [], 0
    for head, assignments in zip(heads, loss.assign(heads, targets), strict=True):
        gradient = np.zeros(head.shape)
        if has_class_loss and len(assignments.target):
            value, logit_gradients = _class_loss_at_positions(head.detach().numpy(), assignments, targets.numpy(), loss)
            total, count = total + loss_weight * value, count + len(logit_gradients)
            positions = zip(*_assignment_indices(assignments), strict=True)
            for logit_gradient, position in zip(logit_gradients, positions, strict=True):
                image, anchor, row, column = position
                gradient[image, anchor, 5:, row, column] += loss_weight * logit_gradient
        gradients.append(gradient)
    return total, gradients, count


def _class_loss_at_positions(
    head: Float64[np.ndarray, "batch anchors outputs rows columns"],
    assignments: Assignments,
    targets: Float64[np.ndarray, "boxes 6"],
    loss: DetectionLoss,
) -> tuple[float, Float64[np.ndarray, "positions classes"]]:
    """Return −(cls_pw·y·log σ(x) + (1 − y)·log(1 − σ(x))) and its gradient with respect to x.

    The loss is summed for variants with decoding "exp" and averaged for the others.
    """
    image, anchor, row, column = _assignment_indices(assignments)
    probability = 1 / (1 + np.exp(-head[image, anchor, 5:, row, column]))
    truth = np.zeros_like(probability)
    truth[np.arange(len(truth)), targets[assignments.target.numpy(), 1].astype(int)] = 1
    weight = loss.cls_pw
    losses = -(weight * truth * np.log(probability) + (1 - truth) * np.log(1 - probability))
    gradients = (1 - truth) * probability - weight * truth * (1 - probability)
    divisor = 1 if loss.variant.decode == "exp" else losses.size
    return float(losses.sum() / divisor), gradients / divisor


def _assignment_indices(assignments: Assignments) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return assignments.image.numpy(), assignments.anchor.numpy(), assignments.row.numpy(), assignments.column.numpy()


def sample_detections(run: OpenedRun) -> list[SampleDetections]:
    """Return detections before and after fine-tuning for the first held-out images with objects."""
    samples = [sample for sample in run.initial.splits.val.samples if len(sample.boxes)][:NUM_SAMPLE_IMAGES]
    before, after = run.initial.detector.fused(), run.detector.fused()
    size = run.config.size
    results = []
    for sample in samples:
        pixels = read_image(sample.path).pixels
        detections = [
            detect_image(pixels, detector, confidence=MIN_DRAWN_CONFIDENCE, size=size) for detector in (before, after)
        ]
        results.append(SampleDetections(sample, *detections))
    return results
