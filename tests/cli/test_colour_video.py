"""The command ``colour``: videos, and checks before the work."""

import hashlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from chromabox.__main__ import main
from chromabox.colour.weights.onnx_model import BUNDLED_MODEL
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


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_videos_state_in_their_comment_that_they_were_colourised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    plain = make_video(tmp_path / "plain.mp4", [make_frame()] * 2)
    video = tmp_path / f"in{suffix}"
    with av.open(str(plain)) as source, av.open(str(video), "w") as sink:
        sink.metadata["comment"] = "from the archive"
        stream = sink.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                sink.mux(packet)
    output = tmp_path / f"out{suffix}"
    assert run_colour(monkeypatch, video, "-o", output, "--style", "vivid") == 0
    with av.open(str(output)) as container:
        comment = {key.lower(): value for key, value in container.metadata.items()}["comment"]
    original, statement = comment.split("\n")
    assert original == "from the archive"
    assert statement.startswith("colourised; digital source type: http://cv.iptc.org/newscodes/digitalsourcetype/")
    assert f"SHA-256 of the model: {hashlib.sha256(BUNDLED_MODEL.read_bytes()).hexdigest()}" in statement
    assert '"style": "vivid"' in statement


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
