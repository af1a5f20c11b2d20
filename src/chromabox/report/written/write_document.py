"""A write-up on disk: the page, the paper and the numbers, side by side."""

from dataclasses import dataclass
from pathlib import Path

from chromabox.errors import ChromaboxError
from chromabox.report.written.document import Document
from chromabox.report.written.html import write_html
from chromabox.report.written.numbers import write_numbers
from chromabox.report.written.typeset import write_pdf


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
