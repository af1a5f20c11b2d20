"""Open detectors for inference. Weights that have not been exported are exported to the cache folder on first use."""

from pathlib import Path

from chromabox.detect.weights.onnx_model import (
    EXPORT_FORMAT,
    OnnxDetector,
    check_size_value,
    load_onnx_detector,
    read_onnx_file,
    resolve_weights,
)
from chromabox.errors import missing_package
from chromabox.io.fetch import cache_folder
from chromabox.io.manifest import sha256_file
from chromabox.runtime.session import load_unless_damaged


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
    check_size_value(size)
    path = Path(weights)
    content = b""
    if (path / "best.onnx").is_file():
        detector = load_onnx_detector(path / "best.onnx", threads=threads, device=device)
        if size in (None, detector.size):
            return detector
    elif path.suffix.lower() == ".onnx":
        content = read_onnx_file(path)
    if EXPORT_FORMAT.encode() in content:
        detector = load_onnx_detector(path, content=content, threads=threads, device=device)
        if size is not None:
            detector.check_size(size)
        return detector
    # The weights are in another format, or in an ONNX file of another program.
    source = resolve_weights(weights)
    if source.is_file() and (target := _cached_path(source, size)).is_file():
        cached = load_unless_damaged(load_onnx_detector, target, threads=threads, device=device)
        if cached is not None:
            return cached
    try:
        from chromabox.detect.weights.convert import export_detector
        from chromabox.detect.weights.load import load_detector
        from chromabox.engine.export import one_thread
    except ImportError as error:
        raise missing_package(f"{weights}: loading a model that is not an exported .onnx file", error) from error
    with one_thread():
        exported = load_detector(weights)  # This also downloads missing pretrained weights.
        target = _cached_path(source, size)
        export_detector(exported, target, size=size)
    return load_onnx_detector(target, threads=threads, device=device)


def _cached_path(source: Path, size: int | None) -> Path:
    """Return the path of the exported weights in the cache folder. Its name contains a hash of each source file."""
    # The architecture and class names of Darknet weights are in separate files.
    files = (source, source.with_suffix(".cfg"), source.with_suffix(".names"))
    digests = [sha256_file(path)[:16] for path in files if path.is_file()]
    return cache_folder() / "onnx" / f"{source.stem}-{'-'.join(digests)}-{size or 'default'}.onnx"
