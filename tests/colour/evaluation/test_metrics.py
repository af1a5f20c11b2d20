"""Metrics against scikit-image, scikit-learn and hand calculations."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import gaussian_filter
from skimage import data
from skimage.color import deltaE_ciede2000, lab2rgb, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, log_loss

from chromabox.colour.evaluation import metrics
from chromabox.errors import ChromaboxError

RNG = np.random.default_rng(11)
A, B = RNG.integers(0, 256, (2, 4, 33, 29, 3), dtype=np.uint8)

LABELS = hnp.arrays(np.uint8, (2, 60), elements=st.integers(0, 4))


@settings(max_examples=40, deadline=None)
@given(pair=LABELS)
def test_label_metrics_equal_scikit_learn(pair):
    labels, truth = pair
    confusion = metrics.confusion_matrix(labels, truth, 5)
    np.testing.assert_array_equal(confusion, confusion_matrix(truth, labels, labels=range(5)))
    assert metrics.accuracy(labels, truth) == accuracy_score(truth, labels)
    # scikit-learn warns about predicted classes that never occur, therefore recall is computed for each class.
    recall = [accuracy_score(truth[truth == k], labels[truth == k]) for k in np.unique(truth)]
    assert metrics.balanced_accuracy(confusion) == pytest.approx(np.mean(recall))


def test_balanced_accuracy_equals_scikit_learn():
    truth = np.arange(300) % 5
    labels = np.where(RNG.random(300) < 0.5, truth, RNG.integers(0, 5, 300))
    expected = balanced_accuracy_score(truth, labels)
    assert metrics.balanced_accuracy(metrics.confusion_matrix(labels, truth, 5)) == pytest.approx(expected)


def test_balanced_accuracy_of_empty_matrix_is_nan():
    assert np.isnan(metrics.balanced_accuracy(np.zeros((3, 3), np.int64)))


def test_psnr_equals_scikit_image(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK_PIXELS", 1000)
    assert metrics.psnr(A, B) == pytest.approx(peak_signal_noise_ratio(A, B, data_range=255), rel=1e-12)
    assert metrics.psnr(A, A) == float("inf")
    black = np.zeros((2, 2, 3), np.uint8)
    assert metrics.psnr(black, black + 255) == 0


def test_delta_e_equals_scikit_image_in_float64(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK_PIXELS", 1000)
    expected = deltaE_ciede2000(rgb2lab(A / 255), rgb2lab(B / 255)).mean()
    assert metrics.delta_e(A, B) == pytest.approx(expected, rel=1e-5)
    assert metrics.delta_e(A, A) == 0


def test_delta_e_of_similar_and_grey_colours_equals_scikit_image():
    similar = np.clip(A.astype(int) + RNG.integers(-2, 3, A.shape), 0, 255).astype(np.uint8)
    grey = np.repeat(A[..., :1], 3, -1)
    for other in (similar, grey):
        expected = deltaE_ciede2000(rgb2lab(A / 255), rgb2lab(other / 255)).mean()
        assert metrics.delta_e(A, other) == pytest.approx(expected, rel=1e-4)


# Pairs of colours and their difference, from table 1 of Sharma, Wu and Dalal 2005.
CIEDE2000_PAIRS = [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, 3.1571, -77.2803), (50, 0, -82.7485), 2.8615),
    ((50, 2.8361, -74.02), (50, 0, -82.7485), 3.4412),
    ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1),
    ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, -1, 2), (50, 0, 0), 2.3669),
    ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
    ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
    ((50, -0.001, 2.49), (50, 0.0009, -2.49), 4.8045),
    ((50, -0.001, 2.49), (50, 0.0011, -2.49), 4.7461),
    ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((50, 2.5, 0), (61, -5, 29), 22.8977),
    ((50, 2.5, 0), (56, -27, -3), 31.903),
    ((50, 2.5, 0), (58, 24, 15), 19.4535),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((90.8027, -2.0831, 1.441), (91.1528, -1.6435, 0.0447), 1.4441),
    ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
]


def test_ciede2000_equals_published_values():
    first, second, expected = (np.array(column, np.float32) for column in zip(*CIEDE2000_PAIRS, strict=True))
    np.testing.assert_allclose(metrics.ciede2000(first, second), expected, atol=1.5e-4)
    np.testing.assert_allclose(metrics.ciede2000(second, first), expected, atol=1.5e-4)


def test_ciede2000_equals_scikit_image_for_all_hues_and_grey():
    first, second = (RNG.uniform((0, -90, -90), (100, 90, 90), (2, 5000, 3))).astype(np.float32)
    second[:100, 1:] = 0
    first[50:150, 1:] = 0
    np.testing.assert_allclose(metrics.ciede2000(first, second), deltaE_ciede2000(first, second), rtol=1e-3)
    assert np.abs(metrics.ciede2000(first, first)).max() == 0


def test_colourfulness_equals_hand_calculation():
    """Half red (255, 0, 0), half blue (0, 0, 255).

    rg is 255 and 0: mean 127.5, standard deviation 127.5. yb is 127.5 and −255: mean −63.75, standard deviation
    191.25.
    """
    image = np.zeros((4, 6, 3), np.uint8)
    image[:2, :, 0] = image[2:, :, 2] = 255
    expected = np.hypot(127.5, 191.25) + 0.3 * np.hypot(127.5, 63.75)
    assert metrics.colourfulness(image) == pytest.approx(expected, rel=1e-12)
    assert metrics.colourfulness(np.full((3, 3, 3), 77, np.uint8)) == 0


def test_colourfulness_in_chunks_equals_numpy(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK_PIXELS", 1000)
    photograph = data.chelsea()
    red, green, blue = np.moveaxis(photograph.astype(np.float64), -1, 0)
    rg, yb = red - green, (red + green) / 2 - blue
    expected = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    assert metrics.colourfulness(photograph) == pytest.approx(expected, rel=1e-12)


SSIM_OPTIONS = {
    "gaussian_weights": True,
    "sigma": 1.5,
    "use_sample_covariance": False,
    "data_range": 255,
    "channel_axis": 2,
}


@pytest.mark.parametrize("shape", [(11, 11), (11, 40), (64, 30), (81, 37), (53, 101)])
def test_ssim_in_tiles_equals_scikit_image_on_the_whole_image(monkeypatch, shape):
    monkeypatch.setattr(metrics, "CHUNK_PIXELS", 400)  # tiles of 20 × 20 windows
    a = data.chelsea()[: shape[0], : shape[1]]
    b = np.clip(a + RNG.normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    assert metrics.ssim(a, b) == pytest.approx(structural_similarity(a, b, **SSIM_OPTIONS), abs=1e-12)
    assert metrics.ssim(a, a) == 1


def test_ssim_of_flat_and_inverted_images_equals_scikit_image():
    black = np.zeros((30, 40, 3), np.uint8)
    noise = RNG.integers(0, 256, black.shape, dtype=np.uint8)
    for a, b in ((black, black + 255), (black, noise), (noise, 255 - noise)):
        assert metrics.ssim(a, b) == pytest.approx(structural_similarity(a, b, **SSIM_OPTIONS), abs=1e-12)
    assert metrics.ssim(noise, 255 - noise) < -0.5


def test_memory_of_ssim_and_lab_differences_does_not_depend_on_the_image_size():
    """Peak of the memory that NumPy allocates, for images of 0.15 and 0.6 megapixels."""
    peaks = []
    for height, width in ((300, 500), (100, 6000)):
        image = np.zeros((height, width, 3), np.uint8)
        other = image + np.uint8(1)
        tracemalloc.start()
        metrics.ssim(image, other)
        metrics.lab_differences(image, other)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 20e6
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize("shape", [(1, 1), (10, 10), (3, 50), (40, 2)])
def test_ssim_of_small_images_equals_formula_with_symmetric_padding(shape):
    """Compare with Wang et al. 2004, equation 13, at every pixel, with SciPy's Gaussian and symmetric padding."""
    a, b = RNG.integers(0, 256, (2, *shape, 3), dtype=np.uint8).astype(np.float64)

    def blur(plane):
        return gaussian_filter(plane, (1.5, 1.5, 0), radius=(5, 5, 0), mode="reflect")

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blur(a), blur(b)
    covariance = blur(a * b) - mean_a * mean_b
    variances = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
    expected = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))
    assert metrics.ssim(a.astype(np.uint8), b.astype(np.uint8)) == pytest.approx(expected.mean(), abs=1e-9)


def test_lab_differences_equal_scikit_image(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK_PIXELS", 1000)
    first, second = metrics.lab_differences(A, B, A)
    expected = np.abs(rgb2lab(A / 255) - rgb2lab(B / 255))[..., 0].mean()
    assert first[1] == pytest.approx(expected, rel=1e-5)
    assert first[0] == metrics.delta_e(A, B)
    assert (second[0], second[1]) == (0, 0)


def test_to_greyscale_equals_scikit_image_with_zero_a_and_b(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK_PIXELS", 1000)
    lab = rgb2lab(A)
    expected = lab2rgb(lab * [1, 0, 0]) * 255
    grey = metrics.to_greyscale(A)
    # The tolerance covers rounding and the last digits of two published matrices.
    assert np.abs(grey - expected).max() < 0.55
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    np.testing.assert_array_equal(metrics.to_greyscale(greys), greys)


def test_baseline_with_equal_grey_values_is_the_most_frequent_colour():
    train, test = np.array([2, 2, 2, 0]), np.array([[2, 0], [1, 2]])
    baseline = metrics.grey_lookup_baseline(0 * train, train, 0 * test, test, 3)
    assert baseline.labels.tolist() == [[2, 2], [2, 2]]
    assert baseline.accuracy == 0.5
    assert baseline.loss == pytest.approx(-np.mean(np.log([4 / 7, 2 / 7, 1 / 7, 4 / 7])))


def test_grey_lookup_baseline_equals_hand_calculation():
    train_grey, train_labels = np.array([0, 0, 0, 765, 765]), np.array([1, 1, 2, 0, 0])
    test_grey, test_labels = np.array([[0, 765, 300]]), np.array([[2, 0, 1]])
    baseline = metrics.grey_lookup_baseline(train_grey, train_labels, test_grey, test_labels, 3)
    assert baseline.labels.tolist() == [[1, 0, 0]]  # 300 never occurs; colours 0 and 1 are equally frequent
    assert baseline.accuracy == pytest.approx(1 / 3)
    assert baseline.loss == pytest.approx(-np.mean(np.log([2 / 6, 3 / 5, 1 / 3])))


def test_grey_lookup_baseline_equals_scikit_learn(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK_PIXELS", 100)
    train_labels, test_labels = RNG.integers(0, 4, (2, 1000))
    train_grey, test_grey = train_labels * 9 + RNG.integers(0, 20, 1000), test_labels * 9 + RNG.integers(0, 20, 1000)
    baseline = metrics.grey_lookup_baseline(train_grey, train_labels, test_grey, test_labels, 4)
    counts = np.ones((766, 4))
    np.add.at(counts, (train_grey, train_labels), 1)
    probability = (counts / counts.sum(1, keepdims=True))[test_grey]
    assert baseline.loss == pytest.approx(log_loss(test_labels, probability, labels=range(4)))
    assert baseline.accuracy == accuracy_score(test_labels, probability.argmax(1))


ONE_LABEL, TWO_LABELS, NO_LABELS = np.zeros(1, np.uint8), np.zeros(2, np.uint8), np.zeros(0, np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.accuracy(ONE_LABEL, TWO_LABELS), r"shapes \[1\] and \[2\]"),
        (lambda: metrics.accuracy(NO_LABELS, NO_LABELS), "no pixels"),
        (lambda: metrics.confusion_matrix(TWO_LABELS, TWO_LABELS + 3, 3), "values range from 3 to 3: expected 0 to 2"),
        (lambda: metrics.psnr(A, A[:1]), "expected equal shapes"),
        (lambda: metrics.delta_e(A[:0], A[:0]), "no pixels"),
        (lambda: metrics.lab_differences(A, A, A[:1]), "expected equal shapes"),
        (lambda: metrics.ssim(A[0], A[0, 1:]), "expected equal shapes"),
        (lambda: metrics.ssim(A[0, :0], A[0, :0]), "no pixels"),
        (lambda: metrics.colourfulness(A[0, :0]), "no pixels"),
        (lambda: metrics.grey_lookup_baseline(NO_LABELS, NO_LABELS, TWO_LABELS, TWO_LABELS, 3), "no pixels"),
        (
            lambda: metrics.grey_lookup_baseline(np.array([766]), ONE_LABEL, TWO_LABELS, TWO_LABELS, 3),
            "values range from 766 to 766: expected 0 to 765",
        ),
    ],
)
def test_invalid_arrays_are_rejected(call, message):
    with pytest.raises(ChromaboxError, match=message):
        call()
