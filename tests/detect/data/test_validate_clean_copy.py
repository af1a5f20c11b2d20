"""The copy is sound, says what differs, and appears whole or not at all; the original stays byte for byte."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.validate import validate_dataset, write_clean_copy
from chromabox.errors import ChromaboxError, UsageError
from detection_fixtures import make_yolo_dataset, read_all_files

DOG = "1 0.5 0.5 0.5 0.4\n"


def bad_set(folder: Path) -> Path:
    """a is bad in two lines; b is cut short; c of the training pictures is d of validation."""
    lines = f"{DOG}{DOG}1 0.9 0.5 0.4 0.2\n"
    make_yolo_dataset(folder, {"train/a": lines, "train/b": DOG, "train/c": DOG, "val/d": DOG, "val/e": ""})
    pictures = folder / "images"
    whole = (pictures / "train" / "b.png").read_bytes()
    (pictures / "train" / "b.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "val" / "d.png").write_bytes((pictures / "train" / "c.png").read_bytes())
    return folder


def test_a_bad_set_becomes_a_sound_copy(tmp_path: Path) -> None:
    source = bad_set(tmp_path / "data")
    before = read_all_files(source)
    made = write_clean_copy(validate_dataset(source), source, tmp_path / "new" / "copy")
    assert read_all_files(source) == before
    again = validate_dataset(made.folder)
    assert again.is_valid
    assert again.data.classes == ("cat", "dog")
    assert [(one.split, one.path.name) for one in again.data.samples] == [
        ("train", "a.png"),
        ("val", "d.png"),
        ("val", "e.png"),
    ]
    np.testing.assert_allclose(again.data.samples[0].boxes, [(25, 15, 75, 35), (70, 20, 100, 30)], atol=1e-5)
    assert (made.num_images, made.num_boxes) == (3, 3)
    report = json.loads((made.folder / "repair.json").read_text())
    assert report["changes"] == list(made.changes)
    places = [line.split(": ")[0].removeprefix(str(source)) for line in made.changes]
    assert places == ["/labels/train/a.txt:2", "/labels/train/a.txt:3", "/images/train/b.png", "/images/train/c.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["copy"]


def test_a_copy_shares_no_file_with_the_original(tmp_path: Path) -> None:
    source = make_yolo_dataset(tmp_path / "data", {"train/a": DOG, "val/b": DOG})
    copy = write_clean_copy(validate_dataset(source), source, tmp_path / "copy").folder
    names = ("images/train/a.png", "labels/train/a.txt")
    assert not [name for name in names if os.path.samefile(source / name, copy / name)]


def test_a_place_that_exists_or_lies_inside_is_refused(tmp_path: Path) -> None:
    source = make_yolo_dataset(tmp_path / "data", {"train/a": DOG, "val/b": DOG})
    check = validate_dataset(source)
    before = read_all_files(tmp_path)
    for into, sentence in ((tmp_path, "exists"), (source / "deep" / "copy", "lies inside of"), (source, "exists")):
        with pytest.raises(UsageError, match=sentence):
            write_clean_copy(check, source, into)
    (tmp_path / "file").touch()
    with pytest.raises(ChromaboxError, match="the copy cannot be written"):
        write_clean_copy(check, source, tmp_path / "file" / "copy")
    (tmp_path / "file").unlink()
    assert read_all_files(tmp_path) == before


def test_pictures_of_one_name_both_stay(tmp_path: Path) -> None:
    source = make_yolo_dataset(tmp_path / "data", {"train/one/a": DOG, "train/two/a": "", "val/b": DOG})
    copy = write_clean_copy(validate_dataset(source), source, tmp_path / "copy").folder
    data = load_detection_dataset(copy, "train")
    assert [(one.path.name, len(one.boxes)) for one in data.samples] == [("a-2.png", 0), ("a.png", 1)]


@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.tuples(*(st.floats(0.1, 0.9, allow_nan=False) for _ in range(2)), *(st.floats(0.02, 0.2) for _ in range(2))),
        max_size=5,
    )
)
def test_sound_boxes_pass_unchanged(
    tmp_path_factory: pytest.TempPathFactory, labels: list[tuple[float, float, float, float]]
) -> None:
    folder = tmp_path_factory.mktemp("sound")
    lines = "".join(f"1 {x!r} {y!r} {wide!r} {high!r}\n" for x, y, wide, high in labels)
    source = make_yolo_dataset(folder / "data", {"train/a": lines, "val/b": DOG})
    check = validate_dataset(source)
    copy = write_clean_copy(check, source, folder / "copy").folder
    first, second = check.data.samples[0], load_detection_dataset(copy, "train").samples[0]
    np.testing.assert_allclose(second.boxes, first.boxes, atol=1e-5)
