"""Which pictures lie where, and of which split their folders speak."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from chromabox.detect.labelled import Fault
from chromabox.errors import ChromaboxError
from chromabox.io.images import SUFFIXES, upright_size

#: A folder's or list's name that is a split's: train, val2017, test-dev, valid.
_SPLIT = re.compile(r"(train|val|valid|validation|test)([\d_-].*)?", re.IGNORECASE)


def files_below(folder: Path, suffixes: frozenset[str] | set[str]) -> Iterator[Path]:
    """The files of these suffixes (in lower case) in a folder and its sub-folders, in the order of their paths.

    Hidden files and folders are passed over, links to folders not followed.
    """
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(top) / name


def pictures_below(folder: Path) -> list[Path]:
    """All pictures in a folder and its sub-folders."""
    return list(files_below(folder, SUFFIXES))


def is_split(name: str) -> bool:
    """Whether a folder or list of that name speaks of a split."""
    return _SPLIT.fullmatch(name) is not None


def split_of(path: Path, root: Path) -> str:
    """The name of the folder between `root` and `path` that is a split's, the outermost; "" if there is none."""
    return next((part for part in path.relative_to(root).parts[:-1] if is_split(part)), "")


def measured(path: Path) -> tuple[tuple[int, int] | None, list[Fault]]:
    """Height and width of a picture, or None and the fault that tells why there is no such picture."""
    try:
        return upright_size(path), []
    except ChromaboxError as error:
        kind = "damaged picture" if path.is_file() else "missing picture"
        return None, [Fault(kind, path, None, f"{error}; left out", True)]  # type: ignore[arg-type]
