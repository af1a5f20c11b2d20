"""Tests of the report: every question of the assignment has an answer or names the missing runs."""

import json
from pathlib import Path

import pypdfium2
import pytest

from chromabox.assignment.write_up import build_document, write_report
from chromabox.errors import ChromaboxError
from chromabox.experiments.runs import RunIndex
from chromabox.report.document.model import MissingRun
from chromabox.report.document.write import write_document

#: The questions of the assignment, in its order.
QUESTIONS = ["A.1", "A.2", "A.3", "B.1", "B.2", "B.3", "B.4", "B.5", "C.1", "C.2", "C.3", "D.1", "D.2"]
#: Questions whose answers need no run.
NEED_NO_RUN = {"A.1", "A.3", "B.1", "B.4", "C.1"}


def test_without_runs_every_question_has_a_section_and_names_missing_runs(tmp_path: Path) -> None:
    document, missing = build_document(RunIndex(), tmp_path / "figures", include_missing=True)
    assert [section.key for section in document.sections] == QUESTIONS
    assert set(missing) == set(QUESTIONS) - NEED_NO_RUN
    for section in document.sections:
        missing_runs = [block for block in section.blocks if isinstance(block, MissingRun)]
        assert bool(missing_runs) == (section.key not in NEED_NO_RUN)
        assert all(block.command.startswith("chromabox ") for block in missing_runs)
    html_path, pdf_path, json_path = write_document(document, tmp_path)
    html = html_path.read_text(encoding="utf-8")
    with pypdfium2.PdfDocument(pdf_path) as pdf:
        pdf_text = "\n".join(pdf_page.get_textpage().get_text_range() for pdf_page in pdf)
    for section in document.sections:
        assert section.title in html
        assert f"{section.key} " in pdf_text
    assert {item["section"] for item in json.loads(json_path.read_text())["missing"]} == set(missing)


def test_report_without_runs_has_no_sections(tmp_path: Path) -> None:
    document, _ = build_document(RunIndex(), tmp_path / "figures")
    assert list(document.sections) == []


def test_folder_without_runs_is_rejected_before_files_are_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ChromaboxError, match="empty: contains no finished run"):
        write_report([tmp_path / "empty"], tmp_path / "report")
    assert not (tmp_path / "report").exists()
