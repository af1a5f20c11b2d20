"""Files that appear whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def put_in_place(path: Path) -> Iterator[Path]:
    """A hidden path in the same folder and with the same suffix, which becomes `path` if all went well.

    Whatever ends the work early, Ctrl-C too, removes what was written so far and leaves an older `path` as it was.
    """
    aside = path.with_name(f".{path.stem[:100]}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
