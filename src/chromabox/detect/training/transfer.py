"""Transfer to new classes: replacement of the heads, and distillation of the original model.

Training images of a new class also show unlabelled objects of the original classes. Training on the labels alone
would treat these objects as background. The original model, the teacher, is therefore run on the same batch, and
its predictions are distilled wherever no object is labelled. This is learning without forgetting (Li and Hoiem 2016),
applied to detectors (Shmelkov, Schmid and Alahari 2017). The teacher shares the cached features of the frozen layers.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from chromabox.detect.data.dataset import normalise_name
from chromabox.detect.models.architecture import Convolution, Yolo
from chromabox.detect.models.darknet import DarknetModel, HeadOutput
from chromabox.detect.training.assigner import Targets
from chromabox.detect.training.loss import DetectionLoss, ObjectnessMap, ignore_mask
from chromabox.detect.weights.load import Detector
from chromabox.errors import ChromaboxError, UsageError

#: IoU with a ground-truth box above which a prediction of the teacher is ignored, because its object has a label.
LABELLED_IOU = 0.5

#: Teacher objectness below which the predicted boxes and classes are ignored; their weight would be negligible.
MIN_OBJECTNESS = 0.01


@dataclass(frozen=True)
class TeacherOutput:
    """Raw outputs of the teacher's heads for a batch, and its objectness, in [0, 1].

    The objectness is 0 at positions with an assigned ground-truth box, and at positions whose predicted box has an IoU
    above ``LABELLED_IOU`` with a ground-truth box.
    """

    heads: list[HeadOutput]
    objectness: list[ObjectnessMap]


@dataclass(frozen=True)
class Teacher:
    """The initial model in evaluation mode. Only its first ``num_old_classes`` classes have been trained."""

    model: DarknetModel
    num_old_classes: int
    loss: DetectionLoss

    @torch.no_grad()
    def predict(self, features: Mapping[int, Tensor], num_frozen: int, targets: Targets) -> TeacherOutput:
        """Run the teacher on a batch, given the features of the first ``num_frozen`` layers and the ground truth."""
        heads = [head.float() for head in self.model.forward_from(features, num_frozen)]
        targets = targets.to(heads[0])
        labelled = ignore_mask(heads, targets, self.loss.architecture, self.loss.variant, LABELLED_IOU)
        objectness = []
        for head, mask, assignments in zip(heads, labelled, self.loss.assign(heads, targets), strict=True):
            mask[assignments.position] = True
            objectness.append(head[:, :, 4].sigmoid().masked_fill(mask, 0))
        return TeacherOutput(heads, objectness)

    def distillation_loss(self, outputs: Sequence[HeadOutput], teacher_output: TeacherOutput) -> dict[str, Tensor]:
        """Compute the distillation terms, in which each position is weighted by the teacher's objectness.

        ``old_box`` is half the sum of the squared differences of the four raw box outputs. ``old_class`` is the sum of
        the Kullback-Leibler divergences of all classes from the teacher's prediction. For new classes, the prediction
        is replaced by probability 0, because the teacher has detected an object of an original class. The terms have
        the weights of the box and class terms of :class:`DetectionLoss`. Both terms are 0 if the teacher detects no
        object.
        """
        box, category = (outputs[0].new_zeros((), dtype=torch.float32) for _ in range(2))
        for output, head, objectness in zip(outputs, teacher_output.heads, teacher_output.objectness, strict=True):
            positions = (objectness > MIN_OBJECTNESS).nonzero(as_tuple=True)
            image, anchor, row, column = positions
            student, teacher = (raw[image, anchor, :, row, column].float() for raw in (output, head))
            weights = objectness[positions]
            box_errors = (student[:, :4] - teacher[:, :4]).square().sum(1) / 2
            # Kullback-Leibler divergence of Bernoulli variables: cross-entropy minus the entropy of the target.
            target = teacher[:, 5:].sigmoid()
            target[:, self.num_old_classes :] = 0
            entropy = F.binary_cross_entropy(target, target, reduction="none")
            cross_entropy = F.binary_cross_entropy_with_logits(student[:, 5:], target, reduction="none")
            divergence = (cross_entropy - entropy).sum(1)
            if self.loss.variant.decode == "sigmoid2":
                # The terms of this loss are means over positions. The class term is also a mean over classes.
                weights = weights / weights.sum().clamp(min=MIN_OBJECTNESS)
                divergence = divergence / self.loss.num_classes
            box, category = box + (weights * box_errors).sum(), category + (weights * divergence).sum()
        loss_weights = self.loss.loss_weights(len(outputs[0]))
        return {"old_box": loss_weights["box"] * box, "old_class": loss_weights["class"] * category}


def replace_heads(
    detector: Detector,
    class_names: Sequence[str],
    keep_old_classes: bool = False,
    *,
    new_classes: Collection[str] = (),
    max_prior: float = 0.99,
) -> Detector:
    """Return the detector with heads for the given classes. All weights outside the class outputs are copied.

    Classes are matched by name; case is ignored, and "_" and "-" are treated as spaces. The weights of classes that
    the detector already has are copied. The weights of a new class are 0, so that its initial score is the same at
    every position of every image. The bias sets this score to 1 / (number of classes), at most ``max_prior``.

    Args:
        detector: a trained detector; it is not modified.
        class_names: unique names of the classes.
        keep_old_classes: whether to keep all classes of the detector in their order and append the new classes.
        new_classes: names of classes that are new although the detector has a class of this name, for example the
            animal "mouse". They cannot be combined with ``keep_old_classes``.
        max_prior: maximum initial score of a new class, in (0, 1).

    Returns:
        A new detector in evaluation mode.

    Raise UsageError for an empty list, a repeated name, or a new class that is not in the list or is also kept, and
    ChromaboxError for a model whose heads do not end in a plain convolution with a bias.
    """
    normalised = [normalise_name(name) for name in class_names]
    repeated = next((name for name in normalised if normalised.count(name) > 1), None)
    if not class_names:
        raise UsageError("classes is an empty list: expected at least one name")
    if repeated is not None:
        raise UsageError(f"classes contains {repeated!r} more than once: expected unique names")
    old_indices = {normalise_name(name): index for index, name in enumerate(detector.classes)}
    for name in new_classes:
        if normalise_name(name) not in normalised:
            raise UsageError(f"new class {name} is not in the dataset: expected {', '.join(class_names[:20])}")
        if old_indices.pop(normalise_name(name), None) is not None and keep_old_classes:
            raise UsageError(
                f"class {name} cannot be new while the class of this name in the weights is kept: expected another "
                "name in the dataset"
            )
    classes = [name for name in class_names if not (keep_old_classes and normalise_name(name) in old_indices)]
    classes = [*detector.classes, *classes] if keep_old_classes else classes
    rows = [old_indices.get(normalise_name(name), -1) for name in classes]
    layers, state = list(detector.architecture.layers), detector.model.state_dict()
    for head in detector.architecture.head_indices:
        last, yolo = layers[head - 1], cast(Yolo, layers[head])
        if not isinstance(last, Convolution) or last.batch_normalise or last.groups > 1:
            raise ChromaboxError(
                f"{detector.architecture.name}: cannot change the classes of the head in layer {head}; expected a "
                "plain convolution with a bias before the head"
            )
        layers[head] = replace(yolo, classes=len(classes))
        layers[head - 1] = replace(last, filters=len(yolo.mask) * (5 + len(classes)))
        for name in (f"layers.{head - 1}.convolution.weight", f"layers.{head - 1}.convolution.bias"):
            state[name] = _replace_class_rows(state[name], len(yolo.mask), rows, max_prior)
    model = DarknetModel.uninitialised(replace(detector.architecture, layers=tuple(layers)), detector.variant)
    model.load_state_dict(state)
    kept = [name for name, row in zip(classes, rows, strict=True) if row >= 0]
    new = [name for name, row in zip(classes, rows, strict=True) if row < 0]
    dropped = [name for index, name in enumerate(detector.classes) if index not in rows]
    metadata = {**detector.metadata, "surgery": {"kept": kept, "new": new, "dropped": dropped}}
    metadata.pop("category_ids", None)  # They are the ids of the old classes.
    return Detector(model.eval(), tuple(classes), detector.size, metadata)


def _replace_class_rows(values: Tensor, anchors: int, rows: Sequence[int], max_prior: float) -> Tensor:
    """Replace the class rows of a head's kernel or bias.

    Each anchor has five rows for box and objectness, followed by one row per class. ``rows`` contains the index of each
    class in the original detector; −1 marks a class that the original detector does not have.
    """
    by_anchor = values.unflatten(0, (anchors, -1))
    prior = min(1 / len(rows), max_prior)
    new_row = torch.full_like(by_anchor[:, :1], math.log(prior / (1 - prior)) if values.ndim == 1 else 0.0)
    parts = [by_anchor[:, :5], *(new_row if row < 0 else by_anchor[:, 5 + row : 6 + row] for row in rows)]
    return torch.cat(parts, 1).flatten(0, 1)
