"""Colouring whole pictures: lightness kept (scikit-image's rgb2lab measures), gamut respected, files handled safely."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

from chromabox.colour.nets import build_net
from chromabox.colour.palette import Palette
from chromabox.colour.predict import colour_files, colour_picture, lab_to_rgb_in_gamut, plan_outputs, predict_chroma
from chromabox.colour.trained import SHIPPED, TrainedNet, describe_net, load_trained
from chromabox.engine.checkpoint import save_checkpoint
from chromabox.errors import UsageError
from chromabox.files.images import Picture, from_floats, read_picture, write_picture

RNG = np.random.default_rng(8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedNet:
    """A small net with random weights and a palette of vivid colours."""
    torch.manual_seed(1)
    settings = {"num_filters": 4, "num_colours": 24}
    net = build_net("unet", **settings)
    with torch.no_grad():
        net.last.weight.mul_(30)
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    palette = Palette(np.random.default_rng(0).random((24, 3), dtype=np.float32), "vivid")
    save_checkpoint(path, {"net": net.state_dict()}, describe_net("unet", settings, palette))
    return load_trained(path)


def picture_of(name: str) -> Picture:
    return Picture(from_floats(PICTURES[name], 16))


def smooth(height: int, width: int) -> np.ndarray:
    """A random picture with soft transitions, float32 in [0, 1], [height, width, 3]."""
    small = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255


PICTURES = {
    "soft": smooth(90, 130),
    "noise": RNG.random((70, 64, 3), dtype=np.float32),
    "grey": np.repeat(smooth(80, 64)[..., :1], 3, -1),
    "saturated": RNG.integers(0, 2, (64, 64, 3)).astype(np.float32),
    "dark": 0.04 * smooth(64, 70),
    "light": 1 - 0.03 * smooth(64, 70),
    "black": np.zeros((20, 20, 3), np.float32),
    "white": np.ones((20, 20, 3), np.float32),
    "one pixel": np.full((1, 1, 3), 0.5, np.float32),
    "lying strip": smooth(3, 200),
    "standing strip": smooth(200, 3),
    "line": smooth(1, 300),
}


@pytest.mark.parametrize("name", PICTURES)
def test_size_and_lightness_are_kept_within_rounding(tmp_path: Path, trained: TrainedNet, name: str) -> None:
    source = PICTURES[name]
    write_picture(tmp_path / "in.png", from_floats(source, 8))
    [outcome] = colour_files([(tmp_path / "in.png", tmp_path / "out.png")], trained)
    assert outcome.error is None
    before, after = (np.asarray(Image.open(tmp_path / file).convert("RGB")) for file in ("in.png", "out.png"))
    assert after.shape == source.shape
    difference = np.abs(rgb2lab(after)[..., 0] - rgb2lab(before)[..., 0])
    assert difference.mean() <= 0.3
    # A step of 1/255 in all three channels is 0.27 of L* where it is most, near black.
    assert difference.max() <= 0.5


def test_grey_becomes_colourful(trained: TrainedNet) -> None:
    coloured = colour_picture(dataclasses.replace(picture_of("grey"), was_grey=True), trained, temperature=0.0)
    assert not coloured.was_grey
    assert np.abs(rgb2lab(coloured.floats)[..., 1:]).mean() > 3


def test_only_the_lightness_of_a_coloured_picture_is_used(trained: TrainedNet) -> None:
    # Two pictures of one mean of RGB and one lightness give one result, whatever their colours.
    left = colour_picture(picture_of("grey"), trained).pixels
    tinted = PICTURES["soft"]
    chroma = predict_chroma(tinted, trained, temperature=0.38, working_size=64)
    plain = predict_chroma(np.repeat(tinted.mean(-1, keepdims=True), 3, -1), trained, temperature=0.38, working_size=64)
    np.testing.assert_allclose(chroma, plain, atol=0.05)
    assert left.shape == PICTURES["grey"].shape


@pytest.mark.parametrize("working_size", [16, 33, 64, 200])
@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (77, 41)])
def test_the_net_sees_sides_it_can_halve(trained: TrainedNet, shape: tuple[int, int], working_size: int) -> None:
    pixels = np.full((*shape, 3), 0.3, np.float32)
    height, width, _ = predict_chroma(pixels, trained, temperature=0.38, working_size=working_size).shape
    multiple = trained.net.multiple
    assert height % multiple == width % multiple == 0
    assert abs(min(height, width) - working_size) <= multiple
    assert max(height, width) <= 16 * working_size


def test_alpha_metadata_and_resolution_are_kept(tmp_path: Path, trained: TrainedNet) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a horse"
    exif[0x0112] = 6  # to be turned by 90° to the right
    pixels = np.concatenate([np.rint(PICTURES["soft"] * 255), RNG.integers(0, 256, (90, 130, 1))], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png", exif=exif, dpi=(300, 300))
    [outcome] = colour_files([(tmp_path / "in.png", tmp_path / "out.png")], trained)
    assert outcome.error is None
    found = Image.open(tmp_path / "out.png")
    assert (found.mode, found.size) == ("RGBA", (90, 130))
    np.testing.assert_array_equal(np.asarray(found)[..., 3], np.rot90(pixels[..., 3], -1))
    assert found.getexif()[0x010E] == "a horse"
    assert 0x0112 not in found.getexif()
    assert found.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    source = rgb2lab(np.rot90(pixels[..., :3], -1))[..., 0]
    assert np.abs(rgb2lab(np.asarray(found)[..., :3])[..., 0] - source).mean() <= 0.3


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"])
def test_every_format_keeps_its_kind(tmp_path: Path, trained: TrainedNet, suffix: str) -> None:
    source, target = tmp_path / f"in{suffix}", tmp_path / "out" / f"in{suffix}"
    write_picture(source, from_floats(PICTURES["soft"], 8))
    assert plan_outputs([source], tmp_path / "out") == [(source, target)]
    [outcome] = colour_files([(source, target)], trained)
    assert outcome.error is None
    with Image.open(source) as before, Image.open(target) as after:
        assert (after.format, after.size) == (before.format, before.size)


LAB = st.tuples(st.floats(0, 100), st.floats(-128, 128), st.floats(-128, 128))


@settings(max_examples=60, deadline=None)
@given(st.lists(LAB, min_size=1, max_size=60))
def test_gamut_mapping_keeps_lightness_and_hue(colours: list[tuple[float, float, float]]) -> None:
    lab = np.array(colours, np.float32)
    rgb = lab_to_rgb_in_gamut(lab)
    assert rgb.dtype == np.float32
    assert rgb.min() >= 0
    assert rgb.max() <= 1
    back = rgb2lab(rgb.astype(np.float64))
    np.testing.assert_allclose(back[:, 0], lab[:, 0], atol=0.1)
    chroma, kept = np.hypot(lab[:, 1], lab[:, 2]), np.hypot(back[:, 1], back[:, 2])
    assert (kept <= chroma + 0.6).all()
    # What is off the line of the colour's own hue, in units of a* and b*.
    across = np.abs(back[:, 1] * lab[:, 2] - back[:, 2] * lab[:, 1]) / np.maximum(chroma, 1)
    assert across.max() < 0.6


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 3), min_size=1, max_size=60))
def test_colours_inside_the_gamut_are_scikit_images(colours: list[tuple[float, float, float]]) -> None:
    rgb = np.array(colours, np.float64)
    lab = rgb2lab(rgb)
    np.testing.assert_allclose(lab_to_rgb_in_gamut(lab.astype(np.float32)), lab2rgb(lab), atol=2e-3)


def test_chroma_is_only_reduced_as_far_as_needed() -> None:
    # The most saturated colours of sRGB lie on its border: a little more chroma must come back to them. (Yellow is
    # left out: on the way to it from grey, at its lightness, lie colours that sRGB does not have.)
    borders = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 0.5, 0]], np.float64)
    lab = rgb2lab(borders)
    stray = (lab * [1, 1.3, 1.3]).astype(np.float32)
    found = rgb2lab(lab_to_rgb_in_gamut(stray).astype(np.float64))
    np.testing.assert_allclose(np.hypot(*found[:, 1:].T), np.hypot(*lab[:, 1:].T), rtol=0.02)


def tree(folder: Path, *names: str) -> Path:
    """Small pictures under the given names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (9, 8), dtype=np.uint8)).save(path)
    return folder


def test_a_folder_is_mirrored_and_a_bad_file_does_not_stop_the_rest(tmp_path: Path, trained: TrainedNet) -> None:
    source = tree(tmp_path / "in", "a.png", "inner/b.jpg", "inner/deep/c.gif", "z.png")
    (source / "m.png").write_bytes(b"no picture")
    target = tmp_path / "out"
    outcomes = list(colour_files(plan_outputs([source], target), trained))
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    assert [outcome.source.name for outcome in failed] == ["m.png"]
    assert "m.png" in failed[0].error
    written = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert written == {"a.png", "inner/b.jpg", "inner/deep/c.png", "z.png"}
    assert all(read_picture(target / name).pixels.shape == (9, 8, 3) for name in written)


@pytest.mark.parametrize(
    ("inputs", "output", "error"),
    [
        (["a.png"], "a.png", "is the input"),
        (["."], ".", "is the input"),
        (["a.png", "inner/b.jpg"], ".", "is the input"),
        (["a.png", "inner/a.png"], "out", "would both become"),
        (["a.png", "a.png"], "out", "would both become"),
        (["twins"], "out", "would both become"),
        (["a.png", "inner/b.jpg"], "taken.png", "is a file, but 2 pictures need a folder"),
        (["nowhere.png"], "out", "does not exist"),
        (["empty"], "out", "holds no pictures"),
        (["a.png"], "out.gif", "pictures are written as"),
        (["a.png"], "link.png", "is the input"),
    ],
)
def test_plans_that_would_lose_something_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], output: str, error: str
) -> None:
    monkeypatch.chdir(tree(tmp_path, "a.png", "inner/b.jpg", "inner/a.png", "twins/x.gif", "twins/x.png", "taken.png"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.png").symlink_to("a.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(UsageError, match=error):
        plan_outputs([Path(name) for name in inputs], Path(output))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def test_one_picture_goes_to_the_file_named(tmp_path: Path) -> None:
    source = tree(tmp_path, "a.png") / "a.png"
    assert plan_outputs([source], tmp_path / "new.jpg") == [(source, tmp_path / "new.jpg")]
    assert plan_outputs([source], tmp_path / "new") == [(source, tmp_path / "new" / "a.png")]


def test_the_shipped_net_colours() -> None:
    from importlib import resources

    if not (resources.files("chromabox.assets") / SHIPPED).is_file():
        pytest.skip(f"THE SHIPPED NET {SHIPPED} IS MISSING, SO NOTHING OF IT IS TESTED")
    coloured = colour_picture(picture_of("soft"), load_trained())
    assert coloured.pixels.shape == PICTURES["soft"].shape
    difference = np.abs(rgb2lab(coloured.floats)[..., 0] - rgb2lab(PICTURES["soft"])[..., 0])
    assert difference.max() < 0.3
