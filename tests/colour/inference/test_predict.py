"""Colouring whole pictures: lightness kept (scikit-image's rgb2lab measures), size of no matter, metadata kept."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab

from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.inference.predict import (
    STYLES,
    ColouriseOptions,
    ColourModel,
    colourise_image,
    predict_chroma,
    predict_colours,
    predict_distribution,
)
from chromabox.colour.models import build_model
from chromabox.colour.models.photonet import PhotoNet
from chromabox.colour.palette.palette import Palette
from chromabox.colour.weights.checkpoint import (
    CIFAR_SCALES,
    DEFAULT_CHECKPOINT,
    PHOTO_SCALES,
    PhotoModel,
    load_model,
    model_metadata,
)
from chromabox.engine.checkpoint import save_checkpoint
from chromabox.errors import UsageError
from chromabox.io.images import ImageData, from_float, read_image, write_image

RNG = np.random.default_rng(8)


@pytest.fixture(scope="module")
def palette_net(tmp_path_factory: pytest.TempPathFactory) -> ColourModel:
    """A small net with random weights and a palette of vivid colours."""
    torch.manual_seed(1)
    settings = {"num_filters": 4, "num_colours": 24}
    net = build_model("unet", **settings)
    with torch.no_grad():
        net.last.weight.mul_(30)
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    palette = Palette(np.random.default_rng(0).random((24, 3), dtype=np.float32), "vivid")
    save_checkpoint(path, {"net": net.state_dict()}, model_metadata("unet", settings, palette))
    return load_model(path)


@pytest.fixture(scope="module")
def photo_net() -> ColourModel:
    """A small photo net with random weights and strong opinions."""
    torch.manual_seed(2)
    cells = [(a, b) for a in range(-40, 50, 20) for b in range(-40, 60, 20)]
    bins = ChromaBins(np.array(cells, np.float32), np.full(len(cells), 1 / len(cells), np.float32), 20.0)
    net = PhotoNet(len(cells), widths=(8, 8, 8), blocks=(1, 1, 1)).eval()
    with torch.no_grad():
        net.head[-1].weight.mul_(20)
    return PhotoModel(net, bins, {"net": "photo"})


@pytest.fixture(params=["palette_net", "photo_net"])
def trained(request: pytest.FixtureRequest) -> ColourModel:
    return request.getfixturevalue(request.param)


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
def test_size_and_lightness_are_kept_within_rounding(trained: ColourModel, name: str) -> None:
    before = from_float(PICTURES[name], 8)
    after = colourise_image(ImageData(before), trained).pixels
    assert after.shape == before.shape
    assert after.dtype == np.uint8
    difference = np.abs(rgb2lab(after)[..., 0] - rgb2lab(before)[..., 0])
    assert difference.mean() <= 0.3
    # A step of 1/255 in all three channels is 0.27 of L* where it is most, near black.
    assert difference.max() <= 0.5


def test_sixteen_bits_stay_sixteen(trained: ColourModel) -> None:
    before = from_float(PICTURES["soft"], 16)
    after = colourise_image(ImageData(before), trained).pixels
    assert after.dtype == np.uint16
    assert len(np.unique(after)) > 256
    assert np.abs(rgb2lab(after)[..., 0] - rgb2lab(before)[..., 0]).max() < 0.1


def test_grey_becomes_colourful(trained: ColourModel) -> None:
    grey = ImageData(from_float(PICTURES["grey"], 8), is_grey=True)
    coloured = colourise_image(grey, trained, ColouriseOptions(temperature=0.0))
    assert not coloured.is_grey
    assert np.abs(rgb2lab(coloured.float_pixels)[..., 1:]).mean() > 3


def test_only_the_lightness_of_a_coloured_picture_is_used(trained: ColourModel) -> None:
    """A tinted picture and the grey one of its L* (by scikit-image) get one chroma, but for rounding to 16 bits."""
    tinted = from_float(PICTURES["soft"], 16)
    lightness = rgb2lab(tinted)[..., 0]
    linear = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.2963)
    grey = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    plain = from_float(np.repeat(grey[..., None], 3, -1).astype(np.float32), 16)
    # The net's own view is of 8 bits, so a place may be one level lighter.
    difference = np.abs(predict_chroma(tinted, trained) - predict_chroma(plain, trained))
    assert np.median(difference) < 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (77, 41), (400, 300), (1, 3000)])
def test_the_net_looks_at_fixed_sizes(trained: ColourModel, shape: tuple[int, int]) -> None:
    opinion = predict_distribution(np.full((*shape, 3), 80, np.uint8), trained)
    height, width = opinion.log_probabilities.shape[1:]
    photo = isinstance(trained, PhotoModel)
    side, stride = (max(PHOTO_SCALES), PhotoNet.stride) if photo else (max(CIFAR_SCALES), 1)
    assert abs(min(height, width) * stride - side) <= 16
    assert max(height, width) * stride <= 4 * side
    assert opinion.lightness.shape == (height, width)
    torch.testing.assert_close(opinion.log_probabilities.exp().sum(0), torch.ones(height, width))


def test_a_mirrored_picture_gets_mirrored_colours(photo_net: ColourModel) -> None:
    pixels = from_float(smooth(256, 320), 8)
    there = predict_colours(pixels, photo_net, ColouriseOptions()).chroma
    back = predict_colours(np.ascontiguousarray(pixels[:, ::-1]), photo_net, ColouriseOptions()).chroma
    np.testing.assert_allclose(there, back[:, ::-1], atol=0.5)


def test_vivid_helps_rare_colours(photo_net: ColourModel) -> None:
    assert isinstance(photo_net, PhotoModel)
    common = (np.abs(photo_net.bins.centres).sum(1) == 0).astype(np.float32)
    skewed = dataclasses.replace(photo_net.bins, frequencies=(common + 0.01) / (common + 0.01).sum())
    trained = dataclasses.replace(photo_net, bins=skewed)
    pixels = from_float(PICTURES["soft"], 8)
    plain, vivid = (
        np.hypot(*predict_chroma(pixels, trained, ColouriseOptions(style=style, temperature=1.0)).T).mean()
        for style in STYLES
    )
    assert vivid > 1.02 * plain


def test_alpha_metadata_and_resolution_are_kept(tmp_path: Path, trained: ColourModel) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a horse"
    exif[0x0112] = 6  # to be turned by 90° to the right
    pixels = np.concatenate([np.rint(PICTURES["soft"] * 255), RNG.integers(0, 256, (90, 130, 1))], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png", exif=exif, dpi=(300, 300))
    write_image(tmp_path / "out.png", colourise_image(read_image(tmp_path / "in.png"), trained))
    found = Image.open(tmp_path / "out.png")
    assert (found.mode, found.size) == ("RGBA", (90, 130))
    np.testing.assert_array_equal(np.asarray(found)[..., 3], np.rot90(pixels[..., 3], -1))
    assert found.getexif()[0x010E] == "a horse"
    assert found.getexif().get(0x0112, 1) == 1
    assert found.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    source = rgb2lab(np.rot90(pixels[..., :3], -1))[..., 0]
    assert np.abs(rgb2lab(np.asarray(found)[..., :3])[..., 0] - source).mean() <= 0.3


def test_a_temperature_below_zero_is_refused(trained: ColourModel) -> None:
    with pytest.raises(UsageError, match=r"temperature is -0\.5"):
        predict_chroma(from_float(PICTURES["soft"], 8), trained, ColouriseOptions(temperature=-0.5))


def test_the_shipped_net_colours() -> None:
    trained = load_model()
    assert DEFAULT_CHECKPOINT.endswith(".safetensors")
    coloured = colourise_image(ImageData(from_float(PICTURES["grey"], 8)), trained)
    assert np.abs(rgb2lab(coloured.float_pixels)[..., 1:]).mean() > 0.3


def test_looks_are_of_a_size_that_the_nets_can_take() -> None:
    assert all(side % PhotoNet.size_divisor == 0 for side in PHOTO_SCALES)
    assert all(side % 8 == 0 for side in CIFAR_SCALES)
