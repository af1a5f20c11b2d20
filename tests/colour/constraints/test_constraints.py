"""Tests of colour constraints at every pixel.

Expected CIELAB comes from scikit-image; distances and nearest colours come from NumPy.
"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import log_softmax
from skimage import data
from skimage.color import rgb2lab

from chromabox.colour.chroma.bins import fit_bins
from chromabox.colour.chroma.distribution import ChromaDistribution
from chromabox.colour.chroma.lab import rgb_to_lab
from chromabox.colour.chroma.recolour import apply_chroma, downsample
from chromabox.colour.constraints.constraints import (
    COLOUR_RADIUS,
    IMAGE_PALETTE_SIZE,
    ColourConstraints,
    ColourPrediction,
    apply_constraints,
    palette_from_image_or_file,
)
from chromabox.colour.constraints.hints import Hints, hints_from_pixels
from chromabox.colour.palette.palette import Palette
from chromabox.errors import ChromaboxError, UsageError

Colours = list[tuple[int, int, int]]
RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 128, 0), (0, 0, 255), (128, 128, 128)
SKIN, TEAL = (224, 160, 128), (0, 128, 128)

colours = st.tuples(*[st.integers(0, 255)] * 3)
several = st.lists(colours, min_size=1, max_size=4)
seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 7)
full_sides = st.integers(1, 30)


def bins() -> np.ndarray:
    """Return the centres of the bins that random colours use."""
    rgb = np.random.default_rng(0).integers(0, 256, (10_000, 3), np.uint8)
    return fit_bins([rgb_to_lab(rgb)[:, 1:]], 15.0).centres


BINS = bins()


def make_distribution(
    logits: np.ndarray, centres: np.ndarray = BINS, lightness: np.ndarray | float = 50
) -> ChromaDistribution:
    """Return a distribution with the given logits [bins, height, width] and lightness [height, width]."""
    lightness_map = np.broadcast_to(np.asarray(lightness, np.float32), logits.shape[1:]).copy()
    return ChromaDistribution(log_softmax(logits, 0).astype(np.float32), centres, lightness_map)


def random_distribution(seed: int, height: int, width: int) -> ChromaDistribution:
    """Return a confident random distribution."""
    random = np.random.default_rng(seed)
    logits = 4 * random.standard_normal((len(BINS), height, width))
    return make_distribution(logits, lightness=100 * random.random((height, width)))


def photograph_distribution(rgb: np.ndarray, side: int = 40) -> ChromaDistribution:
    """Return a distribution around the slightly blurred colours of a photograph."""
    lab = rgb2lab(rgb).astype(np.float32)
    height, width = (round(edge * side / min(rgb.shape[:2])) for edge in rgb.shape[:2])
    light, *chroma = (downsample(np.ascontiguousarray(plane), height, width) for plane in np.moveaxis(lab, -1, 0))
    squared_distance = ((BINS[:, :, None, None] - np.stack(chroma)) ** 2).sum(1)
    return make_distribution(-squared_distance / (2 * 8.0**2), lightness=light)


def chroma_of(rgb: np.ndarray | Colours) -> np.ndarray:
    return rgb2lab(np.array(rgb, np.uint8).reshape(1, -1, 3))[0, :, 1:]


def apply_hook(prediction: ColourPrediction, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Apply the pixel rules to random full-size chroma, three rows at a time."""
    chroma = np.random.default_rng(seed).uniform(-90, 90, (*size, 2)).astype(np.float32)
    assert prediction.chroma_hook is not None
    bands = [slice(top, min(top + 3, size[0])) for top in range(0, size[0], 3)]
    return np.concatenate([prediction.chroma_hook(chroma[band], band) for band in bands])


def dots(size: tuple[int, int], painted: dict[tuple[int, int], tuple[int, int, int]]) -> Hints:
    pixels, mask = np.zeros((*size, 3), np.uint8), np.zeros(size, bool)
    for position, colour in painted.items():
        pixels[position], mask[position] = colour, True
    return hints_from_pixels(pixels, mask, size)


def distances(chroma: np.ndarray, references: np.ndarray) -> np.ndarray:
    return np.linalg.norm(chroma[..., None, :] - references, axis=-1)


def test_without_constraints_chroma_is_the_model_prediction() -> None:
    distribution = random_distribution(1, 5, 6)
    prediction = apply_constraints(distribution, ColourConstraints(), 0.4, (20, 24))
    chroma = distribution.chroma(0.4)
    np.testing.assert_array_equal(prediction.chroma, chroma)
    np.testing.assert_array_equal(prediction.confidence, distribution.confidence(chroma))
    assert prediction.chroma_hook is None
    assert prediction.palette is None


@settings(max_examples=60, deadline=None)
@given(seeds, sides, sides, full_sides, full_sides, st.integers(2, 12), several, several, st.booleans(), st.booleans())
def test_with_a_palette_only_its_colours_occur(
    seed: int,
    height: int,
    width: int,
    full_height: int,
    full_width: int,
    count: int,
    allowed: Colours,
    banned: Colours,
    has_allowed: bool,
    has_banned: bool,
) -> None:
    palette = Palette(np.random.default_rng(seed).integers(0, 256, (count, 3)).astype(np.float32) / 256, "p")
    arguments = palette, tuple(allowed) if has_allowed else (), tuple(banned) if has_banned else ()
    lab = rgb2lab(palette.rgb[None])[0]
    allowed_indices, banned_indices = (
        {
            int(np.linalg.norm(lab - rgb2lab(np.array(colour, np.uint8) / 255.0), axis=1).argmin())
            for colour in colours_rgb
        }
        for colours_rgb in (allowed, banned)
    )
    remaining = (allowed_indices if has_allowed else set(range(count))) - (banned_indices if has_banned else set())
    if not remaining:
        with pytest.raises(UsageError, match=f"^ban: all {'allowed' if has_allowed else 'palette'} colours are banned"):
            ColourConstraints(*arguments)
        return
    prediction = apply_constraints(
        random_distribution(seed, height, width), ColourConstraints(*arguments), 0.4, (full_height, full_width)
    )
    assert prediction.palette is not None
    assert {tuple(colour) for colour in prediction.palette.tolist()} == {
        tuple(colour) for colour in palette.rgb[sorted(remaining)].tolist()
    }
    result = apply_hook(prediction, (full_height, full_width), seed)
    assert distances(result, lab[sorted(remaining), 1:]).min(-1).max() < 0.03
    map_chroma = {tuple(pair) for pair in prediction.chroma.reshape(-1, 2).tolist()}
    assert {tuple(pair) for pair in result.reshape(-1, 2).tolist()} <= map_chroma


def test_single_allowed_colour_is_used_everywhere() -> None:
    result = apply_hook(
        apply_constraints(random_distribution(3, 4, 4), ColourConstraints(allowed=(TEAL,)), 0.4, (9, 9)), (9, 9)
    )
    np.testing.assert_allclose(result.reshape(-1, 2), chroma_of([TEAL]).repeat(81, 0), atol=0.02)


def test_palette_decoding_does_not_depend_on_temperature() -> None:
    constraints = ColourConstraints(allowed=(RED, GREEN, BLUE))
    maps = [
        apply_constraints(random_distribution(4, 6, 6), constraints, temperature, (6, 6)).chroma
        for temperature in (0.0, 1.0)
    ]
    np.testing.assert_array_equal(*maps)


@settings(max_examples=60, deadline=None)
@given(seeds, sides, sides, full_sides, full_sides, several, st.sampled_from([0.0, 0.4, 1.0]))
def test_no_pixel_is_within_radius_of_a_banned_colour(
    seed: int, height: int, width: int, full_height: int, full_width: int, banned: Colours, temperature: float
) -> None:
    prediction = apply_constraints(
        random_distribution(seed, height, width),
        ColourConstraints(banned=tuple(banned)),
        temperature,
        (full_height, full_width),
    )
    banned_chroma = chroma_of(banned)
    # The white point of scikit-image differs in the fifth digit, which is 0.02 of chroma.
    result = apply_hook(prediction, (full_height, full_width), seed)
    assert distances(result, banned_chroma).min() >= COLOUR_RADIUS - 0.02
    assert distances(prediction.chroma, banned_chroma).min() >= COLOUR_RADIUS - 0.02
    package_chroma = rgb_to_lab(np.array(banned, np.uint8))[:, 1:]
    assert distances(result, package_chroma).min() >= COLOUR_RADIUS - 1e-3
    is_banned = distances(BINS, package_chroma).min(1) < COLOUR_RADIUS
    assert np.isneginf(prediction.distribution.log_probabilities[is_banned]).all()


def test_banned_grey_excludes_pale_colours() -> None:
    result = apply_hook(
        apply_constraints(random_distribution(5, 4, 4), ColourConstraints(banned=(GREY,)), 0.4, (8, 8)), (8, 8)
    )
    assert np.linalg.norm(result, axis=-1).min() >= COLOUR_RADIUS - 1e-3


@settings(max_examples=40, deadline=None)
@given(seeds, colours, colours, st.booleans())
def test_replaced_colour_becomes_its_replacement(
    seed: int, first: tuple[int, int, int], second: tuple[int, int, int], palette: bool
) -> None:
    old, new = chroma_of([first])[0], chroma_of([second])[0]
    # With a palette the test identifies the replaced colour by its chroma, without one by the distance.
    assume(np.linalg.norm(old - chroma_of([second, GREEN, GREY]), axis=1).min() > 0.1)
    assume(abs(np.linalg.norm(old - new) - COLOUR_RADIUS) > 0.05)
    allowed = (first, second, GREEN, GREY) if palette else ()
    distribution = random_distribution(seed, 5, 5)
    if not palette and np.linalg.norm(old - new) < COLOUR_RADIUS:
        with pytest.raises(UsageError, match="is within"):
            ColourConstraints(replacements=((first, second),))
        return
    constraints = ColourConstraints(allowed=allowed, replacements=((first, second),))
    prediction = apply_constraints(distribution, constraints, 0.0, (10, 10))
    plain = apply_constraints(distribution, ColourConstraints(allowed=allowed), 0.0, (10, 10)).chroma
    if palette:
        is_replaced = distances(plain, old[None])[..., 0] < 0.03
    else:
        is_replaced = distances(plain, old[None])[..., 0] < COLOUR_RADIUS - 0.02
        assert distances(apply_hook(prediction, (10, 10), seed), old[None]).min() >= COLOUR_RADIUS - 0.02
    assert distances(prediction.chroma[is_replaced], new[None]).max(initial=0) < 0.03
    rest = distances(plain, old[None])[..., 0] > COLOUR_RADIUS + 0.02
    np.testing.assert_array_equal(prediction.chroma[rest], plain[rest])


def test_replacement_overrides_a_ban_of_the_same_colour() -> None:
    distribution = make_distribution(np.zeros((1, 2, 2)), np.array([[80, 67]], np.float32))
    for allowed in ((), (RED, BLUE, GREEN)):
        constraints = ColourConstraints(allowed=allowed, banned=(RED,), replacements=((RED, BLUE),))
        np.testing.assert_allclose(
            apply_constraints(distribution, constraints, 0.4, (4, 4)).chroma[0, 0], chroma_of([BLUE])[0], atol=0.02
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"replacements": ((RED, (250, 5, 5)),)}, "^replace #ff0000=#fa0505: #fa0505 is within a distance of 20"),
        ({"replacements": ((RED, RED),)}, "^replace #ff0000=#ff0000: "),
        (
            {"replacements": ((RED, BLUE),), "banned": (BLUE,)},
            "^replace #ff0000=#0000ff: .*replaced or banned",
        ),
        ({"allowed": (RED,), "banned": (RED,)}, "^ban: all allowed colours are banned"),
    ],
)
def test_contradictory_constraints_are_rejected(arguments: dict[str, tuple], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ColourConstraints(**arguments)


def test_banning_all_bins_is_rejected() -> None:
    distribution = make_distribution(np.zeros((2, 2, 2)), np.array([[80, 67], [75, 60]], np.float32), 1)
    with pytest.raises(UsageError, match=r"^ban: all colours of the model are banned"):
        apply_constraints(distribution, ColourConstraints(banned=(RED,)), 0.4, (4, 4))


@settings(max_examples=40, deadline=None)
@given(seeds, sides, sides, full_sides, full_sides, several, st.sampled_from(["", "palette", "ban", "grey"]))
def test_painted_pixels_have_the_chroma_of_their_hints(
    seed: int, height: int, width: int, full_height: int, full_width: int, painted: Colours, constraint: str
) -> None:
    random = np.random.default_rng(seed)
    positions = {(int(random.integers(full_height)), int(random.integers(full_width))): colour for colour in painted}
    palette = [(int(r), int(g), int(b)) for r, g, b in random.integers(0, 256, (5, 3))]
    constraints = ColourConstraints(
        allowed=tuple(palette) if constraint == "palette" else (),
        banned=tuple(painted) if constraint == "ban" else (),
        hints=dots((full_height, full_width), positions),
        min_confidence=1.0 if constraint == "grey" else 0.0,
    )
    prediction = apply_constraints(
        random_distribution(seed, height, width), constraints, 0.4, (full_height, full_width)
    )
    result = apply_hook(prediction, (full_height, full_width), seed)
    for position, colour in positions.items():
        expected = chroma_of([colour])[0]
        if constraint == "palette":
            lab = rgb2lab(np.array([palette], np.uint8))[0]
            distance = np.linalg.norm(lab - rgb2lab(np.array(colour, np.uint8) / 255.0), axis=1)
            expected = lab[np.flatnonzero(distance < distance.min() + 0.05), 1:]
        assert np.linalg.norm(result[position] - expected, axis=-1).min() < 0.03


def test_hints_override_bans_with_and_without_a_palette() -> None:
    size = (60, 60)
    hints = dots(size, {(30, 30): GREEN})
    logits = np.zeros((len(BINS), 6, 6))
    logits[np.linalg.norm(BINS, axis=1) < 1] = 9
    grey = make_distribution(logits)
    for allowed in ((), (RED, GREEN, GREY)):
        prediction = apply_constraints(
            grey, ColourConstraints(allowed=allowed, banned=(GREEN,), hints=hints), 0.4, size
        )
        coloured = apply_chroma(
            np.full((*size, 3), 119, np.uint8), prediction.chroma, chroma_hook=prediction.chroma_hook
        )
        # Next to the dot the colour is fully green (chroma 68), not only moved out of the banned zone.
        hue, chroma = hue_of(coloured[31:32, 31:32])
        assert hue == pytest.approx(136, abs=3)
        assert chroma > 68 - COLOUR_RADIUS / 2


def test_pixels_below_min_confidence_stay_grey() -> None:
    logits = np.zeros((len(BINS), 1, 2))
    logits[7, 0, 0] = 20
    distribution = make_distribution(logits)
    prediction = apply_constraints(
        distribution, ColourConstraints(min_confidence=0.5, allowed=(RED, BLUE)), 0.4, (4, 8)
    )
    assert prediction.confidence[0, 1] < 0.5
    plain = apply_constraints(distribution, ColourConstraints(min_confidence=0.5), 0.0, (4, 8))
    result = apply_hook(plain, (4, 8))
    assert (result[:, :3] != 0).any(-1).all()
    assert not result[:, 6:].any()
    assert not apply_hook(prediction, (4, 8))[:, 6:].any()


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_min_confidence_outside_0_to_1_is_rejected(value: float) -> None:
    with pytest.raises(UsageError, match=r"^min_confidence is .* from 0 to 1"):
        ColourConstraints(min_confidence=value)


def hue_of(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return hue in degrees and chroma of 8-bit pixels."""
    lab = rgb2lab(rgb)
    return np.degrees(np.arctan2(lab[..., 2], lab[..., 1])), np.hypot(lab[..., 1], lab[..., 2])


@pytest.mark.parametrize("name", ["astronaut", "chelsea"])
def test_photograph_has_only_the_allowed_hues(name: str) -> None:
    rgb = getattr(data, name)()[::2, ::2]
    prediction = apply_constraints(
        photograph_distribution(rgb), ColourConstraints(allowed=(TEAL, SKIN)), 0.4, rgb.shape[:2]
    )
    result = apply_chroma(rgb, prediction.chroma, chroma_hook=prediction.chroma_hook)
    lightness = rgb2lab(rgb)[..., 0]
    np.testing.assert_allclose(rgb2lab(result)[..., 0], lightness, atol=0.6)
    hue, chroma = hue_of(result)
    allowed_hues, allowed_chroma = hue_of(np.array([[TEAL, SKIN]], np.uint8))
    difference = np.abs((hue[..., None] - allowed_hues[0] + 180) % 360 - 180)
    # With 8 bits the hue of low chroma is inaccurate, and near black and white sRGB has only low chroma.
    has_hue = (chroma > 12) & (lightness > 20)
    assert has_hue.mean() > 0.4
    assert difference[has_hue].min(-1).max() < 4
    # At this lightness both colours are in the sRGB gamut.
    inside = has_hue & (lightness > 50) & (lightness < 60)
    assert np.abs(chroma[inside][:, None] - allowed_chroma[0]).min(-1).max() < 1.5


def test_hint_recolours_only_the_similar_region() -> None:
    rgb = data.coffee()[:, :400]
    wall = dots(rgb.shape[:2], {(60, 30): BLUE})
    plain, hinted = (
        apply_constraints(
            photograph_distribution(rgb), constraints, 0.4, rgb.shape[:2], guide=rgb2lab(rgb)[..., 0].astype(np.float32)
        )
        for constraints in (ColourConstraints(), ColourConstraints(hints=wall))
    )
    before, after = (
        apply_chroma(rgb, prediction.chroma, chroma_hook=prediction.chroma_hook) for prediction in (plain, hinted)
    )
    change = np.linalg.norm(rgb2lab(after)[..., 1:] - rgb2lab(before)[..., 1:], axis=-1)
    assert np.median(change[20:80, 5:60]) > 20
    # The region of the cup and the table below.
    assert np.median(change[200:]) < 2


def test_palette_from_name_file_or_image(tmp_path: Path) -> None:
    assert len(palette_from_image_or_file("cifar24")) == 24
    Image.fromarray(data.chelsea()[::10, ::10]).save(tmp_path / "cat.png")
    assert len(palette_from_image_or_file(tmp_path / "cat.png")) == IMAGE_PALETTE_SIZE
    few = np.array([[RED, GREEN], [BLUE, RED]], np.uint8)
    Image.fromarray(few).resize((40, 40), Image.Resampling.NEAREST).save(tmp_path / "few.PNG")
    assert {tuple(colour) for colour in palette_from_image_or_file(tmp_path / "few.PNG").rgb.tolist()} == {
        RED,
        GREEN,
        BLUE,
    }
    Image.new("RGB", (9, 9)).save(tmp_path / "one.png")
    with pytest.raises(ChromaboxError, match=r"one\.png: has only one colour"):
        palette_from_image_or_file(tmp_path / "one.png")
    with pytest.raises(ChromaboxError, match="unknown palette"):
        palette_from_image_or_file(tmp_path / "palette.txt")
