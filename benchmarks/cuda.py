"""Training on CUDA: agreement with the CPU, images per second, and fraction of the GPU's peak performance.

    python benchmarks/cuda.py --peak-tflops 989 [--seconds 60] [-o benchmarks/results/cuda.json]

UNet, the photo model and a fine-tuned detector are trained on generated images. First, each model is trained for one
epoch in float32 on both devices. The training losses must agree within ``TOLERANCE``. Then each model is trained on the
GPU for about ``--seconds``, with settings selected by a benchmark. ``--peak-tflops`` is the peak performance for dense
bfloat16 in the data sheet of the GPU. A forward and backward pass counts as three forward passes. Without a GPU, the
script prints a message and exits with code 1. Use ``--device cpu`` to test the script.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from chromabox.colour.models import build_model
from chromabox.detect.data.dataset import COCO_CLASSES
from chromabox.detect.models.architecture import DARKNET, yolov3_tiny
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.weights.load import Detector, save_detector
from environment import describe_machine, write_results

#: Largest relative difference of the first epoch's training loss between GPU and CPU in float32.
TOLERANCE = 0.01
NUM_IMAGES, PHOTO_SIZE = 256, 192


def write_dataset(folder: Path) -> None:
    """Write photographs with coloured rectangles, and YOLO labels of the rectangles."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
    for index in range(NUM_IMAGES):
        split = "val" if index % 8 == 0 else "train"
        pixels = np.full((224, 224, 3), rng.integers(0, 256, 3), np.uint8)
        left, top = rng.integers(0, 120, 2)
        width, height = rng.integers(40, 100, 2)
        pixels[top : top + height, left : left + width] = rng.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / "images" / split / f"{index:04d}.png")
        box = (left + width / 2, top + height / 2, width, height)
        label = f"{index % 2} " + " ".join(f"{value / 224:.5f}" for value in box)
        (folder / "labels" / split / f"{index:04d}.txt").write_text(label + "\n")
    yaml = "path: .\ntrain: images/train\nval: images/val\nnames: [first, second]\n"
    (folder / "data.yaml").write_text(yaml)


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the training command of each model, without device, epochs and output."""
    torch.manual_seed(0)
    weights = folder / "untrained.safetensors"
    save_detector(weights, Detector(DarknetModel(yolov3_tiny(), DARKNET).eval(), COCO_CLASSES, PHOTO_SIZE, {}))
    images = str(folder / "data" / "images" / "train")
    detector = ["finetune", str(folder / "data" / "data.yaml"), "--weights", str(weights), "--freeze", "none"]
    return {
        "unet": ["train", "unet", "--data", images, "--size", "32"],
        "photo": ["train", "photo", "--data", images, "--init", "none", "--size", str(PHOTO_SIZE)],
        "detector": [*detector, "--size", str(PHOTO_SIZE), "--cached-views", "0"],
    }


def flops_per_image() -> dict[str, int]:
    """Return the number of floating-point operations of a forward pass for one image."""
    cases = {
        "unet": (build_model("unet"), (1, 1, 32, 32)),
        "photo": (build_model("photo", num_colours=239), (1, 1, PHOTO_SIZE, PHOTO_SIZE)),
        "detector": (DarknetModel(yolov3_tiny(), DARKNET), (1, 3, PHOTO_SIZE, PHOTO_SIZE)),
    }
    flops = {}
    for name, (model, shape) in cases.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(torch.zeros(shape))
        flops[name] = counter.get_total_flops()
    return flops


def train(command: list[str], output: Path, device: str, epochs: int, *, exact: bool) -> list[dict[str, float]]:
    """Run a training command and return the metrics of its epochs."""
    fixed = ["--precision", "float32", "--channels-last", "off", "--compile", "off"] if exact else []
    full = [*command, "--device", device, "--epochs", str(epochs), "-o", str(output), *fixed]
    subprocess.run([sys.executable, "-m", "chromabox", *full], check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak-tflops", type=float, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("this build of PyTorch finds no CUDA device")
    flops, results, failed = flops_per_image(), {}, False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder / "data")
        for model, command in commands(folder).items():
            cpu, gpu = (
                train(command, folder / f"{model}-{side}", device, 1, exact=True)[0]["train_loss"]
                for side, device in (("reference", "cpu"), ("tested", options.device))
            )
            difference = abs(gpu / cpu - 1)
            failed |= not difference <= TOLERANCE
            seconds = train(command, folder / f"{model}-short", options.device, 2, exact=False)[-1]["seconds"]
            epochs = max(2, round(options.seconds / seconds))
            records = train(command, folder / f"{model}-long", options.device, epochs, exact=False)
            rate = NUM_IMAGES * 7 / 8 * (len(records) - 1) / sum(record["seconds"] for record in records[1:])
            share = 3 * flops[model] * rate / (options.peak_tflops * 1e12)
            results[model] = {"loss_difference": difference, "images_per_second": rate, "fraction_of_peak": share}
            verdict = "" if difference <= TOLERANCE else f" (above {TOLERANCE:.0%})"
            print(f"{model}: loss differs by {difference:.2%}{verdict}; {rate:.0f} images/s, {share:.2%} of the peak")
    if options.output:
        device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
        write_results(options.output, {"results": results, "device": device, "machine": describe_machine()})
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
