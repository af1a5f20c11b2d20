"""Contact sheets of real small pictures, read back by Pillow: what lies where, and what cannot be shown."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from chromabox.errors import ChromaboxError, UsageError
from chromabox.report.contact_sheet import GAP, draw_contact_sheets

CAT = np.ascontiguousarray(data.chelsea()[40:140, 60:160])
TILE = 100  # The size of the pictures, so that they come out pixel by pixel.
PAIR_WIDTH = 2 * TILE + 3 * GAP


def make_pairs(folder: Path, count: int, *, name: str = "{}.png") -> list[tuple[Path, Path]]:
    """Photographs, each of another brightness, and their negatives."""
    pairs = []
    for number in range(count):
        rgb = CAT // 2 + number
        pair = (folder / "in" / name.format(number), folder / "out" / name.format(number))
        for path, pixels in zip(pair, (rgb, 255 - rgb), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        pairs.append(pair)
    return pairs


def tiles(sheet: np.ndarray, left: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    return sheet[top : top + TILE, left : left + TILE], sheet[top : top + TILE, left + TILE + GAP :][:, :TILE]


def test_before_and_after_lie_side_by_side_above_the_name(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path, 1)
    assert draw_contact_sheets(pairs, tmp_path / "new" / "sheet.png", tile_size=TILE) == [
        tmp_path / "new" / "sheet.png"
    ]
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    before, after = tiles(sheet, GAP, GAP)
    np.testing.assert_array_equal(before, CAT // 2)
    np.testing.assert_array_equal(after, 255 - CAT // 2)
    assert sheet.shape[1] == PAIR_WIDTH
    assert (sheet[GAP + TILE :] < 128).any()  # the name's ink
    assert (sheet[:, :GAP] == 255).all()


def test_the_name_is_drawn(tmp_path: Path) -> None:
    """The first of two pairs has the same pictures each time, so that sheets differ by its name alone."""
    (picture, _), other = make_pairs(tmp_path, 2)
    below = []
    for name in ("a", "b", "inner/a", "x" * 200):
        source = picture.parent / f"{name}.png"
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(picture.read_bytes())
        [path] = draw_contact_sheets([(source, source), other], tmp_path / "sheet.png", tile_size=TILE)
        sheet = np.asarray(Image.open(path))
        below.append(sheet[GAP + TILE :][:14])
    for first, second in itertools.combinations(below, 2):
        assert not np.array_equal(first, second)
    assert (below[-1][:, PAIR_WIDTH - GAP : PAIR_WIDTH] == 255).all()  # A long name stays in its place.


@pytest.mark.parametrize(("count", "expected"), [(6, 1), (7, 2), (18, 3)])
def test_many_pairs_go_onto_several_sheets(tmp_path: Path, count: int, expected: int) -> None:
    pairs = make_pairs(tmp_path, count)
    sheets = draw_contact_sheets(pairs, tmp_path / "sheet.png", tile_size=TILE, pairs_per_sheet=6)
    numbered = [f"sheet-{number + 1}.png" for number in range(expected)]
    assert [path.name for path in sheets] == (["sheet.png"] if expected == 1 else numbered)
    # Every picture is somewhere: the reddest value of its corner tells which one it is.
    seen = set()
    for path in sheets:
        sheet = np.asarray(Image.open(path)).astype(int)
        height = TILE + GAP + 14
        for top in range(GAP, sheet.shape[0] - TILE, height):
            for left in range(GAP, sheet.shape[1] - TILE, PAIR_WIDTH):
                before, after = tiles(sheet, left, top)
                if not (before == 255).all():
                    np.testing.assert_array_equal(before + after, 255)
                    seen.add(int(before[0, 0, 0]) - int(CAT[0, 0, 0] // 2))
    assert seen == set(range(count))


def test_any_shape_depth_and_transparency_fits(tmp_path: Path) -> None:
    shapes = {"strip.png": CAT[:1], "upright.png": CAT[:, :3], "pixel.png": CAT[:1, :1]}
    shapes["wide.png"] = CAT[..., 0].astype(np.uint16) * 257
    shapes["clear.png"] = np.concatenate([CAT, np.zeros_like(CAT[..., :1])], -1)
    for name, pixels in shapes.items():
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / name)
    paths = [tmp_path / name for name in shapes]
    [sheet] = draw_contact_sheets([(path, path) for path in paths], tmp_path / "sheet.jpg", tile_size=32)
    with Image.open(sheet) as image:
        assert image.format == "JPEG"
    for name, expected in (("wide.png", np.repeat(CAT[..., :1], 3, -1)), ("clear.png", np.full_like(CAT, 255))):
        [sheet] = draw_contact_sheets([(tmp_path / name, tmp_path / name)], tmp_path / "sheet.png", tile_size=TILE)
        for tile in tiles(np.asarray(Image.open(sheet)), GAP, GAP):
            np.testing.assert_array_equal(tile, expected)


def test_what_cannot_be_read_is_a_blank_that_says_so(tmp_path: Path) -> None:
    [(good, bad)] = make_pairs(tmp_path, 1)
    bad.write_bytes(b"no picture")
    [path] = draw_contact_sheets([(good, bad)], tmp_path / "sheet.png", tile_size=TILE)
    before, after = tiles(np.asarray(Image.open(path)), GAP, GAP)
    np.testing.assert_array_equal(before, CAT // 2)
    assert (after[0] == 225).all()
    assert (after < 128).any()  # ink
    assert (after == after[..., :1]).all()
    assert draw_contact_sheets([(good, tmp_path / "gone.png")], tmp_path / "sheet.png", tile_size=TILE) == [path]


def test_odd_names_are_drawn_too(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path, 2, name="line\nend {} ünï 你好.png")
    assert len(draw_contact_sheets(pairs, tmp_path / "sheet.png", tile_size=32)) == 1


def test_what_makes_no_sheet_is_refused(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path, 1)
    with pytest.raises(UsageError, match=r"written as .jpg, .jpeg, .png"):
        draw_contact_sheets(pairs, tmp_path / "sheet.gif")
    for numbers in ({"tile": 8}, {"tile": 5000}, {"pairs_on_a_sheet": 0}):
        with pytest.raises(UsageError, match="give 32 to 1024 pixels and at least 1 pair"):
            draw_contact_sheets(pairs, tmp_path / "sheet.png", **numbers)
    with pytest.raises(UsageError, match="no pictures to show"):
        draw_contact_sheets([], tmp_path / "sheet.png")
    for path in pairs[0]:
        before = path.read_bytes()
        with pytest.raises(UsageError, match="is the input"):
            draw_contact_sheets(pairs, path)
        assert path.read_bytes() == before
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ChromaboxError, match="cannot be written"):
        draw_contact_sheets(pairs, tmp_path / "file" / "sheet.png")
