"""Kinds of files, recognised by their first bytes and not by their names.

The signatures are those of the format specifications. TGA has none and is recognised by its suffix. Camera raw files
have the signature of TIFF and are also recognised by their suffix, because the image that a TIFF reader finds in them
is only a preview.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

#: Pillow's names of the image formats that are read. Some other decoders of Pillow run external programs.
READ_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "AVIF", "JPEG2000", "TGA")
READABLE_IMAGES = "JPEG, PNG, TIFF, WebP, AVIF, JPEG 2000, BMP, GIF, TGA or PPM"
VIDEO = "video"
#: Suffixes of videos that can be written, in lower case.
WRITABLE_VIDEO_SUFFIXES: frozenset[str] = frozenset({".mp4", ".m4v", ".mov", ".mkv"})
#: Usual suffixes of videos that can be read, in lower case.
VIDEO_SUFFIXES: frozenset[str] = WRITABLE_VIDEO_SUFFIXES | {
    *(".3g2", ".3gp", ".asf", ".avi", ".dv", ".f4v", ".flv", ".ivf", ".m1v", ".m2ts", ".m2v", ".mpeg", ".mpg", ".mts"),
    *(".mxf", ".nut", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m"),
}


class Kind(NamedTuple):
    """Description of a kind of file, Pillow's name of its format (``VIDEO`` for videos, empty for other files) and the
    extra that installs the package to read it. An empty description means unknown.
    """

    description: str
    format: str = ""
    extra: str = ""

    @property
    def missing_extra(self) -> str:
        """Return the extra that is required to read the file and not installed, or an empty string."""
        package = {"heic": "pillow_heif", "video": "av"}.get(self.extra)
        return self.extra if package is not None and find_spec(package) is None else ""


_MP4 = Kind("MP4 or QuickTime video", VIDEO, "video")
# A pattern is matched at the start of the file. "." matches any byte.
_SIGNATURES: tuple[tuple[bytes, Kind], ...] = (
    (rb"\xff\xd8\xff", Kind("JPEG image", "JPEG")),
    (rb"\x89PNG\r\n\x1a\n", Kind("PNG image", "PNG")),
    (rb"FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|.{4}ftypcrx |II\*\0.{4}CR", Kind("camera raw file")),
    (rb"II[*+]\0|MM\0[*+]", Kind("TIFF image", "TIFF")),
    (rb"RIFF.{4}WEBP", Kind("WebP image", "WEBP")),
    (rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", Kind("BMP image", "BMP")),
    (rb"GIF8[79]a", Kind("GIF image", "GIF")),
    (rb"P[1-6fF][\s#]", Kind("PPM image", "PPM")),
    (rb".{4}ftyp(?:avi[fs]|(?:mif1|msf1|miaf).{4}(?:.{4}){0,16}?avi[fs])", Kind("AVIF image", "AVIF")),
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", Kind("JPEG 2000 image", "JPEG2000")),
    (rb".{4}ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", Kind("HEIC image", "HEIF", "heic")),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", Kind("JPEG XL image")),
    (rb"OggS.{24}.{0,40}(?:\x80theora|\x01video)", Kind("Ogg video", VIDEO, "video")),
    (rb".{4}ftypM4[AB] |ID3|fLaC|RIFF.{4}WAVE|OggS", Kind("audio file")),
    (rb".{4}(?:ftyp|moov|mdat)|\0.{3}(?:wide|free|skip)", _MP4),
    (rb"\x1a\x45\xdf\xa3", Kind("Matroska or WebM video", VIDEO, "video")),
    (rb"RIFF.{4}AVI ", Kind("AVI video", VIDEO, "video")),
    (rb"\0\0\x01[\xb3\xba]|(?:G.{187}){3}|(?:.{4}G.{187}){3}", Kind("MPEG video", VIDEO, "video")),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Kind("Windows Media video", VIDEO, "video")),
    (rb"FLV\x01", Kind("Flash video", VIDEO, "video")),
    (rb"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02", Kind("MXF video", VIDEO, "video")),
    (rb"\x1f\x07\0[\x3f\xbf]", Kind("DV video", VIDEO, "video")),
    (rb"YUV4MPEG2 |DKIF|nut/multimedia container", Kind("video", VIDEO, "video")),
    (rb"8BP[SB]", Kind("Photoshop image")),
    (rb"%!PS|\xc5\xd0\xd3\xc6", Kind("PostScript file")),
    (rb"%PDF-", Kind("PDF document")),
    (rb"AT&TFORM", Kind("DjVu document")),
    (rb"\0\0[\x01\x02]\0[^\0]\0", Kind("Windows icon")),
    (rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<svg", Kind("SVG drawing")),
    (rb".{257}ustar|PK\x03\x04|PK\x05\x06|Rar!|7z\xbc\xaf\x27\x1c|\x1f\x8b", Kind("archive")),
)
_PATTERNS = [(re.compile(pattern, re.DOTALL), kind) for pattern, kind in _SIGNATURES]
_BYTES_READ = 1024
_RAW_SUFFIXES = {".dng", ".nef", ".nrw", ".arw", ".sr2", ".cr2", ".pef", ".srw", ".3fr", ".iiq", ".erf", ".mef", ".mos"}
_AUDIO_SUFFIXES = {".wma", ".mka"}
_TGA_SUFFIXES = {".tga", ".vda", ".icb", ".vst"}
UNKNOWN = Kind("")


def identify(path: Path) -> Kind:
    """Return the kind of a regular file. Raise OSError if it cannot be read."""
    with path.open("rb") as file:
        start = file.read(_BYTES_READ)
    suffix = path.suffix.lower()
    kind = next((kind for pattern, kind in _PATTERNS if pattern.match(start)), UNKNOWN)
    if kind.format == "TIFF" and suffix in _RAW_SUFFIXES:
        return Kind("camera raw file")
    if kind.format == VIDEO and suffix in _AUDIO_SUFFIXES:
        return Kind("audio file")
    return Kind("TGA image", "TGA") if kind == UNKNOWN and start and suffix in _TGA_SUFFIXES else kind


def is_video(path: Path) -> bool:
    """Return whether a regular file is a video. A file of unknown content with the suffix of a video counts as one."""
    if not path.is_file():
        return False
    try:
        kind = identify(path)
    except OSError:
        kind = UNKNOWN
    return kind.format == VIDEO or (kind == UNKNOWN and path.suffix.lower() in VIDEO_SUFFIXES)


@dataclass
class FolderContent:
    """What lies in a folder. A file is in exactly one of ``images``, ``videos`` and the lists of ``skipped``.

    The keys of ``skipped`` are the reasons why files are not processed. ``unreadable`` are errors of subfolders.
    """

    images: list[Path] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    skipped: dict[str, list[Path]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def skip(self, reason: str, path: Path) -> None:
        """Record a file that is not processed."""
        self.skipped.setdefault(reason, []).append(path)


def count_skipped(skipped: Mapping[str, Sequence[Path]]) -> list[str]:
    """Return a line for each reason why files are not processed, with their number and the first paths."""
    lines = []
    for reason, paths in sorted(skipped.items()):
        names = ", ".join(str(path) for path in paths[:3])
        lines.append(f"not processed: {reason}: {len(paths)} ({names}{', …' if len(paths) > 3 else ''})")
    return lines


def list_folder(folder: Path, image_suffixes: frozenset[str], *, recursive: bool = True) -> FolderContent:
    """Sort the files in a folder by what they are.

    Images and videos are recognised by their content. A file of unknown content with one of ``image_suffixes`` counts
    as an image, and one with the suffix of a video as a video, so that reading it reports what is wrong. Hidden files
    and folders and linked folders are skipped.
    """
    content = FolderContent()
    for path, status in _walk(folder, recursive, content):
        if path.name.startswith("."):
            content.skip("hidden", path)
            continue
        suffix = path.suffix.lower()
        is_readable = status is not None and stat.S_ISREG(status.st_mode)
        try:
            kind = identify(path) if is_readable else UNKNOWN
        except OSError as error:
            content.unreadable.append(f"{path}: cannot be read ({error.strerror})")
            continue
        if kind.missing_extra:
            content.skip(f"{kind.description} (to read it, pip install 'chromabox[{kind.extra}]')", path)
        elif kind.format == VIDEO or (kind == UNKNOWN and suffix in VIDEO_SUFFIXES):
            content.videos.append(path)
        elif kind.format or (kind == UNKNOWN and suffix in image_suffixes):
            content.images.append(path)
        elif kind != UNKNOWN:
            content.skip(f"{kind.description} (not supported)", path)
        else:
            content.skip("unknown kind" if is_readable else "not a regular file", path)
    content.images.sort()
    content.videos.sort()
    return content


def _walk(folder: Path, recursive: bool, content: FolderContent) -> Iterator[tuple[Path, os.stat_result | None]]:
    """Yield every file with its status, which is None for a broken link. Record the folders that are skipped."""

    def record(error: OSError) -> None:
        content.unreadable.append(f"{error.filename}: the folder cannot be read ({error.strerror})")

    for parent, folders, names in os.walk(folder, onerror=record):
        for name in folders:
            path = Path(parent, name)
            if not recursive:
                content.skip("subfolder (--no-recursive)", path)
            elif name.startswith("."):
                content.skip("hidden", path)
            elif path.is_symlink():
                content.skip("link to a folder", path)
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        for name in names:
            try:
                yield Path(parent, name), Path(parent, name).stat()
            except OSError:
                yield Path(parent, name), None
