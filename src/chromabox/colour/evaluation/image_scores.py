"""Comparison of colourised images with their originals, with the greyscale image as the baseline.

All scores are computed at 8 bits with the EXIF orientation applied to both images. 16-bit values are rounded to 8 bits.
Alpha channels and colour profiles are ignored. Originals and colourised images are paired by their relative paths in
the two folders. The suffix may differ, because some formats are written as PNG.
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
    """Scores of one colourised image. The ``grey_…`` scores belong to the greyscale original (a* = b* = 0).

    The colourfulness of the greyscale image is 0. Undefined scores are None. A PSNR gain is undefined if one of the two
    PSNR values is infinite. A ratio or a reduction is undefined if its denominator is 0.
    """

    psnr: float
    """PSNR in dB over all values of red, green and blue, with the peak value 255; infinite for equal images."""
    ssim: float
    """Structural similarity in [−1, 1] (see ``metrics.ssim``)."""
    delta_e: float
    """Mean CIEDE2000."""
    delta_lightness: float
    """Mean absolute difference of L*, in [0, 100]."""
    colourfulness: float
    """Colourfulness of the colourised image (Hasler and Süsstrunk 2003)."""
    original_colourfulness: float
    """Colourfulness of the original."""
    colourfulness_difference: float
    """Colourfulness of the colourised image minus that of the original."""
    colourfulness_ratio: float | None
    """Colourfulness of the colourised image divided by that of the original."""
    grey_psnr: float
    """PSNR in dB; infinite if the original is grey."""
    grey_ssim: float
    grey_delta_e: float
    grey_delta_lightness: float
    """Mean absolute difference of L*. It is due only to rounding to 8 bits."""
    psnr_gain: float | None
    """``psnr`` minus ``grey_psnr``, in dB."""
    delta_e_reduction: float | None
    """Reduction of the mean CIEDE2000 relative to greyscale, in per cent; negative if it increases."""


@dataclass(frozen=True)
class FileScores:
    """Scores of one pair of files.

    The paths are relative to the input folders. ``width`` and ``height`` are in pixels.
    """

    original: Path
    coloured: Path
    width: int
    height: int
    scores: ImageScores


@dataclass(frozen=True)
class FailedFile:
    """A file that could not be scored, and a one-line error message."""

    file: Path
    error: str


@dataclass(frozen=True)
class ScoreReport:
    """All scored files in the order of the originals, and the files that could not be scored."""

    files: list[FileScores]
    failed: list[FailedFile]

    @property
    def mean(self) -> dict[str, float | None]:
        """Mean of every score over the files for which it is finite; None if there are no such files."""
        names = [field.name for field in fields(ImageScores)]
        return {name: _mean(getattr(file.scores, name) for file in self.files) for name in names}

    def as_json(self) -> dict[str, Any]:
        """Return ``mean``, ``files`` and ``failed`` as JSON values in full precision. An infinite PSNR becomes None."""
        return {
            "mean": self.mean,
            "files": [to_row(file) for file in self.files],
            "failed": [{"file": failure.file.as_posix(), "error": failure.error} for failure in self.failed],
        }


def to_row(file: FileScores) -> dict[str, str | int | float | None]:
    """Return the names, size and scores of one file as a flat dictionary. Non-finite numbers become None."""
    row: dict[str, str | int | float | None] = {
        "original": file.original.as_posix(),
        "coloured": file.coloured.as_posix(),
        "width": file.width,
        "height": file.height,
    }
    return row | {name: _finite_or_none(value) for name, value in asdict(file.scores).items()}


def score_image(
    original: UInt8[np.ndarray, "height width 3"], coloured: UInt8[np.ndarray, "height width 3"]
) -> ImageScores:
    """Score one colourised image in memory.

    Args:
        original: the original image in 8-bit sRGB.
        coloured: the colourised image in 8-bit sRGB, with the same shape.

    Apart from the greyscale image, the working memory does not depend on the image size. Raise ChromaboxError if the
    shapes differ or the images have no pixels.
    """
    grey = metrics.to_greyscale(original)
    psnr, grey_psnr = (metrics.psnr(rgb, original) for rgb in (coloured, grey))
    (delta_e, delta_lightness), (grey_delta_e, grey_delta_lightness) = metrics.lab_differences(original, coloured, grey)
    colourfulness, original_colourfulness = (metrics.colourfulness(rgb) for rgb in (coloured, original))
    return ImageScores(
        psnr=psnr,
        ssim=metrics.ssim(coloured, original),
        delta_e=delta_e,
        delta_lightness=delta_lightness,
        colourfulness=colourfulness,
        original_colourfulness=original_colourfulness,
        colourfulness_difference=colourfulness - original_colourfulness,
        colourfulness_ratio=_ratio(colourfulness, original_colourfulness),
        grey_psnr=grey_psnr,
        grey_ssim=metrics.ssim(grey, original),
        grey_delta_e=grey_delta_e,
        grey_delta_lightness=grey_delta_lightness,
        psnr_gain=_finite_or_none(psnr - grey_psnr),
        delta_e_reduction=_ratio(100 * (grey_delta_e - delta_e), grey_delta_e),
    )


def score_folders(originals: Path, coloured: Path, *, show_progress: bool = False) -> ScoreReport:
    """Compare colourised images with their originals. Both paths are images, or folders including their subfolders.

    A file that cannot be read, has no counterpart, or differs from it in size is listed in ``failed``; the other files
    are scored. ``show_progress`` shows a progress bar on a terminal. Raise UsageError if a path does not exist, and
    ChromaboxError if a folder contains no images.
    """
    pairs, failed = pair_files(originals, coloured)
    files: list[FileScores] = []
    with progress_bar("scoring", len(pairs), unit="images", show=show_progress) as tick:
        for pair in pairs:
            try:
                original, coloured_image = (
                    to_uint8(read_image(path).pixels) for path in (pair.original, pair.coloured)
                )
                if original.shape != coloured_image.shape:
                    sizes = [f"{width} × {height}" for height, width, _ in (coloured_image.shape, original.shape)]
                    raise ChromaboxError(
                        f"{pair.coloured} is {sizes[0]} pixels and its original {pair.original} is {sizes[1]} pixels "
                        "after their EXIF orientation was applied: expected images of the same size"
                    )
                height, width, _ = original.shape
                scores = score_image(original, coloured_image)
                files.append(FileScores(pair.original_relative, pair.coloured_relative, width, height, scores))
            except ChromaboxError as error:
                failed.append(FailedFile(pair.original_relative, str(error)))
            except MemoryError:
                message = f"{pair.original}: not enough memory to score the image"
                failed.append(FailedFile(pair.original_relative, message))
            tick()
    return ScoreReport(files, failed)


@dataclass(frozen=True)
class FilePair:
    """An original and its colourised image, each with its path relative to the input folder."""

    original: Path
    original_relative: Path
    coloured: Path
    coloured_relative: Path


def pair_files(originals: Path, coloured: Path) -> tuple[list[FilePair], list[FailedFile]]:
    """Return pairs of files in the order of the originals, and the files without exactly one counterpart.

    If both paths are files, they form a pair whatever their names. In folders, the counterpart has the same relative
    path, or is the only file whose relative path differs only in the suffix. If one of the two paths is a file, only
    the counterpart of this file is looked up. If one folder is inside the other, the inner folder's images do not
    belong to the outer one. Raise UsageError if a path does not exist, and ChromaboxError if a folder contains no
    images.
    """
    original_paths = _list_images(originals, exclude=coloured)
    coloured_paths = _list_images(coloured, exclude=originals)
    if originals.is_file() and coloured.is_file():
        return [FilePair(originals, next(iter(original_paths)), coloured, next(iter(coloured_paths)))], []
    by_stem: dict[Path, list[Path]] = {}
    for relative in coloured_paths:
        by_stem.setdefault(relative.with_suffix(""), []).append(relative)
    # The same path if it exists. Otherwise, all paths that differ only in the suffix and do not belong to an original.
    candidates: dict[Path, list[Path]] = {}
    for relative in original_paths:
        matches = by_stem.get(relative.with_suffix(""), [])
        exact = relative in matches
        candidates[relative] = [relative] if exact else [path for path in matches if path not in original_paths]
    num_originals = Counter(matches[0] for matches in candidates.values() if len(matches) == 1)
    pairs: list[FilePair] = []
    errors: dict[Path, str] = {}
    for relative, matches in candidates.items():
        path = original_paths[relative]
        names = " and ".join(str(coloured_paths[match]) for match in matches)
        if len(matches) > 1:
            errors[relative] = f"{path} matches {names}: expected one colourised image; remove the others"
        elif matches and num_originals[matches[0]] > 1:
            count = num_originals[matches[0]]
            errors[relative] = f"{path} is one of {count} originals of {names}: expected only one; remove the others"
        elif matches:
            pairs.append(FilePair(path, relative, coloured_paths[matches[0]], matches[0]))
        elif not coloured.is_file():
            errors[relative] = f"{path} has no colourised image: expected {relative.with_suffix('.*')} in {coloured}"
    if not originals.is_file():
        unmatched = coloured_paths.keys() - {match for matches in candidates.values() for match in matches}
        for relative in sorted(unmatched):
            errors[relative] = f"{coloured_paths[relative]} has no original: expected one in {originals}"
    return pairs, [FailedFile(relative, error) for relative, error in errors.items()]


def _list_images(root: Path, exclude: Path) -> dict[Path, Path]:
    """Return images by their relative paths in ``root``, except those in ``exclude`` if it is inside ``root``."""
    excluded = exclude.resolve()
    is_nested = exclude.is_dir() and root.resolve() in excluded.parents
    return {
        relative: path
        for path, relative in find_images([root])
        if not is_nested or excluded not in path.resolve().parents
    }


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(values: Iterable[float | None]) -> float | None:
    finite = [number for value in values if (number := _finite_or_none(value)) is not None]
    return math.fsum(finite) / len(finite) if finite else None
