"""Tests of pixel rules; expected values of interpolation from torch."""

from functools import partial

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from chromabox.colour.chroma.recolour import ChromaHook, resize_planes
from chromabox.colour.constraints.pixel_rules import palette_only

sides = st.integers(1, 9)
full_sides = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)


def apply_in_bands(rule: ChromaHook, chroma: np.ndarray, rows: int) -> np.ndarray:
    """Apply a rule to a whole image, a few rows at a time."""
    bands = [slice(top, min(top + rows, len(chroma))) for top in range(0, len(chroma), rows)]
    return np.concatenate([rule(chroma[band], band) for band in bands])


@settings(max_examples=40, deadline=None)
@given(sides, sides, full_sides, full_sides, seeds)
def test_resized_bands_match_torch(small_height: int, small_width: int, height: int, width: int, seed: int) -> None:
    plane = np.random.default_rng(seed).random((small_height, small_width), np.float32)
    expected = F.interpolate(torch.from_numpy(plane)[None, None], (height, width), mode="bilinear", align_corners=False)
    bands = [
        resize_planes(plane[None], height, width, slice(top, min(top + 7, height)))[0] for top in range(0, height, 7)
    ]
    np.testing.assert_allclose(np.concatenate(bands), expected[0, 0], atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(sides, sides, full_sides, full_sides, seeds)
def test_palette_only_uses_the_nearest_colour_of_the_four_cells_around(
    small_height: int, small_width: int, height: int, width: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    table = random.uniform(-80, 80, (6, 2)).astype(np.float32)
    labels = random.integers(0, 6, (small_height, small_width))
    chroma = random.uniform(-90, 90, (height, width, 2)).astype(np.float32)
    rule = partial(palette_only, image_size=(height, width), labels=labels, label_chroma=table)
    result = apply_in_bands(rule, chroma, 5)
    for y in range(height):
        for x in range(width):
            rows, columns = _cells_around(y, small_height, height), _cells_around(x, small_width, width)
            near = np.unique(labels[np.ix_(rows, columns)])
            [used] = np.flatnonzero((table == result[y, x]).all(-1))
            assert used in near
            distance = ((table - chroma[y, x]) ** 2).sum(-1)
            assert distance[used] <= distance[near].min() + 1e-2


def _cells_around(position: int, small: int, full: int) -> list[int]:
    cell = min(max((position + 0.5) * small / full - 0.5, 0), small - 1)
    return sorted({int(np.floor(cell)), min(int(np.floor(cell)) + 1, small - 1)})


def test_palette_only_adds_no_third_colour_between_two_regions() -> None:
    # Purple, halfway between red and blue in the plane, is in the table and on the map, but not in this region.
    table = np.array([[80, 67], [79, -108], [80, -20]], np.float32)
    labels = np.array([[0, 1, 1, 2]]).repeat(3, 0)
    ramp = np.linspace(0, 1, 32, dtype=np.float32)[None, :, None].repeat(24, 0)
    chroma = (1 - ramp) * table[0] + ramp * table[1]
    rule = partial(palette_only, image_size=(24, 64), labels=labels, label_chroma=table)
    result = apply_in_bands(rule, np.concatenate([chroma, chroma], 1), 4)[:, :40]
    assert not (result == table[2]).all(-1).any()
    assert {tuple(pair) for pair in result.reshape(-1, 2).tolist()} == {tuple(pair) for pair in table[:2].tolist()}
