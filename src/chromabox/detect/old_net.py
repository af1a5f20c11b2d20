"""What a detector knew stays while it learns new classes: it is held to what the net that it began as says.

Pictures of a new class show things of the old ones, which nobody marked; learning from marked boxes alone calls them
background. So the old net looks at the same views (its frozen layers' outputs are there already) and is imitated where
no box is marked: learning without forgetting (Li and Hoiem 2016), for detectors (Shmelkov, Schmid and Alahari 2017).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from chromabox.detect.loss import DetectionLoss, Head, Map, overlapping
from chromabox.detect.nets import DetectorNet
from chromabox.detect.targets import Targets

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
