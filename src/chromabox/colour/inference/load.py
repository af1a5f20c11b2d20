"""Opening models for inference. Checkpoints are exported to ONNX on first use.

The model exported from a run folder is saved there as ``best.onnx``. Other exported models are saved in the cache
folder.
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
        path: an exported ONNX file, or a run folder with ``best.onnx``. If PyTorch is installed, a checkpoint or a
            run folder without ``best.onnx`` is also accepted and is exported first. None opens the bundled model.
        threads, device: see :func:`chromabox.runtime.session.open_session`.

    Raise UsageError if the path does not exist, a run folder has no checkpoint, or PyTorch is required but not
    installed. Raise ChromaboxError if the file is corrupt or is not a colourisation model.
    """
    with resources.as_file(resources.files("chromabox.assets") / DEFAULT_MODEL) as bundled:
        return load_onnx_model(bundled if path is None else resolve_onnx_model(path), threads=threads, device=device)


def resolve_onnx_model(path: Path) -> Path:
    """Return the exported ONNX file of a model; export the checkpoint first if necessary. See :func:`open_model`."""
    checkpoint = resolve_checkpoint(path)
    if checkpoint.suffix.lower() == ".onnx":
        return checkpoint
    if path.is_dir():
        exported = checkpoint.with_suffix(".onnx")
        is_current = exported.is_file() and exported.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns
    else:
        exported = _cached_path(checkpoint)
        is_current = exported.is_file()  # The file name contains the digest of the checkpoint.
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
