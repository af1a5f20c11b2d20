"""Opening models for inference; checkpoints are exported to ONNX on first use.

The file exported from a run folder is its ``best.onnx``; those of other checkpoints are in the cache folder.
"""

from importlib import resources
from pathlib import Path

from chromabox.colour.weights.onnx_model import DEFAULT_MODEL, ColourModel, load_onnx_model, resolve_checkpoint
from chromabox.errors import missing_package
from chromabox.io.fetch import cache_folder
from chromabox.io.manifest import sha256_file


def open_model(path: Path | None = None, *, threads: int | None = None, device: str = "auto") -> ColourModel:
    """Return a colourisation model for inference.

    Args:
        path: an exported ONNX file, or a run folder with ``best.onnx``; if PyTorch is installed, also a run folder
            without it, or a checkpoint, which is exported first. None opens the bundled model.
        threads, device: see :func:`chromabox.runtime.session.open_session`.

    Raise UsageError if the path does not exist, a run folder has no checkpoint, or PyTorch is required but not
    installed. Raise ChromaboxError if the file is corrupt or is not a colourisation model.
    """
    with resources.as_file(resources.files("chromabox.assets") / DEFAULT_MODEL) as bundled:
        return load_onnx_model(bundled if path is None else resolve_onnx_model(path), threads=threads, device=device)


def resolve_onnx_model(path: Path) -> Path:
    """Return the exported file of a model, as in :func:`open_model`; export a checkpoint that has none."""
    checkpoint = resolve_checkpoint(path)
    if checkpoint.suffix.lower() == ".onnx":
        return checkpoint
    if path.is_dir():
        exported = checkpoint.with_suffix(".onnx")
        is_current = exported.is_file() and exported.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns
    else:
        exported = _cached_path(checkpoint)
        is_current = exported.is_file()  # Its name contains the digest of the checkpoint.
    if is_current:
        return exported
    try:
        from chromabox.colour.weights.checkpoint import load_model
        from chromabox.colour.weights.export import export_onnx
    except ImportError as error:
        raise missing_package(f"{path}: a checkpoint that is not an exported .onnx file", error) from error
    export_onnx(load_model(checkpoint), exported)
    return exported


def _cached_path(checkpoint: Path) -> Path:
    return cache_folder() / "onnx" / f"{checkpoint.stem}-{sha256_file(checkpoint)[:16]}.onnx"
