"""Time and memory for colourising a photograph of 12 megapixels, and how both depend on size and number of files.

    python benchmarks/colour_photo.py [--model RUN] [-o benchmarks/results/colour_photo.json]

The photograph is a JPEG file composed of enlarged photographs of scikit-image, with noise like that of a camera.

The script measures:

* the time of the whole process ``chromabox colour photo.jpg -o coloured.jpg``, and its peak memory as reported by the
  operating system;
* the time of the same work in a warm process, and of its parts: decoding, network, recolouring, encoding;
* the times of these parts for 0.3 to 48 megapixels, with a linear fit (plotted next to the results);
* the peak memory of processes that colourise folders of 1 to 50 files of 3 megapixels.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import skimage.data
from matplotlib.figure import Figure
from PIL import Image

from chromabox.colour.inference.load import open_model
from chromabox.colour.inference.predict import ColouriseOptions, apply_prediction, predict_colours
from chromabox.colour.weights.onnx_model import ColourModel
from chromabox.io.images import read_image, write_image
from chromabox.report.plots import save_figure
from environment import describe_machine, write_results

MEGAPIXELS = (0.3, 1, 3, 6, 12, 24, 48)
NUM_FILES = (1, 5, 20, 50)
TILES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "motorcycle_right.png")
NOISE_STD = 3.0  # of 255
#: A small intermediate process, because the peak memory of a forked process includes the memory of its parent.
METER_SCRIPT = """
import os, subprocess, sys, time
start_time = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(time.perf_counter() - start_time, usage.ru_maxrss)
sys.stdout.flush()
os._exit(os.waitstatus_to_exitcode(status))
"""


def make_photo(path: Path, megapixels: float) -> Path:
    """Write a 4:3 JPEG file of the given size: two rows of three enlarged photographs (Lanczos), with noise."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = round(height * 4 / 3)
    canvas = Image.new("RGB", (width, height))
    for index, name in enumerate(TILES):
        row, column = divmod(index, 3)
        box = (column * width // 3, row * height // 2, (column + 1) * width // 3, (row + 1) * height // 2)
        tile = Image.open(Path(skimage.data.__file__).parent / name).convert("RGB")
        canvas.paste(tile.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS), box)
    generator = np.random.default_rng(0)
    pixels = np.asarray(canvas)
    # The noise is added row by row, because noise for an image of 48 megapixels would need a gigabyte.
    rows = (row + generator.normal(0, NOISE_STD, row.shape).astype(np.float32) for row in pixels)
    noisy = np.stack([np.clip(np.rint(row), 0, 255).astype(np.uint8) for row in rows])
    Image.fromarray(noisy).save(path, quality=92)
    return path


def run_process(source: Path, target: Path, model: Path | None) -> tuple[float, float]:
    """Return seconds and peak memory (MB, 10⁶ bytes) of one ``chromabox colour`` process."""
    command = [sys.executable, "-m", "chromabox", "colour", str(source), "-o", str(target), "--overwrite"]
    command += [] if model is None else ["--model", str(model)]
    result = subprocess.run([sys.executable, "-c", METER_SCRIPT, *command], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {result.stderr}")
    seconds, peak = (float(value) for value in result.stdout.split()[-2:])
    return seconds, peak * 1024 / 1e6


def time_parts(source: Path, target: Path, model: ColourModel) -> dict[str, float]:
    """Return the seconds of each part of the work in this process."""
    times = [time.perf_counter()]
    image = read_image(source)
    times.append(time.perf_counter())
    prediction = predict_colours(image.pixels, model, ColouriseOptions())
    times.append(time.perf_counter())
    image = apply_prediction(image, prediction)
    times.append(time.perf_counter())
    write_image(target, image)
    times.append(time.perf_counter())
    parts = dict(zip(("decode", "network", "recolour", "encode"), np.diff(times).tolist(), strict=True))
    return {**parts, "all": times[-1] - times[0]}


def column_medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def time_by_size(folder: Path, model: ColourModel, repeats: int) -> dict[float, dict[str, float]]:
    """Return the median times of the parts for every size, in a warm process."""
    times_by_size = {}
    for megapixels in MEGAPIXELS:
        source = make_photo(folder / f"{megapixels:g}.jpg", megapixels)
        target = folder / f"{megapixels:g}-coloured.jpg"
        time_parts(source, target, model)
        times_by_size[megapixels] = column_medians([time_parts(source, target, model) for _ in range(repeats)])
        listed = ", ".join(f"{name} {seconds:.2f}" for name, seconds in times_by_size[megapixels].items())
        print(f"{megapixels:5g} megapixels, seconds in a warm process: {listed}", flush=True)
    return times_by_size


def fit_line(times_by_size: dict[float, dict[str, float]]) -> dict[str, float]:
    """Fit seconds = fixed + slope · megapixels by least squares. Return the coefficients and R²."""
    sizes, seconds = np.array(list(times_by_size)), np.array([row["all"] for row in times_by_size.values()])
    slope, fixed = np.polyfit(sizes, seconds, 1)
    residuals = seconds - (fixed + slope * sizes)
    r_squared = 1 - (residuals**2).sum() / ((seconds - seconds.mean()) ** 2).sum()
    return {"fixed_seconds": float(fixed), "seconds_per_megapixel": float(slope), "r_squared": float(r_squared)}


def plot(times_by_size: dict[float, dict[str, float]], line: dict[str, float], path: Path) -> None:
    """Plot the seconds of the parts (stacked) and the linear fit against megapixels."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    sizes = np.array(list(times_by_size))
    names = [name for name in next(iter(times_by_size.values())) if name != "all"]
    axes.stackplot(sizes, [[row[name] for row in times_by_size.values()] for name in names], labels=names, alpha=0.6)
    fit = line["fixed_seconds"] + line["seconds_per_megapixel"] * sizes
    label = (
        f"{line['fixed_seconds']:.2f} + {line['seconds_per_megapixel']:.3f} · megapixels (R² {line['r_squared']:.3f})"
    )
    axes.plot(sizes, fit, color="black", linestyle="--", label=label)
    axes.plot(sizes, [row["all"] for row in times_by_size.values()], "k.", label="measured")
    axes.set(xlabel="megapixels", ylabel="seconds, warm process", title="Colourising one JPEG file, end to end")
    axes.legend(loc="upper left")
    save_figure(figure, path)


def memory_by_num_files(folder: Path, model: Path | None, megapixels: float) -> dict[int, float]:
    """Return the peak memory (MB) of processes that colourise folders with different numbers of files."""
    photo_bytes = make_photo(folder / "one.jpg", megapixels).read_bytes()
    peaks = {}
    for count in NUM_FILES:
        source = folder / f"in{count}"
        source.mkdir()
        for index in range(count):
            (source / f"{index:02d}.jpg").write_bytes(photo_bytes)
        seconds, peaks[count] = run_process(source, folder / f"out{count}", model)
        print(
            f"{count:3d} files of {megapixels:g} megapixels: {peaks[count]:.0f} MB peak, "
            f"{seconds / count:.2f} s per file",
            flush=True,
        )
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="run folder or checkpoint (default: the bundled model)")
    parser.add_argument("--repeats", type=int, default=3, help="number of timed repetitions")
    parser.add_argument("--folder-megapixels", type=float, default=3, help="size of the files in folders")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the results; a PNG is written next to it")
    options = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo = make_photo(folder / "photo.jpg", 12)
        runs = [run_process(photo, folder / "coloured.jpg", options.model) for _ in range(options.repeats)]
        seconds, peak = statistics.median(run[0] for run in runs), max(run[1] for run in runs)
        print(f"12 megapixels, whole process: {seconds:.2f} s, {peak:.0f} MB peak", flush=True)
        times_by_size = time_by_size(folder, open_model(options.model), options.repeats)
        line = fit_line(times_by_size)
        print(
            f"{line['fixed_seconds']:.2f} s and {line['seconds_per_megapixel']:.3f} s per megapixel, "
            f"R² {line['r_squared']:.4f}"
        )
        peaks = memory_by_num_files(folder, options.model, options.folder_megapixels)
    print(machine)
    if options.output:
        results: dict[str, object] = {
            "process_12_megapixels": {"seconds": seconds, "peak_megabytes": peak},
            "line": line,
        }
        results |= {"warm_seconds_by_megapixels": times_by_size, "peak_megabytes_by_files": peaks}
        write_results(options.output, {**results, "folder_megapixels": options.folder_megapixels, "machine": machine})
        plot(times_by_size, line, options.output.with_suffix(".png"))
        print(options.output)


if __name__ == "__main__":
    main()
