"""Conversion of pixel values to sRGB, from the colour space that the metadata of an image file declare.

A colour space is declared by an ICC profile (greyscale, RGB or CMYK), by the PNG chunks cICP, sRGB, gAMA and cHRM (in
the order of precedence of PNG, 3rd edition, 4.3), or by the EXIF entries for Adobe RGB (DCF 2.0, 4.3.4). The values of
an image without a declaration are sRGB. littleCMS computes the conversion, with the perceptual intent. imagecodecs
calls it, because Pillow cannot call it for 16-bit RGB. imagecodecs is imported where it is used, because its import
takes a third of a second and most images are sRGB.

littleCMS clips colours that sRGB cannot represent, which changes their lightness. Here, the saturation of these colours
is reduced instead, and their luminance is kept.
"""

import struct
from functools import lru_cache
from io import BytesIO
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image, ImageCms, PngImagePlugin

from chromabox.errors import ChromaboxError

Space = Literal["grey", "rgb", "cmyk"]
ChannelValues = UInt8[np.ndarray, "height width channels"] | UInt16[np.ndarray, "height width channels"]
RgbValues = UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width 3"]

# ICC.1:2022, 7.2.6: colour spaces of profiles. littleCMS has its own names for them.
_PROFILE_SPACES: dict[bytes, Space] = {b"GRAY": "grey", b"RGB ": "rgb", b"CMYK": "cmyk"}
_LITTLECMS_NAMES = {"grey": "gray", "rgb": "rgb", "cmyk": "cmyk"}
_NUM_COLOURS = {"grey": 1, "rgb": 3, "cmyk": 4}
_D65 = (0.3127, 0.3290)
_BT_709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
# ITU-T H.273 (07/2024), table 2: chromaticities of red, green and blue. The white point of all of them is D65.
_CICP_PRIMARIES = {
    1: _BT_709,
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
# H.273, table 3: transfer characteristics that are defined by gamma, by the curve of BT.709, and for HDR.
_CICP_GAMMA = {4: 2.2, 5: 2.8, 8: 1.0}
_CICP_BT_709 = (1, 6, 14, 15)
_CICP_HDR = {16: "PQ", 18: "HLG"}
_CICP_SRGB = 13
# The PNG gamma that is written for sRGB. Values within 5 % have the same meaning, as in libpng.
_SRGB_GAMMA = 1 / 2.2
# IEC 61966-2-1: luminance of linear red, green and blue.
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)
_IGNORED = "it was ignored, and the values were taken as sRGB"
_BAND_PIXELS = 1 << 18


class ColourProfile(NamedTuple):
    """An ICC profile and its name in messages."""

    icc: bytes
    name: str

    @property
    def space(self) -> Space | None:
        """The space of the values, or None for any other space and for data that are not a profile."""
        return _PROFILE_SPACES.get(self.icc[16:20])


class SrgbValues(NamedTuple):
    """Values in sRGB, the profile to embed, and lines about a conversion (`changes`) and about problems (`notes`)."""

    values: ChannelValues
    icc: bytes | None = None
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def srgb_profile() -> bytes:
    """Return an ICC profile for sRGB. It is always the same, whereas littleCMS writes the current date into it."""
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return icc[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + icc[36:]  # ICC.1:2022, 7.2.8: date and time.


def declared_profile(image: Image.Image, name: str) -> ColourProfile | None:
    """Return the profile that an open image declares, or None for sRGB and for images that declare nothing.

    ``name`` is the name of the file in messages. For a PNG, the file must still be open, otherwise cICP is not read.
    Raise ChromaboxError for an HDR image, whose values cannot be converted to sRGB without a choice of exposure.
    """
    if isinstance(image, PngImagePlugin.PngImageFile) and (code := _read_cicp(image)) is not None:
        return _cicp_profile(*code, name)
    if icc := image.info.get("icc_profile"):
        return ColourProfile(icc, _describe(icc))
    if image.format == "PNG" and "srgb" not in image.info:
        return _gamma_profile(image.info)
    if image.format in ("JPEG", "MPO", "TIFF", "WEBP") and _has_adobe_rgb_exif(image):
        import imagecodecs

        return ColourProfile(bytes(imagecodecs.cms_profile("adobergb")), "Adobe RGB (EXIF)")
    return None


def image_to_srgb(image: Image.Image, profile: ColourProfile | None) -> SrgbValues:
    """Return the 8-bit values of a Pillow image in sRGB: greyscale or RGB, followed by alpha if it has transparency.

    CMYK without a CMYK profile is converted by Pillow's formula, which is reported as a change.
    """
    if image.mode == "CMYK" and profile is not None and profile.space == "cmyk":
        return convert_to_srgb(np.asarray(image), "cmyk", profile)
    is_grey = image.mode in ("1", "L", "LA", "La")
    mode = ("L" if is_grey else "RGB") + ("A" if image.has_transparency_data else "")
    # Pillow converts premultiplied grey (La) only to LA.
    values = np.asarray(image if image.mode == mode else image.convert(mode))
    srgb = convert_to_srgb(values[..., None] if values.ndim == 2 else values, "grey" if is_grey else "rgb", profile)
    if image.mode == "CMYK":
        return srgb._replace(changes=("converted from CMYK without a CMYK profile to sRGB, by a formula",))
    return srgb


def convert_to_srgb(values: ChannelValues, space: Space, profile: ColourProfile | None) -> SrgbValues:
    """Return values of the given space in sRGB: greyscale as one channel, RGB and CMYK as three channels.

    Another channel, if any, is alpha, which is kept. CMYK is 0 for no ink and the maximum for full ink, and requires a
    CMYK profile. Greyscale with an RGB profile is converted like RGB with equal channels. Values whose profile is sRGB
    up to rounding to 8 bits are returned unchanged. An invalid profile and a profile for another space are ignored,
    with a note.
    """
    if profile is None:
        return SrgbValues(values)
    profile_space = profile.space
    if profile_space is None:
        return SrgbValues(values, notes=(f"the colour profile {profile.name} is invalid or not supported; {_IGNORED}",))
    if profile_space != space and (space, profile_space) != ("grey", "rgb"):
        expected = "greyscale" if space == "grey" else space.upper()
        return SrgbValues(values, notes=(f"the colour profile {profile.name} is not for {expected}; {_IGNORED}",))
    try:
        identical = _is_srgb(profile.icc, profile_space)
        icc = profile.icc if identical and profile_space == "rgb" else srgb_profile()
        if identical:
            return SrgbValues(values, icc)
        colours, alpha = values[..., : _NUM_COLOURS[space]], values[..., _NUM_COLOURS[space] :]
        convert = _convert_grey if space == "grey" else _convert_colours
        converted = convert(colours, profile.icc, profile_space)
    except (ImageCms.PyCMSError, OSError):
        return SrgbValues(values, notes=(f"the colour profile {profile.name} is invalid; {_IGNORED}",))
    result = np.concatenate([converted, alpha], axis=2) if alpha.shape[2] else converted
    return SrgbValues(result, icc, changes=(f"converted from {profile.name} to sRGB",))


def _describe(icc: bytes) -> str:
    """Return the description of a profile without control characters, or "(unnamed)"."""
    try:
        description = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(BytesIO(icc)))
    except (ImageCms.PyCMSError, OSError, UnicodeError, ValueError):
        description = ""
    printable = "".join(character for character in description if character.isprintable()).strip()[:60]
    return printable or "(unnamed)"


def _has_adobe_rgb_exif(image: Image.Image) -> bool:
    """Return whether EXIF declares Adobe RGB, by colour space 2 or by the interoperability index R03."""
    try:
        exif = image.getexif()
        photo = exif.get_ifd(0x8769)
        return photo.get(0xA001) == 2 or str(exif.get_ifd(0xA005).get(1, "")).startswith("R03")
    except Exception:  # Pillow raises many types of exceptions for invalid EXIF.
        return False


def _read_cicp(image: PngImagePlugin.PngImageFile) -> tuple[int, int, int, int] | None:
    """Return primaries, transfer characteristics, matrix and range of the cICP chunk, which Pillow does not read."""
    file = image.fp
    if file is None:
        return None
    position = file.tell()
    try:
        file.seek(8)  # After the signature.
        while len(header := file.read(8)) == 8:
            length, chunk_type = struct.unpack(">I4s", header)
            if chunk_type in (b"IDAT", b"IEND"):
                break
            if chunk_type == b"cICP" and length == 4:
                return struct.unpack("4B", file.read(4))
            file.seek(length + 4, 1)  # The data and the checksum.
        return None
    finally:
        file.seek(position)


def _cicp_profile(primaries: int, transfer: int, matrix: int, full_range: int, name: str) -> ColourProfile | None:
    if transfer in _CICP_HDR:
        raise ChromaboxError(
            f"{name} is an HDR image (cICP transfer characteristics {_CICP_HDR[transfer]}): expected an image with "
            "standard dynamic range; convert it first"
        )
    label = f"cICP {primaries}/{transfer}/{matrix}/{full_range}"
    chromaticities = _CICP_PRIMARIES.get(primaries)
    known = transfer in (*_CICP_GAMMA, *_CICP_BT_709, _CICP_SRGB)
    if chromaticities is None or not known or matrix != 0 or full_range != 1:
        return ColourProfile(b"", label)  # An invalid profile, which is reported.
    if transfer in _CICP_GAMMA:
        return _rgb_profile(label, chromaticities, _D65, gamma=_CICP_GAMMA[transfer])
    encoded = np.linspace(0, 1, 4096)
    if transfer == _CICP_SRGB:
        linear = _srgb_to_linear(encoded)
    else:  # H.273, table 3, value 1.
        alpha, beta = 1.09929682680944, 0.018053968510807
        linear = np.where(encoded < 4.5 * beta, encoded / 4.5, ((encoded + alpha - 1) / alpha) ** (1 / 0.45))
    return _rgb_profile(label, chromaticities, _D65, transferfunction=linear.astype(np.float32))


def _gamma_profile(info: dict[Any, Any]) -> ColourProfile | None:
    """Return the profile of the PNG chunks gAMA and cHRM, or None if they declare sRGB or no colour space."""
    gamma, chromaticities = info.get("gamma"), info.get("chromaticity")
    if not gamma:
        return None
    white, primaries = (chromaticities[:2], chromaticities[2:]) if chromaticities else (_D65, _BT_709)
    same_primaries = np.allclose((*white, *primaries), (*_D65, *_BT_709), atol=0.002)
    if abs(gamma / _SRGB_GAMMA - 1) < 0.05:
        if same_primaries:
            return None
        curve: dict[str, Any] = {"transferfunction": _srgb_to_linear(np.linspace(0, 1, 4096)).astype(np.float32)}
    else:
        curve = {"gamma": 1 / gamma}
    return _rgb_profile(f"PNG gamma {gamma:g}", primaries, white, **curve)


def _rgb_profile(name: str, primaries: tuple[float, ...], white: tuple[float, float], **curve: Any) -> ColourProfile:
    """Return the profile for primaries (x, y of red, green and blue), a white point and a curve.

    If the values are invalid, the profile is empty, which :func:`convert_to_srgb` reports.
    """
    import imagecodecs

    try:
        xyy = [value for x, y in zip(primaries[::2], primaries[1::2], strict=True) for value in (x, y, 1.0)]
        return ColourProfile(
            bytes(imagecodecs.cms_profile("rgb", whitepoint=(*white, 1.0), primaries=xyy, **curve)), name
        )
    except imagecodecs.CmsError:
        return ColourProfile(b"", name)


def _transform(colours: np.ndarray, icc: bytes, space: Space, dtype: type | np.dtype) -> np.ndarray:
    """Return sRGB of the given dtype for values [height, width, channels]. Floats are not clipped to [0, 1]."""
    import imagecodecs

    try:
        return imagecodecs.cms_transform(
            np.ascontiguousarray(colours[..., 0] if space == "grey" else colours),
            icc,
            srgb_profile(),
            colorspace=_LITTLECMS_NAMES[space],
            outcolorspace="rgb",
            outdtype=dtype,
            intent=imagecodecs.CMS.INTENT.PERCEPTUAL,
        )
    except imagecodecs.CmsError as error:
        raise ImageCms.PyCMSError(str(error)) from error


@lru_cache(maxsize=16)
def _is_srgb(icc: bytes, space: Space) -> bool:
    """Return whether the conversion of 8-bit values changes them by at most 1: greys, and for RGB a grid of colours."""
    if space == "cmyk":
        return False
    greys = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 51, dtype=np.uint8)] * 3), axis=-1).reshape(-1, 3)
    colours = greys if space == "grey" else np.concatenate([greys, grid])
    image = Image.fromarray(greys[None, :, 0] if space == "grey" else colours[None])
    profiles = (ImageCms.ImageCmsProfile(BytesIO(icc)), ImageCms.createProfile("sRGB"))
    converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    return bool((np.abs(np.asarray(converted, int)[0] - colours) <= 1).all())


def _convert_grey(grey: ChannelValues, icc: bytes, space: Space) -> ChannelValues:
    """Convert one channel by a table of all its values."""
    levels = np.arange(np.iinfo(grey.dtype).max + 1, dtype=grey.dtype)[None, :, None]
    encoded = _transform(levels.repeat(_NUM_COLOURS[space], axis=2), icc, space, np.float32)[0, :, 1]
    return _to_integers(encoded, grey.dtype)[grey]


def _convert_colours(colours: ChannelValues, icc: bytes, space: Space) -> RgbValues:
    """Convert RGB or CMYK to RGB in bands of rows.

    8-bit values inside the gamut are converted by the fast integer arithmetic of littleCMS. For 16-bit values, this
    arithmetic is not exact, and floats are used.
    """
    result = np.empty((*colours.shape[:2], 3), colours.dtype)
    rows = max(1, _BAND_PIXELS // colours.shape[1])
    for top in range(0, len(colours), rows):
        band, target = colours[top : top + rows], result[top : top + rows]
        if colours.dtype == np.uint8:
            target[:] = _transform(band, icc, space, np.uint8)
            at_limit = ((target == 0) | (target == 255)).any(axis=2)
            is_grey = (target[..., 0] == target[..., 1]) & (target[..., 1] == target[..., 2])
            selected = at_limit & ~is_grey
        else:
            selected = np.ones(band.shape[:2], bool)
        if selected.any():
            encoded = _transform(band[selected][None], icc, space, np.float32)[0]
            target[selected] = _to_integers(_reduce_saturation(encoded), colours.dtype)
    return result


def _reduce_saturation(encoded: Float32[np.ndarray, "colours 3"]) -> Float32[np.ndarray, "colours 3"]:
    """Move colours outside [0, 1] towards the grey of the same luminance, up to the limit of the gamut."""
    linear = _srgb_to_linear(encoded)
    grey = (linear @ _LUMINANCE)[:, None].clip(0, 1)
    difference = linear - grey
    room = np.where(difference > 0, 1 - grey, grey)
    scale = (room / np.maximum(np.abs(difference), 1e-9)).min(axis=1, keepdims=True).clip(max=1)
    inside = (grey + scale * difference).clip(0, 1)
    outside_gamut = ((encoded < 0) | (encoded > 1)).any(axis=1, keepdims=True)
    # IEC 61966-2-1: from linear to encoded values.
    moved = np.where(inside <= 0.0031308, inside * 12.92, 1.055 * inside ** (1 / 2.4) - 0.055)
    return np.where(outside_gamut, moved, encoded).astype(np.float32)


def _srgb_to_linear(encoded: np.ndarray) -> np.ndarray:
    """Return linear values of encoded sRGB values (IEC 61966-2-1). Negative values are on the linear part."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((np.maximum(encoded, 0.04045) + 0.055) / 1.055) ** 2.4)


def _to_integers(encoded: Float32[np.ndarray, "*shape"], dtype: np.dtype) -> np.ndarray:
    return np.rint(encoded.clip(0, 1) * np.iinfo(dtype).max).astype(dtype)
