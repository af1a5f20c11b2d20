"""The verb ``check``: its exit codes, and that its help leaves no doubt what it does."""

import json
from pathlib import Path

import pytest
import tyro

from chromabox.cli.assignment import check
from chromabox.errors import UsageError


def test_the_help_says_that_the_file_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(check, args=["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "It IS EXECUTED" in said
    assert "that is no sandbox" in said
    assert "chromabox data check" in said


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("from chromabox.colour.models import UNet\n")
    assert check(tmp_path / "mine.py", timeout=300.0) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "UNet: as in figure 1"
    (tmp_path / "mine.py").write_text("UNet = 3\n")
    assert check(tmp_path / "mine.py", timeout=300.0, json=tmp_path / "found.json") == 1
    assert not json.loads((tmp_path / "found.json").read_text())["matches"]
    with pytest.raises(UsageError, match="no such file"):
        check(tmp_path / "yours.py")
