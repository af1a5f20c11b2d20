"""From a labelled set and trained weights to a run folder: a detector is fine-tuned by the same loop as all nets."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from chromabox.detect.data.dataset import DetectionSet, in_classes_of, plain_name
from chromabox.detect.data.load import load_detection_set
from chromabox.detect.evaluation.bootstrap import paired_difference
from chromabox.detect.evaluation.evaluate import (
    DetectionEvaluation,
    evaluate_detector,
    evaluate_predictions,
    held_out_split,
)
from chromabox.detect.models.darknet import DetectorNet
from chromabox.detect.training.batches import Views, remembering
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.freeze import Frozen
from chromabox.detect.training.setup import Caches, Probe, begin, freeze_for, job_and_plan, loss_of
from chromabox.detect.weights.load import TrainedDetector, load_detector, save_detector
from chromabox.engine.checkpoint import write_json
from chromabox.engine.logger import Record, read_metrics
from chromabox.engine.runs import peak_memory, versions
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.engine.trainer import fit


@dataclass(frozen=True)
class Outcome:
    """What came of a run: ``summary.json``'s content, and both evaluations on the judging pictures."""

    summary: dict[str, Any]
    before: DetectionEvaluation
    after: DetectionEvaluation
    trained: TrainedDetector
    judge: DetectionSet


def finetune(
    config: FinetuneConfig,
    folder: Path,
    *,
    options: ExecutionOptions | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
    after_epoch: Callable[[Record], None] = lambda record: None,
) -> Outcome:
    """Fine-tune into ``folder``, which then holds all that a colour run's holds and ``start.safetensors``.

    The folder is itself weights for ``load_detector``. ``options`` is asked where ``config.execution`` is None.
    Raises UsageError for settings that do not fit, ChromaboxError for data that cannot be used.
    """
    begun = begin(config, folder if resume else None)
    for line in begun.parts.told:
        say(line)
    net = copy.deepcopy(begun.trained.net).train()
    frozen = freeze_for(config, begun, net)
    say(str(frozen))
    until = 0 if frozen.moving_statistics else frozen.layers
    loss = loss_of(net, config)
    views = Views(begun.parts.train, config.recipe.name, config.size, config.seed, remembering())
    if config.execution is None:
        probe = Probe(config, net, until, loss, views, begun)
        config = replace(config, execution=probe.choose(options or ExecutionOptions(), say))
    assert config.execution is not None
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {**asdict(config), "versions": versions()})
    if not resume:
        save_detector(folder / "start.safetensors", begun.trained)
    config.execution.place(net)
    with ExitStack() as stack:
        caches = Caches(stack, config, folder, net, until, say)
        judge = caches.judge(begun.parts.judge, views)
        watch = judge if begun.parts.watch is None else caches.judge(begun.parts.watch, views)
        batches = caches.batches(views)
        job, plan = job_and_plan(config, begun, net, until, loss, watch, batches, len(views))
        trained = fit(
            job,
            plan,
            folder=folder,
            execution=config.execution,
            resume=resume,
            after_epoch=lambda record, net: after_epoch(record),
        )
        best = _best(folder, cast(DetectorNet, trained))
        start = copy.deepcopy(begun.trained.net).to(config.execution.device).eval()
        evaluations = [evaluate_predictions(judge.predict(one), judge.data) for one in (start, best.net)]
    before, after = evaluations
    summary = {
        **_summary(config, folder, frozen, caches.seconds),
        "before": _scores(before),
        "after": _scores(after),
        "difference": {
            name: {"value": found.value, "interval": list(found.interval)}
            for name, found in paired_difference(before.matches, after.matches).items()
        },
        "warnings": [*begun.parts.told, *after.warnings],
    }
    if config.retain is not None:
        summary["retained"] = _retained(config, begun.trained, best)
    write_json(folder / "summary.json", summary)
    return Outcome(summary, before, after, best, judge.data)


def _best(folder: Path, trained: DetectorNet) -> TrainedDetector:
    """The run's result, as whoever loads the folder gets it, where the net is."""
    best = load_detector(folder)
    best.net.to(next(trained.parameters()).device)
    return best


def _scores(evaluation: DetectionEvaluation) -> dict[str, Any]:
    """An evaluation for ``summary.json``."""
    described = evaluation.as_json()
    return {name: described[name] for name in ("ap", "ap50", "ap_interval", "ap50_interval", "per_class")}


def _summary(config: FinetuneConfig, folder: Path, frozen: Frozen, filling: float) -> dict[str, Any]:
    records = read_metrics(folder)
    return {
        "net": "detector",
        "weights": config.weights,
        "data": config.data,
        "recipe": config.recipe.name,
        "seed": config.seed,
        "size": config.size,
        "frozen": frozen.as_json(),
        "epochs": int(records[-1]["epoch"]),
        "seconds_per_epoch": round(float(np.median([record["seconds"] for record in records])), 3),
        "seconds_filling": round(filling, 3),
        "seconds": round(sum(record["seconds"] for record in records) + filling, 3),
        "peak_memory": peak_memory(),
    }


def _retained(config: FinetuneConfig, start: TrainedDetector, best: TrainedDetector) -> dict[str, Any]:
    """Mean AP50 on the retention set of the classes known before and after; before is the weights' own net."""
    assert config.retain is not None
    data = load_detection_set(config.retain)
    chosen = held_out_split(data)
    data = data if chosen is None else data.split(chosen)
    old = load_detector(config.weights)
    if not data.named:
        data, _ = in_classes_of(data, old.classes)
    scores = {}
    for name, detector in (("before", old), ("after", best)):
        found = evaluate_detector(detector, data, size=config.size, draws=2)
        known = {plain_name(each): index for index, each in enumerate(found.classes)}
        shared = [plain_name(each) for each in old.classes if plain_name(each) in map(plain_name, best.classes)]
        values = found.coco.table[0, [known[each] for each in shared]]
        scores[name] = float(np.nanmean(values))
    return {"data": config.retain, "ap50_before": scores["before"], "ap50_after": scores["after"]}
