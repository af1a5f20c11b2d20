"""PNG images embedded as data URIs, reduced in size if their total exceeds a budget."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from chromabox.errors import ChromaboxError

#: Widths in pixels, tried in descending order until the page is small enough.
FALLBACK_WIDTHS = (1600, 1200, 900, 640, 400, 240)


@dataclass(frozen=True)
class EmbeddedImage:
    """A PNG image, its original size in pixels, and a note about reductions (empty if there are none)."""

    content: bytes
    width: int
    height: int
    note: str = ""

    @property
    def uri(self) -> str:
        """Data URI of the image: ``data:image/png;base64,…``."""
        return f"data:image/png;base64,{base64.b64encode(self.content).decode('ascii')}"

    @property
    def encoded_length(self) -> int:
        """Length of the base64 text in characters."""
        return 4 * -(-len(self.content) // 3)


def read_png(path: Path) -> EmbeddedImage:
    """Read a PNG file without changes. Raise ChromaboxError if it cannot be read or is not a complete PNG file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ChromaboxError(f"{path}: the figure cannot be read ({(error.strerror or str(error)).lower()})") from error
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
            return EmbeddedImage(content, image.width, image.height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ChromaboxError(f"{path}: not a complete PNG file; create the figure again") from error


def fit_to_budget(images: Sequence[EmbeddedImage], budget: int) -> list[EmbeddedImage]:
    """Reduce images until they fit into ``budget`` characters of base64, the largest first.

    The steps are better compression (lossless), 256 colours, then fewer pixels. If the budget cannot be met, return the
    smallest versions.
    """
    current = list(images)
    steps = [_shrink_steps(image) for image in images]
    while sum(image.encoded_length for image in current) > budget:
        reducible = [index for index, remaining in enumerate(steps) if remaining]
        if not reducible:
            break
        largest = max(reducible, key=lambda index: current[index].encoded_length)
        reduced = steps[largest].pop(0)()
        if reduced.encoded_length < current[largest].encoded_length:
            current[largest] = reduced
    return current


def _shrink_steps(embedded: EmbeddedImage) -> list[Callable[[], EmbeddedImage]]:
    """Return the reduction steps, least lossy first."""
    widths = [width for width in FALLBACK_WIDTHS if width < embedded.width]
    return [
        partial(_recompress, embedded),
        partial(_quantise, embedded),
        *(partial(_quantise, embedded, width) for width in widths),
    ]


def _recompress(embedded: EmbeddedImage) -> EmbeddedImage:
    return replace(embedded, content=_encode_png(_open_on_white(embedded)))


def _quantise(embedded: EmbeddedImage, width: int | None = None) -> EmbeddedImage:
    image, note = _open_on_white(embedded), "shown in 256 colours"
    if width is not None:
        height = max(1, round(image.height * width / image.width))
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        note = f"shown in 256 colours, {width} of {embedded.width} pixels wide"
    quantised = image.quantize(256, method=Image.Quantize.MEDIANCUT)
    return replace(embedded, content=_encode_png(quantised), note=note)


def _open_on_white(embedded: EmbeddedImage) -> Image.Image:
    """Open as RGB; transparent pixels are blended with white, the page's background."""
    with Image.open(io.BytesIO(embedded.content)) as image:
        rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _encode_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
