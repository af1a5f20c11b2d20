"""Colourisation of videos: lightness of the frames that PyAV decodes, by scikit-image's rgb2lab, and flicker."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data
from skimage.color import rgb2lab

from chromabox.colour.inference.load import open_model
from chromabox.colour.inference.predict import predict_chroma
from chromabox.colour.inference.video import TemporalSmoother, colourise_video, lightness_at_size
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.kinds import WRITABLE_VIDEO_SUFFIXES
from video_fixtures import decode_frames, make_frame, make_video, read_packets

ORANGE = np.full((6, 8, 2), (30, 40), np.float32)


def lab(path: Path) -> np.ndarray:
    """Return CIELAB of every frame, [frames, height, width, 3]."""
    return np.stack([rgb2lab(frame.to_ndarray(format="rgb24")) for frame in decode_frames(path)])


@pytest.mark.parametrize("suffix", sorted(WRITABLE_VIDEO_SUFFIXES))
def test_colourised_video_keeps_lightness_and_audio(tmp_path: Path, suffix: str) -> None:
    source, target = make_video(tmp_path / f"in{suffix}", with_audio=True), tmp_path / "new" / f"out{suffix}"
    summary = colourise_video(source, target, lambda frame: ORANGE, crf=4.0)
    assert (summary.num_frames, summary.width, summary.height) == (5, 64, 48)
    assert (summary.audio_streams, summary.subtitle_streams, summary.skipped_streams) == (1, 0, ())
    before, after = lab(source), lab(target)
    # The tolerance covers rounding to limited range (0.4 of L* per step) and the loss of the codec.
    assert np.abs(after[..., 0] - before[..., 0]).mean() < 0.7
    middle = after[:, 8:-8, 8:-8, 1:].mean(axis=(0, 1, 2))
    np.testing.assert_allclose(middle, (30, 40), atol=2.5)
    assert read_packets(source, "audio") == read_packets(target, "audio")


def test_zero_chroma_gives_a_grey_video(tmp_path: Path) -> None:
    colourise_video(make_video(tmp_path / "in.mp4"), tmp_path / "out.mp4", lambda frame: 0 * ORANGE)
    assert np.abs(lab(tmp_path / "out.mp4")[..., 1:]).max() < 2


def test_frames_are_upright_and_in_order(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", rotation=(90, False, False))
    frames = []
    colourise_video(source, tmp_path / "out.mp4", lambda frame: (frames.append(frame), ORANGE)[1])
    for index, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - np.rot90(make_frame(shift=index))).mean() < 2


def test_scene_cut_resets_the_smoothing(tmp_path: Path) -> None:
    scenes = [np.asarray(Image.fromarray(p()).resize((64, 48)).convert("L")) for p in (data.astronaut, data.coffee)]
    frames = [np.repeat(scene[..., None], 3, axis=2) for scene in scenes for _ in range(4)]
    chroma = iter([ORANGE] * 4 + [-ORANGE] * 4)
    colourise_video(make_video(tmp_path / "in.mp4", frames), tmp_path / "out.mp4", lambda frame: next(chroma), crf=4.0)
    b = lab(tmp_path / "out.mp4")[..., 2].mean(axis=(1, 2))
    assert (b[:4] > 10).all()
    assert (b[4:] < -10).all()
    np.testing.assert_allclose(b[4:], b[4], atol=1)  # from the first frame on


def test_smoothing_at_least_halves_the_flicker_of_the_bundled_model() -> None:
    generator = np.random.default_rng(0)
    small = np.asarray(Image.fromarray(data.astronaut()).resize((128, 128)).convert("L"))
    model, smoother = open_model(), TemporalSmoother()
    independent, smoothed = [], []
    for _ in range(8):
        noisy = (small + generator.normal(0, 8, small.shape)).round().clip(0, 255).astype(np.uint8)
        frame = np.repeat(noisy[..., None], 3, axis=2)
        chroma = predict_chroma(frame, model)
        independent.append(chroma)
        smoothed.append(smoother(chroma, lightness_at_size(frame, *chroma.shape[:2])))
    assert flicker(independent) > 0.05
    assert flicker(smoothed) <= 0.5 * flicker(independent)


def flicker(maps: list[np.ndarray]) -> float:
    """Return the mean distance in a*b* between consecutive frames."""
    return float(np.linalg.norm(np.diff(np.stack(maps), axis=0), axis=-1).mean())


def test_lightness_at_size_averages_blocks() -> None:
    frame = np.zeros((8, 12, 3), np.uint8)
    frame[:4, :6], frame[4:, 6:] = 255, 119
    result = lightness_at_size(frame, 2, 2)
    np.testing.assert_allclose(result, [[100, 0], [0, rgb2lab(np.full((1, 1, 3), 119, np.uint8))[0, 0, 0]]], atol=0.01)


def test_ctrl_c_during_prediction_leaves_no_files(tmp_path: Path) -> None:
    def raise_interrupt(frame: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        colourise_video(make_video(tmp_path / "in.mp4"), tmp_path / "out.mp4", raise_interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_invalid_options_are_rejected_before_the_video_is_read(tmp_path: Path) -> None:
    source = tmp_path / "missing.mp4"
    with pytest.raises(UsageError, match="smoothing is"):
        colourise_video(source, tmp_path / "out.mp4", lambda frame: ORANGE, smoothing=1.0)
    with pytest.raises(UsageError, match="unsupported video suffix"):
        colourise_video(source, tmp_path / "out.gif", lambda frame: ORANGE)
    with pytest.raises(UsageError, match="is the same file as the input"):
        colourise_video(source, source, lambda frame: ORANGE)
    with pytest.raises(ChromaboxError, match="does not exist"):
        colourise_video(source, tmp_path / "out.mp4", lambda frame: ORANGE)


def test_resumed_video_equals_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chromabox.io.video.transcoding.SEGMENT_FRAMES", 2)
    source = make_video(tmp_path / "in.mp4")
    maps = [np.full((6, 8, 2), (5 * index, 40 - 9 * index), np.float32) for index in range(5)]

    def predict(index_of_frame: list[int], stop_before: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
        def predict_chroma(frame: np.ndarray) -> np.ndarray:
            index = min(range(5), key=lambda i: np.abs(frame.astype(int) - make_frame(shift=i)).mean())
            if index == stop_before:
                raise KeyboardInterrupt
            index_of_frame.append(index)
            return maps[index]

        return predict_chroma

    colourise_video(source, tmp_path / "undisturbed.mp4", predict([]))
    with pytest.raises(KeyboardInterrupt):
        colourise_video(source, tmp_path / "out.mp4", predict([], stop_before=3), settings={"net": "a"})
    calls: list[int] = []
    colourise_video(source, tmp_path / "out.mp4", predict(calls), settings={"net": "a"})
    assert calls == [2, 3, 4]
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "undisturbed.mp4").read_bytes()
