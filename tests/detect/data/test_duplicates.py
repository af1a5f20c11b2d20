"""Copies are found however they were saved, others not; the hash by its definition on pictures worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as samples

from chromabox.detect.data.duplicates import dhash, find_duplicates, fingerprint, fingerprints
from detection_fixtures import make_image

NAMES = ("astronaut", "coffee", "chelsea", "rocket")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("photographs")
    paths = {name: folder / f"{name}.png" for name in NAMES}
    for name, path in paths.items():
        Image.fromarray(getattr(samples, name)()).save(path)
    return paths


def changed(image: Image.Image, how: str, path: Path) -> Path:
    if how == "half size":
        image.resize((image.width // 2, image.height // 2)).save(path, quality=90)
    elif how == "quality 40":
        image.save(path, quality=40)
    elif how == "brighter":
        image.point(lambda value: min(255, int(value * 1.15))).save(path, quality=90)
    else:
        image.convert("L").save(path, quality=90)
    return path


@pytest.mark.parametrize("how", ["half size", "quality 40", "brighter", "grey"])
@pytest.mark.parametrize("name", NAMES)
def test_a_changed_copy_is_a_twin_of_its_own_picture_only(
    photographs: dict[str, Path], tmp_path: Path, name: str, how: str
) -> None:
    copy = changed(Image.open(photographs[name]), how, tmp_path / "copy.jpg")
    found, damaged = fingerprints([*photographs.values(), copy])
    assert damaged == {}
    assert [(pair.first, pair.second, pair.exact) for pair in find_duplicates(found)] == [
        (photographs[name], copy, False)
    ]


def test_equal_bytes_are_exact_twins(photographs: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(photographs["coffee"].read_bytes())
    twins = find_duplicates([fingerprint(photographs["coffee"]), fingerprint(copy)])
    assert [(pair.exact, pair.hash_distance) for pair in twins] == [(True, 0)]


def test_a_mirrored_picture_is_another(photographs: dict[str, Path], tmp_path: Path) -> None:
    Image.open(photographs["coffee"]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "a.png")
    assert find_duplicates([fingerprint(photographs["coffee"]), fingerprint(tmp_path / "a.png")]) == []


def test_flat_pictures_are_twins_by_their_bytes_only(tmp_path: Path) -> None:
    for name, grey in (("a", 40), ("b", 200), ("c", 40)):
        Image.new("L", (20, 20), grey).save(tmp_path / f"{name}.png")
    twins = find_duplicates(fingerprints(sorted(tmp_path.iterdir()))[0])
    assert [(pair.first.stem, pair.second.stem, pair.exact) for pair in twins] == [("a", "c", True)]


def test_the_bits_are_rises_to_the_right() -> None:
    """9 × 8 pixels are the hash's own grid: rising rows give ones, falling and level rows zeros."""
    rows = [np.arange(9) * 20, 200 - np.arange(9) * 20, np.full(9, 70)]
    grey = np.stack([rows[index % 3] for index in range(8)]).astype(np.uint8)
    bits = dhash(np.repeat(grey[..., None], 3, axis=2)).reshape(8, 8)
    assert [row.tolist() for row in bits] == [[index % 3 == 0] * 8 for index in range(8)]


def test_what_cannot_be_decoded_is_told(tmp_path: Path) -> None:
    path = make_image(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:-30])
    found, damaged = fingerprints([path, make_image(tmp_path / "b.png")])
    assert [one.path.name for one in found] == ["b.png"]
    assert "truncated or corrupt" in damaged[path]


def test_no_pictures() -> None:
    assert find_duplicates([]) == []
