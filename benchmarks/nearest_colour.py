"""Nearest palette colour of 6,000 CIFAR-10 pictures (6.1 million pixels): the table against other ways.

    python benchmarks/nearest_colour.py [-o benchmarks/results/nearest_colour.json]

Every other way is given its pixels in the layout it likes, prepared outside the measured time: the plain numpy
formula, vectorised, in chunks of the size that is fastest for it; scipy's k-d tree with all cores; Pillow's
quantize without dithering, which is approximate (it decides once for each 4×4×4 colours), with and without the
handing over of its labels as an array. The table reads CIFAR's planes as they lie. "Warm" is a palette that has
met such pictures before; "cold" builds and fills the table inside the measured time. The ratios are medians of
ratios taken pair by pair; above 1 the table is the faster. Where it loses is printed, too.
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
from machine import describe, median_seconds, paired, write_results

PICTURES = 6000
PALETTE_SIZES = (8, 16, 24, 32, 64, 128, 256)
CHUNK = 2048  # pixels; of 512 to 65,536 the plain formula is fastest at 1,024 to 4,096

ENCODE_ALL = """
import resource
import numpy as np
from chromabox.colour.palette import nearest_colour
from chromabox.colour.palette_files import load_palette
from chromabox.io.cifar10 import load_cifar10
palette = load_palette("cifar24")
splits = [load_cifar10(split)[0] for split in ("train", "test")]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
labels = [nearest_colour(pictures, palette, axis=1) for pictures in splits]
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def plain(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Labels by all squared distances in float64, chunked so that the distances stay in the cache."""
    colours = colours.astype(np.float64)
    labels = np.empty(len(pixels), np.uint8)
    for start in range(0, len(pixels), CHUNK):
        chunk = pixels[start : start + CHUNK] / 256
        labels[start : start + CHUNK] = ((chunk[:, None] - colours) ** 2).sum(-1).argmin(-1)
    return labels


def fresh(palette: Palette) -> Palette:
    """The same palette knowing nothing yet."""
    return Palette(palette.colours, palette.name)


def contenders(pixels: np.ndarray, palette: Palette) -> dict[str, Callable[[], Any]]:
    """The other ways to label `pixels` [N, 3], all preparation done."""
    tree = cKDTree(palette.colours.astype(np.float64))
    points = pixels / 256
    image = Image.fromarray(pixels.reshape(-1, 1024, 3))
    target = Image.new("P", (1, 1))
    target.putpalette(palette.rgb.tobytes())

    def quantize() -> Image.Image:
        return image.quantize(palette=target, dither=Image.Dither.NONE)

    return {
        "plain numpy": lambda: plain(pixels, palette.colours),
        "scipy cKDTree": lambda: tree.query(points, workers=-1)[1],
        "Pillow quantize, labels as an array": lambda: np.asarray(quantize()).reshape(-1),
        "Pillow quantize, left in its own image": quantize,
    }


def duel(planes: np.ndarray, pixels: np.ndarray, palette: Palette, pairs: int) -> list[dict[str, object]]:
    """The table, warm and cold, against every other way."""
    labels = assign_labels(planes, palette, axis=1).reshape(-1)
    rows: list[dict[str, object]] = []
    for name, other in contenders(pixels, palette).items():
        agreement = float((np.asarray(other()).reshape(-1) == labels).mean())
        warm = paired(lambda: assign_labels(planes, palette, axis=1), other, pairs)
        cold = paired(lambda: assign_labels(planes, fresh(palette), axis=1), other, pairs)
        verdict = "LOSES" if warm.ratio < 1 else "LOSES when cold" if cold.ratio < 1 else "wins"
        print(
            f"{warm.ratio:8.1f}× warm {cold.ratio:8.1f}× cold, {name}: the table {verdict}, "
            f"{warm.a_seconds * 1e3:.1f} ms warm and {cold.a_seconds * 1e3:.1f} ms cold against "
            f"{warm.b_seconds * 1e3:.1f} ms; they agree on {agreement:.2%} of pixels",
            flush=True,
        )
        rows.append({"against": name, "agreement": agreement, "warm": asdict(warm), "cold": asdict(cold)})
    return rows


def cost_by_size(planes: np.ndarray, pixels: np.ndarray) -> list[dict[str, object]]:
    """Nanoseconds a pixel for palettes of random colours; the plain formula on every 20th pixel."""
    rng = np.random.default_rng(0)
    few = np.ascontiguousarray(pixels[::20])
    rows: list[dict[str, object]] = []
    for size in PALETTE_SIZES:
        palette = Palette(rng.random((size, 3)).astype(np.float32), f"random{size}")
        seconds = {
            "warm": median_seconds(lambda p=palette: assign_labels(planes, p, axis=1)) / len(pixels),
            "cold": median_seconds(lambda p=palette: assign_labels(planes, fresh(p), axis=1), 3) / len(pixels),
            "plain": median_seconds(lambda p=palette: plain(few, p.colours), 1) / len(few),
        }
        nanoseconds = {name: round(value * 1e9, 2) for name, value in seconds.items()}
        rows.append({"colours": size, "ns_per_pixel": nanoseconds})
        print(f"{size:4d} colours: " + ", ".join(f"{name} {value} ns a pixel" for name, value in nanoseconds.items()))
    return rows


def small_inputs(planes: np.ndarray, pixels: np.ndarray, palette: Palette) -> list[dict[str, object]]:
    """Where a table has little time to pay: the first few pictures of a fresh palette."""
    rows: list[dict[str, object]] = []
    for count in (1, 10, 100):
        part, flat = planes[:count], pixels[: count * 1024]
        cold = paired(lambda p=part: assign_labels(p, fresh(palette), axis=1), lambda f=flat: plain(f, palette.colours))
        rows.append({"pictures": count, "cold": asdict(cold)})
        verdict = "wins" if cold.ratio > 1 else "LOSES"
        print(
            f"{cold.ratio:8.2f}× cold, {count} pictures of 32×32: the table {verdict}, "
            f"{cold.a_seconds * 1e3:.1f} ms against plain {cold.b_seconds * 1e3:.1f} ms"
        )
    return rows


def peak_memory() -> dict[str, float]:
    """Peak memory (MB) of a process that loads all 60,000 pictures, before and after it labels them."""
    found = subprocess.run([sys.executable, "-c", ENCODE_ALL], capture_output=True, text=True, check=True)
    before, after = (int(value) / 1024 for value in found.stdout.split())
    print(f"all 60,000 pictures: peak memory {after:.0f} MB, of which {before:.0f} MB before the first label")
    return {"loaded_mb": round(before), "labelled_mb": round(after)}


def main() -> None:
    parser = argparse.ArgumentParser(description="nearest palette colour: the table against other ways")
    parser.add_argument("-o", "--output", type=Path, help="write the results there, as JSON")
    parser.add_argument("--pairs", type=int, default=5, help="timed pairs for each contender")
    arguments = parser.parse_args()
    machine = describe()
    palette = load_palette("cifar24")
    planes = load_cifar10("train")[0][:PICTURES]
    pixels = np.ascontiguousarray(np.moveaxis(planes, 1, -1)).reshape(-1, 3)
    results = {
        "claim": "nearest_colour: exact labels, at least 50 times as fast as the plain numpy formula",
        "machine": machine,
        "pixels": len(pixels),
        "colours": len(palette),
        "against": duel(planes, pixels, palette, arguments.pairs),
        "small_inputs": small_inputs(planes, pixels, palette),
        "by_palette_size": cost_by_size(planes, pixels),
        "memory": peak_memory(),
    }
    print(machine)
    if arguments.output:
        write_results(arguments.output, results)


if __name__ == "__main__":
    main()
