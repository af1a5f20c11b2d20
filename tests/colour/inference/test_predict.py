"""Colourisation of images of many sizes: unchanged lightness, measured with scikit-image's rgb2lab, and metadata."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab

from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.inference.load import open_model
from chromabox.colour.inference.predict import (
    STYLES,
    ColouriseOptions,
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
    PHOTO_SCALES,
    PaletteModel,
    PhotoModel,
    model_metadata,
)
from chromabox.colour.weights.onnx_model import ColourModel
from chromabox.errors import UsageError
from chromabox.io.images import ImageData, from_float, read_image, write_image
from colour_fixtures import write_colour_model

RNG = np.random.default_rng(8)


@pytest.fixture(scope="module")
def palette_model(tmp_path_factory: pytest.TempPathFactory) -> ColourModel:
    """A small model with random weights and a palette of vivid colours."""
    settings = {"num_filters": 4, "num_colours": 24}
    palette = Palette(np.random.default_rng(0).random((24, 3), dtype=np.float32), "vivid")
    model = PaletteModel(build_model("unet", **settings), palette, model_metadata("unet", settings, palette))
    return write_colour_model(tmp_path_factory.mktemp("model") / "palette.onnx", model, seed=1, scale=8)


@pytest.fixture(scope="module")
def photo_model(tmp_path_factory: pytest.TempPathFactory) -> ColourModel:
    """A small photo model with random weights."""
    cells = [(a, b) for a in range(-40, 50, 20) for b in range(-40, 60, 20)]
    bins = ChromaBins(np.array(cells, np.float32), np.full(len(cells), 1 / len(cells), np.float32), 20.0)
    network = PhotoNet(len(cells), widths=(8, 8, 8, 8), blocks=(1, 1, 1, 1))
    model = PhotoModel(network, bins, model_metadata("photo", {}, bins))
    bias = 3 * (bins.centres == 0).all(1)  # grey is more likely than any other colour
    return write_colour_model(tmp_path_factory.mktemp("model") / "photo.onnx", model, seed=2, scale=6, bias=bias)


@pytest.fixture(params=["palette_model", "photo_model"])
def model(request: pytest.FixtureRequest) -> ColourModel:
    return request.getfixturevalue(request.param)


def smooth_image(height: int, width: int) -> np.ndarray:
    """Return a random image with smooth transitions, float32 in [0, 1], [height, width, 3]."""
    small = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255


IMAGES = {
    "smooth": smooth_image(90, 130),
    "noise": RNG.random((70, 64, 3), dtype=np.float32),
    "grey": np.repeat(smooth_image(80, 64)[..., :1], 3, -1),
    "saturated": RNG.integers(0, 2, (64, 64, 3)).astype(np.float32),
    "dark": 0.04 * smooth_image(64, 70),
    "light": 1 - 0.03 * smooth_image(64, 70),
    "black": np.zeros((20, 20, 3), np.float32),
    "white": np.ones((20, 20, 3), np.float32),
    "one pixel": np.full((1, 1, 3), 0.5, np.float32),
    "horizontal strip": smooth_image(3, 200),
    "vertical strip": smooth_image(200, 3),
    "line": smooth_image(1, 300),
}
# Images whose lightness is prepared for a photo model. The result must have the lightness of the original.
IMAGES["faded"] = 0.4 + 0.2 * IMAGES["smooth"]
IMAGES["dots"] = np.repeat(IMAGES["saturated"][..., :1], 3, -1)


@pytest.mark.parametrize("name", IMAGES)
def test_size_and_lightness_are_preserved_up_to_rounding(model: ColourModel, name: str) -> None:
    before = from_float(IMAGES[name], 8)
    after = colourise_image(ImageData(before), model).pixels
    assert after.shape == before.shape
    assert after.dtype == np.uint8
    difference = np.abs(rgb2lab(after)[..., 0] - rgb2lab(before)[..., 0])
    assert difference.mean() <= 0.3
    # A step of 1/255 in all three channels changes L* by at most 0.27 (near black).
    assert difference.max() <= 0.5


def test_16_bit_depth_is_preserved(model: ColourModel) -> None:
    before = from_float(IMAGES["smooth"], 16)
    after = colourise_image(ImageData(before), model).pixels
    assert after.dtype == np.uint16
    assert len(np.unique(after)) > 256
    assert np.abs(rgb2lab(after)[..., 0] - rgb2lab(before)[..., 0]).max() < 0.1


def test_grey_image_is_colourised(model: ColourModel) -> None:
    grey = ImageData(from_float(IMAGES["grey"], 8), is_grey=True)
    coloured = colourise_image(grey, model, ColouriseOptions(temperature=0.0))
    assert not coloured.is_grey
    assert np.abs(rgb2lab(coloured.pixels)[..., 1:]).mean() > 3


def test_only_the_lightness_of_a_colour_image_is_used(model: ColourModel) -> None:
    """A colour image and a grey image of the same L* (by scikit-image) get the same chroma, up to rounding."""
    tinted = from_float(IMAGES["smooth"], 16)
    lightness = rgb2lab(tinted)[..., 0]
    linear = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.2963)
    grey = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    plain = from_float(np.repeat(grey[..., None], 3, -1).astype(np.float32), 16)
    # The input of the model is computed from 8 bits; a position can differ by one level.
    difference = np.abs(predict_chroma(tinted, model) - predict_chroma(plain, model))
    assert np.median(difference) < 1


SHAPES = [(1, 1), (3, 200), (77, 41), (400, 300), (1, 3000), (1000, 1500), (1500, 1000), (1344, 1800), (600, 2300)]


@pytest.mark.parametrize("shape", SHAPES)
def test_prediction_has_a_fixed_size_and_the_aspect_ratio_of_the_image(
    model: ColourModel, shape: tuple[int, int]
) -> None:
    distribution = predict_distribution(np.full((*shape, 3), 80, np.uint8), model)
    height, width = distribution.log_probabilities.shape[1:]
    side, stride = (max(PHOTO_SCALES), PhotoNet.stride) if model.is_photo else (max(CIFAR_SCALES), 1)
    assert abs(min(height, width) * stride - side) <= 16
    expected_ratio = min(max(shape) / min(shape), 4)
    assert max(height, width) * stride == pytest.approx(expected_ratio * side, abs=17)
    assert (height < width) == (shape[0] < shape[1])
    assert distribution.lightness.shape == (height, width)
    np.testing.assert_allclose(np.exp(distribution.log_probabilities).sum(0), 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["faded", "dots"])
def test_old_prints_are_prepared_but_not_frames_of_videos(photo_model: ColourModel, name: str) -> None:
    pixels = from_float(IMAGES[name], 8)
    plain = predict_colours(pixels, photo_model, ColouriseOptions(temperature=1.0), prepare=False).chroma
    prepared = predict_colours(pixels, photo_model, ColouriseOptions(temperature=1.0)).chroma
    frame = predict_chroma(pixels, photo_model, ColouriseOptions(temperature=1.0))
    np.testing.assert_array_equal(frame, plain)
    assert np.abs(prepared - plain).max() > 0.01


def test_palette_models_get_the_original_lightness(palette_model: ColourModel) -> None:
    pixels = from_float(IMAGES["faded"], 8)
    plain = predict_colours(pixels, palette_model, ColouriseOptions(), prepare=False).chroma
    np.testing.assert_array_equal(predict_colours(pixels, palette_model, ColouriseOptions()).chroma, plain)


def test_flipped_image_gets_flipped_colours(photo_model: ColourModel) -> None:
    pixels = from_float(smooth_image(256, 320), 8)
    chroma = predict_colours(pixels, photo_model, ColouriseOptions()).chroma
    flipped = predict_colours(np.ascontiguousarray(pixels[:, ::-1]), photo_model, ColouriseOptions()).chroma
    np.testing.assert_allclose(chroma, flipped[:, ::-1], atol=0.5)


def test_vivid_style_has_higher_chroma(photo_model: ColourModel) -> None:
    assert isinstance(photo_model.output, ChromaBins)
    common = (np.abs(photo_model.centres).sum(1) == 0).astype(np.float32)
    skewed = dataclasses.replace(photo_model.output, frequencies=(common + 0.01) / (common + 0.01).sum())
    model = dataclasses.replace(photo_model, output=skewed)
    pixels = from_float(IMAGES["smooth"], 8)
    plain, vivid = (
        np.hypot(*predict_chroma(pixels, model, ColouriseOptions(style=style, temperature=1.0)).T).mean()
        for style in STYLES
    )
    assert vivid > 1.02 * plain


def test_alpha_metadata_and_resolution_are_preserved(tmp_path: Path, model: ColourModel) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a horse"
    exif[0x0112] = 6  # rotate by 90° clockwise
    pixels = np.concatenate([np.rint(IMAGES["smooth"] * 255), RNG.integers(0, 256, (90, 130, 1))], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png", exif=exif, dpi=(300, 300))
    write_image(tmp_path / "out.png", colourise_image(read_image(tmp_path / "in.png"), model))
    result = Image.open(tmp_path / "out.png")
    assert (result.mode, result.size) == ("RGBA", (90, 130))
    np.testing.assert_array_equal(np.asarray(result)[..., 3], np.rot90(pixels[..., 3], -1))
    assert result.getexif()[0x010E] == "a horse"
    assert result.getexif().get(0x0112, 1) == 1
    assert result.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    source = rgb2lab(np.rot90(pixels[..., :3], -1))[..., 0]
    assert np.abs(rgb2lab(np.asarray(result)[..., :3])[..., 0] - source).mean() <= 0.3


def test_negative_temperature_is_rejected(model: ColourModel) -> None:
    with pytest.raises(UsageError, match=r"temperature is -0\.5"):
        predict_chroma(from_float(IMAGES["smooth"], 8), model, ColouriseOptions(temperature=-0.5))


def test_bundled_model_colourises() -> None:
    model = open_model()
    assert model.is_photo
    coloured = colourise_image(ImageData(from_float(IMAGES["grey"], 8)), model)
    assert np.abs(rgb2lab(coloured.pixels)[..., 1:]).mean() > 0.3


def test_scales_are_multiples_of_the_size_divisor() -> None:
    assert all(side % PhotoNet.size_divisor == 0 for side in PHOTO_SCALES)
    assert all(side % 8 == 0 for side in CIFAR_SCALES)
