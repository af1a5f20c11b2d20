"""Small labelled datasets for tests in the supported formats, and random detections."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from chromabox.detect.data.dataset import DetectionDataset, Sample
from chromabox.detect.evaluation.metrics import ImagePredictions

#: Width and height of the images.
IMAGE_SIZE = (100, 50)
#: Number of classes of the random detections.
NUM_CLASSES = 3


def make_image(path: Path, seed: int = 0, size: tuple[int, int] = IMAGE_SIZE) -> Path:
    """Write an image of random coarse tiles, which is similar only to an image of the same seed."""
    tiles = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tiles).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def make_yolo_dataset(
    folder: Path, labels_by_image: dict[str, str], names: tuple[str, ...] | None = ("cat", "dog")
) -> Path:
    """Write images/SPLIT/NAME.png, labels/SPLIT/NAME.txt for each key "SPLIT/NAME", and data.yaml with ``names``."""
    for seed, (name, lines) in enumerate(labels_by_image.items()):
        make_image(folder / "images" / f"{name}.png", seed)
        label_path = folder / "labels" / f"{name}.txt"
        label_path.parent.mkdir(parents=True, exist_ok=True)
        label_path.write_text(lines)
    if names is not None:
        lines = "".join(f'  - "{name}"\n' for name in names)
        (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{lines}")
    return folder


def make_voc_xml(*objects: tuple[str, tuple[object, object, object, object]]) -> str:
    """Return a Pascal VOC annotation with objects of a name and the corners left, top, right and bottom."""
    lines = ["<annotation>", "<folder>images</folder>"]
    for name, (left, top, right, bottom) in objects:
        lines += [
            "<object>",
            f"<name>{name}</name>",
            f"<bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>",
            "</object>",
        ]
    return "\n".join([*lines, "</annotation>"])


def read_all_files(folder: Path) -> dict[Path, bytes]:
    """Return the bytes of all files in a folder, to test that nothing was modified."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_predictions(
    seed: int, num_images: int = 12, *, with_crowds: bool = True
) -> tuple[list[ImagePredictions], list[Sample]]:
    """Return detections and ground truth of images with boxes on a coarse grid; some scores and overlaps are equal."""
    rng = np.random.default_rng(seed)
    predictions, samples = [], []
    for _ in range(num_images):
        count = int(rng.integers(0, 7))
        corners = rng.integers(0, 12, (count, 2)) * 5.0
        boxes = np.hstack([corners, corners + rng.integers(2, 8, (count, 2)) * 5.0])
        classes = rng.integers(0, NUM_CLASSES, count)
        nearby = boxes[rng.integers(0, count, 2 * count)] if count else boxes
        shift = np.tile(rng.integers(-2, 3, (len(nearby), 2)) * 2.0, 2)
        predicted_classes = (
            rng.integers(0, NUM_CLASSES, len(nearby))
            if rng.random() < 0.3
            else classes[rng.integers(0, count, len(nearby))]
        )
        scores = rng.integers(1, 20, len(nearby)) / 20
        predictions.append(ImagePredictions(nearby + shift, scores, predicted_classes.astype(np.int64)))
        is_crowd = rng.random(count) < 0.15 if with_crowds else np.zeros(count, bool)
        samples.append(Sample(Path("a.png"), boxes, classes.astype(np.int64), (100, 100), "", is_crowd))
    return predictions, samples


@dataclass(frozen=True)
class LabelledImage:
    """Image to be written in any format. ``objects`` are class names with left, top, right and bottom in pixels."""

    name: str
    split: str
    size: tuple[int, int]
    objects: tuple[tuple[str, tuple[float, float, float, float]], ...]


def write_dataset(folder: Path, dataset_format: str, images: Sequence[LabelledImage], classes: Sequence[str]) -> None:
    """Write images and labels as the definitions of the formats state, independently of the package.

    Category ids and image ids of COCO have gaps. VOC counts pixels from 1 and includes the corners.
    """
    image_folder = {"yolo": "images/{}", "coco": "{}", "voc": "JPEGImages"}[dataset_format]
    paths = [folder / image_folder.format(image.split) / f"{image.name}.png" for image in images]
    for seed, (path, image) in enumerate(zip(paths, images, strict=True)):
        make_image(path, seed, image.size)
    splits = list(dict.fromkeys(image.split for image in images))
    if dataset_format == "yolo":
        for image in images:
            label_path = folder / "labels" / image.split / f"{image.name}.txt"
            label_path.parent.mkdir(parents=True, exist_ok=True)
            label_path.write_text("".join(_yolo_line(classes.index(name), box, image) for name, box in image.objects))
        description = {**{split: f"images/{split}" for split in splits}, "names": list(classes)}
        if any(splits):
            (folder / "data.yaml").write_text(json.dumps(description))
        else:
            (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    elif dataset_format == "coco":
        (folder / "annotations").mkdir(parents=True)
        for split in splits:
            content = _coco_content([image for image in images if image.split == split], classes)
            (folder / "annotations" / f"instances_{split or 'all'}.json").write_text(json.dumps(content))
    else:
        for name in ("Annotations", *(["ImageSets/Main"] if any(splits) else [])):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for image in images:
            shifted = [(escape(name), (box[0] + 1, box[1] + 1, *box[2:])) for name, box in image.objects]
            xml = make_voc_xml(*shifted).replace("a.png", escape(f"{image.name}.png"))
            (folder / "Annotations" / f"{image.name}.xml").write_text(xml, encoding="utf-8")
        for split in filter(None, splits):
            names = "".join(f"{image.name}\n" for image in images if image.split == split)
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(names)


def _yolo_line(class_id: int, box: tuple[float, float, float, float], image: LabelledImage) -> str:
    (left, top, right, bottom), (width, height) = box, image.size
    values = (left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height
    return " ".join(map(repr, (class_id, *values))) + "\n"


def _coco_content(images: Sequence[LabelledImage], classes: Sequence[str]) -> dict[str, object]:
    rows = [(10 * index + 3, name, box) for index, image in enumerate(images) for name, box in image.objects]
    return {
        "images": [
            {"id": 10 * index + 3, "file_name": f"{image.name}.png", "width": image.size[0], "height": image.size[1]}
            for index, image in enumerate(images)
        ],
        "annotations": [
            {"id": number, "image_id": image_id, "category_id": 7 * classes.index(name) + 2, "bbox": _coco_box(box)}
            for number, (image_id, name, box) in enumerate(rows, 1)
        ],
        "categories": [{"id": 7 * index + 2, "name": name} for index, name in enumerate(classes)],
    }


def _coco_box(box: tuple[float, float, float, float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def assert_dataset(data: DetectionDataset, images: Sequence[LabelledImage], tolerance: float = 0.01) -> None:
    """Check the images, sizes, splits, class names and boxes of a dataset, whose boxes are in the same order."""
    samples = {(sample.path.stem, sample.split): sample for sample in data.samples}
    assert len(samples) == len(data.samples)
    assert samples.keys() == {(image.name, image.split) for image in images}
    for image in images:
        sample = samples[image.name, image.split]
        assert sample.size == image.size[::-1]
        names = [data.classes[class_id] for class_id in sample.class_ids.tolist()]
        assert names == [name for name, _ in image.objects]
        expected = np.reshape([box for _, box in image.objects], (-1, 4))
        np.testing.assert_allclose(sample.boxes, expected, atol=tolerance, rtol=0)
