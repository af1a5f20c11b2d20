"""Output files: suffixes, streams, the H.264 encoder, and free space."""

import contextlib
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import check_not_input
from chromabox.io.kinds import WRITABLE_VIDEO_SUFFIXES
from chromabox.io.video.source import VideoInfo, find_video_stream

if TYPE_CHECKING:
    from av.codec.context import CodecContext
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream
    from av.video.stream import VideoStream

#: Constant rate factor, 0 (lossless) to 51 (worst). According to the FFmpeg H.264 guide, 17 or 18 is visually lossless
#: or nearly so.
DEFAULT_CRF = 18.0

_SUPPORTED_SUFFIXES = ", ".join(sorted(WRITABLE_VIDEO_SUFFIXES))
_MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}

# The muxer writes these metadata entries. Copied values would be wrong.
_MUXER_METADATA = {"encoder", "vendor_id", "major_brand", "minor_version", "compatible_brands", "duration"}
_MUXER_METADATA |= {"alpha_mode", "number_of_bytes", "number_of_frames"}


@dataclass(frozen=True)
class TranscodeResult:
    """Result of a transcoding: numbers of frames and copied streams, and frame size in pixels (even numbers).

    `skipped_streams` names the streams that were not copied: data, cover images, further videos, and attachments and
    subtitles if the output format does not support them. `num_damaged` is the number of frames that could not be
    decoded and were replaced by the last good frame.
    """

    num_frames: int
    width: int
    height: int
    audio_streams: int
    subtitle_streams: int
    skipped_streams: tuple[str, ...] = ()
    num_damaged: int = 0


def check_target(path: Path, target: Path) -> None:
    """Raise UsageError if `target` has a suffix that cannot be written, is a folder, or is the file at `path`."""
    if target.suffix.lower() not in WRITABLE_VIDEO_SUFFIXES:
        raise UsageError(f"{target}: unsupported video suffix; expected {_SUPPORTED_SUFFIXES}")
    if target.is_dir():
        raise UsageError(f"{target}: is a folder; expected the path of a video file")
    check_not_input([path], target)


def check_free_space(info: VideoInfo, target: Path) -> None:
    """Raise ChromaboxError if the file system of the target has too little space for the video and its segments.

    The size of the output is unknown. The estimate is the size of the source, but at most 1 bit per pixel.
    """
    estimate = min(info.path.stat().st_size, info.num_frames * info.width * info.height // 8)
    free = shutil.disk_usage(target.parent).free
    if free < 2 * estimate:
        raise ChromaboxError(
            f"{target.parent} has {free / 1e6:,.1f} MB of free space: expected at least {2 * estimate / 1e6:,.1f} MB "
            f"for {target.name}"
        )


def padded_size(height: int, width: int, field_order: str) -> tuple[int, int]:
    """Return the next even size; the height of interlaced frames is a multiple of 4."""
    return height + -height % (4 if field_order else 2), width + width % 2


def add_streams(
    info: VideoInfo, target: Path, source: "InputContainer", sink: "OutputContainer", crf: float, comment: str = ""
) -> "tuple[VideoStream, dict[int, Stream], TranscodeResult]":
    """Add all streams, chapters and metadata to the output. The comment is appended to that of the source.

    Return the H.264 stream, the copied streams by the indices of their sources, and a result without numbers of frames.
    """
    video = find_video_stream(info.path, source)
    encoder = sink.add_stream("libx264", rate=video.average_rate or 25, options=_encoder_options(info, crf))
    _configure_encoder(encoder.codec_context, info, video)
    encoder.metadata.update(_copyable_metadata(video.metadata))
    encoder.disposition = video.disposition
    copies: dict[int, Stream] = {}
    for stream in source.streams:
        if stream.type in ("audio", "subtitle", "attachment"):
            copy = _add_copy(info.path, target, sink, stream)
            copies |= {} if copy is None else {stream.index: copy}
    metadata = _copyable_metadata(source.metadata)
    if comment:
        key = next((key for key in metadata if key.lower() == "comment"), "comment")
        metadata[key] = "\n".join(filter(None, (metadata.get(key), comment)))
    sink.metadata.update(metadata)
    sink.set_chapters(source.chapters())
    kinds = [copy.type for copy in copies.values()]
    skipped = tuple(
        f"{stream.type} stream {stream.index}{_codec_name(stream)}"
        for stream in source.streams
        if stream.index not in {video.index, *copies}
    )
    return (
        encoder,
        copies,
        TranscodeResult(0, encoder.width, encoder.height, kinds.count("audio"), kinds.count("subtitle"), skipped),
    )


def _codec_name(stream: "Stream") -> str:
    name = getattr(stream.codec_context, "name", "")
    return f" ({name})" if name else ""


def _add_copy(path: Path, target: Path, sink: "OutputContainer", stream: "Stream") -> "Stream | None":
    """Add a stream with the codec and metadata of a source stream.

    Return None for an attachment (a font) in a format other than Matroska, and for subtitles that no format supports.
    """
    if stream.type == "attachment" and target.suffix.lower() != ".mkv":
        return None
    try:
        copy = sink.add_stream_from_template(stream)
    except ValueError as error:
        others = [suffix for suffix in sorted(WRITABLE_VIDEO_SUFFIXES) if _supports(suffix, stream)]
        if not others and stream.type == "subtitle":
            return None
        remedy = f"use the suffix {' or '.join(others)}" if others else f"convert the {stream.type} to AAC first"
        raise UsageError(
            f"{target}: the format does not support the {stream.type} stream {stream.index} of {path}"
            f"{_codec_name(stream)}; {remedy}"
        ) from error
    copy.metadata.update(_copyable_metadata(stream.metadata))
    copy.disposition = stream.disposition
    return copy


def _supports(suffix: str, stream: "Stream") -> bool:
    """Return whether a format can contain the stream."""
    import av

    with av.open(io.BytesIO(), "w", format=_MUXERS[suffix]) as sink:
        try:
            sink.add_stream_from_template(stream)
        except ValueError:
            return False
    return True


def encoder_version() -> str:
    """Return the versions of PyAV and FFmpeg's encoders. Segments of different versions cannot be joined."""
    import av

    return f"{av.__version__} {av.library_versions['libavcodec']}"


def _encoder_options(info: VideoInfo, crf: float) -> dict[str, str]:
    return {"crf": str(crf)} | ({"x264-params": f"{info.field_order}=1"} if info.field_order else {})


def make_encoder(info: VideoInfo, video: "VideoStream", crf: float) -> "CodecContext":
    """Return an H.264 encoder for one segment, with the same settings as the stream of the output."""
    from av.codec.context import CodecContext, Flags

    context = CodecContext.create("libx264", "w")
    context.options = _encoder_options(info, crf)
    context.framerate = Fraction(video.average_rate or 25)
    context.flags |= Flags.global_header
    _configure_encoder(context, info, video)
    return context


def _configure_encoder(context: Any, info: VideoInfo, video: "VideoStream") -> None:
    """Set the size, the colour properties, the field order and the time base of the source video."""
    from av.codec.context import Flags

    context.pix_fmt = "yuv420p"
    context.height, context.width = padded_size(info.height, info.width, info.field_order)
    context.time_base = video.time_base or Fraction(1, 90_000)
    context.flags |= Flags.frame_duration
    if info.field_order:
        context.flags |= Flags.interlaced_dct | Flags.interlaced_me
    context.sample_aspect_ratio = info.pixel_aspect_ratio
    context.color_range = info.range
    context.colorspace = info.matrix
    context.color_primaries, context.color_trc = info.primaries, info.transfer


def _copyable_metadata(metadata: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key.lower() not in _MUXER_METADATA}


@contextlib.contextmanager
def open_output(path: Path) -> "Iterator[OutputContainer]":
    """Open a new video file and close it after the block."""
    import av

    sink = av.open(str(path.resolve()), "w", format=_MUXERS[path.suffix.lower()])
    try:
        yield sink
        sink.close()
    finally:
        # After a failure, an error on closing must not hide the original exception.
        with contextlib.suppress(av.FFmpegError, ValueError):
            sink.close()
