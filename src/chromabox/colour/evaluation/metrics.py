"""Colourisation metrics, and baselines that do not need a model.

Labels are palette indices. Images are NumPy arrays of 8-bit RGB with the channels last. PSNR and accuracy favour
desaturated colours. Interpret them together with colourfulness, ΔE and balanced accuracy.
"""

from collections.abc import Iterator
from math import isqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64, Integer, UInt8

from chromabox.colour.chroma.lab import rgb_to_lab
from chromabox.errors import ChromaboxError

Labels = Integer[np.ndarray, "..."]
Rgb = UInt8[np.ndarray, "... 3"]

#: Number of pixels processed at a time. Intermediate results of this size fit into the CPU cache. CIEDE2000 is
#: computed twice as fast as with 2¹⁸ pixels.
CHUNK_PIXELS = 1 << 15
#: Number of possible sums R + G + B of 8-bit values.
NUM_GREY_SUMS = 3 * 255 + 1
#: Radius of the structural similarity window in pixels, excluding the centre.
SSIM_RADIUS = 5
#: Gaussian weights of the window along one axis, with standard deviation 1.5. The first weight is that of the centre.
SSIM_WEIGHTS = np.exp(-(np.arange(SSIM_RADIUS + 1) ** 2) / (2 * 1.5**2))
SSIM_WEIGHTS /= SSIM_WEIGHTS[0] + 2 * SSIM_WEIGHTS[1:].sum()


def accuracy(labels: Labels, truth: Labels) -> float:
    """Return the fraction of pixels with the true label, in [0, 1].

    Raise ChromaboxError if the shapes differ or there are no pixels.
    """
    _check_pair(labels, truth)
    return np.count_nonzero(labels == truth) / labels.size


def confusion_matrix(labels: Labels, truth: Labels, num_classes: int) -> Int64[np.ndarray, "truth prediction"]:
    """Count the pixels for each pair of true (row) and predicted (column) colour.

    Raise ChromaboxError if the shapes differ, there are no pixels, or a label is outside 0 … ``num_classes`` − 1.
    """
    return _joint_histogram(truth, labels, num_classes, num_classes)


def balanced_accuracy(confusion: Int64[np.ndarray, "truth prediction"]) -> float:
    """Return the mean recall over the colours that occur, in [0, 1]. The result is NaN for a matrix of zeros.

    All colours have the same weight, regardless of their frequency. Source: Brodersen et al. 2010, "The balanced
    accuracy and its posterior distribution", section 2, extended to more than two classes.
    """
    counts = confusion.sum(1)
    recall = confusion.diagonal()[counts > 0] / counts[counts > 0]
    return float(recall.mean()) if recall.size else float("nan")


def psnr(rgb_a: Rgb, rgb_b: Rgb) -> float:
    """Compute the peak signal-to-noise ratio in dB, 10·log10(255² / mean squared error).

    The mean squared error is taken over all values of all images. The result is therefore not a mean over images. The
    PSNR of equal images is infinite. Raise ChromaboxError if the shapes differ or there are no pixels.
    """
    squared_error = 0
    for a, b in _chunks(rgb_a, rgb_b):
        difference = (a.astype(np.int32) - b).ravel()
        squared_error += int(np.dot(difference, difference.astype(np.int64)))
    return float(10 * np.log10(255**2 * rgb_a.size / squared_error)) if squared_error else float("inf")


def ssim(rgb_a: UInt8[np.ndarray, "_ _ 3"], rgb_b: UInt8[np.ndarray, "_ _ 3"]) -> float:
    """Compute the mean structural similarity of two images, in [−1, 1]; 1 for identical images.

    The result is the mean over red, green and blue, and over the windows that are completely inside the image. The
    windows are 11 × 11 Gaussians with standard deviation 1.5. The other parameters are K1 = 0.01, K2 = 0.03, data range
    255 and population covariance. If a side is shorter than 11 pixels, both images are first padded symmetrically by 5
    pixels, which gives one window per pixel. Images are processed in tiles, so the working memory does not depend on
    the image size. Raise ChromaboxError if the shapes differ or there are no pixels.

    Source: Wang, Bovik, Sheikh and Simoncelli 2004, "Image quality assessment: from error visibility to structural
    similarity", sections III.B and III.C.
    """
    _check_pair(rgb_a, rgb_b)
    if min(rgb_a.shape[:2]) <= 2 * SSIM_RADIUS:
        padding = ((SSIM_RADIUS, SSIM_RADIUS), (SSIM_RADIUS, SSIM_RADIUS), (0, 0))
        rgb_a, rgb_b = (np.pad(rgb, padding, mode="symmetric") for rgb in (rgb_a, rgb_b))
    num_rows, num_columns = (length - 2 * SSIM_RADIUS for length in rgb_a.shape[:2])  # Window centres.
    side = max(isqrt(CHUNK_PIXELS), 4 * SSIM_RADIUS)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    total = 0.0
    for top in range(0, num_rows, side):
        for left in range(0, num_columns, side):
            tile = np.s_[top : top + side + 2 * SSIM_RADIUS, left : left + side + 2 * SSIM_RADIUS]
            a, b = (rgb[tile].astype(np.float64) for rgb in (rgb_a, rgb_b))
            mean_a, mean_b = _gaussian_means(a), _gaussian_means(b)
            product, squares = mean_a * mean_b, mean_a**2 + mean_b**2
            covariance = _gaussian_means(a * b) - product
            variances = _gaussian_means(a * a + b * b) - squares
            # Equation 13, for every window that is completely inside the tile.
            similarity = (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
            total += float(similarity.sum())
    return total / (3 * num_rows * num_columns)


def _gaussian_means(values: Float64[np.ndarray, "height width 3"]) -> Float64[np.ndarray, "rows columns 3"]:
    """Return the Gaussian-weighted mean of every window inside the tile, averaging along one axis at a time."""
    for _ in range(2):
        rows = len(values) - 2 * SSIM_RADIUS
        means = SSIM_WEIGHTS[0] * values[SSIM_RADIUS : SSIM_RADIUS + rows]
        for distance, weight in enumerate(SSIM_WEIGHTS[1:], start=1):
            before, after = SSIM_RADIUS - distance, SSIM_RADIUS + distance
            means += weight * (values[before : before + rows] + values[after : after + rows])
        values = means.transpose(1, 0, 2)
    return values


def delta_e(rgb_a: Rgb, rgb_b: Rgb) -> float:
    """Compute the mean CIEDE2000 difference of corresponding pixels. A difference of about 1 is just noticeable."""
    return lab_differences(rgb_a, rgb_b)[0][0]


def lab_differences(rgb: Rgb, *others: Rgb) -> list[tuple[float, float]]:
    """Compute the mean CIEDE2000 and mean |ΔL*| (0 to 100) between the first image and each of the others.

    The images are 8-bit sRGB with white point D65 and the 2° observer. They are processed in chunks, so the working
    memory does not depend on the image size. Raise ChromaboxError if the shapes differ or there are no pixels.
    """
    sums = np.zeros((len(others), 2))
    for chunks in _chunks(rgb, *others):
        lab, *other_labs = map(rgb_to_lab, chunks)
        for index, other in enumerate(other_labs):
            lightness = np.abs(lab[:, 0] - other[:, 0])
            sums[index] += ciede2000(lab, other).sum(dtype=np.float64), lightness.sum(dtype=np.float64)
    return [(float(delta_e), float(delta_lightness)) for delta_e, delta_lightness in sums / (rgb.size // 3)]


def ciede2000(
    lab_a: Float32[np.ndarray, "colours 3"], lab_b: Float32[np.ndarray, "colours 3"]
) -> Float32[np.ndarray, " colours"]:
    """Compute the CIEDE2000 colour difference between corresponding CIELAB colours, with k_L = k_C = k_H = 1.

    Source: Sharma, Wu and Dalal 2005, "The CIEDE2000 color-difference formula", equations 2 to 22.
    """
    (lightness_a, a_a, b_a), (lightness_b, a_b, b_b) = lab_a.T, lab_b.T
    stretch = 1.5 - 0.5 * _chroma_ratio((np.hypot(a_a, b_a) + np.hypot(a_b, b_b)) / 2)
    a_a, a_b = stretch * a_a, stretch * a_b
    chroma_a, chroma_b = np.hypot(a_a, b_a), np.hypot(a_b, b_b)
    hue = np.arctan2(b_a, a_a)
    hue_change = np.arctan2(b_b, a_b) - hue
    hue_change -= 2 * np.pi * np.rint(hue_change / (2 * np.pi))  # to [−π, π]
    # The mean hue, from 0 to 2π. It has no effect if one of the colours is grey.
    hue = (hue + hue_change / 2) % (2 * np.pi)
    distance = ((lightness_a + lightness_b) / 2 - 50) ** 2
    chroma = (chroma_a + chroma_b) / 2
    t = 1 - 0.17 * np.cos(hue - np.pi / 6) + 0.24 * np.cos(2 * hue)
    t += 0.32 * np.cos(3 * hue + np.pi / 30) - 0.2 * np.cos(4 * hue - 63 * np.pi / 180)
    lightness_term = (lightness_b - lightness_a) / (1 + 0.015 * distance / np.sqrt(20 + distance))
    chroma_term = (chroma_b - chroma_a) / (1 + 0.045 * chroma)
    hue_term = 2 * np.sqrt(chroma_a * chroma_b) * np.sin(hue_change / 2) / (1 + 0.015 * chroma * t)
    rotation = np.pi / 3 * np.exp(-(((hue * (180 / np.pi) - 275) / 25) ** 2))
    interaction = -2 * np.sin(rotation) * _chroma_ratio(chroma) * chroma_term * hue_term
    return np.sqrt(np.maximum(lightness_term**2 + chroma_term**2 + hue_term**2 + interaction, 0))


def _chroma_ratio(chroma: Float32[np.ndarray, " colours"]) -> Float32[np.ndarray, " colours"]:
    power = chroma**7
    return np.sqrt(power / (power + 25**7))


def colourfulness(rgb: UInt8[np.ndarray, "height width 3"]) -> float:
    """Compute the colourfulness: 0 is grey, 15 slightly, 33 moderately, 59 quite and 109 extremely colourful.

    The colourfulness is the standard deviation plus 0.3 times the mean of the opponent colours rg = R − G and
    yb = (R + G) / 2 − B, in 8-bit units. Pixels are processed in chunks and summed as integers. Raise ChromaboxError if
    the image has no pixels.

    Source: Hasler and Süsstrunk 2003, "Measuring colourfulness in natural images", section 5.
    """
    sums, squares = np.zeros(2, np.int64), np.zeros(2, np.int64)
    for (chunk,) in _chunks(rgb):
        red, green, blue = chunk.T.astype(np.int64)
        opponents = np.stack([red - green, red + green - 2 * blue])  # rg and twice yb
        sums += opponents.sum(1)
        squares += (opponents**2).sum(1)
    pixels = rgb.size // 3
    mean = sums / pixels / (1, 2)
    # Python integers cannot overflow.
    totals = zip(squares.tolist(), sums.tolist(), strict=True)
    variance = [(pixels * square - total**2) / pixels**2 for square, total in totals]
    return float(np.sqrt(variance[0] + variance[1] / 4) + 0.3 * np.hypot(*mean))


def to_greyscale(rgb: Rgb) -> Rgb:
    """Return the greyscale image (a* = b* = 0) with the same lightness L*, rounded to 8-bit sRGB.

    At a* = b* = 0, linear red, green and blue all equal the relative luminance Y (IEC 61966-2-1, equations for D65).
    Pixels are processed in chunks. Grey pixels are unchanged. Raise ChromaboxError if the image has no pixels.
    """
    values = np.arange(256) / 255
    # Linear values of the 8-bit levels, and of the values halfway between two levels. A search in the latter rounds to
    # the nearest level.
    linear, midpoints = (
        np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
        for value in (values, (values[1:] + values[:-1]) / 2)
    )
    luminance_weights = np.array([0.2126, 0.7152, 0.0722])
    grey = [np.searchsorted(midpoints, linear[chunk] @ luminance_weights).astype(np.uint8) for (chunk,) in _chunks(rgb)]
    return np.repeat(np.concatenate(grey)[:, None], 3, axis=1).reshape(rgb.shape)


class Baseline(NamedTuple):
    """Labels that a baseline predicts for the test pixels, their accuracy in [0, 1], and the loss.

    The loss is the mean cross-entropy per pixel in nats. The predicted probabilities are class frequencies in the
    training split, with 1 added to every count.
    """

    labels: UInt8[np.ndarray, "..."]
    accuracy: float
    loss: float


def grey_lookup_baseline(
    train_grey: Labels, train_labels: Labels, test_grey: Labels, test_labels: Labels, num_classes: int
) -> Baseline:
    """Predict, for every pixel, the most frequent colour of the training pixels with the same grey value.

    ``train_grey`` and ``test_grey`` are sums R + G + B in [0, 765]. ``train_labels`` and ``test_labels`` are palette
    indices below ``num_classes``. The prediction for a grey value without training pixels is the most frequent colour
    of all training pixels. If all grey values are equal, this colour is the prediction for every pixel. Ties go to the
    lowest index. Raise ChromaboxError if shapes differ, a value is outside its range, or there are no pixels.
    """
    train_counts = _joint_histogram(train_grey, train_labels, NUM_GREY_SUMS, num_classes)
    grey_counts = train_counts.sum(1)
    lookup = np.where(grey_counts > 0, train_counts.argmax(1), train_counts.sum(0).argmax()).astype(np.uint8)
    nats: Float64[np.ndarray, "greys colours"] = -np.log((train_counts + 1) / (grey_counts[:, None] + num_classes))
    test_counts = _joint_histogram(test_grey, test_labels, NUM_GREY_SUMS, num_classes)
    labels = lookup[test_grey]
    return Baseline(labels, accuracy(labels, test_labels), float((nats * test_counts).sum() / test_labels.size))


def _joint_histogram(rows: Labels, columns: Labels, height: int, width: int) -> Int64[np.ndarray, "{height} {width}"]:
    """Count how often each pair of values occurs. Chunks of pixels avoid a 64-bit copy of all pixels."""
    _check_pair(rows, columns)
    for values, upper in ((rows, height), (columns, width)):
        if values.min() < 0 or values.max() >= upper:
            raise ChromaboxError(f"values range from {values.min()} to {values.max()}: expected 0 to {upper - 1}")
    counts = np.zeros(height * width, np.int64)
    rows, columns = rows.reshape(-1), columns.reshape(-1)
    for start in range(0, rows.size, CHUNK_PIXELS):
        chunk = slice(start, start + CHUNK_PIXELS)
        counts += np.bincount(rows[chunk].astype(np.int64) * width + columns[chunk], minlength=height * width)
    return counts.reshape(height, width)


def _chunks(first: Rgb, *others: Rgb) -> Iterator[tuple[UInt8[np.ndarray, "pixels 3"], ...]]:
    """Yield corresponding chunks of pixels of all images."""
    for rgb in (first, *others):
        _check_pair(first, rgb)
    flat = [rgb.reshape(-1, 3) for rgb in (first, *others)]
    for start in range(0, len(flat[0]), CHUNK_PIXELS):
        yield tuple(rgb[start : start + CHUNK_PIXELS] for rgb in flat)


def _check_pair(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ChromaboxError(f"arrays of shapes {list(a.shape)} and {list(b.shape)}: expected equal shapes")
    if not a.size:
        raise ChromaboxError("no pixels: expected at least one")
