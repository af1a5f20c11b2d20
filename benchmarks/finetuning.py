"""Fine-tuning on real data: what it gains and what it keeps. What it costs: finetuning_speed.py.

    python benchmarks/finetuning.py raccoon coco128 keep [--threads N] [-o RESULTS.json]

* raccoon: AP50 on the set's own 44-box test split by ``chromabox finetune raccoon`` as it stands, and beside it the
  same recipe from random weights, of which nothing is frozen.
* coco128: COCO128's training pictures, judged on 128 of val2017, by our recipe as it stands, and by the course's with
  the course's ten frozen layers.
* keep: raccoon as the 81st class: its AP50, and the mean AP50 of the 80 on the 128 pictures before and after.

Parts that are not asked for stay in RESULTS.json as they are. The sets are found as ``chromabox data check NAME`` finds
them; weights are YOLOv3-tiny's.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import describe, write_results

from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.finetune import finetune
from chromabox.detect.training.recipes import make_finetune_recipe
from chromabox.detect.weights.load import load_detector, save_detector
from chromabox.engine.autotune import RuntimeConfig


def run(folder: Path, **settings: Any) -> dict[str, Any]:
    """The machine and a whole run's summary, without the table of classes and what names this machine's files."""
    machine, begin_at = describe(), time.perf_counter()
    summary = finetune(FinetuneConfig(**settings), folder, log=print).summary
    for part in ("before", "after"):
        del summary[part]["per_class"]
    del summary["warnings"]
    summary["weights"] = Path(summary["weights"]).name
    return {"machine": machine, **summary, "wall_seconds": round(time.perf_counter() - begin_at, 1)}


def random_weights(folder: Path) -> str:
    """YOLOv3-tiny as PyTorch draws it."""
    trained = load_detector("yolov3-tiny")
    torch.manual_seed(0)
    net = DarknetModel(trained.architecture, trained.variant).eval()
    path = folder / "random.safetensors"
    save_detector(path, replace(trained, model=net, metadata={"name": "random"}))
    return str(path)


def raccoon(folder: Path, execution: RuntimeConfig) -> dict[str, Any]:
    settings = {"data": "raccoon", "recipe": make_finetune_recipe("default"), "execution": execution}
    return {
        "trained weights": run(folder / "raccoon", **settings),
        "random weights": run(folder / "random", freeze="none", views=0, weights=random_weights(folder), **settings),
    }


def coco128(folder: Path, execution: RuntimeConfig) -> dict[str, Any]:
    settings = {"data": "coco128", "execution": execution}
    return {
        "default": run(folder / "default", recipe=make_finetune_recipe("default"), **settings),
        "course": run(folder / "course", recipe=make_finetune_recipe("course"), freeze=10, **settings),
    }


def keep(folder: Path, execution: RuntimeConfig) -> dict[str, Any]:
    recipe = make_finetune_recipe("default")
    return run(folder / "keep", data="raccoon", recipe=recipe, keep_old=True, retain="coco128", execution=execution)


def main() -> None:
    parser = argparse.ArgumentParser(metadata=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
