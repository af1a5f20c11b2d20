"""Conversion to sRGB: expected values from littleCMS called by Pillow, and from the formulas of the specifications."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from chromabox.errors import ChromaboxError
from chromabox.io.arrays import to_pixels
from chromabox.io.images import read_image, write_image

RNG = np.random.default_rng(6)
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
RGB = RNG.integers(0, 256, (16, 24, 3), np.uint8)
MUTED = (96 + RNG.integers(0, 64, (16, 24, 3))).astype(np.uint8)  # Inside the sRGB gamut in every space below.
SRGB_ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def make_icc(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ") -> bytes:
    """Return an ICC profile of version 2.4 with the given tags (ICC.1:2001-04, clause 6)."""
    table, body, offset = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name, offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", offset + len(body), b"none", 0x02400000, b"prtr", space, pcs)
    head += struct.pack(">6H4s", 2001, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += struct.pack(">3i", *(round(value * 65536) for value in (0.9642, 1.0, 0.8249)))  # The D50 white point.
    return head + bytes(128 - len(head)) + table + body


def text(description: str) -> bytes:
    data = description.encode() + b"\0"
    return b"desc" + bytes(4) + struct.pack(">I", len(data)) + data + bytes(78)


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def curve(linear: np.ndarray) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">I", len(linear)) + np.rint(linear * 65535).astype(">u2").tobytes()


def grey_icc(linear: np.ndarray, name: str = "grey") -> bytes:
    return make_icc(b"GRAY", {b"desc": text(name), b"wtpt": xyz(0.9642, 1, 0.8249), b"kTRC": curve(linear)})


def rgb_icc(columns: list[tuple[float, float, float]], gamma: float, name: str) -> bytes:
    """Return a matrix profile. The columns are red, green and blue in XYZ, adapted to D50."""
    tags = {b"desc": text(name), b"wtpt": xyz(0.9642, 1, 0.8249)}
    for letter, column in zip("rgb", columns, strict=True):
        tags[f"{letter}XYZ".encode()] = xyz(*column)
        tags[f"{letter}TRC".encode()] = curve(np.linspace(0, 1, 1024) ** gamma)
    return make_icc(b"RGB ", tags)


def cmyk_icc() -> bytes:
    """Return a CMYK profile with a table of two points for each ink, from inks to Lab (ICC.1:2001-04, 6.5.8)."""
    points = np.stack(np.meshgrid(*[[0.0, 1.0]] * 4, indexing="ij"), axis=-1).reshape(16, 4)
    cyan, magenta, yellow, black = points.T
    lightness = 100 * (1 - 0.4 * cyan) * (1 - 0.5 * magenta) * (1 - 0.1 * yellow) * (1 - 0.9 * black)
    a, b = 20 * magenta - 15 * cyan, 30 * yellow - 20 * cyan
    table = np.rint(np.stack([lightness * 2.55, a + 128, b + 128], axis=-1)).astype(np.uint8)
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(np.eye(3, dtype=int) * 65536).ravel())
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + identity * 4 + table.tobytes() + identity * 3
    return make_icc(b"CMYK", {b"desc": text("inks"), b"wtpt": xyz(0.9642, 1, 0.8249), b"A2B0": lut}, pcs=b"Lab ")


# Primaries adapted to D50, as in the profiles of the ICC, Adobe RGB (1998), ROMM RGB and Display P3.
SRGB = [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)]
ADOBE = [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)]
PROPHOTO = [(0.79767, 0.28804, 0.0), (0.13519, 0.71187, 0.0), (0.03135, 0.00009, 0.82490)]
DISPLAY_P3 = [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)]
RGB_PROFILES = {
    "Adobe RGB": rgb_icc(ADOBE, 2.19921875, "Adobe RGB"),
    "ProPhoto": rgb_icc(PROPHOTO, 1.8, "ProPhoto"),
    "Display P3": rgb_icc(DISPLAY_P3, 2.2, "Display P3"),
    "sRGB primaries with gamma 1.8": rgb_icc(SRGB, 1.8, "gamma 1.8"),
}
DOT_GAIN = np.linspace(0, 1, 256) ** 1.9 * 0.85 + np.linspace(0, 1, 256) * 0.15
GREY_PROFILES = {f"gamma {gamma}": grey_icc(np.linspace(0, 1, 4096) ** gamma) for gamma in (1.0, 1.8, 2.2, 2.6)}
GREY_PROFILES["a curve"] = grey_icc(DOT_GAIN)


def by_littlecms(image: Image.Image, icc: bytes) -> np.ndarray:
    profiles = (ImageCms.ImageCmsProfile(BytesIO(icc)), ImageCms.createProfile("sRGB"))
    # Without its optimisations, littleCMS is exact: they change dark values of 8 bits by up to 10.
    flags = ImageCms.Flags.NOOPTIMIZE
    return np.asarray(ImageCms.profileToProfile(image, *profiles, outputMode="RGB", flags=flags))


def linear(encoded: np.ndarray) -> np.ndarray:
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def encode(linear_values: np.ndarray) -> np.ndarray:
    """Apply the transfer function of sRGB (IEC 61966-2-1)."""
    power = 1.055 * np.power(linear_values, 1 / 2.4) - 0.055
    return np.where(linear_values <= 0.0031308, linear_values * 12.92, power)


def png_with(pixels: np.ndarray, **chunks: bytes) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    content = buffer.getvalue()
    return content[:33] + b"".join(chunk(name.encode(), data) for name, data in chunks.items()) + content[33:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("name", GREY_PROFILES)
def test_grey_profiles(tmp_path: Path, name: str, suffix: str) -> None:
    icc, path = GREY_PROFILES[name], tmp_path / f"a{suffix}"
    mode, options = ("RGB", {"lossless": True}) if suffix == ".webp" else ("L", {})
    Image.fromarray(GREY).convert(mode).save(path, icc_profile=icc, **options)
    image = read_image(path)
    if suffix == ".webp":  # A WebP file has RGB values, for which a grey profile is invalid.
        assert image.notes == (
            "the colour profile grey is not for RGB; it was ignored, and the values were taken as sRGB",
        )
        assert image.metadata.icc is None
        return
    with Image.open(path) as stored:
        expected = by_littlecms(stored.copy(), icc).astype(int)
    assert image.is_grey
    assert (np.ptp(image.pixels, axis=2) == 0).all()
    assert np.abs(image.pixels - expected).max() <= 1
    assert image.changes == ("converted from grey to sRGB",)


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
def test_16_bit_grey_profile_is_exact(tmp_path: Path, gamma: float) -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    tifffile.imwrite(tmp_path / "a.tif", values, iccprofile=grey_icc(np.linspace(0, 1, 4096) ** gamma))
    expected = encode((values / 65535) ** gamma) * 65535
    # The curve of the profile has 4096 entries of 16 bits, of which the darkest are coarse.
    bright = values > 3000
    assert np.abs(read_image(tmp_path / "a.tif").pixels[..., 0] - expected)[bright].max() < 10


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
@pytest.mark.parametrize("name", RGB_PROFILES)
def test_rgb_profiles_inside_the_gamut_agree_with_littlecms(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 95, "subsampling": 0}}.get(suffix, {})
    Image.fromarray(MUTED).save(path, icc_profile=RGB_PROFILES[name], **options)
    image = read_image(path)
    with Image.open(path) as stored:
        expected = by_littlecms(stored.convert("RGB"), RGB_PROFILES[name])
    inside = ((expected > 0) & (expected < 255)).all(axis=2)
    assert inside.mean() > 0.9
    np.testing.assert_allclose(image.pixels[inside], expected[inside].astype(int), rtol=0, atol=1)
    assert image.changes
    # The output has an sRGB profile, and reading it again changes nothing.
    write_image(tmp_path / "again.png", image)
    again = read_image(tmp_path / "again.png")
    np.testing.assert_array_equal(again.pixels, image.pixels)
    assert again.changes == ()
    assert "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(BytesIO(again.metadata.icc)))


def test_16_bit_rgb_profile_is_exact(tmp_path: Path) -> None:
    values = MUTED.astype(np.uint16) * 257 + 91
    icc = RGB_PROFILES["sRGB primaries with gamma 1.8"]
    for suffix, content in ((".tif", None), (".png", imagecodecs.png_encode(values))):
        path = tmp_path / f"a{suffix}"
        if content is None:
            tifffile.imwrite(path, values, photometric="rgb", iccprofile=icc)
        else:
            path.write_bytes(content[:33] + chunk(b"iCCP", b"x\0\0" + zlib.compress(icc)) + content[33:])
        image = read_image(path)
        assert image.bit_depth == 16
        assert np.abs(image.pixels - encode((values / 65535) ** 1.8) * 65535).max() < 12


@pytest.mark.parametrize("bits", [8, 16])
def test_luminance_of_colours_outside_the_gamut_is_kept(tmp_path: Path, bits: int) -> None:
    values = RGB if bits == 8 else RGB.astype(np.uint16) * 257
    icc = rgb_icc(DISPLAY_P3, 2.2, "Display P3")
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", iccprofile=icc)
    pixels = read_image(tmp_path / "a.tif").pixels / (2**bits - 1)
    luminance = (RGB / 255) ** 2.2 @ [0.22897, 0.69174, 0.07929]  # SMPTE EG 432-1, white point D65.
    by_clipping = linear(by_littlecms(Image.fromarray(RGB), icc) / 255) @ [0.2126, 0.7152, 0.0722]
    error = np.abs(np.cbrt(linear(pixels) @ [0.2126, 0.7152, 0.0722]) - np.cbrt(luminance)) * 116
    assert error.max() < (0.7 if bits == 8 else 0.1)  # L*
    assert (np.abs(np.cbrt(by_clipping) - np.cbrt(luminance)) * 116).max() > 2


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_profile(tmp_path: Path, suffix: str) -> None:
    inks = RNG.integers(0, 160, (4, 6, 4), np.uint8).repeat(8, 0).repeat(8, 1)
    path = tmp_path / f"a{suffix}"
    options = {"quality": 100, "subsampling": 0} if suffix == ".jpg" else {}
    Image.frombytes("CMYK", (48, 32), inks.tobytes()).save(path, icc_profile=cmyk_icc(), **options)
    with Image.open(path) as stored:
        expected = by_littlecms(stored.copy(), cmyk_icc())
    image = read_image(path)
    inside = ((expected > 0) & (expected < 255)).all(axis=2)
    assert inside.mean() > 0.9
    np.testing.assert_allclose(image.pixels[inside], expected[inside].astype(int), rtol=0, atol=1)
    assert image.changes == ("converted from inks to sRGB",)


def test_cmyk_without_profile_is_reported(tmp_path: Path) -> None:
    Image.new("CMYK", (2, 2), (0, 128, 128, 0)).save(tmp_path / "a.tif")
    image = read_image(tmp_path / "a.tif")
    assert image.pixels[0, 0].tolist() == [255, 127, 127]
    assert image.changes == ("converted from CMYK without a CMYK profile to sRGB, by a formula",)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("gamma", [1.0, 0.55, 0.35])
def test_png_gamma(tmp_path: Path, mode: str, gamma: float) -> None:
    stored = {"L": GREY, "LA": np.dstack([GREY, GREY])}.get(mode, np.dstack([GREY, GREY, GREY, GREY]))
    image = Image.fromarray(stored).convert(mode)
    values = np.asarray(image.convert("RGB"))[..., 0]
    path = tmp_path / "a.png"
    path.write_bytes(png_with(np.asarray(image), gAMA=struct.pack(">I", round(gamma * 100_000))))
    if mode == "P":
        image.save(path)
        content = path.read_bytes()
        path.write_bytes(content[:33] + chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000))) + content[33:])
    # PNG, 3rd edition, 13.13: the exponent of the values is the inverse of the gamma in the file.
    expected = encode((values / 255) ** (1 / gamma)) * 255
    result = read_image(path)
    assert np.abs(result.pixels[..., 0] - expected).max() < 1.1
    assert result.changes == (f"converted from PNG gamma {gamma:g} to sRGB",)
    if mode in ("LA", "RGBA"):
        np.testing.assert_array_equal(result.alpha, GREY)


def test_16_bit_png_gamma(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    content = imagecodecs.png_encode(values)
    (tmp_path / "a.png").write_bytes(content[:33] + chunk(b"gAMA", struct.pack(">I", 100_000)) + content[33:])
    pixels = read_image(tmp_path / "a.png").pixels[..., 0]
    assert np.abs(pixels - encode(values / 65535) * 65535).max() < 8


SRGB_CHROMATICITIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
P3_CHROMATICITIES = (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)


def chromaticities(values: tuple[float, ...]) -> bytes:
    return struct.pack(">8I", *(round(value * 100_000) for value in values))


SRGB_GAMMA, OTHER_GAMMA = struct.pack(">I", 45_455), struct.pack(">I", 100_000)
SRGB_DECLARATIONS = {
    "nothing": {},
    "gamma of sRGB": {"gAMA": SRGB_GAMMA},
    "gamma and primaries of sRGB": {"gAMA": SRGB_GAMMA, "cHRM": chromaticities(SRGB_CHROMATICITIES)},
    "sRGB before gamma": {"sRGB": b"\0", "gAMA": OTHER_GAMMA},
    "cICP of sRGB before a profile": {
        "cICP": bytes([1, 13, 0, 1]),
        "iCCP": b"x\0\0" + zlib.compress(GREY_PROFILES["a curve"]),
    },
    "profile of sRGB": {"iCCP": b"x\0\0" + zlib.compress(SRGB_ICC), "gAMA": OTHER_GAMMA},
    "primaries without gamma": {"cHRM": chromaticities(P3_CHROMATICITIES)},
}


@pytest.mark.parametrize("name", SRGB_DECLARATIONS)
def test_png_chunks_that_declare_srgb_change_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.png").write_bytes(png_with(RGB, **SRGB_DECLARATIONS[name]))
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.pixels, RGB)
    assert (image.changes, image.notes) == ((), ())


@pytest.mark.parametrize("declaration", ["cICP", "gAMA and cHRM"])
def test_png_chunks_for_display_p3(tmp_path: Path, declaration: str) -> None:
    chunks = {"cICP": bytes([12, 13, 0, 1])}
    if declaration != "cICP":
        chunks = {"gAMA": SRGB_GAMMA, "cHRM": chromaticities(P3_CHROMATICITIES)}
    (tmp_path / "a.png").write_bytes(png_with(MUTED, **chunks))
    # SMPTE EG 432-1 and IEC 61966-2-1: linear P3 to XYZ to linear sRGB, both with the white point D65.
    p3 = np.array([[0.48657, 0.26567, 0.19822], [0.22897, 0.69174, 0.07929], [0.0, 0.04511, 1.04394]])
    srgb = np.array([[0.41239, 0.35758, 0.18048], [0.21264, 0.71517, 0.07219], [0.01933, 0.11919, 0.95053]])
    expected = encode((linear(MUTED / 255) @ (np.linalg.inv(srgb) @ p3).T).clip(0, 1)) * 255
    assert np.abs(read_image(tmp_path / "a.png").pixels - expected).max() < 1.1


@pytest.mark.parametrize("transfer", [1, 4, 8])
def test_transfer_characteristics_of_cicp(tmp_path: Path, transfer: int) -> None:
    (tmp_path / "a.png").write_bytes(png_with(GREY, cICP=bytes([1, transfer, 0, 1])))
    values = GREY / 255
    bt_709 = np.where(values < 0.081, values / 4.5, ((values + 0.099) / 1.099) ** (1 / 0.45))  # ITU-R BT.709-6, 1.2
    expected = encode({1: bt_709, 4: values**2.2, 8: values}[transfer]) * 255
    assert np.abs(read_image(tmp_path / "a.png").pixels[..., 0] - expected).max() < 1.5


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_rejected(tmp_path: Path, transfer: int, name: str) -> None:
    (tmp_path / "a.png").write_bytes(png_with(RGB, cICP=bytes([9, transfer, 0, 1])))
    with pytest.raises(ChromaboxError, match=rf"a\.png is an HDR image \(cICP transfer characteristics {name}\): exp"):
        read_image(tmp_path / "a.png")


INVALID_PROFILES = {
    "text": b"none",
    "truncated": SRGB_ICC[:200],
    "no tags": SRGB_ICC[:128] + bytes(4),
    "Lab": SRGB_ICC[:16] + b"Lab " + SRGB_ICC[20:],
    "CMYK": cmyk_icc(),
    "grey": GREY_PROFILES["a curve"],
    "zeros": bytes(500),
}


@pytest.mark.parametrize("name", INVALID_PROFILES)
def test_invalid_profiles_are_ignored_and_reported(tmp_path: Path, name: str) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.tif", icc_profile=INVALID_PROFILES[name])
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.pixels, RGB)
    assert (image.metadata.icc, image.changes) == (None, ())
    assert len(image.notes) == 1
    assert image.notes[0].startswith("the colour profile ")
    assert image.notes[0].endswith("it was ignored, and the values were taken as sRGB")
    assert image.notes[0].isprintable()


@pytest.mark.parametrize("code", [(2, 13, 0, 1), (1, 7, 0, 1), (1, 13, 1, 1), (1, 13, 0, 0)])
def test_unsupported_cicp_is_ignored_and_reported(tmp_path: Path, code: tuple[int, ...]) -> None:
    (tmp_path / "a.png").write_bytes(png_with(RGB, cICP=bytes(code)))
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.pixels, RGB)
    assert "cICP" in image.notes[0]


def test_grey_with_rgb_profile(tmp_path: Path) -> None:
    icc = RGB_PROFILES["sRGB primaries with gamma 1.8"]
    Image.fromarray(GREY).save(tmp_path / "a.jpg", quality=100, icc_profile=icc)
    Image.fromarray(GREY).save(tmp_path / "same.png", icc_profile=SRGB_ICC)
    with Image.open(tmp_path / "a.jpg") as stored:
        expected = encode((np.asarray(stored) / 255) ** 1.8) * 255
    assert np.abs(read_image(tmp_path / "a.jpg").pixels[..., 1] - expected).max() < 1.1
    same = read_image(tmp_path / "same.png")
    assert (same.pixels[..., 0] == GREY).all()
    assert same.metadata.icc == SRGB_ICC


@pytest.mark.parametrize("entries", [{0xA001: 2}, {0xA001: 0xFFFF, 0xA005: {1: "R03"}}])
def test_adobe_rgb_in_exif(tmp_path: Path, entries: dict[int, object]) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769).update(entries)
    Image.fromarray(MUTED).save(tmp_path / "a.jpg", quality=100, subsampling=0, exif=exif)
    with Image.open(tmp_path / "a.jpg") as stored:
        expected = by_littlecms(stored.copy(), RGB_PROFILES["Adobe RGB"])
    image = read_image(tmp_path / "a.jpg")
    assert np.abs(image.pixels.astype(int) - expected).max() <= 1
    assert image.changes == ("converted from Adobe RGB (EXIF) to sRGB",)


def test_pillow_images_are_converted(tmp_path: Path) -> None:
    icc = RGB_PROFILES["ProPhoto"]
    Image.fromarray(MUTED).save(tmp_path / "a.png", icc_profile=icc)
    with Image.open(tmp_path / "a.png") as image:
        pixels, _, profile = to_pixels(image)
    np.testing.assert_array_equal(pixels, read_image(tmp_path / "a.png").pixels)
    assert profile == read_image(tmp_path / "a.png").metadata.icc


def test_embedded_profile_does_not_depend_on_the_date() -> None:
    from chromabox.io.colour_space import srgb_profile

    assert srgb_profile()[24:36] == struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    assert np.array_equal(by_littlecms(Image.fromarray(RGB), srgb_profile()), RGB)
