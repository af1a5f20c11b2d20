"""Recognition of videos, containers and properties. The oracle is ffprobe, where it is installed, otherwise PyAV."""

import json
import logging
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from chromabox.errors import ChromaboxError
from chromabox.io.kinds import is_video
from chromabox.io.paths import map_outputs
from chromabox.io.video import probe_video, transcode
from video_fixtures import make_frame, make_video, mux_sine, to_video_frame

needs_ffprobe = pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
FRAMES = [make_frame(shift=index) for index in range(5)]


def ffprobe(path: Path, *entries: str) -> list[str]:
    """Return the values of entries of the first video stream in the words of ffprobe."""
    command = ["ffprobe", "-v", "error", "-count_frames", "-select_streams", "v:0", "-of", "json", "-show_streams"]
    [stream] = json.loads(subprocess.run([*command, path], capture_output=True, check=True).stdout)["streams"]
    return [stream[entry] for entry in entries]


def make_container(path: Path, codec: str, audio: str, muxer: str | None = None) -> Path:
    """Write five frames and, unless `audio` is empty, a sine."""
    with av.open(str(path), "w", format=muxer) as sink:
        video = sink.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = sink.add_stream(audio, rate=48_000) if audio else None
        if sound is not None:
            mux_sine(sink, sound)
        for index, pixels in enumerate(FRAMES):
            frame = to_video_frame(pixels, "yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            sink.mux(video.encode(frame))
        sink.mux(video.encode(None))
    return path


@needs_ffprobe
@pytest.mark.parametrize(
    ("name", "codec", "audio"),
    [
        ("in.m4v", "libx264", "aac"),
        ("in.webm", "libvpx-vp9", ""),
        ("in.mpg", "mpeg2video", ""),
        ("in.vob", "mpeg1video", ""),
        ("in.ts", "libx264", "aac"),
        ("in.avi", "mpeg4", ""),
        ("in.avi", "libx264", "aac"),
        ("in.wmv", "wmv2", ""),
        ("in.flv", "libx264", "aac"),
        ("in.3gp", "libx264", "aac"),
        ("in.y4m", "rawvideo", ""),
    ],
)
def test_containers_are_read_and_written(tmp_path: Path, name: str, codec: str, audio: str) -> None:
    video = make_container(tmp_path / name, codec, audio)
    [(_, target)] = map_outputs([video], tmp_path / "out")
    assert is_video(video)
    assert target.suffix == (".m4v" if name == "in.m4v" else ".mkv")
    result = transcode(probe_video(video), target, lambda frame: frame)
    assert (result.num_frames, result.num_damaged, result.audio_streams) == (5, 0, int(audio != ""))
    assert ffprobe(target, "codec_name", "nb_read_frames") == ["h264", "5"]
    with av.open(str(target)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1.1e-3)
    assert times[0] < 0.1  # The start times of MPEG and FLV streams are removed.


def test_content_determines_the_format(tmp_path: Path) -> None:
    make_container(tmp_path / "mp4", "mpeg4", "", "mp4")
    for name, codec, muxer in (
        ("film.bin", "mpeg4", "mp4"),
        ("film", "libx264", "matroska"),
        ("a.old", "mjpeg", "avi"),
    ):
        with_content = make_container(tmp_path / name, codec if codec != "mjpeg" else "mpeg4", "", muxer)
        assert is_video(with_content)
        assert probe_video(with_content).num_frames == 5
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.bin", "png")
    assert not is_video(tmp_path / "photo.bin")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.avi", "png")
    with pytest.raises(ChromaboxError, match=r"photo.avi is not a video.*expected MP4"):
        probe_video(tmp_path / "photo.avi")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nmp4\n")
    with pytest.raises(ChromaboxError, match="is not a video"):
        probe_video(tmp_path / "list.m3u8")


@needs_ffprobe
@pytest.mark.parametrize(
    ("pix_fmt", "tags", "expected"),
    [
        ("yuv420p", {"colorspace": 1, "color_range": 1}, ["bt709", "tv", "yuv420p"]),
        ("yuvj420p", {"colorspace": 6, "color_range": 2}, ["smpte170m", "pc", "yuvj420p"]),
    ],
)
def test_colour_tags_are_preserved(tmp_path: Path, pix_fmt: str, tags: dict[str, int], expected: list[str]) -> None:
    video = make_video(tmp_path / "in.mp4", FRAMES, pix_fmt=pix_fmt, colour_tags=tags)
    transcode(probe_video(video), tmp_path / "out.mp4", lambda frame: frame)
    entries = ("color_space", "color_range", "pix_fmt")
    assert ffprobe(tmp_path / "out.mp4", *entries) == ffprobe(video, *entries) == expected


@needs_ffprobe
@pytest.mark.parametrize(("order", "word", "suffix"), [("tff", "tt", ".mp4"), ("bff", "bb", ".mkv")])
def test_interlaced_video_remains_interlaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, order: str, word: str, suffix: str
) -> None:
    video = make_video(tmp_path / "in.mp4", FRAMES, codec_options={"x264-params": f"{order}=1"})
    with caplog.at_level(logging.INFO, "chromabox"):
        transcode(probe_video(video), tmp_path / f"out{suffix}", lambda frame: frame)
    assert ffprobe(video, "field_order") == ffprobe(tmp_path / f"out{suffix}", "field_order") == [word]
    [message] = caplog.messages
    assert "interlaced and remains interlaced" in message


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"pix_fmt": "yuv420p10le"}, "yuv420p10le (10 bits per channel) becomes yuv420p (8 bits per channel)"),
        ({"codec": "ffv1", "pix_fmt": "yuva420p"}, "the pixel format yuva420p (8 bits per channel) becomes"),
        ({"rotation": (90, False, False)}, "the rotation or mirroring in the file is applied to the frames"),
    ],
)
def test_what_changes_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict, note: str) -> None:
    suffix = ".mkv" if "codec" in options else ".mp4"
    video = make_video(tmp_path / f"in{suffix}", FRAMES, **options)
    with caplog.at_level(logging.INFO, "chromabox"):
        transcode(probe_video(video), tmp_path / "out.mp4", lambda frame: frame)
    [message] = caplog.messages
    assert message.startswith(f"{video}: ")
    assert note in message


def test_hdr_video_is_rejected(tmp_path: Path) -> None:
    tags = {"colorspace": 1, "color_trc": 16}
    video = make_video(tmp_path / "in.mp4", FRAMES, pix_fmt="yuv420p10le", colour_tags=tags)
    with pytest.raises(ChromaboxError, match="is an HDR video"):
        probe_video(video)


def test_truncated_avi_is_named(tmp_path: Path) -> None:
    video = make_video(tmp_path / "in.avi", [FRAMES[0]] * 40, codec="mjpeg", pix_fmt="yuvj420p")
    assert probe_video(video).notes == ()
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    info = probe_video(video)
    [note] = info.notes
    missing = 1.6 - info.num_frames / 25
    assert note == f"the file may be truncated: its header states {missing:.1f} s more than it contains"
