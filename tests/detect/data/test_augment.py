"""Views: rectangles of one colour are drawn, shown, and found again where the boxes say."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chromabox.detect.boxes import letterbox_for
from chromabox.detect.data.augment import Augmentation, augment_sample, letterbox_sample
from chromabox.detect.data.dataset import DetectionDataset, Sample
from chromabox.detect.models.darknet import DARKNET, ULTRALYTICS_9_6
from chromabox.errors import UsageError

#: Colours far from each other and from the grounds, by class.
COLOURS = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 10]], np.uint8)
STILL = {"hue": 0.0, "saturation": 0.0, "value": 0.0}


def painted(
    boxes: list[tuple[int, int, int, int]], size: tuple[int, int] = (90, 120), crowd: list[bool] | None = None
) -> tuple[DetectionDataset, dict[Path, np.ndarray]]:
    """A set of one picture for each box, of its own class and colour, and the pixels by their names."""
    pictures, pixels = [], {}
    for index, box in enumerate(boxes):
        path = Path(f"{index}.png")
        pixels[path] = np.full((*size, 3), 60, np.uint8)
        pixels[path][box[1] : box[3], box[0] : box[2]] = COLOURS[index]
        marks = np.array([crowd[index]]) if crowd else None
        pictures.append(Sample(path, np.array([box], float), np.array([index]), size, "", marks))
    return DetectionDataset(tuple(pictures), ("a", "b", "c", "d"), ("",)), pixels


def found(view: np.ndarray, category: int) -> tuple[np.ndarray, ...]:
    """Rows and columns of the pixels that are nearly of a class's colour."""
    return np.nonzero((np.abs(view.transpose(1, 2, 0).astype(int) - COLOURS[category]) < 60).all(-1))


CORNER = st.integers(0, 60)
SIDE = st.integers(20, 30)
BOX = st.tuples(CORNER, CORNER, SIDE, SIDE).map(lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3]))


@given(st.lists(BOX, min_size=4, max_size=4), st.integers(0, 10**6), st.sampled_from([0.0, 1.0]))
@settings(max_examples=60, deadline=None)
def test_boxes_stay_on_their_objects(boxes: list[tuple[int, int, int, int]], seed: int, mosaic: float) -> None:
    data, pixels = painted(boxes)
    settings_ = Augmentation(mosaic=mosaic, **STILL)
    view, rows = augment_sample(data, seed % 4, seed, 128, settings_, read_image=pixels.__getitem__)
    assert view.dtype == np.uint8
    assert view.shape == (3, 128, 128)
    assert ((rows[:, 1:] >= 0) & (rows[:, 1:] <= 1)).all()
    for category in range(4):
        own = rows[rows[:, 0] == category, 1:].astype(float) * 128
        places = np.stack(found(view, category)[::-1], -1) + 0.5
        inside = np.zeros(len(places), bool)
        for x, y, wide, high in own:
            covered = (np.abs(places - [x, y]) <= np.array([wide, high]) / 2 + 1.5).all(1)
            # The box is filled with its colour, up to the blended border.
            assert covered.sum() >= 0.6 * max(wide - 3, 0) * max(high - 3, 0)
            assert np.ptp(places[covered], 0) + 1 == pytest.approx([wide, high], abs=3.5)
            inside |= covered
        # What no box covers is too small a rest of an object.
        assert (~inside).sum() <= 4 * max(0.1 * 30 * 30 * (128 / 120 * 1.5) ** 2, 3 * 48)


def test_a_still_view_is_the_letterbox() -> None:
    data, pixels = painted([(10, 20, 50, 70)])
    nothing = Augmentation(mosaic=0.0, scale=(1.0, 1.0), translate=0.0, hflip=0.0, **STILL)
    view, rows = augment_sample(data, 0, 0, 240, nothing, read_image=pixels.__getitem__)
    plain, plain_rows = letterbox_sample(data.samples[0], 240, ULTRALYTICS_9_6, read_image=pixels.__getitem__)
    np.testing.assert_allclose(rows, plain_rows, atol=1e-6)
    np.testing.assert_allclose(rows[0], [0, 60 / 240, (90 + 30) / 240, 80 / 240, 100 / 240], atol=1e-6)
    assert np.abs(view - plain * 255).max() <= 1.01


def test_mirroring_turns_pixels_and_boxes() -> None:
    data, pixels = painted([(0, 0, 40, 40)])
    options = {"mosaic": 0.0, "scale": (1.0, 1.0), "translate": 0.0, **STILL}
    left, rows = augment_sample(data, 0, 5, 120, Augmentation(hflip=0.0, **options), read_image=pixels.__getitem__)
    right, turned = augment_sample(data, 0, 5, 120, Augmentation(hflip=1.0, **options), read_image=pixels.__getitem__)
    assert (right == left[..., ::-1]).all()
    assert turned[0].tolist() == pytest.approx([0, 1 - rows[0, 1], *rows[0, 2:]])


@pytest.mark.parametrize("recipe", ["course", "default"])
def test_seed_and_index_decide_everything(recipe: str) -> None:
    data, pixels = painted([(10, 10, 40, 40), (20, 20, 60, 60), (5, 30, 50, 80), (0, 0, 90, 90)])

    def view(index: int, seed: int | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        return augment_sample(data, index, seed, 64, recipe, read_image=pixels.__getitem__)

    again = [view(1, (3, 0)) for _ in range(2)]
    assert (again[0][0] == again[1][0]).all()
    assert (again[0][1] == again[1][1]).all()
    assert (view(1, 3)[0] != view(2, 3)[0]).any()
    assert (view(1, (3, 0))[0] != view(1, (3, 1))[0]).any()


def test_the_picture_asked_for_is_in_its_mosaic() -> None:
    data, pixels = painted([(0, 0, 120, 90)] * 4)
    whole = Augmentation(scale=(0.5, 0.5), translate=0.0, **STILL)
    for seed in range(20):
        view, _ = augment_sample(data, seed % 4, seed, 64, whole, read_image=pixels.__getitem__)
        assert len(found(view, seed % 4)[0])


def test_colours_change_within_their_gains() -> None:
    data, pixels = painted([(0, 0, 120, 90)])
    pixels[Path("0.png")][:] = [200, 100, 50]
    options = {"mosaic": 0.0, "scale": (1.0, 1.0), "translate": 0.0, "hflip": 0.0}
    value = Augmentation(**options, hue=0.0, saturation=0.0, value=0.4)
    seen = {
        tuple(augment_sample(data, 0, seed, 120, value, read_image=pixels.__getitem__)[0][:, 60, 60])
        for seed in range(20)
    }
    assert len(seen) > 10
    for red, green, blue in seen:
        assert 200 * 0.6 - 2 <= red <= 255
        assert green / red == pytest.approx(0.5, abs=0.03)
        assert blue / red == pytest.approx(0.25, abs=0.03)


def test_crowds_and_slivers_are_no_boxes() -> None:
    data, pixels = painted([(10, 20, 50, 70), (0, 0, 30, 30)], crowd=[True, False])
    nothing = Augmentation(mosaic=0.0, scale=(1.0, 1.0), translate=0.0, hflip=0.0, **STILL)
    assert len(augment_sample(data, 0, 0, 120, nothing, read_image=pixels.__getitem__)[1]) == 0
    assert len(letterbox_sample(data.samples[0], 120, DARKNET, read_image=pixels.__getitem__)[1]) == 0
    # At eight times the size only the middle is seen: of the box at the corner nothing.
    near = Augmentation(mosaic=0.0, scale=(8.0, 8.0), translate=0.0, hflip=0.0, **STILL)
    assert len(augment_sample(data, 1, 0, 120, near, read_image=pixels.__getitem__)[1]) == 0


@pytest.mark.parametrize(("seen", "kept"), [(4, 1), (2, 0)])
def test_a_tenth_of_a_box_must_be_seen(seen: int, kept: int) -> None:
    """Of a box of 30 × 30 pixels so many columns stay in view, the rest lies beyond the right edge."""
    # At 120 / 200 times 200 / 120 the pixels keep their size; columns and rows 40 to 160 are seen.
    near = Augmentation(mosaic=0.0, scale=(200 / 120,) * 2, translate=0.0, hflip=0.0, **STILL)
    data, pixels = painted([(160 - seen, 60, 190 - seen, 90)], size=(200, 200))
    _, rows = augment_sample(data, 0, 0, 120, near, read_image=pixels.__getitem__)
    assert len(rows) == kept
    assert (rows[:, 3] * 120).tolist() == pytest.approx([seen] * kept, abs=1e-4)


@pytest.mark.parametrize("kind", [DARKNET, ULTRALYTICS_9_6], ids=lambda kind: kind.name)
def test_the_plain_view_is_what_detection_shows(kind) -> None:
    data, pixels = painted([(10, 20, 50, 70)])
    view, rows = letterbox_sample(data.samples[0], 96, kind, read_image=pixels.__getitem__)
    letterbox = letterbox_for((90, 120), 96, kind)
    assert (view == letterbox.apply_image(pixels[Path("0.png")])).all()
    x, y, wide, high = rows[0, 1:] * 96
    back = letterbox.invert_boxes(np.array([[x - wide / 2, y - high / 2, x + wide / 2, y + high / 2]], float))
    np.testing.assert_allclose(back, [[10, 20, 50, 70]], atol=1e-4)


def test_an_unknown_recipe_is_refused() -> None:
    data, _ = painted([(10, 20, 50, 70)])
    with pytest.raises(UsageError, match="recipe is 'best': views are drawn by course or default"):
        augment_sample(data, 0, 0, 64, "best")


def test_files_are_read_upright(tmp_path: Path) -> None:
    """A picture that lies on its side by its EXIF orientation 6: its left edge is shown on top."""
    pixels = np.full((40, 60, 3), 60, np.uint8)
    pixels[:, :20] = COLOURS[1]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=98, exif=exif)
    boxes = np.array([[0.0, 0.0, 40.0, 20.0]])
    data = DetectionDataset((Sample(tmp_path / "a.jpg", boxes, np.array([1]), (60, 40)),), ("a", "b"), ("",))
    nothing = Augmentation(mosaic=0.0, scale=(1.0, 1.0), translate=0.0, hflip=0.0, **STILL)
    view, rows = augment_sample(data, 0, 0, 60, nothing)
    row, column = found(view, 1)
    assert (row.min(), row.max(), column.min(), column.max()) == (0, 19, 10, 49)
    assert rows[0].tolist() == pytest.approx([1, 0.5, 1 / 6, 4 / 6, 1 / 3])
