"""How many layers to freeze, found by trying: short runs at a few depths on training pictures alone.

The pictures to judge by are not looked at; a part of the training pictures is held out for the trials. The deepest
freeze is the fastest and is tried first, then shallower ones as long as that is worth their time.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from chromabox.detect.data.dataset import DetectionDataset
from chromabox.detect.data.split import train_val_split
from chromabox.detect.models.architecture import Architecture, Convolution
from chromabox.detect.training.batches import AugmentedSamples, DataSplits, cached_reader, epoch_batch_indices
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.freeze import FreezeReport, layer_flops, num_backbone_layers
from chromabox.detect.training.setup import (
    FeatureCaches,
    InitialState,
    apply_freezing,
    build_finetune_task,
    build_loss,
    initialise_run,
)
from chromabox.engine.autotune import RuntimeConfig, resolve_device
from chromabox.engine.logger import read_metrics
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.engine.trainer import fit

#: Epochs and the most pictures of a trial, and the share of them that it is judged by.
TRIAL_EPOCHS, MAX_TRIAL_IMAGES, TRIAL_VAL_FRACTION = 3, 160, 0.25
#: AP50 by which a shallower freeze must be better to be worth its time.
MIN_GAIN = 0.02


@dataclass(frozen=True)
class FreezeTrial:
    """What came of one depth: AP50 on the fold that was held out, and seconds an epoch."""

    freeze_report: FreezeReport
    ap50: float
    epoch_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.freeze_report.num_layers:>6}  {100 * self.freeze_report.flops_fraction:>11.0f} %  {self.epoch_seconds:>15.1f}  "
            f"{100 * self.ap50:>6.1f} %"
        )


def choose_num_frozen(
    config: FinetuneConfig, options: RuntimeOptions, *, log: Callable[[str], None] = print
) -> FinetuneConfig:
    """The configuration with the number of layers to freeze in the place of ``auto``; the trials are told as a table.

    Raises what beginning the run itself raises.
    """
    begun = initialise_run(replace(config, freeze="none"), None)
    begun = replace(begun, splits=trial_split(begun.splits.train, config.seed))
    execution = RuntimeConfig(device=resolve_device(options), threads=options.threads or torch.get_num_threads())
    config = replace(config, runtime=execution)
    log(
        f"freeze auto: trials of {TRIAL_EPOCHS} epochs on {len(begun.splits.train.samples)} training pictures, judged on "
        f"{len(begun.splits.val.samples)} others\nlayers  forward work  seconds an epoch   AP50"
    )
    trials: list[FreezeTrial] = []
    views = AugmentedSamples(begun.splits.train, config.recipe.name, config.size, config.seed, cached_reader())
    for depth in reversed(candidate_depths(begun.detector.architecture)):
        with TemporaryDirectory() as folder:
            trials.append(run_trial(replace(config, freeze=depth), begun, views, Path(folder)))
        log(str(trials[-1]))
        if select_best_trial(trials) is not trials[-1]:
            break
    chosen = select_best_trial(trials).freeze_report.num_layers
    log(f"the first {chosen} layers are frozen")
    return replace(config, freeze=chosen, runtime=None)


def candidate_depths(architecture: Architecture) -> list[int]:
    """Depths worth a trial: none, about a third and two thirds of the backbone's work, and the backbone."""
    amounts = layer_flops(architecture)[: num_backbone_layers(architecture)]
    found = {0, len(amounts)}
    for share in (1 / 3, 2 / 3):
        done = 0.0
        for index, amount in enumerate(amounts):
            done += amount
            if done >= share * sum(amounts):
                # What does not learn goes to the layers before it.
                while index + 1 < len(amounts) and not isinstance(architecture.layers[index + 1], Convolution):
                    index += 1
                found.add(index + 1)
                break
    return sorted(found)


def trial_split(train: DetectionDataset, seed: int) -> DataSplits:
    """Some training pictures as the whole data of a trial."""
    chosen = epoch_batch_indices(len(train.samples), MAX_TRIAL_IMAGES, seed, 0)[0]
    some = train_val_split(
        replace(train, samples=tuple(train.samples[index] for index in chosen)),
        val_fraction=TRIAL_VAL_FRACTION,
        seed=seed,
    )
    return DataSplits(some.split("train"), None, some.split("val"), ())


def run_trial(config: FinetuneConfig, initial: InitialState, samples: AugmentedSamples, folder: Path) -> FreezeTrial:
    """One short run, with one fixed view of each picture, in a ``folder`` that nobody needs afterwards."""
    config = replace(config, recipe=replace(config.recipe, epochs=TRIAL_EPOCHS), num_cached_views=1)
    assert config.runtime is not None
    net = copy.deepcopy(initial.detector.model).train()
    frozen = apply_freezing(config, initial, net)
    until = 0 if frozen.update_bn_stats else frozen.num_layers
    config.runtime.prepare(net)
    with ExitStack() as stack:
        caches = FeatureCaches(stack, config, folder, net, until, lambda line: None)
        judge = caches.build_validator(initial.splits.val, samples)
        batches = caches.train_batches(samples)
        job, plan = build_finetune_task(
            config, initial, net, until, build_loss(net, config), judge, batches, len(samples)
        )
        fit(job, plan, folder=folder, runtime=config.runtime)
    records = read_metrics(folder)
    seconds = sorted(record["seconds"] for record in records)[len(records) // 2]
    return FreezeTrial(frozen, records[-1]["val_ap50"], seconds)


def select_best_trial(trials: list[FreezeTrial]) -> FreezeTrial:
    """The deepest freeze whose AP50 is within ``WORTH`` of the best: it is also the fastest."""
    best = max(trial.ap50 for trial in trials)
    return max(
        (trial for trial in trials if trial.ap50 >= best - MIN_GAIN), key=lambda trial: trial.freeze_report.num_layers
    )
