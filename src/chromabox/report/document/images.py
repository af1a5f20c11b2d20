"""Pictures inside a page: PNG files as data URIs, made smaller where together they are too large."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from chromabox.errors import ChromaboxError

#: Widths in pixels, tried from above until the page is small enough.
FALLBACK_WIDTHS = (1600, 1200, 900, 640, 400, 240)


@dataclass(frozen=True)
class EmbeddedImage:
    """A PNG picture, its size as drawn, and what was done to it since (empty: nothing)."""

    content: bytes
    width: int
    height: int
    note: str = ""

    @property
    def uri(self) -> str:
        """The address that holds it: ``data:image/png;base64,…``."""
        return f"data:image/png;base64,{base64.b64encode(self.content).decode('ascii')}"

    @property
    def encoded_length(self) -> int:
        """Characters of the base64 text."""
        return 4 * -(-len(self.content) // 3)


def read_png(path: Path) -> EmbeddedImage:
    """A PNG file as it is. Raises ChromaboxError for a file that cannot be read or is no whole PNG."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ChromaboxError(f"{path}: the figure cannot be read: {(error.strerror or str(error)).lower()}") from error
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
            return EmbeddedImage(content, image.width, image.height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ChromaboxError(f"{path}: is no whole PNG file; draw the figure again") from error


def fit_to_budget(images: Sequence[EmbeddedImage], budget: int) -> list[EmbeddedImage]:
    """The same pictures in at most ``budget`` characters of base64, the longest made smaller first.

    Each step costs something that the one before did not: written more tightly (nothing is lost), 256 colours, then
    fewer pixels. If all are as small as they get and there is still no room, they stay so.
    """
    now = list(images)
    steps = [_shrink_steps(picture) for picture in images]
    while sum(picture.encoded_length for picture in now) > budget:
        left = [index for index, todo in enumerate(steps) if todo]
        if not left:
            break
        largest = max(left, key=lambda index: now[index].encoded_length)
        smaller = steps[largest].pop(0)()
        if smaller.encoded_length < now[largest].encoded_length:
            now[largest] = smaller
    return now


def _shrink_steps(embedded: EmbeddedImage) -> list[Callable[[], EmbeddedImage]]:
    """What can be done, gentlest first."""
    widths = [width for width in FALLBACK_WIDTHS if width < embedded.width]
    return [
        partial(_recompress, embedded),
        partial(_quantise, embedded),
        *(partial(_quantise, embedded, at) for at in widths),
    ]


def _recompress(embedded: EmbeddedImage) -> EmbeddedImage:
    return replace(embedded, content=_encode_png(_open_on_white(embedded)))


def _quantise(embedded: EmbeddedImage, width: int | None = None) -> EmbeddedImage:
    image, note = _open_on_white(embedded), "shown in 256 colours"
    if width is not None:
        height = max(1, round(image.height * width / image.width))
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        note = f"shown in 256 colours and {width} of its {embedded.width} pixels’ width"
    flat = image.quantize(256, method=Image.Quantize.MEDIANCUT)
    return replace(embedded, content=_encode_png(flat), note=note)


def _open_on_white(embedded: EmbeddedImage) -> Image.Image:
    """As RGB; what is transparent lies on white, as on the page."""
    with Image.open(io.BytesIO(embedded.content)) as image:
        colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")


def _encode_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
