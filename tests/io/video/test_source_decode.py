"""Damaged frames: bytes of known frames are overwritten, and the positions of replacements are compared with them."""

import logging
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from chromabox.errors import ChromaboxError
from chromabox.io.video import iter_frames, probe_video, transcode
from video_fixtures import decode_frames, make_frame, make_video

FRAMES = [make_frame(shift=2 * index) for index in range(12)]


def damage(video: Path, frames: list[int]) -> None:
    """Overwrite the packets of frames, given by their positions in the order of presentation."""
    with av.open(str(video)) as source:
        # In Matroska, the position is that of the block, whose header must remain intact.
        header = 16 if source.format.name.startswith("matroska") else 0
        packets = sorted((packet.pts, packet.pos, packet.size) for packet in source.demux(video=0) if packet.size)
    content = bytearray(video.read_bytes())
    for _, start, size in (packets[frame] for frame in frames):
        content[start + header : start + size] = bytes(size - header)
    video.write_bytes(content)


def nearest(frames: list[np.ndarray]) -> list[int]:
    """Return the position of the most similar original of each frame."""
    return [int(np.argmin([np.abs(frame.astype(int) - other).mean() for other in FRAMES])) for frame in frames]


@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt"),
    [("mjpeg", ".mov", "yuvj420p"), ("mjpeg", ".avi", "yuvj420p"), ("libx264", ".mkv", "yuv420p")],
)
def test_damaged_frames_are_replaced_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, codec: str, suffix: str, pix_fmt: str
) -> None:
    damaged, expected = [0, 1, 5, 7, 8, 11], [2, 2, 2, 3, 4, 4, 6, 6, 6, 9, 10, 10]
    options = {"g": "1"} if codec == "libx264" else {"qmin": "1", "qmax": "2"}
    video = make_video(tmp_path / f"in{suffix}", FRAMES, codec=codec, pix_fmt=pix_fmt, codec_options=options)
    times = [frame.time for frame in decode_frames(video)]
    damage(video, damaged)
    with caplog.at_level(logging.INFO, "chromabox"):
        result = transcode(probe_video(video), tmp_path / "out.mp4", lambda frame: frame, crf=2.0)
    assert (result.num_frames, result.num_damaged) == (12, len(damaged))
    [message] = caplog.messages
    assert message == f"{video}: {len(damaged)} damaged frame(s) replaced by the last good frame"
    written = decode_frames(tmp_path / "out.mp4")
    assert nearest([frame.to_ndarray(format="rgb24") for frame in written]) == expected
    assert [frame.time for frame in written] == pytest.approx(times, abs=1e-3)
    assert nearest(list(iter_frames(video))) == expected


def test_damage_in_predicted_frames_keeps_the_number_of_frames(tmp_path: Path) -> None:
    video = make_video(tmp_path / "in.mp4", FRAMES)  # H.264 with B frames
    damage(video, [8])
    result = transcode(probe_video(video), tmp_path / "out.mp4", lambda frame: frame)
    assert (result.num_frames, result.num_damaged) == (12, 1)
    assert [frame.pts for frame in decode_frames(tmp_path / "out.mp4")] == [512 * index for index in range(12)]


def test_video_without_a_good_frame_is_rejected(tmp_path: Path) -> None:
    video = make_video(tmp_path / "in.mov", FRAMES, codec="mjpeg", pix_fmt="yuvj420p")
    damage(video, list(range(12)))
    with pytest.raises(ChromaboxError, match=r"in\.mov contains no decodable frame"):
        probe_video(video)


def test_frames_of_another_size_are_scaled_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small, video = make_frame(24, 32), tmp_path / "in.mov"
    parts = [(FRAMES[:3], tmp_path / "large.mov"), ([small] * 2, tmp_path / "small.mov")]
    with av.open(str(video), "w") as sink:
        for frames, path in parts:
            make_video(path, frames, codec="mjpeg", pix_fmt="yuvj420p", codec_options={"qmin": "1", "qmax": "2"})
            with av.open(str(path)) as source:
                if not sink.streams:
                    stream = sink.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.pts = packet.dts = packet.pts + (0 if frames is parts[0][0] else 3 * 512)
                        packet.stream = stream
                        sink.mux(packet)
    with caplog.at_level(logging.INFO, "chromabox"):
        result = transcode(probe_video(video), tmp_path / "out.mkv", lambda frame: frame)
    assert (result.num_frames, result.width, result.height) == (5, 64, 48)
    assert caplog.messages == [f"{video}: the frame size changes; 2 frame(s) were scaled to 64 × 48"]
    written = decode_frames(tmp_path / "out.mkv")[4].to_ndarray(format="rgb24")
    expected = np.asarray(Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC))
    assert np.abs(written.astype(int) - expected).mean() < 3
