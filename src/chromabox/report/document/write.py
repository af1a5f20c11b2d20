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
from chromabox.io.atomic import atomic_write
from chromabox.report.document.images import fit_to_budget, read_png
from chromabox.report.document.inline import Inline, strip_control_chars, to_text
from chromabox.report.document.layout import LaidOut, layout_document
from chromabox.report.document.model import Document, MissingRun


@dataclass(frozen=True)
class WrittenDocument:
    """Where the three are."""

    html: Path
    pdf: Path
    json: Path


def write_document(document: Document, folder: Path) -> WrittenDocument:
    """Write ``report.html``, ``report.pdf`` and ``report.json`` into the folder, which is made if need be.

    Each is written whole or not at all. Raises ChromaboxError for a figure that is no PNG file, and for a folder that
    cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return WrittenDocument(
            html=write_html(document, folder / "report.html"),
            pdf=write_pdf(document, folder / "report.pdf"),
            json=write_numbers_json(document, folder / "report.json"),
        )
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ChromaboxError(
            f"{folder}: the write-up cannot be written there ({reason}); give another folder"
        ) from error


#: Bytes; a page of this size can be sent by mail and opens at once.
MAX_PAGE_BYTES = 5_000_000


def write_html(document: Document, path: Path, *, max_bytes: int = MAX_PAGE_BYTES) -> Path:
    """Write the page, whole or not at all, and return the path.

    Pictures are made smaller until the page has at most ``largest`` bytes, and their captions say so. Raises
    ChromaboxError for a figure that is no PNG file; OSErrors of writing are the caller's.
    """
    laid = layout_document(document)
    pictures = [read_png(figure.path) for figure in laid["figures"]]
    words = len(_render_page(document, laid, [(picture, "") for picture in pictures]).encode())
    notes = 80 * len(pictures)  # Room for what captions say of pictures that were made smaller.
    small = fit_to_budget(pictures, max_bytes - words - notes)
    page = _render_page(document, laid, [(picture, picture.uri) for picture in small])
    with atomic_write(path) as aside:
        aside.write_text(page, encoding="utf-8")
    return path


def _render_page(document: Document, layout: LaidOut, images: list[tuple[Any, str]]) -> str:
    environment = Environment(
        loader=PackageLoader("chromabox", "assets/report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = [
        (strip_control_chars(key), strip_control_chars(name), number) for key, name, number in document.numbers()
    ]
    return environment.get_template("page.html").render(
        laid=layout, pictures=images, numbers=numbers, clean=strip_control_chars, width_of=_cell_width_class
    )


def _cell_width_class(cell: list[Inline]) -> str:
    """How a table's cell takes its width: ``short`` is one line, ``long`` breaks within its words (file names)."""
    words = to_text(cell)
    if len(words) <= 24:
        return "short"
    return "long" if max(map(len, words.split()), default=0) > 24 else "text"


def write_numbers_json(document: Document, path: Path) -> Path:
    """Write ``title``, ``about``, ``numbers`` and ``missing`` as JSON, whole or not at all, and return the path.

    Of a number: ``section`` (its key, empty in the abstract), ``name``, ``value``, ``printed``, ``source``, ``spread``.
    What is no finite number is null, since JSON has no word for it; ``printed`` shows it. OSErrors are the caller's.
    """
    content = {
        "title": strip_control_chars(document.title),
        "about": {strip_control_chars(name): strip_control_chars(value) for name, value in document.metadata.items()},
        "numbers": [
            {
                "section": strip_control_chars(key),
                "name": strip_control_chars(name),
                "value": _none_if_not_finite(number.value),
                "printed": str(number),
                "source": strip_control_chars(number.source),
                "spread": _none_if_not_finite(number.std),
            }
            for key, name, number in document.numbers()
        ],
        "missing": _missing_runs(document),
    }
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _missing_runs(document: Document) -> list[dict[str, Any]]:
    parts = (("", document.abstract), *((section.key, section.blocks) for section in document.sections))
    return [
        {
            "section": strip_control_chars(key),
            "what": strip_control_chars(block.description),
            "command": strip_control_chars(block.command),
        }
        for key, blocks in parts
        for block in blocks
        if isinstance(block, MissingRun)
    ]


def _none_if_not_finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def write_pdf(document: Document, path: Path) -> Path:
    """Write the paper, whole or not at all, and return the path; the same document always makes the same bytes.

    All text reaches Typst as data, never as markup, so that it may hold anything. Raises ChromaboxError for a figure
    that is no PNG file; OSErrors of writing are the caller's.
    """
    with tempfile.TemporaryDirectory(prefix="chromabox-") as name:
        folder = Path(name)
        _write_typst_source(document, folder)
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
    with atomic_write(path) as aside:
        aside.write_bytes(pdf)
    return path


def _write_typst_source(document: Document, folder: Path) -> None:
    """``paper.typ``, which is the same for all write-ups, ``document.json`` and ``figure-1.png`` and so on."""
    template = resources.files("chromabox").joinpath("assets", "report", "paper.typ")
    (folder / "paper.typ").write_bytes(template.read_bytes())
    laid = layout_document(document)
    pictures = []
    for index, figure in enumerate(laid.pop("figures"), start=1):
        picture = read_png(figure.path)
        (folder / f"figure-{index}.png").write_bytes(picture.content)
        pictures.append({"file": f"figure-{index}.png", "width": picture.width, "height": picture.height})
    content = json.dumps({**laid, "pictures": pictures}, default=_inline_to_json, ensure_ascii=False)
    (folder / "document.json").write_text(content, encoding="utf-8")


def _inline_to_json(inline: Inline) -> dict[str, Any]:
    return {"text": inline.text, "code": inline.code, "number": inline.number is not None, "link": inline.link}
