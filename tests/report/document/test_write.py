"""The three files of a report, and errors if they cannot be written."""

from pathlib import Path

import pytest

from chromabox.errors import ChromaboxError
from chromabox.report.document.model import Document, Figure, Text
from chromabox.report.document.write import write_document


def test_all_three_files_are_written(tmp_path: Path) -> None:
    html, pdf, json = write_document(Document("Title", [Text("Words.")], [], [], {}), tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "report.html",
        "report.json",
        "report.pdf",
    ]
    assert html.read_bytes().startswith(b"<!doctype html>")
    assert pdf.read_bytes().startswith(b"%PDF-")
    assert json.read_bytes().startswith(b"{")


def test_folder_that_is_a_file_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ChromaboxError, match=r"file: the report cannot be written \(file exists\)"):
        write_document(Document("", [], [], [], {}), tmp_path / "file")


def test_missing_figure_raises_and_nothing_is_written(tmp_path: Path) -> None:
    document = Document("", [Figure(tmp_path / "missing.png", "")], [], [], {})
    with pytest.raises(ChromaboxError, match=r"missing\.png: the figure cannot be read"):
        write_document(document, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
