"""Named, hash-pinned files: several sources for the same bytes, tried in order.

* A file is known by its name, SHA-256 and size (`Pinned`). Nothing else ever reaches its place in the cache.
* `fetch` keeps what is right without a word, reports and removes what is damaged, and asks each source for what is
  missing.
* `$CHROMABOX_CACHE` moves the cache. `$CHROMABOX_MIRROR`, a folder or a file:// or http(s):// URL that holds the
  files (or the archive they come in) by name, is asked before any listed source: for closed networks. A mirror that
  is a folder may keep them one folder deeper, as `MIRROR/*/name`.
* A new kind of source is one frozen dataclass with the three members of `Source`.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable
from urllib.parse import quote, urlsplit

import platformdirs

from chromabox.errors import ChromaboxError
from chromabox.files.archives import Archive, take_members
from chromabox.files.download import Progress, QuietProgress, StderrProgress, download, public_address
from chromabox.files.pins import Absent, Pinned, Refused, accept, fault, keep

__all__ = [
    "Archive",
    "Mirror",
    "NpmPackage",
    "Pinned",
    "Progress",
    "QuietProgress",
    "Source",
    "StderrProgress",
    "TarUrl",
    "Url",
    "cache_folder",
    "fetch",
]

NPM_TIMEOUT_SECONDS = 3600.0


def cache_folder() -> Path:
    """The folder of everything fetched: `$CHROMABOX_CACHE` if set and not empty, else the platform's own."""
    chosen = os.environ.get("CHROMABOX_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("chromabox")


@runtime_checkable
class Source(Protocol):
    """A place that holds some or all of the pinned files."""

    @property
    def label(self) -> str:
        """How messages name the source."""

    @property
    def archive(self) -> Archive | None:
        """The archive in which the source keeps the files; a mirror may hold it by its name."""

    def deliver(self, wanted: Sequence[Pinned], folder: Path, progress: Progress) -> None:
        """Puts into `folder` what it holds of `wanted`, each verified before it takes its name, or raises."""


@dataclass(frozen=True)
class Url:
    """One file at one http(s) address; it serves the pinned file called like the address's last part."""

    address: str
    archive: Archive | None = None

    @property
    def label(self) -> str:
        return public_address(self.address)

    def deliver(self, wanted: Sequence[Pinned], folder: Path, progress: Progress) -> None:
        for pin in wanted:
            if pin.name == PurePosixPath(urlsplit(self.address).path).name:
                _download_file(self.address, pin, folder, progress)


@dataclass(frozen=True)
class TarUrl:
    """A .tar.gz at an http(s) address, of which only the wanted members are kept."""

    address: str
    archive: Archive

    @property
    def label(self) -> str:
        return public_address(self.address)

    def deliver(self, wanted: Sequence[Pinned], folder: Path, progress: Progress) -> None:
        _download_archive(self.address, self.archive, wanted, folder, progress)


@dataclass(frozen=True)
class NpmPackage:
    """An npm package, fetched by the npm client (with its own registry settings); its tarball is pinned."""

    package: str
    version: str
    sha256: str
    size: int
    unpacked_limit: int

    @property
    def label(self) -> str:
        return f"npm package {self.package}@{self.version}"

    @property
    def archive(self) -> Archive:
        stem = self.package.removeprefix("@").replace("/", "-")
        return Archive(f"{stem}-{self.version}.tgz", self.size, self.unpacked_limit, self.sha256)

    def deliver(self, wanted: Sequence[Pinned], folder: Path, progress: Progress) -> None:
        npm = shutil.which("npm")
        if npm is None:
            raise Absent("the npm program is not installed")
        progress.note(f"fetching {self.archive.name} ({self.size / 1e6:.0f} MB) through npm pack …")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".npm-") as aside:
            # Scripts of the package are never run: only its tarball is wanted.
            command = [npm, "pack", f"{self.package}@{self.version}", "--ignore-scripts", "--pack-destination", aside]
            try:
                done = subprocess.run(command, cwd=aside, capture_output=True, text=True, timeout=NPM_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                raise ChromaboxError(f"npm pack took more than {NPM_TIMEOUT_SECONDS:.0f} s") from None
            tarballs = sorted(Path(aside).glob("*.tgz"))
            if done.returncode != 0 or not tarballs:
                complaints = [line for line in done.stderr.splitlines() if line.startswith(("npm error", "npm ERR"))]
                raise ChromaboxError(f"npm pack failed: {' '.join(complaints[:3]) or 'it left no tarball'}")
            take_members(tarballs[0], self.archive, wanted, folder, progress)


@dataclass(frozen=True)
class Mirror:
    """`$CHROMABOX_MIRROR`: a folder, file:// or http(s):// URL that holds the files, or their archives, by name.

    What a folder does not hold directly is taken from its immediate subfolders, in the order of their names: the first
    file of that name that can be read.
    """

    location: str
    archives: tuple[Archive, ...] = ()
    archive: Archive | None = None

    @property
    def label(self) -> str:
        return f"CHROMABOX_MIRROR {public_address(self.location)}"

    def deliver(self, wanted: Sequence[Pinned], folder: Path, progress: Progress) -> None:
        failures: dict[str, list[str]] = {}
        for pin in wanted:
            try:
                self._file(pin, folder, progress)
            except (Absent, Refused) as error:
                failures.setdefault(str(error), []).append(pin.name)
        for archive in self.archives:
            missing = [pin for pin in wanted if not (folder / pin.name).is_file()]
            if not missing:
                return
            try:
                self._archive(archive, missing, folder, progress)
            except (Absent, Refused) as error:
                failures.setdefault(str(error), []).append(archive.name)
        if any(not (folder / pin.name).is_file() for pin in wanted):
            raise ChromaboxError("; ".join(f"{', '.join(names)}: {why}" for why, names in failures.items()))

    def _file(self, pin: Pinned, folder: Path, progress: Progress) -> None:
        place = self._place(pin.name)
        if isinstance(place, str):
            _download_file(place, pin, folder, progress)
        else:
            with place.open("rb") as stream:
                keep(stream, pin, folder)
            progress.note(f"copied and verified {pin.name} from {place.parent}")

    def _archive(self, archive: Archive, wanted: Sequence[Pinned], folder: Path, progress: Progress) -> None:
        place = self._place(archive.name)
        if isinstance(place, str):
            _download_archive(place, archive, wanted, folder, progress)
        else:
            take_members(place, archive, wanted, folder, progress)

    def _place(self, name: str) -> str | Path:
        """The address (http) or existing path (folder) of the thing called `name`."""
        if self.location.startswith(("http://", "https://")):
            return f"{self.location.rstrip('/')}/{quote(name)}"
        if "://" in self.location and not self.location.startswith("file://"):
            raise ChromaboxError("only a folder, a file:// URL or an http(s):// URL can be a mirror")
        is_url = self.location.startswith("file://")
        plain = urllib.request.url2pathname(urlsplit(self.location).path) if is_url else self.location
        folder = Path(plain).expanduser()
        if not folder.is_dir():
            raise ChromaboxError("there is no such folder")
        for path in (folder / name, *(below / name for below in _subfolders(folder))):
            if path.is_file() and os.access(path, os.R_OK):
                return path
        raise Absent("not there, or not to be read")


def _subfolders(folder: Path) -> list[Path]:
    """The immediate subfolders by name; none where the folder may be entered but not listed."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def fetch(
    files: Sequence[Pinned], sources: Sequence[Source], folder: Path, progress: Progress | None = None
) -> list[Path]:
    """The paths of `files` in `folder`, in order, every one of them with the pinned size and SHA-256.

    A file that is there and right is kept, and where all are, nothing is said; a damaged one is reported, removed and
    fetched anew. Sources are asked in order, the mirror first. Raises ChromaboxError if some file cannot be had from
    any of them.
    """
    progress = StderrProgress() if progress is None else progress
    try:
        # Asked without the lock first, so that a full cache may lie on a read-only disk.
        if all(fault(folder / pin.name, pin) is None for pin in files):
            return [folder / pin.name for pin in files]
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            _fetch_missing(files, sources, folder, progress)
    except OSError as error:
        remedy = "choose a folder that can be read and written, for instance through CHROMABOX_CACHE"
        raise ChromaboxError(f"cannot keep files in {folder}: {error.strerror or error}; {remedy}") from error
    return [folder / pin.name for pin in files]


def _fetch_missing(files: Sequence[Pinned], sources: Sequence[Source], folder: Path, progress: Progress) -> None:
    """Asks the sources in turn until every file is there; runs under the folder's lock."""
    missing = [pin for pin in files if not (folder / pin.name).exists() or _damaged(pin, folder, progress)]
    failures = []
    for source in _with_mirror(sources):
        if not missing:
            break
        try:
            source.deliver(missing, folder, progress)
            reason = "it does not hold the file"
        except ChromaboxError as error:
            reason = str(error)
        # What lies under its own name was verified before it got there.
        missing = [pin for pin in missing if not (folder / pin.name).is_file()]
        if missing:
            failures.append(f"{source.label} ({reason})")
            progress.warn(f"{source.label} failed: {reason}")
    if missing:
        names = ", ".join(pin.name for pin in missing)
        tried = "; ".join(failures) or "no source"
        raise ChromaboxError(
            f"cannot fetch {names}: tried {tried}; set CHROMABOX_MIRROR to a folder or URL that holds "
            f"{'it' if len(missing) == 1 else 'them'}, or put the right file{'s' * (len(missing) != 1)} into {folder}"
        )


def _damaged(pin: Pinned, folder: Path, progress: Progress) -> bool:
    """Whether the file that is there is wrong; a wrong one is reported and removed."""
    wrong = fault(folder / pin.name, pin)
    if wrong is None:
        return False
    progress.warn(f"{folder / pin.name} is damaged: {wrong}; it is removed and fetched anew")
    (folder / pin.name).unlink()
    return True


def _with_mirror(sources: Sequence[Source]) -> list[Source]:
    location = os.environ.get("CHROMABOX_MIRROR")
    if not location:
        return list(sources)
    return [Mirror(location, tuple(source.archive for source in sources if source.archive)), *sources]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time fetch into `folder`: the others wait, and then find the files there."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with (folder / ".lock").open("w") as lock:
        # Some network disks know no locks; there two fetches at once may cost time, never a wrong file.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download_file(address: str, pin: Pinned, folder: Path, progress: Progress) -> None:
    part = folder / f"{pin.name}.part"
    download(address, part, lambda: accept(part, pin, folder), exact=pin.size, limit=pin.size, progress=progress)
    progress.note(f"verified {pin.name}")


def _download_archive(
    address: str, archive: Archive, wanted: Sequence[Pinned], folder: Path, progress: Progress
) -> None:
    part = folder / f"{archive.name}.part"
    exact = archive.limit if archive.sha256 else None

    def unpack() -> None:
        take_members(part, archive, wanted, folder, progress)
        part.unlink()

    download(address, part, unpack, exact=exact, limit=archive.limit, progress=progress)
