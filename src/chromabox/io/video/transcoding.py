"""Transcoding: frames are transformed and written as H.264 (8 bits, 4:2:0), and other streams are copied.

Frames keep their timestamps, colour matrix and range. Audio, subtitles, chapters, title and date are copied. What is
not preserved is logged before the work starts. The encoded frames are written in segments to a hidden folder next to
the target, from which an interrupted transcoding can be resumed. At the end, they are joined with the other streams.
"""

import contextlib
import hashlib
import heapq
import itertools
import logging
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import atomic_write
from chromabox.io.video.frames import FramePixels, decode_frame, encode_frame, has_side_data
from chromabox.io.video.source import (
    VideoInfo,
    find_video_stream,
    iter_source_frames,
    iter_wrapped,
    log_damage,
    open_input,
    wrap_av_errors,
)
from chromabox.io.video.target import (
    DEFAULT_CRF,
    TranscodeResult,
    add_streams,
    check_free_space,
    check_target,
    make_encoder,
    open_output,
    padded_size,
)

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

#: Number of frames in a segment, about half a minute of work. Every segment starts with a key frame.
SEGMENT_FRAMES = 100

# Side data of frames (FFmpeg's names) that encoded frames do not have.
_LOST_SIDE_DATA = {
    "A53_CC": "closed captions",
    "S12M_TIMECODE": "time codes",
    "SPHERICAL": "the 360° projection",
    "STEREO3D": "the stereoscopic layout",
}

# A segment is one .npz file with the packets of a fixed number of frames, which start with a key frame, and the state
# of the caller after these frames. All arrays are numeric, so that nothing is unpickled.
_SUFFIX = ".partial"
_STATE = "state."  # prefix of the caller's arrays

#: Arrays of a segment, by name.
Segment = dict[str, np.ndarray]

_EXPECTED_TARGET = "use a writable folder with enough free disk space"


@dataclass(frozen=True)
class Resumption:
    """What is needed to resume an interrupted transcoding.

    `key` is a hexadecimal digest of everything that determines the frames, such as the source and the settings.
    `get_state` returns the state of the transformation as numeric arrays. `restore` is called with such a state and the
    number of finished frames before the first remaining frame is transformed.
    """

    key: str
    get_state: Callable[[], Mapping[str, np.ndarray]]
    restore: Callable[[Mapping[str, np.ndarray], int], None]


def transcode(
    info: VideoInfo,
    target: Path,
    transform: Callable[[FramePixels], FramePixels],
    *,
    crf: float = DEFAULT_CRF,
    resumption: Resumption | None = None,
    comment: str = "",
) -> TranscodeResult:
    """Apply `transform` to every frame of a video and write the result to `target`.

    `transform` must return a frame of the same size. One frame at a time is held in memory, plus the encoded frames of
    a segment and the look-ahead of the encoder (about 40 frames). A display rotation in the file is applied to the
    pixels. An odd width or height is padded by repeating the last column or row, because 4:2:0 requires even
    dimensions (of an interlaced video: a multiple of 4 rows). An interlaced video remains interlaced. Damaged frames
    are replaced by the last good frame. Whatever is not preserved is logged before the first frame is transformed.

    `comment` is appended to the comment in the metadata of the file.

    With `resumption`, the finished segments of an interrupted transcoding are kept and reused. The result is the same
    as without the interruption.

    Raise UsageError for an unknown suffix, a `crf` outside 0 to 51, a target that is the source, and an audio stream
    that the format of the target does not support, or subtitles that only another format supports. Raise ChromaboxError
    for a video without any good frame, frames that differ in size, a folder that is not writable or has too little free
    space, and if the target cannot be written. In these cases, and on Ctrl-C, `target` is unchanged.
    """
    check_target(info.path, target)
    if not 0 <= crf <= 51:
        raise UsageError(f"invalid crf {crf:g}: expected 0 (lossless, large file) to 51 (worst, small file)")
    key = uuid.uuid4().hex[:16] if resumption is None else resumption.key[:16]
    with contextlib.ExitStack() as stack:
        stack.enter_context(wrap_av_errors(target, "cannot be written", _EXPECTED_TARGET))
        folder = stack.enter_context(segment_folder(target, key))
        if resumption is None:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        check_free_space(info, target)
        check = folder / f"check{target.suffix}"
        with open_input(info.path) as source:
            with open_output(check) as sink:  # Errors in the header are found before the work starts.
                result = add_streams(info, target, source, sink, crf, comment)[2]
                sink.start_encoding()
            check.unlink()
            for note in (*info.notes, *(f"not copied: {name}" for name in result.skipped_streams)):
                log.info(f"{info.path}: {note}")
            num_frames, num_damaged = _write_segments(info, source, folder, transform, crf, resumption)
        log_damage(info.path, num_damaged)
        with open_input(info.path) as source, atomic_write(target) as temp_path, open_output(temp_path) as sink:
            encoder, copies, _ = add_streams(info, target, source, sink, crf, comment)
            copied = _iter_copied_packets(info, source, copies)
            encoded = _iter_encoded_packets(folder, encoder, encoder.codec_context.time_base)
            for _, packet in heapq.merge(encoded, copied, key=lambda timed: timed[0]):
                sink.mux(packet)
    return replace(result, num_frames=num_frames, num_damaged=num_damaged)


def _write_segments(
    info: VideoInfo,
    source: "InputContainer",
    folder: Path,
    transform: Callable[[FramePixels], FramePixels],
    crf: float,
    resumption: Resumption | None,
) -> tuple[int, int]:
    """Transform and encode the frames for which the folder contains no segment; return numbers of (damaged) frames."""
    path = info.path
    last_segment, num_done = _last_segment(folder)
    if last_segment is not None and resumption is not None:
        resumption.restore(segment_state(last_segment), num_done)
    video = find_video_stream(path, source)
    shift = round(info.offset / (video.time_base or 1))
    encoder: Any = None
    packets: list[Packet[Any]] = []
    num_frames = num_damaged = num_unmarked = 0
    lost: set[str] = set()

    def finish_segment() -> None:
        nonlocal encoder
        packets.extend(encoder.encode(None))
        state = {} if resumption is None else resumption.get_state()
        index, remainder = divmod(num_frames - 1, SEGMENT_FRAMES)
        write_segment(folder, index, packets, remainder + 1, state)
        packets.clear()
        encoder = None

    for source_frame in iter_source_frames(info, source, video):
        num_damaged += source_frame.is_repeated
        lost |= {text for name, text in _LOST_SIDE_DATA.items() if has_side_data(source_frame.frame, name)}
        num_unmarked += bool(source_frame.frame.interlaced_frame) and not info.field_order
        if num_frames >= num_done:
            if encoder is None:
                encoder = make_encoder(info, video, crf)
            pixels = transform(decode_frame(source_frame.frame))
            height, width = padded_size(pixels.shape[0], pixels.shape[1], info.field_order)
            if (width, height) != (encoder.width, encoder.height):
                raise ChromaboxError(
                    f"{path}: the frame size changes to {width} × {height} after frame {num_frames}; "
                    "expected a video with one frame size"
                )
            padding = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))
            pixels = np.pad(pixels, padding, mode="edge")
            frame = encode_frame(pixels, info.matrix, info.range)
            frame.pts, frame.time_base = source_frame.pts - shift, encoder.time_base
            frame.duration = source_frame.duration
            packets.extend(encoder.encode(frame))
        num_frames += 1
        if encoder is not None and num_frames % SEGMENT_FRAMES == 0:
            finish_segment()
    if encoder is not None:
        finish_segment()
    if lost:
        log.warning(f"{path}: not preserved: {', '.join(sorted(lost))} in the frames")
    if num_unmarked:
        log.warning(f"{path}: {num_unmarked} interlaced frame(s) in a progressive video are written as progressive")
    return num_frames, num_damaged


def _last_segment(folder: Path) -> tuple[Segment | None, int]:
    """Return the last segment before the first gap and the number of frames up to its end. Delete later segments."""
    last, num_done = None, 0
    for index in itertools.count():
        segment = read_segment(segment_path(folder, index))
        if segment is None:
            break
        last, num_done = segment, num_done + int(segment["num_frames"])
    for path in sorted(folder.glob("*.npz"))[index:]:
        path.unlink()
    return last, num_done


def _iter_encoded_packets(
    folder: Path, encoder: "VideoStream", time_base: Fraction
) -> "Iterator[tuple[float, Packet[Any]]]":
    """Yield the packets of all segments with their decoding times in seconds."""
    from av.packet import Packet

    paths = sorted(folder.glob("*.npz"))
    times = decode_times(np.concatenate([_read_finished(path)["pts"] for path in paths])).tolist()
    position = 0
    for path in paths:
        segment = _read_finished(path)
        data, start = segment["data"].tobytes(), 0
        columns = (segment[name].tolist() for name in ("sizes", "pts", "durations", "key_frames"))
        for size, pts, duration, is_key_frame in zip(*columns, strict=True):
            packet = Packet(data[start : start + size])
            packet.pts, packet.dts, packet.duration = pts, times[position], duration
            packet.time_base, packet.is_keyframe, packet.stream = time_base, is_key_frame, encoder
            yield float(times[position] * time_base), packet
            start += size
            position += 1


def _read_finished(path: Path) -> Segment:
    segment = read_segment(path)
    if segment is None:
        raise ChromaboxError(f"{path} is damaged: run the same command again")
    return segment


def _iter_copied_packets(
    info: VideoInfo, source: "InputContainer", copies: "dict[int, Stream]"
) -> "Iterator[tuple[float, Packet[Any]]]":
    """Yield the packets of the copied streams, with their decoding times in seconds."""
    streams = [source.streams[index] for index, copy in copies.items() if copy.type != "attachment"]
    seconds = 0.0
    for packet in iter_wrapped(info.path, "is corrupt and cannot be read", source.demux, streams) if streams else ():
        if packet.size:
            if packet.dts is not None:
                seconds = float(packet.dts * packet.time_base)
            shift = round(info.offset / Fraction(packet.time_base))
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
            packet.stream = copies[packet.stream.index]
            yield seconds - float(info.offset), packet


@contextlib.contextmanager
def segment_folder(target: Path, key: str) -> Iterator[Path]:
    """Yield a hidden folder next to `target` for its segments. It is deleted if the block succeeds.

    If the block fails, the folder is kept if it contains segments, and a later call with the same target and key yields
    it again. Folders of other keys of the same target are deleted once the block succeeds. OSErrors are passed on.
    """
    name_digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]  # The name itself can be too long.
    prefix = f".{target.stem[:50]}.{name_digest}-"
    folder = target.with_name(f"{prefix}{key}{_SUFFIX}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        if any(folder.glob("*.npz")):
            log.info(f"the finished part of {target} is kept in {folder}; run the same command to resume")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    for other in folder.parent.iterdir():
        if other.name.startswith(prefix) and other.name.endswith(_SUFFIX) and other.is_dir():
            shutil.rmtree(other, ignore_errors=True)


def write_segment(
    folder: Path, index: int, packets: "Sequence[Packet[Any]]", num_frames: int, state: Mapping[str, np.ndarray]
) -> None:
    """Write the packets of ``num_frames`` frames and the state after these frames atomically."""
    arrays = {
        "data": np.frombuffer(b"".join(bytes(packet) for packet in packets), np.uint8),
        "sizes": np.array([packet.size for packet in packets], np.int64),
        "pts": np.array([packet.pts for packet in packets], np.int64),
        "durations": np.array([packet.duration or 0 for packet in packets], np.int64),
        "key_frames": np.array([packet.is_keyframe for packet in packets], np.bool_),
        "num_frames": np.array(num_frames),
        **{_STATE + name: array for name, array in state.items()},
    }
    with atomic_write(segment_path(folder, index)) as temp_path:
        np.savez(temp_path, **arrays)  # type: ignore[arg-type]


def read_segment(path: Path) -> Segment | None:
    """Return the arrays of a segment, or None if the file is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def segment_path(folder: Path, index: int) -> Path:
    """Return the path of a segment."""
    return folder / f"{index:06}.npz"


def segment_state(segment: Segment) -> dict[str, np.ndarray]:
    """Return the state of the caller that was stored with a segment."""
    return {name.removeprefix(_STATE): array for name, array in segment.items() if name.startswith(_STATE)}


def decode_times(pts: np.ndarray) -> np.ndarray:
    """Return the decoding time of every packet, given the presentation times in decoding order: int64 [packets].

    The times increase, and no frame is presented before it is decoded: with a delay of d frames, packet i is decoded
    at the time of the (i − d)-th frame in presentation order.
    """
    ordered = np.sort(pts)
    delay = int((np.arange(len(pts)) - np.searchsorted(ordered, pts)).max())
    before = ordered[0] - np.arange(delay, 0, -1) * max(1, int(np.diff(ordered[:2]).sum()))
    return np.concatenate([before, ordered])[: len(pts)]
