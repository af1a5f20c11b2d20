"""Tests of photograph datasets.

Expected CIELAB comes from scikit-image; crops are identified by the coordinates in their pixels.
"""

import io
import tarfile
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


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    """Write a tar file with the given contents."""
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def encode(pixels: np.ndarray, image_format: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, image_format)
    return data.getvalue()


def test_images_are_shrunk_but_not_enlarged_when_read(tmp_path: Path) -> None:
    sizes = {"a": (600, 400), "b": (300, 200), "c": (96, 64), "d": (3000, 300), "e": (40, 3000)}
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    for name, size in sizes.items():
        Image.fromarray(COFFEE).resize(size).save(tmp_path / "train" / f"{name}.png")
    Image.fromarray(COFFEE).save(tmp_path / "val" / "val.png")
    dataset = load_photos(tmp_path)
    shapes = [image.shape for image in dataset.train]
    assert shapes == [(256, 384, 3), (200, 300, 3), (64, 96, 3), (256, 512, 3), (512, 40, 3)]
    assert [image.shape for image in dataset.val] == [(256, 384, 3)]
    assert all(image.dtype == np.uint8 for image in (*dataset.train, *dataset.val))
    # The expected values are from Pillow's box filter; the stored image is a JPEG of high quality.
    expected = np.asarray(Image.fromarray(COFFEE).resize((384, 256), Image.Resampling.BOX), np.float32)
    assert np.abs(dataset.train[0] - expected).mean() < 3


def test_strip_is_cropped_to_its_centre(tmp_path: Path) -> None:
    strip = np.zeros((4, 30_000, 3), np.uint8)
    strip[:, 15_000:] = (200, 30, 30)
    write_crops(tmp_path / "val", 1)
    (tmp_path / "train").mkdir()
    Image.fromarray(strip).save(tmp_path / "train" / "strip.png")
    [image] = load_photos(tmp_path).train
    assert image.shape == (4, MAX_SIDE, 3)
    # Black left of the strip's centre, red right of it.
    assert image[:, :8].mean() < 30
    assert np.abs(image[:, -8:].mean((0, 1)) - (200, 30, 30)).max() < 30


def test_shards_contain_both_splits(tmp_path: Path) -> None:
    squares = [COFFEE[:200, 10 * index : 10 * index + 250] for index in range(5)]
    files = {f"train/{index}.png": encode(square) for index, square in enumerate(squares[:4])}
    write_shard(tmp_path / "t1-000.tar", {**files, "train/readme.txt": b"text"})
    write_shard(tmp_path / "val-000.tar", {"val/4.png": encode(squares[4])})
    dataset = load_photos(tmp_path)
    assert (len(dataset.train), len(dataset.val)) == (4, 1)
    for photo, square in zip((*dataset.train, *dataset.val), squares, strict=True):
        np.testing.assert_array_equal(photo, square)
    np.testing.assert_array_equal(dataset.train[1:3][1], squares[2])


def test_shard_without_splits_is_split(tmp_path: Path) -> None:
    files = {f"{index}.jpg": encode(COFFEE[:100, index : index + 120], "JPEG") for index in range(21)}
    write_shard(tmp_path / "photos.tar", files)
    for source in (tmp_path, tmp_path / "photos.tar"):
        dataset = load_photos(source)
        assert (len(dataset.train), len(dataset.val)) == (20, 1)


def test_damaged_images_in_shards_are_replaced_by_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    squares = [COFFEE[:64, 40 * index : 40 * index + 64] for index in range(2)]
    files = {"train/a.png": encode(squares[0]), "train/b.jpg": b"no image", "train/c.png": encode(squares[1])}
    write_shard(tmp_path / "photos.tar", {**files, "train/d.png": encode(squares[0])[:200], "val/e.jpg": b"no image"})
    photos = load_photos(tmp_path / "photos.tar")
    for index, square in zip((0, 1, 2, 3, 1), (0, 1, 1, 0, 1), strict=True):
        np.testing.assert_array_equal(photos.train[index], squares[square])
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        f"{tmp_path}/photos.tar: the image train/{name} is damaged" for name in ("b.jpg", "d.png")
    ]
    with pytest.raises(ChromaboxError, match=r"photos\.tar: the image val/e\.jpg is damaged .*, and so are all others"):
        photos.val[0]
    with pytest.raises(IndexError):
        photos.train[4]


def test_damaged_shards_are_rejected(tmp_path: Path) -> None:
    shard = tmp_path / "photos.tar"
    shard.write_bytes(b"no tar file" * 100)
    with pytest.raises(ChromaboxError, match=r"photos\.tar: not an uncompressed tar file, or damaged"):
        load_photos(shard)
    write_shard(shard, {"train/readme.txt": b"text"})
    with pytest.raises(UsageError, match="has too few colour images"):
        load_photos(shard)


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
    assert (lightness.shape, chroma.shape) == ((2, 1, 192, 192), (2, 2, 48, 48))
    np.testing.assert_allclose(lightness[0, 0], lab[..., 0] / 100, atol=1e-3)
    means = lab[..., 1:].reshape(48, 4, 48, 4, 2).mean((1, 3))
    # RGB values are averaged two by two before the conversion to CIELAB.
    difference = np.abs(chroma[0].permute(1, 2, 0).numpy() - means)
    assert difference.mean() < 0.3
    assert difference.max() < 5
    torch.testing.assert_close(chroma[1], chroma[0].flip(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [77, 128, 300])
def test_photo_batch_resizes_crops_of_any_size(side: int) -> None:
    crop = np.asarray(Image.fromarray(COFFEE[:, :400]).resize((side, side)))
    lightness, chroma = make_photo_batch([crop], 64)
    assert (lightness.shape, chroma.shape) == ((1, 1, 64, 64), (1, 2, 16, 16))
    lab = rgb2lab(crop)
    assert lightness.mean().item() == pytest.approx(lab[..., 0].mean() / 100, abs=0.01)
    np.testing.assert_allclose(chroma[0].mean((1, 2)), lab[..., 1:].mean((0, 1)), atol=1.0)


@pytest.mark.parametrize("shape", [(128, 192), (192, 128), (128, 128), (129, 256)])
def test_center_crop_is_centred(shape: tuple[int, int]) -> None:
    crop = center_crop(coordinate_image(*shape))
    assert crop.shape == (min(shape), min(shape), 3)
    assert crop[0, 0, :2].tolist() == [(side - min(shape)) // 2 for side in shape]


def test_random_crops_cover_the_image_and_half_are_flipped() -> None:
    rng = np.random.default_rng(0)
    crops = [_random_crop(coordinate_image(128, 200), rng) for _ in range(4000)]
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
    batches = make_photo_batches(PHOTOS, 2, (64, 96), seed, DistInfo(), degraded_fraction=0.5)(epoch, first_batch)
    return [torch.cat([lightness.flatten(), chroma.flatten()]) for lightness, chroma in batches]


def test_epoch_can_be_resumed_at_any_batch() -> None:
    complete = batch_list()
    assert len(complete) == num_batches(10, 2) == 5
    remaining = batch_list(first_batch=3)
    assert all(torch.equal(one, other) for one, other in zip(complete[3:], remaining, strict=True))
    assert batch_list(first_batch=5) == []


def test_order_depends_on_epoch_and_seed() -> None:
    first, *others = (batch_list(**change)[0] for change in ({}, {"epoch": 1}, {"seed": 1}))
    assert all(first.shape != other.shape or not torch.equal(first, other) for other in others)
    assert torch.equal(batch_list(epoch=1, seed=1)[0], batch_list(epoch=1, seed=1)[0])


def test_sides_are_random_multiples_of_32() -> None:
    batches = make_photo_batches(PHOTOS * 20, 2, (64, 128), 0, DistInfo())(0, 0)
    sides = [lightness.shape[-1] for lightness, _ in batches]
    assert set(sides) == {64, 96, 128}


def test_only_inputs_are_degraded() -> None:
    plain, degraded = (
        list(make_photo_batches(PHOTOS, 5, (64, 64), 0, DistInfo(), degraded_fraction=fraction)(0, 0))
        for fraction in (0.0, 1.0)
    )
    for (lightness, chroma), (degraded_lightness, degraded_chroma) in zip(plain, degraded, strict=True):
        assert torch.equal(chroma, degraded_chroma)
        assert not torch.equal(lightness, degraded_lightness)
        assert degraded_lightness.min() >= 0
        assert degraded_lightness.max() <= 1


def test_batches_do_not_change_the_global_random_state() -> None:
    before = torch.get_rng_state()
    batch_list()
    assert torch.equal(torch.get_rng_state(), before)


def test_two_processes_split_the_batches_of_one() -> None:
    single = make_photo_batches(PHOTOS, 4, (64, 96), 0, DistInfo())
    shared = [make_photo_batches(PHOTOS, 2, (64, 96), 0, DistInfo(rank, 2)) for rank in (0, 1)]
    batches = list(zip(single(0, 0), *(part(0, 0) for part in shared), strict=True))
    assert len(batches) == 2
    for (lightness, chroma), *parts in batches:
        for rank, (rank_lightness, rank_chroma) in enumerate(parts):
            assert torch.equal(lightness[rank::2], rank_lightness)
            assert torch.equal(chroma[rank::2], rank_chroma)


def test_too_few_images_for_a_batch_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"--batch-size: 12 \(all processes together\); expected at most 10"):
        make_photo_batches(PHOTOS, 12, (64, 64), 0, DistInfo())
    with pytest.raises(UsageError, match="--batch-size: 12"):
        num_batches(10, 6, dist_info=DistInfo(0, 2))
