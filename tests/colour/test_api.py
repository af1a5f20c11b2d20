"""The call from Python: kinds, modes, depths and wishes; lightness measured by scikit-image, modes made by Pillow."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from skimage.color import rgb2lab
from skimage.data import chelsea

import chromabox
from chromabox.colour import api as room
from chromabox.colour.api import colourise
from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.constraints.hints import hints_from_pixels
from chromabox.colour.inference.predict import ColouriseOptions, colourise_image
from chromabox.colour.models.photonet import PhotoNet
from chromabox.colour.palette.io import load_palette
from chromabox.colour.weights.checkpoint import PhotoModel, load_model, photo_model_metadata
from chromabox.engine.checkpoint import save_checkpoint
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import ImageData, read_image

CAT = chelsea()[80:180, 100:230]
GREY = np.asarray(Image.fromarray(CAT).convert("L"))
ALPHA = np.arange(100 * 130, dtype=np.uint32).reshape(100, 130) * 3 % 256


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small photo net that has learnt nothing: its colours are arbitrary, but not grey."""
    torch.manual_seed(0)
    cells = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 2, indexing="ij"), -1).reshape(-1, 2)
    bins = ChromaBins((10 * cells).astype(np.float32), np.full(81, 1 / 81, np.float32), 10.0)
    settings = {"num_colours": 81, "widths": (8, 8, 8), "blocks": (1, 1, 1)}
    net = PhotoNet(**settings)
    with torch.no_grad():
        net.head[-1].weight.mul_(8)
        # Warm colours more likely than cold ones.
        net.head[-1].bias.copy_(torch.from_numpy(bins.centres.sum(1) / 20))
    path = tmp_path_factory.mktemp("nets") / "small.safetensors"
    save_checkpoint(path, {"net": net.state_dict()}, photo_model_metadata(settings, bins))
    return path


@pytest.fixture(scope="module")
def net(checkpoint: Path) -> PhotoModel:
    trained = load_model(checkpoint)
    assert isinstance(trained, PhotoModel)
    return trained


def lightness(values: np.ndarray) -> np.ndarray:
    """L* by scikit-image, which takes 8 and 16 bits and floats as they are."""
    colours = values[..., :3] if values.ndim == 3 and values.shape[2] >= 3 else np.stack([np.squeeze(values)] * 3, -1)
    return rgb2lab(colours)[..., 0]


ARRAYS = {
    "grey": GREY,
    "grey in a channel": GREY[..., None],
    "colours": CAT,
    "alpha": np.dstack([CAT, ALPHA.astype(np.uint8)]),
    "sixteen": GREY.astype(np.uint16) * np.uint16(257) + np.where(GREY < 200, 3, 0).astype(np.uint16),
    "sixteen with alpha": np.dstack([CAT.astype(np.uint16) * 257, ALPHA.astype(np.uint16) * 201]),
    "big-endian": (GREY.astype(np.uint16) * 257).astype(">u2"),
    "float": GREY / 255,
    "float32 with alpha": np.dstack([CAT / 255, ALPHA / 255]).astype(np.float32),
    "half": (GREY / 255).astype(np.float16),
    "strided": CAT[::-2, ::3],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_as_their_own_kind(net: PhotoModel, name: str) -> None:
    given = ARRAYS[name].copy() if name != "strided" else ARRAYS[name]
    before = given.copy()
    found = colourise(given, model=net)
    assert isinstance(found, np.ndarray)
    assert found.dtype == (np.float32 if given.dtype.kind == "f" else given.dtype.newbyteorder("="))
    channels = 4 if given.ndim == 3 and given.shape[2] == 4 else 3
    assert found.shape == (*given.shape[:2], channels)
    np.testing.assert_array_equal(given, before)
    assert np.abs(lightness(found) - lightness(given)).max() < (0.6 if given.dtype == np.uint8 else 0.3)
    assert np.ptp(found[..., :3].astype(float), axis=2).max() > 0.1 * (1 if given.dtype.kind == "f" else 255)
    if channels == 4:
        np.testing.assert_array_equal(found[..., 3], given[..., 3])
    if given.dtype.kind == "f":
        assert found.min() >= 0
        assert found.max() <= 1


def test_all_depths_have_the_same_colours(net: PhotoModel) -> None:
    eight, sixteen, floats = (colourise(ARRAYS[name], model=net) for name in ("grey", "big-endian", "float"))
    # Eight bits are narrowed from sixteen before the net looks, which changes its opinion a little.
    assert np.abs(sixteen / 257 - eight).mean() < 1
    np.testing.assert_allclose(floats, sixteen / 65535, atol=2e-5)


def test_it_is_what_the_command_line_does(net: PhotoModel, tmp_path: Path) -> None:
    Image.fromarray(CAT).save(tmp_path / "cat.png")
    expected = colourise_image(
        read_image(tmp_path / "cat.png"), net, ColouriseOptions(style="vivid", temperature=0.5)
    ).pixels
    given = {"style": "vivid", "temperature": 0.5, "model": net}
    np.testing.assert_array_equal(colourise(CAT, **given), expected)
    np.testing.assert_array_equal(np.asarray(colourise(Image.open(tmp_path / "cat.png"), **given)), expected)


MODES = [
    "1",
    "L",
    "P",
    "RGB",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "F",
    "I;16",
    "LA",
    "PA",
    "RGBA",
    "La",
    "RGBa",
    "RGBX",
]


def in_mode(mode: str) -> Image.Image:
    """The cat in a mode of Pillow's."""
    if mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        picture = Image.fromarray(ARRAYS["alpha"])
        for step in {"La": ("LA", "La"), "PA": ("P", "PA")}.get(mode, (mode,)):
            picture = picture.convert(step)
        return picture
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(Image.fromarray(CAT), *profiles, outputMode="LAB")
        assert converted is not None
        return converted
    if mode in ("I", "I;16"):
        return Image.fromarray(GREY.astype(np.int32 if mode == "I" else np.uint16) * 257)
    return Image.fromarray((GREY / 255).astype(np.float32)) if mode == "F" else Image.fromarray(CAT).convert(mode)


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_every_mode_become_rgb_or_rgba(net: PhotoModel, mode: str) -> None:
    given = in_mode(mode)
    assert given.mode == mode
    before = given.tobytes()
    found = colourise(given, model=net)
    assert isinstance(found, Image.Image)
    transparent = mode in ("LA", "La", "PA", "RGBA", "RGBa")
    assert (found.mode, found.size) == ("RGBA" if transparent else "RGB", (130, 100))
    assert given.tobytes() == before
    values = np.asarray(found)
    if mode == "1":
        assert set(lightness(values).round().ravel()) <= {0.0, 100.0}
    elif mode not in ("La", "RGBa"):  # whose colours are lost where they are transparent
        # Palettes and inks hold fewer colours, so the witness is Pillow's own conversion of the same picture.
        witness = GREY if mode in ("I", "F", "I;16", "LAB") else np.asarray(given.convert("RGB"))
        tolerance = 3 if mode == "LAB" else 0.6
        if mode == "LAB":
            witness = CAT
        assert np.abs(lightness(values) - lightness(witness)).max() < tolerance
    if mode in ("RGBA", "LA"):
        np.testing.assert_array_equal(values[..., 3], ALPHA)


def test_info_is_kept_where_it_stays_true(net: PhotoModel, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "a cat"
    Image.fromarray(CAT).save(tmp_path / "cat.jpg", dpi=(300, 300), icc_profile=profile, exif=exif)
    found = colourise(Image.open(tmp_path / "cat.jpg"), model=net)
    assert found.info["dpi"] == (300, 300)
    assert found.info["icc_profile"] == profile
    assert found.getexif()[0x010E] == "a cat"
    grey = Image.fromarray(GREY)
    grey.info |= {"transparency": 7, "icc_profile": profile[:16] + b"GRAY" + profile[20:], "dpi": (72, 72)}
    found = colourise(grey, model=net)
    assert found.info == {"dpi": (72, 72)}
    assert found.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(found)[..., 3], np.where(GREY == 7, 0, 255))


@pytest.mark.parametrize(
    ("image", "error"),
    [
        ("cat.jpg", "image is a str"),
        (None, "image is a NoneType"),
        (np.zeros((4, 5), bool), "image is of bool"),
        (np.zeros((4, 5), np.int64), "image is of int64"),
        (np.zeros((4, 5), np.uint32), "image is of uint32"),
        (np.zeros((4, 5), complex), "image is of complex128"),
        (np.zeros((4, 5, 2), np.uint8), "shape 4 × 5 × 2"),
        (np.zeros((3, 4, 5, 3), np.uint8), "shape 3 × 4 × 5 × 3"),
        (np.zeros(5, np.uint8), "shape 5:"),
        (np.zeros((), np.uint8), r"shape \(\)"),
        (np.zeros((0, 5), np.uint8), "shape 0 × 5"),
        (np.full((4, 5), 1.5), "values 1.5 to 1.5: 0 to 1 is right"),
        (np.full((4, 5), -0.1), "values -0.1"),
        (np.full((4, 5, 4), np.nan), "values NaN"),
        (np.full((4, 5), np.inf, np.float32), "values inf"),
        (Image.new("L", (0, 5)), "no pixels"),
        (Image.fromarray(np.full((4, 5), 70000, np.int32)), "0 to 65535 is right"),
        (Image.fromarray(np.full((4, 5), 2.0, np.float32)), "0 to 1 is right"),
    ],
)
def test_what_is_no_picture_is_refused(net: PhotoModel, image: object, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        colourise(image, model=net)


def test_a_picture_cut_short_is_told(net: PhotoModel, tmp_path: Path) -> None:
    Image.fromarray(CAT).save(tmp_path / "cat.jpg")
    (tmp_path / "cat.jpg").write_bytes((tmp_path / "cat.jpg").read_bytes()[:1500])
    with Image.open(tmp_path / "cat.jpg") as image, pytest.raises(ChromaboxError, match="cannot be decoded"):
        colourise(image, model=net)


NAVY, BEIGE = (0, 0, 128), (245, 245, 220)


def test_wishes_are_the_command_lines(net: PhotoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ColouriseOptions] = []

    def note(picture: ImageData, trained: object, wishes: ColouriseOptions) -> ImageData:
        asked.append(wishes)
        return picture

    monkeypatch.setattr(room, "colourise_image", note)
    colourise(
        GREY,
        style="vivid",
        temperature=0.0,
        allow="navy",
        ban=["beige", NAVY, np.array(BEIGE)],
        replace=["red=navy", ((1, 2, 3), "#fff")],
        min_confidence=0.25,
        model=net,
    )
    [wishes] = asked
    assert (wishes.style, wishes.effective_temperature) == ("vivid", 0.0)
    assert wishes.constraints.allowed == (NAVY,)
    assert wishes.constraints.banned == (BEIGE, NAVY, BEIGE)
    assert wishes.constraints.replacements == (((255, 0, 0), NAVY), ((1, 2, 3), (255, 255, 255)))
    assert wishes.constraints.min_confidence == 0.25
    assert wishes.constraints.palette is None
    colourise(GREY, model=net)
    assert asked[1] == ColouriseOptions()


def test_palettes_by_name_path_picture_and_list(
    net: PhotoModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "two.json").write_text('["#000080", "#f5f5dc"]')
    Image.fromarray(CAT).save(tmp_path / "cat.png")
    horse = load_palette("horse24")
    asked: list[ColouriseOptions] = []
    monkeypatch.setattr(room, "colourise_image", lambda picture, trained, wishes: asked.append(wishes) or picture)
    given = [horse, "horse24", tmp_path / "two.json", str(tmp_path / "two.json"), ["navy", BEIGE], tmp_path / "cat.png"]
    for palette in given:
        colourise(GREY, palette=palette, model=net)
    found = [wishes.constraints.palette for wishes in asked]
    assert found[0] is horse
    assert found[1] is not None
    np.testing.assert_array_equal(found[1].colours, horse.colours)
    assert [palette.rgb.tolist() for palette in found[2:5] if palette] == [[list(NAVY), list(BEIGE)]] * 3
    assert found[5] is not None
    assert len(found[5]) == 16


def test_only_the_colours_of_the_palette_appear(net: PhotoModel) -> None:
    found = colourise(GREY, palette=["#a04040", "#4060a0"], model=net)
    lab = rgb2lab(found)
    inside = (lab[..., 0] > 30) & (lab[..., 0] < 70)  # where sRGB has these hues with much chroma
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1]))[inside]
    expected = [np.degrees(np.arctan2(b, a)) for _, a, b in rgb2lab(np.array([[160, 64, 64], [64, 96, 160]]) / 255)]
    distance = np.abs((hue[:, None] - expected + 180) % 360 - 180).min(1)
    assert distance.max() < 6


def test_hints_as_a_file_and_as_such(net: PhotoModel, tmp_path: Path) -> None:
    layer = np.zeros((100, 130, 4), np.uint8)
    layer[40:60, 50:70] = (40, 90, 200, 255)
    Image.fromarray(layer).save(tmp_path / "dots.png")
    hints = hints_from_pixels(layer[..., :3], layer[..., 3] > 127, (100, 130))
    ways = [
        colourise(GREY, hints=given, model=net) for given in (tmp_path / "dots.png", str(tmp_path / "dots.png"), hints)
    ]
    np.testing.assert_array_equal(ways[0], ways[1])
    np.testing.assert_array_equal(ways[0], ways[2])
    painted = rgb2lab(ways[0])[45:55, 55:65]
    assert painted[..., 2].max() < -5
    with pytest.raises(UsageError, match="hints are 130 × 100 pixels; the image's 65 × 50"):
        colourise(GREY[::2, ::2], hints=hints, model=net)


@pytest.mark.parametrize(
    ("wishes", "error"),
    [
        ({"style": "loud"}, "style is 'loud': there are natural, vivid"),
        ({"temperature": 1.5}, "temperature is 1.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"min_confidence": -0.1}, "min_confidence is -0.1"),
        ({"palette": ["navy"]}, "palette has 1 colours"),
        ({"palette": 5}, "palette is 5"),
        ({"palette": ["navy", "no-colour"]}, "palette 'no-colour': invalid colour"),
        ({"allow": [(1, 2)]}, r"allow \(1, 2\): is no colour"),
        ({"allow": [(1, 2, 300)]}, "is no colour"),
        ({"ban": [(0.5, 0.5, 0.5)]}, "is no colour"),
        ({"ban": [7]}, r"ban is \[7\]"),
        ({"replace": [("red",)]}, "give a list of pairs"),
        ({"replace": [5]}, "give a list of pairs"),
        ({"replace": "red"}, "replace .red.: expected two colours A=B"),
        ({"hints": 5}, "hints is a int"),
        ({"model": 5}, "model is a int"),
        ({"model": "no/such/run"}, "there is no such run folder or checkpoint"),
    ],
)
def test_wishes_that_mean_nothing_are_refused(net: PhotoModel, wishes: dict[str, object], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        colourise(GREY, **{"model": net, **wishes})


def test_a_net_is_read_once_until_its_file_changes(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read: list[Path] = []

    def count(path: Path) -> object:
        read.append(path)
        return load_model(path)

    monkeypatch.setattr(room, "load_model", count)
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.safetensors").write_bytes(checkpoint.read_bytes())
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: colourise(GREY, model=run), range(4)))
    assert len(read) == 1
    assert all(np.array_equal(found[0], other) for other in found[1:])
    colourise(GREY, model=str(run / "best.safetensors"))
    assert len(read) == 1
    later = (run / "best.safetensors").stat().st_mtime_ns + 1_000_000_000

    os.utime(run / "best.safetensors", ns=(later, later))
    colourise(GREY, model=run)
    assert len(read) == 2


def test_the_name_is_there_and_nothing_heavy_is_imported_for_it() -> None:
    program = (
        "import sys, chromabox\n"
        "assert 'colourise' in dir(chromabox) and not {'torch', 'numpy', 'PIL'} & sys.modules.keys()\n"
        "assert chromabox.colourise.__module__ == 'chromabox.colour.api' and 'torch' in sys.modules\n"
        "from chromabox import colourise\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert chromabox.colourise is colourise
    with pytest.raises(AttributeError, match="no attribute 'colorise'"):
        _ = chromabox.colorise


def test_palettes_do_not_depend_on_the_net_given(net: PhotoModel) -> None:
    other = replace(net, metadata={})
    np.testing.assert_array_equal(colourise(GREY, model=net), colourise(GREY, model=other))
