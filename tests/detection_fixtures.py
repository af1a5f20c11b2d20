"""Small labelled data sets for tests, written as their formats prescribe, and detections made for them."""

from pathlib import Path

import numpy as np
from PIL import Image

from chromabox.detect.data.dataset import Labelled
from chromabox.detect.evaluation.metrics import Predicted

#: Width and height of the pictures.
SIZE = (100, 50)
#: Classes of made detections.
CLASSES = 3


def draw(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> Path:
    """A picture of random coarse tiles: alike only to one of the same seed."""
    tiles = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tiles).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def yolo_set(folder: Path, labels: dict[str, str], names: tuple[str, ...] | None = ("cat", "dog")) -> Path:
    """images/SPLIT/NAME.png and labels/SPLIT/NAME.txt of each "SPLIT/NAME": its lines, and a data.yaml."""
    for seed, (place, lines) in enumerate(labels.items()):
        draw(folder / "images" / f"{place}.png", seed)
        written = folder / "labels" / f"{place}.txt"
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(lines)
    if names is not None:
        listed = "".join(f'  - "{name}"\n' for name in names)
        (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{listed}")
    return folder


def voc_annotation(*objects: tuple[str, tuple[object, object, object, object]]) -> str:
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


def everything_in(folder: Path) -> dict[Path, bytes]:
    """All files and their bytes, to see that nothing was touched."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def made(seed: int, pictures: int = 12, *, crowds: bool = True) -> tuple[list[Predicted], list[Labelled]]:
    """Pictures with boxes on a coarse grid and detections near them; some scores and overlaps are equal."""
    rng = np.random.default_rng(seed)
    predicted, truth = [], []
    for _ in range(pictures):
        count = int(rng.integers(0, 7))
        corners = rng.integers(0, 12, (count, 2)) * 5.0
        boxes = np.hstack([corners, corners + rng.integers(2, 8, (count, 2)) * 5.0])
        classes = rng.integers(0, CLASSES, count)
        near = boxes[rng.integers(0, count, 2 * count)] if count else boxes
        shift = np.tile(rng.integers(-2, 3, (len(near), 2)) * 2.0, 2)
        kinds = (
            rng.integers(0, CLASSES, len(near)) if rng.random() < 0.3 else classes[rng.integers(0, count, len(near))]
        )
        scores = rng.integers(1, 20, len(near)) / 20
        predicted.append(Predicted(near + shift, scores, kinds.astype(np.int64)))
        marks = rng.random(count) < 0.15 if crowds else np.zeros(count, bool)
        truth.append(Labelled(Path("a.png"), boxes, classes.astype(np.int64), (100, 100), "", marks))
    return predicted, truth
