"""Build the wheel, install it alone into a fresh environment, and run inference there without PyTorch.

    python scripts/smoke.py          # also: make smoke

The interpreter that runs this script needs chromabox with the extra ``train``: it exports the detector for the test.
The exit code is 1 if a check fails.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from chromabox.cli import COMMANDS
from chromabox.detect.data.dataset import COCO_CLASSES
from chromabox.detect.models.architecture import DARKNET, yolov3_tiny
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.weights.convert import export_detector
from chromabox.detect.weights.load import Detector

ROOT = Path(__file__).parents[1]
#: Modules that inference must not need.
EXCLUDED = ("torch", "scipy", "matplotlib", "sklearn", "skimage", "supervision", "onnx")
#: Maximum size of the environment in bytes.
MAX_BYTES = 300e6


def run(*command: str | Path, cwd: Path | None = None, expected: int = 0) -> str:
    """Run a command and return its output. If the exit code is not the expected one, exit with the output."""
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=600)
    if result.returncode != expected:
        sys.exit(f"{' '.join(map(str, command))}: exit code {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


def write_images(folder: Path) -> None:
    """Write two smooth greyscale images with edges."""
    folder.mkdir()
    rows, columns = np.mgrid[:240, :320]
    for index in range(2):
        pixels = 120 + 80 * np.sin(rows / 30 + index) * np.cos(columns / 40) + 40 * (columns > 160)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
        (wheel,) = folder.glob("*.whl")
        environment = folder / "environment"
        venv.create(environment)
        python, chromabox = environment / "bin" / "python", environment / "bin" / "chromabox"
        run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", wheel)
        num_bytes = sum(path.stat().st_size for path in environment.rglob("*") if path.is_file())
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB; environment: {num_bytes / 1e6:.0f} MB")
        if num_bytes > MAX_BYTES:
            sys.exit(f"the environment has {num_bytes / 1e6:.0f} MB; expected at most {MAX_BYTES / 1e6:.0f} MB")
        code = f"import importlib.util as u; print([n for n in {EXCLUDED} if u.find_spec(n)])"
        if (installed := run(python, "-c", code).strip()) != "[]":
            sys.exit(f"installed in the fresh environment: {installed}")
        write_images(folder / "images")
        torch.manual_seed(0)
        model = DarknetModel(yolov3_tiny(), DARKNET).eval()
        export_detector(Detector(model, COCO_CLASSES, 416, {}), folder / "detector.onnx")
        run(chromabox, "colour", "images", "-o", "coloured", cwd=folder)
        run(chromabox, "colour", "images/0.png", "-o", "palette.png", "--palette", "coloured/1.png", cwd=folder)
        run(chromabox, "score", "coloured", "coloured", "-o", "scores", cwd=folder)
        run(chromabox, "detect", "images", "-o", "detections", "--weights", "detector.onnx", cwd=folder)
        for command in COMMANDS:
            run(chromabox, command, "--help")
        message = run(chromabox, "train", "unet", "-o", "run", cwd=folder, expected=2)
        if "pip install 'chromabox[train]'" not in message or message.count("\n") != 1:
            sys.exit(f"train printed {message!r}; expected one line that names the extra")
        print(f"colour, score, detect and {len(COMMANDS)} help texts work without {', '.join(EXCLUDED)}")


if __name__ == "__main__":
    main()
