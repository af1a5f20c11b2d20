"""Tests of photograph datasets.

Expected CIELAB comes from scikit-image; crops are identified by the coordinates in their pixels.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab
from skimage.data import astronaut, camera, coffee

from chromabox.colour.data.datasets import center_crop, num_batches
from chromabox.colour.data.photos import (
    MAX_SIDE,
    STORED_SIDE,
    _random_crop,
    load_photos,
    make_photo_batch,
    make_photo_batches,
)
from chromabox.engine.distributed import DistInfo
from chromabox.errors import ChromaboxError, UsageError

COFFEE = coffee()


def write_crops(folder: Path, count: int, *, name: str = "") -> Path:
    """Write `count` different crops of a photograph to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(COFFEE[:, 10 * index : 10 * index + 300]).save(folder / f"{name}{index:02d}.png")
    return folder


def coordinate_image(height: int, width: int) -> np.ndarray:
    """Return an image whose red and green values are the row and the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.zeros_like(rows)], -1).astype(np.uint8)


def test_images_are_resized_when_read(tmp_path: Path) -> None:
    sizes = {"a": (600, 400), "b": (300, 200), "c": (96, 64), "d": (1000, 100), "e": (40, 3000)}
    for name, size in sizes.items():
        Image.fromarray(COFFEE).resize(size).save(tmp_path / f"{name}.png")
    Image.fromarray(COFFEE).save(tmp_path / "val.png")
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    for name in sizes:
        (tmp_path / f"{name}.png").rename(tmp_path / "train" / f"{name}.png")
    (tmp_path / "val.png").rename(tmp_path / "val" / "val.png")
    dataset = load_photos(tmp_path)
    shapes = [image.shape for image in dataset.train]
    assert shapes == [(128, 192, 3), (128, 192, 3), (128, 192, 3), (128, 256, 3), (256, 128, 3)]
    assert [image.shape for image in dataset.val] == [(128, 192, 3)]
    assert all(image.dtype == np.uint8 and image.flags.c_contiguous for image in (*dataset.train, *dataset.val))
    # The scene is the same for any input size; the expected values are from Pillow's box filter.
    expected = np.asarray(Image.fromarray(COFFEE).resize((192, 128), Image.Resampling.BOX), np.float32)
    assert np.abs(dataset.train[0] - expected).mean() < 3


def test_strip_is_cropped_to_its_centre(tmp_path: Path) -> None:
    # A one-pixel-high strip, which would be 3,840,000 pixels wide if it were upsampled before cropping.
    strip = np.zeros((1, 30_000, 3), np.uint8)
    strip[:, 15_000:] = (200, 30, 30)
    write_crops(tmp_path / "val", 1)
    (tmp_path / "train").mkdir()
    Image.fromarray(strip).save(tmp_path / "train" / "strip.png")
    [image] = load_photos(tmp_path).train
    assert image.shape == (STORED_SIDE, MAX_SIDE, 3)
    # Black left of the strip's centre, red right of it, bicubic interpolation between.
    assert image[:, :8].mean() < 30
    assert np.abs(image[:, -8:].mean((0, 1)) - (200, 30, 30)).max() < 30


def test_every_twentieth_image_is_in_the_validation_split(tmp_path: Path) -> None:
    dataset = load_photos(write_crops(tmp_path, 29))
    assert (len(dataset.train), len(dataset.val)) == (28, 1)
    repeated = load_photos(tmp_path)
    assert all(np.array_equal(one, other) for one, other in zip(dataset.train, repeated.train, strict=True))
    distinct = {image.tobytes() for image in (*dataset.train, *dataset.val)}
    assert len(distinct) == 29


def test_corrupt_and_grey_images_are_omitted_and_logged(tmp_path: Path, messages: list[str]) -> None:
    write_crops(tmp_path, 4)
    Image.fromarray(camera()).save(tmp_path / "grey.png")
    Image.fromarray(camera()[..., None].repeat(3, 2)).save(tmp_path / "grey-in-colours.png")
    framed = np.full((128, 256, 3), 90, np.uint8)
    framed[:, :30] = (200, 0, 0)
    Image.fromarray(framed).save(tmp_path / "grey-in-the-middle.png")
    (tmp_path / "damaged.jpg").write_bytes(b"no image")
    sixteen = (astronaut().astype(np.uint16) * 257)[..., 0]
    Image.fromarray(sixteen).save(tmp_path / "sixteen-bit-grey.png")
    messages.clear()
    dataset = load_photos(tmp_path)
    assert len(dataset.train) + len(dataset.val) == 4
    omitted = "damaged.jpg, grey-in-colours.png, grey-in-the-middle.png, grey.png, sixteen-bit-grey.png"
    reason = "omitted images that are corrupt or have no colours"
    assert messages == [f"{tmp_path}: {reason} (5): {omitted}"]
    (tmp_path / "inner").mkdir()
    for name in ("late.jpg", "later.jpg"):
        (tmp_path / "inner" / name).write_bytes(b"no image")
    messages.clear()
    load_photos(tmp_path)
    first = "damaged.jpg, grey-in-colours.png, grey-in-the-middle.png, grey.png, inner/late.jpg"
    assert messages == [f"{tmp_path}: {reason} (7): {first} and 2 more"]


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (None, "not a folder"),
        ((), "contains no images"),
        (("a",), "has too few colour images"),
        (("train/a",), "has too few colour images"),
        (("train/a", "val/grey"), "has too few colour images"),
    ],
)
def test_folder_without_enough_colour_images_is_rejected(
    tmp_path: Path, names: tuple[str, ...] | None, error: str
) -> None:
    folder = tmp_path / "photos"
    if names is not None:
        folder.mkdir()
    for name in names or ():
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(camera() if "grey" in name else COFFEE).save(folder / f"{name}.png")
    with pytest.raises(ChromaboxError, match=error) as caught:
        load_photos(folder)
    assert isinstance(caught.value, UsageError) is (error != "contains no images")


def test_photo_batch_has_lightness_and_the_mean_chroma_of_each_patch() -> None:
    crop = COFFEE[100:292, 200:392]
    lightness, chroma = make_photo_batch([crop, crop[:, ::-1]], 192)
    lab = rgb2lab(crop)
    assert (lightness.shape, chroma.shape) == ((2, 1, 192, 192), (2, 2, 24, 24))
    np.testing.assert_allclose(lightness[0, 0], lab[..., 0] / 100, atol=1e-3)
    means = lab[..., 1:].reshape(24, 8, 24, 8, 2).mean((1, 3))
    np.testing.assert_allclose(chroma[0].permute(1, 2, 0), means, atol=0.02)
    torch.testing.assert_close(chroma[1], chroma[0].flip(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [77, 128, 300])
def test_photo_batch_resizes_crops_of_any_size(side: int) -> None:
    crop = np.asarray(Image.fromarray(COFFEE[:, :400]).resize((side, side)))
    lightness, chroma = make_photo_batch([crop], 64)
    assert (lightness.shape, chroma.shape) == ((1, 1, 64, 64), (1, 2, 8, 8))
    lab = rgb2lab(crop)
    assert lightness.mean().item() == pytest.approx(lab[..., 0].mean() / 100, abs=0.01)
    np.testing.assert_allclose(chroma[0].mean((1, 2)), lab[..., 1:].mean((0, 1)), atol=1.0)


@pytest.mark.parametrize("shape", [(128, 192), (192, 128), (128, 128), (129, 256)])
def test_center_crop_is_centred(shape: tuple[int, int]) -> None:
    crop = center_crop(coordinate_image(*shape))
    assert crop.shape == (min(shape), min(shape), 3)
    assert crop[0, 0, :2].tolist() == [(side - min(shape)) // 2 for side in shape]


def test_random_crops_cover_the_image_and_half_are_flipped() -> None:
    uniforms = np.random.default_rng(0).random((4000, 5)).astype(np.float32)
    uniforms[0] = np.nextafter(np.float32(1), np.float32(0))  # the largest possible value
    uniforms[1] = 0
    crops = [_random_crop(coordinate_image(128, 200), numbers) for numbers in uniforms]
    sides = np.array([crop.shape[0] for crop in crops])
    assert all(crop.shape == (crop.shape[0],) * 2 + (3,) for crop in crops)
    assert sides.min() >= round(0.6 * 128)
    assert sides.max() == 128
    # Two in five crops have the full side, and of the others about one in 102 by rounding.
    assert np.mean(sides == 128) == pytest.approx(0.4, abs=0.03)
    # Columns increase by one or, if flipped, decrease by one: the crops are not resampled.
    steps = [int(crop[0, 1, 1]) - int(crop[0, 0, 1]) for crop in crops]
    assert set(steps) == {1, -1}
    assert np.mean(np.array(steps) == -1) == pytest.approx(0.5, abs=0.03)
    lefts = np.array([crop[0, :, 1].min() for crop in crops])
    rights = np.array([crop[0, :, 1].max() for crop in crops])
    assert (lefts.min(), rights.max()) == (0, 199)


PHOTOS = [np.ascontiguousarray(COFFEE[:128, 20 * index : 20 * index + 150]) for index in range(10)]


def batch_list(first_batch: int = 0, epoch: int = 0, seed: int = 0) -> list[torch.Tensor]:
    batches = make_photo_batches(PHOTOS, 2, 64, seed, DistInfo())(epoch, first_batch)
    return [torch.cat([lightness.flatten(), chroma.flatten()]) for lightness, chroma in batches]


def test_epoch_can_be_resumed_at_any_batch() -> None:
    complete = batch_list()
    assert len(complete) == num_batches(10, 2) == 5
    remaining = batch_list(first_batch=3)
    assert all(torch.equal(one, other) for one, other in zip(complete[3:], remaining, strict=True))
    assert batch_list(first_batch=5) == []


def test_order_depends_on_epoch_and_seed() -> None:
    assert not torch.equal(batch_list()[0], batch_list(epoch=1)[0])
    assert not torch.equal(batch_list()[0], batch_list(seed=1)[0])
    assert torch.equal(batch_list(epoch=1, seed=1)[0], batch_list(epoch=1, seed=1)[0])


def test_two_processes_split_the_batches_of_one() -> None:
    single = make_photo_batches(PHOTOS, 4, 64, 0, DistInfo())
    shared = [make_photo_batches(PHOTOS, 2, 64, 0, DistInfo(rank, 2)) for rank in (0, 1)]
    batches = list(zip(single(0, 0), *(part(0, 0) for part in shared), strict=True))
    assert len(batches) == 2
    for (lightness, chroma), *parts in batches:
        for rank, (rank_lightness, rank_chroma) in enumerate(parts):
            assert torch.equal(lightness[rank::2], rank_lightness)
            assert torch.equal(chroma[rank::2], rank_chroma)


def test_too_few_images_for_a_batch_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"--batch-size: 12 \(all processes together\); expected at most 10"):
        make_photo_batches(PHOTOS, 12, 64, 0, DistInfo())
    with pytest.raises(UsageError, match="--batch-size: 12"):
        num_batches(10, 6, dist_info=DistInfo(0, 2))
