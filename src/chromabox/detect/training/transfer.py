"""What a detector knew stays while it learns new classes: it is held to what the net that it began as says.

Pictures of a new class show things of the old ones, which nobody marked; learning from marked boxes alone calls them
background. So the old net looks at the same views (its frozen layers' outputs are there already) and is imitated where
no box is marked: learning without forgetting (Li and Hoiem 2016), for detectors (Shmelkov, Schmid and Alahari 2017).

A trained detector for other classes: what its heads know of boxes, objects and shared classes stays.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from chromabox.detect.data.dataset import normalise_name
from chromabox.detect.models.architecture import Architecture, Convolution, Yolo
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.assigner import Targets
from chromabox.detect.training.loss import DetectionLoss, HeadOutput, ObjectnessMap, ignore_mask
from chromabox.detect.weights.load import Detector
from chromabox.errors import ChromaboxError, UsageError

#: Overlap with a true box above which the old net is not asked: what it sees there has been marked as something else.
LABELLED_IOU = 0.5

#: Objectness below which the old net's boxes and classes are not looked at; they would count next to nothing.
MIN_OBJECTNESS = 0.01


@dataclass(frozen=True)
class TeacherOutput:
    """What the old net says of a batch: the numbers of its heads, and how sure it is of an object, 0 to 1.

    It is sure of nothing where a true box is learnt or its own box overlaps one.
    """

    heads: list[HeadOutput]
    objectness: list[ObjectnessMap]


@dataclass(frozen=True)
class Teacher:
    """The ``net`` before the first step, in evaluation mode, whose first ``classes`` are old; the rest it never saw."""

    model: DarknetModel
    num_old_classes: int
    loss: DetectionLoss

    @torch.no_grad()
    def predict(self, features: Mapping[int, Tensor], num_frozen: int, targets: Targets) -> TeacherOutput:
        """Its opinion of a batch, whose first ``until`` layers' outputs are there, as are its true boxes."""
        heads = [head.float() for head in self.model.forward_from(features, num_frozen)]
        targets = targets.to(heads[0])
        marked = ignore_mask(heads, targets, self.loss.architecture, self.loss.variant, LABELLED_IOU)
        sure = []
        for head, own, places in zip(heads, marked, self.loss.assign(heads, targets), strict=True):
            own[places.image, places.anchor, places.row, places.column] = True
            sure.append(head[:, :, 4].sigmoid().masked_fill(own, 0))
        return TeacherOutput(heads, sure)

    def distillation_loss(self, outputs: Sequence[HeadOutput], teacher_output: TeacherOutput) -> dict[str, Tensor]:
        """How far ``outputs`` are from the opinion, every place counted by how sure the old net is; 0 if not at all.

        ``old_box``: half the squared differences of the box's four numbers. ``old_class``: the Kullback-Leibler
        divergence of every class from the old net's, and of the new ones from 0: where something old is seen,
        nothing new is. Both count as the box and class terms of ``DetectionLoss`` do.
        """
        box, category = (outputs[0].new_zeros((), dtype=torch.float32) for _ in range(2))
        for output, head, sure in zip(outputs, teacher_output.heads, teacher_output.objectness, strict=True):
            places = (sure > MIN_OBJECTNESS).nonzero(as_tuple=True)
            picture, anchor, row, column = places
            mine, wanted = (numbers[picture, anchor, :, row, column].float() for numbers in (output, head))
            weights = sure[places]
            boxes = (mine[:, :4] - wanted[:, :4]).square().sum(1) / 2
            classes = self._class_divergence(mine[:, 5:], wanted[:, 5:].sigmoid()).sum(1)
            if self.loss.variant.decode == "sigmoid2":
                # There all terms are means, over places, and of classes over them too.
                weights = weights / weights.sum().clamp(min=MIN_OBJECTNESS)
                classes = classes / self.loss.num_classes
            box, category = box + (weights * boxes).sum(), category + (weights * classes).sum()
        shares = self.loss.loss_weights(len(outputs[0]))
        return {"old_box": shares["box"] * box, "old_class": shares["class"] * category}

    def _class_divergence(self, logits: Tensor, teacher_probs: Tensor) -> Tensor:
        """Of each class, an independent yes or no: cross-entropy less the goal's own entropy."""
        teacher_probs = torch.cat(
            [teacher_probs[:, : self.num_old_classes], torch.zeros_like(teacher_probs[:, self.num_old_classes :])], 1
        )
        own = F.binary_cross_entropy(teacher_probs, teacher_probs, reduction="none")
        return F.binary_cross_entropy_with_logits(logits, teacher_probs, reduction="none") - own


#: The surest that an untrained class may be; where there is one class alone, every object is of it.
MAX_PRIOR = 0.99


def replace_heads(
    detector: Detector, class_names: Sequence[str], keep_old_classes: bool = False, *, max_prior: float = MAX_PRIOR
) -> Detector:
    """The detector with heads for the classes ``names``, matched by name; everything but class rows is copied.

    Names are compared without regard to case and to "_" or "-" for a space. Rows of classes that the detector knows are
    kept. A new class begins at the same score everywhere, one part in as many as there are classes: its weights are 0
    and only its bias speaks, which no place and no picture prefers.

    Args:
        names: all different.
        keep_old: the old classes stay, in their places, and names that are new are appended.
        surest: above 0 and below 1, the highest score at which a new class may begin.

    Returns:
        A new detector in evaluation mode; ``trained`` is not touched. Raises UsageError for names that are no such
        list, ChromaboxError for a net whose heads do not end in a plain convolution.
    """
    _check_class_names(class_names)
    old = {normalise_name(name): index for index, name in enumerate(detector.classes)}
    classes = [name for name in class_names if not (keep_old_classes and normalise_name(name) in old)]
    classes = [*detector.classes, *classes] if keep_old_classes else classes
    rows = [old.get(normalise_name(name), -1) for name in classes]
    net = DarknetModel.uninitialised(_with_num_classes(detector.architecture, len(classes)), detector.variant)
    state = detector.model.state_dict()
    for head in net.architecture.head_indices:
        yolo = net.architecture.layers[head]
        assert isinstance(yolo, Yolo)
        for part in ("weight", "bias"):
            name = f"layers.{head - 1}.convolution.{part}"
            state[name] = _replace_class_rows(state[name], len(yolo.mask), rows, max_prior)
    net.load_state_dict(state)
    kept = [name for name, row in zip(classes, rows, strict=True) if row >= 0]
    begun = [name for name, row in zip(classes, rows, strict=True) if row < 0]
    description = {**detector.metadata, "surgery": {"kept": kept, "new": begun}}
    return Detector(net.eval(), tuple(classes), detector.size, description)


def _check_class_names(class_names: Sequence[str]) -> None:
    plain = [normalise_name(name) for name in class_names]
    twice = next((name for name in plain if plain.count(name) > 1), None)
    if not class_names or twice is not None:
        problem = "none is given" if not class_names else f"{twice!r} stands there twice"
        raise UsageError(f"classes: {problem}; at least one name, and all different, is right")


def _with_num_classes(architecture: Architecture, num_classes: int) -> Architecture:
    layers = list(architecture.layers)
    for head in architecture.head_indices:
        yolo, before = layers[head], layers[head - 1]
        assert isinstance(yolo, Yolo)
        if not isinstance(before, Convolution) or before.batch_normalise or before.groups > 1:
            raise ChromaboxError(
                f"{architecture.name}: layer {head} is no head behind a plain convolution with a bias; "
                "its classes cannot be changed"
            )
        layers[head] = replace(yolo, classes=num_classes)
        layers[head - 1] = replace(before, filters=len(yolo.mask) * (5 + num_classes))
    return replace(architecture, layers=tuple(layers))


def _replace_class_rows(values: Tensor, anchors: int, rows: Sequence[int], max_prior: float) -> Tensor:
    """Kernel or bias of a head: of every anchor the five rows of box and objectness, then those of the classes."""
    by_anchor = values.unflatten(0, (anchors, -1))
    prior = min(1 / len(rows), max_prior)
    begun = torch.full_like(by_anchor[:, :1], math.log(prior / (1 - prior)) if values.ndim == 1 else 0.0)
    parts = [by_anchor[:, :5], *(begun if row < 0 else by_anchor[:, 5 + row : 6 + row] for row in rows)]
    return torch.cat(parts, 1).flatten(0, 1)
