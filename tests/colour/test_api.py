"""``chromabox.colourise()``: arrays, Pillow modes, bit depths and options.

Independent sources: scikit-image computes the expected lightness, Pillow makes the images of every mode.
"""

import multiprocessing
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps
from skimage.color import rgb2lab
from skimage.data import chelsea

import chromabox
from chromabox.colour import api
from chromabox.colour.api import colourise, parse_options
from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.constraints.hints import hints_from_pixels
from chromabox.colour.inference.predict import ColouriseOptions, colourise_image
from chromabox.colour.models.photonet import PhotoNet
from chromabox.colour.palette.io import load_palette
from chromabox.colour.weights.checkpoint import PhotoModel, model_metadata
from chromabox.colour.weights.onnx_model import ColourModel, load_onnx_model
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import ImageData, read_image
from colour_fixtures import write_colour_model
from import_fixtures import NOT_FOR_INFERENCE, run_without

CAT = chelsea()[80:180, 100:230]
GREY = np.asarray(Image.fromarray(CAT).convert("L"))
ALPHA = np.arange(100 * 130, dtype=np.uint32).reshape(100, 130) * 3 % 256


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ColourModel:
    """Return a small untrained photo model, whose colours are arbitrary but not grey."""
    cells = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 2, indexing="ij"), -1).reshape(-1, 2)
    bins = ChromaBins((10 * cells).astype(np.float32), np.full(81, 1 / 81, np.float32), 10.0)
    network = PhotoNet(81, widths=(8, 8, 8, 8), blocks=(1, 1, 1, 1))
    return write_colour_model(
        tmp_path_factory.mktemp("models") / "small.onnx",
        PhotoModel(network, bins, model_metadata("photo", {}, bins)),
        seed=0,
        scale=2,
        # Make warm colours more likely than cold ones.
        bias=bins.centres.sum(1) / 20,
    )


def lightness(values: np.ndarray) -> np.ndarray:
    """Return L* as computed by scikit-image, which accepts 8-bit, 16-bit and float values."""
    rgb = values[..., :3] if values.ndim == 3 and values.shape[2] >= 3 else np.stack([np.squeeze(values)] * 3, -1)
    return rgb2lab(rgb)[..., 0]


ARRAYS = {
    "grey": GREY,
    "grey, one channel": GREY[..., None],
    "rgb": CAT,
    "rgba": np.dstack([CAT, ALPHA.astype(np.uint8)]),
    "uint16": GREY.astype(np.uint16) * np.uint16(257) + np.where(GREY < 200, 3, 0).astype(np.uint16),
    "uint16 rgba": np.dstack([CAT.astype(np.uint16) * 257, ALPHA.astype(np.uint16) * 201]),
    "big-endian": (GREY.astype(np.uint16) * 257).astype(">u2"),
    "float64": GREY / 255,
    "float32 rgba": np.dstack([CAT / 255, ALPHA / 255]).astype(np.float32),
    "float16": (GREY / 255).astype(np.float16),
    "strided": CAT[::-2, ::3],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_array_gives_array_of_same_dtype_and_lightness(model: ColourModel, name: str) -> None:
    array = ARRAYS[name].copy() if name != "strided" else ARRAYS[name]
    before = array.copy()
    coloured = colourise(array, model=model)
    assert isinstance(coloured, np.ndarray)
    assert coloured.dtype == (np.float32 if array.dtype.kind == "f" else array.dtype.newbyteorder("="))
    channels = 4 if array.ndim == 3 and array.shape[2] == 4 else 3
    assert coloured.shape == (*array.shape[:2], channels)
    np.testing.assert_array_equal(array, before)
    assert np.abs(lightness(coloured) - lightness(array)).max() < (0.6 if array.dtype == np.uint8 else 0.3)
    assert np.ptp(coloured[..., :3].astype(float), axis=2).max() > 0.1 * (1 if array.dtype.kind == "f" else 255)
    if channels == 4:
        np.testing.assert_array_equal(coloured[..., 3], array[..., 3])
    if array.dtype.kind == "f":
        assert coloured.min() >= 0
        assert coloured.max() <= 1


def test_all_bit_depths_get_the_same_colours(model: ColourModel) -> None:
    uint8, uint16, floats = (colourise(ARRAYS[name], model=model) for name in ("grey", "big-endian", "float64"))
    # 16-bit pixels are reduced to 8 bits before inference, which changes the prediction slightly.
    assert np.abs(uint16 / 257 - uint8).mean() < 1
    np.testing.assert_allclose(floats, uint16 / 65535, atol=2e-5)


def test_result_equals_that_of_colourise_image(model: ColourModel, tmp_path: Path) -> None:
    Image.fromarray(CAT).save(tmp_path / "cat.png")
    expected = colourise_image(
        read_image(tmp_path / "cat.png"), model, ColouriseOptions(style="vivid", temperature=0.5)
    ).pixels
    options = {"style": "vivid", "temperature": 0.5, "model": model}
    np.testing.assert_array_equal(colourise(CAT, **options), expected)
    np.testing.assert_array_equal(np.asarray(colourise(Image.open(tmp_path / "cat.png"), **options)), expected)


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
    """Return the test image in a Pillow mode."""
    if mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = Image.fromarray(ARRAYS["rgba"])
        for step in {"La": ("LA", "La"), "PA": ("P", "PA")}.get(mode, (mode,)):
            image = image.convert(step)
        return image
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(Image.fromarray(CAT), *profiles, outputMode="LAB")
        assert converted is not None
        return converted
    if mode in ("I", "I;16"):
        return Image.fromarray(GREY.astype(np.int32 if mode == "I" else np.uint16) * 257)
    return Image.fromarray((GREY / 255).astype(np.float32)) if mode == "F" else Image.fromarray(CAT).convert(mode)


@pytest.mark.parametrize("mode", MODES)
def test_image_of_every_mode_gives_rgb_or_rgba(model: ColourModel, mode: str) -> None:
    image = in_mode(mode)
    assert image.mode == mode
    before = image.tobytes()
    coloured = colourise(image, model=model)
    assert isinstance(coloured, Image.Image)
    has_alpha = mode in ("LA", "La", "PA", "RGBA", "RGBa")
    assert (coloured.mode, coloured.size) == ("RGBA" if has_alpha else "RGB", (130, 100))
    assert image.tobytes() == before
    pixels = np.asarray(coloured)
    if mode == "1":
        assert set(lightness(pixels).round().ravel()) <= {0.0, 100.0}
    elif mode not in ("La", "RGBa"):  # premultiplied: colours are lost where the image is transparent
        # P and CMYK represent fewer colours; the reference is Pillow's conversion of the same image.
        reference = GREY if mode in ("I", "F", "I;16", "LAB") else np.asarray(image.convert("RGB"))
        tolerance = 3 if mode == "LAB" else 0.6
        if mode == "LAB":
            reference = CAT
        assert np.abs(lightness(pixels) - lightness(reference)).max() < tolerance
    if mode in ("RGBA", "LA"):
        np.testing.assert_array_equal(pixels[..., 3], ALPHA)


def test_info_is_kept_except_grey_profile_and_transparency(model: ColourModel, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "a cat"
    Image.fromarray(CAT).save(tmp_path / "cat.jpg", dpi=(300, 300), icc_profile=profile, exif=exif)
    coloured = colourise(Image.open(tmp_path / "cat.jpg"), model=model)
    assert coloured.info["dpi"] == (300, 300)
    assert coloured.info["icc_profile"] == profile
    assert coloured.getexif()[0x010E] == "a cat"
    grey = Image.fromarray(GREY)
    grey.info |= {"transparency": 7, "icc_profile": profile[:16] + b"GRAY" + profile[20:], "dpi": (72, 72)}
    coloured = colourise(grey, model=model)
    assert coloured.info == {"dpi": (72, 72)}
    assert coloured.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(coloured)[..., 3], np.where(GREY == 7, 0, 255))


@pytest.mark.parametrize(
    ("image", "error"),
    [
        ("cat.jpg", "image has type str"),
        (None, "image has type NoneType"),
        (np.zeros((4, 5), bool), "image has dtype bool"),
        (np.zeros((4, 5), np.int64), "image has dtype int64"),
        (np.zeros((4, 5), np.uint32), "image has dtype uint32"),
        (np.zeros((4, 5), complex), "image has dtype complex128"),
        (np.zeros((4, 5, 2), np.uint8), "shape 4 × 5 × 2"),
        (np.zeros((3, 4, 5, 3), np.uint8), "shape 3 × 4 × 5 × 3"),
        (np.zeros(5, np.uint8), "shape 5:"),
        (np.zeros((), np.uint8), r"shape \(\)"),
        (np.zeros((0, 5), np.uint8), "shape 0 × 5"),
        (np.full((4, 5), 1.5), "values from 1.5 to 1.5: expected 0 to 1"),
        (np.linspace(0, 1.002, 20).reshape(4, 5), "values from 0 to 1.002: expected 0 to 1"),
        (np.linspace(-0.002, 1, 20, dtype=np.float32).reshape(4, 5), "values from -0.002 to 1: expected 0 to 1"),
        (np.array([[0.5, 1.003]], np.float16), "values from 0.5 to 1.00293: expected 0 to 1"),
        (np.full((4, 5), -0.1), "values from -0.1"),
        (np.full((4, 5, 4), np.nan), "values that include NaN"),
        (np.full((4, 5), np.inf, np.float32), "values from inf"),
        (Image.new("L", (0, 5)), "no pixels"),
        (Image.fromarray(np.full((4, 5), 70000, np.int32)), "expected 0 to 65535"),
        (Image.fromarray(np.full((4, 5), 2.0, np.float32)), "expected 0 to 1"),
    ],
)
def test_unsupported_image_is_rejected(model: ColourModel, image: object, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        colourise(image, model=model)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rounding_errors_of_floats_are_clipped(model: ColourModel, dtype: type) -> None:
    values = (np.dstack([CAT, ALPHA]) / 255).astype(dtype)
    overshot = np.where(values == 1, 1.001, np.where(values == 0, -0.001, values)).astype(dtype)
    coloured = colourise(overshot, model=model)
    np.testing.assert_array_equal(coloured, colourise(values, model=model))
    assert (coloured.min(), coloured.max()) == (0, 1)
    grey = Image.fromarray(overshot[..., 3].astype(np.float32))
    np.testing.assert_array_equal(np.asarray(colourise(grey, model=model)).max(), 255)


def save_turned(path: Path, orientation: int, image: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif.get_ifd(0x8769)[0x9003] = orientation, "a cat", "2001:02:03 04:05:06"
    rdf = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
    xmp = (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{rdf}"><rdf:Description '
        f'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/></rdf:RDF></x:xmpmeta>'
    ).encode()
    options = {"xmp": xmp} if path.suffix in (".jpg", ".webp") else {}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options |= {"lossless": True} if path.suffix == ".webp" else {}
    image.save(path, dpi=(300, 200), exif=exif, icc_profile=profile, **options)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_an_image_is_applied_once(
    model: ColourModel, tmp_path: Path, suffix: str, orientation: int
) -> None:
    """The expected pixels and metadata are those of Pillow's exif_transpose."""
    path = tmp_path / f"cat{suffix}"
    save_turned(path, orientation, Image.fromarray(CAT))
    # Pillow 12 scrambles some TIFF files that are opened by name.
    with path.open("rb") as file, Image.open(file) as image:
        upright = ImageOps.exif_transpose(image)
    with path.open("rb") as file, Image.open(file) as image:
        coloured = colourise(image, model=model)
    np.testing.assert_array_equal(np.asarray(coloured), colourise(np.asarray(upright.convert("RGB")), model=model))
    assert coloured.size == ((100, 130) if orientation >= 5 else (130, 100))
    exif = coloured.getexif()
    assert (exif.get(0x0112, 1), exif[0x010E]) == (1, "a cat")
    if suffix != ".tif":  # Pillow does not write this directory to TIFF.
        assert exif.get_ifd(0x8769)[0x9003] == "2001:02:03 04:05:06"
    assert b"Orientation" not in coloured.info.get("xmp", b"")
    assert coloured.info["icc_profile"] == upright.info["icc_profile"]
    # Applying the orientation before the call gives the same result.
    np.testing.assert_array_equal(np.asarray(colourise(upright, model=model)), np.asarray(coloured))


def test_orientation_of_transparent_and_16_bit_images_is_applied(model: ColourModel, tmp_path: Path) -> None:
    for mode in ("RGBA", "LA", "I;16"):
        save_turned(tmp_path / "cat.png", 6, in_mode(mode))
        with Image.open(tmp_path / "cat.png") as image:
            upright, coloured = ImageOps.exif_transpose(image), colourise(image, model=model)
        assert coloured.size == (100, 130)
        np.testing.assert_array_equal(np.asarray(coloured), np.asarray(colourise(upright, model=model)))


def test_result_of_a_fax_can_be_saved_as_tiff(model: ColourModel, tmp_path: Path) -> None:
    in_mode("1").save(tmp_path / "fax.tif", compression="group4", dpi=(200, 200))
    with Image.open(tmp_path / "fax.tif") as fax:
        coloured = colourise(fax, model=model)
    coloured.save(tmp_path / "coloured.tif", dpi=coloured.info["dpi"])
    with Image.open(tmp_path / "coloured.tif") as saved:
        assert (saved.mode, saved.info["dpi"]) == ("RGB", (200, 200))
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(coloured))


def test_image_with_invalid_exif_is_colourised(model: ColourModel) -> None:
    image = Image.fromarray(CAT)
    image.info |= {"exif": b"Exif\0\0no EXIF", "dpi": (72, 72)}
    assert colourise(image, model=model).info == {"dpi": (72, 72)}


def python_examples() -> list[str]:
    """Return the Python examples in README.md and the how-to guide that save a colourised photograph."""
    root = Path(__file__).parents[2]
    texts = [(root / name).read_text(encoding="utf-8") for name in ("README.md", "docs/how-to.md")]
    blocks = [block for text in texts for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    return [block.partition("\ndetections")[0] for block in blocks if ".save(" in block]


def test_documented_examples_keep_orientation_and_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(python_examples()) == 2
    for example in python_examples():
        save_turned(tmp_path / "house.jpg", 8, Image.fromarray(CAT))
        before = (tmp_path / "house.jpg").read_bytes()
        exec(example, {})
        assert (tmp_path / "house.jpg").read_bytes() == before
        with Image.open("house-colour.jpg") as saved, Image.open("house.jpg") as source:
            exif = saved.getexif()
            assert (saved.size, exif.get(0x0112, 1), exif[0x010E]) == ((100, 130), 1, "a cat")
            assert exif.get_ifd(0x8769)[0x9003] == "2001:02:03 04:05:06"
            assert (saved.info["dpi"], saved.info["icc_profile"]) == ((300, 200), source.info["icc_profile"])
            expected = lightness(np.asarray(ImageOps.exif_transpose(source)))
            assert np.abs(lightness(np.asarray(saved)) - expected).mean() < 1
        (tmp_path / "house-colour.jpg").unlink()


def test_truncated_image_is_rejected(model: ColourModel, tmp_path: Path) -> None:
    Image.fromarray(CAT).save(tmp_path / "cat.jpg")
    (tmp_path / "cat.jpg").write_bytes((tmp_path / "cat.jpg").read_bytes()[:1500])
    with Image.open(tmp_path / "cat.jpg") as image, pytest.raises(ChromaboxError, match="cannot be decoded"):
        colourise(image, model=model)


NAVY, BEIGE = (0, 0, 128), (245, 245, 220)


def test_arguments_become_options(model: ColourModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[ColouriseOptions] = []

    def record(image: ImageData, model: object, options: ColouriseOptions) -> ImageData:
        calls.append(options)
        return image

    monkeypatch.setattr(api, "colourise_image", record)
    colourise(
        GREY,
        style="vivid",
        temperature=0.0,
        ban=["beige", np.array(BEIGE)],
        replace=["red=navy", ((1, 2, 3), "#00f")],
        min_confidence=0.25,
        model=model,
    )
    [options] = calls
    assert (options.style, options.effective_temperature) == ("vivid", 0.0)
    assert options.constraints.banned == (BEIGE, BEIGE)
    assert options.constraints.replacements == (((255, 0, 0), NAVY), ((1, 2, 3), (0, 0, 255)))
    assert options.constraints.min_confidence == 0.25
    assert options.constraints.palette is None
    colourise(GREY, model=model)
    assert calls[1] == ColouriseOptions()
    for allowed, colours in (("navy", (NAVY,)), (["beige", NAVY, np.array(BEIGE)], (BEIGE, NAVY, BEIGE))):
        colourise(GREY, allow=allowed, model=model)
        assert calls[-1].constraints.allowed == colours


def test_single_banned_colour_can_be_a_string(model: ColourModel) -> None:
    result = colourise(GREY, ban="purple", model=model)
    np.testing.assert_array_equal(result, colourise(GREY, ban=["purple"], model=model))
    assert (result != colourise(GREY, model=model)).any()


def test_palette_from_name_path_image_and_list(
    model: ColourModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "two.json").write_text('["#000080", "#f5f5dc"]')
    Image.fromarray(CAT).save(tmp_path / "cat.png")
    horse = load_palette("horse24")
    calls: list[ColouriseOptions] = []
    monkeypatch.setattr(api, "colourise_image", lambda image, model, options: calls.append(options) or image)
    specs = [horse, "horse24", tmp_path / "two.json", str(tmp_path / "two.json"), ["navy", BEIGE], tmp_path / "cat.png"]
    for palette in specs:
        colourise(GREY, palette=palette, model=model)
    palettes = [options.constraints.palette for options in calls]
    assert palettes[0] is horse
    assert palettes[1] is not None
    np.testing.assert_array_equal(palettes[1].colours, horse.colours)
    assert [palette.rgb.tolist() for palette in palettes[2:5] if palette] == [[list(NAVY), list(BEIGE)]] * 3
    assert palettes[5] is not None
    assert len(palettes[5]) == 16


def test_palette_restricts_the_hues_of_the_result(model: ColourModel) -> None:
    coloured = colourise(GREY, palette=["#a04040", "#4060a0"], model=model)
    lab = rgb2lab(coloured)
    is_mid_tone = (lab[..., 0] > 30) & (lab[..., 0] < 70)  # where sRGB has high chroma at these hues
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1]))[is_mid_tone]
    expected = [np.degrees(np.arctan2(b, a)) for _, a, b in rgb2lab(np.array([[160, 64, 64], [64, 96, 160]]) / 255)]
    distance = np.abs((hue[:, None] - expected + 180) % 360 - 180).min(1)
    assert distance.max() < 6


def test_hints_file_and_hints_object_give_the_same_result(model: ColourModel, tmp_path: Path) -> None:
    layer = np.zeros((100, 130, 4), np.uint8)
    layer[40:60, 50:70] = (40, 90, 200, 255)
    Image.fromarray(layer).save(tmp_path / "dots.png")
    hints = hints_from_pixels(layer[..., :3], layer[..., 3] > 127, (100, 130))
    results = [
        colourise(GREY, hints=spec, model=model) for spec in (tmp_path / "dots.png", str(tmp_path / "dots.png"), hints)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    painted = rgb2lab(results[0])[45:55, 55:65]
    assert painted[..., 2].max() < -5
    with pytest.raises(UsageError, match="the hint image is 130 × 100 pixels: expected 65 × 50, the size of the image"):
        colourise(GREY[::2, ::2], hints=hints, model=model)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"style": "loud"}, "style is 'loud': expected one of natural, vivid"),
        ({"temperature": 1.5}, "temperature is 1.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"min_confidence": -0.1}, "min_confidence is -0.1"),
        ({"palette": ["navy"]}, "palette: expected 2 to 256 colours, got 1"),
        ({"palette": 5}, "palette is 5"),
        ({"palette": ["navy", "no-colour"]}, "palette 'no-colour': invalid colour"),
        ({"allow": [(1, 2)]}, r"allow \(1, 2\): invalid colour"),
        ({"allow": [(1, 2, 300)]}, "invalid colour"),
        ({"ban": [(0.5, 0.5, 0.5)]}, "invalid colour"),
        ({"ban": [7]}, r"ban is \[7\]"),
        ({"replace": [("red",)]}, "expected a list of pairs"),
        ({"replace": [5]}, "expected a list of pairs"),
        ({"replace": "red"}, "replace .red.: expected two colours A=B"),
        ({"allow": "red", "ban": ["red"]}, "^ban: all allowed colours are banned"),
        ({"ban": "red, blue"}, "^ban 'red, blue': invalid colour"),
        ({"hints": 5}, "hints has type int"),
        ({"model": 5}, "model has type int"),
        ({"model": "no/such/run"}, "no such run folder or checkpoint"),
    ],
)
def test_invalid_option_is_rejected(model: ColourModel, options: dict[str, object], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        colourise(GREY, **{"model": model, **options})


def test_style_of_the_wrong_type_is_rejected() -> None:
    with pytest.raises(UsageError, match=r"style is \[1\]: expected one of natural, vivid"):
        parse_options([1], None, None, (), (), (), None, 0.0)


def test_model_is_loaded_once_per_file_version(
    model: ColourModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded: list[Path] = []

    def record(path: Path) -> ColourModel:
        loaded.append(path)
        return load_onnx_model(path / "best.onnx")

    monkeypatch.setattr(api, "open_model", record)
    (tmp_path / "best.onnx").write_bytes(model.path.read_bytes())
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: colourise(GREY, model=tmp_path), range(4)))
    assert loaded == [tmp_path]
    assert all(np.array_equal(results[0], other) for other in results[1:])
    colourise(GREY, model=str(tmp_path))
    assert len(loaded) == 1
    later = (tmp_path / "best.onnx").stat().st_mtime_ns + 1_000_000_000

    os.utime(tmp_path / "best.onnx", ns=(later, later))
    colourise(GREY, model=tmp_path)
    assert len(loaded) == 2


def test_exported_file_of_a_run_folder_is_used(model: ColourModel, tmp_path: Path) -> None:
    """The checkpoint is not read: it is older than the exported file."""
    (tmp_path / "best.safetensors").write_bytes(b"not a checkpoint")
    (tmp_path / "best.onnx").write_bytes(model.path.read_bytes())
    np.testing.assert_array_equal(colourise(GREY, model=tmp_path), colourise(GREY, model=model))


def test_colourise_is_importable_without_heavy_imports() -> None:
    program = (
        "import sys, chromabox\n"
        "assert 'colourise' in dir(chromabox) and not {'onnxruntime', 'numpy', 'PIL'} & sys.modules.keys()\n"
        "assert chromabox.colourise.__module__ == 'chromabox.colour.api' and 'onnxruntime' in sys.modules\n"
        f"assert not set({NOT_FOR_INFERENCE}) & sys.modules.keys()\n"
        "from chromabox import colourise\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert chromabox.colourise is colourise
    with pytest.raises(AttributeError, match="no attribute 'colorise'"):
        _ = chromabox.colorise


def test_colourise_needs_no_training_packages(tmp_path: Path) -> None:
    """The bundled model colourises with a fitted palette and hints, as in this process, which has the packages."""
    layer = np.zeros((100, 130, 4), np.uint8)
    layer[40:60, 50:70] = (40, 90, 200, 255)
    Image.fromarray(layer).save(tmp_path / "dots.png")
    Image.fromarray(CAT).save(tmp_path / "cat.png")
    program = (
        "import chromabox\n"
        "from PIL import Image\n"
        "image = Image.open('cat.png')\n"
        "chromabox.colourise(image).save('plain.png')\n"
        "chromabox.colourise(image, palette='cat.png', hints='dots.png', ban='red').save('constrained.png')\n"
    )
    done = run_without(NOT_FOR_INFERENCE, program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    options = {"palette": tmp_path / "cat.png", "hints": tmp_path / "dots.png", "ban": "red"}
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "plain.png")), colourise(CAT))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "constrained.png")), colourise(CAT, **options))


CHILD_PROCESSES = """
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import chromabox
from chromabox.colour.inference.load import open_model

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 80), np.uint8)


def colourise(model):
    return chromabox.colourise(IMAGE, model=model)


if __name__ == "__main__":
    with ThreadPoolExecutor(4) as threads:
        first, *others = threads.map(colourise, [None] * 4)
    assert all(np.array_equal(first, other) for other in others)
    model = open_model()
    for method in sys.argv[1:]:
        with multiprocessing.get_context(method).Pool(1) as pool:
            results = pool.map_async(colourise, [None, model]).get(timeout=100)
        assert all(np.array_equal(first, result) for result in results), method
        print(method)
    if hasattr(os, "fork"):
        pid = os.fork()
        if pid == 0:
            signal.alarm(100)
            os._exit(0 if np.array_equal(first, colourise(model)) and np.array_equal(first, colourise(None)) else 1)
        assert os.waitpid(pid, 0)[1] == 0
    assert np.array_equal(first, colourise(None))
"""


def test_threads_and_child_processes_get_the_same_result(tmp_path: Path) -> None:
    """Child processes of a process that has already colourised: the threads of its sessions do not exist in them."""
    methods = multiprocessing.get_all_start_methods()
    (tmp_path / "program.py").write_text(CHILD_PROCESSES)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", *methods], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == methods


def test_metadata_of_the_model_does_not_change_the_result(model: ColourModel) -> None:
    other = replace(model, metadata={})
    np.testing.assert_array_equal(colourise(GREY, model=model), colourise(GREY, model=other))


def test_adobe_rgb_image_is_converted_and_unchanged(model: ColourModel, tmp_path: Path) -> None:
    """The result states sRGB (DCF 2.0, 3.3.2: index R98); the input still states Adobe RGB (R03)."""
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA001: 2, 0xA005: {1: "R03"}})
    Image.fromarray(CAT).save(tmp_path / "cat.jpg", exif=exif)
    with Image.open(tmp_path / "cat.jpg") as image:
        results = [colourise(image, model=model) for _ in range(2)]
        assert image.getexif().get_ifd(0xA005)[1] == "R03"
    np.testing.assert_array_equal(*results)
    for result in results:
        stated = Image.Exif()
        stated.load(result.info["exif"])
        assert (stated.get_ifd(0x8769)[0xA001], stated.get_ifd(0xA005)[1]) == (1, "R98")
        assert "icc_profile" in result.info
