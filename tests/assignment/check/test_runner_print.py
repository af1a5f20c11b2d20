"""Printed and written results of ``chromabox check``; the results are tested in test_checks.py."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from chromabox.assignment.check import runner
from chromabox.assignment.check.align import diff_ops
from chromabox.assignment.check.checks import CheckItem, NetReport, reference_ops
from chromabox.assignment.check.runner import CheckResult, report_check, summary_line
from chromabox.assignment.check.trace import trace_ops
from chromabox.colour.models import MODELS
from chromabox.errors import ChromaboxError


def make_report(*checks: CheckItem, class_name: str = "UNet") -> NetReport:
    """Compare ConvTransposeNet without the BatchNorm of block 2 with the reference model."""
    changed = MODELS["conv-transpose"]()
    changed.set_submodule("block2.1", nn.Identity())
    lines = diff_ops(reference_ops("conv-transpose"), trace_ops(changed, torch.rand(2, 1, 32, 32)).ops)
    return NetReport("conv-transpose", class_name, list(checks), lines, ["do [this]"])


PASSED, FAILED, NOTE = (
    CheckItem("shapes", True, "fine"),
    CheckItem("layers", False, "not [red]fine"),
    CheckItem("sizes", None, "well"),
)
RESULT = CheckResult(
    "mine.py", [make_report(PASSED, FAILED, NOTE), make_report(PASSED, NOTE, class_name="Pool")], ["line 1 \x1b[31m"]
)


@pytest.fixture
def fixed_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "check_file", lambda *_, **__: RESULT)


@pytest.mark.usefixtures("fixed_result")
def test_checks_layers_and_hints_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_check(Path("mine.py")) is RESULT
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == r"note: line 1 \x1b[31m"
    assert lines[2:6] == ["UNet", "✓ shapes fine", "✗ layers not [red]fine", "· sizes well"]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert rows[0] == [
        "✓",
        "block 1",
        "Conv2d(1→32)",
        "32 × 16 × 16",
        "320",
        "Conv2d(1→32)",
        "self.block1.0",
        "32 × 16 × 16",
        "320",
        "",
    ]
    assert rows[4] == ["✗", "block 2", "BatchNorm2d", "64 × 8 × 8", "128", "", "", "", "", "missing"]
    assert "→ do [this]" in lines
    assert lines[-1] == "Pool: as in figure 1; UNet: 1 of 3 checks failed"


@pytest.mark.usefixtures("fixed_result")
def test_written_file_contains_the_complete_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "found.json"
    report_check(Path("mine.py"), output=path)
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert (written["file"], written["matches"], written["failed"]) == ("mine.py", False, None)
    assert [report["matches"] for report in written["nets"]] == [False, True]
    assert written["nets"][0]["checks"][1] == {"name": "layers", "passed": False, "message": "not [red]fine"}
    assert written["nets"][0]["diff"][4]["expected"]["kind"] == "BatchNorm2d"
    assert written["nets"][0]["diff"][4]["actual"] is None


@pytest.mark.usefixtures("fixed_result")
def test_unwritable_output_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ChromaboxError, match="cannot be written"):
        report_check(Path("mine.py"), output=tmp_path / "file" / "found.json")


def test_summary_line() -> None:
    assert summary_line(CheckResult("a.py", [], error="a.py is not Python")) == "✗ a.py is not Python"
    assert summary_line(CheckResult("a.py", [make_report(PASSED)])) == "UNet: as in figure 1"
    assert not CheckResult("a.py", []).matches
