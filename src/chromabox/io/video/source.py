"""Reading of videos: properties, what a transcoding does not preserve, and decoding of all frames.

Frames that cannot be decoded are replaced by the last good frame.

Only the demuxers in ``_DEMUXERS`` are used, and no URL in a file is opened.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chromabox.errors import ChromaboxError, missing_package
from chromabox.io.images import check_file
from chromabox.io.video.frames import (
    BT709,
    LIMITED,
    SMPTE170M,
    SWSCALE_MATRIX,
    UNSPECIFIED,
    FramePixels,
    decode_frame,
    display_matrix,
    frame_matrix,
    frame_range,
)

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

_CONTAINERS = "MP4, MOV, Matroska, WebM, AVI, MPEG, ASF, FLV, Ogg, MXF or DV"

# Names of FFmpeg demuxers. Demuxers that open further files or addresses (concat, hls, dash, image2) are not included.
_DEMUXERS = "asf,avi,dv,flv,gxf,ivf,matroska,mov,mpeg,mpegts,mpegvideo,mxf,nut,ogg,rm,wtv,yuv4mpegpipe"

# Containers with a reliable number of frames or duration in their headers, and timestamps from 0.
_EXACT_CONTAINERS = ("mov", "matroska")

_HDR_TRANSFERS = (16, 18)  # PQ and HLG, by their numbers in ITU-T H.273
EXPECTED_VIDEO = "expected an intact video"


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video.

    `width` and `height` are the size of an upright frame in pixels. `pixel_aspect_ratio` is the width of a pixel
    divided by its height, `fps` the average frame rate and `seconds` the duration. `primaries`, `transfer` and
    `matrix` are the colour primaries, the transfer function and the colour matrix (ITU-T H.273 numbers). `range` is
    1 (limited) or 2 (full). `field_order` is "tff" (top field first), "bff", or empty for a progressive video. `notes`
    describe what a transcoding does not preserve. `times` are the timestamps of the frames if the container does not
    assign them to frames (AVI), and `offset` is the start of the container in seconds.
    """

    path: Path
    num_frames: int
    width: int
    height: int
    pixel_aspect_ratio: Fraction
    fps: float
    seconds: float
    primaries: int
    transfer: int
    matrix: int = SMPTE170M
    range: int = LIMITED
    field_order: str = ""
    notes: tuple[str, ...] = ()
    times: tuple[int, ...] = field(default=(), repr=False)
    offset: Fraction = Fraction(0)


def probe_video(path: Path) -> VideoInfo:
    """Return the properties of the video at `path`. Read all packets, but decode only the first frame.

    Raise ChromaboxError for a missing, empty, truncated or corrupt file, a file without a video stream, and HDR video
    (PQ or HLG), because 8-bit video cannot represent its luminance range.
    """
    truncated = ChromaboxError(f"{path} is truncated or corrupt: {EXPECTED_VIDEO}")
    first_frame = None
    end_seconds = video_end_seconds = 0.0
    num_frames = 0
    times: list[int] = []
    with open_input(path) as source, wrap_av_errors(path, "is corrupt and cannot be read"):
        import av

        video = find_video_stream(path, source)
        is_exact = source.format.name.startswith(_EXACT_CONTAINERS)
        for packet in source.demux([stream for stream in source.streams if stream.codec_context is not None]):
            if packet.is_corrupt and is_exact:
                raise truncated
            is_video = packet.stream.index == video.index
            if first_frame is None and is_video:
                with contextlib.suppress(av.FFmpegError):
                    first_frame = next((frame for frame in video.decode(packet) if not frame.is_corrupt), None)
            if packet.size:
                end = float(((packet.pts or 0) + (packet.duration or 0)) * packet.time_base)
                end_seconds = max(end_seconds, end)
                if is_video:
                    video_end_seconds = max(video_end_seconds, end)
                    times += [] if packet.pts is None else [packet.pts]
                    num_frames += not packet.is_discard
        if first_frame is None:
            raise ChromaboxError(f"{path} contains no decodable frame: {EXPECTED_VIDEO}")
        # Half a second of tolerance: the duration of the last packet of a stream is often missing.
        missing_seconds = (source.duration or 0) / 1e6 - end_seconds
        if is_exact and (len(times) < video.frames or missing_seconds > 0.5):
            raise truncated
        if first_frame.color_trc in _HDR_TRANSFERS:
            raise ChromaboxError(f"{path} is an HDR video (PQ or HLG), which is not supported: convert it to SDR first")
        height, width, _ = decode_frame(first_frame).shape
        aspect_ratio = video.sample_aspect_ratio or Fraction(1)
        is_upright = bool(display_matrix(first_frame)[0, 0])
        info = VideoInfo(
            path=path,
            num_frames=num_frames,
            width=width,
            height=height,
            pixel_aspect_ratio=aspect_ratio if is_upright else 1 / aspect_ratio,
            fps=float(video.average_rate or 0),
            seconds=video_end_seconds - float((video.start_time or 0) * (video.time_base or 0)),
            # Frames are not converted to another RGB space, so the primaries and the transfer function remain valid.
            primaries=BT709 if first_frame.color_primaries == UNSPECIFIED else first_frame.color_primaries,
            transfer=BT709 if first_frame.color_trc == UNSPECIFIED else first_frame.color_trc,
            matrix=frame_matrix(first_frame),
            range=frame_range(first_frame),
            field_order=_find_field_order(video, first_frame) if is_upright else "",
            times=tuple(sorted(times)) if source.format.name == "avi" else (),
            offset=Fraction(0) if is_exact else Fraction(source.start_time or 0, 1_000_000),
        )
        notes = tuple(_describe_changes(info, video, first_frame))
        if source.format.name == "avi" and video.average_rate:
            # The duration is that of the data. The number of frames is from the header and includes dropped frames.
            missing_seconds = float(video.frames / video.average_rate) - end_seconds
        if source.format.name in ("avi", "asf", "flv", "mxf") and missing_seconds > 0.5:
            notes += (f"the file may be truncated: its header states {missing_seconds:.1f} s more than it contains",)
        return replace(info, notes=notes)


def _find_field_order(video: "VideoStream", frame: "VideoFrame") -> str:
    """Return "tff" or "bff" for an interlaced video, otherwise an empty string."""
    field_order = int(video.codec_context.field_order)
    # AVFieldOrder: 2 and 5 display the top field first, 3 and 4 the bottom field.
    if field_order in (2, 3, 4, 5):
        return "tff" if field_order in (2, 5) else "bff"
    if not frame.interlaced_frame:
        return ""
    return "bff" if video.codec_context.name == "dvvideo" else "tff"  # DV always starts with the bottom field.


def _describe_changes(info: VideoInfo, video: "VideoStream", frame: "VideoFrame") -> Iterator[str]:
    """Yield a line of text for each property of the frames that the output does not preserve or that is unusual."""
    pixel_format = frame.format.name
    if pixel_format not in ("yuv420p", "yuvj420p", "nv12", "gray"):
        bits = max(component.bits for component in frame.format.components)
        yield f"the pixel format {pixel_format} ({bits} bits per channel) becomes yuv420p (8 bits per channel)"
    if video.metadata.get("alpha_mode") == "1":
        yield "transparency is not preserved"
    known = (*SWSCALE_MATRIX, UNSPECIFIED)
    if not frame.format.is_rgb and (frame.colorspace not in known or frame.colorspace == 10):
        yield f"colour matrix {frame.colorspace} (ITU-T H.273) is not supported and is read as matrix {info.matrix}"
    if (display_matrix(frame) != np.eye(2)).any():
        yield "the rotation or mirroring in the file is applied to the frames"
    order = {"tff": "top", "bff": "bottom"}.get(info.field_order)
    if order is not None:
        yield f"the video is interlaced and remains interlaced ({order} field first)"
    elif _find_field_order(video, frame):
        yield "the video is interlaced and rotated: its fields are written as progressive frames"


def find_video_stream(path: Path, source: "InputContainer") -> "VideoStream":
    """Return the first video stream that is not a cover image. Raise ChromaboxError if there is none."""
    from av.stream import Disposition

    for stream in source.streams.video:
        is_cover = stream.disposition & Disposition.attached_pic
        if stream.codec_context is not None and stream.time_base and not is_cover:
            return stream
    if source.streams.video and source.streams.video[0].codec_context is None:
        raise ChromaboxError(f"{path}: the format of the video stream is unknown; convert it to H.264 first")
    types = ", ".join(sorted({stream.type for stream in source.streams})) or "nothing"
    raise ChromaboxError(f"{path} contains no video stream (found: {types}): expected a video")


@contextlib.contextmanager
def open_input(path: Path) -> "Iterator[InputContainer]":
    """Open a video. Its format is detected from its content."""
    check_file(path, "a video")
    try:
        import av
    except ImportError as error:
        raise missing_package("reading a video", error, "video") from error
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
    with wrap_av_errors(path, "is not a video, or is truncated or corrupt", f"expected {_CONTAINERS}"):
        source = av.open(str(path.resolve()), container_options=options, metadata_errors="replace")
    with source:
        yield source


def iter_wrapped(path: Path, problem: str, read: Callable[[Any], Iterable[Any]], argument: Any) -> Iterator[Any]:
    """Yield from ``read(argument)``. Convert its errors to ChromaboxError, but not errors in the caller's loop."""
    with wrap_av_errors(path, problem):
        yield from read(argument)


@contextlib.contextmanager
def wrap_av_errors(path: Path, problem: str, remedy: str = EXPECTED_VIDEO) -> Iterator[None]:
    """Convert errors of FFmpeg and the operating system to ChromaboxError."""
    from av.error import FFmpegError

    try:
        yield
    except (FFmpegError, OSError) as error:
        reason = error.strerror or str(error)
        raise ChromaboxError(f"{path} {problem} ({reason}): {remedy}") from error


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
