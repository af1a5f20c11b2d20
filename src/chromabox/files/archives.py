"""Members out of tarballs: only the wanted ones, only by base name, only as many bytes as are right."""

import gzip
import io
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from chromabox.files.download import Progress
from chromabox.files.pins import Pinned, Refused, fault, keep


@dataclass(frozen=True)
class Archive:
    """A .tar.gz that holds pinned files: its name, the most bytes it may have packed and unpacked, its SHA-256.

    Without a SHA-256 only the members are checked, which is enough: nothing else of it is kept.
    """

    name: str
    limit: int
    unpacked_limit: int
    sha256: str | None = None


def take_members(
    path: Path, archive: Archive, wanted: Sequence[Pinned], folder: Path, progress: Progress | None = None
) -> None:
    """Puts the wanted members of the .tar.gz at `path` into `folder`, chosen by base name, each verified.

    Folders in member names, links and devices are ignored, so nothing can land outside `folder`; a member is read
    only as far as its pinned size, the whole only as far as `archive.unpacked_limit`. Raises ChromaboxError.
    """
    if archive.sha256 is not None and (wrong := fault(path, Pinned(archive.name, archive.sha256, archive.limit))):
        raise Refused(f"{archive.name} is refused: {wrong}")
    missing = {pin.name: pin for pin in wanted}
    try:
        with (
            gzip.open(path) as unpacked,
            tarfile.open(fileobj=cast(IO[bytes], _Bounded(unpacked, archive.unpacked_limit)), mode="r|") as tar,
        ):
            for member in tar:
                pin = missing.get(PurePosixPath(member.name).name)
                stream = tar.extractfile(member) if pin is not None and member.isreg() else None
                if pin is None or stream is None:
                    continue
                keep(stream, pin, folder)
                del missing[pin.name]
                if progress is not None:
                    progress.note(f"verified {pin.name} from {archive.name}")
                if not missing:
                    return
    except (tarfile.TarError, EOFError, ValueError, gzip.BadGzipFile, zlib.error) as error:
        raise Refused(f"{archive.name} is not a whole .tar.gz archive ({error})") from error
    raise Refused(f"{archive.name} does not hold {', '.join(missing)} as a regular file")


class _Bounded:
    """A stream that refuses to give more than `limit` bytes, so that an archive bomb ends early."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self.stream, self.left = stream, limit

    def read(self, size: int = io.DEFAULT_BUFFER_SIZE) -> bytes:
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise Refused("it unpacks to far more bytes than the right archive does")
        return data
