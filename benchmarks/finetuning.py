"""Quality of fine-tuning on real data: accuracy on new classes and retention of the original classes.

    python benchmarks/finetuning.py raccoon coco128 keep [--threads N] [-o RESULTS.json]

* raccoon: AP50 on the dataset's test split (44 boxes) with the default settings of ``chromabox finetune raccoon``, and
  with the same recipe from random weights without frozen layers.
* coco128: AP50 on 128 images of val2017 after fine-tuning on the training images of COCO128, with the default recipe,
  and with the course recipe and its ten frozen layers.
* keep: AP50 of raccoon as the 81st class, and the mean AP50 of the 80 original classes on the 128 images of val2017
  before and after fine-tuning.

Other parts in RESULTS.json are not changed. The datasets are found in the same way as by ``chromabox data check NAME``.
The initial weights are those of YOLOv3-tiny. ``finetuning_speed.py`` measures the speed.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.finetune import finetune
from chromabox.detect.training.recipes import make_finetune_recipe
from chromabox.detect.weights.load import load_detector, save_detector
from chromabox.engine.autotune import RuntimeConfig
from environment import describe_machine, write_results


def run(folder: Path, **settings: Any) -> dict[str, Any]:
    """Run fine-tuning. Return the machine and the summary, without per-class results and local file names."""
    machine, start_time = describe_machine(), time.perf_counter()
    summary = finetune(FinetuneConfig(**settings), folder).summary
    for part in ("before", "after"):
        del summary[part]["per_class"]
    del summary["warnings"]
    summary["weights"] = Path(summary["weights"]).name
    return {"machine": machine, **summary, "wall_seconds": round(time.perf_counter() - start_time, 1)}


def write_random_weights(folder: Path) -> str:
    """Write YOLOv3-tiny with PyTorch's random initialisation and return the path."""
    detector = load_detector("yolov3-tiny")
    torch.manual_seed(0)
    model = DarknetModel(detector.architecture, detector.variant).eval()
    path = folder / "random.safetensors"
    save_detector(path, replace(detector, model=model, metadata={"name": "random"}))
    return str(path)


def raccoon(folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    settings = {"data": "raccoon", "recipe": make_finetune_recipe("default"), "runtime": runtime}
    return {
        "trained weights": run(folder / "raccoon", **settings),
        "random weights": run(
            folder / "random", freeze="none", num_cached_views=0, weights=write_random_weights(folder), **settings
        ),
    }


def coco128(folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    settings = {"data": "coco128", "runtime": runtime}
    return {
        "default": run(folder / "default", recipe=make_finetune_recipe("default"), **settings),
        "course": run(folder / "course", recipe=make_finetune_recipe("course"), freeze=10, **settings),
    }


def keep(folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    recipe = make_finetune_recipe("default")
    return run(
        folder / "keep",
        data="raccoon",
        recipe=recipe,
        keep_old_classes=True,
        retention_data="coco128",
        runtime=runtime,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"raccoon": raccoon, "coco128": coco128, "keep": keep}
    parser.add_argument("parts", nargs="+", choices=parts)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {}
    if options.output is not None and options.output.exists():
        results = json.loads(options.output.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            (Path(folder) / part).mkdir()
            results[part] = parts[part](Path(folder) / part, RuntimeConfig(threads=options.threads))
            print(part, results[part])
            if options.output is not None:
                write_results(options.output, results)


if __name__ == "__main__":
    main()
