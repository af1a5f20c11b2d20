"""Decoding of all frames of a video. Frames that cannot be decoded are replaced by the last good frame."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from chromabox.errors import ChromaboxError
from chromabox.io.video.frames import FramePixels, decode_frame
from chromabox.io.video.source import (
    EXPECTED_VIDEO,
    VideoInfo,
    find_video_stream,
    iter_wrapped,
    open_input,
    probe_video,
)

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceFrame:
    """A decoded frame with its timestamp and duration in units of the time base of the stream.

    `is_repeated` says that it replaces a damaged frame.
    """

    frame: "VideoFrame"
    pts: int
    duration: int
    is_repeated: bool = False


def iter_frames(path: Path) -> Iterator[FramePixels]:
    """Yield the pixels of all frames of the video, upright and in order. Damaged frames are replaced and logged."""
    info = probe_video(path)
    with open_input(path) as source:
        video = find_video_stream(path, source)
        num_damaged = 0
        for source_frame in iter_source_frames(info, source, video):
            num_damaged += source_frame.is_repeated
            yield decode_frame(source_frame.frame)
    log_damage(path, num_damaged)


def iter_source_frames(info: VideoInfo, source: "InputContainer", video: "VideoStream") -> Iterator[SourceFrame]:
    """Yield all frames in the order of presentation, with increasing timestamps.

    A frame is damaged if its packet cannot be decoded or the decoder marks it as corrupt, or if a packet between such a
    frame and the next key frame yields no frame. A damaged frame is replaced by the last good one, and before the first
    good frame by that frame. Frames of another size are scaled to the size of the first one.
    """
    from av.error import FFmpegError

    video.codec_context.thread_type = "SLICE"  # With frame threads, an error is raised for another packet.
    time_base = video.time_base or Fraction(1, 90_000)
    duration = max(1, round(1 / (video.average_rate or 25) / time_base))
    unassigned = iter(info.times)
    damaged: set[int] = set()
    is_after_damage = False
    num_scaled = 0
    last: SourceFrame | None = None

    def repeat(good: "VideoFrame", before: int | None) -> Iterator[SourceFrame]:
        for pts in sorted(time for time in damaged if before is None or time < before):
            damaged.remove(pts)
            if last is None or pts > last.pts:
                yield SourceFrame(good, pts, duration, is_repeated=True)

    for packet in iter_wrapped(info.path, "is corrupt and cannot be read", source.demux, [video]):
        if not packet.size and packet.dts is not None:
            continue  # The frame repeats the previous one. The last packet, which ends decoding, has no timestamp.
        is_after_damage = is_after_damage and not packet.is_keyframe
        is_damaged = is_after_damage and not info.times
        frames: list[VideoFrame] = []
        try:
            frames = video.decode(packet)
        except FFmpegError:
            is_damaged = is_after_damage = True
        if is_damaged and packet.pts is not None and packet.size and not packet.is_discard:
            damaged.add(packet.pts)
        for frame in frames:
            pts = frame.pts
            if info.times:  # The order of the frames is known, but not their timestamps.
                pts = next((time for time in unassigned if time not in damaged), None)
            if pts is None:
                pts = 0 if last is None else last.pts + duration
            if frame.is_corrupt:
                damaged.add(pts)
                continue
            damaged.discard(pts)
            if last is not None and (frame.width, frame.height) != (last.frame.width, last.frame.height):
                num_scaled += 1
                frame = frame.reformat(last.frame.width, last.frame.height)
            for repeated in repeat(frame if last is None else last.frame, pts):
                last = repeated
                yield repeated
            last = SourceFrame(frame, pts if last is None else max(pts, last.pts + 1), frame.duration or duration)
            yield last
    if last is None:
        raise ChromaboxError(f"{info.path} contains no decodable frame: {EXPECTED_VIDEO}")
    yield from repeat(last.frame, None)
    if num_scaled:
        size = f"{last.frame.width} × {last.frame.height}"
        log.warning(f"{info.path}: the frame size changes; {num_scaled} frame(s) were scaled to {size}")


def log_damage(path: Path, num_damaged: int) -> None:
    if num_damaged:
        log.warning(f"{path}: {num_damaged} damaged frame(s) replaced by the last good frame")
