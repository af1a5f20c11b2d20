"""Quality on photographs no net was trained on: how near to the original, how colourful, and whether size matters.

    python benchmarks/photographs.py [--net RUN] [--pictures FOLDER] [-o benchmarks/results/photographs.json]

Coloured are the photographs that scikit-image ships and those of a folder, each from its lightness alone, in the
styles natural and vivid. "Cut" is the part of grey's mean CIEDE2000 that colour takes away, "share" the colourfulness
(Hasler and Süsstrunk 2003) as a part of the original's.

Size independence: the same photograph brought to a long side of 200 and of 6000 pixels (Lanczos), both coloured, the
large one brought down to the small one's size (Lanczos), mean CIEDE2000 between the two. The bar is 3.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from chromabox.colour.evaluation.image_scores import ImageScores, score_image
from chromabox.colour.evaluation.metrics import delta_e
from chromabox.colour.inference.predict import STYLES, ColouriseOptions, ColourModel, StyleName, colourise_image
from chromabox.colour.weights.checkpoint import load_model
from chromabox.io.images import ImageData, find_images, read_image, to_uint8
from machine import describe, write_results

SHIPPED_PICTURES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
SIDES = (200, 6000)
BAR = 3.0
#: What is told of each picture: the column's heading, the score's name, the factor.
COLUMNS = {
    "grey dB": ("grey_psnr", 1.0),
    "dB": ("psnr", 1.0),
    "gain dB": ("psnr_gain", 1.0),
    "grey ΔE": ("grey_delta_e", 1.0),
    "ΔE": ("delta_e", 1.0),
    "cut %": ("delta_e_reduction", 1.0),
    "share %": ("colourfulness_ratio", 100.0),
}


def photographs(folder: Path | None) -> dict[str, np.ndarray]:
    """Name and 8-bit pixels of every photograph: scikit-image's that its wheel holds, then the folder's."""
    shipped = [Path(skimage.data.__file__).parent / name for name in SHIPPED_PICTURES]
    paths = [path for path in shipped if path.is_file()]
    if folder is not None:
        paths += [path for path, _ in find_images([folder])]
    return {path.stem: to_uint8(read_image(path).pixels) for path in paths}


def coloured(pixels: np.ndarray, trained: ColourModel, style: StyleName) -> np.ndarray:
    """The picture in the net's colours."""
    return colourise_image(ImageData(pixels), trained, ColouriseOptions(style=style)).pixels


def with_long_side(pixels: np.ndarray, side: int) -> np.ndarray:
    """The picture resampled (Lanczos) to that long side."""
    scale = side / max(pixels.shape)
    height, width = (max(1, round(length * scale)) for length in pixels.shape[:2])
    return resampled(pixels, height, width)


def resampled(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def distance_of_sizes(pixels: np.ndarray, trained: ColourModel, style: StyleName) -> float:
    """Mean CIEDE2000 between the small version's colours and the large version's, at the small size."""
    small, large = (coloured(with_long_side(pixels, side), trained, style) for side in SIDES)
    return delta_e(small, resampled(large, *small.shape[:2]))


def row_of(score: ImageScores, sizes: float) -> dict[str, float | None]:
    """The columns' values and the distance of the sizes."""
    values = {heading: getattr(score, name) for heading, (name, _) in COLUMNS.items()}
    scaled = {key: value if value is None else value * COLUMNS[key][1] for key, value in values.items()}
    return {**scaled, "sizes ΔE": sizes}


def mean_of(rows: dict[str, dict[str, float | None]]) -> dict[str, float | None]:
    """The mean of every column over the pictures that have a value."""
    found = {key: [row[key] for row in rows.values() if row[key] is not None] for key in next(iter(rows.values()))}
    return {key: statistics.fmean(values) if values else None for key, values in found.items()}


def show(name: str, row: dict[str, float | None]) -> None:
    numbers = "".join(f"{'' if value is None else f'{value:.2f}':>9}" for value in row.values())
    print(f"{name:<18}{numbers}", flush=True)


def measure(pictures: dict[str, np.ndarray], trained: ColourModel, style: StyleName) -> dict[str, object]:
    """All pictures in one style: a row each, printed as it is done, and the mean."""
    print(f"\n{style:<18}" + "".join(f"{heading:>9}" for heading in (*COLUMNS, "sizes ΔE")))
    rows = {}
    for name, pixels in pictures.items():
        score = score_image(pixels, coloured(pixels, trained, style))
        rows[name] = row_of(score, distance_of_sizes(pixels, trained, style))
        show(name, rows[name])
    mean = mean_of(rows)
    show("mean", mean)
    worst = max(rows, key=lambda name: rows[name]["sizes ΔE"] or 0.0)
    kept = (rows[worst]["sizes ΔE"] or 0.0) <= BAR
    print(f"size independence: at most {BAR:g} wanted; {'kept' if kept else 'MISSED'} by the worst, {worst}")
    return {"pictures": rows, "mean": mean, "size_bar_kept_by_all": kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", type=Path, help="run folder or checkpoint; the shipped net if left out")
    parser.add_argument("--pictures", type=Path, help="folder of more photographs")
    parser.add_argument("-o", "--output", type=Path, help="write the results there, as JSON")
    options = parser.parse_args()
    trained, pictures = load_model(options.net), photographs(options.pictures)
    styles = {style: measure(pictures, trained, style) for style in STYLES}
    if options.output:
        results = {"styles": styles, "sides": SIDES, "bar": BAR, "net": trained.metadata["net"]}
        write_results(options.output, {**results, "machine": describe()})
        print(options.output)


if __name__ == "__main__":
    main()
