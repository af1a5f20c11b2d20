"""``chromabox.colourise()``: colourisation of a Pillow image or a NumPy array."""

import os
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
from chromabox.colour.inference.load import open_model
from chromabox.colour.inference.predict import STYLES, ColouriseOptions, StyleName, colourise_image
from chromabox.colour.palette.io import Colour, parse_colour, parse_replacement
from chromabox.colour.palette.palette import Palette
from chromabox.colour.weights.onnx_model import ColourModel, resolve_checkpoint
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
    """Colourise an image and preserve its lightness; return a new image and leave the input unchanged.

    ::

        import chromabox
        from PIL import Image

        coloured = chromabox.colourise(Image.open("house.jpg"), style="vivid", ban=["purple"])
        coloured.save("house-in-colour.jpg")

    Colours are CSS names ("teal"), "#rrggbb", "#rgb", or sequences of three integers from 0 to 255 (red, green, blue).

    Args:
        image: a Pillow image of any mode (I: values 0 to 65535, F: 0 to 1), or a NumPy array [height, width],
            [height, width, 1], [height, width, 3] or [height, width, 4] (the last channel is alpha) of uint8, uint16,
            or float in [0, 1]. The values are sRGB. Of a colour image, only the lightness is used. The EXIF orientation
            is not applied; apply it first with ``PIL.ImageOps.exif_transpose``.
        style: ``"natural"`` for conservative colours, or ``"vivid"``, which up-weights rare colours.
        temperature: override the style's temperature, 0 to 1: 0 selects the most likely colour, 1 the mean.
        palette: use only the colours of a palette: a ``Palette``, a sequence of 2 to 256 colours, the name of a bundled
            palette, or the path of a palette file or of an image, to which a palette of up to 16 colours is fitted.
        allow: a colour or a sequence of colours: use only these. With a palette, use its nearest colours.
        ban: a colour or a sequence of colours not to use. A single colour must be a string, here and in ``allow``.
        replace: a sequence of pairs (A, B) or strings ``"A=B"``, or one such string: colour A is replaced by B.
        hints: the path of a transparent image with painted dots or strokes and the same aspect ratio as the image, or a
            ``Hints`` object of the image's size. Hints are kept exactly and propagated to similar regions.
        min_confidence: keep pixels grey where the model's confidence is below this threshold, 0 to 1.
        model: the path of a run folder, a checkpoint or an exported ONNX file; a model returned by ``open_model``; or
            None for the model that ships with the package. A model given by path is cached until the file changes.
            Calls from several threads are safe.

    Returns:
        For a Pillow image, an image of mode RGB, or RGBA if the input has transparency. It keeps the input's ``info``
        (resolution, EXIF, RGB colour profile). For an array, an array [height, width, 3], or [height, width, 4] with
        unchanged alpha, of the same dtype in native byte order; for any float dtype, float32 in [0, 1], computed with
        16-bit precision.

    Raise UsageError for an unsupported image, an invalid option or constraints that contradict each other. Raise
    ChromaboxError, the base class of UsageError, for image data that cannot be decoded, and for a palette, hints or
    model file that cannot be read.
    """
    options = _parse_options(style, temperature, palette, allow, ban, replace, hints, min_confidence)
    if isinstance(image, Image.Image):
        return _colourise_pil(image, _load_cached(model), options)
    if isinstance(image, np.ndarray):
        return _colourise_array(image, _load_cached(model), options)
    raise UsageError(
        f"image has type {type(image).__name__}: expected a PIL.Image or a NumPy array; "
        "open a file with PIL.Image.open(path)"
    )


def _colourise_pil(image: Image.Image, model: ColourModel, options: ColouriseOptions) -> Image.Image:
    if not (image.width and image.height):
        raise UsageError(f"image has no pixels ({image.width} × {image.height}): expected at least 1 × 1")
    try:
        array = _pil_to_array(image)
    except (OSError, SyntaxError) as error:
        raise ChromaboxError(f"image cannot be decoded: the data is truncated or corrupt ({error})") from error
    pixels = to_uint8(_colourise_pixels(array[..., :3], model, options, image.size))
    if array.shape[2] == 4:
        pixels = np.concatenate([pixels, array[..., 3:]], axis=2)
    coloured = Image.fromarray(pixels)
    # Pillow's convert() keeps the info, too. A grey or CMYK colour profile would be wrong for RGB pixels.
    coloured.info = {name: value for name, value in image.info.items() if name not in ("transparency", "icc_profile")}
    coloured.info.update(save_options("PNG", None, image.info.get("icc_profile"), None))
    return coloured


def _pil_to_array(image: Image.Image) -> np.ndarray:
    """Return RGB, or RGBA if the image has transparency: uint8, or uint16 for the modes I and F."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _high_bit_grey_to_rgb(np.asarray(image))
    if image.mode == "LAB":  # Pillow converts this mode with colour profiles only
        profiles = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None
        return np.asarray(converted)
    if image.mode == "La":
        image = image.convert("LA")
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _high_bit_grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    """Return grey pixels of Pillow's modes I (0 to 65535) and F (0 to 1) as uint16 [height, width, 3]."""
    upper = 1 if grey.dtype.kind == "f" else 65535
    _check_range(grey, upper)
    pixels = from_float(grey.astype(np.float32), 16) if upper == 1 else grey.astype(np.uint16)
    return np.repeat(pixels[..., None], 3, axis=2)


def _colourise_array(array: np.ndarray, model: ColourModel, options: ColouriseOptions) -> np.ndarray:
    shape = " × ".join(map(str, array.shape)) or "()"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise UsageError(f"image has shape {shape}: expected height × width, or height × width × 1, 3 or 4 channels")
    kind = array.dtype.kind
    if not (kind == "f" or (kind == "u" and array.dtype.itemsize <= 2)):
        raise UsageError(f"image has dtype {array.dtype}: expected uint8, uint16, or float in [0, 1]")
    if kind == "f":
        _check_range(array, 1)
    # Convert to native byte order: an array read from a file may have the other one.
    values = np.asarray(array, np.float32 if kind == "f" else array.dtype.newbyteorder("="))
    values = values[..., None] if values.ndim == 2 else values
    rgb = values[..., :3] if values.shape[2] >= 3 else np.repeat(values, 3, axis=2)
    pixels = from_float(rgb, 16) if kind == "f" else rgb
    coloured: np.ndarray = _colourise_pixels(pixels, model, options, array.shape[1::-1])
    if kind == "f":
        coloured = np.divide(coloured, 65535, dtype=np.float32)
    return np.concatenate([coloured, values[..., 3:]], axis=2) if values.shape[2] == 4 else coloured


def _colourise_pixels(rgb: np.ndarray, model: ColourModel, options: ColouriseOptions, size: Sequence[int]) -> Pixels:
    """Return the colourised pixels; ``size`` is (width, height). Raise UsageError for hints of another size."""
    hints = options.constraints.hints
    if hints is not None and hints.labels.shape != (size[1], size[0]):
        height, width = hints.labels.shape
        raise UsageError(f"hints have {width} × {height} pixels: expected the image's size, {size[0]} × {size[1]}")
    return colourise_image(ImageData(np.ascontiguousarray(rgb)), model, options).pixels


def _check_range(values: np.ndarray, upper: int) -> None:
    """Raise UsageError unless all values are from 0 to ``upper``; NaN is invalid."""
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= upper):
        value_range = "NaN" if np.isnan(low) else f"{low:g} to {high:g}"
        raise UsageError(f"image has values {value_range}: expected 0 to {upper} for {values.dtype}")


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
    """Return the options that the arguments of ``colourise`` describe; raise UsageError for an invalid argument."""
    names: dict[str, StyleName] = {name: name for name in STYLES}
    if style not in names:
        raise UsageError(f"style is {style!r}: expected one of {', '.join(names)}")
    constraints = ColourConstraints(
        palette=_parse_palette(palette),
        allowed=_parse_colours(allow, "allow"),
        banned=_parse_colours(ban, "ban"),
        replacements=_parse_replacements(replace),
        hints=hints if isinstance(hints, Hints) else None,
        min_confidence=_check_fraction(min_confidence, "min_confidence"),
    )
    if not (hints is None or isinstance(hints, Hints | str | PathLike)):
        raise UsageError(f"hints has type {type(hints).__name__}: expected the path of a transparent image, or Hints")
    return ColouriseOptions(
        style=names[style],
        temperature=None if temperature is None else _check_fraction(temperature, "temperature"),
        constraints=constraints,
        hints=Path(hints) if isinstance(hints, str | PathLike) else None,
    )


def _check_fraction(value: Any, name: str) -> float:
    if not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise UsageError(f"{name} is {value!r}: expected a number from 0 to 1")
    return float(value)


def _parse_palette(spec: Any) -> Palette | None:
    if spec is None or isinstance(spec, Palette):
        return spec
    if isinstance(spec, str | PathLike):
        return palette_from_image_or_file(spec if isinstance(spec, str) else Path(spec))
    colours = _parse_colours(spec, "palette")
    if not 2 <= len(colours) <= 256:
        raise UsageError(f"palette has {len(colours)} colours: expected 2 to 256; for a single colour use allow")
    return Palette(np.array(colours, np.float32) / 256, "given")


def _parse_colours(spec: Any, name: str) -> tuple[Colour, ...]:
    """Return the colours of a sequence, or of a single string."""
    items = [spec] if isinstance(spec, str) else spec
    try:
        return tuple(_parse_colour(item, name) for item in items)
    except TypeError:
        raise UsageError(f"{name} is {spec!r}: expected a list of colours, such as ['teal', '#884422']") from None


def _parse_colour(spec: Any, name: str) -> Colour:
    if isinstance(spec, str):
        return parse_colour(spec, name)
    values = [int(value) for value in spec if isinstance(value, int | np.integer) and 0 <= value <= 255]
    if len(values) != 3 or len(spec) != 3:
        raise UsageError(
            f"{name} {spec!r}: invalid colour; expected a CSS name, '#rrggbb' or three integers from 0 to 255"
        )
    return values[0], values[1], values[2]


def _parse_replacements(spec: Any) -> tuple[tuple[Colour, Colour], ...]:
    items = [spec] if isinstance(spec, str) else spec
    try:
        pairs = [
            parse_replacement(item) if isinstance(item, str) else _parse_colours(tuple(item), "replace")
            for item in items
        ]
    except TypeError:
        pairs = [()]
    if any(len(pair) != 2 for pair in pairs):
        raise UsageError(f"replace is {spec!r}: expected a list of pairs, such as [('red', 'teal')] or ['red=teal']")
    return tuple((pair[0], pair[1]) for pair in pairs)


_load_lock = Lock()


def _reset_after_fork() -> None:
    """Clear the model cache in a forked process: the threads of the models' sessions exist only in the parent."""
    global _load_lock
    _load_lock = Lock()
    _load.cache_clear()


def _load_cached(model: Any) -> ColourModel:
    """Return a given model, or load the model at a given path, once per file version."""
    if isinstance(model, ColourModel):
        return model
    if not (model is None or isinstance(model, str | PathLike)):
        raise UsageError(
            f"model has type {type(model).__name__}: expected a run folder, a checkpoint or a model from open_model"
        )
    with _load_lock:  # Concurrent first calls load the file only once.
        if model is None:
            return _load(None, 0)
        path = Path(model)
        return _load(path.absolute(), resolve_checkpoint(path).stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _load(path: Path | None, mtime_ns: int) -> ColourModel:
    """Load a model; ``mtime_ns`` is part of the cache key and invalidates it when the file changes."""
    return open_model(path)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
