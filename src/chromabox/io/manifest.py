"""Manifest of an output folder, which allows a command to skip finished images.

The manifest has one line of JSON per finished image: its path in the folder (``target``), the SHA-256 of the source
file (``source``) and of the written file (``written``), a digest of the settings that determine the result
(``settings``), and metadata of the image (``facts``). A later line replaces an earlier one with the same target.
Invalid lines are skipped: a crash can truncate the last line, in which case only one image is processed again.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from chromabox.errors import ChromaboxError

#: Name of the manifest in the output folder.
MANIFEST_NAME = ".chromabox.jsonl"


class _Entry(NamedTuple):
    source: str
    settings: str
    written: str
    facts: dict[str, Any]


class Manifest:
    """The manifest of one output folder and one set of settings. It is safe to use from several threads.

    Args:
        path: path of the manifest, which is created when the first image is added.
        settings: JSON values that determine the result (the model's hash, palette, options).

    Raise ChromaboxError if the manifest cannot be read or written, and TypeError for settings that JSON cannot
    represent.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._settings_digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self._lock = threading.Lock()
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise ChromaboxError(
                f"{path}: cannot read the manifest ({error.strerror}); delete it to process all images again"
            ) from error
        self._ends_mid_line = not content.endswith(b"\n") and content != b""
        self._entries: dict[str, _Entry] = {}
        for line in content.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                value = json.loads(line)
                entry = _Entry(*(value[name] for name in _Entry._fields))
                strings = (value["target"], entry.source, entry.settings, entry.written)
                if all(isinstance(string, str) for string in strings) and isinstance(entry.facts, dict):
                    self._entries[value["target"]] = entry

    def lookup(self, target: Path, source_digest: str) -> dict[str, Any] | None:
        """Return the metadata of an unchanged target with this source and these settings; None otherwise."""
        entry = self._entries.get(self._relative_target(target))
        if entry is None or (entry.source, entry.settings) != (source_digest, self._settings_digest):
            return None
        try:
            return entry.facts if sha256_file(target) == entry.written else None
        except OSError:
            return None  # The file is missing or unreadable and must be written again.

    def add(self, target: Path, source_digest: str, metadata: Mapping[str, Any]) -> None:
        """Append one line for a target that has just been written."""
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
                f"{self._path}: cannot record {target} ({error.strerror}); check the free disk space"
            ) from error

    def _relative_target(self, target: Path) -> str:
        """Return the path of the target relative to the manifest, to allow moving the whole folder."""
        return Path(os.path.relpath(target, self._path.parent)).as_posix()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits. Raise OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
