"""Where datasets come from: .zip files, CVAT's and Darknet's .data files, paths of Windows, links, other image formats.

The images and the boxes, computed by hand, are those of ``check_pets``.
"""

import contextlib
import io
import json
import os
import shutil
import stat
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from chromabox.detect.data.dataset import NOTES, DetectionDataset
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.validate import validate_dataset
from chromabox.errors import ChromaboxError, UsageError
from detection_fixtures import make_image, make_yolo_dataset, read_all_files

#: Images of 100 × 50: train/a has a cat at (10, 5)–(30, 25), and val/b has a dog at (25, 12.5)–(75, 37.5).
LINES = {"train/a": "0 0.2 0.3 0.2 0.4\n", "val/b": "1 0.5 0.5 0.5 0.5\n"}


def check_pets(data: DetectionDataset) -> None:
    assert data.issues == ()
    assert (data.classes, data.splits) == (("cat", "dog"), ("train", "val"))
    found = [(sample.split, sample.path.stem, sample.class_ids.tolist()) for sample in data.samples]
    assert found == [("train", "a", [0]), ("val", "b", [1])]
    np.testing.assert_allclose(
        np.concatenate([sample.boxes for sample in data.samples]), [(10, 5, 30, 25), (25, 12.5, 75, 37.5)]
    )


def make_zip(path: Path, folder: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "datasets"


@pytest.mark.parametrize("prefix", ["", "pets/", "test/"])
def test_zip_file_is_unpacked_once_and_not_changed(
    prefix: str, tmp_path: Path, cache: Path, messages: list[str]
) -> None:
    path = make_zip(tmp_path / "pets.zip", make_yolo_dataset(tmp_path / "in", LINES), prefix)
    before = path.read_bytes()
    if prefix == "test/":  # The folder denotes a split. Without the description, all images are test images.
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("__MACOSX/test/._a.png", b"\0")
        assert load_detection_dataset(path).splits == ("test",)
    else:
        check_pets(load_detection_dataset(path))
    (folder,) = cache.iterdir()
    assert folder.name.startswith("pets-")
    assert messages == [f"{path}: unpacked into {folder}"]
    files = read_all_files(cache)
    load_detection_dataset(path)
    assert (read_all_files(cache), len(messages)) == (files, 1)
    assert prefix == "test/" or path.read_bytes() == before


def test_zip_file_written_by_windows_has_backslashes(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path / "in", LINES)
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for file, content in read_all_files(folder).items():
            info = zipfile.ZipInfo()
            info.filename = str(file.relative_to(folder)).replace("/", "\\")
            archive.writestr(info, content)
    check_pets(load_detection_dataset(tmp_path / "pets.zip"))
    assert validate_dataset(tmp_path / "pets.zip").issues == ()


LINK = stat.S_IFLNK << 16
#: Members of an archive (name, content, attributes) and the error.
UNSAFE = {
    "parent": ("../evil.txt", b"x", 0, r"'../evil.txt' is outside its folder"),
    "parent inside": ("images/../../evil.txt", b"x", 0, "is outside its folder"),
    "parent of windows": (r"images\..\..\evil.txt", b"x", 0, "is outside its folder"),
    "absolute": ("/tmp/evil.txt", b"x", 0, "is outside its folder"),
    "drive": (r"C:\evil.txt", b"x", 0, "is outside its folder"),
    "link": ("images", b"/etc", LINK, "is a symbolic link"),
    "twice": ("data.yaml", b"x", 0, r"contains 'data.yaml' twice"),
    "file as folder": ("data.yaml/a.txt", b"x", 0, "cannot be written|cannot be unpacked"),
    "bomb": ("zeros.txt", b"\0" * (1 << 25), 0, r"would be unpacked to 33,55\d,\d+ bytes in 6 files; expected at most"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", UNSAFE)
def test_unsafe_zip_file_is_rejected_and_nothing_is_left(case: str, tmp_path: Path, cache: Path) -> None:
    name, content, attributes, message = UNSAFE[case]
    path = make_zip(tmp_path / "pets.zip", make_yolo_dataset(tmp_path / "in", LINES))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo()
        info.filename, info.external_attr, info.compress_type = name, attributes, zipfile.ZIP_DEFLATED
        archive.writestr(info, content)
    files = set(tmp_path.rglob("*"))
    with pytest.raises(ChromaboxError, match=rf"pets\.zip.*({message})|({message})") as error:
        load_detection_dataset(path)
    assert "\n" not in str(error.value)
    assert {file for file in tmp_path.rglob("*") if file.is_file()} <= files
    assert not list(cache.glob("*"))


def test_damaged_zip_files_give_only_our_own_errors(tmp_path: Path, cache: Path) -> None:
    content = make_zip(tmp_path / "in.zip", make_yolo_dataset(tmp_path / "in", LINES)).read_bytes()
    random = np.random.default_rng(0)
    for index in range(70):
        data = bytearray(content[: random.integers(len(content))] if index % 5 == 0 else content)
        for position in random.integers(0, max(len(data), 1), random.integers(1, 12)):
            data[position : position + 1] = random.bytes(1)
        if index % 7 == 0:  # The method of compression of the first file: bzip2, LZMA, or unknown.
            position = content.index(b"PK\1\2") + 10
            data[position : position + 2] = struct.pack("<H", (12, 14, 99)[index % 3])
        path = tmp_path / f"{index}.zip"
        path.write_bytes(data)
        with contextlib.suppress(ChromaboxError):
            load_detection_dataset(path)
        path.unlink()
        shutil.rmtree(cache, ignore_errors=True)
    (tmp_path / "set.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(UsageError, match=r"set\.tar\.gz: unsupported file; expected a folder, a \.zip, a \.yaml"):
        load_detection_dataset(tmp_path / "set.tar.gz")


def make_cvat_dataset(folder: Path) -> Path:
    """Write the layout in CVAT's documentation of the format YOLO 1.1, in which all paths begin with data/."""
    for seed, (key, line) in enumerate(LINES.items()):
        split, name = key.split("/")
        subset = "train" if split == "train" else "valid"
        image = make_image(folder / f"obj_{subset}_data" / f"{name}.png", seed)
        image.with_suffix(".txt").write_text(line)
        (folder / f"{subset}.txt").write_text(f"data/obj_{subset}_data/{name}.png\n")
    (folder / "obj.names").write_text("cat\ndog\n")
    (folder / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    return folder


def test_darknet_data_file_of_cvat(tmp_path: Path, messages: list[str]) -> None:
    folder = make_cvat_dataset(tmp_path / "cvat")
    check_pets(load_detection_dataset(folder / "obj.data"))
    assert f"{folder / 'train.txt'}: data does not exist; {folder} is used instead" in messages
    assert len([line for line in messages if line.startswith(f"{folder / 'train.txt'}:")]) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes = 2\n", r"obj\.data: does not describe a dataset; expected train: or val:"),
        ("train = nowhere/list.txt\n", r"obj\.data: train: nowhere/list\.txt does not exist"),
        ("train = train.txt\nnames = other.names\n", r"obj\.data: names: other\.names does not exist"),
        (
            "train = train.txt\nnames = obj.names\nclasses = 3\n",
            r"classes is 3, but .*contains 2 class names",
        ),
    ],
)
def test_wrong_darknet_data_file_is_rejected(text: str, message: str, tmp_path: Path) -> None:
    (make_cvat_dataset(tmp_path) / "obj.data").write_text(text)
    with pytest.raises(ChromaboxError, match=message):
        load_detection_dataset(tmp_path / "obj.data")


#: Descriptions written on other machines, and the folder that does not exist.
MOVED = {
    "windows": ("path: C:\\Users\\me\\pets\ntrain: images\\train\nval: images\\val", "C:/Users/me/pets"),
    "windows list": ("train: train.txt\nval: images\\val", "C:/pets"),
    "absolute": ("train: /home/me/pets/images/train\nval: /home/me/pets/images/val", "/home/me/pets"),
    "colab": ("path: /content/pets\ntrain: images/train\nval: images/val", "/content/pets"),
    "prefix": ("train: pets/images/train/\nval: pets/images/val/", "pets"),
}


@pytest.mark.parametrize("case", MOVED)
def test_paths_of_windows_and_of_other_places_are_found_with_a_message(
    case: str, tmp_path: Path, messages: list[str]
) -> None:
    text, missing = MOVED[case]
    folder = make_yolo_dataset(tmp_path / "here", LINES)
    (folder / "train.txt").write_text("C:\\pets\\images\\train\\a.png\r\n")
    (folder / "data.yaml").write_text(f"{text}\nnames: [cat, dog]")
    check_pets(load_detection_dataset(folder))
    assert messages
    assert all(line.endswith(f"{missing} does not exist; {folder} is used instead") for line in messages)


def test_folder_with_the_same_last_name_is_not_used(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, LINES)
    (folder / "data.yaml").write_text("train: images/train\nval: other/images\nnames: [cat, dog]")
    with pytest.raises(ChromaboxError, match="val: other/images does not exist"):
        load_detection_dataset(folder)


@pytest.mark.parametrize("place", ["annotations", "Annotations", "labels", ""])
@pytest.mark.parametrize(
    "name", ["images/train/a.png", "a.png", "images\\train\\a.png", "C:\\pets\\images\\train\\a.png"]
)
def test_coco_file_by_itself(place: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_image(tmp_path / "images" / "train" / "a.png")
    (tmp_path / place).mkdir(exist_ok=True)
    annotation = {"id": 1, "image_id": 7, "category_id": 0, "bbox": [10, 5, 20, 20]}
    path = tmp_path / place / "instances_train.json"
    images = [{"id": 7, "file_name": name}]
    path.write_text(
        json.dumps({"images": images, "annotations": [annotation], "categories": [{"id": 0, "name": "cat"}]})
    )
    monkeypatch.chdir(path.parent)
    for source in (path, Path(path.name)):
        data = load_detection_dataset(source)
        assert (data.issues, data.splits, len(data.samples)) == ((), ("train",), 1)
        assert data.samples[0].boxes.tolist() == [[10, 5, 30, 25]]


@pytest.mark.skipif(sys.platform == "win32", reason="links need privileges")
@pytest.mark.parametrize("linked", ["images", "images/train", "images/train/a.png", "labels", "."])
def test_links_to_files_and_folders_are_followed(linked: str, tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path / "set", LINES)
    if linked == ".":
        folder = tmp_path / "link"
        folder.symlink_to(tmp_path / "set")
    else:
        shutil.move(folder / linked, tmp_path / "elsewhere")
        (folder / linked).symlink_to(tmp_path / "elsewhere")
    check_pets(load_detection_dataset(folder))
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("cat\ndog\n")
    check_pets(load_detection_dataset(folder))


@pytest.mark.skipif(sys.platform == "win32", reason="links need privileges")
def test_circular_and_broken_links_are_not_followed(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path / "set", LINES, names=None)
    (folder / "classes.txt").write_text("cat\ndog\n")
    for name, target in (("images/up", ".."), ("self", "self"), ("gone", "nowhere"), ("images/val/x", str(tmp_path))):
        (folder / name).symlink_to(target)
    check_pets(load_detection_dataset(folder))


def encode(image: Image.Image, image_format: str) -> bytes:
    content = io.BytesIO()
    image.save(content, image_format)
    return content.getvalue()


@pytest.mark.parametrize("suffix", [".avif", ".jp2", ".jfif", ".webp", ".TIFF", ".heic"])
def test_images_in_other_formats_are_read(suffix: str, tmp_path: Path) -> None:
    image_format = {".jp2": "JPEG2000", ".jfif": "JPEG", ".heic": "HEIF"}.get(suffix, suffix[1:].upper())
    if suffix == ".avif" and not features.check_module("avif"):
        pytest.skip("Pillow was built without AVIF")
    if suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    folder = make_yolo_dataset(tmp_path, LINES)
    for path in list((folder / "images").rglob("*.png")):
        path.with_suffix(suffix).write_bytes(encode(Image.open(path), image_format))
        path.unlink()
    report = validate_dataset(folder)
    check_pets(report.data)
    assert report.issues == ()


def test_heic_images_are_named_if_they_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # Importing it would raise an error.
    monkeypatch.setattr("chromabox.io.kinds.find_spec", lambda name: None)
    folder = make_yolo_dataset(tmp_path, LINES)
    # The first bytes of a HEIC file (ISO/IEC 23008-12).
    (folder / "images" / "train" / "a.png").rename(folder / "images" / "train" / "c.png")
    (folder / "images" / "train" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (issue,) = (issue for issue in load_detection_dataset(folder).issues if issue.issue_type not in NOTES)
    assert (issue.path.name, issue.dropped) == ("a.heic", True)
    assert "reading a HEIC image requires pillow-heif; install it with pip install 'chromabox[heic]'" in issue.message


def test_file_names_in_a_list_keep_their_exact_path(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, {"train/a": LINES["train/a"], "val/a": LINES["val/b"]})
    (folder / "train.txt").write_text("images/train/a.png\nsomewhere/a.png\n")
    (folder / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [cat, dog]")
    data = load_detection_dataset(folder)
    assert [sample.path.relative_to(folder).as_posix() for sample in data.samples] == [
        "images/train/a.png",
        "images/val/a.png",
    ]
    assert [(issue.issue_type, os.fspath(issue.path)) for issue in data.issues] == [
        ("missing picture", str(folder / "somewhere" / "a.png"))
    ]
