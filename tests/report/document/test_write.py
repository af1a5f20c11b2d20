"""The three files of a write-up, and what is said where they cannot be made."""

from pathlib import Path

import pytest

from chromabox.errors import ChromaboxError
from chromabox.report.document.model import Document, Figure, Text
from chromabox.report.document.write import write_document


def test_the_three_lie_side_by_side(tmp_path: Path) -> None:
    written = write_document(Document("Title", [Text("Words.")], [], [], {}), tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "report.html",
        "report.json",
        "report.pdf",
    ]
    assert written.html.read_bytes().startswith(b"<!doctype html>")
    assert written.pdf.read_bytes().startswith(b"%PDF-")
    assert written.json.read_bytes().startswith(b"{")


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ChromaboxError, match=r"file: the write-up cannot be written there \(file exists\)"):
        write_document(Document("", [], [], [], {}), tmp_path / "file")


def test_a_figure_that_is_gone_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    document = Document("", [Figure(tmp_path / "gone.png", "")], [], [], {})
    with pytest.raises(ChromaboxError, match=r"gone\.png: the figure cannot be read"):
        write_document(document, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
