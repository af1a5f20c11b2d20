"""Fine-tuning of a detector on a labelled dataset, from trained weights to a run folder."""

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

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
from chromabox.detect.training.batches import (
    AugmentedSamples,
    DetectionBatch,
    cached_batches,
    epoch_batch_indices,
    fill_feature_cache,
    stack_targets,
    stream_batches,
)
from chromabox.detect.training.config import CachePrecision, FinetuneConfig
from chromabox.detect.training.feature_cache import FeatureCache, open_cache, plan_cache
from chromabox.detect.training.freeze import freeze
from chromabox.detect.training.recipes import scale_lr
from chromabox.detect.training.setup import (
    InitialState,
    build_finetune_optimizers,
    build_loss,
    build_teacher,
    compute_losses,
    finetune_lr_schedule,
    initialise_run,
)
from chromabox.detect.training.validator import Validator, make_validator
from chromabox.detect.weights.load import Detector, detector_metadata, load_detector, save_detector
from chromabox.engine.autotune import RuntimeConfig
from chromabox.engine.runs import RunDir, peak_memory_bytes
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.engine.train import EpochCallback, Forward, run_training
from chromabox.engine.trainer import TrainSchedule, TrainTask, make_schedule

log = logging.getLogger(__name__)

#: Number of images used for timing: the batch size of the frozen layers.
_NUM_PROBE_IMAGES = 8


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


class FinetuneJob:
    """Fine-tuning of a detector: the model with its frozen layers, and the feature caches of the run."""

    def __init__(self, config: FinetuneConfig, initial: InitialState) -> None:
        self.config, self.initial = config, initial
        self.model = copy.deepcopy(initial.detector.model).train()
        recipe = config.recipe
        self.freeze_report = freeze(
            self.model,
            config.freeze,
            update_bn_stats=recipe.update_bn_stats,
            freeze_all_bn=recipe.freeze_all_bn and not initial.num_new_classes,
        )
        # Features of layers whose BatchNorm statistics keep updating cannot be cached.
        self.num_frozen = 0 if self.freeze_report.update_bn_stats else self.freeze_report.num_layers
        self.num_cached = self.num_frozen if config.num_cached_views else 0
        self.loss = build_loss(self.model, config)
        self.samples = AugmentedSamples(initial.splits.train, recipe.name, config.size, config.seed, initial.read_image)
        self.batches_per_epoch = len(epoch_batch_indices(len(self.samples), recipe.batch_size, config.seed, 0))
        self.num_steps = recipe.epochs * self.batches_per_epoch
        self.memory_left = round(config.cache_memory_gb * 1e9)
        #: Seconds spent on filling the caches.
        self.fill_seconds = 0.0

    def __str__(self) -> str:
        return f"{self.freeze_report}\n{len(self.samples):,} training images"

    def trial_loss(self, device: str) -> Callable[[Forward], Tensor]:
        """Return the loss of a batch of the first images."""
        data = replace(self.samples.data, samples=self.samples.data.samples[:_NUM_PROBE_IMAGES])
        spec = plan_cache(self.model, self.num_cached, self.config.size, len(data.samples), "float32")
        cache = FeatureCache(spec, None)
        boxes = fill_feature_cache(cache, self.model, self.num_cached, replace(self.samples, data=data), 1)
        indices = [index % len(boxes) for index in range(min(self.config.recipe.batch_size, len(self.samples)))]
        features = {layer: feature.to(device) for layer, feature in cache.read(indices).items()}
        batch = features, stack_targets([boxes[index] for index in indices]).to(device)
        teacher = build_teacher(self.config, self.initial, self.loss, device)
        return lambda forward: compute_losses(forward, batch, self.loss, self.num_cached, teacher)["loss"]

    def save_inputs(self, run: RunDir) -> None:
        """Write the initial model and the data splits."""
        save_detector(run.path / "start.safetensors", self.initial.detector)
        self.initial.splits.save(run.path / "splits.json")

    @contextmanager
    def open_task(
        self, run: RunDir, runtime: RuntimeConfig
    ) -> Iterator[tuple[TrainTask[DetectionBatch], TrainSchedule]]:
        """Fill the feature caches and yield the task and its schedule; the caches exist within the context."""
        config, recipe, splits = self.config, self.config.recipe, self.initial.splits
        runtime.prepare(self.model)
        if not self.initial.num_new_classes:
            recipe = scale_lr(recipe, recipe.lr_scale_same_classes)
        elif config.keep_old_classes:
            recipe = scale_lr(recipe, recipe.lr_scale_added_classes)
        with ExitStack() as stack:
            self.validator = self._make_validator(stack, run, runtime, splits.val, "cache-val")
            monitor = self.validator
            if splits.early_stopping is not None:
                monitor = self._make_validator(stack, run, runtime, splits.early_stopping, "cache-early-stopping")
            schedule = make_schedule(
                config,
                self.batches_per_epoch,
                accumulate=recipe.accumulate,
                monitor="val_ap50_missing" if splits.early_stopping is not None else None,
            )
            if recipe.ema_decay:
                schedule = replace(schedule, ema_decay=recipe.ema_decay, ema_warmup_steps=recipe.ema_warmup_steps)
            optimizers = build_finetune_optimizers(self.model, recipe)
            teacher = build_teacher(config, self.initial, self.loss, runtime.device)
            metadata = {**detector_metadata(self.initial.detector), "recipe": recipe.name}
            metadata["data"] = Path(config.data).name
            task = TrainTask(
                model=self.model,
                optimizers=optimizers,
                batches=self._train_batches(stack, run, runtime),
                compute_loss=lambda forward, batch: compute_losses(forward, batch, self.loss, self.num_cached, teacher),
                validate=lambda model: monitor.evaluate(cast(DarknetModel, model), self.loss),
                lr_schedule=finetune_lr_schedule(recipe, optimizers, self.batches_per_epoch),
                checkpoint_metadata=lambda: metadata,
            )
            yield task, schedule

    def _open_cache(
        self, stack: ExitStack, folder: Path, num_frozen: int, num_views: int, precision: CachePrecision
    ) -> FeatureCache:
        """Open a cache in memory if it fits into the remaining memory, else in a file in ``folder``."""
        spec = plan_cache(self.model, num_frozen, self.config.size, num_views, precision)
        cache = stack.enter_context(open_cache(spec, folder, self.memory_left))
        self.memory_left -= spec.num_bytes if spec.num_bytes <= self.memory_left else 0
        return cache

    def _make_validator(
        self, stack: ExitStack, run: RunDir, runtime: RuntimeConfig, data: DetectionDataset, name: str
    ) -> Validator:
        """Return a validator with cached features of the images without augmentation, in float32."""
        start_time = time.perf_counter()
        cache = self._open_cache(stack, run.path / name, self.num_frozen, len(data.samples), "float32")
        read_image = self.initial.read_image
        validator = make_validator(
            cache, self.model, self.num_frozen, data, self.config.size, read_image, workers=runtime.threads
        )
        self.fill_seconds += time.perf_counter() - start_time
        return validator

    def _train_batches(
        self, stack: ExitStack, run: RunDir, runtime: RuntimeConfig
    ) -> Callable[[int, int], Iterator[DetectionBatch]]:
        """Return the training batches, from a cache if layers are frozen and views are fixed."""
        config, samples, device = self.config, self.samples, runtime.device
        if not self.num_cached:
            return stream_batches(samples, config.recipe.batch_size, device=device, workers=runtime.threads)
        start_time = time.perf_counter()
        views_per_image = min(config.num_cached_views, config.recipe.epochs)
        num_views = views_per_image * len(samples)
        cache = self._open_cache(stack, run.path / "cache-train", self.num_cached, num_views, config.cache_precision)
        boxes = fill_feature_cache(
            cache, self.model, self.num_cached, samples, views_per_image, workers=runtime.threads
        )
        self.fill_seconds += time.perf_counter() - start_time
        return cached_batches(cache, boxes, len(samples), config.recipe.batch_size, config.seed, device=device)

    def summarise(self, run: RunDir, model: nn.Module) -> dict[str, Any]:
        """Evaluate the initial and the best model on the validation images; keep the evaluations and the best model."""
        device = next(model.parameters()).device
        self.best = load_detector(run.path)
        initial_model = copy.deepcopy(self.initial.detector.model).eval()
        self.before, self.after = (
            evaluate_predictions(self.validator.predict(each.to(device)), self.validator.data)
            for each in (initial_model, self.best.model)
        )
        records, config = run.metrics(), self.config
        summary = {
            "net": "detector",
            "weights": config.weights,
            "data": config.data,
            "recipe": config.recipe.name,
            "seed": config.seed,
            "size": config.size,
            "frozen": self.freeze_report.as_json(),
            "epochs": int(records[-1]["epoch"]),
            "seconds_per_epoch": round(float(np.median([record["seconds"] for record in records])), 3),
            "seconds_filling": round(self.fill_seconds, 3),
            "seconds": round(sum(record["seconds"] for record in records) + self.fill_seconds, 3),
            "peak_memory": peak_memory_bytes(),
            "before": _evaluation_summary(self.before),
            "after": _evaluation_summary(self.after),
            "difference": {
                name: {"value": value, "interval": list(interval)}
                for name, (value, interval) in paired_difference(self.before.matches, self.after.matches).items()
            },
            "warnings": [*self.initial.splits.warnings, *self.after.warnings],
        }
        if config.retention_data is not None:
            summary["retained"] = _evaluate_retention(config, self.best)
        return summary


def finetune(
    config: FinetuneConfig,
    folder: Path,
    *,
    options: RuntimeOptions | None = None,
    initial: InitialState | None = None,
    resume: bool = False,
    callbacks: Sequence[EpochCallback] = (),
) -> FinetuneResult:
    """Fine-tune a detector into ``folder``; see :func:`chromabox.engine.train.run_training`.

    The folder contains the files of every training run, the initial model, ``start.safetensors``, and the data splits,
    ``splits.json``. ``load_detector`` accepts it as weights. ``initial`` is the initial state, if it is prepared
    already. Raise UsageError for invalid settings, and ChromaboxError for data that cannot be used.
    """
    initial = initial or initialise_run(config, folder if resume else None)
    for warning in initial.splits.warnings:
        log.warning(warning)
    job = FinetuneJob(config, initial)
    # torch.compile has no effect: training calls DarknetModel.forward_from, not forward.
    options = replace(options or RuntimeOptions(), compile="off")
    summary = run_training(job, RunDir(folder), options=options, resume=resume, callbacks=callbacks)
    return FinetuneResult(summary, job.before, job.after, job.best, job.validator.data)


def _evaluation_summary(evaluation: DetectionEvaluation) -> dict[str, Any]:
    """Return the part of an evaluation that is stored in ``summary.json``."""
    values = evaluation.as_json()
    return {name: values[name] for name in ("ap", "ap50", "ap_interval", "ap50_interval", "per_class")}


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
