"""Photographs for training, read from files written here; CIELab by scikit-image, squares found by their own pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab
from skimage.data import astronaut, camera, coffee

from chromabox.colour.data.photos import (
    MAX_SIDE,
    STORED_SIDE,
    _random_crop,
    center_crop,
    load_photos,
    make_photo_batch,
    make_photo_batches,
    num_photo_batches,
)
from chromabox.engine.distributed import DistInfo
from chromabox.errors import UsageError

COFFEE = coffee()


def quiet(line: str) -> None:
    """Says nothing."""


def fill(folder: Path, count: int, *, name: str = "") -> Path:
    """A folder of so many different pieces of a photograph."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(COFFEE[:, 10 * index : 10 * index + 300]).save(folder / f"{name}{index:02d}.png")
    return folder


def numbered(height: int, width: int) -> np.ndarray:
    """A picture whose red and green say the row and the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.zeros_like(rows)], -1).astype(np.uint8)


def test_pictures_are_brought_to_their_small_size(tmp_path: Path) -> None:
    sizes = {"a": (600, 400), "b": (300, 200), "c": (96, 64), "d": (1000, 100), "e": (40, 3000)}
    for name, size in sizes.items():
        Image.fromarray(COFFEE).resize(size).save(tmp_path / f"{name}.png")
    Image.fromarray(COFFEE).save(tmp_path / "val.png")
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    for name in sizes:
        (tmp_path / f"{name}.png").rename(tmp_path / "train" / f"{name}.png")
    (tmp_path / "val.png").rename(tmp_path / "val" / "val.png")
    found = load_photos(tmp_path, quiet)
    shapes = [picture.shape for picture in found.train]
    assert shapes == [(128, 192, 3), (128, 192, 3), (128, 192, 3), (128, 256, 3), (256, 128, 3)]
    assert [picture.shape for picture in found.val] == [(128, 192, 3)]
    assert all(picture.dtype == np.uint8 and picture.flags.c_contiguous for picture in (*found.train, *found.val))
    # The same scene whatever the size it came in: Pillow's own reduction is the witness.
    expected = np.asarray(Image.fromarray(COFFEE).resize((192, 128), Image.Resampling.BOX), np.float32)
    assert np.abs(found.train[0] - expected).mean() < 3


def test_a_strip_gives_its_middle(tmp_path: Path) -> None:
    # A line of pixels, which would be 3,840,000 pixels wide if it were enlarged as a whole.
    strip = np.zeros((1, 30_000, 3), np.uint8)
    strip[:, 15_000:] = (200, 30, 30)
    fill(tmp_path / "val", 1)
    (tmp_path / "train").mkdir()
    Image.fromarray(strip).save(tmp_path / "train" / "strip.png")
    [picture] = load_photos(tmp_path, quiet).train
    assert picture.shape == (STORED_SIDE, MAX_SIDE, 3)
    # Black to the left of the strip's middle, red to the right, and bicubic between.
    assert picture[:, :8].mean() < 30
    assert np.abs(picture[:, -8:].mean((0, 1)) - (200, 30, 30)).max() < 30


def test_every_twentieth_is_kept_to_choose_by(tmp_path: Path) -> None:
    found = load_photos(fill(tmp_path, 29), quiet)
    assert (len(found.train), len(found.val)) == (28, 1)
    again = load_photos(tmp_path, quiet)
    assert all(np.array_equal(one, other) for one, other in zip(found.train, again.train, strict=True))
    both = {picture.tobytes() for picture in (*found.train, *found.val)}
    assert len(both) == 29


def test_what_cannot_be_learnt_from_is_left_out_and_told(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    Image.fromarray(camera()).save(tmp_path / "grey.png")
    Image.fromarray(camera()[..., None].repeat(3, 2)).save(tmp_path / "grey-in-colours.png")
    framed = np.full((128, 256, 3), 90, np.uint8)
    framed[:, :30] = (200, 0, 0)
    Image.fromarray(framed).save(tmp_path / "grey-in-the-middle.png")
    (tmp_path / "damaged.jpg").write_bytes(b"no picture")
    sixteen = (astronaut().astype(np.uint16) * 257)[..., 0]
    Image.fromarray(sixteen).save(tmp_path / "sixteen-bit-grey.png")
    told: list[str] = []
    found = load_photos(tmp_path, told.append)
    assert len(found.train) + len(found.val) == 4
    assert told == [f"{tmp_path}: 5 pictures are left out, being damaged or without colours"]


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (None, "not a folder"),
        ((), "contains no images"),
        (("a",), "holds too few coloured pictures"),
        (("train/a",), "holds too few coloured pictures"),
        (("train/a", "val/grey"), "holds too few coloured pictures"),
    ],
)
def test_folders_that_cannot_be_trained_on_are_refused(
    tmp_path: Path, names: tuple[str, ...] | None, error: str
) -> None:
    folder = tmp_path / "photos"
    if names is not None:
        folder.mkdir()
    for name in names or ():
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(camera() if "grey" in name else COFFEE).save(folder / f"{name}.png")
    with pytest.raises(UsageError, match=error):
        load_photos(folder, quiet)


def test_shown_is_lightness_and_the_mean_chroma_of_each_patch() -> None:
    square = COFFEE[100:292, 200:392]
    lightness, chroma = make_photo_batch([square, square[:, ::-1]], 192, 8)
    lab = rgb2lab(square)
    assert (lightness.shape, chroma.shape) == ((2, 1, 192, 192), (2, 2, 24, 24))
    np.testing.assert_allclose(lightness[0, 0], lab[..., 0] / 100, atol=1e-3)
    means = lab[..., 1:].reshape(24, 8, 24, 8, 2).mean((1, 3))
    np.testing.assert_allclose(chroma[0].permute(1, 2, 0), means, atol=0.02)
    torch.testing.assert_close(chroma[1], chroma[0].flip(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [77, 128, 300])
def test_squares_of_every_side_are_shown_at_one_size(side: int) -> None:
    square = np.asarray(Image.fromarray(COFFEE[:, :400]).resize((side, side)))
    lightness, chroma = make_photo_batch([square], 64, 8)
    assert (lightness.shape, chroma.shape) == ((1, 1, 64, 64), (1, 2, 8, 8))
    lab = rgb2lab(square)
    assert lightness.mean().item() == pytest.approx(lab[..., 0].mean() / 100, abs=0.01)
    np.testing.assert_allclose(chroma[0].mean((1, 2)), lab[..., 1:].mean((0, 1)), atol=1.0)


@pytest.mark.parametrize("shape", [(128, 192), (192, 128), (128, 128), (129, 256)])
def test_the_central_square_is_in_the_middle(shape: tuple[int, int]) -> None:
    square = center_crop(numbered(*shape))
    assert square.shape == (min(shape), min(shape), 3)
    assert square[0, 0, :2].tolist() == [(side - min(shape)) // 2 for side in shape]


def test_squares_lie_inside_and_everywhere_and_half_are_mirrored() -> None:
    draws = np.random.default_rng(0).random((4000, 5)).astype(np.float32)
    draws[0] = np.nextafter(np.float32(1), np.float32(0))  # the largest that can be drawn
    draws[1] = 0
    squares = [_random_crop(numbered(128, 200), draw) for draw in draws]
    sides = np.array([square.shape[0] for square in squares])
    assert all(square.shape == (square.shape[0],) * 2 + (3,) for square in squares)
    assert sides.min() >= round(0.6 * 128)
    assert sides.max() == 128
    # Two in five are whole, of the others about half a side in 51 as well.
    assert np.mean(sides == 128) == pytest.approx(0.4, abs=0.03)
    # Rows go on by one, columns by one forwards or, mirrored, backwards: nothing is stretched or cut twice.
    steps = [int(square[0, 1, 1]) - int(square[0, 0, 1]) for square in squares]
    assert set(steps) == {1, -1}
    assert np.mean(np.array(steps) == -1) == pytest.approx(0.5, abs=0.03)
    lefts = np.array([square[0, :, 1].min() for square in squares])
    rights = np.array([square[0, :, 1].max() for square in squares])
    assert (lefts.min(), rights.max()) == (0, 199)


PIECES = [np.ascontiguousarray(COFFEE[:128, 20 * index : 20 * index + 150]) for index in range(10)]


def batch_list(passed: int = 0, epoch: int = 0, seed: int = 0, **more: object) -> list[torch.Tensor]:
    given = make_photo_batches(PIECES, 2, size=64, stride=8, seed=seed, **more)(epoch, passed)
    return [torch.cat([lightness.flatten(), chroma.flatten()]) for lightness, chroma in given]


def test_an_epoch_can_be_entered_anywhere() -> None:
    whole = batch_list()
    assert len(whole) == num_photo_batches(10, 2) == 5
    rest = batch_list(passed=3)
    assert all(torch.equal(one, other) for one, other in zip(whole[3:], rest, strict=True))
    assert batch_list(passed=5) == []


def test_another_epoch_or_seed_is_another_order() -> None:
    assert not torch.equal(batch_list()[0], batch_list(epoch=1)[0])
    assert not torch.equal(batch_list()[0], batch_list(seed=1)[0])
    assert torch.equal(batch_list(epoch=1, seed=1)[0], batch_list(epoch=1, seed=1)[0])


def test_two_processes_share_what_one_would_see() -> None:
    alone = make_photo_batches(PIECES, 4, size=64, stride=8, seed=0)
    shared = [make_photo_batches(PIECES, 2, size=64, stride=8, seed=0, world=DistInfo(rank, 2)) for rank in (0, 1)]
    batches = list(zip(alone(0, 0), *(part(0, 0) for part in shared), strict=True))
    assert len(batches) == 2
    for (lightness, chroma), *parts in batches:
        for rank, (mine, colours) in enumerate(parts):
            assert torch.equal(lightness[rank::2], mine)
            assert torch.equal(chroma[rank::2], colours)


def test_too_few_pictures_for_a_batch_are_refused() -> None:
    with pytest.raises(UsageError, match="batch size 12 is more than the 10 training pictures"):
        make_photo_batches(PIECES, 12, size=64, stride=8, seed=0)
    with pytest.raises(UsageError, match="batch size 12"):
        num_photo_batches(10, 6, DistInfo(0, 2))
