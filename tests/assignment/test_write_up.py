"""The write-up answers every question of the handout, or says what is missing; and says nothing of what was not run."""

import json
from pathlib import Path

import pypdfium2
import pytest

from chromabox.assignment.write_up import build_document, write_report
from chromabox.errors import UsageError
from chromabox.experiments.runs import RunIndex
from chromabox.report.document.model import MissingRun
from chromabox.report.document.write import write_document

#: The handout's questions, in its order.
QUESTIONS = ["A.1", "A.2", "A.3", "B.1", "B.2", "B.3", "B.4", "B.5", "C.1", "C.2", "C.3", "D.1", "D.2"]
#: Those that the networks themselves answer, without a run.
FREE = {"A.1", "A.3", "B.1", "B.4", "C.1"}


def test_without_runs_every_question_has_its_section_and_what_is_missing_is_named(tmp_path: Path) -> None:
    document, missing = build_document(RunIndex(), tmp_path / "figures", include_missing=True)
    assert [section.key for section in document.sections] == QUESTIONS
    assert set(missing) == set(QUESTIONS) - FREE
    for section in document.sections:
        gaps = [block for block in section.blocks if isinstance(block, MissingRun)]
        assert bool(gaps) == (section.key not in FREE)
        assert all(gap.command.startswith("chromabox ") for gap in gaps)
    written = write_document(document, tmp_path)
    page = written.html.read_text(encoding="utf-8")
    with pypdfium2.PdfDocument(written.pdf) as paper:
        words = "\n".join(leaf.get_textpage().get_text_range() for leaf in paper)
    for section in document.sections:
        assert section.title in page
        assert f"{section.key} " in words
    assert {one["section"] for one in json.loads(written.json.read_text())["missing"]} == set(missing)


def test_a_report_of_nothing_has_no_sections(tmp_path: Path) -> None:
    document, _ = build_document(RunIndex(), tmp_path / "figures")
    assert list(document.sections) == []


def test_a_folder_without_runs_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty: holds no finished run"):
        write_report([tmp_path / "empty"], tmp_path / "report")
    assert not (tmp_path / "report").exists()
