"""Sanity check of how weights are interpreted, on a reference image with known objects.

Weights of the wrong variant, or with the wrong anchors, load without an error but give worse detections. The reference
image contains two photographs from scikit-image at several sizes: large copies for the coarse heads and small copies
for the fine heads. The detector is run with the given interpretation of the weights and with the alternatives.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from skimage import data

from chromabox.detect.boxes import iou, nms
from chromabox.detect.models.architecture import VARIANTS, Architecture, Yolo
from chromabox.detect.models.darknet import DarknetModel, decode_all
from chromabox.detect.weights.load import Detector
from chromabox.errors import ChromaboxError

TEST_IMAGE_SIZE = 416
#: Class, and left, top, right and bottom as fractions of the photograph, annotated by hand.
ASTRONAUT_OBJECT = ("person", (0.04, 0.03, 0.71, 1.0))
CAT_OBJECT = ("cat", (0.0, 0.0, 0.89, 1.0))
#: Left, top and width in pixels of each copy in the reference image.
ASTRONAUT_POSITIONS = ((14, 20, 160), (210, 40, 96), (330, 30, 64), (150, 310, 96))
CAT_POSITIONS = ((20, 210, 160), (230, 190, 128), (290, 310, 96))
#: Confidence threshold for detections on the reference image.
TEST_CONFIDENCE = 0.3
#: Minimum quality to pass, and maximum margin by which an alternative may be better. The published YOLOv3-tiny reaches
#: 0.71; it reaches 0.66 with the other size decoding, 0.38 with the mask (0, 1, 2), and 0 with SiLU.
MIN_QUALITY, MARGIN = 0.3, 0.03


@dataclass(frozen=True)
class Interpretation:
    """Interpretation of weights: its name, and the model that uses it."""

    name: str
    model: DarknetModel


def sanity_check(detector: Detector) -> float | None:
    """Return the quality on the reference image, 0 to 1; None if the detector lacks the class person or cat.

    Raise ChromaboxError if the quality is too low, or if another variant or mask has a clearly higher quality.
    """
    if not {ASTRONAUT_OBJECT[0], CAT_OBJECT[0]} <= set(detector.classes):
        return None
    quality = match_quality(detector.model, detector.classes)
    others = {other.name: match_quality(other.model, detector.classes) for other in alternatives(detector.model)}
    best = max(others, key=lambda name: others[name])
    name = detector.architecture.name
    if others[best] > max(quality + MARGIN, MIN_QUALITY):
        raise ChromaboxError(
            f"{name}, variant {detector.variant.name}: sanity check failed (score {quality:.2f}, but "
            f"{others[best]:.2f} with {best}); use {best} if the weights were trained with it"
        )
    if quality < MIN_QUALITY:
        raise ChromaboxError(
            f"{name}, variant {detector.variant.name}: sanity check failed (score {quality:.2f}, expected at least "
            f"{MIN_QUALITY}); the weights are untrained or belong to another architecture"
        )
    return quality


def alternatives(model: DarknetModel) -> Iterator[Interpretation]:
    """Yield the interpretations with other variants and, for YOLOv3-tiny, with the other mask of the second head."""
    for variant in VARIANTS.values():
        if variant != model.variant:
            yield Interpretation(
                f"variant {variant.name}",
                _copy_weights(model, DarknetModel.uninitialised(model.architecture, variant)),
            )
    for mask in ((0, 1, 2), (1, 2, 3)):
        architecture = _with_mask(model.architecture, mask)
        if architecture is not None:
            yield Interpretation(
                f"mask {','.join(map(str, mask))}",
                _copy_weights(model, DarknetModel.uninitialised(architecture, model.variant)),
            )


@torch.no_grad()
def match_quality(model: DarknetModel, classes: tuple[str, ...]) -> float:
    """Return the quality of the detections on the reference image, 0 to 1.

    It is the sum of the best IoU of each object, divided by the number of objects and unmatched boxes.
    """
    pixels, names, truth = make_test_image()
    heads = model(torch.from_numpy(pixels)[None])
    all_boxes, all_scores = decode_all(heads, model.architecture, model.variant, TEST_IMAGE_SIZE)
    box_indices, class_ids = np.nonzero(all_scores[0].numpy() > TEST_CONFIDENCE)
    boxes, scores = all_boxes[0].numpy()[box_indices], all_scores[0].numpy()[box_indices, class_ids]
    kept = nms(boxes, scores, class_ids, 0.45)
    total, matched = 0.0, 0
    for name in set(names):
        detected = boxes[kept][class_ids[kept] == classes.index(name)]
        expected = truth[[index for index, other in enumerate(names) if other == name]]
        overlaps = (
            iou(expected, detected.astype(np.float32)) if len(detected) else np.zeros((len(expected), 1), np.float32)
        )
        best = overlaps.max(1)
        total += float(best[best > 0.3].sum())
        matched += int((best > 0.3).sum())
    return total / (len(truth) + max(0, len(kept) - matched))


def make_test_image() -> tuple[Float32[np.ndarray, "3 side side"], tuple[str, ...], Float32[np.ndarray, "objects 4"]]:
    """Return the reference image, RGB in [0, 1], and the classes and boxes (left, top, right, bottom) in pixels."""
    canvas = Image.new("RGB", (TEST_IMAGE_SIZE, TEST_IMAGE_SIZE), (128, 128, 128))
    names, boxes = [], []
    for pixels, (name, object_box), positions in (
        (data.astronaut(), ASTRONAUT_OBJECT, ASTRONAUT_POSITIONS),
        (data.chelsea(), CAT_OBJECT, CAT_POSITIONS),
    ):
        for left, top, width in positions:
            height = round(width * pixels.shape[0] / pixels.shape[1])
            canvas.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX), (left, top))
            names.append(name)
            boxes.append(np.array([left, top, left, top]) + np.array(object_box) * [width, height, width, height])
    image = np.asarray(canvas, np.float32).transpose(2, 0, 1) / 255
    return np.ascontiguousarray(image), tuple(names), np.array(boxes, np.float32)


def _copy_weights(source: DarknetModel, target: DarknetModel) -> DarknetModel:
    """Copy the weights of one model to another; return the latter in evaluation mode."""
    target.load_state_dict(source.state_dict())
    return target.eval()


def _with_mask(architecture: Architecture, mask: tuple[int, ...]) -> Architecture | None:
    """Return the architecture with another mask for its second head.

    Return None if there are not exactly two heads, the second does not have three anchors, or the mask is the same.
    """
    if len(architecture.head_indices) != 2 or len(architecture.yolo_layers[1].mask) != 3:
        return None
    index = architecture.head_indices[1]
    yolo = architecture.layers[index]
    assert isinstance(yolo, Yolo)
    if yolo.mask == mask or max(mask) >= len(yolo.anchors):
        return None
    layers = (*architecture.layers[:index], replace(yolo, mask=mask), *architecture.layers[index + 1 :])
    return replace(architecture, layers=layers)
