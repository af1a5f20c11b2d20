"""Opening of detectors for inference. Other weight formats are exported to ONNX in the cache folder on first use."""

from pathlib import Path

from chromabox.detect.weights.onnx_model import (
    EXPORT_FORMAT,
    OnnxDetector,
    load_onnx_detector,
    read_onnx_file,
    resolve_weights,
)
from chromabox.errors import missing_package
from chromabox.io.fetch import cache_folder
from chromabox.io.manifest import sha256_file


def open_detector(
    weights: str | Path, *, size: int | None = None, threads: int | None = None, device: str = "auto"
) -> OnnxDetector:
    """Return a detector for inference.

    Args:
        weights: an exported .onnx file or a run folder with ``best.onnx``, which can be opened without PyTorch; or a
            name or file accepted by :func:`chromabox.detect.weights.load.load_detector`, which is exported to the cache
            folder on first use.
        size: side length of the square input in pixels; None for the default of the weights.
        threads, device: see :func:`chromabox.runtime.session.open_session`.

    Raise UsageError if the weights do not exist, if the size is not supported, or if PyTorch is required but not
    installed. Raise ChromaboxError if a file is damaged.
    """
    path = Path(weights)
    if path.is_dir() and size is None and (path / "best.onnx").is_file():
        path = path / "best.onnx"
    content = read_onnx_file(path) if path.suffix.lower() == ".onnx" else b""
    if EXPORT_FORMAT.encode() not in content:  # Other weights, or an ONNX file that another program exported.
        path = _export_to_cache(weights, size)
        content = read_onnx_file(path)
    detector = load_onnx_detector(path, content=content, threads=threads, device=device)
    if size is not None:
        detector.check_size(size)
    return detector


def _export_to_cache(weights: str | Path, size: int | None) -> Path:
    """Return the path of the exported weights in the cache folder. Export the weights if this file is missing."""
    source = resolve_weights(weights)
    if source.is_file() and (target := _cached_path(source, size)).is_file():
        return target
    try:
        from chromabox.detect.weights.convert import export_detector
        from chromabox.detect.weights.load import load_detector
    except ImportError as error:
        raise missing_package(f"{weights}: a model that is not an exported .onnx file", error) from error
    detector = load_detector(weights)
    target = _cached_path(source, size)
    export_detector(detector, target, size=size)
    return target


def _cached_path(source: Path, size: int | None) -> Path:
    """Return the path of the exported weights in the cache folder, which contains a hash of the source file."""
    architecture = source.with_suffix(".cfg")
    digests = [sha256_file(path)[:16] for path in (source, architecture) if path.is_file()]
    return cache_folder() / "onnx" / f"{source.stem}-{'-'.join(digests)}-{size or 'default'}.onnx"
