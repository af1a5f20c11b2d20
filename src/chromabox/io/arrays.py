"""Conversion of Pillow images and NumPy arrays to pixels."""

from typing import Any

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.colour_space import convert_to_srgb, declared_profile, image_to_srgb
from chromabox.io.images import Pixels, from_float
from chromabox.io.sixteen_bit import range_issue


def to_pixels(image: Any) -> tuple[Pixels, np.ndarray | None, bytes | None]:
    """Return the sRGB pixels of an image, its alpha [height, width] or None, and an sRGB profile or None.

    The values of a Pillow image with a colour profile are converted to sRGB. The returned profile is not None if the
    image has a colour profile.

    Args:
        image: a Pillow image of any mode (mode I with values 0 to 65535, mode F with 0 to 1), or a NumPy array of
            uint8, uint16, or float in [0, 1] with the shape [height, width], [height, width, 1], [height, width, 3] or
            [height, width, 4]. The fourth channel, if any, is alpha.

    Floating-point values may exceed the range by 0.001, and are clipped. They are returned as uint16. Alpha has the
    dtype of the image, or float32 for a floating-point image. Raise UsageError for any other image, and ChromaboxError
    for image data that cannot be decoded.
    """
    if not isinstance(image, Image.Image | np.ndarray):
        raise UsageError(
            f"image has type {type(image).__name__}: expected a PIL.Image or a NumPy array; "
            "open a file with PIL.Image.open(path)"
        )
    array, icc = _decode(image) if isinstance(image, Image.Image) else (image, None)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        shape = " × ".join(map(str, array.shape)) or "()"
        raise UsageError(f"image has shape {shape}: expected height × width, or height × width × 1, 3 or 4 channels")
    is_float = array.dtype.kind == "f"
    if is_float:
        _check_range(array, 1)
    elif array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise UsageError(f"image has dtype {array.dtype}: expected uint8, uint16, or float in [0, 1]")
    # Convert to native byte order, because an array that was read from a file can have the opposite byte order.
    values = np.asarray(array, np.float32 if is_float else array.dtype.newbyteorder("="))
    values = values[..., None] if values.ndim == 2 else values
    pixels = values[..., :3] if values.shape[2] >= 3 else np.repeat(values, 3, axis=2)
    alpha = values[..., 3] if values.shape[2] == 4 else None
    if is_float and alpha is not None:
        alpha = alpha.clip(0, 1)
    return np.ascontiguousarray(from_float(pixels, 16) if is_float else pixels), alpha, icc


def _decode(image: Image.Image) -> tuple[np.ndarray, bytes | None]:
    """Return sRGB values and the profile to embed, if any.

    The values are grey, RGB or RGBA of uint8, grey of uint16 (modes I and F), or, for mode F without a profile, float.
    """
    if not (image.width and image.height):
        raise UsageError(f"image has no pixels ({image.width} × {image.height}): expected at least 1 × 1")
    try:
        # The profile is read first, because the file of an image may be closed when its pixels have been read.
        profile = declared_profile(image, "image")
        _load(image)
        if image.mode == "F" and profile is None:
            return np.asarray(image), None
        if image.mode == "LAB":  # Pillow converts this mode only with colour profiles.
            profiles = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
            return np.asarray(ImageCms.profileToProfile(image, *profiles, outputMode="RGB")), None
        if image.mode == "F" or image.mode.startswith("I"):
            values = np.asarray(image)
            _check_range(values, 1 if image.mode == "F" else 65535)
            values = from_float(values, 16) if image.mode == "F" else values.astype(np.uint16)
            srgb = convert_to_srgb(values[..., None], "grey", profile)
        else:
            srgb = image_to_srgb(image, profile)
        values = srgb.values
        if values.shape[2] == 2:
            values = values[..., [0, 0, 0, 1]]
        return values, srgb.icc
    except (OSError, SyntaxError) as error:
        raise ChromaboxError(f"image cannot be decoded: the data are truncated or corrupt ({error})") from error


def _check_range(values: np.ndarray, upper: int) -> None:
    """Raise UsageError if a value is NaN, below 0 or above ``upper``, apart from rounding errors of floats."""
    if (found := range_issue(values, upper)) is not None:
        raise UsageError(f"image has values {found}: expected 0 to {upper} for {values.dtype}")


def _load(image: Image.Image) -> None:
    """Decode an image.

    If a TIFF was opened by its path, Pillow 11 and later map its values into memory, and scramble them if the
    orientation exchanges rows and columns. Without a file name, they are read.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        image.load()
        return
    name, image.filename = image.filename, ""
    try:
        image.load()
    finally:
        image.filename = name
