"""Videos: outputs are read with PyAV, and colours are computed by the formulas of BT.601 and BT.709.

`numpy.rot90` is the reference for FFmpeg's display of rotated videos: PyAV returns the anticlockwise rotation of a
frame in degrees.
"""

import errno
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.video import Resumption, TranscodeResult, VideoInfo, iter_frames, probe_video, transcode
from video_fixtures import TIME_BASE, decode_frames, make_frame, make_video, mux_sine, read_packets, to_video_frame

# Kr and Kb of the matrices (ITU-R BT.709-6, BT.601-7), by number in ITU-T H.273.
LUMA = {1: (0.2126, 0.0722), 6: (0.299, 0.114)}


def transcode_unchanged(source: Path, target: Path, **options: float) -> TranscodeResult:
    return transcode(probe_video(source), target, lambda frame: frame, **options)


def rgb_by_formula(frame: av.VideoFrame) -> np.ndarray:
    """Return RGB of a 4:2:0 frame by the formulas of its matrix and range, with nearest-neighbour chroma."""
    red, blue = LUMA[frame.colorspace]
    black, luma_range, chroma_range = (0, 255, 255) if frame.color_range == 2 else (16, 219, 224)
    planes = frame.to_ndarray().astype(np.float64)
    height = frame.height
    luma = (planes[:height] - black) / luma_range
    cb, cr = (part.reshape(height // 2, -1).repeat(2, 0).repeat(2, 1) for part in np.split(planes[height:], 2))
    b, r = ((c - 128) / chroma_range * 2 * (1 - k) for c, k in ((cb, blue), (cr, red)))
    green = luma - (red * r + blue * b) / (1 - red - blue)
    return 255 * np.stack([luma + r, green, luma + b], axis=-1)


@pytest.mark.parametrize("target", ["out.mp4", "out.mov", "out.mkv"])
@pytest.mark.parametrize("source", ["in.mp4", "in.mov", "in.mkv"])
def test_audio_timestamps_title_and_date_are_preserved(tmp_path: Path, source: str, target: str) -> None:
    metadata = {"title": "Été", "creation_time": "1999-12-31T23:59:59.000000Z"}
    timestamps = [0, 512, 1536, 3072, 3584]  # a variable frame rate
    video = make_video(tmp_path / source, with_audio=True, timestamps=timestamps, metadata=metadata)
    assert transcode_unchanged(video, tmp_path / target) == TranscodeResult(5, 64, 48, 1, 0)
    assert read_packets(video, "audio") == read_packets(tmp_path / target, "audio")
    with av.open(str(tmp_path / target)) as container:
        assert metadata.items() <= container.metadata.items()
        assert container.streams.audio[0].metadata["language"] == "fra"
        assert container.streams.video[0].codec_context.name == "h264"
    # Matroska has no negative timestamps, which the first audio packet of an encoder has: all streams are shifted.
    shift = first_time(tmp_path / target) - first_time(video)
    written = [frame.time - shift for frame in decode_frames(tmp_path / target)]
    # Matroska stores milliseconds.
    assert written == pytest.approx([float(time * TIME_BASE) for time in timestamps], abs=1.1e-3)
    if ".mkv" not in (video.suffix, Path(target).suffix):
        assert [Fraction(frame.pts) * frame.time_base for frame in decode_frames(tmp_path / target)] == [
            time * TIME_BASE for time in timestamps
        ]


def first_time(path: Path) -> float:
    """Return the time of the first audio packet in seconds."""
    with av.open(str(path)) as container:
        packet = next(container.demux(audio=0))
        return float(packet.pts * packet.time_base)


def test_probe_video_returns_properties(tmp_path: Path) -> None:
    video = make_video(tmp_path / "in.mp4", with_audio=True)
    expected = VideoInfo(video, 5, 64, 48, Fraction(1), 25.0, 0.2, 1, 1)
    assert probe_video(video) == expected


def test_subtitles_and_chapters_are_preserved(tmp_path: Path) -> None:
    video = video_with_subtitles(tmp_path / "in.mkv")
    assert transcode_unchanged(video, tmp_path / "out.mkv").subtitle_streams == 1
    assert read_packets(tmp_path / "out.mkv", "subtitles") == [b"Bonjour", b"Au revoir"]
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["Début"]


def test_unsupported_subtitles_are_rejected(tmp_path: Path) -> None:
    video = video_with_subtitles(tmp_path / "in.mkv")
    with pytest.raises(
        UsageError, match=r"the format does not support the subtitle stream 1 of .*in.mkv \(srt\); use the suffix .mkv$"
    ):
        transcode_unchanged(video, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


def video_with_subtitles(path: Path) -> Path:
    plain_video = make_video(path.with_name("plain.mkv"))
    with av.open(str(plain_video)) as source, av.open(str(path), "w") as sink:
        video = sink.add_stream_from_template(source.streams.video[0])
        text = sink.add_mux_stream("subrip", time_base=Fraction(1, 1000))
        sink.set_chapters(
            [{"id": 1, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "Début"}}]
        )
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                sink.mux(packet)
        for start, line in ((40, b"Bonjour"), (120, b"Au revoir")):
            packet = av.Packet(line)
            packet.pts = packet.dts = start
            packet.duration, packet.time_base, packet.stream = 40, Fraction(1, 1000), text
            sink.mux(packet)
    plain_video.unlink()
    return path


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_rotation_in_the_file_is_applied(tmp_path: Path, degrees: int, flips: tuple[bool, bool]) -> None:
    video = make_video(
        tmp_path / "in.mp4", [make_frame()], rotation=(degrees, *flips), sample_aspect_ratio=Fraction(4, 3)
    )
    with av.open(str(video)) as source:
        rotation = next(source.decode(video=0)).rotation
    if flips == (False, False):
        assert rotation % 360 == degrees % 360
    upright = np.rot90(make_frame(), degrees // 90)
    # Flips follow the rotation (libavutil, av_display_matrix_flip).
    upright = upright[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
    input_frames = []
    transcode(probe_video(video), tmp_path / "out.mp4", lambda frame: (input_frames.append(frame), frame)[1])
    [written] = decode_frames(tmp_path / "out.mp4")
    for frame in (input_frames[0], written.to_ndarray(format="rgb24")):
        assert frame.shape == upright.shape
        assert np.abs(frame.astype(int) - upright).mean() < 3
    assert written.rotation == 0
    with av.open(str(tmp_path / "out.mp4")) as target:
        aspect_ratio = target.streams.video[0].sample_aspect_ratio
    assert aspect_ratio == (Fraction(4, 3) if degrees % 180 == 0 else Fraction(3, 4))


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (1, 1), (47, 63)])
def test_odd_sides_are_padded(tmp_path: Path, height: int, width: int) -> None:
    frames = [make_frame(height, width)] * 3
    video = make_video(tmp_path / "in.mkv", frames, codec="ffv1", pix_fmt="yuv444p")
    result = transcode_unchanged(video, tmp_path / "out.mp4")
    assert (result.width, result.height) == (width + width % 2, height + height % 2)
    written = decode_frames(tmp_path / "out.mp4")[2].to_ndarray(format="rgb24")
    assert np.abs(written[:height, :width].astype(int) - frames[0]).mean() < 4


@pytest.mark.parametrize("colour_range", [1, 2])
@pytest.mark.parametrize("matrix", [1, 6])
def test_colours_use_the_matrix_and_range_in_the_file(tmp_path: Path, matrix: int, colour_range: int) -> None:
    flat = np.full((48, 64, 3), (200, 90, 40), np.uint8)
    video = make_video(tmp_path / "in.mp4", [flat], colour_tags={"colorspace": matrix, "color_range": colour_range})
    [frame] = iter_frames(video)
    np.testing.assert_allclose(frame, flat, atol=3)
    transcode_unchanged(video, tmp_path / "out.mp4")
    [written] = decode_frames(tmp_path / "out.mp4")
    assert (written.colorspace, written.color_range) == (matrix, colour_range)
    np.testing.assert_allclose(rgb_by_formula(written), flat, atol=4)


def test_hd_is_written_and_tagged_as_bt709(tmp_path: Path) -> None:
    flat = np.full((720, 16, 3), (200, 90, 40), np.uint8)
    video = make_video(tmp_path / "in.mp4", [flat], colour_tags={"colorspace": 1})
    transcode_unchanged(video, tmp_path / "out.mp4")
    [written] = decode_frames(tmp_path / "out.mp4")
    assert (written.colorspace, written.color_range) == (1, 1)
    np.testing.assert_allclose(rgb_by_formula(written), flat, atol=4)
    with av.open(str(tmp_path / "out.mp4")) as target:
        context = target.streams.video[0].codec_context
        assert (context.color_primaries, context.color_trc) == (1, 1)


def test_untagged_hd_is_read_as_bt709(tmp_path: Path) -> None:
    flat = np.full((720, 16, 3), (200, 90, 40), np.uint8)
    video = make_video(tmp_path / "in.mkv", [flat], codec="mpeg4", colour_tags={"colorspace": 1})
    untagged = decode_frames(video)[0].colorspace == 2
    [frame] = iter_frames(video)
    assert untagged or decode_frames(video)[0].colorspace == 1
    np.testing.assert_allclose(frame[8:-8, 4:-4], flat[8:-8, 4:-4], atol=6)


def test_higher_crf_gives_smaller_files(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    video = make_video(tmp_path / "in.mp4", [generator.integers(0, 256, (48, 64, 3), np.uint8)] * 3)
    transcode_unchanged(video, tmp_path / "fine.mp4", crf=10.0)
    transcode_unchanged(video, tmp_path / "coarse.mp4", crf=40.0)
    assert (tmp_path / "coarse.mp4").stat().st_size < 0.6 * (tmp_path / "fine.mp4").stat().st_size


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("fraction", [0.05, 0.4, 0.8])
def test_truncated_video_is_rejected(tmp_path: Path, suffix: str, fraction: float) -> None:
    frames = [make_frame(shift=3 * index) for index in range(40)]
    muxer = {"movflags": "faststart"} if suffix == ".mp4" else None
    video = make_video(tmp_path / f"in{suffix}", frames, with_audio=True, muxer_options=muxer)
    video.write_bytes(video.read_bytes()[: int(fraction * video.stat().st_size)])
    with pytest.raises(ChromaboxError, match=r"(truncated|corrupt|no decodable frame).*expected an intact video"):
        probe_video(video)


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as sink:
        mux_sine(sink, sink.add_stream("aac", rate=48_000))


INVALID_VIDEOS = {
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 20), "is not a video, or is truncated"),
    "playlist": (lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nother.mp4\n"), "is not a video"),
    "empty": (lambda path: path.touch(), "is empty"),
    "missing": (lambda path: None, "does not exist"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "audio only": (audio_only, r"contains no video stream \(found: audio\)"),
    "HDR": (lambda path: make_video(path, colour_tags={"color_trc": 16}), "is an HDR video"),
}


@pytest.mark.parametrize("name", INVALID_VIDEOS)
def test_invalid_videos_raise_a_one_line_error(tmp_path: Path, name: str) -> None:
    make, message = INVALID_VIDEOS[name]
    make(tmp_path / "in.mp4")
    with pytest.raises(ChromaboxError, match=message) as caught:
        probe_video(tmp_path / "in.mp4")
    assert "in.mp4" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["out.avi", "out", "out.jpg", "out.webm"])
def test_targets_that_cannot_be_written_are_rejected(tmp_path: Path, name: str) -> None:
    video = make_video(tmp_path / "in.mp4")
    with pytest.raises(UsageError, match=r"unsupported video suffix; expected \.m4v, \.mkv, \.mov, \.mp4"):
        transcode_unchanged(video, tmp_path / name)
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(UsageError, match=r"out.mp4: is a folder"):
        transcode_unchanged(video, tmp_path / "out.mp4")


def test_source_is_not_overwritten(tmp_path: Path) -> None:
    video = make_video(tmp_path / "in.mp4")
    before = video.read_bytes()
    os.link(video, tmp_path / "link.mp4")
    for target in (video, tmp_path / "link.mp4"):
        with pytest.raises(UsageError, match="is the same file as the input"):
            transcode_unchanged(video, target)
    assert video.read_bytes() == before


@pytest.mark.parametrize("crf", [-1.0, 52.0])
def test_crf_out_of_range_is_rejected(tmp_path: Path, crf: float) -> None:
    with pytest.raises(UsageError, match="invalid crf"):
        transcode_unchanged(make_video(tmp_path / "in.mp4"), tmp_path / "out.mp4", crf=crf)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ChromaboxError("no")])
def test_interruption_leaves_the_folder_unchanged(tmp_path: Path, failure: BaseException) -> None:
    video = make_video(tmp_path / "in.mp4", with_audio=True)
    (tmp_path / "out.mp4").write_bytes(b"older")
    frames = []

    def transform(frame: np.ndarray) -> np.ndarray:
        frames.append(frame)
        if len(frames) == 3:
            raise failure
        return frame

    with pytest.raises(type(failure)):
        transcode(probe_video(video), tmp_path / "out.mp4", transform)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"older"


def test_full_disk_is_reported_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = probe_video(make_video(tmp_path / "in.mp4"))

    def raise_disk_full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", raise_disk_full)
    with pytest.raises(ChromaboxError, match=r"out.mp4 cannot be written .*No space left"):
        transcode(info, tmp_path / "out.mp4", lambda frame: frame)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    info = probe_video(make_video(tmp_path / "in.mp4"))
    (tmp_path / "file").touch()
    with pytest.raises(ChromaboxError, match="cannot be written"):
        transcode(info, tmp_path / "file" / "out.mp4", lambda frame: frame)


def test_frames_of_different_sizes_are_rejected(tmp_path: Path) -> None:
    info = probe_video(make_video(tmp_path / "in.mp4"))
    sizes = iter([48, 48, 40])
    with pytest.raises(ChromaboxError, match="the frame size changes to 64 × 40 after frame 2"):
        transcode(info, tmp_path / "out.mp4", lambda frame: frame[: next(sizes)])


def test_skipped_streams_are_returned(tmp_path: Path) -> None:
    single = make_video(tmp_path / "single.mp4")
    with av.open(str(single)) as source, av.open(str(tmp_path / "two.mp4"), "w") as sink:
        copies = [sink.add_stream_from_template(source.streams.video[0]) for _ in range(2)]
        for packet in source.demux(video=0):
            if packet.size:
                payload, time = bytes(packet), (packet.pts, packet.dts)
                for copy in copies:
                    packet_copy = av.Packet(payload)
                    packet_copy.pts, packet_copy.dts = time
                    packet_copy.time_base, packet_copy.stream, packet_copy.is_keyframe = (
                        packet.time_base,
                        copy,
                        packet.is_keyframe,
                    )
                    sink.mux(packet_copy)
    assert transcode_unchanged(tmp_path / "two.mp4", tmp_path / "out.mp4").skipped_streams == ("video stream 1 (h264)",)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


@pytest.mark.parametrize(("suffix", "skipped"), [(".mkv", ()), (".mp4", ("attachment stream 1",))])
def test_fonts_are_copied_to_matroska_only(tmp_path: Path, suffix: str, skipped: tuple[str, ...]) -> None:
    with av.open(str(make_video(tmp_path / "plain.mkv"))) as source, av.open(str(tmp_path / "in.mkv"), "w") as sink:
        video = sink.add_stream_from_template(source.streams.video[0])
        sink.add_attachment("a.ttf", "font/ttf", b"letters")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                sink.mux(packet)
    assert transcode_unchanged(tmp_path / "in.mkv", tmp_path / f"out{suffix}").skipped_streams == skipped
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert [stream.data for stream in container.streams.attachments] == ([] if skipped else [b"letters"])


def test_missing_pyav_is_reported_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = make_video(tmp_path / "in.mp4")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UsageError, match=r"pip install 'chromabox\[video\]'"):
        probe_video(video)


def test_duration_of_the_last_frame_is_preserved(tmp_path: Path) -> None:
    video = make_video(tmp_path / "in.mp4")
    transcode_unchanged(video, tmp_path / "out.mp4")
    assert probe_video(tmp_path / "out.mp4").seconds == probe_video(video).seconds == 0.2


class Counter:
    """Transformation with a state: the number of transformed frames. Stops before a frame if told to."""

    def __init__(self, stop_before: int | None = None) -> None:
        self.count, self.calls, self.restored, self.stop_before = 0, 0, None, stop_before

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        if self.count == self.stop_before:
            raise KeyboardInterrupt
        self.count, self.calls = self.count + 1, self.calls + 1
        return np.where(np.arange(64)[None, :, None] < self.count, 255, frame).astype(np.uint8)

    def resumption(self, key: str = "ab12") -> Resumption:
        return Resumption(key, lambda: {"count": np.array(self.count)}, self.restore)

    def restore(self, state: Mapping[str, np.ndarray], num_frames: int) -> None:
        self.count, self.restored = int(state["count"]), num_frames


def test_interrupted_video_is_resumed_after_the_last_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chromabox.io.video.transcoding.SEGMENT_FRAMES", 4)
    video = make_video(tmp_path / "in.mp4", [make_frame(shift=index) for index in range(14)], with_audio=True)
    info = probe_video(video)
    transcode(info, tmp_path / "undisturbed.mp4", Counter())
    target = tmp_path / "out.mp4"
    for stop_before, restored in ((2, None), (9, None), (13, 8)):
        counter = Counter(stop_before)
        with pytest.raises(KeyboardInterrupt):
            transcode(info, target, counter, resumption=counter.resumption())
        assert counter.restored == restored
    # A damaged segment and everything after it are made again.
    [folder] = tmp_path.glob(".*")
    (folder / "000001.npz").write_bytes(b"damaged")
    counter = Counter()
    transcode(info, target, counter, resumption=counter.resumption())
    assert (counter.restored, counter.calls) == (4, 10)
    for kind in ("video", "audio"):
        assert read_packets(target, kind) == read_packets(tmp_path / "undisturbed.mp4", kind)
    written, expected = decode_frames(target), decode_frames(tmp_path / "undisturbed.mp4")
    assert [frame.pts for frame in written] == [frame.pts for frame in expected]
    assert len(written) == 14
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4", "undisturbed.mp4"]


def test_other_settings_do_not_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chromabox.io.video.transcoding.SEGMENT_FRAMES", 2)
    info = probe_video(make_video(tmp_path / "in.mp4"))
    first, second = Counter(stop_before=4), Counter()
    with pytest.raises(KeyboardInterrupt):
        transcode(info, tmp_path / "out.mp4", first, resumption=first.resumption("aa"))
    transcode(info, tmp_path / "out.mp4", second, resumption=second.resumption("bb"))
    assert (second.restored, second.calls) == (None, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_segments_of_variable_frame_rate_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chromabox.io.video.transcoding.SEGMENT_FRAMES", 4)
    timestamps = [0, *np.cumsum(np.random.default_rng(0).integers(100, 5000, 18)).tolist()]
    frames = [make_frame(shift=index) for index in range(19)]
    video = make_video(tmp_path / "in.mov", frames, timestamps=timestamps)
    transcode_unchanged(video, tmp_path / "out.mov")
    assert [frame.pts * frame.time_base for frame in decode_frames(tmp_path / "out.mov")] == [
        frame.pts * frame.time_base for frame in decode_frames(video)
    ]


def test_too_little_space_is_reported_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = probe_video(make_video(tmp_path / "in.mp4"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    counter = Counter()
    with pytest.raises(ChromaboxError, match=r"has 0.0 MB of free space: expected at least [.0-9]+ MB for out.mp4"):
        transcode(info, tmp_path / "out.mp4", counter)
    assert counter.calls == 0
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_several_audio_tracks_are_preserved(tmp_path: Path) -> None:
    with av.open(str(make_video(tmp_path / "plain.mkv"))) as source, av.open(str(tmp_path / "in.mkv"), "w") as sink:
        video = sink.add_stream_from_template(source.streams.video[0])
        tracks = [sink.add_stream("aac", rate=48_000) for _ in range(2)]
        for track, language in zip(tracks, ("fra", "deu"), strict=True):
            track.metadata["language"] = language
        for track in tracks:
            mux_sine(sink, track)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                sink.mux(packet)
    assert transcode_unchanged(tmp_path / "in.mkv", tmp_path / "out.mp4").audio_streams == 2
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.metadata["language"] for stream in container.streams.audio] == ["fra", "deu"]


def test_audio_that_no_format_supports_is_rejected_before_the_work(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.wmv"), "w") as sink:
        audio = sink.add_stream("wmav2", rate=48_000, layout="stereo")
        audio.bit_rate = 128_000
        video = sink.add_stream("wmv2", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        mux_sine(sink, audio)
        sink.mux(video.encode(to_video_frame(make_frame(), "yuv420p")))
        sink.mux(video.encode(None))
    counter = Counter()
    with pytest.raises(UsageError, match=r"the audio stream 0 of .*in.wmv \(wmav2\); convert the audio to AAC first"):
        transcode(probe_video(tmp_path / "in.wmv"), tmp_path / "out.mkv", counter)
    assert counter.calls == 0
