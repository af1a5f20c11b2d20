"""Judging a detector again and again on the same pictures, while only its last layers change."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chromabox.detect.boxes import Letterbox, box_area, letterbox_for, nms
from chromabox.detect.data.augment import letterbox_sample
from chromabox.detect.data.dataset import DetectionDataset
from chromabox.detect.evaluation.evaluate import MIN_EVAL_CONFIDENCE
from chromabox.detect.evaluation.metrics import ImagePredictions, coco_average_precision
from chromabox.detect.models.darknet import DarknetModel, decode_candidates
from chromabox.detect.training.batches import ImageReader, SampleBoxes, stack_targets
from chromabox.detect.training.feature_cache import FeatureCache, fill_cache
from chromabox.detect.training.loss import DetectionLoss
from chromabox.engine.logger import progress_bar
from chromabox.runtime.parallel import map_ordered

#: Pictures that go through the rest of the net at once.
_BATCH_SIZE = 16
#: Overlap above which the less sure of two boxes of a class goes.
_NMS_IOU = 0.45


@dataclass(frozen=True)
class Validator:
    """Pictures as detection shows them to the net, of which the first ``until`` layers' outputs are kept."""

    data: DetectionDataset
    size: int
    num_frozen: int
    cache: FeatureCache
    boxes: tuple[SampleBoxes, ...]

    def head_outputs(self, model: DarknetModel) -> Iterator[tuple[range, list[Tensor]]]:
        """Some pictures' numbers and the heads' raw outputs for them, until all pictures are through."""
        device = next(model.parameters()).device
        for first in range(0, len(self.boxes), _BATCH_SIZE):
            places = range(first, min(first + _BATCH_SIZE, len(self.boxes)))
            kept = {layer: output.to(device) for layer, output in self.cache.read(places).items()}
            yield places, [head.float() for head in model.forward_from(kept, self.num_frozen)]

    @torch.no_grad()
    def predict(self, model: DarknetModel) -> list[ImagePredictions]:
        """What ``net``, in evaluation mode, finds in each picture."""
        return self._run(model, None)[0]

    @torch.no_grad()
    def evaluate(self, model: DarknetModel, loss: DetectionLoss) -> dict[str, float]:
        """The terms of the loss, AP and AP50 of a net in evaluation mode, and what AP50 lacks to 1, named ``val_…``."""
        predicted, terms = self._run(model, loss)
        found = coco_average_precision(predicted, self.data.samples, len(self.data.classes))
        ap50 = found.ap50 if np.isfinite(found.ap50) else 0.0
        ap = found.ap if np.isfinite(found.ap) else 0.0
        return {**terms, "val_ap": ap, "val_ap50": ap50, "val_ap50_missing": 1 - ap50}

    def _run(self, model: DarknetModel, loss: DetectionLoss | None) -> tuple[list[ImagePredictions], dict[str, float]]:
        predicted: list[ImagePredictions] = []
        sums: dict[str, float] = {}
        for places, heads in self.head_outputs(model):
            if loss is not None:
                terms = loss(heads, stack_targets([self.boxes[place] for place in places]).to(heads[0].device))
                share = len(places) / len(self.boxes)
                sums = {
                    f"val_{name}": sums.get(f"val_{name}", 0.0) + share * float(value) for name, value in terms.items()
                }
            found = decode_candidates(heads, model.architecture, model.variant, self.size, MIN_EVAL_CONFIDENCE)
            for place, (corners, scores, classes) in zip(places, found, strict=True):
                box = letterbox_for(self.data.samples[place].size, self.size, model.variant)
                predicted.append(_to_image_predictions(box, corners.cpu(), scores.cpu(), classes.cpu()))
        return predicted, sums


def make_validator(
    cache: FeatureCache,
    model: DarknetModel,
    num_frozen: int,
    data: DetectionDataset,
    size: int,
    read_image: ImageReader,
    *,
    workers: int = 1,
) -> Validator:
    """A judge of the pictures of ``data``, whose classes are the net's; fills its ``cache``."""
    boxes: list[SampleBoxes] = []

    def pictures() -> Iterator[Tensor]:
        drawn = map_ordered(
            data.samples,
            lambda picture: letterbox_sample(picture, size, model.variant, read_image=read_image),
            workers=workers,
        )
        with closing(drawn):
            for pixels, own in drawn:
                boxes.append(own)
                yield torch.from_numpy(pixels)

    with progress_bar("computing frozen layers of validation pictures", len(data.samples), unit="pictures") as tick:
        fill_cache(cache, model, num_frozen, pictures(), on_progress=tick)
    return Validator(data, size, num_frozen, cache, tuple(boxes))


def _to_image_predictions(letterbox: Letterbox, boxes: Tensor, scores: Tensor, class_ids: Tensor) -> ImagePredictions:
    """What remains of the candidates in one square, in pixels of the picture, as detection gives it."""
    found, sure, numbers = boxes.numpy().astype(np.float64), scores.numpy().astype(np.float64), class_ids.numpy()
    kept = nms(found, sure, numbers, _NMS_IOU)
    height, width = letterbox.image_size
    upright = np.clip(letterbox.invert_boxes(found[kept]), 0, [width, height, width, height])
    inside = box_area(upright) > 0
    kept, upright = kept[inside], upright[inside]
    return ImagePredictions(upright, sure[kept], numbers[kept])
