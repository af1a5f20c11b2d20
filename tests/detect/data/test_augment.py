"""Augmented samples of rectangles of one colour: the pixels of each colour are located and compared with the boxes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chromabox.detect.boxes import letterbox_for
from chromabox.detect.data.augment import Augmentation, augment_sample, letterbox_sample
from chromabox.detect.data.dataset import DetectionDataset, Sample
from chromabox.detect.models.architecture import DARKNET, ULTRALYTICS_9_6
from chromabox.errors import UsageError

#: Colours by class, which differ clearly from each other and from the backgrounds.
COLOURS = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 10]], np.uint8)
NO_COLOUR_JITTER = {"hue": 0.0, "saturation": 0.0, "value": 0.0}


def make_dataset(
    boxes: list[tuple[int, int, int, int]], size: tuple[int, int] = (90, 120), crowd: list[bool] | None = None
) -> tuple[DetectionDataset, dict[Path, np.ndarray]]:
    """Return a dataset with one image per box, each with its own class and colour, and the pixels by path."""
    samples, pixels = [], {}
    for index, box in enumerate(boxes):
        path = Path(f"{index}.png")
        pixels[path] = np.full((*size, 3), 60, np.uint8)
        pixels[path][box[1] : box[3], box[0] : box[2]] = COLOURS[index]
        mask = np.array([crowd[index]]) if crowd else None
        samples.append(Sample(path, np.array([box], float), np.array([index]), size, "", mask))
    return DetectionDataset(tuple(samples), ("a", "b", "c", "d"), ("",)), pixels


def locate_class(image: np.ndarray, class_id: int) -> tuple[np.ndarray, ...]:
    """Return the rows and columns of the pixels whose colour is close to that of a class."""
    return np.nonzero((np.abs(image.transpose(1, 2, 0).astype(int) - COLOURS[class_id]) < 60).all(-1))


CORNER = st.integers(0, 60)
SIDE = st.integers(20, 30)
BOX = st.tuples(CORNER, CORNER, SIDE, SIDE).map(lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3]))


@given(st.lists(BOX, min_size=4, max_size=4), st.integers(0, 10**6), st.sampled_from([0.0, 1.0]))
@settings(max_examples=60, deadline=None)
def test_boxes_enclose_their_objects(boxes: list[tuple[int, int, int, int]], seed: int, mosaic: float) -> None:
    data, pixels = make_dataset(boxes)
    augmentation = Augmentation(mosaic=mosaic, **NO_COLOUR_JITTER)
    image, rows = augment_sample(data, seed % 4, seed, 128, augmentation, read_image=pixels.__getitem__)
    assert image.dtype == np.uint8
    assert image.shape == (3, 128, 128)
    assert ((rows[:, 1:] >= 0) & (rows[:, 1:] <= 1)).all()
    for class_id in range(4):
        boxes_of_class = rows[rows[:, 0] == class_id, 1:].astype(float) * 128
        positions = np.stack(locate_class(image, class_id)[::-1], -1) + 0.5
        inside = np.zeros(len(positions), bool)
        for x, y, width, height in boxes_of_class:
            covered = (np.abs(positions - [x, y]) <= np.array([width, height]) / 2 + 1.5).all(1)
            # The box is filled with its colour, up to the blended border.
            assert covered.sum() >= 0.6 * max(width - 3, 0) * max(height - 3, 0)
            assert np.ptp(positions[covered], 0) + 1 == pytest.approx([width, height], abs=3.5)
            inside |= covered
        # Pixels outside all boxes belong to objects whose visible part is too small.
        assert (~inside).sum() <= 4 * max(0.1 * 30 * 30 * (128 / 120 * 1.5) ** 2, 3 * 48)


def test_sample_without_augmentation_is_the_letterbox() -> None:
    data, pixels = make_dataset([(10, 20, 50, 70)])
    no_augmentation = Augmentation(mosaic=0.0, scale=(1.0, 1.0), translate=0.0, hflip=0.0, **NO_COLOUR_JITTER)
    image, rows = augment_sample(data, 0, 0, 240, no_augmentation, read_image=pixels.__getitem__)
    letterboxed, letterbox_rows = letterbox_sample(data.samples[0], 240, ULTRALYTICS_9_6, read_image=pixels.__getitem__)
    np.testing.assert_allclose(rows, letterbox_rows, atol=1e-6)
    np.testing.assert_allclose(rows[0], [0, 60 / 240, (90 + 30) / 240, 80 / 240, 100 / 240], atol=1e-6)
    assert np.abs(image - letterboxed * 255).max() <= 1.01


def test_horizontal_flip_flips_pixels_and_boxes() -> None:
    data, pixels = make_dataset([(0, 0, 40, 40)])
    options = {"mosaic": 0.0, "scale": (1.0, 1.0), "translate": 0.0, **NO_COLOUR_JITTER}
    original, rows = augment_sample(data, 0, 5, 120, Augmentation(hflip=0.0, **options), read_image=pixels.__getitem__)
    flipped, flipped_rows = augment_sample(
        data, 0, 5, 120, Augmentation(hflip=1.0, **options), read_image=pixels.__getitem__
    )
    assert (flipped == original[..., ::-1]).all()
    assert flipped_rows[0].tolist() == pytest.approx([0, 1 - rows[0, 1], *rows[0, 2:]])


@pytest.mark.parametrize("recipe", ["course", "default"])
def test_sample_is_determined_by_seed_and_index(recipe: str) -> None:
    data, pixels = make_dataset([(10, 10, 40, 40), (20, 20, 60, 60), (5, 30, 50, 80), (0, 0, 90, 90)])

    def augment(index: int, seed: int | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        return augment_sample(data, index, seed, 64, recipe, read_image=pixels.__getitem__)

    repeated = [augment(1, (3, 0)) for _ in range(2)]
    assert (repeated[0][0] == repeated[1][0]).all()
    assert (repeated[0][1] == repeated[1][1]).all()
    assert (augment(1, 3)[0] != augment(2, 3)[0]).any()
    assert (augment(1, (3, 0))[0] != augment(1, (3, 1))[0]).any()


def test_mosaic_contains_the_requested_image() -> None:
    data, pixels = make_dataset([(0, 0, 120, 90)] * 4)
    all_visible = Augmentation(scale=(0.5, 0.5), translate=0.0, **NO_COLOUR_JITTER)
    for seed in range(20):
        image, _ = augment_sample(data, seed % 4, seed, 64, all_visible, read_image=pixels.__getitem__)
        assert len(locate_class(image, seed % 4)[0])


def test_colour_jitter_stays_within_its_range() -> None:
    data, pixels = make_dataset([(0, 0, 120, 90)])
    pixels[Path("0.png")][:] = [200, 100, 50]
    options = {"mosaic": 0.0, "scale": (1.0, 1.0), "translate": 0.0, "hflip": 0.0}
    value_jitter = Augmentation(**options, hue=0.0, saturation=0.0, value=0.4)
    colours = {
        tuple(augment_sample(data, 0, seed, 120, value_jitter, read_image=pixels.__getitem__)[0][:, 60, 60])
        for seed in range(20)
    }
    assert len(colours) > 10
    for red, green, blue in colours:
        assert 200 * 0.6 - 2 <= red <= 255
        assert green / red == pytest.approx(0.5, abs=0.03)
        assert blue / red == pytest.approx(0.25, abs=0.03)


def test_crowds_and_slivers_are_dropped() -> None:
    data, pixels = make_dataset([(10, 20, 50, 70), (0, 0, 30, 30)], crowd=[True, False])
    no_augmentation = Augmentation(mosaic=0.0, scale=(1.0, 1.0), translate=0.0, hflip=0.0, **NO_COLOUR_JITTER)
    assert len(augment_sample(data, 0, 0, 120, no_augmentation, read_image=pixels.__getitem__)[1]) == 0
    assert len(letterbox_sample(data.samples[0], 120, DARKNET, read_image=pixels.__getitem__)[1]) == 0
    # At scale 8 only the centre is visible; the box in the corner is not.
    zoomed = Augmentation(mosaic=0.0, scale=(8.0, 8.0), translate=0.0, hflip=0.0, **NO_COLOUR_JITTER)
    assert len(augment_sample(data, 1, 0, 120, zoomed, read_image=pixels.__getitem__)[1]) == 0


@pytest.mark.parametrize(("visible", "count"), [(4, 1), (2, 0)])
def test_box_is_kept_if_a_tenth_is_visible(visible: int, count: int) -> None:
    """``visible`` columns of a box of 30 × 30 pixels are visible; the others are beyond the right edge."""
    # The scale 200 / 120 compensates fitting by 120 / 200; columns and rows 40 to 160 are visible.
    zoomed = Augmentation(mosaic=0.0, scale=(200 / 120,) * 2, translate=0.0, hflip=0.0, **NO_COLOUR_JITTER)
    data, pixels = make_dataset([(160 - visible, 60, 190 - visible, 90)], size=(200, 200))
    _, rows = augment_sample(data, 0, 0, 120, zoomed, read_image=pixels.__getitem__)
    assert len(rows) == count
    assert (rows[:, 3] * 120).tolist() == pytest.approx([visible] * count, abs=1e-4)


@pytest.mark.parametrize("variant", [DARKNET, ULTRALYTICS_9_6], ids=lambda variant: variant.name)
def test_letterbox_sample_matches_detection_input(variant) -> None:
    data, pixels = make_dataset([(10, 20, 50, 70)])
    image, rows = letterbox_sample(data.samples[0], 96, variant, read_image=pixels.__getitem__)
    letterbox = letterbox_for((90, 120), 96, variant)
    assert (image == letterbox.apply_image(pixels[Path("0.png")])).all()
    x, y, width, height = rows[0, 1:] * 96
    boxes = np.array([[x - width / 2, y - height / 2, x + width / 2, y + height / 2]], float)
    np.testing.assert_allclose(letterbox.invert_boxes(boxes), [[10, 20, 50, 70]], atol=1e-4)


def test_unknown_recipe_is_rejected() -> None:
    data, _ = make_dataset([(10, 20, 50, 70)])
    with pytest.raises(UsageError, match="recipe is 'best': expected course or default"):
        augment_sample(data, 0, 0, 64, "best")


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    """EXIF orientation 6: the left edge of the stored image is at the top of the upright image."""
    pixels = np.full((40, 60, 3), 60, np.uint8)
    pixels[:, :20] = COLOURS[1]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=98, exif=exif)
    boxes = np.array([[0.0, 0.0, 40.0, 20.0]])
    data = DetectionDataset((Sample(tmp_path / "a.jpg", boxes, np.array([1]), (60, 40)),), ("a", "b"), ("",))
    no_augmentation = Augmentation(mosaic=0.0, scale=(1.0, 1.0), translate=0.0, hflip=0.0, **NO_COLOUR_JITTER)
    image, rows = augment_sample(data, 0, 0, 60, no_augmentation)
    row, column = locate_class(image, 1)
    assert (row.min(), row.max(), column.min(), column.max()) == (0, 19, 10, 49)
    assert rows[0].tolist() == pytest.approx([1, 0.5, 1 / 6, 4 / 6, 1 / 3])
