"""Videos of a few small frames, made with PyAV for the tests."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

TIME_BASE = Fraction(1, 12_800)
FRAME_DURATION = 512  # 25 frames a second


def make_frame(height: int = 48, width: int = 64, shift: int = 0) -> np.ndarray:
    """Return a smooth greyscale image without symmetry: uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    plane = 60 + 120 * (x + shift) / width * (0.4 + 0.6 * y / height) + 20 * np.sin(x / 5)
    return np.repeat(plane.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def make_video(
    path: Path,
    frames: Sequence[np.ndarray] | None = None,
    *,
    timestamps: Sequence[int] | None = None,
    with_audio: bool = False,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    metadata: dict[str, str] | None = None,
    muxer_options: dict[str, str] | None = None,
    colour_tags: dict[str, int] | None = None,
    rotation: tuple[float, bool, bool] | None = None,
    sample_aspect_ratio: Fraction | None = None,
    codec_options: dict[str, str] | None = None,
) -> Path:
    """Encode RGB frames almost losslessly at ``timestamps`` (in units of TIME_BASE).

    ``with_audio`` adds one second of a sine. ``colour_tags`` are the matrix, range, primaries and transfer function of
    the codec by their PyAV names; None means BT.601 with limited range.
    """
    frames = [make_frame(shift=index) for index in range(5)] if frames is None else frames
    with av.open(str(path), "w", container_options=muxer_options or {}) as container:
        container.metadata.update(metadata or {})
        options = ({"crf": "4"} if codec == "libx264" else {}) | (codec_options or {})
        video = container.add_stream(codec, rate=25, options=options)
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = pix_fmt
        video.codec_context.time_base = TIME_BASE
        if sample_aspect_ratio is not None:
            video.codec_context.sample_aspect_ratio = sample_aspect_ratio
        for name, value in (colour_tags or {}).items():
            setattr(video.codec_context, name, value)
        if rotation is not None:
            video.set_display_rotation(*rotation)
        audio = container.add_stream("aac", rate=48_000) if with_audio else None
        if audio is not None:
            audio.metadata["language"] = "fra"
        for index, pixels in enumerate(frames):
            frame = to_video_frame(pixels, pix_fmt, **(colour_tags or {}))
            frame.pts, frame.time_base = timestamps[index] if timestamps else FRAME_DURATION * index, TIME_BASE
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            mux_sine(container, audio)
    return path


def to_video_frame(pixels: np.ndarray, pix_fmt: str, colorspace: int = 6, color_range: int = 1, **_: int) -> Any:
    """Convert RGB to a frame with the given matrix (1: BT.709, 6: BT.601) and range (1: limited, 2: full)."""
    interpolation = av.video.reformatter.Interpolation.ACCURATE_RND | av.video.reformatter.Interpolation.BICUBIC
    return av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
        format=pix_fmt,
        src_color_range=2,
        dst_color_range=color_range,
        dst_colorspace={1: 1, 6: 5}[colorspace],
        interpolation=interpolation,
    )


def mux_sine(container: Any, stream: Any) -> None:
    """Encode and write one second of a 440 Hz sine."""
    sine = (0.3 * np.sin(np.arange(48_128) * 2 * np.pi * 440 / 48_000)).astype(np.float32)
    for start in range(0, 48_128, 1024):
        frame = av.AudioFrame.from_ndarray(sine[None, start : start + 1024].repeat(2, 0), "fltp", "stereo")
        frame.sample_rate, frame.pts = 48_000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def read_packets(path: Path, kind: str) -> list[bytes]:
    """Return the bytes of all packets of the first stream of a kind (audio, subtitles or video)."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(**{kind: 0}) if packet.size]


def decode_frames(path: Path) -> list[Any]:
    """Return all frames of the first video stream."""
    with av.open(str(path)) as container:
        return list(container.decode(video=0))
