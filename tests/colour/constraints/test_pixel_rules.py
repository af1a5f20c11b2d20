"""Rules on full-size chroma; torch's interpolation is the measure of geometry."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from chromabox.colour.constraints.pixel_rules import (
    ExcludeZones,
    ExclusionZones,
    GreyBelowConfidence,
    GridMapping,
    HintPixels,
    PaletteOnly,
    RuleChain,
)

sides = st.integers(1, 9)
full_sides = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)


def in_bands(rule: RuleChain, chroma: np.ndarray, rows: int) -> np.ndarray:
    """The rule's result for a whole picture, a few rows at a time."""
    bands = [slice(top, min(top + rows, len(chroma))) for top in range(0, len(chroma), rows)]
    return np.concatenate([rule(chroma[band], band) for band in bands])


@settings(max_examples=40, deadline=None)
@given(sides, sides, full_sides, full_sides, seeds)
def test_bilinear_is_torchs(small_height: int, small_width: int, height: int, width: int, seed: int) -> None:
    plane = np.random.default_rng(seed).random((small_height, small_width), np.float32)
    cells = GridMapping((small_height, small_width), (height, width))
    wanted = F.interpolate(torch.from_numpy(plane)[None, None], (height, width), mode="bilinear", align_corners=False)
    bands = [cells.interpolate(plane, slice(top, min(top + 7, height))) for top in range(0, height, 7)]
    np.testing.assert_allclose(np.concatenate(bands), wanted[0, 0], atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(sides, sides, full_sides, full_sides, seeds)
def test_only_colours_of_the_four_cells_around(
    small_height: int, small_width: int, height: int, width: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    table = random.uniform(-80, 80, (6, 2)).astype(np.float32)
    labels = random.integers(0, 6, (small_height, small_width))
    chroma = random.uniform(-90, 90, (height, width, 2)).astype(np.float32)
    rule = RuleChain((PaletteOnly(GridMapping(labels.shape, (height, width)), labels, table),))
    found = in_bands(rule, chroma, 5)
    for y in range(height):
        for x in range(width):
            rows, columns = _around(y, small_height, height), _around(x, small_width, width)
            near = np.unique(labels[np.ix_(rows, columns)])
            [used] = np.flatnonzero((table == found[y, x]).all(-1))
            assert used in near
            distance = ((table - chroma[y, x]) ** 2).sum(-1)
            assert distance[used] <= distance[near].min() + 1e-2


def _around(place: int, small: int, full: int) -> list[int]:
    at = min(max((place + 0.5) * small / full - 0.5, 0), small - 1)
    return sorted({int(np.floor(at)), min(int(np.floor(at)) + 1, small - 1)})


def test_no_third_colour_between_two_regions() -> None:
    # Halfway between red and blue in the plane lies purple, which is in the table and on the map, but not here.
    table = np.array([[80, 67], [79, -108], [80, -20]], np.float32)
    labels = np.array([[0, 1, 1, 2]]).repeat(3, 0)
    ramp = np.linspace(0, 1, 32, dtype=np.float32)[None, :, None].repeat(24, 0)
    chroma = (1 - ramp) * table[0] + ramp * table[1]
    rule = RuleChain((PaletteOnly(GridMapping((3, 4), (24, 64)), labels, table),))
    found = in_bands(rule, np.concatenate([chroma, chroma], 1), 4)[:, :40]
    assert not (found == table[2]).all(-1).any()
    assert {tuple(pair) for pair in found.reshape(-1, 2).tolist()} == {tuple(pair) for pair in table[:2].tolist()}


def test_discs_are_left_but_where_spared() -> None:
    discs = ExclusionZones(np.array([[10.0, 0.0]]), 20.0)
    spared = np.array([[0.0, 1.0]], np.float32)
    rule = RuleChain((ExcludeZones(GridMapping((1, 2), (1, 8)), discs, spared),))
    found = in_bands(rule, np.tile(np.float32([12, 0]), (1, 8, 1)), 1)
    np.testing.assert_allclose(found[0, :, 0], [30] * 4 + [12] * 4, atol=1e-5)


def test_grey_below_the_least_confidence_and_paint_over_all() -> None:
    unsure = GreyBelowConfidence(GridMapping((1, 2), (2, 2)), np.array([[0.2, 0.5]], np.float32), 0.5)
    numbers = np.array([[0, 0], [2, 0]], np.uint8)
    painted = HintPixels(numbers, np.array([[0, 0], [1, 1], [7, -7]], np.float32))
    found = in_bands(RuleChain((unsure, painted)), np.full((2, 2, 2), 3, np.float32), 1)
    np.testing.assert_array_equal(found, [[[0, 0], [3, 3]], [[7, -7], [3, 3]]])
