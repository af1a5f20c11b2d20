"""Encoded parts of a video on disk, from which an interrupted transcoding is resumed.

A segment is one .npz file with the packets of a fixed number of frames, which start with a key frame, and the state of
the caller after these frames. All arrays are numeric, so that nothing is unpickled.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chromabox.io.atomic import atomic_write

if TYPE_CHECKING:
    from av.packet import Packet

log = logging.getLogger(__name__)

_SUFFIX = ".partial"
_STATE = "state."  # prefix of the caller's arrays

#: Arrays of a segment, by name.
Segment = dict[str, np.ndarray]


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
