"""Manifest of an output folder, which allows a command to skip finished images.

The manifest has one line of JSON per finished image: the path of the written file in the folder (``target``), the
SHA-256 of the source file (``source``) and of the written file (``written``), a digest of the settings that determine
the result (``settings``), and metadata of the image (``facts``). A later line replaces an earlier line with the same
target. Invalid lines are skipped. If a crash truncates the last line, only one image is processed again.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Mapping
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
        for line in content.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = parse_json(line)
                strings = (entry[name] for name in ("target", "source", "settings", "written"))
                if all(isinstance(string, str) for string in strings) and isinstance(entry["facts"], dict):
                    self._entries[entry["target"]] = entry

    def lookup(self, target: Path, source_digest: str) -> dict[str, Any] | None:
        """Return the metadata of the target if it was written from this source with these settings and is unchanged.

        Otherwise, return None.
        """
        entry = self._entries.get(self._relative_target(target))
        if entry is None or (entry["source"], entry["settings"]) != (source_digest, self._settings_digest):
            return None
        with contextlib.suppress(OSError):  # A file that is missing or unreadable must be written again.
            if sha256_file(target) == entry["written"]:
                return dict(entry["facts"])
        return None

    def add(self, target: Path, source_digest: str, metadata: Mapping[str, Any]) -> None:
        """Append the entry of a target that has just been written."""
        try:
            entry = {"target": self._relative_target(target), "source": source_digest}
            entry |= {"settings": self._settings_digest, "written": sha256_file(target)}
            line = json.dumps({**entry, "facts": dict(metadata)}) + "\n"
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
        """Return the path of the target relative to the manifest. This path remains valid if the folder is moved."""
        return Path(os.path.relpath(target, self._path.parent)).as_posix()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits. Raise OSError if the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
