"""A write-up as a paper: PDF by Typst, with the fonts of Typst and matplotlib, so that it is alike on every machine."""

import json
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib
import typst

from chromabox.errors import ChromaboxError
from chromabox.io.atomic import write_whole
from chromabox.report.written.document import Document
from chromabox.report.written.embed import read_png
from chromabox.report.written.laid_out import lay_out
from chromabox.report.written.spans import Span


def write_pdf(document: Document, path: Path) -> Path:
    """Write the paper, whole or not at all, and return the path; the same document always makes the same bytes.

    All text reaches Typst as data, never as markup, so that it may hold anything. Raises ChromaboxError for a figure
    that is no PNG file; OSErrors of writing are the caller's.
    """
    with tempfile.TemporaryDirectory(prefix="chromabox-") as name:
        folder = Path(name)
        _write_source(document, folder)
        try:
            pdf = typst.compile(
                str(folder / "paper.typ"),
                root=name,
                font_paths=[str(Path(matplotlib.get_data_path()) / "fonts" / "ttf")],
                ignore_system_fonts=True,
                timestamp=0,
            )
        except typst.TypstError as error:
            raise ChromaboxError(f"{path}: the write-up cannot be typeset: {error.message}") from error
    with write_whole(path) as aside:
        aside.write_bytes(pdf)
    return path


def _write_source(document: Document, folder: Path) -> None:
    """``paper.typ``, which is the same for all write-ups, ``document.json`` and ``figure-1.png`` and so on."""
    template = resources.files("chromabox").joinpath("assets", "report", "paper.typ")
    (folder / "paper.typ").write_bytes(template.read_bytes())
    laid = lay_out(document)
    pictures = []
    for index, figure in enumerate(laid.pop("figures"), start=1):
        picture = read_png(figure.path)
        (folder / f"figure-{index}.png").write_bytes(picture.content)
        pictures.append({"file": f"figure-{index}.png", "width": picture.width, "height": picture.height})
    content = json.dumps({**laid, "pictures": pictures}, default=_plain_span, ensure_ascii=False)
    (folder / "document.json").write_text(content, encoding="utf-8")


def _plain_span(span: Span) -> dict[str, Any]:
    return {"text": span.text, "code": span.code, "number": span.number is not None, "link": span.link}
