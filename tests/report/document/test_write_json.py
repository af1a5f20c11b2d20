"""report.json, parsed: every number of the document with its source."""

import json
import math
from pathlib import Path

import pytest

from chromabox.report.document.model import Document, MissingRun, Number, Section, Text
from chromabox.report.document.write import write_numbers_json
from report_fixtures import make_sample_document


def test_every_number_is_written(tmp_path: Path) -> None:
    document = make_sample_document(tmp_path)
    content = json.loads(write_numbers_json(document, tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["title"] == document.title
    assert content["about"] == document.metadata
    assert len(content["numbers"]) == len(list(document.numbers())) > 300
    assert content["numbers"][0] == {
        "section": "",
        "name": "best",
        "value": 58.37,
        "printed": "58.37 ± 0.15",
        "source": "runs/unet-course-seed*/summary.json: test_accuracy",
        "spread": 0.15,
    }
    assert [(item["section"], item["command"].split()[:2]) for item in content["missing"]] == [
        ("D.2", ["chromabox", "finetune"])
    ]


@pytest.mark.parametrize(("value", "printed"), [(math.nan, "–"), (math.inf, "∞"), (-math.inf, "−∞")])
def test_values_that_are_not_finite_are_null(tmp_path: Path, value: float, printed: str) -> None:
    document = Document("t", [Text("{n}", {"n": Number(value, "s", std=math.nan)})], [], [], {})
    text = write_numbers_json(document, tmp_path / "report.json").read_text(encoding="utf-8")
    [number] = json.loads(text, parse_constant=pytest.fail)["numbers"]
    assert (number["value"], number["spread"], number["printed"]) == (None, None, printed)


def test_invalid_characters_are_replaced(tmp_path: Path) -> None:
    section = Section("A", "", "", [MissingRun("a\udcff", "b\x00 é")])
    document = Document("t\ud800", [], [section], [], {"file": "odd\udc80name"})
    content = json.loads(write_numbers_json(document, tmp_path / "report.json").read_bytes())
    assert content["about"] == {"file": "odd�name"}
    assert content["missing"] == [{"section": "A", "what": "a�", "command": "b� é"}]


def test_failed_write_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_numbers_json(Document("", [], [], [], {}), tmp_path / "no" / "report.json")
    assert list(tmp_path.iterdir()) == []
