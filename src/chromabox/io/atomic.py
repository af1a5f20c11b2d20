"""Files that are whole or not there: written aside in the same folder, then given their name in one step."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path aside to write to, which takes the place of `path` when the block ends well, else is removed.

    It lies in the same folder (a rename is one step only within a file system), is hidden, and ends in the same
    suffix, by which some libraries choose the format. What stood at `path` stays until then; a link there is replaced,
    never followed. The folder must exist. OSErrors are left to the caller, who knows what the file is.
    """
    aside = path.with_name(f".{path.stem[:50]}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
