"""Fine-tuning of a detector on a labelled dataset, from trained weights to a run folder."""

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from chromabox.detect.data.augment import letterbox_sample
from chromabox.detect.data.dataset import DetectionDataset, list_names, normalise_name
from chromabox.detect.data.validate import issues_as_json
from chromabox.detect.evaluation.bootstrap import paired_difference
from chromabox.detect.evaluation.evaluate import (
    DetectionEvaluation,
    evaluate_detector,
    evaluate_predictions,
)
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.batches import (
    AugmentedSamples,
    DetectionBatch,
    Item,
    SampleBoxes,
    ViewLoader,
    cached_batches,
    epoch_batch_indices,
    fill_feature_cache,
    stack_targets,
    stream_batches,
)
from chromabox.detect.training.config import CachePrecision, FinetuneConfig
from chromabox.detect.training.feature_cache import FeatureCache, to_image_batch
from chromabox.detect.training.freeze import freeze
from chromabox.detect.training.recipes import FinetuneRecipe, scale_lr
from chromabox.detect.training.setup import (
    InitialState,
    RetentionTest,
    build_finetune_optimizers,
    build_loss,
    build_teacher,
    compute_losses,
    finetune_lr_schedule,
    initialise_run,
    prepare_retention,
)
from chromabox.detect.training.validator import Validator
from chromabox.detect.weights.load import Detector, detector_metadata, load_detector, save_detector
from chromabox.engine.autotune import RuntimeConfig
from chromabox.engine.options import RuntimeOptions
from chromabox.engine.runs import RunDir, peak_memory_bytes
from chromabox.engine.train import EpochCallback, Forward, run_training
from chromabox.engine.trainer import TrainSchedule, TrainTask, make_schedule

log = logging.getLogger(__name__)

#: Maximum number of different images in the batch that is used for timing.
_NUM_PROBE_IMAGES = 8


@dataclass(frozen=True)
class FinetuneResult:
    """Result of a run: the contents of ``summary.json``, and the evaluations on the validation images ``val_data``.

    ``before`` is the evaluation of the initial model. ``detector`` is the best model, and ``after`` is its evaluation.
    """

    summary: dict[str, Any]
    before: DetectionEvaluation
    after: DetectionEvaluation
    detector: Detector
    val_data: DetectionDataset


class FinetuneJob:
    """Fine-tuning of a detector: the model with its frozen layers, and the feature caches of the run."""

    def __init__(self, config: FinetuneConfig, initial: InitialState, retention: RetentionTest | None = None) -> None:
        self.config, self.initial, recipe = config, initial, config.recipe
        self.retention = retention
        self.model = copy.deepcopy(initial.detector.model).train()
        self.freeze_report = freeze(
            self.model,
            config.freeze,
            update_bn_stats=recipe.update_bn_stats,
            freeze_all_bn=recipe.freeze_all_bn and not initial.num_new_classes,
        )
        # Features of layers whose BatchNorm statistics are updated cannot be cached.
        self.num_frozen = 0 if self.freeze_report.update_bn_stats else self.freeze_report.num_layers
        self.num_cached = self.num_frozen if config.num_cached_views else 0
        self.loss = build_loss(self.model, config)
        self.samples = AugmentedSamples(initial.splits.train, recipe.name, config.size, config.seed, initial.read_image)
        self.batches_per_epoch = len(epoch_batch_indices(len(self.samples), recipe.batch_size, config.seed, 0))
        self.num_steps = recipe.epochs * self.batches_per_epoch
        self.memory_left = round(config.cache_memory_gb * 1e9)
        self.fill_seconds = 0.0

    def __str__(self) -> str:
        recipe = self.scaled_recipe
        factor = recipe.lr / self.config.recipe.lr
        kind = "no class of the dataset is new" if not self.initial.num_new_classes else "new classes are added"
        reason = f" ({factor:g} times that of the recipe, because {kind}; see --learning-rate)" if factor != 1 else ""
        return f"{self.freeze_report}\npeak learning rate: {recipe.lr:g}{reason}\n{len(self.samples):,} training images"

    @property
    def scaled_recipe(self) -> FinetuneRecipe:
        """The recipe with the learning rates of this run, which depend on whether there are new classes."""
        recipe = self.config.recipe
        if not self.initial.num_new_classes:
            return scale_lr(recipe, recipe.lr_scale_same_classes)
        return scale_lr(recipe, recipe.lr_scale_added_classes) if self.config.keep_old_classes else recipe

    def describe_classes(self) -> str:
        """Return a line with the classes that are taken over from the initial weights, and those that are new."""
        kept, new, dropped = (
            f"{len(names)}{f' ({list_names(names, 20)})' if names else ''}"
            for names in self.initial.class_origins.values()
        )
        return (
            f"classes taken over from the weights: {kept}; new classes: {new}; classes of the weights that are "
            f"dropped: {dropped}"
        )

    def trial_loss(self, device: str) -> Callable[[Forward], Tensor]:
        """Return a function that computes the loss of a model on a fixed batch of the first training images."""
        views = [self.samples.sample(0, index) for index in range(min(_NUM_PROBE_IMAGES, len(self.samples)))]
        indices = [index % len(views) for index in range(min(self.config.recipe.batch_size, len(self.samples)))]
        with torch.no_grad():
            images = to_image_batch([torch.from_numpy(pixels) for pixels, _ in views])
            features = self.model.forward_features(images, self.num_cached)
        batch = (
            {layer: feature[indices].to(device) for layer, feature in features.items()},
            stack_targets([views[index][1] for index in indices]).to(device),
        )
        teacher = build_teacher(self.config, self.initial, self.loss, device)
        return lambda forward: compute_losses(forward, batch, self.loss, self.num_cached, teacher)["loss"]

    def save_inputs(self, run: RunDir) -> None:
        """Write the initial model and the data splits to the run folder."""
        save_detector(run.path / "start.safetensors", self.initial.detector)
        self.initial.splits.images.write(run.path / "splits.json")

    @contextmanager
    def open_task(
        self, run: RunDir, runtime: RuntimeConfig
    ) -> Iterator[tuple[TrainTask[DetectionBatch], TrainSchedule]]:
        """Fill the feature caches, and yield the training task and its schedule.

        The caches exist until the context ends.
        """
        config, recipe, splits = self.config, self.scaled_recipe, self.initial.splits
        runtime.prepare(self.model)
        with ExitStack() as self.caches:
            monitored = "val_ap50_missing" if splits.early_stopping is not None else None
            self.validator = monitor = self._make_validator(run.path / "cache-val", splits.val, runtime.threads)
            if splits.early_stopping is not None:
                folder = run.path / "cache-early-stopping"
                monitor = self._make_validator(folder, splits.early_stopping, runtime.threads)
            schedule = make_schedule(config, self.batches_per_epoch, accumulate=recipe.accumulate, monitor=monitored)
            if recipe.ema_decay:
                schedule = replace(schedule, ema_decay=recipe.ema_decay, ema_warmup_steps=recipe.ema_warmup_steps)
            optimizers = build_finetune_optimizers(self.model, recipe)
            teacher = build_teacher(config, self.initial, self.loss, runtime.device)
            data = {"recipe": recipe.name, "data": Path(config.data).name}
            metadata = {**detector_metadata(self.initial.detector), **data}
            task = TrainTask(
                model=self.model,
                optimizers=optimizers,
                batches=self._train_batches(run.path / "cache-train", runtime.device, runtime.threads),
                compute_loss=lambda forward, batch: compute_losses(forward, batch, self.loss, self.num_cached, teacher),
                validate=lambda model: monitor.evaluate(cast(DarknetModel, model), self.loss),
                lr_schedule=finetune_lr_schedule(recipe, optimizers, self.batches_per_epoch),
                checkpoint_metadata=lambda: metadata,
            )
            yield task, schedule

    def _make_validator(self, folder: Path, data: DetectionDataset, workers: int) -> Validator:
        """Return a validator for a dataset. Features of the images are cached in float32, without augmentation."""
        size, variant, read_image = self.config.size, self.model.variant, self.initial.read_image
        load = partial(letterbox_sample, size=size, variant=variant, read_image=read_image)
        cache, boxes = self._fill_cache(folder, data.samples, load, "float32", workers)
        return Validator(data, size, cache, boxes)

    def _train_batches(self, folder: Path, device: str, workers: int) -> Callable[[int, int], Iterator[DetectionBatch]]:
        """Return a function that yields training batches, from a feature cache if ``num_cached`` is not 0."""
        config, samples, batch_size = self.config, self.samples, self.config.recipe.batch_size
        if not self.num_cached:
            return stream_batches(samples, batch_size, device=device, workers=workers)
        num_views = min(config.num_cached_views, config.recipe.epochs)
        views = [(view, index) for view in range(num_views) for index in range(len(samples))]
        cache, boxes = self._fill_cache(
            folder, views, lambda view: samples.sample(*view), config.cache_precision, workers
        )
        return cached_batches(cache, boxes, len(samples), batch_size, config.seed, device=device)

    def _fill_cache(
        self, folder: Path, items: Sequence[Item], load: ViewLoader[Item], precision: CachePrecision, workers: int
    ) -> tuple[FeatureCache, list[SampleBoxes]]:
        """Return a filled cache and the boxes of its views.

        The cache is in memory if it fits into the remaining memory, otherwise in a file in ``folder``.
        """
        start_time = time.perf_counter()
        cache = FeatureCache(self.model, self.num_frozen, self.config.size, len(items), precision)
        self.caches.enter_context(cache.open(folder, self.memory_left))
        self.memory_left -= cache.num_bytes if cache.num_bytes <= self.memory_left else 0
        boxes = fill_feature_cache(cache, self.model, items, load, workers=workers)
        self.fill_seconds += time.perf_counter() - start_time
        return cache, boxes

    def summarise(self, run: RunDir, model: nn.Module) -> dict[str, Any]:
        """Evaluate the initial and the best model on the validation images, and return the summary of the run.

        The evaluations and the best model are also stored as attributes.
        """
        config, records, device = self.config, run.metrics(), next(model.parameters()).device
        self.best = load_detector(run.path)
        initial_model = copy.deepcopy(self.initial.detector.model).eval()
        self.before, self.after = (
            evaluate_predictions(self.validator.predict(each.to(device))[0], self.validator.data)
            for each in (initial_model, self.best.model)
        )
        stored = ("ap", "ap50", "ap_interval", "ap50_interval", "per_class")
        before, after = (
            {name: value for name, value in evaluation.as_json().items() if name in stored}
            for evaluation in (self.before, self.after)
        )
        seconds = [record["seconds"] for record in records]
        summary = {
            "net": "detector",
            "weights": config.weights,
            "data": config.data,
            "fingerprint": self.initial.splits.fingerprint,
            "recipe": config.recipe.name,
            "seed": config.seed,
            "size": config.size,
            "classes": self.initial.class_origins,
            "frozen": self.freeze_report.as_json(),
            "epochs": int(records[-1]["epoch"]),
            "seconds_per_epoch": round(float(np.median(seconds)), 3),
            "seconds_filling": round(self.fill_seconds, 3),
            "seconds": round(sum(seconds) + self.fill_seconds, 3),
            "peak_memory": peak_memory_bytes(),
            "before": before,
            "after": after,
            "difference": {
                name: {"value": value, "interval": list(interval)}
                for name, (value, interval) in paired_difference(self.before.matches, self.after.matches).items()
            },
            "warnings": [*self.initial.splits.warnings, *self.after.warnings],
            "faults": issues_as_json(self.initial.issues),
        }
        if self.retention is not None:
            retained = _evaluate_retention(self.retention, self.best, config.size)
            summary["retained"] = {"data": config.retention_data, "ap50_before": retained[0], "ap50_after": retained[1]}
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
    """Fine-tune a detector, write the run to ``folder``, and return the result.

    In addition to the files of every training run, the folder contains the initial model, ``start.safetensors``, and
    the data splits, ``splits.json``. ``load_detector`` accepts the folder as weights. If the initial state has already
    been prepared, pass it as ``initial``. See :func:`chromabox.engine.train.run_training` for the other arguments.

    Raise UsageError for invalid settings, and ChromaboxError for data that cannot be used.
    """
    initial = initial or initialise_run(config, folder if resume else None)
    retention = prepare_retention(config, initial.detector)
    for warning in initial.splits.warnings:
        log.warning(warning)
    job = FinetuneJob(config, initial, retention)
    log.info(job.describe_classes())
    # torch.compile has no effect: training calls DarknetModel.forward_from, not forward.
    options = replace(options or RuntimeOptions(), compile="off")
    summary = run_training(job, RunDir(folder), options=options, resume=resume, callbacks=callbacks)
    return FinetuneResult(summary, job.before, job.after, job.best, job.validator.data)


def _evaluate_retention(test: RetentionTest, best: Detector, size: int) -> list[float]:
    """Evaluate the original weights and the best model on the retention data.

    Return the mean AP50 of each model over the classes that both models have.
    """
    scores = []
    for detector in (test.original, best):
        evaluation = evaluate_detector(detector, test.data, size=size, num_resamples=2)
        indices = {normalise_name(name): index for index, name in enumerate(evaluation.classes)}
        scores.append(float(np.nanmean(evaluation.coco.table[0, [indices[name] for name in test.classes]])))
    return scores
