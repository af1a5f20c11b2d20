"""Time to find the nearest palette colours of 6.1 million pixels, with the lookup table and with other methods.

    python benchmarks/nearest_colour.py [-o benchmarks/results/nearest_colour.json]

The pixels are those of 6,000 CIFAR-10 images. The alternatives receive the pixels in their preferred layouts, which are
prepared before the measurement:

* the formula in vectorised NumPy, in chunks of the fastest size;
* SciPy's k-d tree with all cores;
* Pillow's quantize without dithering, which is approximate (one decision per 4×4×4 colours), with and without the
  conversion of the labels to an array.

The lookup table reads the planes of CIFAR-10 directly. "Warm" means that the table of the palette is already filled.
"Cold" includes building and filling the table. A ratio is the median over pairs. A ratio above 1 means that the table
is faster. Ratios below 1 are printed, too.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial import cKDTree

from chromabox.colour.palette.io import load_palette
from chromabox.colour.palette.palette import Palette, assign_labels
from chromabox.io.cifar10 import load_cifar10
from environment import describe_machine, median_seconds, time_paired, write_results

NUM_IMAGES = 6000
PALETTE_SIZES = (8, 16, 24, 32, 64, 128, 256)
CHUNK_SIZE = 2048  # In pixels. Of the sizes from 512 to 65,536, the plain formula is fastest with 1,024 to 4,096.

ENCODE_SCRIPT = """
import resource
import numpy as np
from chromabox.colour.palette.io import load_palette
from chromabox.colour.palette.palette import assign_labels
from chromabox.io.cifar10 import load_cifar10
palette = load_palette("cifar24")
splits = [load_cifar10(split)[0] for split in ("train", "test")]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
labels = [assign_labels(images, palette, axis=1) for images in splits]
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def plain_labels(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return labels by all squared distances in float64, in chunks whose distances fit into the processor cache."""
    colours = colours.astype(np.float64)
    labels = np.empty(len(pixels), np.uint8)
    for start in range(0, len(pixels), CHUNK_SIZE):
        chunk = pixels[start : start + CHUNK_SIZE] / 256
        labels[start : start + CHUNK_SIZE] = ((chunk[:, None] - colours) ** 2).sum(-1).argmin(-1)
    return labels


def without_table(palette: Palette) -> Palette:
    """Return the same palette without a lookup table."""
    return Palette(palette.colours, palette.name)


def alternatives(pixels: np.ndarray, palette: Palette) -> dict[str, Callable[[], Any]]:
    """Return the alternative methods for `pixels` [N, 3], with all preparation done."""
    tree = cKDTree(palette.colours.astype(np.float64))
    points = pixels / 256
    image = Image.fromarray(pixels.reshape(-1, 1024, 3))
    target = Image.new("P", (1, 1))
    target.putpalette(palette.rgb.tobytes())

    def quantize() -> Image.Image:
        return image.quantize(palette=target, dither=Image.Dither.NONE)

    return {
        "plain numpy": lambda: plain_labels(pixels, palette.colours),
        "scipy cKDTree": lambda: tree.query(points, workers=-1)[1],
        "Pillow quantize, labels as an array": lambda: np.asarray(quantize()).reshape(-1),
        "Pillow quantize, left in its own image": quantize,
    }


def compare(planes: np.ndarray, pixels: np.ndarray, palette: Palette, pairs: int) -> list[dict[str, object]]:
    """Compare the table, warm and cold, with every alternative."""
    labels = assign_labels(planes, palette, axis=1).reshape(-1)
    rows: list[dict[str, object]] = []
    for name, alternative in alternatives(pixels, palette).items():
        agreement = float((np.asarray(alternative()).reshape(-1) == labels).mean())
        warm = time_paired(lambda: assign_labels(planes, palette, axis=1), alternative, pairs)
        cold = time_paired(lambda: assign_labels(planes, without_table(palette), axis=1), alternative, pairs)
        verdict = "LOSES" if warm.ratio < 1 else "LOSES when cold" if cold.ratio < 1 else "wins"
        print(
            f"{warm.ratio:8.1f}× warm {cold.ratio:8.1f}× cold, {name}: the table {verdict}, "
            f"{warm.a_seconds * 1e3:.1f} ms warm and {cold.a_seconds * 1e3:.1f} ms cold compared with "
            f"{warm.b_seconds * 1e3:.1f} ms; agreement on {agreement:.2%} of pixels",
            flush=True,
        )
        rows.append({"against": name, "agreement": agreement, "warm": asdict(warm), "cold": asdict(cold)})
    return rows


def cost_by_size(planes: np.ndarray, pixels: np.ndarray) -> list[dict[str, object]]:
    """Return nanoseconds per pixel for palettes of random colours. The plain formula labels only every 20th pixel."""
    rng = np.random.default_rng(0)
    subset = np.ascontiguousarray(pixels[::20])
    rows: list[dict[str, object]] = []
    for size in PALETTE_SIZES:
        palette = Palette(rng.random((size, 3)).astype(np.float32), f"random{size}")
        seconds = {
            "warm": median_seconds(lambda p=palette: assign_labels(planes, p, axis=1)) / len(pixels),
            "cold": median_seconds(lambda p=palette: assign_labels(planes, without_table(p), axis=1), 3) / len(pixels),
            "plain": median_seconds(lambda p=palette: plain_labels(subset, p.colours), 1) / len(subset),
        }
        nanoseconds = {name: round(value * 1e9, 2) for name, value in seconds.items()}
        rows.append({"colours": size, "ns_per_pixel": nanoseconds})
        print(f"{size:4d} colours: " + ", ".join(f"{name} {value} ns per pixel" for name, value in nanoseconds.items()))
    return rows


def small_inputs(planes: np.ndarray, pixels: np.ndarray, palette: Palette) -> list[dict[str, object]]:
    """Compare small inputs: the first images of a new palette, for which building a table saves little time."""
    rows: list[dict[str, object]] = []
    for count in (1, 10, 100):
        images, flat = planes[:count], pixels[: count * 1024]
        cold = time_paired(
            lambda p=images: assign_labels(p, without_table(palette), axis=1),
            lambda f=flat: plain_labels(f, palette.colours),
        )
        rows.append({"pictures": count, "cold": asdict(cold)})
        verdict = "wins" if cold.ratio > 1 else "LOSES"
        print(
            f"{cold.ratio:8.2f}× cold, {count} images of 32×32: the table {verdict}, "
            f"{cold.a_seconds * 1e3:.1f} ms compared with plain {cold.b_seconds * 1e3:.1f} ms"
        )
    return rows


def peak_memory() -> dict[str, float]:
    """Return the peak memory (MB) of a process that loads all 60,000 images, before and after labelling them."""
    result = subprocess.run([sys.executable, "-c", ENCODE_SCRIPT], capture_output=True, text=True, check=True)
    before, after = (int(value) / 1024 for value in result.stdout.split())
    print(f"all 60,000 images: peak memory {after:.0f} MB, of which {before:.0f} MB before labelling")
    return {"loaded_mb": round(before), "labelled_mb": round(after)}


def main() -> None:
    parser = argparse.ArgumentParser(description="nearest palette colour: the lookup table and alternative methods")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the results")
    parser.add_argument("--pairs", type=int, default=5, help="timed pairs per alternative")
    arguments = parser.parse_args()
    machine = describe_machine()
    palette = load_palette("cifar24")
    planes = load_cifar10("train")[0][:NUM_IMAGES]
    pixels = np.ascontiguousarray(np.moveaxis(planes, 1, -1)).reshape(-1, 3)
    results = {
        "claim": "assign_labels: exact labels, at least 50 times as fast as the plain NumPy formula",
        "machine": machine,
        "pixels": len(pixels),
        "colours": len(palette),
        "against": compare(planes, pixels, palette, arguments.pairs),
        "small_inputs": small_inputs(planes, pixels, palette),
        "by_palette_size": cost_by_size(planes, pixels),
        "memory": peak_memory(),
    }
    print(machine)
    if arguments.output:
        write_results(arguments.output, results)


if __name__ == "__main__":
    main()
