"""Duplicate detection: changed copies are found and other images are not; the hash is computed by hand."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as skimage_data

from chromabox.detect.data.duplicates import dhash, find_duplicates, fingerprints
from detection_fixtures import make_image

NAMES = ("astronaut", "coffee", "chelsea", "rocket")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("photographs")
    paths = {name: folder / f"{name}.png" for name in NAMES}
    for name, path in paths.items():
        Image.fromarray(getattr(skimage_data, name)()).save(path)
    return paths


def save_changed_copy(image: Image.Image, change: str, path: Path) -> Path:
    if change == "half size":
        image.resize((image.width // 2, image.height // 2)).save(path, quality=90)
    elif change == "quality 40":
        image.save(path, quality=40)
    elif change == "brighter":
        image.point(lambda value: min(255, int(value * 1.15))).save(path, quality=90)
    else:
        image.convert("L").save(path, quality=90)
    return path


@pytest.mark.parametrize("change", ["half size", "quality 40", "brighter", "grey"])
@pytest.mark.parametrize("name", NAMES)
def test_changed_copy_is_a_duplicate_of_its_original_only(
    photographs: dict[str, Path], tmp_path: Path, name: str, change: str
) -> None:
    copy = save_changed_copy(Image.open(photographs[name]), change, tmp_path / "copy.jpg")
    image_prints, errors = fingerprints([*photographs.values(), copy])
    assert errors == {}
    assert [(pair.first, pair.second, pair.exact) for pair in find_duplicates(image_prints)] == [
        (photographs[name], copy, False)
    ]


def test_identical_files_are_exact_duplicates(photographs: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(photographs["coffee"].read_bytes())
    pairs = find_duplicates(fingerprints([photographs["coffee"], copy])[0])
    assert [(pair.exact, pair.hash_distance) for pair in pairs] == [(True, 0)]


def test_horizontally_flipped_image_is_not_a_duplicate(photographs: dict[str, Path], tmp_path: Path) -> None:
    Image.open(photographs["coffee"]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "a.png")
    assert find_duplicates(fingerprints([photographs["coffee"], tmp_path / "a.png"])[0]) == []


def test_images_of_one_grey_value_are_duplicates_only_if_identical(tmp_path: Path) -> None:
    for name, grey in (("a", 40), ("b", 200), ("c", 40)):
        Image.new("L", (20, 20), grey).save(tmp_path / f"{name}.png")
    pairs = find_duplicates(fingerprints(sorted(tmp_path.iterdir()))[0])
    assert [(pair.first.stem, pair.second.stem, pair.exact) for pair in pairs] == [("a", "c", True)]


def test_hash_bits_are_set_where_the_right_neighbour_is_lighter() -> None:
    """An image of 9 × 8 pixels is hashed without resizing: rising rows give ones, falling and constant rows zeros."""
    rows = [np.arange(9) * 20, 200 - np.arange(9) * 20, np.full(9, 70)]
    grey = np.stack([rows[index % 3] for index in range(8)]).astype(np.uint8)
    bits = dhash(np.repeat(grey[..., None], 3, axis=2)).reshape(8, 8)
    assert [row.tolist() for row in bits] == [[index % 3 == 0] * 8 for index in range(8)]


def test_image_that_cannot_be_decoded_is_reported(tmp_path: Path) -> None:
    path = make_image(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:-30])
    image_prints, errors = fingerprints([path, make_image(tmp_path / "b.png")])
    assert [image_print.path.name for image_print in image_prints] == ["b.png"]
    assert "truncated or corrupt" in errors[path]


def test_find_duplicates_without_images() -> None:
    assert find_duplicates([]) == []
