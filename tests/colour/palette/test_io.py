"""Tests of palette files: writing, round trips, files from other programs, and invalid files."""

import io
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from chromabox.colour.palette.io import load_palette, save_palette
from chromabox.colour.palette.palette import Palette
from chromabox.errors import ChromaboxError

THREE = np.array([[0, 0, 0], [0.5, 0.25, 0.125], [1, 1, 1]], np.float32)


@pytest.mark.parametrize("name", ["horse24", "cifar24"])
def test_bundled_palettes(name):
    palette = load_palette(name)
    assert palette.name == name
    assert len(palette) == len(np.unique(palette.colours, axis=0)) == 24


PALETTES = st.builds(
    Palette,
    hnp.arrays(np.float32, st.tuples(st.integers(2, 256), st.just(3)), elements=st.floats(0, 1, width=32)),
    st.text(st.characters(categories=["L", "N"], include_characters=" "), min_size=1).map(str.strip).filter(bool),
)


@settings(max_examples=30, deadline=None)
@given(palette=PALETTES)
def test_round_trip(palette, tmp_path_factory):
    folder = tmp_path_factory.mktemp("palettes")
    for suffix in (".npy", ".json"):
        save_palette(folder / f"p{suffix}", palette)
        np.testing.assert_array_equal(load_palette(folder / f"p{suffix}").colours, palette.colours)
    save_palette(folder / "p.gpl", palette)
    np.testing.assert_array_equal(load_palette(folder / "p.gpl").colours * 256, palette.rgb)
    assert load_palette(folder / "p.json").name == palette.name
    assert load_palette(folder / "p.gpl").name == " ".join(palette.name.split())
    assert sorted(os.listdir(folder)) == ["p.gpl", "p.json", "p.npy"]


def test_json_contains_name_and_unit(tmp_path):
    save_palette(tmp_path / "p.json", Palette(THREE, "three"))
    stored = json.loads((tmp_path / "p.json").read_text())
    assert stored == {"name": "three", "k": 3, "unit": "RGB/256", "made": {}, "colours": THREE.tolist()}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("p.json", b"[[0, 0, 0], [128, 64, 32]]"),
        ("p.json", b"[[0, 0.0, 0], [0.5, 0.25, 0.125]]"),
        ("p.JSON", b'["#000000", "#804020"]'),
        ("p.json", b'\xef\xbb\xbf{"unit": "RGB/256", "colours": ["#000000", [0.5, 0.25, 0.125]]}'),
        ("p.gpl", b"GIMP Palette\r\nColumns: 3\r\n# comment\r\n  0   0   0\tblack\r\n128 64 32\r\n"),
    ],
)
def test_files_from_other_programs(tmp_path, file, content):
    (tmp_path / file).write_bytes(content)
    palette = load_palette(tmp_path / file)
    np.testing.assert_array_equal(palette.colours, THREE[:2])
    assert palette.name == "p"


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_npy_of_several_dtypes(tmp_path, dtype):
    stored = THREE[:2] * 256 if dtype == np.uint8 else THREE[:2]
    np.save(tmp_path / "p.npy", stored.astype(dtype))
    np.testing.assert_array_equal(load_palette(str(tmp_path / "p.npy")).colours, THREE[:2])


def npy(array):
    """Return the bytes of a .npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


# Headers that make NumPy raise errors other than ValueError (format version 1.0 of numpy.lib.format).
BAD_NPY_HEADERS = [b"{'descr': '|u1', 'shape': (2, 3", b"(" * 9000, b"\xff", b"{'shape': 1}", b"[[1]]"]
BAD_FILES = [
    *(
        ("p.npy", b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text, "not a complete")
        for text in BAD_NPY_HEADERS
    ),
    ("pickled.npy", npy(np.array([THREE, "x"], object)), "pickled object array.*np.save"),
    ("shape.npy", npy(np.zeros((24, 4))), r"has shape \[24, 4\]; expected \[colours, 3\]"),
    ("flat.npy", npy(np.zeros(3)), r"has shape \[3\]"),
    ("nan.npy", npy(THREE * np.nan), "values from nan to nan"),
    ("large.npy", npy(THREE * 255), r"from 0 to 255; expected values in \[0, 1\].*divided by 256"),
    ("whole.npy", npy(np.zeros((3, 3), np.int64)), "unsupported dtype int64; expected uint8, or floats"),
    ("many.npy", npy(np.zeros((257, 3))), "has 257 colours; expected 2 to 256"),
    ("cut.npy", npy(THREE)[:-5], "not a complete .npy file"),
    ("text.npy", b"not numpy", "not a complete .npy file"),
    ("none.npy", b"", "not a complete .npy file"),
    ("huge.npy", b" " * ((1 << 20) + 1), "of at most 1,048,576 bytes"),
    ("empty.gpl", b"GIMP Palette\nName: nothing\n#\n", "has 0 colours"),
    ("blank.gpl", b"", 'expected "GIMP Palette" as the first line'),
    ("other.gpl", b"JASC-PAL\n", 'expected "GIMP Palette" as the first line'),
    ("high.gpl", b"GIMP Palette\n0 0 0\n0 0 256\n", 'line 3 is "0 0 256"; expected three values from 0 to 255'),
    ("short.gpl", b"GIMP Palette\n0 0\n", "line 2 is"),
    ("hex.json", b'["#00000", "#ffffff"]', 'invalid colour "#00000"; expected "#rrggbb"'),
    ("hex2.json", b'["#00000g", "#ffffff"]', '"#00000g"'),
    ("pair.json", b"[[0, 0], [1, 1]]", r"invalid colour \[0, 0\]; expected .*\[r, g, b\]"),
    ("word.json", b'[[0, 0, "x"], [1, 1, 1]]', "expected .* or .r, g, b."),
    ("truth.json", b"[[true, 0, 0], [1, 1, 1]]", "expected .* or .r, g, b."),
    ("number.json", b"[1, 2]", "invalid colour 1; expected .* or .r, g, b."),
    ("above.json", b"[[0, 0, 0.5], [0, 0, 1.5]]", r"\[0, 0, 1.5\]; expected .* with RGB .* 256, in \[0, 1\]"),
    ("above8.json", b"[[0, 0, 0], [0, 0, 256]]", "expected .* with 8-bit values from 0 to 255"),
    ("nan.json", b"[[0, 0, NaN], [0, 0, 0.5]]", "expected .* with RGB values divided by 256"),
    ("digits.json", b"[[0, 0, 1" + b"0" * 400 + b"], [0, 0, 0]]", "expected .* with 8-bit values from 0 to 255"),
    ("unit.json", b'{"unit": "RGB/255", "colours": []}', '"unit": "RGB/256"'),
    ("list.json", b"7", "no list of colours"),
    ("few.json", b"[]", "has 0 colours"),
    ("deep.json", b"[" * 100_000, "invalid JSON"),
    ("broken.json", b'["#000000",', "invalid JSON"),
    ("bytes.json", b"\xff\xfe\xfd", "invalid JSON"),
    ("notes.txt", b"", "unknown palette; expected one of cifar24, horse24 or a file with suffix .npy, .json, .gpl"),
]


@pytest.mark.parametrize(("file", "content", "message"), BAD_FILES, ids=[row[0] for row in BAD_FILES])
def test_invalid_file_is_rejected_with_a_one_line_message(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ChromaboxError, match=f"{file}: .*({message})") as caught:
        load_palette(tmp_path / file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.json", "does not exist; expected a palette file"), ("horse25", "one of cifar24, horse24")],
)
def test_missing_file_or_name_is_rejected(tmp_path, name, message):
    with pytest.raises(ChromaboxError, match=f"{name}: .*{message}"):
        load_palette(tmp_path / name)


def test_folder_is_rejected(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ChromaboxError, match=r"folder\.npy: cannot be read"):
        load_palette(tmp_path / "folder.npy")


def test_failed_save_leaves_no_file(tmp_path):
    palette = Palette(THREE, "three")
    with pytest.raises(ChromaboxError, match=r"p\.bmp: unsupported suffix; expected one of \.npy, \.json, \.gpl"):
        save_palette(tmp_path / "p.bmp", palette)
    with pytest.raises(ChromaboxError, match=r"p\.gpl: cannot be written \(no such file"):
        save_palette(tmp_path / "none" / "p.gpl", palette)
    (tmp_path / "p.json").mkdir()
    with pytest.raises(ChromaboxError, match="cannot be written"):
        save_palette(tmp_path / "p.json", palette)
    assert os.listdir(tmp_path) == ["p.json"]
