"""Whether weights mean what they are said to mean: a picture whose contents are known.

Weights of the wrong kind, or under a configuration with the wrong anchors, load without an error and are only worse.
So a sheet with two of scikit-image's pictures in several sizes, large ones for the coarse heads and small ones for the
fine ones, is shown to the net as it is said to be and to the net as it might have been meant.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from skimage import data

from chromabox.detect.boxes import iou, nms
from chromabox.detect.models.architecture import Architecture, Yolo
from chromabox.detect.models.darknet import VARIANTS, DarknetModel, decode_candidates
from chromabox.detect.weights.load import Detector
from chromabox.errors import ChromaboxError

TEST_IMAGE_SIZE = 416
#: Class, left, top, right and bottom as parts of the picture, drawn by hand round what they show.
ASTRONAUT_OBJECT = ("person", (0.04, 0.03, 0.71, 1.0))
CAT_OBJECT = ("cat", (0.0, 0.0, 0.89, 1.0))
#: Left, top and width in pixels of each copy on the sheet.
ASTRONAUT_POSITIONS = ((14, 20, 160), (210, 40, 96), (330, 30, 64), (150, 310, 96))
CAT_POSITIONS = ((20, 210, 160), (230, 190, 128), (290, 310, 96))
#: Boxes with a score from here on count.
TEST_CONFIDENCE = 0.3
#: The least quality that passes, and by how much no other meaning may be better. The published YOLOv3-tiny reaches
#: 0.71; with sizes decoded the other way 0.66, with the mask 0, 1, 2 0.38, with SiLU nothing.
MIN_QUALITY, MARGIN = 0.3, 0.03


@dataclass(frozen=True)
class Interpretation:
    """One way to understand the same numbers: what it is called, and the net of it."""

    name: str
    model: DarknetModel


def sanity_check(detector: Detector) -> float | None:
    """Quality on the known sheet, 0 to 1; None where the detector knows neither persons nor cats.

    Raises ChromaboxError where the net finds too little, or where another kind or other anchors would find clearly
    more, and says which.
    """
    if not {ASTRONAUT_OBJECT[0], CAT_OBJECT[0]} <= set(detector.classes):
        return None
    reached = match_quality(detector.model, detector.classes)
    others = {meaning.name: match_quality(meaning.model, detector.classes) for meaning in alternatives(detector.model)}
    best = max(others, key=lambda name: others[name])
    name = detector.architecture.name
    if others[best] > max(reached + MARGIN, MIN_QUALITY):
        raise ChromaboxError(
            f"{name} of kind {detector.variant.name}: fails the self-test ({reached:.2f} on the known picture); "
            f"with {best} it reaches {others[best]:.2f}: say so, if the weights are of that meaning"
        )
    if reached < MIN_QUALITY:
        raise ChromaboxError(
            f"{name} of kind {detector.variant.name}: fails the self-test ({reached:.2f} on the known picture, "
            f"{MIN_QUALITY} is the least); the weights are of another net, or not trained"
        )
    return reached


def alternatives(model: DarknetModel) -> Iterator[Interpretation]:
    """The other kinds, and for YOLOv3-tiny the other anchors of the second head."""
    for kind in VARIANTS.values():
        if kind != model.variant:
            yield Interpretation(
                f"kind {kind.name}", _copy_weights(model, DarknetModel.uninitialised(model.architecture, kind))
            )
    for mask in ((0, 1, 2), (1, 2, 3)):
        changed = _with_mask(model.architecture, mask)
        if changed is not None:
            yield Interpretation(
                f"mask {','.join(map(str, mask))}",
                _copy_weights(model, DarknetModel.uninitialised(changed, model.variant)),
            )


@torch.no_grad()
def match_quality(model: DarknetModel, classes: tuple[str, ...]) -> float:
    """Sum of the best IoU of every known object, over the known objects and the boxes that are none of them."""
    pixels, names, truth = make_test_image()
    [(boxes, scores, found)] = decode_candidates(
        model(torch.from_numpy(pixels)[None]), model.architecture, model.variant, TEST_IMAGE_SIZE, TEST_CONFIDENCE
    )
    corners, confidences, numbers = boxes.numpy(), scores.numpy(), found.numpy()
    kept = nms(corners, confidences, numbers, 0.45)
    total, matched = 0.0, 0
    for name in set(names):
        own = corners[kept][numbers[kept] == classes.index(name)]
        expected = truth[[index for index, other in enumerate(names) if other == name]]
        overlaps = iou(expected, own.astype(np.float32)) if len(own) else np.zeros((len(expected), 1), np.float32)
        best = overlaps.max(1)
        total += float(best[best > 0.3].sum())
        matched += int((best > 0.3).sum())
    return total / (len(truth) + max(0, len(kept) - matched))


def make_test_image() -> tuple[Float32[np.ndarray, "3 side side"], tuple[str, ...], Float32[np.ndarray, "objects 4"]]:
    """The picture, in [0, 1] on grey, and what it shows: names, and boxes (left, top, right, bottom) in pixels."""
    canvas = Image.new("RGB", (TEST_IMAGE_SIZE, TEST_IMAGE_SIZE), (128, 128, 128))
    names, boxes = [], []
    for pixels, (name, part), places in (
        (data.astronaut(), ASTRONAUT_OBJECT, ASTRONAUT_POSITIONS),
        (data.chelsea(), CAT_OBJECT, CAT_POSITIONS),
    ):
        for left, top, width in places:
            height = round(width * pixels.shape[0] / pixels.shape[1])
            canvas.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX), (left, top))
            names.append(name)
            boxes.append(np.array([left, top, left, top]) + np.array(part) * [width, height, width, height])
    image = np.asarray(canvas, np.float32).transpose(2, 0, 1) / 255
    return np.ascontiguousarray(image), tuple(names), np.array(boxes, np.float32)


def _copy_weights(source: DarknetModel, target: DarknetModel) -> DarknetModel:
    """The other net with the same numbers in it."""
    target.load_state_dict(source.state_dict())
    return target.eval()


def _with_mask(architecture: Architecture, mask: tuple[int, ...]) -> Architecture | None:
    """The same net with another mask of its second head of two; None if it has other heads, or this mask."""
    if len(architecture.head_indices) != 2 or len(architecture.yolo_layers[1].mask) != 3:
        return None
    index = architecture.head_indices[1]
    yolo = architecture.layers[index]
    assert isinstance(yolo, Yolo)
    if yolo.mask == mask or max(mask) >= len(yolo.anchors):
        return None
    layers = (*architecture.layers[:index], replace(yolo, mask=mask), *architecture.layers[index + 1 :])
    return replace(architecture, layers=layers)
