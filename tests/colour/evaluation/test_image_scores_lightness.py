"""Differences of L* by region, compared with scikit-image's `rgb2lab`."""

import numpy as np
import pytest
from skimage.color import rgb2lab

from chromabox.colour.evaluation.image_scores import compare_lightness
from chromabox.errors import ChromaboxError
from chromabox.io.images import ImageData

RNG = np.random.default_rng(4)


def test_differences_are_those_of_scikit_image() -> None:
    before, after = RNG.integers(0, 256, (2, 31, 20, 3), dtype=np.uint8)
    expected = np.abs(rgb2lab(before)[..., 0] - rgb2lab(after)[..., 0])
    change = compare_lightness(ImageData(before), ImageData(after))
    assert change.mean == pytest.approx(expected.mean(), abs=1e-2)
    assert change.maximum == pytest.approx(expected.max(), abs=1e-2)
    bottom_left = expected[21:, :7]
    assert change.regions[2][0] == pytest.approx((bottom_left.mean(), bottom_left.max()), abs=1e-2)
    assert [len(row) for row in change.regions] == [3, 3, 3]


def test_a_change_in_one_region_is_found_there() -> None:
    before = np.full((9, 9, 3), 119, np.uint8)  # L* 50.03
    after = before.copy()
    after[4, 4] = 255
    change = compare_lightness(ImageData(before), ImageData(after))
    assert change.maximum == pytest.approx(49.97, abs=0.01)
    assert change.mean == pytest.approx(49.97 / 81, abs=1e-3)
    assert {peak for row in change.regions for _, peak in row} == {0, change.maximum}
    assert change.regions[1][1][1] == change.maximum


def test_bit_depths_may_differ() -> None:
    before = RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    assert compare_lightness(ImageData(before), ImageData(before.astype(np.uint16) * 257)).maximum < 1e-3


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5, 3), (2, 2, 3)])
def test_small_images_have_fewer_regions(shape: tuple[int, ...]) -> None:
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    change = compare_lightness(ImageData(pixels), ImageData(pixels))
    assert change.mean == change.maximum == 0
    assert sum(len(row) for row in change.regions) == min(3, shape[0]) * min(3, shape[1])


def test_transparent_pixels_are_compared_only_if_both_images_have_alpha() -> None:
    before, after = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    alpha = np.zeros((4, 4), np.uint8)
    alpha[0] = 255
    after[0] = 0
    assert compare_lightness(ImageData(before, alpha), ImageData(after)).maximum == 0
    assert compare_lightness(ImageData(before, alpha), ImageData(after, alpha)).mean == pytest.approx(75)
    with pytest.raises(ChromaboxError, match="a and b: no opaque pixels"):
        compare_lightness(ImageData(before, alpha * 0), ImageData(after), "a and b")


def test_sizes_must_be_equal() -> None:
    images = ImageData(np.zeros((4, 5, 3), np.uint8)), ImageData(np.zeros((5, 4, 3), np.uint8))
    with pytest.raises(ChromaboxError, match=r"a and b have 4 × 5 and 5 × 4 pixels.*expected the same size"):
        compare_lightness(*images, "a and b")
