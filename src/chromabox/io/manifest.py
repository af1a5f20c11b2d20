"""Manifest of an output folder, which allows a command to skip finished images.

The manifest has one line of JSON per finished image: the path of the written file in the folder (``target``), the
SHA-256 of the source file (``source``) and of the written file (``written``), a digest of the settings that determine
the result (``settings``), metadata of the image (``facts``), and the files written together with it (``beside``). A
later line replaces an earlier line with the same target. Invalid lines are skipped. If a crash truncates the last line,
only one image is processed again.

Before a new file is written, a line with only ``target`` is appended. The command may therefore replace a file that it
wrote before a crash, but not a file that the manifest does not name.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chromabox.errors import ChromaboxError
from chromabox.io.atomic import parse_json

#: Name of the manifest in the output folder.
MANIFEST_NAME = ".chromabox.jsonl"


class Manifest:
    """Manifest of an output folder for one set of settings. Several threads can use it at the same time.

    Args:
        path: path of the manifest, which is created when the first image is added.
        settings: JSON values that determine the result, such as the hash of the model, the palette and the options.

    Raise ChromaboxError if the manifest cannot be read or written, and TypeError for settings that are not JSON values.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._settings_digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self._lock = threading.Lock()
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise ChromaboxError(
                f"{path}: cannot read the manifest ({error.strerror}); delete the file to process all images again"
            ) from error
        self._ends_mid_line = not content.endswith(b"\n") and content != b""
        self._entries: dict[str, dict[str, Any]] = {}
        self._names: set[str] = set()
        for line in content.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = parse_json(line)
                if isinstance(entry["target"], str):
                    self._names.add(entry["target"])
                self._names |= {name for name in entry.get("beside", ()) if isinstance(name, str)}
                strings = (entry[name] for name in ("target", "source", "settings", "written"))
                if all(isinstance(string, str) for string in strings) and isinstance(entry["facts"], dict):
                    self._entries[entry["target"]] = entry

    def files(self) -> set[Path]:
        """Return the absolute paths of all files that the manifest names."""
        return {Path(os.path.abspath(self._path.parent / name)) for name in self._names}

    def lookup(self, target: Path, source_digest: str, beside: Sequence[Path] = ()) -> dict[str, Any] | None:
        """Return the metadata of the target if it was written from this source with these settings and is unchanged.

        The files ``beside`` must exist and must have been written together with the target. Otherwise, return None.
        """
        entry = self._entries.get(self._relative(target))
        if entry is None or (entry["source"], entry["settings"]) != (source_digest, self._settings_digest):
            return None
        if not all(path.is_file() and self._relative(path) in entry.get("beside", ()) for path in beside):
            return None
        with contextlib.suppress(OSError):  # A file that is missing or unreadable must be written again.
            if sha256_file(target) == entry["written"]:
                return dict(entry["facts"])
        return None

    def claim(self, path: Path) -> None:
        """Name a file that will be written, unless it is named already."""
        if self._relative(path) not in self._names:
            self._append(path, dict)

    def add(self, target: Path, source_digest: str, metadata: Mapping[str, Any], beside: Sequence[Path] = ()) -> None:
        """Append the entry of a target that has just been written, together with the files ``beside``."""

        def describe() -> dict[str, Any]:
            entry = {"source": source_digest, "settings": self._settings_digest, "written": sha256_file(target)}
            names = {"beside": [self._relative(path) for path in beside]} if beside else {}
            return {**entry, "facts": dict(metadata), **names}

        self._append(target, describe)

    def _append(self, target: Path, describe: Callable[[], dict[str, Any]]) -> None:
        try:
            name = self._relative(target)
            line = json.dumps({"target": name, **describe()}) + "\n"
            with self._lock:
                self._names.add(name)
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab", buffering=0) as file:
                    file.write(b"\n" * self._ends_mid_line + line.encode())
                self._ends_mid_line = False
        except OSError as error:
            raise ChromaboxError(
                f"{self._path}: cannot record {target} ({error.strerror}); check the free disk space"
            ) from error

    def _relative(self, path: Path) -> str:
        """Return a path relative to the manifest. This path remains valid if the folder is moved."""
        try:
            return Path(os.path.relpath(path, self._path.parent)).as_posix()
        except ValueError:  # On Windows, the path is on another drive.
            return path.absolute().as_posix()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits. Raise OSError if the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
