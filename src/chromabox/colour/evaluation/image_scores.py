"""Coloured pictures beside their originals: how near they come, and what the same picture in grey would reach.

Everything is measured at 8 bits on upright pictures (the EXIF orientation is applied to both); 16-bit values are
rounded to 8 bits first, alpha and colour profiles are left out of account. Originals and coloured pictures belong
together by their place in the two folders; the suffix may differ, because some formats are written as PNG.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from chromabox.colour.evaluation import metrics
from chromabox.engine.logger import progress_bar
from chromabox.errors import ChromaboxError
from chromabox.io.images import find_images, read_image, to_uint8


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """One coloured picture against its original; ``grey_…`` is the original itself without chroma (a* = b* = 0).

    The grey picture's colourfulness is 0. What has no value is None: a gain where one of the two PSNR is infinite, a
    ratio or a reduction of nothing.
    """

    psnr: float
    """Decibels over all values of red, green and blue, peak 255; infinite for equal pictures."""
    ssim: float
    """Structural similarity, −1 to 1: ``metrics.ssim`` says how."""
    delta_e: float
    """Mean CIEDE2000."""
    delta_lightness: float
    """Mean difference of L* without its sign, 0 to 100."""
    colourfulness: float
    """Of the coloured picture: Hasler and Süsstrunk 2003."""
    original_colourfulness: float
    """The same of the original."""
    colourfulness_difference: float
    """Coloured minus original."""
    colourfulness_ratio: float | None
    """Coloured over original."""
    grey_psnr: float
    """Decibels; infinite where the original is grey."""
    grey_ssim: float
    grey_delta_e: float
    grey_delta_lightness: float
    """Nothing but the rounding to 8 bits."""
    psnr_gain: float | None
    """Decibels that colour is nearer to the original than grey is."""
    delta_e_reduction: float | None
    """Per cent of grey's mean CIEDE2000 that colour takes away; below 0 where it adds."""


@dataclass(frozen=True)
class FileScores:
    """One scored pair of files, by their places inside what was given; ``width`` and ``height`` in pixels."""

    original: Path
    coloured: Path
    width: int
    height: int
    scores: ImageScores


@dataclass(frozen=True)
class FailedFile:
    """A file that could not be scored, and why, in one sentence."""

    file: Path
    error: str


@dataclass(frozen=True)
class ScoreReport:
    """All scored files in the originals' order, and the files that could not be scored."""

    files: list[FileScores]
    failed: list[FailedFile]

    @property
    def mean(self) -> dict[str, float | None]:
        """The mean of every score over the files for which it is a finite number; None where there is none."""
        return {
            field.name: _mean([getattr(file.scores, field.name) for file in self.files])
            for field in fields(ImageScores)
        }

    def as_json(self) -> dict[str, Any]:
        """``mean``, ``files`` and ``failed`` as JSON values of full precision; an infinite PSNR becomes None."""
        return {
            "mean": self.mean,
            "files": [to_row(file) for file in self.files],
            "failed": [{"file": failure.file.as_posix(), "error": failure.error} for failure in self.failed],
        }


def to_row(file: FileScores) -> dict[str, str | int | float | None]:
    """One file's names, size and scores as JSON values in a row; what is not a finite number is None."""
    place: dict[str, str | int | float | None] = {
        "original": file.original.as_posix(),
        "coloured": file.coloured.as_posix(),
        "width": file.width,
        "height": file.height,
    }
    return place | {name: _finite_or_none(value) for name, value in asdict(file.scores).items()}


def score_image(
    original: UInt8[np.ndarray, "height width 3"], coloured: UInt8[np.ndarray, "height width 3"]
) -> ImageScores:
    """Score one coloured picture, in memory.

    Args:
        original: sRGB, 0 to 255.
        coloured: the same of the same size.

    Beyond one more picture (the grey one) memory does not grow with the size. Raises ChromaboxError for no pixels.
    """
    grey = metrics.to_greyscale(original)
    psnr, grey_psnr = (metrics.psnr(rgb, original) for rgb in (coloured, grey))
    to_coloured, to_grey = metrics.lab_differences(original, coloured, grey)
    colourfulness, original_colourfulness = (metrics.colourfulness(rgb) for rgb in (coloured, original))
    return ImageScores(
        psnr=psnr,
        ssim=metrics.ssim(coloured, original),
        delta_e=to_coloured.delta_e,
        delta_lightness=to_coloured.delta_lightness,
        colourfulness=colourfulness,
        original_colourfulness=original_colourfulness,
        colourfulness_difference=colourfulness - original_colourfulness,
        colourfulness_ratio=_ratio(colourfulness, original_colourfulness),
        grey_psnr=grey_psnr,
        grey_ssim=metrics.ssim(grey, original),
        grey_delta_e=to_grey.delta_e,
        grey_delta_lightness=to_grey.delta_lightness,
        psnr_gain=_finite_or_none(psnr - grey_psnr),
        delta_e_reduction=_ratio(100 * (to_grey.delta_e - to_coloured.delta_e), to_grey.delta_e),
    )


def score_folders(originals: Path, coloured: Path, *, show_progress: bool = False) -> ScoreReport:
    """Score a coloured picture, or a folder of them with its sub-folders, against the original or a folder of them.

    A file that cannot be read, has another size than its partner or has none does not stop the rest: it is in
    ``failed``. ``show_progress`` draws a bar on a terminal. Raises UsageError for a path that does not exist and for a
    folder without pictures.
    """
    pairs, failed = pair_files(originals, coloured)
    files: list[FileScores] = []
    with progress_bar("scoring", len(pairs), unit="pictures", show=show_progress) as tick:
        for pair in pairs:
            try:
                files.append(_score_files(pair))
            except ChromaboxError as error:
                failed.append(FailedFile(pair.original_relative, str(error)))
            except MemoryError:
                failed.append(
                    FailedFile(pair.original_relative, f"{pair.original} needs more memory to be scored than is there")
                )
            tick()
    return ScoreReport(files, failed)


@dataclass(frozen=True)
class FilePair:
    """Two files that belong together, each with its place inside what was given."""

    original: Path
    original_relative: Path
    coloured: Path
    coloured_relative: Path


def pair_files(originals: Path, coloured: Path) -> tuple[list[FilePair], list[FailedFile]]:
    """The files that belong together, in the originals' order, and those that belong to none or to several.

    Two files belong together whatever their names. In folders the partner is at the same place, else it is the only
    file at that place with another suffix. Where one side is a file, only its partner is looked for. If one folder
    lies in the other, its pictures are not counted to the other. Raises UsageError for a path that does not exist
    and for a folder without pictures.
    """
    left, right = _list_images(originals, exclude=coloured), _list_images(coloured, exclude=originals)
    if originals.is_file() and coloured.is_file():
        return [FilePair(originals, next(iter(left)), coloured, next(iter(right)))], []
    candidates = _match_candidates(left, right)
    claims = Counter(others[0] for others in candidates.values() if len(others) == 1)
    pairs: list[FilePair] = []
    problems: dict[Path, str] = {}
    for place, others in candidates.items():
        named = " and ".join(str(right[other]) for other in others)
        if len(others) > 1:
            problems[place] = f"{left[place]} could belong to {named}: one partner is right, remove the others"
        elif others and claims[others[0]] > 1:
            problems[place] = f"{left[place]} is one of {claims[others[0]]} originals of {named}: one is right"
        elif others:
            pairs.append(FilePair(left[place], place, right[others[0]], others[0]))
        elif not coloured.is_file():
            problems[place] = f"{left[place]} has no partner: {coloured} holds no {place.with_suffix('.*')}"
    if not originals.is_file():
        alone = right.keys() - {other for others in candidates.values() for other in others}
        for place in sorted(alone):
            problems[place] = f"{right[place]} has no original of its own: {originals} holds none for it"
    return pairs, [FailedFile(place, problem) for place, problem in problems.items()]


def _list_images(root: Path, exclude: Path) -> dict[Path, Path]:
    """Pictures by their places in ``root``, without those in the other folder if that lies in this one."""
    apart = exclude.resolve()
    nested = exclude.is_dir() and root.resolve() in apart.parents
    return {place: path for path, place in find_images([root]) if not nested or apart not in path.resolve().parents}


def _match_candidates(left: Iterable[Path], right: Iterable[Path]) -> dict[Path, list[Path]]:
    """For every place on the left the places on the right that could belong to it.

    The same place, else all that differ by the suffix and are not themselves a place on the left.
    """
    own = set(left)
    by_stem: dict[Path, list[Path]] = {}
    for place in right:
        by_stem.setdefault(place.with_suffix(""), []).append(place)
    alike = {place: by_stem.get(place.with_suffix(""), []) for place in own}
    return {
        place: [place] if place in alike[place] else [other for other in alike[place] if other not in own]
        for place in left
    }


def _score_files(pair: FilePair) -> FileScores:
    """Read and score one pair; ChromaboxError for what cannot be read and for sizes that differ."""
    original, coloured = (to_uint8(read_image(path).pixels) for path in (pair.original, pair.coloured))
    if original.shape != coloured.shape:
        sizes = [f"{width} × {height}" for height, width, _ in (coloured.shape, original.shape)]
        raise ChromaboxError(
            f"{pair.coloured} is {sizes[0]} pixels and its original {pair.original} {sizes[1]}, both turned upright by "
            "their EXIF orientation: pictures of one size are needed"
        )
    height, width, _ = original.shape
    return FileScores(pair.original_relative, pair.coloured_relative, width, height, score_image(original, coloured))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(values: Iterable[float | None]) -> float | None:
    finite = [number for value in values if (number := _finite_or_none(value)) is not None]
    return math.fsum(finite) / len(finite) if finite else None
