"""Pictures → boxes: into the net's square, through the net, decoded, freed of doubles, back into the picture."""

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from chromabox.detect.boxes import Letterbox, Pixels, darknet_letterbox, nms, rounding_letterbox
from chromabox.detect.decode import candidates
from chromabox.detect.kinds import Kind
from chromabox.detect.ready import ReadyDetector
from chromabox.detect.weights import TrainedDetector
from chromabox.errors import ChromaboxError, UsageError
from chromabox.files.images import read_picture

with warnings.catch_warnings():
    # It says at every import that it draws without OpenCV, which is as it should be.
    warnings.filterwarnings("ignore", "OpenCV", UserWarning)
    from supervision import Detections

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
        Boxes in pixels of the picture, cut off at its edges, the highest score first; ``data["class_name"]`` has the
        names. Raises UsageError for values out of range and unknown classes.
    """
    wanted = Wanted.of(detector, confidence, iou, classes, size)
    box = letterbox_for(pixels.shape[:2], wanted.size, trained_of(detector).kind)
    square = torch.from_numpy(box.pixels_in(pixels))[None]
    return _detected(square, [box], detector, wanted)[0]


def detect_files(
    paths: Iterable[Path],
    detector: Detector,
    *,
    confidence: float = 0.5,
    iou: float = 0.45,
    classes: Sequence[str | int] | None = None,
    size: int | None = None,
    batch: int = 1,
    readers: int = 1,
) -> Iterator[Found]:
    """What a detector finds in many files, in their order; see :func:`detect_picture`.

    Files are read in ``readers`` threads while the net computes, at most two batches ahead. A file that cannot be read
    gives a ``Found`` with an error and does not stop the rest.
    """
    wanted = Wanted.of(detector, confidence, iou, classes, size)
    kind = trained_of(detector).kind
    if batch < 1 or readers < 1:
        raise UsageError(f"batch is {batch} and readers are {readers}: give at least 1 of each")
    with ThreadPoolExecutor(readers) as pool:
        laid = _ahead(pool, iter(paths), wanted.size, kind, 2 * batch)
        while group := list(islice(laid, batch)):
            readable = [one for one in group if isinstance(one, _Laid)]
            found: list[Detections] = []
            if readable:
                squares = torch.from_numpy(np.stack([one.square for one in readable]))
                found = _detected(squares, [one.box for one in readable], detector, wanted)
            results = iter(found)
            for one in group:
                yield one if isinstance(one, Found) else Found(one.path, one.pixels, next(results))


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


def letterbox_for(picture: tuple[int, ...], side: int, kind: Kind) -> Letterbox:
    """The way into the square that a kind of weights was trained with; ``picture`` is height and width."""
    make = darknet_letterbox if kind.decode == "exp" else rounding_letterbox
    return make((picture[0], picture[1]), side, grey=kind.letterbox_grey)


@dataclass(frozen=True)
class _Laid:
    """A picture that is read and laid into its square."""

    path: Path
    pixels: Pixels
    box: Letterbox
    square: Float32[np.ndarray, "3 side side"]


def _lay(path: Path, side: int, kind: Kind) -> _Laid | Found:
    try:
        pixels = read_picture(path).pixels
    except ChromaboxError as error:
        return Found(path, error=str(error))
    box = letterbox_for(pixels.shape[:2], side, kind)
    return _Laid(path, pixels, box, box.pixels_in(pixels))


def _ahead(
    pool: ThreadPoolExecutor, paths: Iterator[Path], side: int, kind: Kind, ahead: int
) -> Iterator[_Laid | Found]:
    """The laid pictures in order, ``ahead`` of them being read or waiting."""
    waiting: deque[Future[_Laid | Found]] = deque(pool.submit(_lay, path, side, kind) for path in islice(paths, ahead))
    while waiting:
        done = waiting.popleft().result()
        waiting.extend(pool.submit(_lay, path, side, kind) for path in islice(paths, 1))
        yield done


@torch.inference_mode()
def _detected(
    squares: Float[Tensor, "batch 3 side side"], boxes: Sequence[Letterbox], detector: Detector, wanted: Wanted
) -> list[Detections]:
    trained = trained_of(detector)
    outputs = detector.run(squares) if isinstance(detector, ReadyDetector) else trained.net(squares)
    found = candidates(outputs, trained.architecture, trained.kind, wanted.size, wanted.confidence)
    return [
        _detections(*(part.cpu().numpy() for part in parts), box, trained.classes, wanted)
        for parts, box in zip(found, boxes, strict=True)
    ]


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
    upright = box.boxes_back(corners[kept].astype(np.float64))
    return Detections(
        xyxy=np.clip(upright, 0, [width, height, width, height]).astype(np.float32),
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
