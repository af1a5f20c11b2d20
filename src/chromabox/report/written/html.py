"""A write-up as one web page that needs nothing else: no network, no other file."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from chromabox.io.atomic import write_whole
from chromabox.report.written.document import Document
from chromabox.report.written.embed import embed, read_png
from chromabox.report.written.laid_out import Laid, lay_out
from chromabox.report.written.spans import Span, clean, plain

#: Bytes; a page of this size can be sent by mail and opens at once.
LARGEST = 5_000_000


def write_html(document: Document, path: Path, *, largest: int = LARGEST) -> Path:
    """Write the page, whole or not at all, and return the path.

    Pictures are made smaller until the page has at most ``largest`` bytes, and their captions say so. Raises
    ChromaboxError for a figure that is no PNG file; OSErrors of writing are the caller's.
    """
    laid = lay_out(document)
    pictures = [read_png(figure.path) for figure in laid["figures"]]
    words = len(_page(document, laid, [(picture, "") for picture in pictures]).encode())
    notes = 80 * len(pictures)  # Room for what captions say of pictures that were made smaller.
    small = embed(pictures, largest - words - notes)
    page = _page(document, laid, [(picture, picture.uri) for picture in small])
    with write_whole(path) as aside:
        aside.write_text(page, encoding="utf-8")
    return path


def _page(document: Document, laid: Laid, pictures: list[tuple[Any, str]]) -> str:
    environment = Environment(
        loader=PackageLoader("chromabox", "assets/report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = [(clean(key), clean(name), number) for key, name, number in document.numbers()]
    return environment.get_template("page.html").render(
        laid=laid, pictures=pictures, numbers=numbers, clean=clean, width_of=_width_of
    )


def _width_of(cell: list[Span]) -> str:
    """How a table's cell takes its width: ``short`` is one line, ``long`` breaks within its words (file names)."""
    words = plain(cell)
    if len(words) <= 24:
        return "short"
    return "long" if max(map(len, words.split()), default=0) > 24 else "text"
