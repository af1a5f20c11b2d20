"""Colourisation models as exported ONNX files, run by ONNX Runtime."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

import chromabox
from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.chroma.lab import rgb_to_lab
from chromabox.colour.palette.palette import Palette
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import parse_json, read_bytes
from chromabox.io.images import check_not_url
from chromabox.runtime.session import one_line, open_session, read_session_metadata

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ONNX_FORMAT = "chromabox-onnx-1"
ONNX_INPUT, ONNX_OUTPUT = "grey", "scores"
#: Photo model that is part of the package. ``chromabox colour`` uses it by default.
BUNDLED_MODEL = Path(chromabox.__file__).parent / "assets" / "photo.onnx"
#: Maximum file size in bytes, which is twelve times the size of the largest model.
MAX_MODEL_BYTES = 256 << 20
#: Maximum size divisor. The height and width of the input must be multiples of the size divisor.
MAX_SIZE_DIVISOR = 256
#: Maximum number of scales of test-time augmentation, and maximum short side of a scale in pixels.
MAX_SCALES, MAX_SCALE = 8, 4096


@dataclass(frozen=True, eq=False)
class ColourModel:
    """An exported colourisation model. Threads can share an instance."""

    session: "InferenceSession"
    path: Path
    output: Palette | ChromaBins
    """Classes of the model: the colours of a palette or, for photo models, chroma bins."""
    size_divisor: int
    """Number of which the height and width of the input must be multiples."""
    stride: int
    """Ratio of the height and width of the input to the height and width of the output."""
    scales: tuple[int, ...]
    """Short sides, in pixels, to which images are resized for test-time augmentation."""
    metadata: dict[str, Any]
    """Metadata of the checkpoint."""

    @property
    def is_photo(self) -> bool:
        """Whether the model was trained on photographs of any size, with L* as the input and chroma bins as classes."""
        return isinstance(self.output, ChromaBins)

    @cached_property
    def centres(self) -> Float32[np.ndarray, "classes 2"]:
        """a* and b* of the classes. The lightness of palette colours is not used."""
        if isinstance(self.output, ChromaBins):
            return self.output.centres
        return np.ascontiguousarray(rgb_to_lab(self.output.rgb)[:, 1:])

    def predict(
        self, grey: Float32[np.ndarray, "batch 1 height width"]
    ) -> Float32[np.ndarray, "batch classes small_height small_width"]:
        """Return the logits. Raise ChromaboxError if the model cannot be run or its output has the wrong shape."""
        batch, _, height, width = grey.shape
        try:
            (logits,) = self.session.run([ONNX_OUTPUT], {ONNX_INPUT: grey})
        except Exception as error:  # ONNX Runtime's exceptions have no other common base class.
            raise ChromaboxError(f"{self.path}: ONNX Runtime cannot run the model ({one_line(error)})") from error
        expected = (batch, len(self.centres), height // self.stride, width // self.stride)
        if logits.shape != expected:
            raise ChromaboxError(f"{self.path}: the output has shape {list(logits.shape)}; expected {list(expected)}")
        result: np.ndarray = logits
        return result


def resolve_checkpoint(path: Path) -> Path:
    """Return the checkpoint of a run folder: ``best.safetensors`` or, if there is none, ``best.onnx``.

    The path of a file is returned unchanged. Raise UsageError if the path or the checkpoint does not exist.
    """
    if not path.exists():
        check_not_url(path)
        raise UsageError(f"{path}: no such run folder or checkpoint; expected one written by chromabox train")
    if not path.is_dir():
        return path
    for name in ("best.safetensors", "best.onnx"):
        if (path / name).is_file():
            return path / name
    raise UsageError(
        f"{path}: contains no best.safetensors or best.onnx; expected a run with at least one finished epoch"
    )


def read_classes(metadata: dict[str, Any]) -> Palette | ChromaBins:
    """Return the classes in the metadata of a model.

    Raise KeyError, TypeError, ValueError or ChromaboxError if the metadata is invalid.
    """
    if "bins" in metadata:
        return ChromaBins.from_json(metadata["bins"])
    stored = metadata["palette"]
    return Palette(np.asarray(stored["colours"], np.float32), stored["name"])


def load_onnx_model(path: Path, *, threads: int | None = None, device: str = "auto") -> ColourModel:
    """Load a file written by :func:`~chromabox.colour.weights.export.export_onnx`.

    The metadata of the model has the same keys as the metadata of a checkpoint. Raise ChromaboxError for any other
    file.
    """
    data = read_bytes(path, "an ONNX file", MAX_MODEL_BYTES)
    session = open_session(path, data, [ONNX_INPUT], [ONNX_OUTPUT], threads=threads, device=device)
    properties = read_session_metadata(session, path)
    if properties.get("format") != ONNX_FORMAT:
        raise ChromaboxError(f"{path}: not a Chromabox ONNX file; expected the format {ONNX_FORMAT!r} in its metadata")
    try:
        metadata = {**parse_json(properties["history"]), "net": properties["net"]}
        metadata |= {key: parse_json(properties[key]) for key in ("bins", "palette") if key in properties}
        output = read_classes(metadata)
        size_divisor, stride = (int(properties[name]) for name in ("multiple", "stride"))
        if not (1 <= stride <= size_divisor <= MAX_SIZE_DIVISOR and size_divisor % stride == 0):
            raise ValueError(f"multiple {size_divisor} or stride {stride} is invalid")
        scales = tuple(int(scale) for scale in parse_json(properties["looks"]))
        if not (1 <= len(scales) <= MAX_SCALES and all(1 <= scale <= MAX_SCALE for scale in scales)):
            raise ValueError(f"invalid test-time augmentation scales {list(scales)} in the field 'looks'")
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, ChromaboxError) as error:
        raise ChromaboxError(f"{path}: the metadata is damaged ({one_line(error)}); export the model again") from error
    return ColourModel(session, path, output, size_divisor, stride, scales, metadata)
