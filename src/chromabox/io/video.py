"""Films in and out through PyAV: every frame upright as RGB, changed, encoded again; all else copied as it is.

* Read: MP4, MOV and Matroska, known by their content; no other reader and no address in a file is ever followed.
* Written: H.264 (libx264), 8 bits, 4:2:0, each frame at its own time; sound, subtitles, chapters, title and date as
  they were; made aside in the same folder and then put in place.

Frames of films as upright RGB, and RGB as frames that can be encoded.

Frames are decoded by the matrix and range that the film names, and where it names none by BT.709 from 720 lines on and
BT.601 below, as players do. What is to be encoded is BT.709 from 720 lines on and BT.601 below, in limited range.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32, UInt8

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import atomic_write
from chromabox.io.images import check_not_input

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# FFmpeg's numbers (ITU-T H.273): matrix coefficients (primaries and transfer functions alike), range.
BT709, UNSPECIFIED, SMPTE170M = 1, 2, 6
LIMITED, FULL = 1, 2

# swscale's own numbers for the same matrices, where they differ: all of BT.601 is 5, SMPTE 240M is 7, BT.2020 is 9.
_SWSCALE_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_HD_HEIGHT = 720
FramePixels = UInt8[np.ndarray, "height width 3"]


def default_colour_matrix(height: int) -> int:
    """The matrix of a film of so many lines that does not name one."""
    return BT709 if height >= _HD_HEIGHT else SMPTE170M


def decode_frame(frame: "VideoFrame") -> FramePixels:
    """The frame as RGB, by its own matrix and range, turned and mirrored as its display matrix says."""
    name = frame.format.name
    matrix = _SWSCALE_MATRIX.get(frame.colorspace)
    if matrix is None:
        matrix = _SWSCALE_MATRIX[default_colour_matrix(frame.height)]
    full = frame.color_range == FULL or name.startswith("yuvj")
    rgb = frame.reformat(
        format="rgb24",
        src_colorspace=None if frame.format.is_rgb else matrix,
        src_color_range=FULL if full or frame.format.is_rgb else LIMITED,
        dst_color_range=FULL,
        interpolation=_swscale_flags(),
    ).to_ndarray()
    return _apply_display_matrix(rgb, display_matrix(frame))


def encode_frame(pixels: FramePixels, original: "VideoFrame", matrix: int) -> "VideoFrame":
    """The pixels, sides made even, as 4:2:0 in limited range by a matrix, at the time of the original."""
    from av.video.frame import VideoFrame

    frame = VideoFrame.from_ndarray(np.ascontiguousarray(pad_to_even(pixels)), format="rgb24")
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
    """Where the frame's right and its bottom point when shown, as two rows of (right, down): −1, 0 or 1 each.

    A turn that is not by a multiple of 90° counts as the nearest that is.
    """
    side_data: Any = frame.side_data  # PyAV's stubs know only one kind of it.
    data = side_data.get("DISPLAYMATRIX")
    if data is None:
        return np.eye(2, dtype=np.int32)
    matrix = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2].astype(np.int64)
    straight = np.abs(np.diag(matrix)).sum() >= np.abs(np.diag(matrix[::-1])).sum()
    signs = np.where(matrix < 0, -1, 1) * (np.eye(2) if straight else np.eye(2)[::-1])
    return signs.astype(np.int32)


def _apply_display_matrix(
    pixels: FramePixels, matrix: Int32[np.ndarray, "2 2"]
) -> UInt8[np.ndarray, "upright_height upright_width 3"]:
    if matrix[0, 0] == 0:
        pixels = pixels.swapaxes(0, 1)
    right, down = matrix.sum(axis=0)
    return np.ascontiguousarray(pixels[::down, ::right])


def pad_to_even(pixels: FramePixels) -> UInt8[np.ndarray, "even_height even_width 3"]:
    """A side of odd length gets its last row or column once more."""
    height, width, _ = pixels.shape
    if height % 2 == width % 2 == 0:
        return pixels
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _swscale_flags() -> int:
    """How swscale converts: by the book instead of by its shortcuts, which are off by up to 2 of 255."""
    from av.video.reformatter import Interpolation

    exact = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    return int(Interpolation.BICUBIC | exact)


VIDEO_SUFFIXES: frozenset[str] = frozenset({".mp4", ".mov", ".mkv"})
"""The suffixes, in lower case, of the films that are read and written."""

#: Quality of the encoding, 0 (lossless) to 51 (worst); x264 calls 17 to 18 visually lossless or nearly so.
DEFAULT_CRF = 18.0
_HDR_TRANSFERS = (16, 18)  # PQ and HLG, by their numbers in ITU-T H.273
_VALID_VIDEO_NEEDED = "a whole, undamaged film is needed"
_WRITABLE_FOLDER_NEEDED = "a folder that may be written to, with room for the film, is needed"

# What the writer says by itself, and would say wrongly if it were copied.
_MUXER_METADATA = {"encoder", "vendor_id", "major_brand", "minor_version", "compatible_brands", "duration"}


@dataclass(frozen=True)
class VideoInfo:
    """What one pass over a film's packets tells, before its frames are decoded.

    `width` and `height` are those of an upright frame, `pixel_shape` is the width of one of its pixels by its height;
    `fps` is the average rate, `seconds` the video's length. `primaries` and `transfer` say what RGB means (numbers of
    ITU-T H.273).
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
    """What was written: frames, the size with sides made even, and how many streams were copied.

    `left_out` names the streams that were not carried over: data, cover pictures, further videos, and attachments into
    formats that have none.
    """

    num_frames: int
    width: int
    height: int
    audio_streams: int
    subtitle_streams: int
    skipped_streams: tuple[str, ...] = ()


def probe_video(path: Path) -> VideoInfo:
    """Look through the whole file at `path` without decoding more than its first frame.

    Raises ChromaboxError for a missing, empty or broken file, one without video, one that is cut short or damaged,
    and for HDR (PQ or HLG), whose luminance an 8 bit film cannot hold; UsageError for an unknown suffix.
    """
    _check_video_file(path)
    with _open_input(path) as source, _wrap_av_errors(path, "is damaged and cannot be read"):
        video = _find_video_stream(path, source)
        first, tally = None, _PacketCounter()
        for packet in source.demux([stream for stream in source.streams if stream.codec_context is not None]):
            if packet.is_corrupt:
                raise _truncated_error(path)
            if first is None and packet.stream.index == video.index:
                first = next(iter(video.decode(packet)), None)
            if packet.size:
                tally.add(packet, packet.stream.index == video.index)
        if first is None:
            raise ChromaboxError(f"{path} holds no frame that can be decoded: {_VALID_VIDEO_NEEDED}")
        # Half a second of patience: what the last packet of a stream lasts is often not written down.
        if tally.num_packets < video.frames or tally.end_seconds < (source.duration or 0) / 1e6 - 0.5:
            raise _truncated_error(path)
        if first.color_trc in _HDR_TRANSFERS:
            raise ChromaboxError(f"{path} is an HDR film (PQ or HLG), which is not supported: convert it to SDR first")
        return _make_video_info(path, source, first, tally)


@dataclass
class _PacketCounter:
    """What a film's packets add up to: seconds to the end of all streams and of the video, packets and frames of it."""

    end_seconds: float = 0.0
    video_end_seconds: float = 0.0
    num_packets: int = 0
    num_frames: int = 0

    def add(self, packet: Any, is_video: bool) -> None:
        end = float(((packet.pts or 0) + (packet.duration or 0)) * packet.time_base)
        self.end_seconds = max(self.end_seconds, end)
        if is_video:
            self.video_end_seconds = max(self.video_end_seconds, end)
            self.num_packets += 1
            self.num_frames += not packet.is_discard


def _make_video_info(
    path: Path, source: "InputContainer", first_frame: "VideoFrame", counter: _PacketCounter
) -> VideoInfo:
    video = _find_video_stream(path, source)
    height, width, _ = decode_frame(first_frame).shape
    shape = video.sample_aspect_ratio or Fraction(1)
    return VideoInfo(
        path=path,
        num_frames=counter.num_frames,
        width=width,
        height=height,
        pixel_aspect_ratio=shape if display_matrix(first_frame)[0, 0] else 1 / shape,
        fps=float(video.average_rate or 0),
        seconds=counter.video_end_seconds - float((video.start_time or 0) * (video.time_base or 0)),
        # The values between reading and writing are the film's own RGB, so that its primaries and curve still hold.
        primaries=BT709 if first_frame.color_primaries == UNSPECIFIED else first_frame.color_primaries,
        transfer=BT709 if first_frame.color_trc == UNSPECIFIED else first_frame.color_trc,
    )


def iter_frames(path: Path) -> Iterator[FramePixels]:
    """The film's frames, upright, one after another."""
    _check_video_file(path)
    with _open_input(path) as source, _wrap_av_errors(path, "is damaged and cannot be decoded"):
        for frame in source.decode(_find_video_stream(path, source)):
            yield decode_frame(frame)


def transcode(
    info: VideoInfo, target: Path, transform: Callable[[FramePixels], FramePixels], *, crf: float = DEFAULT_CRF
) -> TranscodeResult:
    """Write to `target` the surveyed film with every frame put through `change`, which keeps the size.

    One frame is held at a time, beside those that the encoder looks ahead (40 or so). A rotation told in the file is
    applied, for players and `change` alike; a side of odd length is made even by repeating its last pixels, since
    4:2:0 has no odd sides. Interlaced frames are treated, and written, as progressive.

    Raises UsageError for an unknown suffix, a `crf` out of range, a target that is the source, and a stream that
    cannot be kept in the target's format; ChromaboxError for frames that cannot be decoded or are not of one size,
    and for a target that cannot be written. Then, and on Ctrl-C, `target` stays as it was.
    """
    check_target(info.path, target)
    if not 0 <= crf <= 51:
        raise UsageError(
            f"crf is {crf:g}: give 0 (lossless, large) to 51 (worst, small); 18 is visually nearly lossless"
        )
    with _open_input(info.path) as source, _open_output(target) as sink:
        return _Transcoder(info, target, source, sink, crf).run(transform)


def check_target(path: Path, target: Path) -> None:
    """Raises UsageError if a film at `path` cannot become `target`: unknown suffix, or the same file."""
    if target.suffix.lower() not in VIDEO_SUFFIXES:
        raise UsageError(f"{target} has no suffix of a film that can be written: right are {_supported_suffixes()}")
    check_not_input([path], target)


class _Transcoder:
    """A film on its way from one open container to another."""

    def __init__(
        self, info: VideoInfo, target: Path, source: "InputContainer", sink: "OutputContainer", crf: float
    ) -> None:
        self.path, self.target, self.source, self.sink = info.path, target, source, sink
        self.video_stream = _find_video_stream(info.path, source)
        self.video_stream.thread_type = "AUTO"
        self.encoder = _add_encoder(info, target, sink, self.video_stream, crf)
        self.output_streams = {
            stream.index: self._add_output_stream(stream) for stream in _streams_to_copy(source, target.suffix)
        }
        sink.metadata.update(_copyable_metadata(source.metadata))
        sink.set_chapters(source.chapters())
        self.num_frames = 0

    def run(self, transform: Callable[[FramePixels], FramePixels]) -> TranscodeResult:
        """Carry everything over, in the order in which it lies in the source."""
        for packet in self._demux():
            if packet.stream.index == self.video_stream.index:
                for frame in self._decode(packet):
                    self._encode(frame, transform(decode_frame(frame)))
            elif packet.size:
                packet.stream = self.output_streams[packet.stream.index]
                self.sink.mux(packet)
        if not self.num_frames:
            raise ChromaboxError(f"{self.path} holds no frame that can be decoded: {_VALID_VIDEO_NEEDED}")
        self.sink.mux(self.encoder.encode(None))
        self.sink.close()
        kinds = [stream.type for stream in self.output_streams.values()]
        size = self.encoder.width, self.encoder.height
        return TranscodeResult(
            self.num_frames, *size, kinds.count("audio"), kinds.count("subtitle"), self._skipped_streams()
        )

    def _skipped_streams(self) -> tuple[str, ...]:
        kept = {self.video_stream.index, *self.output_streams}
        return tuple(
            f"{stream.type} stream {stream.index}" for stream in self.source.streams if stream.index not in kept
        )

    def _add_output_stream(self, stream: "Stream") -> "Stream":
        try:
            copy = self.sink.add_stream_from_template(stream)
        except ValueError as error:
            name = getattr(stream.codec_context, "name", "unknown")
            raise UsageError(
                f"{self.target}: the {stream.type} of {self.path} ({name}) cannot be kept in this format; "
                f"choose another one: {_supported_suffixes()}"
            ) from error
        copy.metadata.update(_copyable_metadata(stream.metadata))
        copy.disposition = stream.disposition
        return copy

    def _demux(self) -> Iterator[Any]:
        with _wrap_av_errors(self.path, "is damaged and cannot be read"):
            timed = [index for index, copy in self.output_streams.items() if copy.type != "attachment"]
            yield from self.source.demux([self.source.streams[index] for index in (self.video_stream.index, *timed)])

    def _decode(self, packet: Any) -> "Iterator[VideoFrame]":
        with _wrap_av_errors(self.path, f"is damaged after {self.num_frames} frames and cannot be decoded"):
            yield from self.video_stream.decode(packet)

    def _encode(self, frame: "VideoFrame", pixels: FramePixels) -> None:
        height, width = pad_to_even(pixels).shape[:2]
        if (width, height) != (self.encoder.width, self.encoder.height):
            raise ChromaboxError(
                f"{self.path} changes its frame size to {width} × {height} after {self.num_frames} frames: "
                "a film of one size is needed"
            )
        self.sink.mux(self.encoder.encode(encode_frame(pixels, frame, self.encoder.colorspace)))
        self.num_frames += 1


def _add_encoder(
    info: VideoInfo, target: Path, sink: "OutputContainer", video_stream: "VideoStream", crf: float
) -> "VideoStream":
    """A new H.264 stream of the film's size and colours that counts time as the old one does."""
    from av.codec.context import Flags
    from av.error import FFmpegError

    try:
        encoder = sink.add_stream("libx264", rate=video_stream.average_rate or 25, options={"crf": str(crf)})
    except (FFmpegError, ValueError) as error:
        raise ChromaboxError(
            f"{target}: this build of PyAV has no libx264 and cannot write H.264; install PyAV's own wheel (av)"
        ) from error
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
    """The film itself: the first video stream that is no cover picture."""
    from av.stream import Disposition

    for stream in source.streams.video:
        if not stream.disposition & Disposition.attached_pic and stream.time_base:
            return stream
    kinds = ", ".join(sorted({stream.type for stream in source.streams})) or "nothing"
    raise ChromaboxError(f"{path} holds no video, only {kinds}: a film is needed")


def _streams_to_copy(source: "InputContainer", suffix: str) -> "list[Stream]":
    """The streams that are carried over as they are: sound, subtitles and, into Matroska, attachments (fonts)."""
    kinds = {"audio", "subtitle"} | ({"attachment"} if suffix.lower() == ".mkv" else set())
    return [stream for stream in source.streams if stream.type in kinds]


def _copyable_metadata(metadata: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key.lower() not in _MUXER_METADATA}


def _check_video_file(path: Path) -> None:
    if path.is_dir():
        raise ChromaboxError(f"{path} is a folder: a film is needed")
    if not path.exists():
        raise ChromaboxError(f"{path} does not exist: a film is needed")
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise UsageError(f"{path} has no suffix of a film that can be read: right are {_supported_suffixes()}")
    if path.stat().st_size == 0:
        raise ChromaboxError(f"{path} is empty: a film is needed")


def _truncated_error(path: Path) -> ChromaboxError:
    return ChromaboxError(f"{path} is cut short or damaged: {_VALID_VIDEO_NEEDED}")


def _supported_suffixes() -> str:
    return ", ".join(sorted(VIDEO_SUFFIXES))


@contextlib.contextmanager
def _open_input(path: Path) -> "Iterator[InputContainer]":
    """The opened film; only files, and only of the known kinds, whatever the name says."""
    av = _require_av()
    known = {"format_whitelist": "mov,matroska", "protocol_whitelist": "file"}
    with _wrap_av_errors(path, "is not an MP4, MOV or Matroska film, or is cut short or damaged"):
        source = av.open(str(path.resolve()), container_options=known, metadata_errors="replace")
    with source:
        yield source


@contextlib.contextmanager
def _open_output(target: Path) -> "Iterator[OutputContainer]":
    """A new film beside `target`, which takes its place if all went well."""
    av = _require_av()
    # What goes wrong with the source is a ChromaboxError by the time it comes through here; the rest is the target's.
    with _wrap_av_errors(target, "cannot be written", _WRITABLE_FOLDER_NEEDED):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as aside:
            sink = av.open(str(aside.resolve()), "w")
            try:
                yield sink
            finally:
                # What closing says after a failure goes with the file; the failure itself is what should be told.
                with contextlib.suppress(av.FFmpegError, ValueError):
                    sink.close()


def _require_av() -> Any:
    """PyAV, which is an extra: UsageError where it is missing."""
    try:
        import av
    except ImportError as error:
        raise UsageError("films need the library PyAV: install it with pip install 'chromabox[video]'") from error
    return av


@contextlib.contextmanager
def _wrap_av_errors(path: Path, problem: str, remedy: str = _VALID_VIDEO_NEEDED) -> Iterator[None]:
    """What FFmpeg or the system finds wrong with a file, as ChromaboxError."""
    from av.error import FFmpegError

    try:
        yield
    except (FFmpegError, OSError) as error:
        reason = error.strerror or str(error)
        raise ChromaboxError(f"{path} {problem} ({reason}): {remedy}") from error
