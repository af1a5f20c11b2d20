"""Recolouring at full size: seconds by megapixels, against the plain scikit-image way, and the memory it takes.

    python benchmarks/recolour.py [-o benchmarks/results/recolour.json]

The picture is a grey photograph, tiled; its chroma map has 96 cells along the short side and random colours, moderate
(a*, b* up to ±20) or far outside of sRGB (up to ±100). The plain way is rgb2lab, bilinear interpolation of the map and
lab2rgb, in float64, clipped: it neither keeps the lightness nor ends colour at edges. Wall-clock and processor seconds
are both given, because other programs on the machine lengthen only the first. Memory is that of a process of its own,
beyond the input and the output.
"""

import argparse
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from skimage import data
from skimage.color import lab2rgb, rgb2lab
from skimage.transform import resize

from chromabox.colour.chroma.recolour import apply_chroma, lightness
from machine import describe, median_seconds, paired, write_results

SIZES = {1: (866, 1154), 3: (1500, 2000), 12: (3000, 4000), 24: (4000, 6000)}  # megapixels: height, width
SHORT_SIDE = 96
PLAIN_UP_TO = 3  # megapixels; beyond, the plain way takes gigabytes

# The kernel's own account of this process's peak: getrusage would count its parent's, too (Linux).
ONE_PICTURE = """
import sys
sys.path.insert(0, {folder!r})
from recolour import chroma_map, peak_bytes, photograph
from chromabox.colour.recolour import recolour
pixels, chroma = photograph({megapixels}), chroma_map({megapixels}, 20)
recolour(pixels[:200], chroma)
before = peak_bytes()
result = recolour(pixels, chroma)
print((peak_bytes() - before - result.nbytes) / 1e6)
"""


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def photograph(megapixels: int) -> np.ndarray:
    """A grey picture, uint8 [height, width, 3], made without large arrays beside it."""
    tile = data.camera()
    height, width = SIZES[megapixels]
    pixels = np.empty((height, width, 3), np.uint8)
    for row in range(height):
        pixels[row] = np.resize(tile[row % len(tile)], width)[:, None]
    return pixels


def chroma_map(megapixels: int, amplitude: float) -> np.ndarray:
    """Random a* and b* within ±amplitude, float32 [height, width, 2]."""
    height, width = SIZES[megapixels]
    shape = (SHORT_SIDE, round(SHORT_SIDE * width / height), 2)
    return np.random.default_rng(0).uniform(-amplitude, amplitude, shape).astype(np.float32)


def plain(pixels: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """The way of the textbook, by scikit-image."""
    lab = rgb2lab(pixels)
    lab[..., 1:] = resize(chroma, pixels.shape[:2], order=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lab2rgb says how many colours it had to clip
        return np.rint(lab2rgb(lab) * 255).astype(np.uint8)


def mean_lightness_error(pixels: np.ndarray, result: np.ndarray) -> float:
    return float(np.abs(rgb2lab(result)[..., 0] - rgb2lab(pixels)[..., 0]).mean())


def processor_seconds(pixels: np.ndarray, chroma: np.ndarray) -> float:
    """Of all threads together, one call."""
    start = time.process_time()
    apply_chroma(pixels, chroma)
    return time.process_time() - start


def one_size(megapixels: int, times: int) -> dict[str, object]:
    """Everything measured at one size."""
    pixels = photograph(megapixels)
    moderate, extreme = chroma_map(megapixels, 20), chroma_map(megapixels, 100)
    row: dict[str, object] = {
        "megapixels": pixels.shape[0] * pixels.shape[1] / 1e6,
        "lightness_seconds": median_seconds(lambda: lightness(pixels), times),
        "moderate_seconds": median_seconds(lambda: apply_chroma(pixels, moderate), times),
        "extreme_seconds": median_seconds(lambda: apply_chroma(pixels, extreme), times),
        "moderate_processor_seconds": processor_seconds(pixels, moderate),
        "extreme_processor_seconds": processor_seconds(pixels, extreme),
    }
    if megapixels <= PLAIN_UP_TO:
        duel = paired(lambda: apply_chroma(pixels, moderate), lambda: plain(pixels, moderate), pairs=3, warm_up=0)
        row["against_plain"] = asdict(duel)
        print(f"{duel.ratio:8.1f}× the plain way, {duel.b_seconds:.2f} s")
    script = ONE_PICTURE.format(folder=str(Path(__file__).resolve().parent), megapixels=megapixels)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    row["working_memory_mb"] = round(float(found.stdout))
    print(", ".join(f"{name} {value:.3g}" for name, value in row.items() if isinstance(value, int | float)), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    machine = describe()
    pixels = photograph(1)
    errors = {
        f"up to ±{amplitude}": {
            "recolour": mean_lightness_error(pixels, apply_chroma(pixels, chroma_map(1, amplitude))),
            "plain": mean_lightness_error(pixels, plain(pixels, chroma_map(1, amplitude))),
        }
        for amplitude in (20, 100)
    }
    print("mean |ΔL*| of the 8-bit result:", errors)
    sizes = [one_size(megapixels, options.times) for megapixels in SIZES]
    results = {"threads": torch.get_num_threads(), "mean_lightness_error": errors, "sizes": sizes, "machine": machine}
    if options.output:
        write_results(options.output, results)
        print(options.output)


if __name__ == "__main__":
    main()
