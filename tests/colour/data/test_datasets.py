"""Tests of datasets; expected values follow the assignment's conventions in NumPy, expected labels SciPy's cKDTree."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial import cKDTree

from chromabox.colour.data import datasets as data_module
from chromabox.colour.data.datasets import (
    COURSE_PALETTE,
    LabelledImages,
    encode_images,
    fit_palette_to_images,
    gather_batch,
    load_colour_dataset,
    make_batches,
    num_batches,
    resolve_palette,
)
from chromabox.colour.palette.io import load_palette
from chromabox.colour.palette.palette import fit_palette
from chromabox.engine.distributed import DistInfo
from chromabox.errors import ChromaboxError, UsageError

HORSE24 = load_palette("horse24")
RNG = np.random.default_rng(5)


def random_images(count: int, side: int = 8) -> LabelledImages:
    """Return random images, all different."""
    return encode_images(RNG.integers(0, 256, (count, 3, side, side), dtype=np.uint8), HORSE24)


def write_images(folder: Path, count: int, size: tuple[int, int] = (20, 14)) -> Path:
    """Write random PNG files of the given width and height to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


def concatenate(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([grey for grey, _ in batches]), torch.cat([labels for _, labels in batches])


def equal(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_grey_is_the_mean_of_rgb_over_256() -> None:
    # Every sum of three bytes occurs. In float64 the mean of RGB/256 is exact up to the division by 3.
    values = np.arange(766)
    rgb = np.stack([np.minimum(values, 255), np.clip(values - 255, 0, 255), np.clip(values - 510, 0, 255)])
    grey = encode_images(rgb.astype(np.uint8)[None, :, None], HORSE24).grey[0, 0, 0]
    expected = (rgb / 256).mean(axis=0)
    assert grey.dtype == torch.float32
    np.testing.assert_array_equal(grey.numpy(), expected.astype(np.float32))
    assert 0 <= grey.min() <= grey.max() < 1


def test_labels_match_scipy_tree() -> None:
    rgb = RNG.integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)
    pixels = rgb.transpose(0, 2, 3, 1).reshape(-1, 3) / 256
    _, expected = cKDTree(HORSE24.colours.astype(np.float64)).query(pixels)
    np.testing.assert_array_equal(encode_images(rgb, HORSE24).labels.numpy().ravel(), expected)


def test_epoch_depends_only_on_seed_and_number() -> None:
    split = random_images(23)
    first = list(make_batches(split, 4, shuffle=True, hflip=True, seed=1)(2, 0))
    assert equal(first, list(make_batches(split, 4, shuffle=True, hflip=True, seed=1)(2, 0)))
    assert not equal(first, list(make_batches(split, 4, shuffle=True, hflip=True, seed=1)(3, 0)))
    assert not equal(first, list(make_batches(split, 4, shuffle=True, hflip=True, seed=2)(2, 0)))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("first_batch", range(6))
def test_epoch_from_a_later_batch_gives_the_remaining_batches(shuffle: bool, first_batch: int) -> None:
    epoch = make_batches(random_images(23), 4, shuffle=shuffle, hflip=True, seed=1)
    assert equal(list(epoch(7, first_batch)), list(epoch(7, 0))[first_batch:])


def test_without_shuffling_images_keep_their_order() -> None:
    split = random_images(10)
    batches = list(make_batches(split, 4, shuffle=False, hflip=False, seed=9)(3, 0))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    grey, labels = concatenate(batches)
    assert torch.equal(grey, split.grey)
    assert torch.equal(labels, split.labels)


def test_shuffled_batches_are_full_and_without_repetition() -> None:
    split = random_images(23)
    epoch = make_batches(split, 4, shuffle=True, hflip=False, seed=0)
    omitted = set()
    for number in range(8):
        batches = list(epoch(number, 0))
        assert [len(labels) for _, labels in batches] == [4] * 5
        used = {labels.numpy().tobytes() for labels in concatenate(batches)[1]}
        all_images = {labels.numpy().tobytes() for labels in split.labels}
        assert len(used) == 20
        assert used < all_images
        omitted |= all_images - used
    assert len(omitted) > 3  # the three omitted images differ between epochs


def test_hflip_is_applied_to_grey_and_labels() -> None:
    split = random_images(200)
    grey, labels = concatenate(list(make_batches(split, 50, shuffle=False, hflip=True, seed=0)(0, 0)))
    num_flipped = 0
    for index in range(200):
        is_flipped = torch.equal(labels[index], split.labels[index].flip(-1))
        assert is_flipped or torch.equal(labels[index], split.labels[index])
        expected = split.grey[index].flip(-1) if is_flipped else split.grey[index]
        assert torch.equal(grey[index], expected)
        num_flipped += is_flipped
    assert 70 < num_flipped < 130  # of 200 with probability 1/2: four standard deviations


def test_hflip_does_not_modify_the_split() -> None:
    split = random_images(6)
    before = split.grey_sum.clone(), split.labels.clone()
    gather_batch(split, torch.arange(6), torch.ones(6, dtype=torch.bool))
    assert torch.equal(split.grey_sum, before[0])
    assert torch.equal(split.labels, before[1])


@pytest.mark.parametrize("count", [24, 25, 27, 31])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("size", [2, 3])
def test_processes_together_get_the_batches_of_one_process(size: int, shuffle: bool, count: int) -> None:
    split = random_images(count)
    reference = list(make_batches(split, 4 * size, shuffle=shuffle, hflip=True, seed=3)(1, 0))
    parts_by_rank = [
        list(make_batches(split, 4, shuffle=shuffle, hflip=True, seed=3, dist_info=DistInfo(rank, size))(1, 0))
        for rank in range(size)
    ]
    assert len({len(part) for part in parts_by_rank}) == 1
    assert num_batches(count, 4, shuffle=shuffle, dist_info=DistInfo(0, size)) == len(parts_by_rank[0])
    for step, parts in enumerate(zip(*parts_by_rank, strict=True)):
        assert len({len(labels) for _, labels in parts}) == 1
        assert len(parts[0][1]) > 0
        combined = sorted(labels.numpy().tobytes() for labels in concatenate(list(parts))[1])
        expected = [labels.numpy().tobytes() for labels in reference[step][1]]
        # The images of the last batch that cannot be split evenly are omitted.
        assert combined == sorted(expected[: len(expected) - len(expected) % size])


@pytest.mark.parametrize(
    ("count", "batch_size", "shuffle", "size", "steps"),
    [
        (5000, 100, False, 1, 50),
        (5000, 32, True, 1, 156),
        (101, 50, False, 1, 3),
        (101, 50, False, 2, 1),  # one image cannot be split over two processes
        (102, 50, False, 2, 2),
        (40, 100, False, 1, 1),
        (40, 20, True, 2, 1),
    ],
)
def test_num_batches(count: int, batch_size: int, shuffle: bool, size: int, steps: int) -> None:
    assert num_batches(count, batch_size, shuffle=shuffle, dist_info=DistInfo(0, size)) == steps


@pytest.mark.parametrize(("count", "shuffle", "size"), [(40, True, 1), (79, True, 2), (1, False, 2), (0, False, 1)])
def test_too_few_images_for_a_batch_are_rejected(count: int, shuffle: bool, size: int) -> None:
    with pytest.raises(UsageError, match="--batch-size"):
        num_batches(count, 41, shuffle=shuffle, dist_info=DistInfo(0, size))


@pytest.mark.parametrize(("count", "num_test"), [(2, 1), (19, 1), (20, 2), (35, 3)])
def test_every_tenth_image_of_a_folder_is_in_the_test_split(tmp_path: Path, count: int, num_test: int) -> None:
    folder = write_images(tmp_path, count)
    result = load_colour_dataset(str(folder), HORSE24, size=16)
    assert (len(result.train), len(result.test), result.val) == (count - num_test, num_test, None)
    assert result.train.rgb.shape == (count - num_test, 3, 16, 16)
    train, test = ({image.tobytes() for image in split.rgb} for split in (result.train, result.test))
    assert len(train | test) == count
    repeated = load_colour_dataset(str(folder), HORSE24, size=16)
    np.testing.assert_array_equal(repeated.test.rgb, result.test.rgb)
    np.testing.assert_array_equal(repeated.train.rgb, result.train.rgb)


@pytest.mark.parametrize("size", [8, 40])
def test_image_is_cropped_to_its_central_square(tmp_path: Path, size: int) -> None:
    # The image is red outside the middle third; no red may be left.
    for index, shape in enumerate([(30, 90), (90, 30)]):
        pixels = np.zeros((*shape, 3), np.uint8)
        pixels[..., 0] = 255
        middle = pixels[:, 30:60] if shape[1] == 90 else pixels[30:60]
        middle[:] = (0, 0, 200)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    result = load_colour_dataset(str(tmp_path), HORSE24, size=size)
    for split in (result.train, result.test):
        assert split.rgb.shape == (1, 3, size, size)
        assert (split.rgb == np.array([0, 0, 200], np.uint8)[None, :, None, None]).all()


def test_grey_and_16_bit_images_and_subfolders_are_read(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    Image.fromarray(np.full((9, 9), 77, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((9, 9), 77 * 257, np.uint16)).save(tmp_path / "inner" / "deep.png")
    (tmp_path / "notes.txt").write_text("no image")
    result = load_colour_dataset(str(tmp_path), HORSE24, size=8)
    assert (result.train.rgb == 77).all()
    assert (result.test.rgb == 77).all()


@pytest.mark.parametrize(("fraction", "num_val"), [(0.1, 3), (0.5, 14), (0.001, 1)])
def test_last_training_images_are_the_validation_split(tmp_path: Path, fraction: float, num_val: int) -> None:
    folder = str(write_images(tmp_path, 30))
    all_images = load_colour_dataset(folder, HORSE24)
    result = load_colour_dataset(folder, HORSE24, val_fraction=fraction)
    assert result.val is not None
    assert (len(result.train), len(result.val), len(result.test)) == (27 - num_val, num_val, 3)
    np.testing.assert_array_equal(np.concatenate([result.train.rgb, result.val.rgb]), all_images.train.rgb)
    assert torch.equal(torch.cat([result.train.labels, result.val.labels]), all_images.train.labels)


@pytest.mark.parametrize(
    ("spec", "options", "error"),
    [
        ("nowhere", {}, r"--data 'nowhere': unknown dataset"),
        ("cifar100:all", {}, "unknown dataset"),
        ("cifar10", {}, "cifar10:all, cifar10:CLASS"),
        ("cifar10:unicorn", {}, "no class 'unicorn'"),
        ("cifar10:horse+", {}, "no class ''"),
        ("FOLDER", {"size": 12}, "--size is 12: expected a multiple of 8"),
        ("FOLDER", {"size": 0}, "--size is 0"),
        ("FOLDER", {"val_fraction": -0.1}, r"--val-fraction is -0.1"),
        ("FOLDER", {"val_fraction": 0.6}, r"--val-fraction is 0.6"),
        ("FOLDER", {"val_fraction": float("nan")}, "--val-fraction is nan"),
        ("ONE", {}, "contains only one image; expected at least two"),
        ("NONE", {}, "contains no images"),
        ("TWO", {"val_fraction": 0.5}, r"--val-fraction is 0\.5: .* has too few images"),
    ],
)
def test_invalid_dataset_is_rejected(tmp_path: Path, spec: str, options: dict, error: str) -> None:
    counts = {"FOLDER": 4, "ONE": 1, "NONE": 0, "TWO": 2}
    folder = str(write_images(tmp_path / spec, counts[spec])) if spec in counts else spec
    with pytest.raises(ChromaboxError, match=error) as caught:
        load_colour_dataset(folder, HORSE24, **options)
    assert isinstance(caught.value, UsageError) is (error != "contains no images")


def test_corrupt_image_is_named_in_the_error(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(ChromaboxError, match=r"bad\.jpg"):
        load_colour_dataset(str(tmp_path), HORSE24)


@pytest.mark.parametrize("mirror", ["none", "wrong file", "no such folder"])
def test_auto_palette_is_horse24_if_the_course_palette_is_not_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CHROMABOX_MIRROR", raising=False)
    if mirror != "none":
        monkeypatch.setenv("CHROMABOX_MIRROR", str(tmp_path / "mirror"))
    if mirror == "wrong file":
        (tmp_path / "mirror").mkdir()
        np.save(tmp_path / "mirror" / COURSE_PALETTE.name, np.linspace(0, 1, 72, dtype=np.float32).reshape(24, 3))
    result = resolve_palette("auto", "cifar10:horse")
    assert result.name == "horse24"
    np.testing.assert_array_equal(result.colours, HORSE24.colours)
    assert not list((tmp_path / "cache").glob("*.npy"))
    with pytest.raises(ChromaboxError, match="colour_kmeans24"):
        resolve_palette("course", "cifar10:horse")


def test_auto_palette_is_the_course_palette_if_the_mirror_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The assignment's file is not part of the tests: another file is pinned in its place.
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    colours = np.linspace(0, 1, 72, dtype=np.float32).reshape(24, 3)
    np.save(mirror / COURSE_PALETTE.name, colours)
    content = (mirror / COURSE_PALETTE.name).read_bytes()

    pin = data_module.PinnedFile(COURSE_PALETTE.name, hashlib.sha256(content).hexdigest(), len(content))
    monkeypatch.setattr(data_module, "COURSE_PALETTE", pin)
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHROMABOX_MIRROR", str(mirror))
    for name in ("auto", "course"):
        result = resolve_palette(name, "cifar10:horse")
        assert result.name == "course"
        np.testing.assert_array_equal(result.colours, colours)
    assert resolve_palette("auto", "cifar10:all").name == "cifar24"
    assert resolve_palette("horse24", "cifar10:horse").name == "horse24"


def test_auto_palette_of_a_folder_is_fitted_to_its_training_images(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "mine", 5)
    result = resolve_palette("auto", str(folder), size=16)
    assert (result.name, len(result)) == ("fitted to mine", 24)
    np.testing.assert_array_equal(result.colours, resolve_palette("auto", str(folder), size=16).colours)


def test_fitted_palette_has_the_given_number_of_colours(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "mine", 5)
    result = resolve_palette("fitted:7", str(folder), size=16)
    assert (result.name, len(result)) == ("7 colours fitted to mine", 7)
    train = load_colour_dataset(str(folder), result, size=16).train
    np.testing.assert_array_equal(result.colours, fit_palette(train.rgb, 7, axis=1).colours)


@pytest.mark.parametrize("count", ["", "1", "257", "-3", "7.5", "many"])
def test_invalid_number_of_fitted_colours_is_rejected(tmp_path: Path, count: str) -> None:
    with pytest.raises(UsageError, match=f"--palette fitted:{count}: expected 2 to 256 colours"):
        resolve_palette(f"fitted:{count}", str(tmp_path))


def test_palette_fitted_to_images_and_folders_has_their_colours(tmp_path: Path) -> None:
    colours = np.array([[10, 20, 30], [200, 180, 20], [90, 240, 90]], np.uint8)
    Image.fromarray(np.repeat(colours[:2, None], 4, axis=1)).save(tmp_path / "two.png")
    (tmp_path / "folder").mkdir()
    Image.fromarray(np.full((5, 5, 3), colours[2], np.uint8)).save(tmp_path / "folder" / "third.png")
    result, distance = fit_palette_to_images(
        [str(tmp_path / "two.png"), str(tmp_path / "folder")], 3, seed=0, name="three"
    )
    assert sorted(map(tuple, result.rgb.tolist())) == sorted(map(tuple, colours.tolist()))
    assert distance == pytest.approx(0, abs=1e-6)


def test_palette_is_fitted_to_the_intact_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ChromaboxError, match=r"bad\.png is not an image"):
        fit_palette_to_images([str(tmp_path)], 5, seed=0, name="x")
    write_images(tmp_path, 1)
    caplog.clear()
    assert len(fit_palette_to_images([str(tmp_path)], 5, seed=0, name="x")[0]) == 5
    assert [record.message.partition("bad.png")[1] for record in caplog.records] == ["bad.png"]


def test_fit_palette_without_images_is_rejected() -> None:
    with pytest.raises(UsageError, match="no images given"):
        fit_palette_to_images([], 5, seed=0, name="x")


@pytest.mark.parametrize("colours", [-1, 0, 1, 257])
def test_fit_palette_with_invalid_number_of_colours_is_rejected(tmp_path: Path, colours: int) -> None:
    with pytest.raises(UsageError, match=f"--colours is {colours}: expected 2 to 256"):
        fit_palette_to_images([str(write_images(tmp_path, 1))], colours, seed=0, name="x")


@pytest.mark.parametrize("world_size", [1, 2])
def test_auxiliary_images_have_their_fraction_of_every_batch(world_size: int) -> None:
    images, others = random_images(20), random_images(50)
    # Labels distinguish the two: 0 for the images, 1 for the auxiliary images.
    images = replace(images, labels=torch.zeros_like(images.labels))
    others = replace(others, labels=torch.ones_like(others.labels))
    settings = {"shuffle": True, "hflip": True, "seed": 3, "auxiliary": others, "auxiliary_fraction": 0.75}
    parts_by_rank = []
    for rank in range(world_size):
        epoch = make_batches(images, 4, **settings, dist_info=DistInfo(rank, world_size))
        parts_by_rank.append(list(epoch(0, 0)))
        assert equal(parts_by_rank[-1], list(epoch(0, 0)))
        assert not equal(parts_by_rank[-1], list(epoch(1, 0)))
    steps = 20 // (4 * world_size)
    for step in range(steps):
        labels = torch.cat([part[step][1] for part in parts_by_rank])[:, 0, 0]
        assert len(labels) == 4 * world_size
        assert labels.sum() == 3 * world_size


@pytest.mark.parametrize(
    ("spec", "num_classes"),
    [("cifar10:all", 0), ("cifar10:horse", 9), ("cifar10:cat+dog", 8), ("photos", 0)],
)
def test_remaining_classes_are_those_not_in_the_dataset(spec: str, num_classes: int) -> None:
    classes = data_module._remaining_classes(spec)
    assert len(classes) == num_classes
    assert not set(classes) & set(spec.partition(":")[2].split("+"))
