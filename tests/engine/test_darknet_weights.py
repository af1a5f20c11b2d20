"""Darknet weights: small files written with struct from the description of the format, and invalid files."""

import struct
from pathlib import Path

import numpy as np
import pytest

from chromabox.engine.darknet_weights import (
    YOLOV3_TINY,
    DarknetWeights,
    download_yolov3_tiny,
    load_yolov3_tiny,
    read_darknet_weights,
    unpack_layers,
    write_darknet_weights,
)
from chromabox.errors import ChromaboxError
from chromabox.io.http import PinnedFile

VALUES = [0.5, -1.25, 3e-8, 7.0]


def write(path: Path, version: tuple[int, int, int], seen: bytes, values: list[float]) -> Path:
    """Write a file as Darknet does: little-endian; the size of the number of images seen depends on the version."""
    path.write_bytes(struct.pack("<3i", *version) + seen + struct.pack(f"<{len(values)}f", *values))
    return path


@pytest.mark.parametrize(
    ("version", "seen"),
    [
        ((0, 1, 0), struct.pack("<i", 32_013_312)),  # before 0.2 the number of images has 32 bits
        ((0, 2, 0), struct.pack("<q", 32_013_312)),
        ((0, 2, 5), struct.pack("<q", 2**40)),
        ((1, 0, 0), struct.pack("<q", 0)),
    ],
)
def test_values_start_after_the_header(tmp_path: Path, version: tuple[int, int, int], seen: bytes) -> None:
    values = read_darknet_weights(write(tmp_path / "a.weights", version, seen, VALUES)).values
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.array(VALUES, np.float32))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "not a Darknet weight file"),
        (b"short", "not a Darknet weight file"),
        (b"\x00" * 11, "not a Darknet weight file"),
        (b"<html><body>404 Not Found</body></html>", "not a Darknet weight file"),
        (struct.pack("<3i", 0, 2, 0), "truncated file"),
        (struct.pack("<3iq", 0, 2, 0, 5), "truncated file"),
        (struct.pack("<3iq2f", 0, 2, 0, 5, 1.0, 2.0)[:-1], "truncated file"),
    ],
)
def test_other_files_are_rejected(tmp_path: Path, content: bytes, error: str) -> None:
    (tmp_path / "a.weights").write_bytes(content)
    with pytest.raises(ChromaboxError, match=rf"a\.weights: {error}"):
        read_darknet_weights(tmp_path / "a.weights")


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ChromaboxError, match=r"none\.weights: cannot be read"):
        read_darknet_weights(tmp_path / "none.weights")


def test_layers_are_unpacked_in_darknets_order(tmp_path: Path) -> None:
    # Every value encodes its layer, its field (bias 0, scale 1, mean 2, variance 3, kernel 4) and its index.
    shapes = [(2, 3, 3), (4, 2, 1)]
    values = []
    for layer, (outputs, inputs, side) in enumerate(shapes):
        sizes = [outputs] * 4 + [outputs * inputs * side * side]
        values += [1000.0 * layer + 100 * field + index for field, size in enumerate(sizes) for index in range(size)]
    path = write(tmp_path / "a.weights", (0, 2, 0), struct.pack("<q", 0), [*values, 9999.0])
    for layer, (unpacked, (outputs, inputs, side)) in enumerate(
        zip(unpack_layers(read_darknet_weights(path).values, shapes), shapes, strict=True)
    ):
        for field, name in enumerate(("bias", "weight", "mean", "variance")):
            assert unpacked[name].tolist() == [1000 * layer + 100 * field + index for index in range(outputs)]
        assert unpacked["kernel"].shape == (outputs, inputs, side, side)
        for index in np.ndindex(outputs, inputs, side, side):
            position = ((index[0] * inputs + index[1]) * side + index[2]) * side + index[3]
            assert unpacked["kernel"][index] == 1000 * layer + 400 + position


def test_too_few_values_are_rejected() -> None:
    with pytest.raises(ChromaboxError, match="29 values; expected at least 30 for these layers"):
        unpack_layers(np.zeros(29, np.float32), [(3, 6, 1)])
    assert len(unpack_layers(np.zeros(30, np.float32), [(3, 6, 1)])) == 1


def test_different_file_in_a_mirror_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(YOLOV3_TINY, PinnedFile)
    write(tmp_path / YOLOV3_TINY.name, (0, 2, 0), struct.pack("<q", 0), VALUES)
    monkeypatch.setenv("CHROMABOX_MIRROR", str(tmp_path))
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("chromabox.engine.darknet_weights.YOLOV3_TINY_SOURCES", ())
    with pytest.raises(ChromaboxError, match=YOLOV3_TINY.name):
        download_yolov3_tiny()
    assert not (tmp_path / "cache" / YOLOV3_TINY.name).exists()


@pytest.mark.parametrize("version", [(0, 1, 0), (0, 2, 0), (0, 2, 5), (1, 0, 0)])
def test_written_file_equals_the_read_file(tmp_path: Path, version: tuple[int, int, int]) -> None:
    has_64bit_count = version != (0, 1, 0)
    seen = 2**40 + 5 if has_64bit_count else 32_013_312
    path = write(
        tmp_path / "a.weights", version, struct.pack("<q" if has_64bit_count else "<i", seen), [*VALUES, float("nan")]
    )
    file = read_darknet_weights(path)
    assert (file.images_seen, file.version) == (seen, version)
    write_darknet_weights(tmp_path / "b.weights", file)
    assert (tmp_path / "b.weights").read_bytes() == path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.weights", "b.weights"]


def test_onnx_copy_is_the_fallback_and_both_failures_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CHROMABOX_MIRROR", raising=False)
    monkeypatch.setattr("chromabox.engine.darknet_weights.YOLOV3_TINY_SOURCES", ())
    monkeypatch.setattr("chromabox.engine.darknet_weights.YOLOV3_TINY_ONNX_SOURCES", ())
    with pytest.raises(ChromaboxError, match=r"cannot fetch yolov3-tiny\.weights: .*; the ONNX copy is not available"):
        load_yolov3_tiny()
    layer = {"kernel": np.ones((1, 3, 1, 1), np.float32), "bias": np.full(1, 2, np.float32)}
    monkeypatch.setattr("chromabox.engine.darknet_weights.download_yolov3_tiny_onnx", lambda progress: tmp_path)
    monkeypatch.setattr("chromabox.engine.darknet_weights.read_onnx_convolutions", lambda path: [layer])
    file, origin = load_yolov3_tiny()
    assert origin.name == "tiny-yolov3-11.onnx"
    assert isinstance(file, DarknetWeights)
    assert file.values.tolist() == [2, 1, 1, 1]
