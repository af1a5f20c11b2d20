"""Segments: decoding times by the definition of a decoding order, and folders of interrupted work."""

from pathlib import Path

import av
import numpy as np
import pytest

from chromabox.io.video.transcoding import decode_times, read_segment, segment_folder, segment_path, write_segment


@pytest.mark.parametrize(
    ("pts", "expected"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([0, 3, 1, 2], [-1, 0, 1, 2]),
        # A pyramid of B frames: frame 4 is needed before frame 2, which is needed before frames 1 and 3.
        ([0, 4, 2, 1, 3], [-2, -1, 0, 1, 2]),
        ([10, 50, 20, 21, 60], [0, 10, 20, 21, 50]),  # a variable frame rate
        ([7], [7]),
    ],
)
def test_decoding_times(pts: list[int], expected: list[int]) -> None:
    assert decode_times(np.array(pts)).tolist() == expected


def test_decoding_times_increase_and_precede_presentation() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        pts = np.cumsum(generator.integers(1, 9, 40))
        pts = pts[np.argsort(np.arange(40) + generator.uniform(0, 4, 40))]
        times = decode_times(pts)
        assert (np.diff(times) > 0).all()
        assert (times <= pts).all()


def test_segment_is_read_back(tmp_path: Path) -> None:
    packets = [av.Packet(b"abc"), av.Packet(b"d")]
    for pts, packet in enumerate(packets):
        packet.pts, packet.duration, packet.is_keyframe = 5 + pts, 2, pts == 0
    write_segment(tmp_path, 3, packets, 2, {"chroma": np.ones((2, 3), np.float32)})
    segment = read_segment(segment_path(tmp_path, 3))
    assert segment is not None
    assert segment["data"].tobytes() == b"abcd"
    assert segment["pts"].tolist() == [5, 6]
    assert segment["key_frames"].tolist() == [True, False]
    np.testing.assert_array_equal(segment["state.chroma"], np.ones((2, 3)))


@pytest.mark.parametrize("content", [None, b"", b"PK\3\4 truncated"])
def test_missing_or_damaged_segment_is_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "000000.npz"
    if content is not None:
        path.write_bytes(content)
    assert read_segment(path) is None


def test_folder_is_kept_only_with_segments_and_deleted_on_success(tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"

    def interrupt(name: str) -> None:
        with segment_folder(target, "a") as folder:
            (folder / name).touch()
            raise KeyboardInterrupt

    for name, num_kept in (("check.mp4", 0), ("000000.npz", 1)):
        with pytest.raises(KeyboardInterrupt):
            interrupt(name)
        assert len(list(tmp_path.iterdir())) == num_kept
    with segment_folder(target, "b"):
        assert len(list(tmp_path.iterdir())) == 2
    assert list(tmp_path.iterdir()) == []
