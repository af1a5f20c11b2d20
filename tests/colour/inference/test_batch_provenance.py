"""What colourised files state of themselves, read by Pillow's `getxmp`, and the quality of JPEG and WebP."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from chromabox import __version__
from chromabox.colour.inference.batch import add_provenance, cache_key, make_file_coloriser, read_provenance
from chromabox.colour.inference.predict import ColouriseOptions
from chromabox.colour.models import build_model
from chromabox.colour.palette.palette import Palette
from chromabox.colour.weights.checkpoint import PaletteModel, model_metadata
from chromabox.colour.weights.onnx_model import ColourModel
from chromabox.io.images import read_image, read_pages
from colour_fixtures import write_colour_model

# https://cv.iptc.org/newscodes/digitalsourcetype/, version of 2024-10-23.
TERM = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
PRINT = "http://cv.iptc.org/newscodes/digitalsourcetype/print"
IPTC_EXTENSION = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
PACKET = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    f'<rdf:Description rdf:about="" xmlns:ext="{IPTC_EXTENSION}" xmlns:dc="http://purl.org/dc/elements/1.1/">'
    f'<ext:DigitalSourceType rdf:resource="{PRINT}"/><dc:subject><rdf:Bag><rdf:li>Oma</rdf:li></rdf:Bag></dc:subject>'
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)
OPTIONS = dict.fromkeys(("style", "temperature", "allow", "ban", "replace", "min_confidence"))
GREY = np.add.outer(np.arange(24), np.arange(32)).astype(np.uint8) * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ColourModel:
    """A small model with random weights."""
    settings = {"num_filters": 4, "num_colours": 24}
    palette = Palette(np.random.default_rng(0).random((24, 3), dtype=np.float32), "vivid")
    small = PaletteModel(build_model("unet", **settings), palette, model_metadata("unet", settings, palette))
    return write_colour_model(tmp_path_factory.mktemp("model") / "small.onnx", small, seed=1, scale=8)


def description(path: Path) -> dict[str, Any]:
    """Return all properties of the XMP packet, without namespaces."""
    with Image.open(path) as image:
        image.load()
        found = image.getxmp()["xmpmeta"]["RDF"]["Description"]
    return {name: value for entry in ([found] if isinstance(found, dict) else found) for name, value in entry.items()}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("has_packet", [False, True])
def test_output_states_how_it_was_made(tmp_path: Path, model: ColourModel, suffix: str, has_packet: bool) -> None:
    info = PngInfo()
    if has_packet:
        info.add_itxt("XML:com.adobe.xmp", PACKET)
    Image.fromarray(GREY).save(tmp_path / "a.png", pnginfo=info)
    settings = cache_key(model, {**OPTIONS, "style": "vivid", "ban": ("red",), "min_confidence": 0.25})
    colourise = make_file_coloriser(model, ColouriseOptions(style="vivid"), settings=settings)
    assert colourise(tmp_path / "a.png", tmp_path / f"b{suffix}") == {
        "notes": [],
        "changes": [],
        "omitted": [],
        "observed": [],
    }
    xmp = description(tmp_path / f"b{suffix}")
    assert xmp["DigitalSourceType"] == TERM
    assert xmp["Version"] == __version__
    assert xmp["ModelSHA256"] == hashlib.sha256(model.path.read_bytes()).hexdigest()
    assert json.loads(xmp["Settings"]) == {"style": "vivid", "ban": ["red"], "min_confidence": 0.25}
    assert xmp.get("OriginalSourceType") == (PRINT if has_packet else None)
    assert ("subject" in xmp) == has_packet
    # The output of a colourised image still names the source type of the original.
    colourise(tmp_path / f"b{suffix}", tmp_path / "c.png")
    assert description(tmp_path / "c.png") == xmp


def test_statement_is_read(model: ColourModel) -> None:
    assert read_provenance(None) == {}
    statement = read_provenance(add_provenance(PACKET.encode(), {"net": "ab", "style": "natural", "palette": None}))
    assert statement == {
        "digital source type": TERM,
        "Chromabox version": __version__,
        "SHA-256 of the model": "ab",
        "settings": '{"style": "natural"}',
        "digital source type of the original": PRINT,
    }
    with pytest.raises(ValueError, match="not valid XML"):
        read_provenance(b"<a")


def test_packet_that_does_not_fit_a_jpeg_is_replaced_by_the_statement(tmp_path: Path, model: ColourModel) -> None:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", PACKET.replace("Oma", "Oma " * 20_000))
    Image.fromarray(GREY).save(tmp_path / "a.png", pnginfo=info)
    result = make_file_coloriser(model, ColouriseOptions())(tmp_path / "a.png", tmp_path / "b.jpg")
    assert result == {"notes": [], "changes": [], "omitted": ["XMP"], "observed": []}
    xmp = description(tmp_path / "b.jpg")
    assert xmp["DigitalSourceType"] == TERM
    assert "subject" not in xmp


def test_damaged_packet_is_replaced_and_named(tmp_path: Path, model: ColourModel) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.jpg", xmp=b"<broken")
    result = make_file_coloriser(model, ColouriseOptions())(tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert result == {"notes": [], "changes": [], "omitted": ["damaged XMP"], "observed": []}
    assert description(tmp_path / "b.jpg")["DigitalSourceType"] == TERM


def test_format_without_xmp_is_named(tmp_path: Path, model: ColourModel) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.bmp")
    result = make_file_coloriser(model, ColouriseOptions())(tmp_path / "a.bmp", tmp_path / "b.bmp")
    assert result["omitted"] == ["XMP"]


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_quality_is_applied(tmp_path: Path, model: ColourModel, suffix: str) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.webp", lossless=True)
    for name, quality in (("low", 30), ("default", None)):
        make_file_coloriser(model, ColouriseOptions(), quality=quality)(tmp_path / "a.webp", tmp_path / (name + suffix))
    if suffix == ".jpg":  # libjpeg scales its tables by 2 - quality / 50 above 50; the first entry of luminance is 16.
        for name, first in (("low", 27), ("default", 1)):
            with Image.open(tmp_path / f"{name}.jpg") as written:
                assert written.quantization[0][0] == first
    else:
        assert b"VP8L" not in (tmp_path / "low.webp").read_bytes()
        assert read_image(tmp_path / "default.webp").metadata.encoding == {"lossless": True}


@pytest.mark.parametrize(("name", "target"), [("a.tif", "b.tif"), ("a.gif", "b.png"), ("a.webp", "b.webp")])
def test_every_page_keeps_its_packet_and_states_how_it_was_made(
    tmp_path: Path, model: ColourModel, name: str, target: str
) -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(GREY[::-1])]
    options: dict[str, Any] = {"xmp": PACKET.encode()} if name == "a.webp" else {}
    if name == "a.tif":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[700] = PACKET.encode()
        options["tiffinfo"] = tags
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    colourise = make_file_coloriser(model, ColouriseOptions(), settings=cache_key(model, OPTIONS))
    assert colourise(tmp_path / name, tmp_path / target) == {"notes": [], "changes": [], "omitted": [], "observed": []}
    pages = list(read_pages(tmp_path / target))
    assert len(pages) == 2
    for page in pages:
        stated = read_provenance(page.metadata.xmp)
        assert stated["digital source type"] == TERM
        assert stated.get("digital source type of the original") == (None if name == "a.gif" else PRINT)
