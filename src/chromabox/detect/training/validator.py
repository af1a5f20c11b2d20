"""Validation that reuses the cached features of frozen layers in every epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from chromabox.detect.boxes import letterbox_for
from chromabox.detect.data.dataset import DetectionDataset
from chromabox.detect.evaluation.evaluate import MIN_EVAL_CONFIDENCE
from chromabox.detect.evaluation.metrics import ImagePredictions, coco_average_precision
from chromabox.detect.inference.predict import postprocess
from chromabox.detect.models.darknet import DarknetModel, decode_all
from chromabox.detect.training.batches import SampleBoxes, stack_targets
from chromabox.detect.training.feature_cache import FeatureCache
from chromabox.detect.training.loss import DetectionLoss

#: Images per batch in the layers that are not cached.
_BATCH_SIZE = 16
#: IoU threshold of non-maximum suppression.
_NMS_IOU = 0.45


@dataclass(frozen=True)
class Validator:
    """Validation images, letterboxed to the side length ``size`` as for inference.

    ``cache`` contains the features of the images, and ``boxes`` contains their ground truth.
    """

    data: DetectionDataset
    size: int
    cache: FeatureCache
    boxes: Sequence[SampleBoxes]

    def evaluate(self, model: DarknetModel, loss: DetectionLoss) -> dict[str, float]:
        """Evaluate a model, which must already be in evaluation mode.

        Return each mean loss term as ``val_NAME``, and AP and AP50 as ``val_ap`` and ``val_ap50``.
        ``val_ap50_missing`` is 1 − AP50.
        """
        predictions, terms = self.predict(model, loss)
        result = coco_average_precision(predictions, self.data.samples, len(self.data.classes))
        ap, ap50 = (value if np.isfinite(value) else 0.0 for value in (result.ap, result.ap50))
        return {**terms, "val_ap": ap, "val_ap50": ap50, "val_ap50_missing": 1 - ap50}

    @torch.no_grad()
    def predict(
        self, model: DarknetModel, loss: DetectionLoss | None = None
    ) -> tuple[list[ImagePredictions], dict[str, float]]:
        """Return the predictions of a model in evaluation mode for each image.

        With ``loss``, also return each mean loss term as ``val_NAME``.
        """
        predictions: list[ImagePredictions] = []
        mean_terms: dict[str, float] = {}
        device = next(model.parameters()).device
        for start in range(0, len(self.boxes), _BATCH_SIZE):
            indices = range(start, min(start + _BATCH_SIZE, len(self.boxes)))
            features = {layer: output.to(device) for layer, output in self.cache.read(indices).items()}
            heads = [head.float() for head in model.forward_from(features, self.cache.num_frozen)]
            if loss is not None:
                terms = loss(heads, stack_targets([self.boxes[index] for index in indices]).to(device))
                for name, value in terms.items():
                    weighted = len(indices) / len(self.boxes) * float(value)
                    mean_terms[f"val_{name}"] = mean_terms.get(f"val_{name}", 0.0) + weighted
            all_boxes, all_scores = decode_all(heads, model.architecture, model.variant, self.size)
            for index, boxes, scores in zip(indices, all_boxes.cpu().numpy(), all_scores.cpu().numpy(), strict=True):
                letterbox = letterbox_for(self.data.samples[index].size, self.size, model.variant)
                image_boxes, kept_scores, class_ids = postprocess(
                    boxes, scores, letterbox, confidence=MIN_EVAL_CONFIDENCE, iou=_NMS_IOU
                )
                predictions.append(ImagePredictions(image_boxes, kept_scores.astype(np.float64), class_ids))
        return predictions, mean_terms
