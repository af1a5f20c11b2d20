"""Contact sheets of small photographs, read back by Pillow: layout and unreadable files."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from chromabox.errors import ChromaboxError, UsageError
from chromabox.report.contact_sheet import GAP, draw_contact_sheets

CAT = np.ascontiguousarray(data.chelsea()[40:140, 60:160])
TILE = 100  # The size of the images, which are therefore not resized.
PAIR_WIDTH = 2 * TILE + 3 * GAP


def make_pairs(folder: Path, count: int, *, name: str = "{}.png") -> list[tuple[Path, Path]]:
    """Write photographs of different brightness and their negatives."""
    pairs = []
    for number in range(count):
        rgb = CAT // 2 + number
        pair = (folder / "in" / name.format(number), folder / "out" / name.format(number))
        for path, pixels in zip(pair, (rgb, 255 - rgb), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        pairs.append(pair)
    return pairs


def crop_tiles(sheet: np.ndarray, left: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    return sheet[top : top + TILE, left : left + TILE], sheet[top : top + TILE, left + TILE + GAP :][:, :TILE]


def test_before_and_after_are_side_by_side_above_the_name(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path, 1)
    assert draw_contact_sheets(pairs, tmp_path / "new" / "sheet.png", tile_size=TILE) == [
        tmp_path / "new" / "sheet.png"
    ]
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    before, after = crop_tiles(sheet, GAP, GAP)
    np.testing.assert_array_equal(before, CAT // 2)
    np.testing.assert_array_equal(after, 255 - CAT // 2)
    assert sheet.shape[1] == PAIR_WIDTH
    assert (sheet[GAP + TILE :] < 128).any()  # text pixels of the name
    assert (sheet[:, :GAP] == 255).all()


def test_names_are_drawn(tmp_path: Path) -> None:
    """The first of two pairs always has the same images, which means that the sheets differ only in its name."""
    (image_path, _), other = make_pairs(tmp_path, 2)
    captions = []
    for name in ("a", "b", "inner/a", "x" * 200):
        source = image_path.parent / f"{name}.png"
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(image_path.read_bytes())
        [path] = draw_contact_sheets([(source, source), other], tmp_path / "sheet.png", tile_size=TILE)
        sheet = np.asarray(Image.open(path))
        captions.append(sheet[GAP + TILE :][:14])
    for first, second in itertools.combinations(captions, 2):
        assert not np.array_equal(first, second)
    assert (
        captions[-1][:, PAIR_WIDTH - GAP : PAIR_WIDTH] == 255
    ).all()  # A long name is shortened to the width of its pair.


@pytest.mark.parametrize(("count", "expected"), [(6, 1), (7, 2), (18, 3)])
def test_many_pairs_use_several_sheets(tmp_path: Path, count: int, expected: int) -> None:
    pairs = make_pairs(tmp_path, count)
    sheets = draw_contact_sheets(pairs, tmp_path / "sheet.png", tile_size=TILE, pairs_per_sheet=6)
    numbered = [f"sheet-{number + 1}.png" for number in range(expected)]
    assert [path.name for path in sheets] == (["sheet.png"] if expected == 1 else numbered)
    # Every image is on a sheet: the red value of its corner identifies it.
    seen = set()
    for path in sheets:
        sheet = np.asarray(Image.open(path)).astype(int)
        height = TILE + GAP + 14
        for top in range(GAP, sheet.shape[0] - TILE, height):
            for left in range(GAP, sheet.shape[1] - TILE, PAIR_WIDTH):
                before, after = crop_tiles(sheet, left, top)
                if not (before == 255).all():
                    np.testing.assert_array_equal(before + after, 255)
                    seen.add(int(before[0, 0, 0]) - int(CAT[0, 0, 0] // 2))
    assert seen == set(range(count))


def test_images_of_any_shape_depth_and_transparency(tmp_path: Path) -> None:
    shapes = {"strip.png": CAT[:1], "tall.png": CAT[:, :3], "pixel.png": CAT[:1, :1]}
    shapes["wide.png"] = CAT[..., 0].astype(np.uint16) * 257
    shapes["transparent.png"] = np.concatenate([CAT, np.zeros_like(CAT[..., :1])], -1)
    for name, pixels in shapes.items():
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / name)
    paths = [tmp_path / name for name in shapes]
    [sheet] = draw_contact_sheets([(path, path) for path in paths], tmp_path / "sheet.jpg", tile_size=32)
    with Image.open(sheet) as image:
        assert image.format == "JPEG"
    for name, expected in (("wide.png", np.repeat(CAT[..., :1], 3, -1)), ("transparent.png", np.full_like(CAT, 255))):
        [sheet] = draw_contact_sheets([(tmp_path / name, tmp_path / name)], tmp_path / "sheet.png", tile_size=TILE)
        for tile in crop_tiles(np.asarray(Image.open(sheet)), GAP, GAP):
            np.testing.assert_array_equal(tile, expected)


def test_unreadable_image_is_a_labelled_placeholder(tmp_path: Path) -> None:
    [(good, bad)] = make_pairs(tmp_path, 1)
    bad.write_bytes(b"not an image")
    [path] = draw_contact_sheets([(good, bad)], tmp_path / "sheet.png", tile_size=TILE)
    before, after = crop_tiles(np.asarray(Image.open(path)), GAP, GAP)
    np.testing.assert_array_equal(before, CAT // 2)
    assert (after[0] == 225).all()
    assert (after < 128).any()  # text pixels
    assert (after == after[..., :1]).all()
    assert draw_contact_sheets([(good, tmp_path / "missing.png")], tmp_path / "sheet.png", tile_size=TILE) == [path]


def test_unusual_names_are_drawn(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path, 2, name="line\nend {} ünï 你好.png")
    assert len(draw_contact_sheets(pairs, tmp_path / "sheet.png", tile_size=32)) == 1


def test_invalid_arguments_are_rejected(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path, 1)
    with pytest.raises(UsageError, match=r"unsupported contact sheet format; expected .jpg, .jpeg, .png"):
        draw_contact_sheets(pairs, tmp_path / "sheet.gif")
    for path in pairs[0]:
        before = path.read_bytes()
        with pytest.raises(UsageError, match="is the same file as the input"):
            draw_contact_sheets(pairs, path)
        assert path.read_bytes() == before
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ChromaboxError, match="cannot be written"):
        draw_contact_sheets(pairs, tmp_path / "file" / "sheet.png")
