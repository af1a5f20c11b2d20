"""Comparison of colourised images with their originals, with the greyscale image as the baseline.

All scores are computed at 8 bits with the EXIF orientation applied to both images. 16-bit values are rounded to 8 bits.
Alpha channels and colour profiles are ignored. Originals and colourised images are paired by their relative paths in
the two folders. The suffix may differ, because colourised images of some formats are written as PNG.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, UInt8

from chromabox.colour.chroma.lab import luminance_root
from chromabox.colour.evaluation import metrics
from chromabox.engine.logger import progress_bar
from chromabox.errors import ChromaboxError
from chromabox.io.images import ImageData, find_images, read_image, to_uint8

if TYPE_CHECKING:
    from chromabox.colour.evaluation.frechet import FrechetScore

#: A colourised image counts as worse than greyscale if its PSNR is lower by more than this value in dB.
WORSE_THAN_GREY_DB = 0.5

#: Names of the scores of all images together.
SUMMARY = ("psnr_gain", "delta_e_reduction", "colourfulness_percent", "worse_than_grey")

#: Path of an image, and its path relative to the input folder.
FoundImage = tuple[Path, Path]


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """Scores of one colourised image. The ``grey_…`` scores are those of the greyscale original (a* = b* = 0).

    The colourfulness of the greyscale image is 0. Undefined scores are None. A PSNR gain is undefined if either of the
    two PSNR values is infinite. A ratio or a reduction is undefined if its denominator is 0.
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
    colourfulness_difference: float
    """Colourfulness of the colourised image minus that of the original."""
    colourfulness_ratio: float | None
    """Colourfulness of the colourised image divided by that of the original."""
    grey_psnr: float
    """PSNR in dB; infinite if the original is grey."""
    grey_ssim: float
    grey_delta_e: float
    grey_delta_lightness: float
    """Mean absolute difference of L*, which is due only to rounding to 8 bits."""
    psnr_gain: float | None
    """``psnr`` minus ``grey_psnr``, in dB."""
    delta_e_reduction: float | None
    """Reduction of the mean CIEDE2000 relative to greyscale, in per cent; negative if it increases."""


@dataclass(frozen=True)
class FileScores:
    """Scores of one pair of files. The paths are relative to the input folders. The size of the images is in pixels."""

    original: Path
    coloured: Path
    width: int
    height: int
    scores: ImageScores


@dataclass(frozen=True)
class ScoreReport:
    """All scored files in the order of the originals, and the error messages of the files that could not be scored.

    The keys of ``failed`` are paths relative to the input folders. Each message is one line. ``frechet`` is the
    Fréchet distance between the colourised images and the originals, or None if it was not computed. ``notes`` are
    lines about files of which only a part was compared.
    """

    files: list[FileScores]
    failed: dict[Path, str]
    frechet: "FrechetScore | None" = None
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> dict[str, float | None]:
        """Mean of every score over the files for which this score is finite; None if there are no such files."""
        result = {}
        for field in fields(ImageScores):
            values = (getattr(file.scores, field.name) for file in self.files)
            finite = [value for value in values if value is not None and math.isfinite(value)]
            result[field.name] = math.fsum(finite) / len(finite) if finite else None
        return result

    def summarise(self) -> dict[str, float | tuple[float, float]]:
        """Return scores of all files together. A file with an undefined or infinite score is left out of that score.

        * ``psnr_gain``: mean gain over greyscale in dB.
        * ``delta_e_reduction``: reduction of the mean CIEDE2000 over all files relative to greyscale, in per cent.
        * ``colourfulness_percent``: mean colourfulness as a percentage of the originals' mean colourfulness.
        * ``worse_than_grey``: percentage of the files whose PSNR is lower than greyscale's by more than 0.5 dB.
        * The same names with the suffix ``_interval``: lower and upper limit of the 95 % percentile interval of 1000
          bootstrap samples of files.
        """
        names = "psnr_gain", "delta_e", "grey_delta_e", "colourfulness", "original_colourfulness"
        rows = [[getattr(file.scores, name) for name in names] for file in self.files]
        values = np.array([row for row in rows if None not in row], np.float64).reshape(-1, len(names))
        if not len(values):
            return {}
        columns = np.column_stack([values, values[:, 0] < -WORSE_THAN_GREY_DB])

        rng = np.random.default_rng(0)
        samples = np.stack([columns[rng.integers(len(columns), size=len(columns))].mean(0) for _ in range(1000)])
        result: dict[str, float | tuple[float, float]] = {}
        for name, value, sampled in zip(SUMMARY, _combine(columns.mean(0)), _combine(samples).T, strict=True):
            low, high = np.percentile(sampled, (2.5, 97.5))
            result |= {name: float(value), f"{name}_interval": (float(low), float(high))}
        return result

    def as_json(self) -> dict[str, Any]:
        """Return the results as JSON values in full precision. An infinite PSNR becomes None."""
        failed = [{"file": file.as_posix(), "error": error} for file, error in self.failed.items()]
        files = [to_row(file) for file in self.files]
        result = {"mean": self.mean, "summary": self.summarise(), "files": files, "failed": failed}
        return result if self.frechet is None else {**result, "fid": asdict(self.frechet)}


def _combine(means: Float64[np.ndarray, "*samples 6"]) -> Float64[np.ndarray, "*samples 4"]:
    """Return the values of ``SUMMARY`` for mean scores."""
    gain, delta_e, grey_delta_e, colourfulness, original, worse = np.moveaxis(means, -1, 0)
    return np.stack([gain, 100 * (1 - delta_e / grey_delta_e), 100 * colourfulness / original, 100 * worse], -1)


def to_row(file: FileScores) -> dict[str, str | int | float | None]:
    """Return the names, size and scores of one file as a flat dictionary. An infinite PSNR becomes None."""
    scores = {name: None if value == math.inf else value for name, value in asdict(file.scores).items()}
    names = {"original": file.original.as_posix(), "coloured": file.coloured.as_posix()}
    return {**names, "width": file.width, "height": file.height, **scores}


def score_image(
    original: UInt8[np.ndarray, "height width 3"], coloured: UInt8[np.ndarray, "height width 3"]
) -> ImageScores:
    """Score one colourised image in memory. Both images are 8-bit sRGB.

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
        psnr_gain=psnr - grey_psnr if math.isfinite(psnr - grey_psnr) else None,
        delta_e_reduction=_ratio(100 * (grey_delta_e - delta_e), grey_delta_e),
    )


@dataclass(frozen=True)
class LightnessChange:
    """Absolute differences of L* (0 to 100) between two images."""

    mean: float
    maximum: float
    regions: list[list[tuple[float, float]]]
    """Mean and maximum of each cell of a 3 × 3 grid, in rows. A cell without pixels is omitted."""


def compare_lightness(original: ImageData, coloured: ImageData, names: str = "the images") -> LightnessChange:
    """Return the differences of L* between a colourised image and its original, with any bit depths.

    If only the original has alpha, its pixels that are not opaque are not compared. ``names`` are used in messages.
    Raise ChromaboxError if the sizes differ or no pixel can be compared.
    """
    (height, width, _), shape = original.pixels.shape, coloured.pixels.shape
    if (height, width) != shape[:2]:
        sizes = f"{shape[1]} × {shape[0]} and {width} × {height} pixels"
        raise ChromaboxError(f"{names} have {sizes}, after their EXIF orientation was applied: expected the same size")
    is_compared = np.ones((height, width), bool)
    if original.alpha is not None and coloured.alpha is None:
        is_compared = original.alpha == np.iinfo(original.alpha.dtype).max
    total, count, regions = 0.0, 0, []
    rows, columns = ([round(third * side / 3) for third in range(4)] for side in (height, width))
    for top, bottom in itertools.pairwise(rows):
        cells = []
        for left, right in itertools.pairwise(columns):
            cell = np.s_[top:bottom, left:right]
            roots = [luminance_root(image.pixels[cell])[is_compared[cell]] for image in (original, coloured)]
            difference = 116 * np.abs(roots[0] - roots[1])  # L* = 116 root - 16
            if difference.size:
                cells.append((float(difference.mean(dtype=np.float64)), float(difference.max())))
                total, count = total + float(difference.sum(dtype=np.float64)), count + difference.size
        regions.append(cells)
    if not count:
        raise ChromaboxError(f"{names}: no opaque pixels can be compared")
    return LightnessChange(total / count, max(peak for cells in regions for _, peak in cells), regions)


def score_folders(
    originals: Path, coloured: Path, *, fid_network: Path | None = None, show_progress: bool = False
) -> ScoreReport:
    """Compare colourised images with their originals. Each path is an image, or a folder including its subfolders.

    A file that cannot be read, that has no counterpart or whose counterpart has another size is listed in ``failed``.
    The other files are scored. ``fid_network`` is an ONNX file (see ``frechet.FeatureNetwork``) for the Fréchet
    distance, which is computed for two or more files. ``show_progress`` shows a progress bar on a terminal. Raise
    UsageError if a path does not exist, and ChromaboxError if a folder contains no images or the ONNX file is invalid.
    """
    network = None
    if fid_network is not None:
        from chromabox.colour.evaluation.frechet import FeatureNetwork  # Imports ONNX Runtime.

        network = FeatureNetwork(fid_network)
    pairs, failed = pair_files(originals, coloured)
    files: list[FileScores] = []
    notes: list[str] = []
    features: list[Float64[np.ndarray, "2 _"]] = []
    with progress_bar("scoring", len(pairs), unit="images", show=show_progress) as tick:
        for (original, original_name), (result, result_name) in pairs:
            try:
                images = {path: read_image(path) for path in (original, result)}
                original_rgb, result_rgb = (to_uint8(images[path].pixels) for path in (original, result))
                height, width, _ = original_rgb.shape
                if original_rgb.shape != result_rgb.shape:
                    result_size = f"{result_rgb.shape[1]} × {result_rgb.shape[0]}"
                    raise ChromaboxError(
                        f"{result} is {result_size} pixels and its original {original} is {width} × {height} pixels "
                        "after their EXIF orientation was applied: expected images of the same size"
                    )
                scores = score_image(original_rgb, result_rgb)
                if network is not None:
                    features.append(network.extract([original_rgb, result_rgb]))
                files.append(FileScores(original_name, result_name, width, height, scores))
                notes.extend(first_page_notes(images))
            except (ChromaboxError, MemoryError) as error:
                is_memory_error = isinstance(error, MemoryError)
                failed[original_name] = (
                    f"{original}: not enough memory; use smaller images" if is_memory_error else str(error)
                )
            tick()
    if network is None or len(features) < 2:
        return ScoreReport(files, failed, notes=tuple(notes))
    stacked = np.stack(features)
    return ScoreReport(files, failed, network.score(stacked[:, 0], stacked[:, 1]), tuple(notes))


def first_page_notes(images: Mapping[Path, ImageData]) -> list[str]:
    """Return a line for each file with several pages or frames, of which only the first is compared."""
    return [
        f"{path} has {image.num_frames} frames or pages; only the first is compared"
        for path, image in images.items()
        if image.num_frames > 1
    ]


def pair_files(originals: Path, coloured: Path) -> tuple[list[tuple[FoundImage, FoundImage]], dict[Path, str]]:
    """Return pairs of files in the order of the originals, and error messages for files that cannot be paired.

    If both paths are files, they form a pair whatever their names. In folders, the counterpart has the same relative
    path, or is the only file whose relative path differs only in the suffix. If one of the two paths is a file, only
    the counterpart of this file is looked up. If one folder is inside the other, the images of the inner folder do not
    belong to the outer folder. Raise UsageError if a path does not exist, and ChromaboxError if a folder
    contains no images.
    """
    sources, results = _list_images(originals, exclude=coloured), _list_images(coloured, exclude=originals)
    if originals.is_file() and coloured.is_file():
        return list(zip(sources.values(), results.values(), strict=True)), {}
    # Group the files that have no counterpart with the same suffix by their relative paths without suffix.
    sources_by_stem: dict[Path, list[FoundImage]] = {}
    results_by_stem: dict[Path, list[FoundImage]] = {}
    for images, others, by_stem in ((sources, results, sources_by_stem), (results, sources, results_by_stem)):
        for name in images:
            if name not in others:
                by_stem.setdefault(name.with_suffix(""), []).append(images[name])
    pairs: list[tuple[FoundImage, FoundImage]] = []
    failed: dict[Path, str] = {}
    for name, source in sources.items():
        stem = name.with_suffix("")
        matches = [results[name]] if name in results else results_by_stem.get(stem, [])
        if name in results or len(matches) == len(sources_by_stem[stem]) == 1:
            pairs.append((source, matches[0]))
        elif matches:
            found = " and ".join(str(path) for path, _ in matches)
            expected = f"expected one original and one colourised image named {stem}.*"
            failed[name] = f"{source[0]} cannot be paired with {found}: {expected}"
        elif not coloured.is_file():
            failed[name] = f"{source[0]} has no colourised image: expected {stem}.* in {coloured}"
    if not originals.is_file():
        for name, (path, _) in results.items():
            if name not in sources and name.with_suffix("") not in sources_by_stem:
                failed[name] = f"{path} has no original: expected an image of the same name in {originals}"
    return pairs, failed


def _list_images(root: Path, exclude: Path) -> dict[Path, FoundImage]:
    """Return images by their relative paths in ``root``, except those in a folder ``exclude`` inside ``root``."""
    excluded = exclude.resolve()
    is_nested = exclude.is_dir() and root.resolve() in excluded.parents
    found = find_images([root])
    return {name: (path, name) for path, name in found if not (is_nested and excluded in path.resolve().parents)}


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
