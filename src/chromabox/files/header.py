"""What a picture's header says without a pixel being decoded: its upright size."""

import warnings
from pathlib import Path

from PIL import Image

from chromabox.errors import ChromaboxError
from chromabox.files.metadata import orientation_of

# The decoders that read_picture tries.
_READABLE = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM")


def upright_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels of the picture at `path` once it is turned upright, as `read_picture` would give it.

    Raises ChromaboxError for what is missing or has no picture's header. The pixels behind a good header may still be
    cut short: only decoding tells.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_READABLE) as image:
                width, height = image.size
                # Pillow gives the size of a turned TIFF upright already.
                turned = image.format != "TIFF" and orientation_of(image) >= 5
    except FileNotFoundError:
        raise ChromaboxError(f"{path} does not exist: a picture file is needed") from None
    except Exception as error:  # Pillow raises nearly every kind on damaged bytes; each means the same to the user.
        raise ChromaboxError(f"{path} is not a picture, or its beginning is damaged: a whole file is needed") from error
    return (width, height) if turned else (height, width)
