"""Numbers that say how good a colouring is, and what no network would already reach.

Pure functions on numpy arrays. Labels are palette indices, pictures 8-bit RGB with the channels last. PSNR
and accuracy favour dull, cautious colours: read them beside colourfulness, ΔE and balanced accuracy.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64, Integer, UInt8

from chromabox.errors import ChromaboxError

#: So few that what is computed of them stays in the processor's cache: CIEDE2000 is twice as fast as with 2¹⁸.
CHUNK_PIXELS = 1 << 15
NUM_GREY_SUMS = 3 * 255 + 1
#: Pixels to each side of the middle of the window of structural similarity.
SSIM_RADIUS = 5
#: Relative luminance of linear sRGB (IEC 61966-2-1).
REC709_WEIGHTS = np.array([0.2126, 0.7152, 0.0722])


def accuracy(labels: Integer[np.ndarray, "..."], truth: Integer[np.ndarray, "..."]) -> float:
    """Share of pixels, 0 to 1, whose label is the true one. Raises ChromaboxError unless the shapes agree."""
    _check_pair(labels, truth)
    return np.count_nonzero(labels == truth) / labels.size


def confusion_matrix(
    labels: Integer[np.ndarray, "..."], truth: Integer[np.ndarray, "..."], num_classes: int
) -> Int64[np.ndarray, "truth prediction"]:
    """Number of pixels for each pair of true (row) and predicted (column) colour among k.

    Raises ChromaboxError unless the shapes agree and all labels are 0 to k − 1.
    """
    _check_pair(labels, truth)
    _check_range("label", labels, num_classes)
    _check_range("label", truth, num_classes)
    return _joint_histogram(truth, labels, num_classes, num_classes)


def balanced_accuracy(confusion: Int64[np.ndarray, "truth prediction"]) -> float:
    """Mean over the colours that occur of the share of their pixels found, 0 to 1.

    Every colour counts the same however rare it is: Brodersen et al. 2010, "The balanced accuracy and its
    posterior distribution", section 2, for more than two classes. NaN where nothing occurs.
    """
    occurs = confusion.sum(1)
    recall = confusion.diagonal()[occurs > 0] / occurs[occurs > 0]
    return float(recall.mean()) if recall.size else float("nan")


def psnr(rgb_a: UInt8[np.ndarray, "... 3"], rgb_b: UInt8[np.ndarray, "... 3"]) -> float:
    """Peak signal-to-noise ratio in dB over all values, peak 255: 10·log10(255² / mean squared error).

    One mean over all pictures given, not a mean of ratios. Infinite for equal pictures. Raises ChromaboxError
    unless the shapes agree.
    """
    squares = 0
    for a, b in _chunks(rgb_a, rgb_b):
        difference = (a.astype(np.int32) - b).ravel()
        squares += int(np.dot(difference, difference.astype(np.int64)))
    return float(10 * np.log10(255**2 * rgb_a.size / squares)) if squares else float("inf")


def ssim(rgb_a: UInt8[np.ndarray, "_ _ 3"], rgb_b: UInt8[np.ndarray, "_ _ 3"]) -> float:
    """Mean structural similarity of two pictures, −1 to 1, 1 for equal ones: the mean over red, green and blue.

    Wang, Bovik, Sheikh and Simoncelli 2004, "Image quality assessment: from error visibility to structural
    similarity", section III.B and C: Gaussian window of 11 × 11 with standard deviation 1.5, K1 = 0.01, K2 = 0.03,
    range 255, population covariance, mean over the windows that lie wholly inside; in scikit-image's implementation. A
    picture with a side below 11 has no such window: both are then mirrored outwards by 5 pixels, so that every
    pixel has one. In bands of rows: memory does not grow with the pictures. Raises ChromaboxError unless the shapes
    agree.
    """
    from skimage.metrics import structural_similarity

    _check_pair(rgb_a, rgb_b)
    if min(rgb_a.shape[:2]) <= 2 * SSIM_RADIUS:
        around = ((SSIM_RADIUS, SSIM_RADIUS), (SSIM_RADIUS, SSIM_RADIUS), (0, 0))
        rgb_a, rgb_b = (np.pad(rgb, around, mode="symmetric") for rgb in (rgb_a, rgb_b))
    inside = rgb_a.shape[0] - 2 * SSIM_RADIUS
    rows = max(CHUNK_PIXELS // rgb_a.shape[1], 4 * SSIM_RADIUS)
    total = 0.0
    for top in range(0, inside, rows):
        band = slice(top, min(top + rows, inside) + 2 * SSIM_RADIUS)
        mean = structural_similarity(
            rgb_a[band],
            rgb_b[band],
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
            channel_axis=2,
        )
        total += float(mean) * (band.stop - band.start - 2 * SSIM_RADIUS)
    return total / inside


def delta_e(rgb_a: UInt8[np.ndarray, "... 3"], rgb_b: UInt8[np.ndarray, "... 3"]) -> float:
    """Mean colour difference CIEDE2000 of corresponding pixels; about 1 is just noticeable.

    The first of ``lab_differences``.
    """
    return lab_differences(rgb_a, rgb_b)[0].delta_e


@dataclass(frozen=True)
class LabDifference:
    """How far apart two pictures are in CIELab, as means over the pixels."""

    delta_e: float
    """CIEDE2000; about 1 is just noticeable."""
    delta_lightness: float
    """The difference of L* without its sign, 0 to 100."""


def lab_differences(rgb: UInt8[np.ndarray, "... 3"], *others: UInt8[np.ndarray, "... 3"]) -> list[LabDifference]:
    """The difference of each of the other pictures to the first.

    8-bit sRGB, white point D65, 2° observer, k_L = k_C = k_H = 1: Sharma, Wu and Dalal 2005, "The CIEDE2000
    color-difference formula", in scikit-image's implementation. In chunks: memory does not grow with the
    pictures. Raises ChromaboxError unless the shapes agree.
    """
    from skimage.color import deltaE_ciede2000, rgb2lab

    sums = np.zeros((len(others), 2))
    for parts in _chunks(rgb, *others):
        lab, *other_labs = (rgb2lab(part.astype(np.float32) / np.float32(255)) for part in parts)
        for index, other in enumerate(other_labs):
            difference: Float[np.ndarray, pixels] = deltaE_ciede2000(lab, other)
            lightness = np.abs(lab[:, 0] - other[:, 0])
            sums[index] += difference.sum(dtype=np.float64), lightness.sum(dtype=np.float64)
    return [LabDifference(float(total), float(lightness)) for total, lightness in sums / (rgb.size // 3)]


def colourfulness(rgb: UInt8[np.ndarray, "height width 3"]) -> float:
    """Colourfulness of one picture: 0 is grey, 15 slightly, 33 moderately, 59 quite, 109 extremely colourful.

    Hasler and Süsstrunk 2003, "Measuring colourfulness in natural images", section 5: the spread plus 0.3
    times the mean of the opponent colours rg = R − G and yb = (R + G) / 2 − B, in 8-bit units. In chunks, and in whole
    numbers until the end. Raises ChromaboxError for a picture without pixels.
    """
    if not rgb.size:
        raise ChromaboxError("colourfulness: the picture has no pixels; it takes at least one")
    sums, squares = np.zeros(2, np.int64), np.zeros(2, np.int64)
    for (part,) in _chunks(rgb):
        red, green, blue = part.T.astype(np.int64)
        for index, opponent in enumerate((red - green, red + green - 2 * blue)):  # The second is twice yb.
            sums[index] += opponent.sum()
            squares[index] += np.dot(opponent, opponent)
    pixels = rgb.size // 3
    mean = sums / pixels / (1, 2)
    variance = [
        (pixels * int(square) - int(total) ** 2) / pixels**2 for square, total in zip(squares, sums, strict=True)
    ]
    return float(np.sqrt(variance[0] + variance[1] / 4) + 0.3 * np.hypot(*mean))


def to_greyscale(rgb: UInt8[np.ndarray, "... 3"]) -> UInt8[np.ndarray, "... 3"]:
    """The grey picture of the same lightness L*: a* = b* = 0, rounded to 8-bit sRGB.

    At a* = b* = 0 linear red, green and blue all equal the relative luminance Y (IEC 61966-2-1, equations for D65).
    In chunks; grey pixels stay as they are.
    """
    value = np.arange(256) / 255
    linear = _srgb_to_linear(value)
    # Halfway, in sRGB, between neighbouring greys: Y belongs to the grey between whose borders it lies.
    borders = _srgb_to_linear((value[1:] + value[:-1]) / 2)
    grey = np.empty((rgb.size // 3, 1), np.uint8)
    for start in range(0, len(grey), CHUNK_PIXELS):
        part = slice(start, start + CHUNK_PIXELS)
        grey[part, 0] = np.searchsorted(borders, linear[rgb.reshape(-1, 3)[part]] @ REC709_WEIGHTS)
    return np.repeat(grey, 3, axis=1).reshape(rgb.shape)


def _srgb_to_linear(value: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Linear light of sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


@dataclass(frozen=True, eq=False)
class Baseline:
    """What a guess without a network reaches on the test pixels."""

    labels: UInt8[np.ndarray, "..."]
    """The predicted colours, in the test labels' shape."""
    accuracy: float
    """Share of pixels, 0 to 1."""
    loss: float
    """Cross-entropy in nats a pixel of the class frequencies on train, one added to every count."""


def majority_baseline(
    train_labels: Integer[np.ndarray, "..."], test_labels: Integer[np.ndarray, "..."], num_classes: int
) -> Baseline:
    """The training pixels' most frequent colour for every pixel; on a tie the lower index.

    Raises ChromaboxError for labels that are not 0 to k − 1 and for no pixels.
    """
    train_grey, test_grey = np.zeros_like(train_labels), np.zeros_like(test_labels)
    return grey_lookup_baseline(train_grey, train_labels, test_grey, test_labels, num_classes)


def grey_lookup_baseline(
    train_grey: Integer[np.ndarray, "..."],
    train_labels: Integer[np.ndarray, "..."],
    test_grey: Integer[np.ndarray, "..."],
    test_labels: Integer[np.ndarray, "..."],
    num_classes: int,
) -> Baseline:
    """For every pixel the most frequent colour among training pixels of the same grey value.

    grey: the whole sum R + G + B, 0 to 765. A grey value that no training pixel has gets the most frequent
    colour of all. On a tie the lower index. Raises ChromaboxError for shapes that disagree, labels that are
    not 0 to k − 1, other grey values, and no pixels.
    """
    for grey, labels in ((train_grey, train_labels), (test_grey, test_labels)):
        _check_pair(grey, labels)
        _check_range("grey value", grey, NUM_GREY_SUMS)
        _check_range("label", labels, num_classes)
    count = _joint_histogram(train_grey, train_labels, NUM_GREY_SUMS, num_classes)
    seen = count.sum(1)
    choice = np.where(seen > 0, count.argmax(1), count.sum(0).argmax()).astype(np.uint8)
    cost: Float64[np.ndarray, "grey colour"] = -np.log((count + 1) / (seen[:, None] + num_classes))
    occurs = _joint_histogram(test_grey, test_labels, NUM_GREY_SUMS, num_classes)
    hits = int(occurs[np.arange(NUM_GREY_SUMS), choice].sum())
    return Baseline(choice[test_grey], hits / test_labels.size, float((cost * occurs).sum() / test_labels.size))


def _joint_histogram(
    rows: Integer[np.ndarray, "..."], columns: Integer[np.ndarray, "..."], height: int, width: int
) -> Int64[np.ndarray, "{height} {width}"]:
    """How often each pair of values occurs, counted in chunks so that no wide copy of all pixels is made."""
    count = np.zeros(height * width, np.int64)
    rows, columns = rows.reshape(-1), columns.reshape(-1)
    for start in range(0, rows.size, CHUNK_PIXELS):
        part = slice(start, start + CHUNK_PIXELS)
        count += np.bincount(rows[part].astype(np.int64) * width + columns[part], minlength=height * width)
    return count.reshape(height, width)


def _chunks(
    first: UInt8[np.ndarray, "... 3"], *others: UInt8[np.ndarray, "... 3"]
) -> Iterator[tuple[UInt8[np.ndarray, "pixels 3"], ...]]:
    """Corresponding runs of pixels of all the pictures."""
    for other in others:
        _check_pair(first, other)
    flat = [rgb.reshape(-1, 3) for rgb in (first, *others)]
    for start in range(0, len(flat[0]), CHUNK_PIXELS):
        yield tuple(rgb[start : start + CHUNK_PIXELS] for rgb in flat)


def _check_pair(a: np.ndarray, b: np.ndarray) -> None:
    """Refuse what does not correspond pixel by pixel."""
    if a.shape != b.shape:
        raise ChromaboxError(f"shapes {list(a.shape)} and {list(b.shape)}: a comparison takes two of the same shape")
    if not a.size:
        raise ChromaboxError("no pixels: a comparison takes at least one")


def _check_range(name: str, values: Integer[np.ndarray, "..."], upper: int) -> None:
    """Refuse values outside 0 to end − 1."""
    if values.min() < 0 or values.max() >= upper:
        raise ChromaboxError(f"{name}s from {values.min()} to {values.max()}: each is 0 to {upper - 1} here")
