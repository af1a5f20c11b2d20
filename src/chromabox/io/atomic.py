"""Atomic file writes: write to a temporary file in the same folder, then rename."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block succeeds and is removed when it fails.

    The temporary file is hidden and in the same folder, because a rename is atomic only within a file system. It has
    the same suffix, because some libraries infer the format from it. Until the rename, an existing file at `path` is
    unchanged; a symbolic link is replaced, not followed. The folder must exist. OSErrors are passed on to the caller.
    """
    temp_path = path.with_name(f".{path.stem[:50]}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temp_path
        os.replace(temp_path, path)
    finally:
        temp_path.unlink(missing_ok=True)
