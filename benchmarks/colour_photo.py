"""One photograph of 12 megapixels, file to file: seconds, where they go, memory, and how both grow.

    python benchmarks/colour_photo.py [--net RUN] [-o benchmarks/results/colour_photo.json]

The photograph is made of scikit-image's own, enlarged side by side, with noise like a camera's, as a JPEG file.

* the whole process as a user starts it, ``chromabox colour photo.jpg -o coloured.jpg``, and its peak memory as the
  operating system accounts it;
* the same work in a process that has already done it once, and its parts: decode, network, recolour, encode;
* the same for 0.3 to 48 megapixels, with a straight line through the seconds (drawn beside the results);
* peak memory of processes that colour folders of 1 to 50 such files of 3 megapixels.
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

from chromabox.colour.inference.predict import ColouriseOptions, ColourModel, apply_prediction, predict_colours
from chromabox.colour.weights.checkpoint import load_model
from chromabox.io.images import read_image, write_image
from chromabox.report.plots import save_figure
from machine import describe, write_results

MEGAPIXELS = (0.3, 1, 3, 6, 12, 24, 48)
FILES = (1, 5, 20, 50)
TILES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "motorcycle_right.png")
NOISE = 3.0  # standard deviation, of 255
#: A small process between, because the system counts a new process as large as the one that it was split off from.
METER = """
import os, subprocess, sys, time
begin = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(time.perf_counter() - begin, usage.ru_maxrss)
sys.stdout.flush()
os._exit(os.waitstatus_to_exitcode(status))
"""


def make_photograph(path: Path, megapixels: float) -> Path:
    """A JPEG of that size, 4 to 3: two rows of three photographs, enlarged (Lanczos), with noise."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = round(height * 4 / 3)
    sheet = Image.new("RGB", (width, height))
    for index, name in enumerate(TILES):
        row, column = divmod(index, 3)
        box = (column * width // 3, row * height // 2, (column + 1) * width // 3, (row + 1) * height // 2)
        tile = Image.open(Path(skimage.data.__file__).parent / name).convert("RGB")
        sheet.paste(tile.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS), box)
    generator = np.random.default_rng(0)
    pixels = np.asarray(sheet)
    # Row by row: noise of a whole picture of 48 megapixels would take a gigabyte.
    rows = (row + generator.normal(0, NOISE, row.shape).astype(np.float32) for row in pixels)
    noisy = np.stack([np.clip(np.rint(row), 0, 255).astype(np.uint8) for row in rows])
    Image.fromarray(noisy).save(path, quality=92)
    return path


def process(source: Path, target: Path, net: Path | None) -> tuple[float, float]:
    """Seconds and peak memory (MB, 10⁶ bytes) of one ``chromabox colour``."""
    command = [sys.executable, "-m", "chromabox", "colour", str(source), "-o", str(target)]
    command += [] if net is None else ["--net", str(net)]
    found = subprocess.run([sys.executable, "-c", METER, *command], capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {found.stderr}")
    seconds, peak = (float(value) for value in found.stdout.split()[-2:])
    return seconds, peak * 1024 / 1e6


def parts(source: Path, target: Path, trained: ColourModel) -> dict[str, float]:
    """Seconds of each part of the work in this process."""
    clock = [time.perf_counter()]
    picture = read_image(source)
    clock.append(time.perf_counter())
    decision = predict_colours(picture.pixels, trained, ColouriseOptions())
    clock.append(time.perf_counter())
    picture = apply_prediction(picture, decision)
    clock.append(time.perf_counter())
    write_image(target, picture)
    clock.append(time.perf_counter())
    each = dict(zip(("decode", "network", "recolour", "encode"), np.diff(clock).tolist(), strict=True))
    return {**each, "all": clock[-1] - clock[0]}


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def by_size(folder: Path, trained: ColourModel, repeats: int) -> dict[float, dict[str, float]]:
    """Medians of the parts for every size, warm."""
    found = {}
    for megapixels in MEGAPIXELS:
        source = make_photograph(folder / f"{megapixels:g}.jpg", megapixels)
        target = folder / f"{megapixels:g}-coloured.jpg"
        parts(source, target, trained)
        found[megapixels] = medians([parts(source, target, trained) for _ in range(repeats)])
        told = ", ".join(f"{name} {seconds:.2f}" for name, seconds in found[megapixels].items())
        print(f"{megapixels:5g} megapixels, seconds when warm: {told}", flush=True)
    return found


def line_through(found: dict[float, dict[str, float]]) -> dict[str, float]:
    """Least squares: seconds = fixed + each · megapixels, and the share of the variance it explains."""
    sizes, seconds = np.array(list(found)), np.array([row["all"] for row in found.values()])
    each, fixed = np.polyfit(sizes, seconds, 1)
    rest = seconds - (fixed + each * sizes)
    explained = 1 - (rest**2).sum() / ((seconds - seconds.mean()) ** 2).sum()
    return {"fixed_seconds": float(fixed), "seconds_per_megapixel": float(each), "r_squared": float(explained)}


def draw(found: dict[float, dict[str, float]], line: dict[str, float], path: Path) -> None:
    """Seconds against megapixels: the parts stacked, the straight line over them."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    sizes = np.array(list(found))
    names = [name for name in next(iter(found.values())) if name != "all"]
    axes.stackplot(sizes, [[row[name] for row in found.values()] for name in names], labels=names, alpha=0.6)
    fit = line["fixed_seconds"] + line["seconds_per_megapixel"] * sizes
    label = (
        f"{line['fixed_seconds']:.2f} + {line['seconds_per_megapixel']:.3f} · megapixels (R² {line['r_squared']:.3f})"
    )
    axes.plot(sizes, fit, color="black", linestyle="--", label=label)
    axes.plot(sizes, [row["all"] for row in found.values()], "k.", label="measured")
    axes.set(xlabel="megapixels", ylabel="seconds, warm", title="Colouring one JPEG, file to file")
    axes.legend(loc="upper left")
    save_figure(figure, path)


def by_files(folder: Path, net: Path | None, megapixels: float) -> dict[int, float]:
    """Peak memory (MB) of processes that colour folders of so many files."""
    photograph = make_photograph(folder / "one.jpg", megapixels).read_bytes()
    peaks = {}
    for count in FILES:
        source = folder / f"in{count}"
        source.mkdir()
        for index in range(count):
            (source / f"{index:02d}.jpg").write_bytes(photograph)
        seconds, peaks[count] = process(source, folder / f"out{count}", net)
        told = f"{peaks[count]:.0f} MB peak, {seconds / count:.2f} s a file"
        print(f"{count:3d} files of {megapixels:g} megapixels: {told}", flush=True)
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", type=Path, help="run folder or checkpoint; the shipped net if left out")
    parser.add_argument("--repeats", type=int, default=3, help="how often each thing is timed")
    parser.add_argument("--folder-megapixels", type=float, default=3, help="size of the files in folders")
    parser.add_argument("-o", "--output", type=Path, help="write the results there, as JSON, and a PNG beside it")
    options = parser.parse_args()
    machine = describe()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photograph = make_photograph(folder / "photo.jpg", 12)
        runs = [process(photograph, folder / "coloured.jpg", options.net) for _ in range(options.repeats)]
        seconds, peak = statistics.median(run[0] for run in runs), max(run[1] for run in runs)
        print(f"12 megapixels, the whole process: {seconds:.2f} s, {peak:.0f} MB peak", flush=True)
        found = by_size(folder, load_model(options.net), options.repeats)
        line = line_through(found)
        print(
            f"{line['fixed_seconds']:.2f} s and {line['seconds_per_megapixel']:.3f} s a megapixel, "
            f"R² {line['r_squared']:.4f}"
        )
        peaks = by_files(folder, options.net, options.folder_megapixels)
    print(machine)
    if options.output:
        results = {"process_12_megapixels": {"seconds": seconds, "peak_megabytes": peak}, "line": line}
        results |= {"warm_seconds_by_megapixels": found, "peak_megabytes_by_files": peaks}
        write_results(options.output, {**results, "folder_megapixels": options.folder_megapixels, "machine": machine})
        draw(found, line, options.output.with_suffix(".png"))
        print(options.output)


if __name__ == "__main__":
    main()
