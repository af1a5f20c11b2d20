"""Automatic choice of the number of frozen layers by short training runs (``--freeze auto``).

The trials use only training images, some of which are held out for validation. The first trial freezes the largest
number of layers, because this trial is the fastest. Further trials freeze fewer and fewer layers, until a trial does
not increase AP50 sufficiently.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from chromabox.detect.data.dataset import DetectionDataset
from chromabox.detect.data.split import train_val_split
from chromabox.detect.models.architecture import Architecture, Convolution
from chromabox.detect.training.batches import DataSplits, epoch_batch_indices
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.finetune import FinetuneJob
from chromabox.detect.training.freeze import layer_flops, num_backbone_layers
from chromabox.detect.training.setup import InitialState
from chromabox.engine.autotune import RuntimeConfig, resolve_device
from chromabox.engine.options import RuntimeOptions
from chromabox.engine.runs import RunDir
from chromabox.engine.trainer import TrainingInterrupted, fit

log = logging.getLogger(__name__)

#: Number of epochs and maximum number of images of a trial, and the fraction of these images used for validation.
TRIAL_EPOCHS, MAX_TRIAL_IMAGES, TRIAL_VAL_FRACTION = 3, 160, 0.25
#: Increase in AP50 that justifies the longer training time of fewer frozen layers.
MIN_GAIN = 0.02


def choose_num_frozen(config: FinetuneConfig, initial: InitialState, options: RuntimeOptions) -> FinetuneConfig:
    """Return the configuration with ``freeze="auto"`` replaced by a number of layers, and log a table of the trials."""
    splits = trial_split(initial.splits.train, config.seed)
    runtime = RuntimeConfig(device=resolve_device(options), threads=options.threads or torch.get_num_threads())
    log.info(
        f"--freeze auto: trials of {TRIAL_EPOCHS} epochs; training images: {len(splits.train.samples)}, "
        f"validation images: {len(splits.val.samples)}\nfrozen  frozen FLOPs  seconds per epoch   AP50"
    )
    ap50: dict[int, float] = {}
    for depth in reversed(candidate_depths(initial.detector.architecture)):
        ap50[depth] = run_trial(replace(config, freeze=depth), replace(initial, splits=splits), runtime)
        if select_num_frozen(ap50) != depth:
            break
    num_frozen = select_num_frozen(ap50)
    log.info(f"--freeze auto: selected number of frozen layers: {num_frozen}")
    return replace(config, freeze=num_frozen)


def candidate_depths(architecture: Architecture) -> list[int]:
    """Return the numbers of frozen layers to try, in ascending order.

    The candidates are 0, the numbers of layers that account for about one third and about two thirds of the FLOPs of
    the backbone, and the number of layers of the backbone.
    """
    flops = layer_flops(architecture)[: num_backbone_layers(architecture)]
    depths = {0, len(flops)}
    for fraction in (1 / 3, 2 / 3):
        totals = enumerate(accumulate(flops), 1)
        depth = next((depth for depth, total in totals if total >= fraction * sum(flops)), 0)
        # Layers without parameters are frozen together with the layers before them.
        while depth < len(flops) and not isinstance(architecture.layers[depth], Convolution):
            depth += 1
        depths.add(depth)
    return sorted(depths)


def trial_split(train: DetectionDataset, seed: int) -> DataSplits:
    """Return a random subset of the training images, split into training and validation images for the trials."""
    indices = epoch_batch_indices(len(train.samples), MAX_TRIAL_IMAGES, seed, 0)[0]
    subset = replace(train, samples=tuple(train.samples[index] for index in indices))
    subset = train_val_split(subset, val_fraction=TRIAL_VAL_FRACTION, seed=seed)
    return DataSplits(subset.split("train"), None, subset.split("val"), (), {})


def run_trial(config: FinetuneConfig, initial: InitialState, runtime: RuntimeConfig) -> float:
    """Train briefly with one fixed view per image, log a row of the table, and return AP50 on the held-out images."""
    config = replace(config, recipe=replace(config.recipe, epochs=TRIAL_EPOCHS), num_cached_views=1)
    job = FinetuneJob(config, initial)
    with TemporaryDirectory() as folder, job.open_task(RunDir(Path(folder)), runtime) as (task, schedule):
        try:
            fit(task, schedule, folder=Path(folder), runtime=runtime)
        except TrainingInterrupted as error:
            message = "stopped during the trials of --freeze auto, which are not saved; start the command again"
            raise TrainingInterrupted(message) from error
        records = RunDir(Path(folder)).metrics()
    ap50, seconds = records[-1]["val_ap50"], median(record["seconds"] for record in records)
    percent = 100 * job.freeze_report.flops_fraction
    log.info(f"{job.freeze_report.num_layers:>6}  {percent:>11.0f} %  {seconds:>16.1f}  {100 * ap50:>6.1f} %")
    return ap50


def select_num_frozen(ap50: Mapping[int, float]) -> int:
    """Return the largest number of frozen layers whose AP50 is at most ``MIN_GAIN`` below the best AP50.

    ``ap50`` maps the number of frozen layers of each trial to its AP50.
    """
    return max(depth for depth, value in ap50.items() if value >= max(ap50.values()) - MIN_GAIN)
