"""Reading of files of limited size, parsing of JSON, and atomic writing of files."""

import contextlib
import functools
import json
import os
import platform
import re
import tempfile
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chromabox.errors import ChromaboxError, UsageError

# Temporary files: .NAME.COMPUTER-PROCESS-RANDOM.SUFFIX. COMPUTER is a hash of the name of the computer.
_COMPUTER = f"{zlib.crc32(platform.node().encode()):08x}"
_TEMP_NAME = re.compile(rf"\..*\.{_COMPUTER}-(\d+)-[0-9a-f]{{12}}(\.[^.]*)?", re.DOTALL)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path. The file at this path replaces `path` if the block succeeds, and is deleted otherwise.

    The temporary file is hidden. It is in the same folder as `path`, because a rename is atomic only within a file
    system. It has the same suffix, from which some libraries infer the format. An existing file at `path` is unchanged
    until it is replaced. A symbolic link is replaced, not followed. The folder must exist. OSErrors are passed on to
    the caller, with `path` instead of the temporary path. Temporary files that processes of this computer left when
    they were killed are deleted.
    """
    _delete_abandoned_files(path.parent)
    temp_path = path.with_name(f".{path.stem[:50]}.{_COMPUTER}-{os.getpid()}-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temp_path
        os.replace(temp_path, path)
    except OSError as error:
        if error.filename == str(temp_path):
            error.filename = str(path)
        raise
    finally:
        temp_path.unlink(missing_ok=True)


@functools.cache  # once for each folder
def _delete_abandoned_files(folder: Path) -> None:
    """Delete the temporary files of processes that no longer exist."""
    if os.name == "nt":  # Here, os.kill stops the process instead of only looking for it.
        return
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            match = _TEMP_NAME.fullmatch(name)
            if match is None:
                continue
            try:
                os.kill(int(match[1]), 0)
            except ProcessLookupError:
                (folder / name).unlink(missing_ok=True)
            except (PermissionError, OverflowError):
                continue  # the process of another user


def check_writable_folder(folder: Path) -> None:
    """Raise ChromaboxError if files cannot be written to the folder, or if it does not exist and cannot be created.

    The error is a UsageError if the folder or a parent is a file. Nothing is changed.
    """
    try:
        existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
        if existing == folder and not existing.is_dir():
            raise UsageError(f"{folder} is a file; expected a folder")
        if not existing.is_dir():
            raise UsageError(f"{folder} cannot be created: {existing} is a file; use another output folder")
        # Permissions do not tell whether a special file system, such as /proc, accepts files. This one has no name.
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise ChromaboxError(
            f"{folder} cannot be created or written to ({error.strerror}); expected a writable output folder"
        ) from error


def read_bytes(path: Path, expected: str, max_bytes: int | None = None) -> bytes:
    """Return the content of a file. ``expected`` describes the expected file in error messages.

    Raise ChromaboxError if the file cannot be read or has more than ``max_bytes`` bytes.
    """
    try:
        if max_bytes is not None and (size := path.stat().st_size) > max_bytes:
            raise ChromaboxError(f"{path}: has {size:,} bytes; expected {expected} of at most {max_bytes:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be read ({error.strerror}); expected {expected}") from error


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raise ValueError for invalid JSON, including lists that are nested too deeply for the parser."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the values are nested too deeply") from None
