"""Loading of colourisation models for inference. Checkpoints are exported to ONNX on first use.

A model exported from a run folder is saved there as ``best.onnx``. Other exported models are saved in the cache folder.
"""

import logging
from pathlib import Path

from chromabox.colour.weights.onnx_model import BUNDLED_MODEL, ColourModel, load_onnx_model, resolve_checkpoint
from chromabox.errors import missing_package
from chromabox.io.fetch import cache_folder
from chromabox.io.manifest import sha256_file
from chromabox.runtime.session import load_unless_damaged

log = logging.getLogger(__name__)


def open_model(path: Path | None = None, *, threads: int | None = None, device: str = "auto") -> ColourModel:
    """Return a colourisation model for inference.

    Args:
        path: an exported ONNX file, or a run folder with ``best.onnx``. If PyTorch is installed, a checkpoint or a
            run folder without ``best.onnx`` is also accepted. The checkpoint is exported unless there is a current,
            intact exported file. None opens the bundled model.
        threads, device: see :func:`chromabox.runtime.session.open_session`.

    Raise UsageError if the path does not exist, a run folder has no checkpoint, or PyTorch is required but not
    installed. Raise ChromaboxError if the file is corrupt or is not a colourisation model.
    """
    checkpoint = BUNDLED_MODEL if path is None else resolve_checkpoint(path)
    if checkpoint.suffix.lower() == ".onnx":
        return load_onnx_model(checkpoint, threads=threads, device=device)
    if checkpoint != path:  # The path is a run folder.
        exported = checkpoint.with_suffix(".onnx")
        is_current = exported.is_file() and exported.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns
    else:
        exported = cache_folder() / "onnx" / f"{checkpoint.stem}-{sha256_file(checkpoint)[:16]}.onnx"
        is_current = exported.is_file()  # The file name contains the digest of the checkpoint.
    if is_current:
        model = load_unless_damaged(load_onnx_model, exported, threads=threads, device=device)
        if model is not None:
            return model
    try:
        from chromabox.colour.weights.checkpoint import load_model
        from chromabox.colour.weights.export import export_onnx
        from chromabox.engine.export import one_thread
    except ImportError as error:
        raise missing_package(f"{path}: loading a checkpoint that is not an exported .onnx file", error) from error
    colour_model = load_model(checkpoint)
    log.info(f"exporting {checkpoint} to {exported}")
    with one_thread():
        export_onnx(colour_model, exported)
    return load_onnx_model(exported, threads=threads, device=device)
