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
from chromabox.detect.models.darknet import KINDS, DetectorNet, candidates
from chromabox.detect.weights.load import TrainedDetector
from chromabox.errors import ChromaboxError

SIDE = 416
#: Class, left, top, right and bottom as parts of the picture, drawn by hand round what they show.
ASTRONAUT = ("person", (0.04, 0.03, 0.71, 1.0))
CAT = ("cat", (0.0, 0.0, 0.89, 1.0))
#: Left, top and width in pixels of each copy on the sheet.
ASTRONAUTS = ((14, 20, 160), (210, 40, 96), (330, 30, 64), (150, 310, 96))
CATS = ((20, 210, 160), (230, 190, 128), (290, 310, 96))
#: Boxes with a score from here on count.
CONFIDENCE = 0.3
#: The least quality that passes, and by how much no other meaning may be better. The published YOLOv3-tiny reaches
#: 0.71; with sizes decoded the other way 0.66, with the mask 0, 1, 2 0.38, with SiLU nothing.
LEAST, MARGIN = 0.3, 0.03


@dataclass(frozen=True)
class Meaning:
    """One way to understand the same numbers: what it is called, and the net of it."""

    name: str
    net: DetectorNet


def self_test(trained: TrainedDetector) -> float | None:
    """Quality on the known sheet, 0 to 1; None where the detector knows neither persons nor cats.

    Raises ChromaboxError where the net finds too little, or where another kind or other anchors would find clearly
    more, and says which.
    """
    if not {ASTRONAUT[0], CAT[0]} <= set(trained.classes):
        return None
    reached = quality(trained.net, trained.classes)
    others = {meaning.name: quality(meaning.net, trained.classes) for meaning in other_meanings(trained.net)}
    best = max(others, key=lambda name: others[name])
    name = trained.architecture.name
    if others[best] > max(reached + MARGIN, LEAST):
        raise ChromaboxError(
            f"{name} of kind {trained.kind.name}: fails the self-test ({reached:.2f} on the known picture); "
            f"with {best} it reaches {others[best]:.2f}: say so, if the weights are of that meaning"
        )
    if reached < LEAST:
        raise ChromaboxError(
            f"{name} of kind {trained.kind.name}: fails the self-test ({reached:.2f} on the known picture, "
            f"{LEAST} is the least); the weights are of another net, or not trained"
        )
    return reached


def other_meanings(net: DetectorNet) -> Iterator[Meaning]:
    """The other kinds, and for YOLOv3-tiny the other anchors of the second head."""
    for kind in KINDS.values():
        if kind != net.kind:
            yield Meaning(f"kind {kind.name}", _again(net, DetectorNet.blank(net.architecture, kind)))
    for mask in ((0, 1, 2), (1, 2, 3)):
        changed = _with_mask(net.architecture, mask)
        if changed is not None:
            yield Meaning(f"mask {','.join(map(str, mask))}", _again(net, DetectorNet.blank(changed, net.kind)))


@torch.no_grad()
def quality(net: DetectorNet, classes: tuple[str, ...]) -> float:
    """Sum of the best IoU of every known object, over the known objects and the boxes that are none of them."""
    pixels, names, truth = sheet()
    [(boxes, scores, found)] = candidates(
        net(torch.from_numpy(pixels)[None]), net.architecture, net.kind, SIDE, CONFIDENCE
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


def sheet() -> tuple[Float32[np.ndarray, "3 side side"], tuple[str, ...], Float32[np.ndarray, "objects 4"]]:
    """The picture, in [0, 1] on grey, and what it shows: names, and boxes (left, top, right, bottom) in pixels."""
    canvas = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    names, boxes = [], []
    for pixels, (name, part), places in ((data.astronaut(), ASTRONAUT, ASTRONAUTS), (data.chelsea(), CAT, CATS)):
        for left, top, width in places:
            height = round(width * pixels.shape[0] / pixels.shape[1])
            canvas.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX), (left, top))
            names.append(name)
            boxes.append(np.array([left, top, left, top]) + np.array(part) * [width, height, width, height])
    image = np.asarray(canvas, np.float32).transpose(2, 0, 1) / 255
    return np.ascontiguousarray(image), tuple(names), np.array(boxes, np.float32)


def _again(net: DetectorNet, other: DetectorNet) -> DetectorNet:
    """The other net with the same numbers in it."""
    other.load_state_dict(net.state_dict())
    return other.eval()


def _with_mask(architecture: Architecture, mask: tuple[int, ...]) -> Architecture | None:
    """The same net with another mask of its second head of two; None if it has other heads, or this mask."""
    if len(architecture.heads) != 2 or len(architecture.yolos[1].mask) != 3:
        return None
    index = architecture.heads[1]
    yolo = architecture.layers[index]
    assert isinstance(yolo, Yolo)
    if yolo.mask == mask or max(mask) >= len(yolo.anchors):
        return None
    layers = (*architecture.layers[:index], replace(yolo, mask=mask), *architecture.layers[index + 1 :])
    return replace(architecture, layers=layers)
