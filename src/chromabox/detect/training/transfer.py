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

from chromabox.detect.data.dataset import plain_name
from chromabox.detect.models.architecture import Architecture, Convolution, Yolo
from chromabox.detect.models.darknet import DetectorNet
from chromabox.detect.training.assigner import Targets
from chromabox.detect.training.loss import DetectionLoss, Head, Map, overlapping
from chromabox.detect.weights.load import TrainedDetector
from chromabox.errors import ChromaboxError, UsageError

#: Overlap with a true box above which the old net is not asked: what it sees there has been marked as something else.
MARKED_ABOVE = 0.5

#: Objectness below which the old net's boxes and classes are not looked at; they would count next to nothing.
LEAST_SURE = 0.01


@dataclass(frozen=True)
class Opinion:
    """What the old net says of a batch: the numbers of its heads, and how sure it is of an object, 0 to 1.

    It is sure of nothing where a true box is learnt or its own box overlaps one.
    """

    heads: list[Head]
    sure: list[Map]


@dataclass(frozen=True)
class OldNet:
    """The ``net`` before the first step, in evaluation mode, whose first ``classes`` are old; the rest it never saw."""

    net: DetectorNet
    classes: int
    loss: DetectionLoss

    @torch.no_grad()
    def look(self, kept: Mapping[int, Tensor], until: int, targets: Targets) -> Opinion:
        """Its opinion of a batch, whose first ``until`` layers' outputs are there, as are its true boxes."""
        heads = [head.float() for head in self.net.forward_rest(kept, until)]
        targets = targets.to(heads[0])
        marked = overlapping(heads, targets, self.loss.architecture, self.loss.kind, MARKED_ABOVE)
        sure = []
        for head, own, places in zip(heads, marked, self.loss.places(heads, targets), strict=True):
            own[places.picture, places.anchor, places.row, places.column] = True
            sure.append(head[:, :, 4].sigmoid().masked_fill(own, 0))
        return Opinion(heads, sure)

    def distances(self, outputs: Sequence[Head], opinion: Opinion) -> dict[str, Tensor]:
        """How far ``outputs`` are from the opinion, every place counted by how sure the old net is; 0 if not at all.

        ``old_box``: half the squared differences of the box's four numbers. ``old_class``: the Kullback-Leibler
        divergence of every class from the old net's, and of the new ones from 0: where something old is seen,
        nothing new is. Both count as the box and class terms of ``DetectionLoss`` do.
        """
        box, category = (outputs[0].new_zeros((), dtype=torch.float32) for _ in range(2))
        for output, head, sure in zip(outputs, opinion.heads, opinion.sure, strict=True):
            places = (sure > LEAST_SURE).nonzero(as_tuple=True)
            picture, anchor, row, column = places
            mine, wanted = (numbers[picture, anchor, :, row, column].float() for numbers in (output, head))
            weights = sure[places]
            boxes = (mine[:, :4] - wanted[:, :4]).square().sum(1) / 2
            classes = self._divergences(mine[:, 5:], wanted[:, 5:].sigmoid()).sum(1)
            if self.loss.kind.decode == "sigmoid2":
                # There all terms are means, over places, and of classes over them too.
                weights = weights / weights.sum().clamp(min=LEAST_SURE)
                classes = classes / self.loss.classes
            box, category = box + (weights * boxes).sum(), category + (weights * classes).sum()
        shares = self.loss.shares(len(outputs[0]))
        return {"old_box": shares["box"] * box, "old_class": shares["class"] * category}

    def _divergences(self, numbers: Tensor, goal: Tensor) -> Tensor:
        """Of each class, an independent yes or no: cross-entropy less the goal's own entropy."""
        goal = torch.cat([goal[:, : self.classes], torch.zeros_like(goal[:, self.classes :])], 1)
        own = F.binary_cross_entropy(goal, goal, reduction="none")
        return F.binary_cross_entropy_with_logits(numbers, goal, reduction="none") - own


#: The surest that an untrained class may be; where there is one class alone, every object is of it.
HIGHEST_PRIOR = 0.99


def with_classes(
    trained: TrainedDetector, names: Sequence[str], keep_old: bool = False, *, surest: float = HIGHEST_PRIOR
) -> TrainedDetector:
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
    _refuse_names(names)
    old = {plain_name(name): index for index, name in enumerate(trained.classes)}
    classes = [name for name in names if not (keep_old and plain_name(name) in old)]
    classes = [*trained.classes, *classes] if keep_old else classes
    rows = [old.get(plain_name(name), -1) for name in classes]
    net = DetectorNet.blank(_architecture(trained.architecture, len(classes)), trained.kind)
    state = trained.net.state_dict()
    for head in net.architecture.heads:
        yolo = net.architecture.layers[head]
        assert isinstance(yolo, Yolo)
        for part in ("weight", "bias"):
            name = f"layers.{head - 1}.convolution.{part}"
            state[name] = _rows(state[name], len(yolo.mask), rows, surest)
    net.load_state_dict(state)
    kept = [name for name, row in zip(classes, rows, strict=True) if row >= 0]
    begun = [name for name, row in zip(classes, rows, strict=True) if row < 0]
    description = {**trained.description, "surgery": {"kept": kept, "new": begun}}
    return TrainedDetector(net.eval(), tuple(classes), trained.size, description)


def _refuse_names(names: Sequence[str]) -> None:
    plain = [plain_name(name) for name in names]
    twice = next((name for name in plain if plain.count(name) > 1), None)
    if not names or twice is not None:
        problem = "none is given" if not names else f"{twice!r} stands there twice"
        raise UsageError(f"classes: {problem}; at least one name, and all different, is right")


def _architecture(architecture: Architecture, classes: int) -> Architecture:
    layers = list(architecture.layers)
    for head in architecture.heads:
        yolo, before = layers[head], layers[head - 1]
        assert isinstance(yolo, Yolo)
        if not isinstance(before, Convolution) or before.batch_normalise or before.groups > 1:
            raise ChromaboxError(
                f"{architecture.name}: layer {head} is no head behind a plain convolution with a bias; "
                "its classes cannot be changed"
            )
        layers[head] = replace(yolo, classes=classes)
        layers[head - 1] = replace(before, filters=len(yolo.mask) * (5 + classes))
    return replace(architecture, layers=tuple(layers))


def _rows(values: Tensor, anchors: int, rows: Sequence[int], surest: float) -> Tensor:
    """Kernel or bias of a head: of every anchor the five rows of box and objectness, then those of the classes."""
    by_anchor = values.unflatten(0, (anchors, -1))
    prior = min(1 / len(rows), surest)
    begun = torch.full_like(by_anchor[:, :1], math.log(prior / (1 - prior)) if values.ndim == 1 else 0.0)
    parts = [by_anchor[:, :5], *(begun if row < 0 else by_anchor[:, 5 + row : 6 + row] for row in rows)]
    return torch.cat(parts, 1).flatten(0, 1)
