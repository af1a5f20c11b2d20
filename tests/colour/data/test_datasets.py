"""Data against the assignment's conventions in plain numpy, and labels against scipy's cKDTree."""

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
    AuxiliaryImages,
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


def pictures(count: int, side: int = 8) -> LabelledImages:
    """Random pictures, all different."""
    return encode_images(RNG.integers(0, 256, (count, 3, side, side), dtype=np.uint8), HORSE24)


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (20, 14)) -> Path:
    """A folder of random PNG files of the given width and height."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


def gather(found: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([grey for grey, _ in found]), torch.cat([labels for _, labels in found])


def same(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_grey_is_the_mean_of_rgb_over_256() -> None:
    # Every sum of three bytes occurs. In float64 the mean of RGB/256 is exact up to the division by 3.
    values = np.arange(766)
    rgb = np.stack([np.minimum(values, 255), np.clip(values - 255, 0, 255), np.clip(values - 510, 0, 255)])
    found = encode_images(rgb.astype(np.uint8)[None, :, None], HORSE24).grey[0, 0, 0]
    expected = (rgb / 256).mean(axis=0)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), expected.astype(np.float32))
    assert 0 <= found.min() <= found.max() < 1


def test_labels_are_the_nearest_colours_of_a_k_d_tree() -> None:
    rgb = RNG.integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)
    pixels = rgb.transpose(0, 2, 3, 1).reshape(-1, 3) / 256
    _, expected = cKDTree(HORSE24.colours.astype(np.float64)).query(pixels)
    np.testing.assert_array_equal(encode_images(rgb, HORSE24).labels.numpy().ravel(), expected)


def test_an_epoch_is_the_same_for_the_same_seed_and_number() -> None:
    split = pictures(23)
    first = list(make_batches(split, 4, shuffle=True, hflip=True, seed=1)(2, 0))
    assert same(first, list(make_batches(split, 4, shuffle=True, hflip=True, seed=1)(2, 0)))
    assert not same(first, list(make_batches(split, 4, shuffle=True, hflip=True, seed=1)(3, 0)))
    assert not same(first, list(make_batches(split, 4, shuffle=True, hflip=True, seed=2)(2, 0)))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("passed", range(6))
def test_passing_over_some_batches_gives_the_rest(shuffle: bool, passed: int) -> None:
    epoch = make_batches(pictures(23), 4, shuffle=shuffle, hflip=True, seed=1)
    assert same(list(epoch(7, passed)), list(epoch(7, 0))[passed:])


def test_without_shuffling_the_order_is_that_of_the_files() -> None:
    split = pictures(10)
    found = list(make_batches(split, 4, shuffle=False, hflip=False, seed=9)(3, 0))
    assert [len(labels) for _, labels in found] == [4, 4, 2]
    grey, labels = gather(found)
    assert torch.equal(grey, split.grey)
    assert torch.equal(labels, split.labels)


def test_shuffled_batches_are_full_and_no_picture_comes_twice() -> None:
    split = pictures(23)
    epoch = make_batches(split, 4, shuffle=True, hflip=False, seed=0)
    left_out = set()
    for number in range(8):
        found = list(epoch(number, 0))
        assert [len(labels) for _, labels in found] == [4] * 5
        taken = {labels.numpy().tobytes() for labels in gather(found)[1]}
        every = {labels.numpy().tobytes() for labels in split.labels}
        assert len(taken) == 20
        assert taken < every
        left_out |= every - taken
    assert len(left_out) > 3  # not always the same three


def test_a_mirrored_picture_is_mirrored_in_grey_and_labels_alike() -> None:
    split = pictures(200)
    grey, labels = gather(list(make_batches(split, 50, shuffle=False, hflip=True, seed=0)(0, 0)))
    flipped = 0
    for index in range(200):
        mirrored = torch.equal(labels[index], split.labels[index].flip(-1))
        assert mirrored or torch.equal(labels[index], split.labels[index])
        expected = split.grey[index].flip(-1) if mirrored else split.grey[index]
        assert torch.equal(grey[index], expected)
        flipped += mirrored
    assert 70 < flipped < 130  # of 200 with probability 1/2: four standard deviations


def test_mirroring_leaves_the_split_as_it_is() -> None:
    split = pictures(6)
    before = split.grey_sum.clone(), split.labels.clone()
    gather_batch(split, torch.arange(6), torch.ones(6, dtype=torch.bool))
    assert torch.equal(split.grey_sum, before[0])
    assert torch.equal(split.labels, before[1])


@pytest.mark.parametrize("count", [24, 25, 27, 31])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("size", [2, 3])
def test_processes_together_see_what_one_would_with_their_batches_joined(size: int, shuffle: bool, count: int) -> None:
    split = pictures(count)
    whole = list(make_batches(split, 4 * size, shuffle=shuffle, hflip=True, seed=3)(1, 0))
    shares = [
        list(make_batches(split, 4, shuffle=shuffle, hflip=True, seed=3, world=DistInfo(rank, size))(1, 0))
        for rank in range(size)
    ]
    assert len({len(share) for share in shares}) == 1
    assert num_batches(count, 4, shuffle=shuffle, world=DistInfo(0, size)) == len(shares[0])
    for step, parts in enumerate(zip(*shares, strict=True)):
        assert len({len(labels) for _, labels in parts}) == 1
        assert len(parts[0][1]) > 0
        together = sorted(labels.numpy().tobytes() for labels in gather(list(parts))[1])
        alone = [labels.numpy().tobytes() for labels in whole[step][1]]
        # Of a last batch that cannot be shared out evenly the odd ones are left out.
        assert together == sorted(alone[: len(alone) - len(alone) % size])


@pytest.mark.parametrize(
    ("count", "batch_size", "shuffle", "size", "steps"),
    [
        (5000, 100, False, 1, 50),
        (5000, 32, True, 1, 156),
        (101, 50, False, 1, 3),
        (101, 50, False, 2, 1),  # one picture cannot be shared by two
        (102, 50, False, 2, 2),
        (40, 100, False, 1, 1),
        (40, 20, True, 2, 1),
    ],
)
def test_steps_of_an_epoch(count: int, batch_size: int, shuffle: bool, size: int, steps: int) -> None:
    assert num_batches(count, batch_size, shuffle=shuffle, world=DistInfo(0, size)) == steps


@pytest.mark.parametrize(("count", "shuffle", "size"), [(40, True, 1), (79, True, 2), (1, False, 2), (0, False, 1)])
def test_too_few_pictures_for_a_batch_name_the_option(count: int, shuffle: bool, size: int) -> None:
    with pytest.raises(UsageError, match="--batch-size"):
        num_batches(count, 41, shuffle=shuffle, world=DistInfo(0, size))


@pytest.mark.parametrize(("count", "tests"), [(2, 1), (19, 1), (20, 2), (35, 3)])
def test_every_tenth_picture_of_a_folder_is_a_test_picture(tmp_path: Path, count: int, tests: int) -> None:
    folder = write_pictures(tmp_path, count)
    found = load_colour_dataset(str(folder), HORSE24, size=16)
    assert (len(found.train), len(found.test), found.val) == (count - tests, tests, None)
    assert found.train.rgb.shape == (count - tests, 3, 16, 16)
    train, test = ({picture.tobytes() for picture in split.rgb} for split in (found.train, found.test))
    assert len(train | test) == count
    again = load_colour_dataset(str(folder), HORSE24, size=16)
    np.testing.assert_array_equal(again.test.rgb, found.test.rgb)
    np.testing.assert_array_equal(again.train.rgb, found.train.rgb)


@pytest.mark.parametrize("size", [8, 40])
def test_a_picture_is_cut_to_its_central_square(tmp_path: Path, size: int) -> None:
    # Red outside the middle third: nothing of it may be left.
    for index, shape in enumerate([(30, 90), (90, 30)]):
        pixels = np.zeros((*shape, 3), np.uint8)
        pixels[..., 0] = 255
        middle = pixels[:, 30:60] if shape[1] == 90 else pixels[30:60]
        middle[:] = (0, 0, 200)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    found = load_colour_dataset(str(tmp_path), HORSE24, size=size)
    for split in (found.train, found.test):
        assert split.rgb.shape == (1, 3, size, size)
        assert (split.rgb == np.array([0, 0, 200], np.uint8)[None, :, None, None]).all()


def test_grey_and_sixteen_bit_and_subfolders_are_read(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    Image.fromarray(np.full((9, 9), 77, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((9, 9), 77 * 257, np.uint16)).save(tmp_path / "inner" / "deep.png")
    (tmp_path / "notes.txt").write_text("no picture")
    found = load_colour_dataset(str(tmp_path), HORSE24, size=8)
    assert (found.train.rgb == 77).all()
    assert (found.test.rgb == 77).all()


@pytest.mark.parametrize(("share", "held"), [(0.1, 3), (0.5, 14), (0.001, 1)])
def test_the_last_training_pictures_are_held_out(tmp_path: Path, share: float, held: int) -> None:
    folder = str(write_pictures(tmp_path, 30))
    every = load_colour_dataset(folder, HORSE24)
    found = load_colour_dataset(folder, HORSE24, val_fraction=share)
    assert found.val is not None
    assert (len(found.train), len(found.val), len(found.test)) == (27 - held, held, 3)
    np.testing.assert_array_equal(np.concatenate([found.train.rgb, found.val.rgb]), every.train.rgb)
    assert torch.equal(torch.cat([found.train.labels, found.val.labels]), every.train.labels)


@pytest.mark.parametrize(
    ("spec", "given", "error"),
    [
        ("nowhere", {}, r"data 'nowhere': neither a folder nor a known set"),
        ("cifar100:all", {}, "neither a folder nor a known set"),
        ("cifar10", {}, "cifar10:all, cifar10:CLASS"),
        ("cifar10:unicorn", {}, "no class 'unicorn'"),
        ("cifar10:horse+", {}, "no class ''"),
        ("FOLDER", {"size": 12}, "size is 12: the nets need a multiple of 8"),
        ("FOLDER", {"size": 0}, "size is 0"),
        ("FOLDER", {"val_fraction": -0.1}, r"hold-out is -0.1"),
        ("FOLDER", {"val_fraction": 0.6}, r"hold-out is 0.6"),
        ("FOLDER", {"val_fraction": float("nan")}, "hold-out is nan"),
        ("ONE", {}, "holds 1 picture; training needs at least two"),
        ("NONE", {}, "contains no images"),
        ("TWO", {"val_fraction": 0.5}, "hold-out .* leaves no picture to train on"),
    ],
)
def test_bad_data_is_refused(tmp_path: Path, spec: str, given: dict, error: str) -> None:
    counts = {"FOLDER": 4, "ONE": 1, "NONE": 0, "TWO": 2}
    folder = str(write_pictures(tmp_path / spec, counts[spec])) if spec in counts else spec
    with pytest.raises(UsageError, match=error):
        load_colour_dataset(folder, HORSE24, **given)


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(ChromaboxError, match=r"bad\.jpg"):
        load_colour_dataset(str(tmp_path), HORSE24)


@pytest.mark.parametrize("mirror", ["none", "wrong file", "no such folder"])
def test_auto_takes_our_palette_where_the_assignments_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CHROMABOX_MIRROR", raising=False)
    if mirror != "none":
        monkeypatch.setenv("CHROMABOX_MIRROR", str(tmp_path / "mirror"))
    if mirror == "wrong file":
        (tmp_path / "mirror").mkdir()
        np.save(tmp_path / "mirror" / COURSE_PALETTE.name, np.linspace(0, 1, 72, dtype=np.float32).reshape(24, 3))
    found = resolve_palette("auto", "cifar10:horse")
    assert found.name == "horse24"
    np.testing.assert_array_equal(found.colours, HORSE24.colours)
    assert not list((tmp_path / "cache").glob("*.npy"))
    with pytest.raises(ChromaboxError, match="colour_kmeans24"):
        resolve_palette("course", "cifar10:horse")


def test_auto_takes_what_the_mirror_offers_under_the_pinned_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The assignment's file cannot be shipped with the tests: another file, pinned in its place, goes the same way.
    offered = tmp_path / "mirror"
    offered.mkdir()
    colours = np.linspace(0, 1, 72, dtype=np.float32).reshape(24, 3)
    np.save(offered / COURSE_PALETTE.name, colours)
    content = (offered / COURSE_PALETTE.name).read_bytes()

    pin = data_module.PinnedFile(COURSE_PALETTE.name, hashlib.sha256(content).hexdigest(), len(content))
    monkeypatch.setattr(data_module, "COURSE_PALETTE", pin)
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHROMABOX_MIRROR", str(offered))
    for name in ("auto", "course"):
        found = resolve_palette(name, "cifar10:horse")
        assert found.name == "course"
        np.testing.assert_array_equal(found.colours, colours)
    assert resolve_palette("auto", "cifar10:all").name == "cifar24"
    assert resolve_palette("horse24", "cifar10:horse").name == "horse24"


def test_auto_fits_a_palette_to_a_folders_training_pictures(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "mine", 5)
    found = resolve_palette("auto", str(folder), size=16)
    assert (found.name, len(found)) == ("fitted to mine", 24)
    np.testing.assert_array_equal(found.colours, resolve_palette("auto", str(folder), size=16).colours)


def test_so_many_colours_are_fitted_to_the_training_pictures(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "mine", 5)
    found = resolve_palette("fitted:7", str(folder), size=16)
    assert (found.name, len(found)) == ("7 colours fitted to mine", 7)
    train = load_colour_dataset(str(folder), found, size=16).train
    np.testing.assert_array_equal(found.colours, fit_palette(train.rgb, 7, axis=1).colours)


@pytest.mark.parametrize("count", ["", "1", "257", "-3", "7.5", "many"])
def test_a_palette_cannot_be_fitted_with_such_a_number(tmp_path: Path, count: str) -> None:
    with pytest.raises(UsageError, match=f"palette fitted:{count}: a palette has 2 to 256 colours"):
        resolve_palette(f"fitted:{count}", str(tmp_path))


def test_a_palette_fitted_to_pictures_and_folders_finds_their_colours(tmp_path: Path) -> None:
    colours = np.array([[10, 20, 30], [200, 180, 20], [90, 240, 90]], np.uint8)
    Image.fromarray(np.repeat(colours[:2, None], 4, axis=1)).save(tmp_path / "two.png")
    (tmp_path / "folder").mkdir()
    Image.fromarray(np.full((5, 5, 3), colours[2], np.uint8)).save(tmp_path / "folder" / "third.png")
    found, distance = fit_palette_to_images(
        [str(tmp_path / "two.png"), str(tmp_path / "folder")], 3, seed=0, name="three"
    )
    assert sorted(map(tuple, found.rgb.tolist())) == sorted(map(tuple, colours.tolist()))
    assert distance == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("colours", [-1, 0, 1, 257])
def test_a_palette_of_too_few_or_too_many_colours_is_refused(tmp_path: Path, colours: int) -> None:
    with pytest.raises(UsageError, match=f"colours is {colours}: a palette has 2 to 256"):
        fit_palette_to_images([str(write_pictures(tmp_path, 1))], colours, seed=0, name="x")


@pytest.mark.parametrize("world_size", [1, 2])
def test_companions_take_their_share_of_every_batch(world_size: int) -> None:
    own, others = pictures(20), pictures(50)
    guests = AuxiliaryImages(others, fraction=0.75)
    # Told apart by what only one side has: labels 0 for the own pictures, 1 for the companions.
    own = replace(own, labels=torch.zeros_like(own.labels))
    guests = replace(guests, images=replace(others, labels=torch.ones_like(others.labels)))
    shares = []
    for rank in range(world_size):
        take = make_batches(
            own, 4, shuffle=True, hflip=True, seed=3, auxiliary=guests, world=DistInfo(rank, world_size)
        )
        shares.append(list(take(0, 0)))
        assert same(shares[-1], list(take(0, 0)))
        assert not same(shares[-1], list(take(1, 0)))
    steps = 20 // (4 * world_size)
    for step in range(steps):
        labels = torch.cat([share[step][1] for share in shares])[:, 0, 0]
        assert len(labels) == 4 * world_size
        assert labels.sum() == 3 * world_size


@pytest.mark.parametrize(
    ("spec", "left"),
    [("cifar10:all", 0), ("cifar10:horse", 9), ("cifar10:cat+dog", 8), ("photos", 0)],
)
def test_companions_are_the_classes_left_out(spec: str, left: int) -> None:
    classes = data_module._remaining_classes(spec)
    assert len(classes) == left
    assert not set(classes) & set(spec.partition(":")[2].split("+"))
