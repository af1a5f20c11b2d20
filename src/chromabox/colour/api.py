"""``chromabox.colourise()``: colourisation of a Pillow image or a NumPy array."""

from collections.abc import Callable
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, TiffImagePlugin

from chromabox.colour.constraints.constraints import ColourConstraints, palette_from_image_or_file
from chromabox.colour.constraints.hints import Hints, read_painted
from chromabox.colour.inference.load import open_model
from chromabox.colour.inference.predict import STYLES, ColouriseOptions, colourise_image
from chromabox.colour.palette.io import parse_colour, parse_replacement
from chromabox.colour.palette.palette import Palette
from chromabox.colour.weights.onnx_model import ColourModel, resolve_checkpoint
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.arrays import to_pixels
from chromabox.io.exif import apply_orientation, read_orientation, upright_info
from chromabox.io.images import ImageData, check_file, to_uint8
from chromabox.runtime.session import cache_models

Parsed = TypeVar("Parsed")


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
    """Colourise an image and preserve its lightness. Return a new image and leave the input unchanged.

    ::

        import chromabox
        from PIL import Image

        coloured = chromabox.colourise(Image.open("house.jpg"), style="vivid", ban=["purple"])
        # Pillow saves only the metadata that are given to ``save``.
        metadata = {name: coloured.info[name] for name in ("exif", "icc_profile", "dpi") if name in coloured.info}
        coloured.save("house-in-colour.jpg", quality=95, **metadata)

    Colours are CSS names ("teal"), "#rrggbb", "#rgb", or sequences of three integers from 0 to 255 (red, green, blue).

    Args:
        image: a Pillow image of any mode (values from 0 to 65535 in mode I, from 0 to 1 in mode F), or a NumPy array
            [height, width], [height, width, 1], [height, width, 3] or [height, width, 4] (the last channel is alpha) of
            uint8, uint16, or float in [0, 1], with rounding errors of up to 0.001. The values of an array are sRGB.
            Those of a Pillow image with a colour profile are converted to sRGB. Only the lightness of a colour image is
            used. The orientation of a Pillow image is applied.
        style: ``"natural"``, pale where the colours are uncertain, or ``"vivid"``, as colourful as colour photographs.
        temperature: temperature (0 to 1) that overrides the temperature of the style. 0 selects the most likely colour;
            1 selects the mean.
        palette: use only the colours of this palette. It is a ``Palette``, a sequence of 2 to 256 colours, the name of
            a bundled palette, the path of a palette file, or the path of an image, to which a palette of up to 16
            colours is fitted.
        allow: a colour or a sequence of colours; no other colours are used. With a palette, the palette colours nearest
            to these colours are used.
        ban: a colour or a sequence of colours not to use. In ``ban`` and ``allow``, a single colour must be a string.
        replace: a sequence of pairs (A, B) or strings ``"A=B"``, or a single string. Colour A is replaced by colour B.
        hints: the path of a transparent image with painted dots or strokes and the same aspect ratio as the image, or a
            ``Hints`` object of the image's size. Painted pixels keep their chroma or, with a palette, that of the
            nearest palette colour. The hints are propagated to similar regions.
        min_confidence: keep pixels grey where the model's confidence is below this threshold (0 to 1).
        model: the path of a run folder, a checkpoint or an exported ONNX file; a model returned by ``open_model``; or
            None for the bundled model. A model given by its path is cached until the file changes.

    Returns:
        For a Pillow image, an upright image of mode RGB, or RGBA if the input has transparency. The ``info`` of the
        input (resolution, EXIF) is kept, without the orientation. The pixels are sRGB, with an sRGB profile if the
        input has a colour profile. For an array, an array [height, width, 3], or [height, width, 4] with unchanged
        alpha. The result for an integer array has the dtype of the input, in native byte order. The result for an array
        of any float dtype is float32 in [0, 1], computed with 16-bit precision.

    Calls from several threads are safe. Raise UsageError for an unsupported image, an invalid option or constraints
    that contradict each other, and a missing hints file. Raise ChromaboxError, the base class of UsageError, for
    image data that cannot be decoded, and for a palette, hints or model file that cannot be read.
    """
    options = parse_options(style, temperature, palette, allow, ban, replace, hints, min_confidence)
    is_pillow = isinstance(image, Image.Image)
    pixels, alpha, icc = to_pixels(image)
    if is_pillow:
        # Pillow has applied the orientation of a TIFF while decoding it.
        orientation = 1 if isinstance(image, TiffImagePlugin.TiffImageFile) else read_orientation(image)
        pixels = np.ascontiguousarray(apply_orientation(pixels, orientation))
        alpha = None if alpha is None else apply_orientation(alpha, orientation)
    painted = options.constraints.hints
    if painted is not None and painted.labels.shape != pixels.shape[:2]:
        (height, width), expected = painted.labels.shape, f"{pixels.shape[1]} × {pixels.shape[0]}"
        raise UsageError(f"the hint image is {width} × {height} pixels: expected {expected}, the size of the image")
    coloured: np.ndarray = colourise_image(ImageData(pixels), _resolve_model(model), options).pixels
    if is_pillow:
        coloured = to_uint8(coloured)
    elif image.dtype.kind == "f":
        coloured = np.divide(coloured, 65535, dtype=np.float32)
    if alpha is not None:
        coloured = np.dstack([coloured, alpha])
    if not is_pillow:
        return coloured
    result = Image.fromarray(coloured)
    # As in Pillow's ``convert()``, ``info`` is kept, except what describes the values of the input.
    outdated = {"transparency", "icc_profile", "gamma", "chromaticity", "srgb"}
    if image.mode == "1":
        outdated.add("compression")  # Fax compression, with which Pillow could not save RGB as TIFF.
    info = upright_info(image, result.size)
    result.info = {name: value for name, value in info.items() if name not in outdated}
    if icc is not None:
        result.info["icc_profile"] = icc
    return result


def parse_options(
    style: Any,
    temperature: Any,
    palette: Any,
    allow: Any,
    ban: Any,
    replace: Any,
    hints: Any,
    min_confidence: Any,
    prefix: str = "",
) -> ColouriseOptions:
    """Parse and validate the arguments of :func:`chromabox.colourise`.

    ``prefix`` precedes the option names in messages. It is ``--`` on the command line. Raise UsageError for an
    invalid argument, and ChromaboxError for a palette that cannot be read.
    """
    if not isinstance(style, str) or style not in STYLES:
        raise UsageError(f"{prefix}style is {style!r}: expected one of {', '.join(STYLES)}")
    if not (hints is None or isinstance(hints, Hints | str | PathLike)):
        raise UsageError(f"hints has type {type(hints).__name__}: expected the path of an image, or a Hints object")
    if isinstance(hints, str | PathLike):
        try:
            check_file(Path(hints), "a transparent image with painted hints")
        except ChromaboxError as error:
            raise UsageError(f"{prefix}hints: {error}") from None
        try:
            read_painted(Path(hints))
        except ChromaboxError as error:  # The message begins with "hints".
            raise type(error)(f"{prefix}{error}") from None
    parsed: dict[str, Any] = {
        "palette": _parse_palette(palette, f"{prefix}palette"),
        "allowed": _parse_list(allow, parse_colour, f"{prefix}allow"),
        "banned": _parse_list(ban, parse_colour, f"{prefix}ban"),
        "replacements": _parse_list(replace, parse_replacement, f"{prefix}replace"),
        "hints": hints if isinstance(hints, Hints) else None,
        "min_confidence": _parse_fraction(min_confidence, f"{prefix}min-confidence" if prefix else "min_confidence"),
    }
    try:
        constraints = ColourConstraints(**parsed)
    except UsageError as error:  # The constraints are contradictory. The message begins with an option name.
        raise UsageError(f"{prefix}{error}") from None
    return ColouriseOptions(
        style=style,
        temperature=None if temperature is None else _parse_fraction(temperature, f"{prefix}temperature"),
        constraints=constraints,
        hints=Path(hints) if isinstance(hints, str | PathLike) else None,
    )


def _parse_fraction(value: Any, name: str) -> float:
    if not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise UsageError(f"{name} is {value!r}: expected a number from 0 to 1")
    return float(value)


def _parse_palette(spec: Any, name: str) -> Palette | None:
    if spec is None or isinstance(spec, Palette):
        return spec
    if isinstance(spec, str | PathLike):
        return palette_from_image_or_file(spec if isinstance(spec, str) else Path(spec))
    colours = _parse_list(spec, parse_colour, name)
    if not 2 <= len(colours) <= 256:
        raise UsageError(
            f"{name}: expected 2 to 256 colours, got {len(colours)}; for a single colour, use the argument allow"
        )
    return Palette(np.array(colours, np.float32) / 256, "given")


def _parse_list(spec: Any, parse: Callable[[Any, str], Parsed], name: str) -> tuple[Parsed, ...]:
    """Parse the items of a sequence. A single string is one item."""
    try:
        return tuple(parse(item, name) for item in ([spec] if isinstance(spec, str) else spec))
    except (TypeError, ValueError):
        expected = "colours, such as ['teal', '#884422']"
        if parse is parse_replacement:
            expected = "pairs, such as [('red', 'teal')] or ['red=teal']"
        raise UsageError(f"{name} is {spec!r}: expected a list of {expected}") from None


def _resolve_model(model: Any) -> ColourModel:
    """Return a given model, or load the model at a given path. None loads the bundled model."""
    if model is None or isinstance(model, ColourModel):
        return model or _load(None, 0)
    if not isinstance(model, str | PathLike):
        raise UsageError(
            f"model has type {type(model).__name__}: expected a run folder, a checkpoint or a model from open_model"
        )
    path = Path(model)
    return _load(path.absolute(), resolve_checkpoint(path).stat().st_mtime_ns)


@cache_models(maxsize=4)
def _load(path: Path | None, mtime_ns: int) -> ColourModel:
    """Load a model. ``mtime_ns`` is part of the cache key, so that a changed file is loaded again."""
    return open_model(path)
