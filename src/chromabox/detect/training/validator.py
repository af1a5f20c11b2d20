"""Validation that reuses cached backbone features between epochs."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chromabox.detect.boxes import letterbox_for
from chromabox.detect.data.augment import letterbox_sample
from chromabox.detect.data.dataset import DetectionDataset
from chromabox.detect.evaluation.evaluate import MIN_EVAL_CONFIDENCE
from chromabox.detect.evaluation.metrics import ImagePredictions, coco_average_precision
from chromabox.detect.inference.predict import postprocess
from chromabox.detect.models.darknet import DarknetModel, decode_all
from chromabox.detect.training.batches import ImageReader, SampleBoxes, stack_targets
from chromabox.detect.training.feature_cache import FeatureCache, fill_cache
from chromabox.detect.training.loss import DetectionLoss
from chromabox.engine.logger import progress_bar
from chromabox.runtime.parallel import map_ordered

#: Images per batch in the layers that are not cached.
_BATCH_SIZE = 16
#: IoU threshold of non-maximum suppression.
_NMS_IOU = 0.45


@dataclass(frozen=True)
class Validator:
    """Validation images with the cached features of their first ``num_frozen`` layers, letterboxed as for inference."""

    data: DetectionDataset
    size: int
    num_frozen: int
    cache: FeatureCache
    boxes: tuple[SampleBoxes, ...]

    def head_outputs(self, model: DarknetModel) -> Iterator[tuple[range, list[Tensor]]]:
        """Yield batches of image indices with the corresponding raw outputs of the heads."""
        device = next(model.parameters()).device
        for start in range(0, len(self.boxes), _BATCH_SIZE):
            indices = range(start, min(start + _BATCH_SIZE, len(self.boxes)))
            features = {layer: output.to(device) for layer, output in self.cache.read(indices).items()}
            yield indices, [head.float() for head in model.forward_from(features, self.num_frozen)]

    @torch.no_grad()
    def predict(self, model: DarknetModel) -> list[ImagePredictions]:
        """Return the predictions of a model in evaluation mode for each image."""
        return self._run(model, None)[0]

    @torch.no_grad()
    def evaluate(self, model: DarknetModel, loss: DetectionLoss) -> dict[str, float]:
        """Evaluate a model in evaluation mode.

        Return the mean loss terms as ``val_NAME``, ``val_ap``, ``val_ap50``, and ``val_ap50_missing``, which is
        1 − AP50.
        """
        predictions, terms = self._run(model, loss)
        average_precision = coco_average_precision(predictions, self.data.samples, len(self.data.classes))
        ap50 = average_precision.ap50 if np.isfinite(average_precision.ap50) else 0.0
        ap = average_precision.ap if np.isfinite(average_precision.ap) else 0.0
        return {**terms, "val_ap": ap, "val_ap50": ap50, "val_ap50_missing": 1 - ap50}

    def _run(self, model: DarknetModel, loss: DetectionLoss | None) -> tuple[list[ImagePredictions], dict[str, float]]:
        predictions: list[ImagePredictions] = []
        mean_terms: dict[str, float] = {}
        for indices, heads in self.head_outputs(model):
            if loss is not None:
                terms = loss(heads, stack_targets([self.boxes[index] for index in indices]).to(heads[0].device))
                fraction = len(indices) / len(self.boxes)
                mean_terms = {
                    f"val_{name}": mean_terms.get(f"val_{name}", 0.0) + fraction * float(value)
                    for name, value in terms.items()
                }
            all_boxes, all_scores = decode_all(heads, model.architecture, model.variant, self.size)
            for index, boxes, scores in zip(indices, all_boxes.cpu().numpy(), all_scores.cpu().numpy(), strict=True):
                letterbox = letterbox_for(self.data.samples[index].size, self.size, model.variant)
                image_boxes, kept_scores, class_ids = postprocess(
                    boxes, scores, letterbox, confidence=MIN_EVAL_CONFIDENCE, iou=_NMS_IOU
                )
                predictions.append(ImagePredictions(image_boxes, kept_scores.astype(np.float64), class_ids))
        return predictions, mean_terms


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
    """Return a validator for the images of ``data``, which has the model's classes, and fill its cache."""
    boxes: list[SampleBoxes] = []

    def images() -> Iterator[Tensor]:
        letterboxed = map_ordered(
            data.samples,
            lambda sample: letterbox_sample(sample, size, model.variant, read_image=read_image),
            workers=workers,
        )
        with closing(letterboxed):
            for pixels, image_boxes in letterboxed:
                boxes.append(image_boxes)
                yield torch.from_numpy(pixels)

    with progress_bar("computing frozen layers for validation", len(data.samples), unit="images") as tick:
        fill_cache(cache, model, num_frozen, images(), on_progress=tick)
    return Validator(data, size, num_frozen, cache, tuple(boxes))
