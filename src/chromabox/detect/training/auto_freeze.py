"""Automatic choice of the number of frozen layers by short training runs (``--freeze auto``).

The trials use training images only, some of which are held out for validation. Freezing the most layers is fastest and
is tried first. Fewer layers are then tried for as long as this increases AP50 sufficiently.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from chromabox.detect.data.dataset import DetectionDataset
from chromabox.detect.data.split import train_val_split
from chromabox.detect.models.architecture import Architecture, Convolution
from chromabox.detect.training.batches import DataSplits, epoch_batch_indices
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.finetune import FinetuneJob
from chromabox.detect.training.freeze import FreezeReport, layer_flops, num_backbone_layers
from chromabox.detect.training.setup import InitialState
from chromabox.engine.autotune import RuntimeConfig, resolve_device
from chromabox.engine.runs import RunDir
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.engine.trainer import fit

log = logging.getLogger(__name__)

#: Number of epochs and maximum number of images of a trial, and the fraction of these images used for validation.
TRIAL_EPOCHS, MAX_TRIAL_IMAGES, TRIAL_VAL_FRACTION = 3, 160, 0.25
#: Increase in AP50 that justifies the longer training time of fewer frozen layers.
MIN_GAIN = 0.02


@dataclass(frozen=True)
class FreezeTrial:
    """Result of one trial: AP50 on the held-out images, in [0, 1], and seconds per epoch."""

    freeze_report: FreezeReport
    ap50: float
    epoch_seconds: float

    def __str__(self) -> str:
        flops = f"{100 * self.freeze_report.flops_fraction:>11.0f} %"
        return f"{self.freeze_report.num_layers:>6}  {flops}  {self.epoch_seconds:>16.1f}  {100 * self.ap50:>6.1f} %"


def choose_num_frozen(config: FinetuneConfig, initial: InitialState, options: RuntimeOptions) -> FinetuneConfig:
    """Return the configuration with ``freeze="auto"`` replaced by a number of layers, and log a table of the trials."""
    trial_state = replace(initial, splits=trial_split(initial.splits.train, config.seed))
    runtime = RuntimeConfig(device=resolve_device(options), threads=options.threads or torch.get_num_threads())
    log.info(
        f"--freeze auto: trials of {TRIAL_EPOCHS} epochs on {len(trial_state.splits.train.samples)} training images, "
        f"validated on {len(trial_state.splits.val.samples)} others\nlayers  forward pass  seconds per epoch   AP50"
    )
    trials: list[FreezeTrial] = []
    for depth in reversed(candidate_depths(initial.detector.architecture)):
        trials.append(run_trial(replace(config, freeze=depth), trial_state, runtime))
        log.info(str(trials[-1]))
        if select_best_trial(trials) is not trials[-1]:
            break
    num_frozen = select_best_trial(trials).freeze_report.num_layers
    log.info(f"--freeze auto: freezing the first {num_frozen} layers")
    return replace(config, freeze=num_frozen)


def candidate_depths(architecture: Architecture) -> list[int]:
    """Return the numbers of layers to try, in ascending order.

    They correspond to no layers, about one third and two thirds of the backbone's FLOPs, and the whole backbone.
    """
    flops = layer_flops(architecture)[: num_backbone_layers(architecture)]
    depths = {0, len(flops)}
    for fraction in (1 / 3, 2 / 3):
        total = 0.0
        for index, layer_cost in enumerate(flops):
            total += layer_cost
            if total >= fraction * sum(flops):
                # Layers without parameters are frozen together with the layers before them.
                while index + 1 < len(flops) and not isinstance(architecture.layers[index + 1], Convolution):
                    index += 1
                depths.add(index + 1)
                break
    return sorted(depths)


def trial_split(train: DetectionDataset, seed: int) -> DataSplits:
    """Split some of the training images into the training and validation sets of the trials."""
    indices = epoch_batch_indices(len(train.samples), MAX_TRIAL_IMAGES, seed, 0)[0]
    subset = train_val_split(
        replace(train, samples=tuple(train.samples[index] for index in indices)),
        val_fraction=TRIAL_VAL_FRACTION,
        seed=seed,
    )
    return DataSplits(subset.split("train"), None, subset.split("val"), ())


def run_trial(config: FinetuneConfig, initial: InitialState, runtime: RuntimeConfig) -> FreezeTrial:
    """Train briefly with one fixed view per image, in a temporary folder."""
    config = replace(config, recipe=replace(config.recipe, epochs=TRIAL_EPOCHS), num_cached_views=1)
    job = FinetuneJob(config, initial)
    with TemporaryDirectory() as folder, job.open_task(RunDir(Path(folder)), runtime) as (task, schedule):
        fit(task, schedule, folder=Path(folder), runtime=runtime)
        records = RunDir(Path(folder)).metrics()
    median_seconds = sorted(record["seconds"] for record in records)[len(records) // 2]
    return FreezeTrial(job.freeze_report, records[-1]["val_ap50"], median_seconds)


def select_best_trial(trials: list[FreezeTrial]) -> FreezeTrial:
    """Return the trial with the most frozen layers among those within ``MIN_GAIN`` of the best AP50.

    It is also the fastest of them.
    """
    best = max(trial.ap50 for trial in trials)
    good = [trial for trial in trials if trial.ap50 >= best - MIN_GAIN]
    return max(good, key=lambda trial: trial.freeze_report.num_layers)
