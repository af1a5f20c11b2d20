"""A user's wishes, held at every pixel: CIELab by scikit-image, distances and nearest colours in plain numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
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


def bins() -> torch.Tensor:
    """The bins that random colours use."""
    rgb = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 100, 100, 3), np.uint8))
    return torch.from_numpy(fit_bins([rgb_to_lab(rgb)[0, 1:].flatten(1)], 15.0).centres)


BINS = bins()


def opinion_of(seed: int, height: int, width: int) -> ChromaDistribution:
    """A strong opinion without any reason."""
    random = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(len(BINS), height, width, generator=random)
    return ChromaDistribution(logits.log_softmax(0), BINS, 100 * torch.rand(height, width, generator=random))


def photograph_opinion(rgb: np.ndarray, side: int = 40) -> ChromaDistribution:
    """What a net would think that sees a photograph's colours, a little blurred."""
    lab = rgb2lab(rgb).astype(np.float32)
    height, width = (round(edge * side / min(rgb.shape[:2])) for edge in rgb.shape[:2])
    light, *chroma = (downsample(np.ascontiguousarray(plane), height, width) for plane in np.moveaxis(lab, -1, 0))
    distance = (BINS[:, :, None, None] - torch.from_numpy(np.stack(chroma))).square().sum(1)
    return ChromaDistribution((-distance / (2 * 8.0**2)).log_softmax(0), BINS, torch.from_numpy(light))


def chroma_of(rgb: np.ndarray | Colours) -> np.ndarray:
    return rgb2lab(np.array(rgb, np.uint8).reshape(1, -1, 3))[0, :, 1:]


def adjusted(decision: ColourPrediction, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """What the rules make of whatever chroma the way to full size may give, three rows at a time."""
    chroma = np.random.default_rng(seed).uniform(-90, 90, (*size, 2)).astype(np.float32)
    assert decision.chroma_hook is not None
    bands = [slice(top, min(top + 3, size[0])) for top in range(0, size[0], 3)]
    return np.concatenate([decision.chroma_hook(chroma[band], band) for band in bands])


def dots(size: tuple[int, int], painted: dict[tuple[int, int], tuple[int, int, int]]) -> Hints:
    pixels, mask = np.zeros((*size, 3), np.uint8), np.zeros(size, bool)
    for place, colour in painted.items():
        pixels[place], mask[place] = colour, True
    return hints_from_pixels(pixels, mask, size)


def distances(chroma: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.linalg.norm(chroma[..., None, :] - others, axis=-1)


def test_without_wishes_it_is_the_nets_own_chroma() -> None:
    opinion = opinion_of(1, 5, 6)
    decision = apply_constraints(opinion, ColourConstraints(), 0.4, (20, 24))
    chroma = opinion.chroma(0.4)
    np.testing.assert_array_equal(decision.chroma, chroma.permute(1, 2, 0))
    np.testing.assert_array_equal(decision.confidence, opinion.confidence(chroma))
    assert decision.chroma_hook is None
    assert decision.palette is None


@settings(max_examples=60, deadline=None)
@given(seeds, sides, sides, full_sides, full_sides, st.integers(2, 12), several, several, st.booleans(), st.booleans())
def test_with_a_palette_there_are_no_other_colours(
    seed: int,
    height: int,
    width: int,
    tall: int,
    wide: int,
    count: int,
    some: Colours,
    others: Colours,
    lock: bool,
    ban: bool,
) -> None:
    palette = Palette(np.random.default_rng(seed).integers(0, 256, (count, 3)).astype(np.float32) / 256, "p")
    control = ColourConstraints(palette, tuple(some) if lock else (), tuple(others) if ban else ())
    lab = rgb2lab(palette.rgb[None])[0]
    locked, banned = (
        {int(np.linalg.norm(lab - rgb2lab(np.array(colour, np.uint8) / 255.0), axis=1).argmin()) for colour in wishes}
        for wishes in (some, others)
    )
    allowed = (locked if lock else set(range(count))) - (banned if ban else set())
    if not allowed:
        with pytest.raises(UsageError, match="leaves no colour"):
            apply_constraints(opinion_of(seed, height, width), control, 0.4, (tall, wide))
        return
    decision = apply_constraints(opinion_of(seed, height, width), control, 0.4, (tall, wide))
    assert decision.palette is not None
    assert {tuple(colour) for colour in decision.palette.tolist()} == {
        tuple(colour) for colour in palette.rgb[sorted(allowed)].tolist()
    }
    found = adjusted(decision, (tall, wide), seed)
    assert distances(found, lab[sorted(allowed), 1:]).min(-1).max() < 0.03
    exact = {tuple(pair) for pair in decision.chroma.reshape(-1, 2).tolist()}
    assert {tuple(pair) for pair in found.reshape(-1, 2).tolist()} <= exact


def test_locked_colours_are_the_palette_and_one_is_enough() -> None:
    found = adjusted(apply_constraints(opinion_of(3, 4, 4), ColourConstraints(allowed=(TEAL,)), 0.4, (9, 9)), (9, 9))
    np.testing.assert_allclose(found.reshape(-1, 2), chroma_of([TEAL]).repeat(81, 0), atol=0.02)


def test_a_palette_is_decoded_to_the_likeliest_at_any_temperature() -> None:
    control = ColourConstraints(allowed=(RED, GREEN, BLUE))
    maps = [apply_constraints(opinion_of(4, 6, 6), control, temperature, (6, 6)).chroma for temperature in (0.0, 1.0)]
    np.testing.assert_array_equal(*maps)


@settings(max_examples=60, deadline=None)
@given(seeds, sides, sides, full_sides, full_sides, several, st.sampled_from([0.0, 0.4, 1.0]))
def test_no_pixel_is_near_a_banned_colour(
    seed: int, height: int, width: int, tall: int, wide: int, banned: Colours, temperature: float
) -> None:
    decision = apply_constraints(
        opinion_of(seed, height, width), ColourConstraints(banned=tuple(banned)), temperature, (tall, wide)
    )
    forbidden = chroma_of(banned)
    # Their white differs from ours in the fifth digit: 0.02 of chroma.
    assert distances(adjusted(decision, (tall, wide), seed), forbidden).min() >= COLOUR_RADIUS - 0.02
    assert distances(decision.chroma, forbidden).min() >= COLOUR_RADIUS - 0.02
    ours = rgb_to_lab(torch.tensor(banned, dtype=torch.uint8)[None, None])[0, 1:, 0].T.numpy()
    assert distances(adjusted(decision, (tall, wide), seed), ours).min() >= COLOUR_RADIUS - 1e-3
    closed = distances(BINS.numpy(), ours).min(1) < COLOUR_RADIUS
    assert not decision.distribution.log_probabilities[torch.from_numpy(closed)].exp().any()


def test_banned_grey_pushes_grey_away() -> None:
    found = adjusted(apply_constraints(opinion_of(5, 4, 4), ColourConstraints(banned=(GREY,)), 0.4, (8, 8)), (8, 8))
    assert np.linalg.norm(found, axis=-1).min() >= COLOUR_RADIUS - 1e-3


@settings(max_examples=40, deadline=None)
@given(seeds, colours, colours, st.booleans())
def test_what_would_be_one_colour_becomes_the_other(
    seed: int, first: tuple[int, int, int], second: tuple[int, int, int], palette: bool
) -> None:
    old, new = chroma_of([first])[0], chroma_of([second])[0]
    # With a palette, the replaced colour is told from the others by its chroma, without one by the distance.
    assume(np.linalg.norm(old - chroma_of([second, GREEN, GREY]), axis=1).min() > 0.1)
    assume(abs(np.linalg.norm(old - new) - COLOUR_RADIUS) > 0.05)
    lock = (first, second, GREEN, GREY) if palette else ()
    opinion, control = opinion_of(seed, 5, 5), ColourConstraints(allowed=lock, replacements=((first, second),))
    if not palette and np.linalg.norm(old - new) < COLOUR_RADIUS:
        with pytest.raises(UsageError, match="lies within"):
            apply_constraints(opinion, control, 0.0, (10, 10))
        return
    decision = apply_constraints(opinion, control, 0.0, (10, 10))
    plain = apply_constraints(opinion, ColourConstraints(allowed=lock), 0.0, (10, 10)).chroma
    if palette:
        was = distances(plain, old[None])[..., 0] < 0.03
    else:
        was = distances(plain, old[None])[..., 0] < COLOUR_RADIUS - 0.02
        assert distances(adjusted(decision, (10, 10), seed), old[None]).min() >= COLOUR_RADIUS - 0.02
    assert distances(decision.chroma[was], new[None]).max(initial=0) < 0.03
    rest = distances(plain, old[None])[..., 0] > COLOUR_RADIUS + 0.02
    np.testing.assert_array_equal(decision.chroma[rest], plain[rest])


def test_a_replacement_comes_before_a_ban_of_the_same_colour() -> None:
    opinion = ChromaDistribution(torch.zeros(1, 2, 2), torch.tensor([[80.0, 67.0]]), torch.full((2, 2), 50.0))
    for lock in ((), (RED, BLUE, GREEN)):
        control = ColourConstraints(allowed=lock, banned=(RED,), replacements=((RED, BLUE),))
        np.testing.assert_allclose(
            apply_constraints(opinion, control, 0.4, (4, 4)).chroma[0, 0], chroma_of([BLUE])[0], atol=0.02
        )


@pytest.mark.parametrize(
    ("control", "message"),
    [
        (ColourConstraints(replacements=((RED, (250, 5, 5)),)), "^replace #ff0000=#fa0505: #fa0505 lies within 20"),
        (ColourConstraints(replacements=((RED, RED),)), "^replace #ff0000=#ff0000: "),
        (
            ColourConstraints(replacements=((RED, BLUE),), banned=(BLUE,)),
            "^replace #ff0000=#0000ff: .*replaced or banned",
        ),
        (ColourConstraints(allowed=(RED,), banned=(RED,)), "^ban: leaves no colour"),
    ],
)
def test_contradictions_are_told(control: ColourConstraints, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        apply_constraints(opinion_of(0, 3, 3), control, 0.4, (6, 6))


def test_banning_all_that_a_net_knows_is_told() -> None:
    opinion = ChromaDistribution(
        torch.zeros(2, 2, 2).log_softmax(0), torch.tensor([[80.0, 67.0], [75.0, 60.0]]), torch.ones(2, 2)
    )
    with pytest.raises(UsageError, match=r"^ban: leaves none"):
        apply_constraints(opinion, ColourConstraints(banned=(RED,)), 0.4, (4, 4))


@settings(max_examples=40, deadline=None)
@given(seeds, sides, sides, full_sides, full_sides, several, st.sampled_from(["", "palette", "ban", "grey"]))
def test_painted_pixels_have_their_hints_chroma(
    seed: int, height: int, width: int, tall: int, wide: int, painted: Colours, wish: str
) -> None:
    random = np.random.default_rng(seed)
    places = {(int(random.integers(tall)), int(random.integers(wide))): colour for colour in painted}
    palette = [(int(r), int(g), int(b)) for r, g, b in random.integers(0, 256, (5, 3))]
    control = ColourConstraints(
        allowed=tuple(palette) if wish == "palette" else (),
        banned=tuple(painted) if wish == "ban" else (),
        hints=dots((tall, wide), places),
        min_confidence=1.0 if wish == "grey" else 0.0,
    )
    decision = apply_constraints(opinion_of(seed, height, width), control, 0.4, (tall, wide))
    found = adjusted(decision, (tall, wide), seed)
    for place, colour in places.items():
        wanted = chroma_of([colour])[0]
        if wish == "palette":
            lab = rgb2lab(np.array([palette], np.uint8))[0]
            gap = np.linalg.norm(lab - rgb2lab(np.array(colour, np.uint8) / 255.0), axis=1)
            wanted = lab[np.flatnonzero(gap < gap.min() + 0.05), 1:]
        assert np.linalg.norm(found[place] - wanted, axis=-1).min() < 0.03


def test_hints_beat_bans_around_themselves_and_the_palettes_too() -> None:
    size = (60, 60)
    hints = dots(size, {(30, 30): GREEN})
    flat = ChromaDistribution(
        torch.zeros(len(BINS), 6, 6).index_fill(0, (BINS.square().sum(1) < 1).nonzero()[:, 0], 9.0).log_softmax(0),
        BINS,
        torch.full((6, 6), 50.0),
    )
    for lock in ((), (RED, GREEN, GREY)):
        decision = apply_constraints(flat, ColourConstraints(allowed=lock, banned=(GREEN,), hints=hints), 0.4, size)
        coloured = apply_chroma(np.full((*size, 3), 119, np.uint8), decision.chroma, chroma_hook=decision.chroma_hook)
        # Beside the dot, too, it is green as such (chroma of 68): not only what is left of it outside the ban's reach.
        hue, chroma = hue_of(coloured[31:32, 31:32])
        assert hue == pytest.approx(136, abs=3)
        assert chroma > 68 - COLOUR_RADIUS / 2


def test_pixels_of_low_confidence_stay_grey() -> None:
    logits = torch.zeros(len(BINS), 1, 2)
    logits[7, 0, 0] = 20
    opinion = ChromaDistribution(logits.log_softmax(0), BINS, torch.full((1, 2), 50.0))
    decision = apply_constraints(opinion, ColourConstraints(min_confidence=0.5, allowed=(RED, BLUE)), 0.4, (4, 8))
    assert decision.confidence[0, 1] < 0.5
    plain = apply_constraints(opinion, ColourConstraints(min_confidence=0.5), 0.0, (4, 8))
    found = adjusted(plain, (4, 8))
    assert (found[:, :3] != 0).any(-1).all()
    assert not found[:, 6:].any()
    assert not adjusted(decision, (4, 8))[:, 6:].any()


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_confidence_is_from_0_to_1(value: float) -> None:
    with pytest.raises(UsageError, match=r"^leave-grey-below is .* from 0 to 1"):
        ColourConstraints(min_confidence=value)


def hue_of(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hue in degrees and chroma of 8-bit pixels."""
    lab = rgb2lab(rgb)
    return np.degrees(np.arctan2(lab[..., 2], lab[..., 1])), np.hypot(lab[..., 1], lab[..., 2])


@pytest.mark.parametrize("name", ["astronaut", "chelsea"])
def test_a_photographs_pixels_have_the_locked_hues_only(name: str) -> None:
    rgb = getattr(data, name)()[::2, ::2]
    decision = apply_constraints(photograph_opinion(rgb), ColourConstraints(allowed=(TEAL, SKIN)), 0.4, rgb.shape[:2])
    result = apply_chroma(rgb, decision.chroma, chroma_hook=decision.chroma_hook)
    lightness = rgb2lab(rgb)[..., 0]
    np.testing.assert_allclose(rgb2lab(result)[..., 0], lightness, atol=0.6)
    hue, chroma = hue_of(result)
    wanted, full = hue_of(np.array([[TEAL, SKIN]], np.uint8))
    off = np.abs((hue[..., None] - wanted[0] + 180) % 360 - 180)
    # Of little chroma, which is all that sRGB has near black and white, 8 bits tell no hue.
    told = (chroma > 12) & (lightness > 20)
    assert told.mean() > 0.4
    assert off[told].min(-1).max() < 4
    # Here sRGB has both colours in full.
    inside = told & (lightness > 50) & (lightness < 60)
    assert np.abs(chroma[inside][:, None] - full[0]).min(-1).max() < 1.5


def test_a_hint_recolours_what_is_alike_and_no_more() -> None:
    rgb = data.coffee()[:, :400]
    wall = dots(rgb.shape[:2], {(60, 30): BLUE})
    plain, hinted = (
        apply_constraints(
            photograph_opinion(rgb), control, 0.4, rgb.shape[:2], guide=rgb2lab(rgb)[..., 0].astype(np.float32)
        )
        for control in (ColourConstraints(), ColourConstraints(hints=wall))
    )
    before, after = (
        apply_chroma(rgb, decision.chroma, chroma_hook=decision.chroma_hook) for decision in (plain, hinted)
    )
    change = np.linalg.norm(rgb2lab(after)[..., 1:] - rgb2lab(before)[..., 1:], axis=-1)
    assert np.median(change[20:80, 5:60]) > 20
    # The cup and the table below.
    assert np.median(change[200:]) < 2


def test_a_palette_from_a_file_by_name_or_from_a_picture(tmp_path: Path) -> None:
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
    with pytest.raises(ChromaboxError, match=r"one\.png: has one colour only"):
        palette_from_image_or_file(tmp_path / "one.png")
    with pytest.raises(ChromaboxError, match="not a known palette"):
        palette_from_image_or_file(tmp_path / "palette.txt")
