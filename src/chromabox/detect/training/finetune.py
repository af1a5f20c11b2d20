"""From a labelled set and trained weights to a run folder: a detector is fine-tuned by the same loop as all nets."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from chromabox.detect.data.dataset import DetectionDataset, normalise_name, remap_classes
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.evaluation.bootstrap import paired_difference
from chromabox.detect.evaluation.evaluate import (
    DetectionEvaluation,
    default_split,
    evaluate_detector,
    evaluate_predictions,
)
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.batches import AugmentedSamples, cached_reader
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.freeze import FreezeReport
from chromabox.detect.training.setup import (
    FeatureCaches,
    FinetuneProbe,
    apply_freezing,
    build_finetune_task,
    build_loss,
    initialise_run,
)
from chromabox.detect.weights.load import Detector, load_detector, save_detector
from chromabox.engine.checkpoint import write_json
from chromabox.engine.logger import EpochRecord, read_metrics
from chromabox.engine.runs import peak_memory_bytes, write_config
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.engine.trainer import fit


@dataclass(frozen=True)
class FinetuneResult:
    """What came of a run: ``summary.json``'s content, and both evaluations on the judging pictures."""

    summary: dict[str, Any]
    before: DetectionEvaluation
    after: DetectionEvaluation
    detector: Detector
    val_data: DetectionDataset


def finetune(
    config: FinetuneConfig,
    folder: Path,
    *,
    options: RuntimeOptions | None = None,
    resume: bool = False,
    log: Callable[[str], None] = print,
    on_epoch_end: Callable[[EpochRecord], None] = lambda record: None,
) -> FinetuneResult:
    """Fine-tune into ``folder``, which then holds all that a colour run's holds and ``start.safetensors``.

    The folder is itself weights for ``load_detector``. ``options`` is asked where ``config.execution`` is None.
    Raises UsageError for settings that do not fit, ChromaboxError for data that cannot be used.
    """
    begun = initialise_run(config, folder if resume else None)
    for line in begun.splits.warnings:
        log(line)
    net = copy.deepcopy(begun.detector.model).train()
    frozen = apply_freezing(config, begun, net)
    log(str(frozen))
    until = 0 if frozen.update_bn_stats else frozen.num_layers
    loss = build_loss(net, config)
    views = AugmentedSamples(begun.splits.train, config.recipe.name, config.size, config.seed, cached_reader())
    if config.runtime is None:
        probe = FinetuneProbe(config, net, until, loss, views, begun)
        config = replace(config, runtime=probe.pick_runtime(options or RuntimeOptions(), log))
    assert config.runtime is not None
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)
    if not resume:
        save_detector(folder / "start.safetensors", begun.detector)
    config.runtime.prepare(net)
    with ExitStack() as stack:
        caches = FeatureCaches(stack, config, folder, net, until, log)
        judge = caches.build_validator(begun.splits.val, views)
        watch = (
            judge if begun.splits.early_stopping is None else caches.build_validator(begun.splits.early_stopping, views)
        )
        batches = caches.train_batches(views)
        job, plan = build_finetune_task(config, begun, net, until, loss, watch, batches, len(views))
        trained = fit(
            job,
            plan,
            folder=folder,
            runtime=config.runtime,
            resume=resume,
            on_epoch_end=lambda record, net: on_epoch_end(record),
        )
        best = _load_best(folder, cast(DarknetModel, trained))
        start = copy.deepcopy(begun.detector.model).to(config.runtime.device).eval()
        evaluations = [evaluate_predictions(judge.predict(one), judge.data) for one in (start, best.model)]
    before, after = evaluations
    summary = {
        **_run_summary(config, folder, frozen, caches.fill_seconds),
        "before": _evaluation_summary(before),
        "after": _evaluation_summary(after),
        "difference": {
            name: {"value": found.value, "interval": list(found.interval)}
            for name, found in paired_difference(before.matches, after.matches).items()
        },
        "warnings": [*begun.splits.warnings, *after.warnings],
    }
    if config.retention_data is not None:
        summary["retained"] = _evaluate_retention(config, begun.detector, best)
    write_json(folder / "summary.json", summary)
    return FinetuneResult(summary, before, after, best, judge.data)


def _load_best(folder: Path, model: DarknetModel) -> Detector:
    """The run's result, as whoever loads the folder gets it, where the net is."""
    best = load_detector(folder)
    best.model.to(next(model.parameters()).device)
    return best


def _evaluation_summary(evaluation: DetectionEvaluation) -> dict[str, Any]:
    """An evaluation for ``summary.json``."""
    described = evaluation.as_json()
    return {name: described[name] for name in ("ap", "ap50", "ap_interval", "ap50_interval", "per_class")}


def _run_summary(
    config: FinetuneConfig, folder: Path, freeze_report: FreezeReport, fill_seconds: float
) -> dict[str, Any]:
    records = read_metrics(folder)
    return {
        "net": "detector",
        "weights": config.weights,
        "data": config.data,
        "recipe": config.recipe.name,
        "seed": config.seed,
        "size": config.size,
        "frozen": freeze_report.as_json(),
        "epochs": int(records[-1]["epoch"]),
        "seconds_per_epoch": round(float(np.median([record["seconds"] for record in records])), 3),
        "seconds_filling": round(fill_seconds, 3),
        "seconds": round(sum(record["seconds"] for record in records) + fill_seconds, 3),
        "peak_memory": peak_memory_bytes(),
    }


def _evaluate_retention(config: FinetuneConfig, initial: Detector, best: Detector) -> dict[str, Any]:
    """Mean AP50 on the retention set of the classes known before and after; before is the weights' own net."""
    assert config.retention_data is not None
    data = load_detection_dataset(config.retention_data)
    chosen = default_split(data)
    data = data if chosen is None else data.split(chosen)
    old = load_detector(config.weights)
    if not data.has_class_names:
        data, _ = remap_classes(data, old.classes)
    scores = {}
    for name, detector in (("before", old), ("after", best)):
        found = evaluate_detector(detector, data, size=config.size, num_resamples=2)
        known = {normalise_name(each): index for index, each in enumerate(found.classes)}
        shared = [
            normalise_name(each) for each in old.classes if normalise_name(each) in map(normalise_name, best.classes)
        ]
        values = found.coco.table[0, [known[each] for each in shared]]
        scores[name] = float(np.nanmean(values))
    return {"data": config.retention_data, "ap50_before": scores["before"], "ap50_after": scores["after"]}
