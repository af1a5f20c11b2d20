"""Speed of YOLOv3-tiny at 416 pixels, compared with Ultralytics and Darknet, and overhead of detection in a folder.

    python benchmarks/detector_speed.py --images FOLDER [--ultralytics VENV] [-o RESULTS.json]

* Chromabox: ONNX Runtime with all threads and with one thread. For comparison, PyTorch in float32, both with separate
  batch normalisation and with batch normalisation folded into the convolutions.
* Ultralytics: the backbone and neck of yolov3-tiny.yaml, built by Ultralytics from its modules (convolution, batch
  normalisation, SiLU). The current head of Ultralytics is a different one and is replaced by the two 1×1 convolutions
  of YOLOv3's heads. The model runs eagerly in float32 with batch size 1 and the same number of threads. Ultralytics is
  AGPL software. It therefore runs in a separate virtual environment, which is created at VENV if it does not exist
  (several gigabytes). If it cannot be installed, it is skipped with a message.
* Darknet: the program of Debian (apt-get install darknet), which reports the time of its forward pass.
* The folder: reading, letterboxing, forward passes and boxes, compared with the same number of forward passes. Both use
  one worker per core, with one thread each.

The implementations alternate, so that a slowdown of the machine affects all of them. A ratio is the median over the
turns. A ratio above 1 means that ONNX Runtime with all threads is faster.
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
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from chromabox.detect.inference.load import open_detector
from chromabox.detect.inference.predict import InferenceOptions, detect_files
from chromabox.detect.weights.darknet_cfg import write_cfg
from chromabox.detect.weights.load import Detector, load_detector, write_darknet
from chromabox.detect.weights.onnx_model import DetectorModel
from chromabox.io.images import find_images
from chromabox.runtime.parallel import map_ordered, num_cores
from environment import describe_machine, time_call, write_results

WEIGHTS, SIZE, NUM_TURNS = "yolov3-tiny", 416, 9

#: Program for the environment of Ultralytics. For each input line, it runs one forward pass and prints the seconds.
ULTRALYTICS_SCRIPT = f"""
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
    def forward(self, features):
        return [convolution(x) for convolution, x in zip(self.convolutions, features)]
heads = Heads()
heads.i, heads.f, heads.type, heads.np = detect.i, detect.f, "heads", 0
model.model[-1] = heads
images = torch.rand(1, 3, {SIZE}, {SIZE})
print(torch.__version__, sum(parameter.numel() for parameter in model.parameters()), flush=True)
with torch.inference_mode():
    for line in sys.stdin:
        start_time = time.perf_counter()
        model(images)
        print(time.perf_counter() - start_time, flush=True)
"""


@contextmanager
def ultralytics_pass(venv: Path | None, threads: int) -> Iterator[Callable[[], float] | None]:
    """Yield a function that returns the seconds of one forward pass, or None if Ultralytics is not available."""
    python = ultralytics_python(venv)
    if python is None:
        yield None
        return
    command = [str(python), "-c", ULTRALYTICS_SCRIPT, str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        description = stdout.readline().strip()
        print(f"Ultralytics: torch and parameters {description or 'unknown, it does not start'}")

        def time_pass() -> float:
            stdin.write("\n")
            stdin.flush()
            return float(stdout.readline())

        yield time_pass if description else None
        stdin.close()


def ultralytics_python(venv: Path | None) -> Path | None:
    if venv is None:
        print(
            "Ultralytics: skipped; use --ultralytics VENV, a virtual environment with it or a folder to create one in"
        )
        return None
    python = venv / "bin" / "python"
    commands = [] if python.exists() else [[sys.executable, "-m", "venv", str(venv)]]
    if not python.exists() or subprocess.run([python, "-c", "import ultralytics"], capture_output=True).returncode:
        commands.append([str(python), "-m", "pip", "install", "-q", "ultralytics"])
    for command in commands:
        if subprocess.run(command).returncode:
            print("Ultralytics: skipped; it cannot be installed")
            return None
    return python


@contextmanager
def darknet_pass(detector: Detector, image: Path) -> Iterator[Callable[[], float] | None]:
    """Yield a function that returns the reported seconds of one forward pass, or None if Darknet is not installed."""
    data = Path("/usr/share/darknet")  # Darknet does not start without the label images.
    if shutil.which("darknet") is None or not data.is_dir():
        print("darknet: skipped; apt-get install darknet")
        yield None
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cfg(detector.architecture, folder / "net.cfg")
        write_darknet(folder / "net.weights", detector.model)
        (folder / "names").write_text("".join(f"{name}\n" for name in detector.classes))
        (folder / "data").write_text(f"classes={len(detector.classes)}\nnames={folder / 'names'}\n")
        files = [str(folder / name) for name in ("data", "net.cfg", "net.weights")]
        command = ["darknet", "detector", "test", *files, str(image.resolve()), "-out", str(folder / "drawn")]

        def time_pass() -> float:
            output = subprocess.run(command, cwd=data, capture_output=True, text=True, check=True).stdout
            match = re.search(r"Predicted in ([\d.]+) seconds", output)
            assert match, output
            return float(match[1])

        yield time_pass


#: The implementation with which the others are compared.
OURS = "ONNX Runtime, all threads"


def our_pass(detector: DetectorModel) -> Callable[[], float]:
    """Return a function that returns the seconds of one of our forward passes, with the decoding of boxes."""
    images = np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32)

    def time_pass() -> float:
        return time_call(lambda: detector.predict(images))

    time_pass()
    return time_pass


def compare_passes(detector: Detector, venv: Path | None, image: Path) -> dict[str, object]:
    """Time single forward passes of all implementations alternately."""
    threads = num_cores()
    torch.set_num_threads(threads)
    passes: dict[str, Callable[[], float]] = {
        OURS: our_pass(open_detector(WEIGHTS, size=SIZE)),
        "ONNX Runtime, 1 thread": our_pass(open_detector(WEIGHTS, size=SIZE, threads=1)),
        "PyTorch": our_pass(detector),
        "PyTorch, folded": our_pass(detector.fused()),
    }
    results: dict[str, object] = {"onnxruntime": version("onnxruntime"), "threads": threads}
    with (
        ultralytics_pass(venv, threads) as ultralytics_threads,
        ultralytics_pass(venv, 1) as ultralytics_single,
        darknet_pass(detector, image) as darknet,
    ):
        others = {
            f"Ultralytics, {threads} threads": ultralytics_threads,
            "Ultralytics, 1 thread": ultralytics_single,
            "darknet": darknet,
        }
        passes |= {name: time_pass for name, time_pass in others.items() if time_pass is not None}
        times: dict[str, list[float]] = {name: [] for name in passes}
        for turn in range(NUM_TURNS + 1):
            for name, time_pass in passes.items():
                seconds = time_pass()
                if turn:  # The first turn is a warm-up.
                    times[name].append(seconds)
    for name, measured in times.items():
        ratio = statistics.median(a / b for a, b in zip(measured, times[OURS], strict=True))
        print(
            f"{name:26s} {statistics.median(measured) * 1e3:8.1f} ms, "
            f"best {min(measured) * 1e3:8.1f} ms, {ratio:6.2f}× {OURS}"
        )
        results[name] = {"median_s": statistics.median(measured), "best_s": min(measured), "times_ours": ratio}
    return results


def time_folder(images: list[Path], turns: int = 3) -> dict[str, object]:
    """Compare detection in files with the same number of bare forward passes, both with one worker per core."""
    detector = open_detector(WEIGHTS, size=SIZE, threads=1)
    batch = np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32)

    def forward_all() -> None:
        list(map_ordered(images, lambda _: detector.predict(batch)))

    options = InferenceOptions.for_detector(detector, 0.5, 0.45, None, SIZE)

    def detect_all() -> None:
        assert not any(isinstance(result, str) for result in detect_files(images, detector, options))

    forward_all()
    pairs = [(time_call(detect_all), time_call(forward_all)) for _ in range(turns)]
    ratio = statistics.median(detected / passes for detected, passes in pairs)
    detected, passes = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(
        f"{len(images)} images: {detected:.2f} s detection, {passes:.2f} s forward passes: {ratio:.2f}×, "
        f"{len(images) / detected:.1f} images/s"
    )
    return {"pictures": len(images), "detected_s": detected, "passes_s": passes, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description="speed of YOLOv3-tiny")
    parser.add_argument("--images", type=Path, required=True, help="a folder of images")
    parser.add_argument("--ultralytics", type=Path, metavar="VENV", help="virtual environment for Ultralytics")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    detector = load_detector(WEIGHTS)
    images = [path for path, _ in find_images([arguments.images])]
    results: dict[str, object] = {
        "claim": "YOLOv3-tiny: 1.5× Ultralytics' eager float32, 10× darknet, a folder within 1.3× of bare passes",
        "machine": describe_machine(),
        "forward": compare_passes(detector, arguments.ultralytics, images[0]),
        "folder": time_folder(images),
    }
    if arguments.output:
        write_results(arguments.output, results)


if __name__ == "__main__":
    main()
