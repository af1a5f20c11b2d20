"""Judging a detector again and again on the same pictures, while only its last layers change."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chromabox.detect.boxes import Letterbox, areas, letterbox_for, nms
from chromabox.detect.data.augment import plain_view
from chromabox.detect.data.dataset import DetectionSet
from chromabox.detect.evaluation.evaluate import LEAST_CONFIDENCE
from chromabox.detect.evaluation.metrics import Predicted, coco_average_precision
from chromabox.detect.models.darknet import DetectorNet, candidates
from chromabox.detect.training.batches import OwnBoxes, Reader, targets_of
from chromabox.detect.training.feature_cache import PrefixCache, fill
from chromabox.detect.training.loss import DetectionLoss
from chromabox.engine.logger import progress
from chromabox.runtime.parallel import in_order

#: Pictures that go through the rest of the net at once.
_AT_ONCE = 16
#: Overlap above which the less sure of two boxes of a class goes.
_NMS = 0.45


@dataclass(frozen=True)
class Judge:
    """Pictures as detection shows them to the net, of which the first ``until`` layers' outputs are kept."""

    data: DetectionSet
    size: int
    until: int
    cache: PrefixCache
    boxes: tuple[OwnBoxes, ...]

    def heads(self, net: DetectorNet) -> Iterator[tuple[range, list[Tensor]]]:
        """Some pictures' numbers and the heads' raw outputs for them, until all pictures are through."""
        device = next(net.parameters()).device
        for first in range(0, len(self.boxes), _AT_ONCE):
            places = range(first, min(first + _AT_ONCE, len(self.boxes)))
            kept = {layer: output.to(device) for layer, output in self.cache.read(places).items()}
            yield places, [head.float() for head in net.forward_rest(kept, self.until)]

    @torch.no_grad()
    def predict(self, net: DetectorNet) -> list[Predicted]:
        """What ``net``, in evaluation mode, finds in each picture."""
        return self._look(net, None)[0]

    @torch.no_grad()
    def measure(self, net: DetectorNet, loss: DetectionLoss) -> dict[str, float]:
        """The terms of the loss, AP and AP50 of a net in evaluation mode, and what AP50 lacks to 1, named ``val_…``."""
        predicted, terms = self._look(net, loss)
        found = coco_average_precision(predicted, self.data.pictures, len(self.data.classes))
        ap50 = found.ap50 if np.isfinite(found.ap50) else 0.0
        ap = found.ap if np.isfinite(found.ap) else 0.0
        return {**terms, "val_ap": ap, "val_ap50": ap50, "val_ap50_missing": 1 - ap50}

    def _look(self, net: DetectorNet, loss: DetectionLoss | None) -> tuple[list[Predicted], dict[str, float]]:
        predicted: list[Predicted] = []
        sums: dict[str, float] = {}
        for places, heads in self.heads(net):
            if loss is not None:
                terms = loss(heads, targets_of([self.boxes[place] for place in places]).to(heads[0].device))
                share = len(places) / len(self.boxes)
                sums = {
                    f"val_{name}": sums.get(f"val_{name}", 0.0) + share * float(value) for name, value in terms.items()
                }
            found = candidates(heads, net.architecture, net.kind, self.size, LEAST_CONFIDENCE)
            for place, (corners, scores, classes) in zip(places, found, strict=True):
                box = letterbox_for(self.data.pictures[place].size, self.size, net.kind)
                predicted.append(_in_picture(box, corners.cpu(), scores.cpu(), classes.cpu()))
        return predicted, sums


def fill_judge(
    cache: PrefixCache, net: DetectorNet, until: int, data: DetectionSet, size: int, read: Reader, *, workers: int = 1
) -> Judge:
    """A judge of the pictures of ``data``, whose classes are the net's; fills its ``cache``."""
    boxes: list[OwnBoxes] = []

    def pictures() -> Iterator[Tensor]:
        drawn = in_order(data.pictures, lambda picture: plain_view(picture, size, net.kind, read=read), workers=workers)
        with closing(drawn):
            for pixels, own in drawn:
                boxes.append(own)
                yield torch.from_numpy(pixels)

    with progress("computing frozen layers of validation pictures", len(data.pictures), unit="pictures") as tick:
        fill(cache, net, until, pictures(), tick=tick)
    return Judge(data, size, until, cache, tuple(boxes))


def _in_picture(box: Letterbox, corners: Tensor, scores: Tensor, classes: Tensor) -> Predicted:
    """What remains of the candidates in one square, in pixels of the picture, as detection gives it."""
    found, sure, numbers = corners.numpy().astype(np.float64), scores.numpy().astype(np.float64), classes.numpy()
    kept = nms(found, sure, numbers, _NMS)
    height, width = box.picture
    upright = np.clip(box.boxes_back(found[kept]), 0, [width, height, width, height])
    inside = areas(upright) > 0
    kept, upright = kept[inside], upright[inside]
    return Predicted(upright, sure[kept], numbers[kept])
