"""Pictures → boxes: into the net's square, through the net, decoded, freed of doubles, back into the picture."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64

from chromabox.detect.boxes import Letterbox, Pixels, areas, letterbox_for, nms
from chromabox.detect.detections import Detections
from chromabox.detect.inference.runtime import ReadyDetector
from chromabox.detect.models.darknet import candidates
from chromabox.detect.weights.load import TrainedDetector
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import read_picture
from chromabox.runtime.parallel import in_order

#: A detector as it was loaded, or made ready for many pictures.
Detector = TrainedDetector | ReadyDetector


@dataclass(frozen=True)
class Found:
    """What became of one file: its pixels and what was found in them, or in one sentence why nothing could be."""

    path: Path
    pixels: Pixels | None = None
    detections: Detections | None = None
    error: str | None = None


def detect_picture(
    pixels: Pixels,
    detector: Detector,
    *,
    confidence: float = 0.5,
    iou: float = 0.45,
    classes: Sequence[str | int] | None = None,
    size: int | None = None,
) -> Detections:
    """What a detector finds in a picture.

    Args:
        pixels: RGB of 8 or 16 bits, upright.
        detector: of any kind.
        confidence: 0 to 1; pairs of box and class with a score above it are found, so that one box may stand for
            several classes.
        iou: 0 to 1; of two boxes of one class that overlap by more, the one with the lower score goes.
        classes: names or numbers of the only classes wanted.
        size: side of the net's square, a multiple of the net's greatest stride; the detector's own if None.

    Returns:
        Boxes in pixels of the picture, cut off at its edges (those wholly outside are left out), the highest score
        first; ``data["class_name"]`` has the names. Raises UsageError for values out of range and unknown classes.
    """
    return detect_wanted(pixels, detector, Wanted.of(detector, confidence, iou, classes, size))


@torch.inference_mode()
def detect_wanted(pixels: Pixels, detector: Detector, wanted: "Wanted") -> Detections:
    """:func:`detect_picture` for wishes that are checked already."""
    trained = trained_of(detector)
    box = letterbox_for(pixels.shape[:2], wanted.size, trained.kind)
    square = torch.from_numpy(box.pixels_in(pixels))[None]
    if isinstance(detector, ReadyDetector):
        outputs = detector.run(square)
    else:
        outputs = trained.net(square.to(next(trained.net.parameters()).device))
    ((corners, scores, numbers),) = candidates(
        outputs, trained.architecture, trained.kind, wanted.size, wanted.confidence
    )
    return _detections(corners.cpu().numpy(), scores.cpu().numpy(), numbers.cpu().numpy(), box, trained.classes, wanted)


def detect_files(
    paths: Iterable[Path],
    detector: Detector,
    *,
    confidence: float = 0.5,
    iou: float = 0.45,
    classes: Sequence[str | int] | None = None,
    size: int | None = None,
    workers: int | None = None,
) -> Iterator[Found]:
    """What a detector finds in many files, in their order; see :func:`detect_picture`.

    A file that cannot be read gives a ``Found`` with an error and does not stop the rest. ``workers`` as in
    :func:`in_order`.
    """
    wanted = Wanted.of(detector, confidence, iou, classes, size)
    return in_order(paths, lambda path: detect_file(path, detector, wanted), workers=workers)


def detect_file(path: Path, detector: Detector, wanted: "Wanted") -> Found:
    """What a detector finds in one file, or why nothing can be found."""
    try:
        pixels = read_picture(path).pixels
    except ChromaboxError as error:
        return Found(path, error=str(error))
    return Found(path, pixels, detect_wanted(pixels, detector, wanted))


@dataclass(frozen=True)
class Wanted:
    """What is looked for, checked: thresholds, class numbers (None: all), side of the square."""

    confidence: float
    iou: float
    classes: Int64[np.ndarray, " wanted"] | None
    size: int

    @classmethod
    def of(
        cls,
        detector: Detector,
        confidence: float,
        iou: float,
        classes: Sequence[str | int] | None,
        size: int | None,
    ) -> "Wanted":
        """UsageError for values out of range, unknown classes and sizes that the net cannot take."""
        trained = trained_of(detector)
        for name, value in (("confidence", confidence), ("iou", iou)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}: give a number from 0 to 1")
        side = trained.size if size is None else size
        multiple = trained.architecture.multiple
        if side < multiple or side % multiple:
            raise UsageError(f"size is {side}: {trained.architecture.name} needs a multiple of {multiple}")
        numbers = None if classes is None else np.array([_class_number(one, trained) for one in classes], np.int64)
        return cls(confidence, iou, numbers, side)


def trained_of(detector: Detector) -> TrainedDetector:
    """The detector as it was loaded."""
    return detector.trained if isinstance(detector, ReadyDetector) else detector


def _detections(
    corners: Float32[np.ndarray, "found 4"],
    scores: Float32[np.ndarray, " found"],
    classes: Int64[np.ndarray, " found"],
    box: Letterbox,
    names: tuple[str, ...],
    wanted: Wanted,
) -> Detections:
    if wanted.classes is not None:
        own = np.isin(classes, wanted.classes)
        corners, scores, classes = corners[own], scores[own], classes[own]
    kept = nms(corners, scores, classes, wanted.iou)
    height, width = box.picture
    upright = np.clip(box.boxes_back(corners[kept].astype(np.float64)), 0, [width, height, width, height])
    # A box that lies wholly in the grey has nothing left.
    inside = areas(upright) > 0
    kept, upright = kept[inside], upright[inside]
    return Detections(
        xyxy=upright.astype(np.float32),
        confidence=scores[kept],
        class_id=classes[kept],
        data={"class_name": np.array(names, dtype=str)[classes[kept]]},
    )


def _class_number(given: str | int, trained: TrainedDetector) -> int:
    """The number of a class given by its name (capitals count as small letters) or its number."""
    names = [name.lower() for name in trained.classes]
    text = str(given).lower()
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    some = ", ".join(trained.classes[:5]) + (", …" if len(names) > 5 else "")
    raise UsageError(f"classes: {given} is none of the detector's {len(names)} classes ({some}); give names or numbers")
