"""Fine-tuning of a detector on a labelled dataset, from trained weights to a run folder."""

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
    apply_freezing,
    build_finetune_task,
    build_loss,
    initialise_run,
    pick_finetune_runtime,
)
from chromabox.detect.weights.load import Detector, load_detector, save_detector
from chromabox.engine.checkpoint import write_json
from chromabox.engine.logger import EpochRecord, read_metrics
from chromabox.engine.runs import peak_memory_bytes, write_config
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.engine.trainer import fit


@dataclass(frozen=True)
class FinetuneResult:
    """Result of a run: the contents of ``summary.json``, and the evaluations on the validation images.

    ``before`` is the evaluation of the initial model, ``after`` that of the best model, which is ``detector``.
    """

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
    """Fine-tune a detector and write the run to ``folder``.

    The folder contains the files of every training run and the initial model, ``start.safetensors``. ``load_detector``
    accepts it as weights.

    Args:
        config: all settings of the run.
        folder: the run folder; created if it does not exist.
        options: runtime options, used if ``config.runtime`` is None to select the fastest settings.
        resume: continue the run in ``folder`` from its last checkpoint.
        log: called with each message.
        on_epoch_end: called with the metrics of each epoch.

    Raise UsageError for invalid settings, ChromaboxError for data that cannot be used, and TrainingInterrupted on
    Ctrl-C or SIGTERM.
    """
    initial = initialise_run(config, folder if resume else None)
    splits = initial.splits
    for warning in splits.warnings:
        log(warning)
    model = copy.deepcopy(initial.detector.model).train()
    freeze_report = apply_freezing(config, initial, model)
    log(str(freeze_report))
    # Features of layers whose BatchNorm statistics keep updating cannot be cached.
    num_frozen = 0 if freeze_report.update_bn_stats else freeze_report.num_layers
    loss = build_loss(model, config)
    samples = AugmentedSamples(splits.train, config.recipe.name, config.size, config.seed, cached_reader())
    if config.runtime is None:
        runtime = pick_finetune_runtime(config, model, num_frozen, loss, samples, initial, options or RuntimeOptions())
        config = replace(config, runtime=runtime)
        log(f"{len(samples):,} training images, on {runtime}")
    assert config.runtime is not None
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)
    if not resume:
        save_detector(folder / "start.safetensors", initial.detector)
    config.runtime.prepare(model)
    with ExitStack() as stack:
        caches = FeatureCaches(stack, config, folder, model, num_frozen, log)
        validator = caches.build_validator(splits.val, samples)
        monitor = validator if splits.early_stopping is None else caches.build_validator(splits.early_stopping, samples)
        batches = caches.train_batches(samples)
        task, schedule = build_finetune_task(config, initial, model, num_frozen, loss, monitor, batches, len(samples))
        trained = fit(
            task,
            schedule,
            folder=folder,
            runtime=config.runtime,
            resume=resume,
            on_epoch_end=lambda record, model: on_epoch_end(record),
        )
        best = _load_best(folder, cast(DarknetModel, trained))
        initial_model = copy.deepcopy(initial.detector.model).to(config.runtime.device).eval()
        before, after = (
            evaluate_predictions(validator.predict(each), validator.data) for each in (initial_model, best.model)
        )
    summary = {
        **_run_summary(config, folder, freeze_report, caches.fill_seconds),
        "before": _evaluation_summary(before),
        "after": _evaluation_summary(after),
        "difference": {
            name: {"value": difference.value, "interval": list(difference.interval)}
            for name, difference in paired_difference(before.matches, after.matches).items()
        },
        "warnings": [*splits.warnings, *after.warnings],
    }
    if config.retention_data is not None:
        summary["retained"] = _evaluate_retention(config, best)
    write_json(folder / "summary.json", summary)
    return FinetuneResult(summary, before, after, best, validator.data)


def _load_best(folder: Path, model: DarknetModel) -> Detector:
    """Load the best checkpoint of a run onto the device of ``model``."""
    best = load_detector(folder)
    best.model.to(next(model.parameters()).device)
    return best


def _evaluation_summary(evaluation: DetectionEvaluation) -> dict[str, Any]:
    """Return the part of an evaluation that is stored in ``summary.json``."""
    values = evaluation.as_json()
    return {name: values[name] for name in ("ap", "ap50", "ap_interval", "ap50_interval", "per_class")}


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


def _evaluate_retention(config: FinetuneConfig, best: Detector) -> dict[str, Any]:
    """Evaluate the retention data with the original weights and with the best model.

    The result contains the mean AP50 of both over the classes they share.
    """
    assert config.retention_data is not None
    data = load_detection_dataset(config.retention_data)
    split = default_split(data)
    data = data if split is None else data.split(split)
    original = load_detector(config.weights)
    if not data.has_class_names:
        data, _ = remap_classes(data, original.classes)
    best_classes = {normalise_name(name) for name in best.classes}
    shared = [normalise_name(name) for name in original.classes if normalise_name(name) in best_classes]
    scores = {}
    for key, detector in (("before", original), ("after", best)):
        evaluation = evaluate_detector(detector, data, size=config.size, num_resamples=2)
        indices = {normalise_name(name): index for index, name in enumerate(evaluation.classes)}
        ap50 = evaluation.coco.table[0, [indices[name] for name in shared]]
        scores[key] = float(np.nanmean(ap50))
    return {"data": config.retention_data, "ap50_before": scores["before"], "ap50_after": scores["after"]}
