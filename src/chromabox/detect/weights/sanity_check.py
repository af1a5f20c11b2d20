"""Sanity check of the variant and anchors of weights, on a reference image with known objects.

Weights with the wrong variant or the wrong anchors load without an error but give worse detections. The reference image
contains two photographs from scikit-image at several sizes: large copies for the coarse heads and small copies for the
fine heads. The detector is run with the given variant and anchors, and with each alternative.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from skimage import data

from chromabox.detect.boxes import iou, nms
from chromabox.detect.models.architecture import VARIANTS
from chromabox.detect.models.darknet import DarknetModel, decode_all
from chromabox.detect.weights.load import Detector
from chromabox.errors import ChromaboxError

TEST_IMAGE_SIZE = 416
#: Photographs from scikit-image in the reference image: name; class of the object; left, top, right and bottom of the
#: object as fractions of the photograph (annotated by hand); and left, top and width in pixels of each copy.
TEST_PHOTOS = (
    ("astronaut", "person", (0.04, 0.03, 0.71, 1.0), ((14, 20, 160), (210, 40, 96), (330, 30, 64), (150, 310, 96))),
    ("chelsea", "cat", (0.0, 0.0, 0.89, 1.0), ((20, 210, 160), (230, 190, 128), (290, 310, 96))),
)
#: Confidence threshold for detections on the reference image.
TEST_CONFIDENCE = 0.3
#: Minimum quality to pass, and maximum margin by which an alternative may be better. The published YOLOv3-tiny has a
#: quality of 0.71. Its quality is 0.66 with the other decoding, 0.38 with the mask (0, 1, 2), and 0 with SiLU.
MIN_QUALITY, MARGIN = 0.3, 0.03


def sanity_check(detector: Detector) -> float | None:
    """Return the quality (0 to 1) of a detector on the reference image, or None if the check is not possible.

    The check requires the classes of the image, person and cat.

    Raise ChromaboxError if the quality is too low, or if the quality with another variant or mask is clearly higher.
    """
    if not {name for _, name, *_ in TEST_PHOTOS} <= set(detector.classes):
        return None
    quality = match_quality(detector.model, detector.classes)
    others = {name: match_quality(model, detector.classes) for name, model in alternatives(detector.model)}
    best = max(others, key=lambda name: others[name])
    failure = f"{detector.architecture.name}, variant {detector.variant.name}: sanity check failed (score {quality:.2f}"
    if others[best] > max(quality + MARGIN, MIN_QUALITY):
        advice = f"use {best} if the weights were trained with it"
        raise ChromaboxError(f"{failure}, but {others[best]:.2f} with {best}); {advice}")
    if quality < MIN_QUALITY:
        reason = "the weights are untrained or belong to another architecture"
        raise ChromaboxError(f"{failure}, expected at least {MIN_QUALITY}); {reason}")
    return quality


def alternatives(model: DarknetModel) -> Iterator[tuple[str, DarknetModel]]:
    """Yield the description and the model of each alternative: the same weights with another variant or mask.

    Only the mask of the second head of YOLOv3-tiny is changed. The models are in evaluation mode.
    """
    architecture, heads, yolo = model.architecture, model.architecture.head_indices, model.architecture.yolo_layers[-1]
    others = [(f"variant {name}", architecture, variant) for name, variant in VARIANTS.items()]
    others = [other for other in others if other[2] != model.variant]
    if len(heads) == 2 and len(yolo.mask) == 3:
        for mask in ((0, 1, 2), (1, 2, 3)):
            if yolo.mask != mask and max(mask) < len(yolo.anchors):
                before, after = architecture.layers[: heads[1]], architecture.layers[heads[1] + 1 :]
                changed = replace(architecture, layers=(*before, replace(yolo, mask=mask), *after))
                others.append((f"mask {','.join(map(str, mask))}", changed, model.variant))
    for name, changed, variant in others:
        other = DarknetModel.uninitialised(changed, variant)
        other.load_state_dict(model.state_dict())
        yield name, other.eval()


@torch.no_grad()
def match_quality(model: DarknetModel, classes: tuple[str, ...]) -> float:
    """Return the quality (0 to 1) of the detections on the reference image.

    Each object contributes its best IoU with a detected box of its class, or 0 if this IoU is at most 0.3. The quality
    is the sum of the contributions, divided by the number of objects plus the number of unmatched boxes.
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
        best = iou(expected, detected).max(axis=1, initial=0)
        total += float(best[best > 0.3].sum())
        matched += int((best > 0.3).sum())
    return total / (len(truth) + max(0, len(kept) - matched))


def make_test_image() -> tuple[Float32[np.ndarray, "3 side side"], tuple[str, ...], Float32[np.ndarray, "objects 4"]]:
    """Return the reference image, and the class and box of each object in it.

    The image is RGB in [0, 1]. The boxes (left, top, right, bottom) are in pixels.
    """
    canvas = Image.new("RGB", (TEST_IMAGE_SIZE, TEST_IMAGE_SIZE), (128, 128, 128))
    names, boxes = [], []
    for photo, name, object_box, positions in TEST_PHOTOS:
        pixels = getattr(data, photo)()
        for left, top, width in positions:
            height = round(width * pixels.shape[0] / pixels.shape[1])
            canvas.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX), (left, top))
            names.append(name)
            boxes.append(np.array([left, top, left, top]) + np.array(object_box) * [width, height, width, height])
    image = np.asarray(canvas, np.float32).transpose(2, 0, 1) / 255
    return np.ascontiguousarray(image), tuple(names), np.array(boxes, np.float32)
