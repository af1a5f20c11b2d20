"""Detectors as exported ONNX files, run by ONNX Runtime.

In an exported file, BatchNorm is fused into the convolutions, and the decoding of boxes is part of the graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from chromabox.detect.models.architecture import MAX_SIZE, Variant, variant_from_json
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import parse_json
from chromabox.io.fetch import cache_folder
from chromabox.io.images import check_not_url
from chromabox.runtime.session import one_line, open_session, read_session_metadata

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

#: Value of ``format`` in the metadata of exported files.
EXPORT_FORMAT = "chromabox-detector-1"
#: Names of pretrained weights, which are downloaded on first use.
PRETRAINED = ("yolov3-tiny",)
INPUT_NAME, OUTPUT_NAMES = "images", ("boxes", "scores")

ImageArray = Float32[np.ndarray, "batch 3 height width"]
BoxArray = Float32[np.ndarray, "batch boxes 4"]
ScoreArray = Float32[np.ndarray, "batch boxes classes"]


@runtime_checkable
class DetectorModel(Protocol):
    """Interface of detectors for inference. It is implemented by :class:`OnnxDetector` and by PyTorch detectors."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO category ids of the classes, or () if the dataset of the detector had none."""

    @property
    def size(self) -> int:
        """Default side length of the square input in pixels."""

    @property
    def variant(self) -> Variant:
        """Variant of the weights. It defines the letterbox."""

    def check_size(self, size: int) -> None:
        """Raise UsageError if the model cannot process square images of this side length in pixels."""

    def predict(self, images: ImageArray) -> tuple[BoxArray, ScoreArray]:
        """Return boxes and scores before non-maximum suppression.

        Boxes are left, top, right and bottom in pixels of the input. Scores are in [0, 1].
        """


@dataclass(frozen=True, eq=False)
class OnnxDetector:
    """Exported detector with a fixed input size. An instance can be shared between threads."""

    session: "InferenceSession"
    path: Path
    classes: tuple[str, ...]
    size: int
    variant: Variant
    category_ids: tuple[int, ...] = ()

    def check_size(self, size: int) -> None:
        """Raise UsageError if the size differs from the size for which the file was exported."""
        if size != self.size:
            found = f"--size is {size}: {self.path} was exported for {self.size} pixels"
            raise UsageError(f"{found}; use {self.size}, or export the weights with --size {size}")

    def predict(self, images: ImageArray) -> tuple[BoxArray, ScoreArray]:
        """Return boxes and scores before non-maximum suppression.

        Boxes are left, top, right and bottom in pixels of the input. Scores are in [0, 1].
        """
        boxes, scores = self.session.run(list(OUTPUT_NAMES), {INPUT_NAME: images})
        return boxes, scores


def check_size_value(size: Any) -> None:
    """Raise UsageError unless the size is None or a positive integer. The model determines the possible multiples."""
    if size is not None and (not isinstance(size, Integral) or not 1 <= int(size) <= MAX_SIZE):
        raise UsageError(f"--size is {size!r}: expected a multiple of 32, at least 32 and at most {MAX_SIZE}")


def read_onnx_file(path: Path) -> bytes:
    """Return the bytes of an ONNX file.

    Raise UsageError if the file does not exist, and ChromaboxError if it is not an ONNX file.
    """
    if not path.is_file():
        check_not_url(path)
        raise UsageError(f"{path}: no such file; expected an exported .onnx file")
    content = path.read_bytes()
    # The first field of every ONNX file is the version of the format.
    if not content.startswith(b"\x08"):
        raise ChromaboxError(f"{path}: not an ONNX file; export the detector with chromabox export")
    return content


def load_onnx_detector(
    path: Path, *, content: bytes | None = None, threads: int | None = None, device: str = "auto"
) -> OnnxDetector:
    """Load a file written by :func:`chromabox.detect.weights.convert.export_detector`.

    ``content`` contains the bytes of the file; None reads the file. ``threads`` and ``device`` are passed to
    :func:`chromabox.runtime.session.open_session`.

    Raise UsageError if the file does not exist, and ChromaboxError if it was not exported by Chromabox or is damaged.
    """
    content = read_onnx_file(path) if content is None else content
    session = open_session(path, content, [INPUT_NAME], OUTPUT_NAMES, threads=threads, device=device)
    metadata = read_session_metadata(session, path)
    try:
        if metadata.get("format") != EXPORT_FORMAT:
            raise ValueError(f"the format is {metadata.get('format')!r}, not {EXPORT_FORMAT!r}")
        classes, size = tuple(parse_json(metadata["classes"])), int(metadata["size"])
        checkpoint = parse_json(metadata["detector"])
        variant, category_ids = variant_from_json(checkpoint["kind"]), read_category_ids(checkpoint, len(classes))
        side, num_scores = session.get_inputs()[0].shape[-1], session.get_outputs()[1].shape[-1]
        if side != size or not 1 <= size <= MAX_SIZE:
            raise ValueError(f"the size of the input is {side}, not {size}")
        if not all(isinstance(name, str) for name in classes):
            raise ValueError("the class names are not text")
        if num_scores != len(classes):
            raise ValueError(f"the number of scores per box is {num_scores}, not {len(classes)}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        problem = f"not a detector exported by Chromabox ({one_line(error)})"
        raise ChromaboxError(f"{path}: {problem}; export the detector with chromabox export") from error
    return OnnxDetector(session, path, classes, size, variant, category_ids)


def read_category_ids(metadata: Mapping[str, Any], num_classes: int) -> tuple[int, ...]:
    """Return the COCO category ids of the classes in the metadata of a checkpoint, or () if there are none.

    Raise ValueError unless they are different integers, one for each class.
    """
    ids = metadata.get("category_ids", [])
    if not isinstance(ids, list) or not all(type(number) is int for number in ids):
        raise ValueError("category_ids is not a list of integers")
    if ids and not len(ids) == len(set(ids)) == num_classes:
        raise ValueError(f"category_ids contains {len(set(ids))} different ids; expected {num_classes}")
    return tuple(ids)


def resolve_weights(weights: str | Path) -> Path:
    """Return the path of weights that are given as a name, a file, or a run folder (its ``best.safetensors``).

    Named weights are in the cache folder and may not have been downloaded yet. Raise UsageError if any other file does
    not exist.
    """
    path = Path(weights)
    if str(weights) in PRETRAINED and not path.exists():
        return cache_folder() / f"{weights}.safetensors"
    if path.is_dir():
        path = path / "best.safetensors"
    if not path.is_file():
        check_not_url(path)
        expected = f"expected a file or the name of pretrained weights: {', '.join(PRETRAINED)}"
        raise UsageError(f"{path}: weights do not exist; {expected}")
    return path
