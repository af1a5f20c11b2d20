"""Reading and transcoding of videos with PyAV. Frames are processed as upright RGB, and other streams are copied.

* Reading: MP4, MOV, Matroska, WebM, AVI and MPEG, recognised by content. No other demuxer is used, and no URL in a file
  is opened.
* Writing: H.264 (libx264), 8 bits, 4:2:0, with the timestamps of the source frames. Audio, subtitles, chapters, title
  and date are copied. The video is written to a temporary file in the same folder and then renamed.
* Decoding uses the colour matrix and range in the file. If the file specifies no matrix, BT.709 is used for 720 lines
  or more and BT.601 for fewer lines, as in video players. Encoding uses the same matrices, in limited range.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32, UInt8

from chromabox.errors import ChromaboxError, UsageError, missing_package
from chromabox.io.atomic import atomic_write
from chromabox.io.images import check_file, check_not_input

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# ITU-T H.273 numbers for matrix coefficients, primaries and transfer functions, and FFmpeg's numbers for the range.
BT709, UNSPECIFIED, SMPTE170M = 1, 2, 6
LIMITED, FULL = 1, 2

# swscale's number for each H.273 number of a matrix: BT.601 variants are 5, SMPTE 240M is 7, BT.2020 is 9.
_SWSCALE_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
FramePixels = UInt8[np.ndarray, "height width 3"]


def default_colour_matrix(height: int) -> int:
    """Return the colour matrix to use for a video of this height if its file specifies none."""
    return BT709 if height >= 720 else SMPTE170M


def decode_frame(frame: "VideoFrame") -> FramePixels:
    """Return the pixels of a frame as upright RGB, using the colour matrix, range and display matrix of the frame."""
    format_name = frame.format.name
    matrix = _SWSCALE_MATRIX.get(frame.colorspace, _SWSCALE_MATRIX[default_colour_matrix(frame.height)])
    is_full_range = frame.color_range == FULL or format_name.startswith("yuvj")
    rgb = frame.reformat(
        format="rgb24",
        src_colorspace=None if frame.format.is_rgb else matrix,
        src_color_range=FULL if is_full_range or frame.format.is_rgb else LIMITED,
        dst_color_range=FULL,
        interpolation=_swscale_flags(),
    ).to_ndarray()
    display = display_matrix(frame)
    upright = rgb if display[0, 0] else rgb.swapaxes(0, 1)
    right, down = display.sum(axis=0)
    return np.ascontiguousarray(upright[::down, ::right])


def encode_frame(pixels: FramePixels, original: "VideoFrame", matrix: int) -> "VideoFrame":
    """Return pixels of even height and width as a 4:2:0 frame in limited range, with the timestamps of ``original``."""
    from av.video.frame import VideoFrame

    frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame = frame.reformat(
        format="yuv420p",
        src_color_range=FULL,
        dst_color_range=LIMITED,
        dst_colorspace=_SWSCALE_MATRIX[matrix],
        interpolation=_swscale_flags(),
    )
    frame.pts, frame.time_base, frame.duration = original.pts, original.time_base, original.duration
    return frame


def display_matrix(frame: "VideoFrame") -> Int32[np.ndarray, "2 2"]:
    """Return the directions in which the rows and the columns of the stored frame are displayed.

    The first row of the result is the direction along a stored row, the second the direction along a stored column. A
    direction is (right, down) with values of −1, 0 or 1. A rotation is rounded to the nearest multiple of 90°.
    """
    side_data: Any = frame.side_data  # PyAV's stubs cover only one type of side data.
    data = side_data.get("DISPLAYMATRIX")
    if data is None:
        return np.eye(2, dtype=np.int32)
    matrix = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2].astype(np.int64)
    is_diagonal = np.abs(np.diag(matrix)).sum() >= np.abs(np.diag(matrix[::-1])).sum()
    signs = np.where(matrix < 0, -1, 1) * (np.eye(2) if is_diagonal else np.eye(2)[::-1])
    return signs.astype(np.int32)


def _swscale_flags() -> int:
    """Return swscale flags for accurate conversion. The faster default has errors of up to 2 (of 255)."""
    from av.video.reformatter import Interpolation

    accurate = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    return int(Interpolation.BICUBIC | accurate)


VIDEO_SUFFIXES: frozenset[str] = frozenset({".mp4", ".mov", ".mkv"})
"""Suffixes of supported videos, in lower case."""
_SUPPORTED_SUFFIXES = ", ".join(sorted(VIDEO_SUFFIXES))

#: Constant rate factor, 0 (lossless) to 51 (worst). According to the FFmpeg H.264 guide, 17 or 18 is visually lossless
#: or nearly so.
DEFAULT_CRF = 18.0
_DEMUXERS = "mov,matroska,avi,mpeg,mpegvideo,mpegts"
_HDR_TRANSFERS = (16, 18)  # PQ and HLG, by their numbers in ITU-T H.273
_EXPECTED_VIDEO = "expected an intact video"

# The muxer writes these metadata entries. Copied values would be wrong.
_MUXER_METADATA = {"encoder", "vendor_id", "major_brand", "minor_version", "compatible_brands", "duration"}


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video.

    `width` and `height` are the size of an upright frame in pixels. `pixel_aspect_ratio` is the width of a pixel
    divided by its height, `fps` the average frame rate and `seconds` the duration. `primaries` and `transfer` are
    the colour primaries and the transfer function (ITU-T H.273 numbers).
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


@dataclass(frozen=True)
class TranscodeResult:
    """Result of a transcoding: numbers of frames and copied streams, and frame size in pixels (even numbers).

    `skipped_streams` names the streams that were not copied: data, cover images, further videos, and attachments if
    the output format does not support attachments.
    """

    num_frames: int
    width: int
    height: int
    audio_streams: int
    subtitle_streams: int
    skipped_streams: tuple[str, ...] = ()


def probe_video(path: Path) -> VideoInfo:
    """Return the properties of the video at `path`. Read all packets, but decode only the first frame.

    Raise ChromaboxError for a missing, empty, truncated or corrupt file, a file without a video stream, and HDR video
    (PQ or HLG), because 8-bit video cannot represent its luminance range. Raise UsageError for an unknown suffix.
    """
    truncated = ChromaboxError(f"{path} is truncated or corrupt: {_EXPECTED_VIDEO}")
    first_frame = None
    end_seconds = video_end_seconds = 0.0
    num_packets = num_frames = 0
    with _open_input(path) as source, _wrap_av_errors(path, "is corrupt and cannot be read"):
        video = _find_video_stream(path, source)
        for packet in source.demux([stream for stream in source.streams if stream.codec_context is not None]):
            if packet.is_corrupt:
                raise truncated
            is_video = packet.stream.index == video.index
            if first_frame is None and is_video:
                first_frame = next(iter(video.decode(packet)), None)
            if packet.size:
                end = float(((packet.pts or 0) + (packet.duration or 0)) * packet.time_base)
                end_seconds = max(end_seconds, end)
                if is_video:
                    video_end_seconds = max(video_end_seconds, end)
                    num_packets += 1
                    num_frames += not packet.is_discard
        if first_frame is None:
            raise ChromaboxError(f"{path} contains no decodable frame: {_EXPECTED_VIDEO}")
        # Half a second of tolerance: the duration of the last packet of a stream is often missing.
        if num_packets < video.frames or end_seconds < (source.duration or 0) / 1e6 - 0.5:
            raise truncated
        if first_frame.color_trc in _HDR_TRANSFERS:
            raise ChromaboxError(f"{path} is an HDR video (PQ or HLG), which is not supported: convert it to SDR first")
        height, width, _ = decode_frame(first_frame).shape
        aspect_ratio = video.sample_aspect_ratio or Fraction(1)
        return VideoInfo(
            path=path,
            num_frames=num_frames,
            width=width,
            height=height,
            pixel_aspect_ratio=aspect_ratio if display_matrix(first_frame)[0, 0] else 1 / aspect_ratio,
            fps=float(video.average_rate or 0),
            seconds=video_end_seconds - float((video.start_time or 0) * (video.time_base or 0)),
            # Frames are not converted to another RGB space, so the primaries and the transfer function remain valid.
            primaries=BT709 if first_frame.color_primaries == UNSPECIFIED else first_frame.color_primaries,
            transfer=BT709 if first_frame.color_trc == UNSPECIFIED else first_frame.color_trc,
        )


def iter_frames(path: Path) -> Iterator[FramePixels]:
    """Yield the pixels of all frames of the video, upright and in order."""
    with _open_input(path) as source, _wrap_av_errors(path, "is corrupt and cannot be decoded"):
        for frame in source.decode(_find_video_stream(path, source)):
            yield decode_frame(frame)


def transcode(
    info: VideoInfo, target: Path, transform: Callable[[FramePixels], FramePixels], *, crf: float = DEFAULT_CRF
) -> TranscodeResult:
    """Apply `transform` to every frame of a video and write the result to `target`.

    `transform` must return a frame of the same size. One frame at a time is held in memory, plus the look-ahead of the
    encoder (about 40 frames). A display rotation in the file is applied to the pixels. An odd width or height is padded
    by repeating the last column or row, because 4:2:0 requires even dimensions. Interlaced frames are processed and
    written as progressive frames.

    Raise UsageError for an unknown suffix, a `crf` outside 0 to 51, a target that is the source, and a stream that the
    format of the target does not support. Raise ChromaboxError for frames that cannot be decoded or differ in size, and
    if the target cannot be written. In these cases, and on Ctrl-C, `target` is unchanged.
    """
    check_target(info.path, target)
    if not 0 <= crf <= 51:
        raise UsageError(f"invalid crf {crf:g}: expected 0 (lossless, large file) to 51 (worst, small file)")
    path = info.path
    with _open_input(path) as source, _open_output(target) as sink:
        video = _find_video_stream(path, source)
        video.thread_type = "AUTO"
        encoder = _add_encoder(info, sink, video, crf)
        # Attachments are fonts, which only Matroska can contain.
        types = {"audio", "subtitle"} | ({"attachment"} if target.suffix.lower() == ".mkv" else set())
        copies = {
            stream.index: _add_copy(path, target, sink, stream) for stream in source.streams if stream.type in types
        }
        sink.metadata.update(_copyable_metadata(source.metadata))
        sink.set_chapters(source.chapters())
        read = [source.streams[index] for index, copy in copies.items() if copy.type != "attachment"]
        num_frames = 0
        # Process the packets in the order of the source.
        for packet in _iter_wrapped(path, "is corrupt and cannot be read", source.demux, [video, *read]):
            if packet.stream.index != video.index:
                if packet.size:
                    packet.stream = copies[packet.stream.index]
                    sink.mux(packet)
                continue
            problem = f"is corrupt after frame {num_frames} and cannot be decoded"
            for frame in _iter_wrapped(path, problem, video.decode, packet):
                pixels = transform(decode_frame(frame))
                height, width, _ = pixels.shape
                if height % 2 or width % 2:
                    pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                height, width, _ = pixels.shape
                if (width, height) != (encoder.width, encoder.height):
                    raise ChromaboxError(
                        f"{path}: the frame size changes to {width} × {height} after frame {num_frames}; "
                        "expected a video with one frame size"
                    )
                sink.mux(encoder.encode(encode_frame(pixels, frame, encoder.colorspace)))
                num_frames += 1
        if not num_frames:
            raise ChromaboxError(f"{path} contains no decodable frame: {_EXPECTED_VIDEO}")
        sink.mux(encoder.encode(None))
        sink.close()
        kinds = [copy.type for copy in copies.values()]
        skipped = (stream for stream in source.streams if stream.index not in {video.index, *copies})
        return TranscodeResult(
            num_frames,
            encoder.width,
            encoder.height,
            kinds.count("audio"),
            kinds.count("subtitle"),
            tuple(f"{stream.type} stream {stream.index}" for stream in skipped),
        )


def check_target(path: Path, target: Path) -> None:
    """Raise UsageError if `target` has an unknown suffix or is the file at `path`."""
    _check_suffix(target)
    check_not_input([path], target)


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise UsageError(f"{path}: unsupported video suffix; expected {_SUPPORTED_SUFFIXES}")


def _iter_wrapped(path: Path, problem: str, read: Callable[[Any], Iterable[Any]], argument: Any) -> Iterator[Any]:
    """Yield from ``read(argument)``. Convert its errors to ChromaboxError, but not errors in the caller's loop."""
    with _wrap_av_errors(path, problem):
        yield from read(argument)


def _add_copy(path: Path, target: Path, sink: "OutputContainer", stream: "Stream") -> "Stream":
    """Add a stream with the codec and metadata of a source stream."""
    try:
        copy = sink.add_stream_from_template(stream)
    except ValueError as error:
        codec = getattr(stream.codec_context, "name", "unknown")
        raise UsageError(
            f"{target}: the format does not support the {stream.type} stream of {path} ({codec}); "
            f"use a different suffix ({_SUPPORTED_SUFFIXES})"
        ) from error
    copy.metadata.update(_copyable_metadata(stream.metadata))
    copy.disposition = stream.disposition
    return copy


def _add_encoder(info: VideoInfo, sink: "OutputContainer", video_stream: "VideoStream", crf: float) -> "VideoStream":
    """Add an H.264 stream with the size, the colour properties and the time base of the source video."""
    from av.codec.context import Flags

    encoder = sink.add_stream("libx264", rate=video_stream.average_rate or 25, options={"crf": str(crf)})
    encoder.pix_fmt = "yuv420p"
    encoder.width, encoder.height = info.width + info.width % 2, info.height + info.height % 2
    context = encoder.codec_context
    context.time_base = video_stream.time_base or Fraction(1, 90_000)
    context.flags |= Flags.frame_duration
    context.sample_aspect_ratio = info.pixel_aspect_ratio
    context.color_range = LIMITED
    context.colorspace = default_colour_matrix(info.height)
    context.color_primaries, context.color_trc = info.primaries, info.transfer
    encoder.metadata.update(_copyable_metadata(video_stream.metadata))
    encoder.disposition = video_stream.disposition
    return encoder


def _find_video_stream(path: Path, source: "InputContainer") -> "VideoStream":
    """Return the first video stream that is not a cover image. Raise ChromaboxError if there is none."""
    from av.stream import Disposition

    for stream in source.streams.video:
        if not stream.disposition & Disposition.attached_pic and stream.time_base:
            return stream
    types = ", ".join(sorted({stream.type for stream in source.streams})) or "nothing"
    raise ChromaboxError(f"{path} contains no video stream (found: {types}): expected a video")


def _copyable_metadata(metadata: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key.lower() not in _MUXER_METADATA}


@contextlib.contextmanager
def _open_input(path: Path) -> "Iterator[InputContainer]":
    """Open a video. Its format is detected from its content."""
    check_file(path, "a video")
    try:
        import av
    except ImportError as error:
        raise missing_package("reading a video", error, "video") from error
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
    with _wrap_av_errors(path, "is not a video in a supported format, or is truncated or corrupt"):
        source = av.open(str(path.resolve()), container_options=options, metadata_errors="replace")
    with source:
        yield source


@contextlib.contextmanager
def _open_output(target: Path) -> "Iterator[OutputContainer]":
    """Open a temporary video file that replaces `target` if the block succeeds."""
    import av

    # Errors in the source have already been converted to ChromaboxError. All other errors concern the target.
    with _wrap_av_errors(target, "cannot be written", "use a writable folder with enough free disk space"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temp_path:
            sink = av.open(str(temp_path.resolve()), "w")
            try:
                yield sink
            finally:
                # After a failure, an error on closing must not hide the original exception.
                with contextlib.suppress(av.FFmpegError, ValueError):
                    sink.close()


@contextlib.contextmanager
def _wrap_av_errors(path: Path, problem: str, remedy: str = _EXPECTED_VIDEO) -> Iterator[None]:
    """Convert errors of FFmpeg and the operating system to ChromaboxError."""
    from av.error import FFmpegError

    try:
        yield
    except (FFmpegError, OSError) as error:
        reason = error.strerror or str(error)
        raise ChromaboxError(f"{path} {problem} ({reason}): {remedy}") from error
