"""Analysis of fine-tuning runs: weight changes, verification of the class loss, and sample detections."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from chromabox.detect.data.augment import letterbox_sample
from chromabox.detect.data.dataset import Sample
from chromabox.detect.detections import Detections
from chromabox.detect.inference.predict import detect_image
from chromabox.detect.models.architecture import Convolution
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

#: A held-out image with its ground truth, the detections before fine-tuning, and the detections after fine-tuning.
SampleDetections: TypeAlias = tuple[Sample, Detections, Detections]


@dataclass(frozen=True)
class LayerWeightChange:
    """Changes in one convolution and its BatchNorm between the initial and the best checkpoint."""

    layer: int
    num_parameters: int
    max_change: float
    """Largest absolute change in a parameter."""
    relative_change: float
    """Euclidean norm of the change in all parameters, divided by the norm of the initial parameters."""
    max_stats_change: float
    """Largest absolute change in a running mean or variance; 0 for layers without BatchNorm."""


@dataclass(frozen=True)
class OpenedRun:
    """A run with its configuration, its initial state and data, its fine-tuned detector, and its loss function."""

    config: FinetuneConfig
    initial: InitialState
    detector: Detector
    loss: DetectionLoss


def open_run(run: Path) -> OpenedRun:
    """Open a run. Raise UsageError or ChromaboxError if the configuration cannot be read or images are missing."""
    config = RunDir(run).load_config(FinetuneConfig)
    initial, detector = initialise_run(config, run), load_detector(run)
    return OpenedRun(config, initial, detector, build_loss(detector.model, config))


def weight_changes(run: Path) -> list[LayerWeightChange]:
    """Return the changes in every convolution of a run between ``start.safetensors`` and ``best.safetensors``."""
    start, best = load_detector(run / "start.safetensors"), load_detector(run / "best.safetensors")
    before, after = start.model.state_dict(), best.model.state_dict()
    changes = []
    for layer in (index for index, layer in enumerate(start.architecture.layers) if isinstance(layer, Convolution)):
        names = [name for name in before if name.startswith(f"layers.{layer}.") and "num_batches" not in name]
        parameters = [name for name in names if "running" not in name]
        initial = torch.cat([before[name].double().flatten() for name in parameters])
        change = torch.cat([(after[name] - before[name]).double().flatten() for name in parameters])
        stats_changes = (float((after[name] - before[name]).abs().max()) for name in names if "running" in name)
        changes.append(
            LayerWeightChange(
                layer=layer,
                num_parameters=len(initial),
                max_change=float(change.abs().max()),
                relative_change=float(change.norm() / initial.norm()),
                max_stats_change=max(stats_changes, default=0.0),
            )
        )
    return changes


def verify_class_loss(run: OpenedRun, positive_weight: float) -> dict[str, float]:
    """Compare the class loss of the training code with the definition of this loss, on the first held-out images.

    The definition is evaluated in float64 with the fine-tuned detector. Only the assignment of boxes to positions is
    taken from the training code.

    Args:
        run: The run.
        positive_weight: Weight ``cls_pw`` of positive examples.

    Return ``positive_weight``; ``num_positions``, the number of positions that contribute to the loss; ``actual`` and
    ``expected``, the losses according to the code and to the definition; ``max_gradient``, the largest absolute
    gradient with respect to a logit; and ``max_gradient_difference``, the largest difference between the gradients from
    autograd and the gradients from the definition.
    """
    loss = replace(run.loss, cls_pw=positive_weight)
    samples = run.initial.splits.val.samples[:NUM_VERIFIED_IMAGES]
    views = [letterbox_sample(sample, run.config.size, run.detector.variant) for sample in samples]
    images = torch.stack([torch.from_numpy(pixels) for pixels, _ in views])
    with torch.no_grad():
        heads = [head.double().requires_grad_() for head in run.detector.model(images)]
    targets = stack_targets([boxes for _, boxes in views]).double()
    class_loss = loss(heads, targets)["class"]
    autograd_gradients = torch.autograd.grad(class_loss, heads, allow_unused=True)
    expected, gradients, num_positions = _class_loss_from_definition(loss, heads, targets)
    return {
        "positive_weight": positive_weight,
        "num_positions": num_positions,
        "actual": float(class_loss.detach()),
        "expected": expected,
        "max_gradient": max(float(np.abs(gradient).max()) for gradient in gradients),
        "max_gradient_difference": max(
            float(np.abs((0.0 if first is None else first.numpy()) - second).max())
            for first, second in zip(autograd_gradients, gradients, strict=True)
        ),
    }


def _class_loss_from_definition(
    loss: DetectionLoss, heads: Sequence[Tensor], targets: Tensor
) -> tuple[float, list[Float64[np.ndarray, "..."]], int]:
    """Return the class loss, its gradients with respect to the head outputs, and the number of positions.

    For a logit x and its target y, the loss is −(cls_pw·y·log σ(x) + (1 − y)·log(1 − σ(x))). For variants with decoding
    "exp", the losses are summed over positions and classes; for other variants, they are averaged.
    """
    is_exp, loss_weight = loss.variant.decode == "exp", loss.loss_weights(len(heads[0]))["class"]
    has_class_loss = is_exp or loss.num_classes > 1 or loss.recipe == "default"
    total, gradients, count = 0.0, [], 0
    for head, assignments in zip(heads, loss.assign(heads, targets), strict=True):
        gradients.append(np.zeros(head.shape))
        if not has_class_loss or not len(assignments.target):
            continue
        names = ("image", "anchor", "row", "column")
        image, anchor, row, column = (getattr(assignments, name).numpy() for name in names)
        probability = 1 / (1 + np.exp(-head.detach().numpy()[image, anchor, 5:, row, column]))
        truth = np.zeros_like(probability)
        truth[np.arange(len(truth)), targets.numpy()[assignments.target.numpy(), 1].astype(int)] = 1
        losses = -(loss.cls_pw * truth * np.log(probability) + (1 - truth) * np.log(1 - probability))
        logit_gradients = (1 - truth) * probability - loss.cls_pw * truth * (1 - probability)
        divisor = 1 if is_exp else losses.size
        total, count = total + loss_weight * float(losses.sum() / divisor), count + len(losses)
        # Several boxes can be assigned to one position.
        channels_last = np.moveaxis(gradients[-1], 2, -1)[..., 5:]
        np.add.at(channels_last, (image, anchor, row, column), loss_weight * (logit_gradients / divisor))
    return total, gradients, count


def sample_detections(run: OpenedRun) -> list[SampleDetections]:
    """Return the first held-out images that contain objects, with the detections before and after fine-tuning."""
    samples = [sample for sample in run.initial.splits.val.samples if len(sample.boxes)][:NUM_SAMPLE_IMAGES]
    detect = partial(detect_image, confidence=MIN_DRAWN_CONFIDENCE, size=run.config.size)
    before, after = (
        [detect(read_image(sample.path).pixels, detector) for sample in samples]
        for detector in (run.initial.detector.fused(), run.detector.fused())
    )
    return list(zip(samples, before, after, strict=True))
