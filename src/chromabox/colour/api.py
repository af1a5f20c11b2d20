"""Colouring from Python in one call: a Pillow picture or a numpy array in, the same kind in colour out."""

from collections.abc import Sequence
from functools import lru_cache
from numbers import Real
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from chromabox.colour.constraints.constraints import ColourConstraints, palette_from_image_or_file
from chromabox.colour.constraints.hints import Hints
from chromabox.colour.inference.predict import STYLES, ColouriseOptions, ColourModel, StyleName, colourise_image
from chromabox.colour.palette.io import Colour, parse_colour, parse_replacement
from chromabox.colour.palette.palette import Palette
from chromabox.colour.weights.checkpoint import PaletteModel, PhotoModel, load_model, resolve_checkpoint
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.exif import save_options
from chromabox.io.images import ImageData, Pixels, from_float, to_uint8


def colourise(
    image: Any,
    *,
    style: str = "natural",
    temperature: float | None = None,
    palette: Any = None,
    allow: Any = (),
    ban: Any = (),
    replace: Any = (),
    hints: Any = None,
    min_confidence: float = 0.0,
    model: Any = None,
) -> Any:
    """The picture in colour, its own lightness kept; the one given is not changed.

    ::

        import chromabox
        from PIL import Image

        coloured = chromabox.colourise(Image.open("house.jpg"), style="vivid", ban=["purple"])
        coloured.save("house-in-colour.jpg")

    Args:
        image: a Pillow picture of any mode, or a numpy array [height, width], [height, width, 1], [height, width, 3] or
            [height, width, 4] (the last is alpha) of uint8, uint16, or floats in [0, 1]; sRGB. Of a coloured one only
            the lightness is used. It is taken as it stands: a photograph lying on its side is better turned before
            (``PIL.ImageOps.exif_transpose``).
        style: ``"natural"``, careful where the net does not know, or ``"vivid"``.
        temperature: instead of the style's: 0 takes the likeliest colour of each place, 1 the mean of all.
        palette: these colours only: a Palette, a list of colours, or the name or path of a palette or of a picture.
        allow: these colours only; of a palette those nearest to them. Colours are CSS names, ``"#rrggbb"``, or triples
            of 0 to 255.
        ban: never these colours.
        replace: pairs (A, B) or ``"A=B"``: what would become A becomes B.
        hints: path of a transparent picture with painted dots or strokes, or ``Hints`` of the picture's size.
        min_confidence: places about which the net is less certain than this (0 to 1) stay grey.
        model: a run folder, checkpoint or exported net, or one from ``load_trained``; the shipped one if None. A net
            named by its path is kept for further calls, until its file changes; several threads may call.

    Returns:
        Of a Pillow picture a new one of mode RGB, or RGBA if it has transparency, with its info (resolution, EXIF,
        profile). Of an array a new one [height, width, 3] or, with alpha, [height, width, 4], of the same type; floats
        as float32.

    Raises UsageError for what is no such picture or wish, ChromaboxError for a file that cannot be read.
    """
    wishes = _parse_options(style, temperature, palette, allow, ban, replace, hints, min_confidence)
    if isinstance(image, Image.Image):
        return _colourise_pil(image, _load_cached(model), wishes)
    if isinstance(image, np.ndarray):
        return _colourise_array(image, _load_cached(model), wishes)
    kind = type(image).__name__
    raise UsageError(f"image is a {kind}: give a PIL.Image or a numpy array (of a file: PIL.Image.open(path))")


def _colourise_pil(image: Image.Image, model: ColourModel, options: ColouriseOptions) -> Image.Image:
    if not (image.width and image.height):
        raise UsageError(f"image has no pixels ({image.width} × {image.height}): at least 1 × 1 is needed")
    try:
        values = _pil_to_array(image)
    except (OSError, SyntaxError) as error:
        raise ChromaboxError(f"image cannot be decoded ({error}); a whole, undamaged picture is needed") from error
    found = to_uint8(_colourise_pixels(values[..., :3], model, options, image.size))
    if values.shape[2] == 4:
        found = np.concatenate([found, values[..., 3:]], axis=2)
    coloured = Image.fromarray(found)
    # As Pillow's own convert does; a profile of grey or of inks would be wrong for red, green and blue.
    coloured.info = {name: value for name, value in image.info.items() if name not in ("transparency", "icc_profile")}
    coloured.info.update(save_options("PNG", None, image.info.get("icc_profile"), None))
    return coloured


def _pil_to_array(image: Image.Image) -> np.ndarray:
    """Red, green, blue and, where there is transparency, alpha: uint8; of wide greys uint16."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _high_bit_grey_to_rgb(np.asarray(image))
    if image.mode == "LAB":  # which Pillow converts by way of colour profiles only
        profiles = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None
        return np.asarray(converted)
    if image.mode == "La":
        image = image.convert("LA")
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _high_bit_grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    """Grey of Pillow's modes I (0 to 65535) and F (0 to 1) as uint16 [height, width, 3]."""
    top = 1 if grey.dtype.kind == "f" else 65535
    _check_range(grey, top)
    sixteen = from_float(grey.astype(np.float32), 16) if top == 1 else grey.astype(np.uint16)
    return np.repeat(sixteen[..., None], 3, axis=2)


def _colourise_array(array: np.ndarray, model: ColourModel, options: ColouriseOptions) -> np.ndarray:
    shape = " × ".join(map(str, array.shape))
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise UsageError(
            f"image has the shape {shape or '()'}: height × width, alone or with 1, 3 or 4 channels, is right"
        )
    kind = array.dtype.kind
    if not (kind == "f" or (kind == "u" and array.dtype.itemsize <= 2)):
        raise UsageError(f"image is of {array.dtype}: uint8, uint16 or floats in [0, 1] are right")
    if kind == "f":
        _check_range(array, 1)
    # The machine's own byte order, which a file's may not be.
    values = np.asarray(array, np.float32 if kind == "f" else array.dtype.newbyteorder("="))
    values = values[..., None] if values.ndim == 2 else values
    colours = values[..., :3] if values.shape[2] >= 3 else np.repeat(values, 3, axis=2)
    pixels = from_float(colours, 16) if kind == "f" else colours
    found: np.ndarray = _colourise_pixels(pixels, model, options, array.shape[1::-1])
    if kind == "f":
        found = np.divide(found, 65535, dtype=np.float32)
    return np.concatenate([found, values[..., 3:]], axis=2) if values.shape[2] == 4 else found


def _colourise_pixels(rgb: np.ndarray, model: ColourModel, options: ColouriseOptions, size: Sequence[int]) -> Pixels:
    """Pixels in colour; ``size`` is width and height."""
    hints = options.constraints.hints
    if hints is not None and hints.labels.shape != (size[1], size[0]):
        height, width = hints.labels.shape
        raise UsageError(f"hints are {width} × {height} pixels; the image's {size[0]} × {size[1]} is right")
    return colourise_image(ImageData(np.ascontiguousarray(rgb)), model, options).pixels


def _check_range(values: np.ndarray, upper: int) -> None:
    """Raise UsageError unless all values are from 0 to ``top``; not-a-number is none of them."""
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= upper):
        found = "NaN" if np.isnan(low) else f"{low:g} to {high:g}"
        raise UsageError(f"image has values {found}: 0 to {upper} is right for {values.dtype}")


def _parse_options(
    style: str,
    temperature: Any,
    palette: Any,
    allow: Any,
    ban: Any,
    replace: Any,
    hints: Any,
    min_confidence: Any,
) -> ColouriseOptions:
    """What the arguments mean; UsageError for the first that means nothing."""
    names: dict[str, StyleName] = {name: name for name in STYLES}
    if style not in names:
        raise UsageError(f"style is {style!r}: there are {', '.join(names)}")
    control = ColourConstraints(
        palette=_parse_palette(palette),
        allowed=_parse_colours(allow, "allow"),
        banned=_parse_colours(ban, "ban"),
        replacements=_parse_replacements(replace),
        hints=hints if isinstance(hints, Hints) else None,
        min_confidence=_check_fraction(min_confidence, "min_confidence"),
    )
    if not (hints is None or isinstance(hints, Hints | str | PathLike)):
        raise UsageError(f"hints is a {type(hints).__name__}: give the path of a transparent picture, or Hints")
    return ColouriseOptions(
        style=names[style],
        temperature=None if temperature is None else _check_fraction(temperature, "temperature"),
        constraints=control,
        hints=Path(hints) if isinstance(hints, str | PathLike) else None,
    )


def _check_fraction(value: Any, name: str) -> float:
    if not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise UsageError(f"{name} is {value!r}: give a number from 0 to 1")
    return float(value)


def _parse_palette(spec: Any) -> Palette | None:
    if spec is None or isinstance(spec, Palette):
        return spec
    if isinstance(spec, str | PathLike):
        return palette_from_image_or_file(spec if isinstance(spec, str) else Path(spec))
    colours = _parse_colours(spec, "palette")
    if not 2 <= len(colours) <= 256:
        raise UsageError(f"palette has {len(colours)} colours: 2 to 256 are right; for a single colour use allow")
    return Palette(np.array(colours, np.float32) / 256, "given")


def _parse_colours(spec: Any, name: str) -> tuple[Colour, ...]:
    """Several colours, or one alone by its name."""
    several = [spec] if isinstance(spec, str) else spec
    try:
        return tuple(_parse_colour(one, name) for one in several)
    except TypeError:
        raise UsageError(f"{name} is {spec!r}: give a list of colours, such as ['teal', '#884422']") from None


def _parse_colour(spec: Any, name: str) -> Colour:
    if isinstance(spec, str):
        return parse_colour(spec, name)
    values = [int(value) for value in spec if isinstance(value, int | np.integer) and 0 <= value <= 255]
    if len(values) != 3 or len(spec) != 3:
        raise UsageError(f"{name} {spec!r}: is no colour; give a CSS name, '#rrggbb' or three whole numbers 0 to 255")
    return values[0], values[1], values[2]


def _parse_replacements(spec: Any) -> tuple[tuple[Colour, Colour], ...]:
    several = [spec] if isinstance(spec, str) else spec
    try:
        pairs = [
            parse_replacement(one) if isinstance(one, str) else _parse_colours(tuple(one), "replace") for one in several
        ]
    except TypeError:
        pairs = [()]
    if any(len(pair) != 2 for pair in pairs):
        raise UsageError(f"replace is {spec!r}: give a list of pairs, such as [('red', 'teal')] or ['red=teal']")
    return tuple((pair[0], pair[1]) for pair in pairs)


_load_lock = Lock()


def _load_cached(model: Any) -> ColourModel:
    """The net given, or the one at a place, which is read only once."""
    if isinstance(model, PaletteModel | PhotoModel):
        return model
    if not (model is None or isinstance(model, str | PathLike)):
        raise UsageError(
            f"model is a {type(model).__name__}: give a run folder, a checkpoint or what load_trained returns"
        )
    with _load_lock:  # so that two threads that ask at the same time wait for one reading
        if model is None:
            return _load(None, 0)
        path = resolve_checkpoint(Path(model)).resolve()
        return _load(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _load(path: Path | None, mtime_ns: int) -> ColourModel:
    """The net at ``path`` as it was at the time ``changed``."""
    return load_model(path)
