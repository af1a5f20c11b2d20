"""The command ``colour``: videos, and checks before the work."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from chromabox.__main__ import main
from video_fixtures import make_frame, make_video


def run_colour(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command in this process and return its exit code."""
    monkeypatch.setattr("sys.argv", ["chromabox", "colour", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_video_is_written_to_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = make_video(tmp_path / "in.avi", [make_frame()] * 2, codec="mjpeg", pix_fmt="yuvj422p")
    assert run_colour(monkeypatch, video, "-o", tmp_path / "out") == 0
    with av.open(str(tmp_path / "out" / "in.mkv")) as container:
        assert len(list(container.decode(video=0))) == 2
    captured = capsys.readouterr()
    assert "yuvj422p (8 bits per channel) becomes yuv420p" in captured.out + captured.err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["-o", "out", "--contact-sheet", "sheet.xyz"], 2, "unsupported contact sheet format"),
        (["-o", "file/out"], 2, "cannot be created"),
    ],
)
def test_problems_of_the_outputs_are_found_before_the_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Path("file").touch()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(Path("in", name))
    assert run_colour(monkeypatch, "in", *options) == code
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in"]
