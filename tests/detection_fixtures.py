"""Small labelled data sets for tests, written as their formats prescribe, and detections made for them."""

from pathlib import Path

import numpy as np
from PIL import Image

from chromabox.detect.data.dataset import Sample
from chromabox.detect.evaluation.metrics import ImagePredictions

#: Width and height of the pictures.
IMAGE_SIZE = (100, 50)
#: Classes of made detections.
NUM_CLASSES = 3


def make_image(path: Path, seed: int = 0, size: tuple[int, int] = IMAGE_SIZE) -> Path:
    """A picture of random coarse tiles: alike only to one of the same seed."""
    tiles = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tiles).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def make_yolo_dataset(
    folder: Path, labels_by_image: dict[str, str], names: tuple[str, ...] | None = ("cat", "dog")
) -> Path:
    """images/SPLIT/NAME.png and labels/SPLIT/NAME.txt of each "SPLIT/NAME": its lines, and a data.yaml."""
    for seed, (place, lines) in enumerate(labels_by_image.items()):
        make_image(folder / "images" / f"{place}.png", seed)
        written = folder / "labels" / f"{place}.txt"
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(lines)
    if names is not None:
        listed = "".join(f'  - "{name}"\n' for name in names)
        (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{listed}")
    return folder


def make_voc_xml(*objects: tuple[str, tuple[object, object, object, object]]) -> str:
    """A Pascal VOC annotation of named corners."""
    parts = ["<annotation>", "<filename>a.png</filename>"]
    for name, (left, top, right, bottom) in objects:
        parts += [
            "<object>",
            f"<name>{name}</name>",
            f"<bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>",
            "</object>",
        ]
    return "\n".join([*parts, "</annotation>"])


def read_all_files(folder: Path) -> dict[Path, bytes]:
    """All files and their bytes, to see that nothing was touched."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_predictions(
    seed: int, num_images: int = 12, *, with_crowds: bool = True
) -> tuple[list[ImagePredictions], list[Sample]]:
    """Pictures with boxes on a coarse grid and detections near them; some scores and overlaps are equal."""
    rng = np.random.default_rng(seed)
    predicted, truth = [], []
    for _ in range(num_images):
        count = int(rng.integers(0, 7))
        corners = rng.integers(0, 12, (count, 2)) * 5.0
        boxes = np.hstack([corners, corners + rng.integers(2, 8, (count, 2)) * 5.0])
        classes = rng.integers(0, NUM_CLASSES, count)
        near = boxes[rng.integers(0, count, 2 * count)] if count else boxes
        shift = np.tile(rng.integers(-2, 3, (len(near), 2)) * 2.0, 2)
        kinds = (
            rng.integers(0, NUM_CLASSES, len(near))
            if rng.random() < 0.3
            else classes[rng.integers(0, count, len(near))]
        )
        scores = rng.integers(1, 20, len(near)) / 20
        predicted.append(ImagePredictions(near + shift, scores, kinds.astype(np.int64)))
        marks = rng.random(count) < 0.15 if with_crowds else np.zeros(count, bool)
        truth.append(Sample(Path("a.png"), boxes, classes.astype(np.int64), (100, 100), "", marks))
    return predicted, truth
