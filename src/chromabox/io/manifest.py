"""What a folder of coloured pictures remembers, so that the same command goes on where it was stopped.

A line of JSON for every finished picture: its place (``target``), the SHA-256 of the source's content (``source``) and
of what was written (``written``), a digest of everything that decides the colours (``settings``), and ``facts`` about
the picture. A later line about the same place replaces an earlier one. Lines that are no such line are passed over:
the last one may be torn by a crash, and the worst that a lost line does is that one picture is coloured again.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from chromabox.errors import ChromaboxError

#: The record's name in the output folder.
MANIFEST_NAME = ".chromabox.jsonl"


class _Entry(NamedTuple):
    source: str
    settings: str
    written: str
    facts: dict[str, Any]


class Manifest:
    """The record of one output folder and one set of settings; several threads may ask and add.

    Args:
        path: of the record; it need not exist, and is made with the first picture that is added.
        settings: JSON values that decide how a picture comes out (the net's hash, palette, options).

    Raises ChromaboxError for a record that cannot be read or written, TypeError for settings that are not JSON.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._settings_digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self._lock = threading.Lock()
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise ChromaboxError(
                f"{path}: the record cannot be read ({error.strerror}); remove it to start anew"
            ) from error
        self._ends_mid_line = not content.endswith(b"\n") and content != b""
        self._entries = dict(_parse_entries(content))

    def lookup(self, target: Path, source_digest: str) -> dict[str, Any] | None:
        """The facts noted for a target that is still whole and of that source and these settings; else None."""
        entry = self._entries.get(self._relative_target(target))
        if entry is None or (entry.source, entry.settings) != (source_digest, self._settings_digest):
            return None
        try:
            return entry.facts if sha256_file(target) == entry.written else None
        except OSError:
            return None  # Removed, or not to be read: it has to be written anew.

    def add(self, target: Path, source_digest: str, metadata: Mapping[str, Any]) -> None:
        """Note a target that was just written, in one whole line."""
        try:
            entry = _Entry(source_digest, self._settings_digest, sha256_file(target), dict(metadata))
            line = json.dumps({"target": self._relative_target(target), **entry._asdict()}) + "\n"
            with self._lock:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab", buffering=0) as file:
                    file.write(b"\n" * self._ends_mid_line + line.encode())
                self._ends_mid_line = False
        except OSError as error:
            raise ChromaboxError(
                f"{self._path}: {target} cannot be noted ({error.strerror}); make room there"
            ) from error

    def _relative_target(self, target: Path) -> str:
        """The target seen from the record, so that the folder may be moved as a whole."""
        return Path(os.path.relpath(target, self._path.parent)).as_posix()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse_entries(content: bytes) -> Iterator[tuple[str, _Entry]]:
    """Targets and what is noted of them."""
    for line in content.splitlines():
        try:
            value = json.loads(line)
            entry = _Entry(*(value[name] for name in _Entry._fields))
            if all(isinstance(part, str) for part in (value["target"], *entry[:3])) and isinstance(entry.facts, dict):
                yield value["target"], entry
        except (ValueError, KeyError, TypeError):
            continue
