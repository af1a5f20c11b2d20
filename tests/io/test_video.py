"""Films through PyAV: what is written is read again with PyAV itself, colours by the formulas of BT.601 and BT.709.

FFmpeg's own display of rotated films is the rule that `numpy.rot90` stands for here: PyAV says by how many degrees
anticlockwise a frame is to be turned.
"""

import errno
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.video import TranscodeResult, VideoInfo, iter_frames, probe_video, transcode
from video_fixtures import TIME_BASE, decode_frames, make_frame, make_video, mux_sine, read_packets

# Kr and Kb of the matrices (ITU-R BT.709-6, BT.601-7), by their numbers in ITU-T H.273.
LUMA = {1: (0.2126, 0.0722), 6: (0.299, 0.114)}


def unchanged(source: Path, target: Path, **options: float) -> TranscodeResult:
    return transcode(probe_video(source), target, lambda frame: frame, **options)


def rgb_by_formula(frame: av.VideoFrame) -> np.ndarray:
    """RGB of a limited-range 4:2:0 frame from its planes, chroma to the nearest, by the formulas of its matrix."""
    red, blue = LUMA[frame.colorspace]
    planes = frame.to_ndarray().astype(np.float64)
    height = frame.height
    luma = (planes[:height] - 16) / 219
    cb, cr = (part.reshape(height // 2, -1).repeat(2, 0).repeat(2, 1) for part in np.split(planes[height:], 2))
    b, r = ((c - 128) / 224 * 2 * (1 - k) for c, k in ((cb, blue), (cr, red)))
    green = luma - (red * r + blue * b) / (1 - red - blue)
    return 255 * np.stack([luma + r, green, luma + b], axis=-1)


@pytest.mark.parametrize("target", ["out.mp4", "out.mov", "out.mkv"])
@pytest.mark.parametrize("source", ["in.mp4", "in.mov", "in.mkv"])
def test_sound_times_title_and_date_are_kept(tmp_path: Path, source: str, target: str) -> None:
    metadata = {"title": "Été", "creation_time": "1999-12-31T23:59:59.000000Z"}
    times = [0, 512, 1536, 3072, 3584]  # a variable frame rate
    film = make_video(tmp_path / source, with_audio=True, timestamps=times, metadata=metadata)
    assert unchanged(film, tmp_path / target) == TranscodeResult(5, 64, 48, 1, 0)
    assert read_packets(film, "audio") == read_packets(tmp_path / target, "audio")
    with av.open(str(tmp_path / target)) as found:
        assert metadata.items() <= found.metadata.items()
        assert found.streams.audio[0].metadata["language"] == "fra"
        assert found.streams.video[0].codec_context.name == "h264"
    # Matroska has no times below zero, where an encoder's first sound lies: there all streams move together.
    shift = first_time(tmp_path / target) - first_time(film)
    written = [frame.time - shift for frame in decode_frames(tmp_path / target)]
    # Matroska counts milliseconds.
    assert written == pytest.approx([float(time * TIME_BASE) for time in times], abs=1.1e-3)
    if ".mkv" not in (film.suffix, Path(target).suffix):
        assert [Fraction(frame.pts) * frame.time_base for frame in decode_frames(tmp_path / target)] == [
            time * TIME_BASE for time in times
        ]


def first_time(path: Path) -> float:
    """When the sound begins, in seconds."""
    with av.open(str(path)) as film:
        packet = next(film.demux(audio=0))
        return float(packet.pts * packet.time_base)


def test_what_is_known_before_decoding(tmp_path: Path) -> None:
    film = make_video(tmp_path / "in.mp4", with_audio=True)
    expected = VideoInfo(film, 5, 64, 48, Fraction(1), 25.0, 0.2, 1, 1)
    assert probe_video(film) == expected


def test_subtitles_and_chapters_are_kept(tmp_path: Path) -> None:
    film = film_with_subtitles(tmp_path / "in.mkv")
    assert unchanged(film, tmp_path / "out.mkv").subtitle_streams == 1
    assert read_packets(tmp_path / "out.mkv", "subtitles") == [b"Bonjour", b"Au revoir"]
    with av.open(str(tmp_path / "out.mkv")) as found:
        assert [chapter["metadata"]["title"] for chapter in found.chapters()] == ["Début"]


def test_subtitles_that_the_format_cannot_hold_are_not_lost_silently(tmp_path: Path) -> None:
    film = film_with_subtitles(tmp_path / "in.mkv")
    with pytest.raises(UsageError, match=r"the subtitle of .* cannot be kept in this format"):
        unchanged(film, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


def film_with_subtitles(path: Path) -> Path:
    film = make_video(path.with_name("plain.mkv"))
    with av.open(str(film)) as source, av.open(str(path), "w") as sink:
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
    film.unlink()
    return path


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_a_rotation_in_the_file_is_applied(tmp_path: Path, degrees: int, flips: tuple[bool, bool]) -> None:
    film = make_video(
        tmp_path / "in.mp4", [make_frame()], rotation=(degrees, *flips), sample_aspect_ratio=Fraction(4, 3)
    )
    with av.open(str(film)) as source:
        told = next(source.decode(video=0)).rotation
    if flips == (False, False):
        assert told % 360 == degrees % 360
    upright = np.rot90(make_frame(), degrees // 90)
    # What was turned is then mirrored (libavutil, av_display_matrix_flip).
    upright = upright[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
    seen = []
    transcode(probe_video(film), tmp_path / "out.mp4", lambda frame: (seen.append(frame), frame)[1])
    [written] = decode_frames(tmp_path / "out.mp4")
    for found in (seen[0], written.to_ndarray(format="rgb24")):
        assert found.shape == upright.shape
        assert np.abs(found.astype(int) - upright).mean() < 3
    assert written.rotation == 0
    with av.open(str(tmp_path / "out.mp4")) as target:
        shape = target.streams.video[0].sample_aspect_ratio
    assert shape == (Fraction(4, 3) if degrees % 180 == 0 else Fraction(3, 4))


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (1, 1), (47, 63)])
def test_odd_sides_are_made_even(tmp_path: Path, height: int, width: int) -> None:
    frames = [make_frame(height, width)] * 3
    film = make_video(tmp_path / "in.mkv", frames, codec="ffv1", pix_fmt="yuv444p")
    remade = unchanged(film, tmp_path / "out.mp4")
    assert (remade.width, remade.height) == (width + width % 2, height + height % 2)
    found = decode_frames(tmp_path / "out.mp4")[2].to_ndarray(format="rgb24")
    assert np.abs(found[:height, :width].astype(int) - frames[0]).mean() < 4


@pytest.mark.parametrize("colour_range", [1, 2])
@pytest.mark.parametrize("matrix", [1, 6])
def test_colours_are_read_by_the_matrix_and_range_that_the_film_names(
    tmp_path: Path, matrix: int, colour_range: int
) -> None:
    flat = np.full((48, 64, 3), (200, 90, 40), np.uint8)
    film = make_video(tmp_path / "in.mp4", [flat], colour_tags={"colorspace": matrix, "color_range": colour_range})
    [found] = iter_frames(film)
    np.testing.assert_allclose(found, flat, atol=3)
    unchanged(film, tmp_path / "out.mp4")
    [written] = decode_frames(tmp_path / "out.mp4")
    assert (written.colorspace, written.color_range) == (6, 1)  # 48 lines are not HD
    np.testing.assert_allclose(rgb_by_formula(written), flat, atol=4)


def test_hd_is_written_and_named_as_bt709(tmp_path: Path) -> None:
    flat = np.full((720, 16, 3), (200, 90, 40), np.uint8)
    film = make_video(tmp_path / "in.mp4", [flat], colour_tags={"colorspace": 1})
    unchanged(film, tmp_path / "out.mp4")
    [written] = decode_frames(tmp_path / "out.mp4")
    assert (written.colorspace, written.color_range) == (1, 1)
    np.testing.assert_allclose(rgb_by_formula(written), flat, atol=4)
    with av.open(str(tmp_path / "out.mp4")) as target:
        context = target.streams.video[0].codec_context
        assert (context.color_primaries, context.color_trc) == (1, 1)


def test_untagged_hd_is_read_as_bt709(tmp_path: Path) -> None:
    flat = np.full((720, 16, 3), (200, 90, 40), np.uint8)
    film = make_video(tmp_path / "in.mkv", [flat], codec="mpeg4", colour_tags={"colorspace": 1})
    untagged = decode_frames(film)[0].colorspace == 2
    [found] = iter_frames(film)
    assert untagged or decode_frames(film)[0].colorspace == 1
    np.testing.assert_allclose(found[8:-8, 4:-4], flat[8:-8, 4:-4], atol=6)


def test_crf_trades_quality_for_size(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    film = make_video(tmp_path / "in.mp4", [generator.integers(0, 256, (48, 64, 3), np.uint8)] * 3)
    unchanged(film, tmp_path / "fine.mp4", crf=10.0)
    unchanged(film, tmp_path / "coarse.mp4", crf=40.0)
    assert (tmp_path / "coarse.mp4").stat().st_size < 0.6 * (tmp_path / "fine.mp4").stat().st_size


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.8])
def test_a_film_cut_short_is_refused_before_any_work(tmp_path: Path, suffix: str, share: float) -> None:
    frames = [make_frame(shift=3 * index) for index in range(40)]
    muxer = {"movflags": "faststart"} if suffix == ".mp4" else None
    film = make_video(tmp_path / f"in{suffix}", frames, with_audio=True, muxer_options=muxer)
    film.write_bytes(film.read_bytes()[: int(share * film.stat().st_size)])
    with pytest.raises(ChromaboxError, match=r"(cut short|damaged|no frame that can be decoded).*is needed"):
        probe_video(film)


def sound_alone(path: Path) -> None:
    with av.open(str(path), "w") as sink:
        mux_sine(sink, sink.add_stream("aac", rate=48_000))


BROKEN = {
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 20), "is not an MP4, MOV or Matroska film"),
    "list of other files": (lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nother.mp4\n"), "is not an MP4"),
    "empty": (lambda path: path.touch(), "is empty"),
    "missing": (lambda path: None, "does not exist"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "sound alone": (sound_alone, "holds no video, only audio"),
    "HDR": (lambda path: make_video(path, colour_tags={"color_trc": 16}), "is an HDR film"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_film_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    make, sentence = BROKEN[name]
    make(tmp_path / "in.mp4")
    with pytest.raises(ChromaboxError, match=sentence) as refusal:
        probe_video(tmp_path / "in.mp4")
    assert "in.mp4" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["in.avi", "in", "in.jpg"])
def test_unknown_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    make_video(tmp_path / "in.mp4")
    (tmp_path / "in.mp4").rename(tmp_path / "film.mp4")
    (tmp_path / name).write_bytes((tmp_path / "film.mp4").read_bytes())
    with pytest.raises(UsageError, match=r"right are \.mkv, \.mov, \.mp4"):
        probe_video(tmp_path / name)
    with pytest.raises(UsageError, match=r"right are \.mkv, \.mov, \.mp4"):
        unchanged(tmp_path / "film.mp4", tmp_path / f"other-{name}")


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    film = make_video(tmp_path / "in.mp4")
    before = film.read_bytes()
    os.link(film, tmp_path / "link.mp4")
    for target in (film, tmp_path / "link.mp4"):
        with pytest.raises(UsageError, match="is the input"):
            unchanged(film, target)
    assert film.read_bytes() == before


@pytest.mark.parametrize("crf", [-1.0, 52.0])
def test_crf_out_of_range_is_refused(tmp_path: Path, crf: float) -> None:
    with pytest.raises(UsageError, match="crf is"):
        unchanged(make_video(tmp_path / "in.mp4"), tmp_path / "out.mp4", crf=crf)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ChromaboxError("no")])
def test_what_ends_early_leaves_the_folder_as_it_was(tmp_path: Path, failure: BaseException) -> None:
    film = make_video(tmp_path / "in.mp4", with_audio=True)
    (tmp_path / "out.mp4").write_bytes(b"older")
    done = []

    def change(frame: np.ndarray) -> np.ndarray:
        done.append(frame)
        if len(done) == 3:
            raise failure
        return frame

    with pytest.raises(type(failure)):
        transcode(probe_video(film), tmp_path / "out.mp4", change)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"older"


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = probe_video(make_video(tmp_path / "in.mp4"))

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replacements", full)
    with pytest.raises(ChromaboxError, match=r"out.mp4 cannot be written .*No space left"):
        transcode(film, tmp_path / "out.mp4", lambda frame: frame)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    film = probe_video(make_video(tmp_path / "in.mp4"))
    (tmp_path / "file").touch()
    with pytest.raises(ChromaboxError, match="cannot be written"):
        transcode(film, tmp_path / "file" / "out.mp4", lambda frame: frame)


def test_frames_of_changing_size_are_refused(tmp_path: Path) -> None:
    film = probe_video(make_video(tmp_path / "in.mp4"))
    sizes = iter([48, 48, 40])
    with pytest.raises(ChromaboxError, match="changes its frame size to 64 × 40 after 2 frames"):
        transcode(film, tmp_path / "out.mp4", lambda frame: frame[: next(sizes)])


def test_other_streams_are_named_as_left_out(tmp_path: Path) -> None:
    small = make_video(tmp_path / "small.mp4")
    with av.open(str(small)) as source, av.open(str(tmp_path / "two.mp4"), "w") as sink:
        copies = [sink.add_stream_from_template(source.streams.video[0]) for _ in range(2)]
        for packet in source.demux(video=0):
            if packet.size:
                payload, time = bytes(packet), (packet.pts, packet.dts)
                for copy in copies:
                    twin = av.Packet(payload)
                    twin.pts, twin.dts = time
                    twin.time_base, twin.stream, twin.is_keyframe = packet.time_base, copy, packet.is_keyframe
                    sink.mux(twin)
    assert unchanged(tmp_path / "two.mp4", tmp_path / "out.mp4").skipped_streams == ("video stream 1",)
    with av.open(str(tmp_path / "out.mp4")) as found:
        assert [stream.type for stream in found.streams] == ["video"]


@pytest.mark.parametrize(("suffix", "left_out"), [(".mkv", ()), (".mp4", ("attachment stream 1",))])
def test_fonts_are_kept_where_the_format_has_a_place(tmp_path: Path, suffix: str, left_out: tuple[str, ...]) -> None:
    with av.open(str(make_video(tmp_path / "plain.mkv"))) as source, av.open(str(tmp_path / "in.mkv"), "w") as sink:
        video = sink.add_stream_from_template(source.streams.video[0])
        sink.add_attachment("a.ttf", "font/ttf", b"letters")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                sink.mux(packet)
    assert unchanged(tmp_path / "in.mkv", tmp_path / f"out{suffix}").skipped_streams == left_out
    with av.open(str(tmp_path / f"out{suffix}")) as found:
        assert [stream.data for stream in found.streams.attachments] == ([] if left_out else [b"letters"])


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = make_video(tmp_path / "in.mp4")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UsageError, match=r"pip install 'chromabox\[video\]'"):
        probe_video(film)


def test_the_last_frame_lasts_as_long_as_before(tmp_path: Path) -> None:
    film = make_video(tmp_path / "in.mp4")
    unchanged(film, tmp_path / "out.mp4")
    assert probe_video(tmp_path / "out.mp4").seconds == probe_video(film).seconds == 0.2
