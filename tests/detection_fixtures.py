"""Small labelled datasets for tests in the supported formats, and random detections."""

from pathlib import Path

import numpy as np
from PIL import Image

from chromabox.detect.data.dataset import Sample
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
