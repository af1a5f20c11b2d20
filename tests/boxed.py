"""Small labelled data sets for tests, written as their formats prescribe."""

from pathlib import Path

import numpy as np
from PIL import Image

#: Width and height of the pictures.
SIZE = (100, 50)


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
