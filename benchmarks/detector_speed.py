"""YOLOv3-tiny at 416 pixels: our forward pass against Ultralytics' and darknet's, and a folder against bare passes.

    python benchmarks/detector_speed.py --pictures FOLDER [--ultralytics VENV] [-o RESULTS.json]

* Ultralytics: the backbone and neck of its own yolov3-tiny.yaml, built by its own code of its own modules (convolution,
  batch normalisation, SiLU, one after another), with the two plain 1×1 convolutions of YOLOv3's heads in place of its
  present head, which is another one; eager float32, batch 1, the same number of threads. It is AGPL and lives in a
  virtual environment of its own, made at VENV if there is none (several gigabytes), never in this process. Passed over
  with a message where it cannot be installed.
* darknet: Debian's program (apt-get install darknet); the seconds that it tells itself, of the pass alone.
* The folder: reading, laying into the square, the pass, boxes, against as many passes alone by as many workers.

Contenders take turns, so that what slows the machine slows all; a ratio is the median of the turns'. Above 1 ours is
the faster. Weights are random where a contender has no other: speed does not depend on them.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from chromabox.detect.inference.predict import detect_files
from chromabox.detect.inference.runtime import FLOAT32_OPTIONS, OptimizedDetector, optimize_for_inference
from chromabox.detect.weights.darknet_cfg import write_cfg
from chromabox.detect.weights.load import Detector, load_detector, write_darknet
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.io.images import find_images
from chromabox.runtime.parallel import map_ordered, num_threads
from machine import describe, seconds, write_results

SIZE, TURNS = 416, 9

#: Runs in the other environment: a line in, one pass, its seconds out.
ULTRALYTICS = f"""
import sys, time, torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel
torch.set_num_threads(int(sys.argv[1]))
model = DetectionModel("yolov3-tiny.yaml", verbose=False).float().eval()
detect = model.model[-1]
class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv2d(256, 255, 1), nn.Conv2d(512, 255, 1)])
    def forward(self, given):
        return [convolution(one) for convolution, one in zip(self.convolutions, given)]
heads = Heads()
heads.i, heads.f, heads.type, heads.np = detect.i, detect.f, "heads", 0
model.model[-1] = heads
images = torch.rand(1, 3, {SIZE}, {SIZE})
print(torch.__version__, sum(parameter.numel() for parameter in model.parameters()), flush=True)
with torch.inference_mode():
    for line in sys.stdin:
        begin = time.perf_counter()
        model(images)
        print(time.perf_counter() - begin, flush=True)
"""


@contextmanager
def ultralytics(venv: Path | None, threads: int) -> Iterator[Callable[[], float] | None]:
    """Seconds of one of its passes at every call; None where it cannot be had."""
    python = ultralytics_python(venv)
    if python is None:
        yield None
        return
    command = [python, "-c", ULTRALYTICS, str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        greeting = process.stdout.readline().strip()
        print(f"Ultralytics: torch and parameters {greeting or 'unknown: it does not start'}")

        def once() -> float:
            process.stdin.write("\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        yield once if greeting else None
        process.stdin.close()


def ultralytics_python(venv: Path | None) -> Path | None:
    if venv is None:
        print("Ultralytics: passed over; give --ultralytics VENV, a folder in which it is or may be installed")
        return None
    python = venv / "bin" / "python"
    commands = [] if python.exists() else [[sys.executable, "-m", "venv", str(venv)]]
    if not python.exists() or subprocess.run([python, "-c", "import ultralytics"], capture_output=True).returncode:
        commands.append([str(python), "-m", "pip", "install", "-q", "ultralytics"])
    for command in commands:
        if subprocess.run(command).returncode:
            print("Ultralytics: passed over; it cannot be installed here")
            return None
    return python


@contextmanager
def darknet(trained: Detector, picture: Path) -> Iterator[Callable[[], float] | None]:
    """Seconds of one of its passes at every call, as it tells them; None where it is not installed."""
    data = Path("/usr/share/darknet")  # where its letters are, without which it does not start
    if shutil.which("darknet") is None or not data.is_dir():
        print("darknet: passed over; apt-get install darknet")
        yield None
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cfg(trained.architecture, folder / "net.cfg")
        write_darknet(folder / "net.weights", trained.model)
        (folder / "names").write_text("".join(f"{name}\n" for name in trained.classes))
        (folder / "data").write_text(f"classes={len(trained.classes)}\nnames={folder / 'names'}\n")
        files = [str(folder / name) for name in ("data", "net.cfg", "net.weights")]
        command = ["darknet", "detector", "test", *files, str(picture.resolve()), "-out", str(folder / "drawn")]

        def once() -> float:
            told = subprocess.run(command, cwd=data, capture_output=True, text=True, check=True).stdout
            found = re.search(r"Predicted in ([\d.]+) seconds", told)
            assert found, told
            return float(found[1])

        yield once


def forward(ready: OptimizedDetector) -> Callable[[], float]:
    """Seconds of one of our passes at every call."""
    images = torch.rand(1, 3, SIZE, SIZE)

    def once() -> float:
        with torch.inference_mode(), num_threads(ready.runtime.threads):
            return seconds(lambda: ready.forward(images))

    once()
    return once


def forwards(trained: Detector, venv: Path | None, picture: Path) -> dict[str, object]:
    """All contenders' single passes, in turns."""
    threads = torch.get_num_threads()
    fast = optimize_for_inference(trained, RuntimeOptions())
    print(f"ours, as the probe chose: {fast.runtime}")
    ways: dict[str, Callable[[], float]] = {
        "ours": forward(fast),
        "ours, folded float32": forward(optimize_for_inference(trained, FLOAT32_OPTIONS)),
    }
    results: dict[str, object] = {"execution": str(fast.runtime)}
    with ultralytics(venv, threads) as theirs, ultralytics(venv, 1) as alone, darknet(trained, picture) as program:
        others = {f"Ultralytics, {threads} threads": theirs, "Ultralytics, 1 thread": alone, "darknet": program}
        ways |= {name: way for name, way in others.items() if way is not None}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(TURNS + 1):
            for name, way in ways.items():
                taken = way()
                if turn:  # The first warms up.
                    times[name].append(taken)
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(taken, times["ours"], strict=True))
        print(
            f"{name:24s} {statistics.median(taken) * 1e3:8.1f} ms, best {min(taken) * 1e3:8.1f} ms, {ratio:6.2f}× ours"
        )
        results[name] = {"median_s": statistics.median(taken), "best_s": min(taken), "times_ours": ratio}
    return results


def folder(trained: Detector, pictures: list[Path], turns: int = 3) -> dict[str, object]:
    """Detecting in files against as many bare passes, both by one worker a core."""
    options = RuntimeOptions(threads=1)
    ready = optimize_for_inference(trained, options)
    images = torch.rand(1, 3, SIZE, SIZE)

    @torch.inference_mode()
    def bare(_: Path) -> None:
        ready.forward(images)

    def all_bare() -> None:
        list(map_ordered(pictures, bare))

    def all_detected() -> None:
        assert all(found.error is None for found in detect_files(pictures, ready, size=SIZE))

    all_bare()
    pairs = [(seconds(all_detected), seconds(all_bare)) for _ in range(turns)]
    ratio = statistics.median(whole / passes for whole, passes in pairs)
    whole, passes = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(
        f"{len(pictures)} pictures: {whole:.2f} s detected, {passes:.2f} s bare passes: {ratio:.2f}×, "
        f"{len(pictures) / whole:.1f} images/s ({ready.runtime})"
    )
    return {"pictures": len(pictures), "detected_s": whole, "passes_s": passes, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description="speed of YOLOv3-tiny")
    parser.add_argument("--pictures", type=Path, required=True, help="a folder of pictures")
    parser.add_argument("--ultralytics", type=Path, metavar="VENV", help="an environment for Ultralytics")
    parser.add_argument("-o", "--output", type=Path, help="write the results there, as JSON")
    arguments = parser.parse_args()
    trained = load_detector("yolov3-tiny")
    pictures = [path for path, _ in find_images([arguments.pictures])]
    results = {
        "claim": "YOLOv3-tiny: 1.5× Ultralytics' eager float32, 10× darknet, a folder within 1.3× of bare passes",
        "machine": describe(),
        "forward": forwards(trained, arguments.ultralytics, pictures[0]),
        "folder": folder(trained, pictures),
    }
    if arguments.output:
        write_results(arguments.output, results)


if __name__ == "__main__":
    main()
