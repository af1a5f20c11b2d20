"""Time and memory of the application of chroma at full size, compared with scikit-image.

    python benchmarks/recolour.py [-o benchmarks/results/recolour.json]

The image is a tiled greyscale photograph. The chroma map has 96 cells along the short side. Its random colours are
either moderate (a*, b* up to ±20) or far outside of sRGB (up to ±100). The baseline uses rgb2lab, bilinear
interpolation of the map, and lab2rgb, in float64 with clipping. It neither preserves the lightness nor follows edges.
Both wall-clock and processor seconds are reported, because other programs on the machine affect only the wall-clock
seconds. Working memory is measured in a separate process and excludes the input and the output.
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
from environment import describe_machine, median_seconds, time_paired, write_results

SIZES = {1: (866, 1154), 3: (1500, 2000), 12: (3000, 4000), 24: (4000, 6000)}  # megapixels: (height, width)
SHORT_SIDE = 96
MAX_BASELINE_MEGAPIXELS = 3  # The baseline needs gigabytes of memory for larger images.

# Peak memory from /proc (Linux): getrusage would include the parent process.
MEMORY_SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from recolour import chroma_map, make_photo, peak_bytes
from chromabox.colour.chroma.recolour import apply_chroma
pixels, chroma = make_photo({megapixels}), chroma_map({megapixels}, 20)
apply_chroma(pixels[:200], chroma)
before = peak_bytes()
result = apply_chroma(pixels, chroma)
print((peak_bytes() - before - result.nbytes) / 1e6)
"""


def peak_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def make_photo(megapixels: int) -> np.ndarray:
    """Return a greyscale image, uint8 [height, width, 3], without large temporary arrays."""
    tile = data.camera()
    height, width = SIZES[megapixels]
    pixels = np.empty((height, width, 3), np.uint8)
    for row in range(height):
        pixels[row] = np.resize(tile[row % len(tile)], width)[:, None]
    return pixels


def chroma_map(megapixels: int, amplitude: float) -> np.ndarray:
    """Return random a* and b* within ±amplitude, float32 [height, width, 2]."""
    height, width = SIZES[megapixels]
    shape = (SHORT_SIDE, round(SHORT_SIDE * width / height), 2)
    return np.random.default_rng(0).uniform(-amplitude, amplitude, shape).astype(np.float32)


def scikit_image_recolour(pixels: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Apply chroma with the standard functions of scikit-image."""
    lab = rgb2lab(pixels)
    lab[..., 1:] = resize(chroma, pixels.shape[:2], order=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lab2rgb warns about clipped colours.
        return np.rint(lab2rgb(lab) * 255).astype(np.uint8)


def mean_lightness_error(pixels: np.ndarray, result: np.ndarray) -> float:
    return float(np.abs(rgb2lab(result)[..., 0] - rgb2lab(pixels)[..., 0]).mean())


def processor_seconds(pixels: np.ndarray, chroma: np.ndarray) -> float:
    """Return the processor seconds of one call, summed over all threads."""
    start = time.process_time()
    apply_chroma(pixels, chroma)
    return time.process_time() - start


def measure_size(megapixels: int, times: int) -> dict[str, object]:
    """Return all measurements at one size."""
    pixels = make_photo(megapixels)
    moderate, extreme = chroma_map(megapixels, 20), chroma_map(megapixels, 100)
    row: dict[str, object] = {
        "megapixels": pixels.shape[0] * pixels.shape[1] / 1e6,
        "lightness_seconds": median_seconds(lambda: lightness(pixels), times),
        "moderate_seconds": median_seconds(lambda: apply_chroma(pixels, moderate), times),
        "extreme_seconds": median_seconds(lambda: apply_chroma(pixels, extreme), times),
        "moderate_processor_seconds": processor_seconds(pixels, moderate),
        "extreme_processor_seconds": processor_seconds(pixels, extreme),
    }
    if megapixels <= MAX_BASELINE_MEGAPIXELS:
        timing = time_paired(
            lambda: apply_chroma(pixels, moderate), lambda: scikit_image_recolour(pixels, moderate), pairs=3, warm_up=0
        )
        row["against_plain"] = asdict(timing)
        print(f"{timing.ratio:8.1f}× faster than scikit-image, {timing.b_seconds:.2f} s")
    script = MEMORY_SCRIPT.format(folder=str(Path(__file__).resolve().parent), megapixels=megapixels)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    row["working_memory_mb"] = round(float(result.stdout))
    print(", ".join(f"{name} {value:.3g}" for name, value in row.items() if isinstance(value, int | float)), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    machine = describe_machine()
    pixels = make_photo(1)
    errors = {
        f"up to ±{amplitude}": {
            "recolour": mean_lightness_error(pixels, apply_chroma(pixels, chroma_map(1, amplitude))),
            "plain": mean_lightness_error(pixels, scikit_image_recolour(pixels, chroma_map(1, amplitude))),
        }
        for amplitude in (20, 100)
    }
    print("mean |ΔL*| of the 8-bit result:", errors)
    sizes = [measure_size(megapixels, options.times) for megapixels in SIZES]
    results = {"threads": torch.get_num_threads(), "mean_lightness_error": errors, "sizes": sizes, "machine": machine}
    if options.output:
        write_results(options.output, results)
        print(options.output)


if __name__ == "__main__":
    main()
