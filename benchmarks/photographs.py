"""Quality on photographs that are not in the training data: colour difference, colourfulness, size dependence.

    python benchmarks/photographs.py [--model RUN] [--images FOLDER] [-o benchmarks/results/photographs.json]

The photographs of scikit-image and those of a folder are colourised from their lightness in the styles natural and
vivid. "Cut" is the reduction of the mean CIEDE2000 compared with greyscale. "Share" is the colourfulness (Hasler and
Süsstrunk 2003) as a fraction of the colourfulness of the original.

To measure the size dependence, each photograph is resized (Lanczos) to a long side of 200 and of 6000 pixels. Both
versions are colourised, and the large result is resized (Lanczos) to the size of the small result. The size dependence
is the mean CIEDE2000 between the two results. The limit is 3.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from chromabox.colour.evaluation.image_scores import ImageScores, score_image
from chromabox.colour.evaluation.metrics import delta_e
from chromabox.colour.inference.load import open_model
from chromabox.colour.inference.predict import STYLES, ColouriseOptions, StyleName, colourise_image
from chromabox.colour.weights.onnx_model import ColourModel
from chromabox.io.images import ImageData, find_images, read_image, to_uint8
from environment import describe_machine, write_results

SAMPLE_IMAGES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
SIDES = (200, 6000)
MAX_SIZE_DELTA_E = 3.0
#: Column headings with the names of their scores and scale factors.
COLUMNS = {
    "grey dB": ("grey_psnr", 1.0),
    "dB": ("psnr", 1.0),
    "gain dB": ("psnr_gain", 1.0),
    "grey ΔE": ("grey_delta_e", 1.0),
    "ΔE": ("delta_e", 1.0),
    "cut %": ("delta_e_reduction", 1.0),
    "share %": ("colourfulness_ratio", 100.0),
}


def load_images(folder: Path | None) -> dict[str, np.ndarray]:
    """Return names and 8-bit pixels of the photographs in scikit-image's wheel and in the folder."""
    samples = [Path(skimage.data.__file__).parent / name for name in SAMPLE_IMAGES]
    paths = [path for path in samples if path.is_file()]
    if folder is not None:
        paths += [path for path, _ in find_images([folder])]
    return {path.stem: to_uint8(read_image(path).pixels) for path in paths}


def colourise(pixels: np.ndarray, model: ColourModel, style: StyleName) -> np.ndarray:
    """Return the colourised image."""
    return colourise_image(ImageData(pixels), model, ColouriseOptions(style=style)).pixels


def resize_long_side(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return the image resized (Lanczos) to the given long side."""
    scale = side / max(pixels.shape)
    height, width = (max(1, round(length * scale)) for length in pixels.shape[:2])
    return resize(pixels, height, width)


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def size_delta_e(pixels: np.ndarray, model: ColourModel, style: StyleName) -> float:
    """Return the mean CIEDE2000 between the results for the small and the large version, at the small size."""
    small, large = (colourise(resize_long_side(pixels, side), model, style) for side in SIDES)
    return delta_e(small, resize(large, *small.shape[:2]))


def make_row(score: ImageScores, size_difference: float) -> dict[str, float | None]:
    """Return the values of the columns and the size difference."""
    values = {heading: getattr(score, name) for heading, (name, _) in COLUMNS.items()}
    scaled = {key: value if value is None else value * COLUMNS[key][1] for key, value in values.items()}
    return {**scaled, "sizes ΔE": size_difference}


def mean_row(rows: dict[str, dict[str, float | None]]) -> dict[str, float | None]:
    """Return the mean of every column over the images with a value."""
    columns = {
        key: [value for row in rows.values() if (value := row[key]) is not None] for key in next(iter(rows.values()))
    }
    return {key: statistics.fmean(values) if values else None for key, values in columns.items()}


def print_row(name: str, row: dict[str, float | None]) -> None:
    numbers = "".join(f"{'' if value is None else f'{value:.2f}':>9}" for value in row.values())
    print(f"{name:<18}{numbers}", flush=True)


def evaluate(images: dict[str, np.ndarray], model: ColourModel, style: StyleName) -> dict[str, object]:
    """Evaluate all images in one style. Print a row per image and a row of means."""
    print(f"\n{style:<18}" + "".join(f"{heading:>9}" for heading in (*COLUMNS, "sizes ΔE")))
    rows = {}
    for name, pixels in images.items():
        score = score_image(pixels, colourise(pixels, model, style))
        rows[name] = make_row(score, size_delta_e(pixels, model, style))
        print_row(name, rows[name])
    mean = mean_row(rows)
    print_row("mean", mean)
    worst = max(rows, key=lambda name: rows[name]["sizes ΔE"] or 0.0)
    within_limit = (rows[worst]["sizes ΔE"] or 0.0) <= MAX_SIZE_DELTA_E
    print(
        f"size independence: limit {MAX_SIZE_DELTA_E:g} {'met' if within_limit else 'EXCEEDED'} by the worst, {worst}"
    )
    return {"pictures": rows, "mean": mean, "size_bar_kept_by_all": within_limit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="run folder or checkpoint (default: the bundled model)")
    parser.add_argument("--images", type=Path, help="folder of additional photographs")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    model, images = open_model(options.model), load_images(options.images)
    styles = {style: evaluate(images, model, style) for style in STYLES}
    if options.output:
        results = {"styles": styles, "sides": SIDES, "bar": MAX_SIZE_DELTA_E, "net": model.metadata["net"]}
        write_results(options.output, {**results, "machine": describe_machine()})
        print(options.output)


if __name__ == "__main__":
    main()
