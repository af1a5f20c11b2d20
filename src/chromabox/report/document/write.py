"""A write-up on disk: the page, the paper and the numbers, side by side.

A write-up as one web page that needs nothing else: no network, no other file.

Every number of a write-up with its source, for machines.

A write-up as a paper: PDF by Typst, with the fonts of Typst and matplotlib, so that it is alike on every machine.
"""

import json
import math
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib
import typst
from jinja2 import Environment, PackageLoader, StrictUndefined

from chromabox.errors import ChromaboxError
from chromabox.io.atomic import write_whole
from chromabox.report.document.images import embed, read_png
from chromabox.report.document.inline import Span, clean, plain
from chromabox.report.document.layout import Laid, lay_out
from chromabox.report.document.model import Document, Missing


@dataclass(frozen=True)
class Written:
    """Where the three are."""

    html: Path
    pdf: Path
    json: Path


def write_document(document: Document, folder: Path) -> Written:
    """Write ``report.html``, ``report.pdf`` and ``report.json`` into the folder, which is made if need be.

    Each is written whole or not at all. Raises ChromaboxError for a figure that is no PNG file, and for a folder that
    cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Written(
            html=write_html(document, folder / "report.html"),
            pdf=write_pdf(document, folder / "report.pdf"),
            json=write_numbers(document, folder / "report.json"),
        )
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ChromaboxError(
            f"{folder}: the write-up cannot be written there ({reason}); give another folder"
        ) from error


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


def write_numbers(document: Document, path: Path) -> Path:
    """Write ``title``, ``about``, ``numbers`` and ``missing`` as JSON, whole or not at all, and return the path.

    Of a number: ``section`` (its key, empty in the abstract), ``name``, ``value``, ``printed``, ``source``, ``spread``.
    What is no finite number is null, since JSON has no word for it; ``printed`` shows it. OSErrors are the caller's.
    """
    content = {
        "title": clean(document.title),
        "about": {clean(name): clean(value) for name, value in document.about.items()},
        "numbers": [
            {
                "section": clean(key),
                "name": clean(name),
                "value": _finite(number.value),
                "printed": str(number),
                "source": clean(number.source),
                "spread": _finite(number.spread),
            }
            for key, name, number in document.numbers()
        ],
        "missing": _missing(document),
    }
    with write_whole(path) as aside:
        aside.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _missing(document: Document) -> list[dict[str, Any]]:
    parts = (("", document.abstract), *((section.key, section.blocks) for section in document.sections))
    return [
        {"section": clean(key), "what": clean(block.what), "command": clean(block.command)}
        for key, blocks in parts
        for block in blocks
        if isinstance(block, Missing)
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


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
