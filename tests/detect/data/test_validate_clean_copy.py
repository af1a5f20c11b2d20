"""A cleaned copy is valid, lists its changes, and is written atomically; the original is unchanged."""

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


def make_invalid_dataset(folder: Path) -> Path:
    """a has two invalid lines; b is truncated; the training image c equals the validation image d."""
    lines = f"{DOG}{DOG}1 0.9 0.5 0.4 0.2\n"
    make_yolo_dataset(folder, {"train/a": lines, "train/b": DOG, "train/c": DOG, "val/d": DOG, "val/e": ""})
    images = folder / "images"
    content = (images / "train" / "b.png").read_bytes()
    (images / "train" / "b.png").write_bytes(content[: len(content) // 2])
    (images / "val" / "d.png").write_bytes((images / "train" / "c.png").read_bytes())
    return folder


def test_copy_of_an_invalid_dataset_is_valid(tmp_path: Path) -> None:
    source = make_invalid_dataset(tmp_path / "data")
    before = read_all_files(source)
    copy = tmp_path / "new" / "copy"
    result = write_clean_copy(validate_dataset(source), source, copy)
    assert read_all_files(source) == before
    validated = validate_dataset(copy)
    assert validated.is_valid
    assert validated.data.classes == ("cat", "dog")
    assert [(sample.split, sample.path.name) for sample in validated.data.samples] == [
        ("train", "a.png"),
        ("val", "d.png"),
        ("val", "e.png"),
    ]
    np.testing.assert_allclose(validated.data.samples[0].boxes, [(25, 15, 75, 35), (70, 20, 100, 30)], atol=1e-5)
    assert (result["pictures"], result["boxes"]) == (3, 3)
    assert json.loads((copy / "repair.json").read_text()) == result
    locations = [line.split(": ")[0].removeprefix(str(source)) for line in result["changes"]]
    assert locations == ["/labels/train/a.txt:2", "/labels/train/a.txt:3", "/images/train/b.png", "/images/train/c.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["copy"]


def test_copy_shares_no_file_with_the_original(tmp_path: Path) -> None:
    source = make_yolo_dataset(tmp_path / "data", {"train/a": DOG, "val/b": DOG})
    copy = tmp_path / "copy"
    write_clean_copy(validate_dataset(source), source, copy)
    names = ("images/train/a.png", "labels/train/a.txt")
    assert not [name for name in names if os.path.samefile(source / name, copy / name)]


def test_output_that_exists_or_is_inside_the_source_is_rejected(tmp_path: Path) -> None:
    source = make_yolo_dataset(tmp_path / "data", {"train/a": DOG, "val/b": DOG})
    report = validate_dataset(source)
    before = read_all_files(tmp_path)
    for output, message in ((tmp_path, "exists"), (source / "deep" / "copy", "is inside"), (source, "exists")):
        with pytest.raises(UsageError, match=message):
            write_clean_copy(report, source, output)
    (tmp_path / "file").touch()
    with pytest.raises(ChromaboxError, match="copy: cannot be written"):
        write_clean_copy(report, source, tmp_path / "file" / "copy")
    (tmp_path / "file").unlink()
    assert read_all_files(tmp_path) == before


def test_images_with_the_same_name_are_both_kept(tmp_path: Path) -> None:
    source = make_yolo_dataset(tmp_path / "data", {"train/one/a": DOG, "train/two/a": "", "val/b": DOG})
    copy = tmp_path / "copy"
    write_clean_copy(validate_dataset(source), source, copy)
    data = load_detection_dataset(copy, "train")
    assert [(sample.path.name, len(sample.boxes)) for sample in data.samples] == [("a-2.png", 0), ("a.png", 1)]


@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.tuples(*(st.floats(0.1, 0.9, allow_nan=False) for _ in range(2)), *(st.floats(0.02, 0.2) for _ in range(2))),
        max_size=5,
    )
)
def test_valid_boxes_are_unchanged(
    tmp_path_factory: pytest.TempPathFactory, labels: list[tuple[float, float, float, float]]
) -> None:
    folder = tmp_path_factory.mktemp("valid")
    lines = "".join(f"1 {x!r} {y!r} {width!r} {height!r}\n" for x, y, width, height in labels)
    source = make_yolo_dataset(folder / "data", {"train/a": lines, "val/b": DOG})
    report = validate_dataset(source)
    write_clean_copy(report, source, folder / "copy")
    original, copied = report.data.samples[0], load_detection_dataset(folder / "copy", "train").samples[0]
    np.testing.assert_allclose(copied.boxes, original.boxes, atol=1e-5)
