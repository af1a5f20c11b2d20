"""The command ``check``: its exit codes and the warning in its help."""

import json
from pathlib import Path

import pytest
import tyro

from chromabox.cli.assignment import check
from chromabox.errors import UsageError


def test_help_warns_that_the_file_is_executed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(check, args=["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "FILE IS EXECUTED" in text
    assert "This is not a sandbox" in text
    assert "chromabox data check" in text


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("from chromabox.colour.models import UNet\n")
    assert check(tmp_path / "mine.py", timeout=300.0) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "UNet: as in figure 1"
    (tmp_path / "mine.py").write_text("UNet = 3\n")
    assert check(tmp_path / "mine.py", timeout=300.0, json=tmp_path / "found.json") == 1
    assert not json.loads((tmp_path / "found.json").read_text())["matches"]
    with pytest.raises(UsageError, match="no such file"):
        check(tmp_path / "yours.py")
