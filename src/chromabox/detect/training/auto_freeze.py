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

from chromabox.detect.data.dataset import DetectionSet
from chromabox.detect.data.split import held_out
from chromabox.detect.models.architecture import Architecture, Convolution
from chromabox.detect.training.batches import Parts, Views, chunks_of, remembering
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.freeze import Frozen, backbone, work
from chromabox.detect.training.setup import Beginning, Caches, begin, freeze_for, job_and_plan, loss_of
from chromabox.engine.autotune import Execution, device_of
from chromabox.engine.logger import read_metrics
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.engine.trainer import fit

#: Epochs and the most pictures of a trial, and the share of them that it is judged by.
EPOCHS, PICTURES, SHARE = 3, 160, 0.25
#: AP50 by which a shallower freeze must be better to be worth its time.
WORTH = 0.02


@dataclass(frozen=True)
class Trial:
    """What came of one depth: AP50 on the fold that was held out, and seconds an epoch."""

    frozen: Frozen
    ap50: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.frozen.layers:>6}  {100 * self.frozen.share_of_work:>11.0f} %  {self.seconds:>15.1f}  "
            f"{100 * self.ap50:>6.1f} %"
        )


def choose_depth(
    config: FinetuneConfig, options: ExecutionOptions, *, say: Callable[[str], None] = print
) -> FinetuneConfig:
    """The configuration with the number of layers to freeze in the place of ``auto``; the trials are told as a table.

    Raises what beginning the run itself raises.
    """
    begun = begin(replace(config, freeze="none"), None)
    begun = replace(begun, parts=fold_of(begun.parts.train, config.seed))
    execution = Execution(device=device_of(options), threads=options.threads or torch.get_num_threads())
    config = replace(config, execution=execution)
    say(
        f"freeze auto: trials of {EPOCHS} epochs on {len(begun.parts.train.pictures)} training pictures, judged on "
        f"{len(begun.parts.judge.pictures)} others\nlayers  forward work  seconds an epoch   AP50"
    )
    trials: list[Trial] = []
    views = Views(begun.parts.train, config.recipe.name, config.size, config.seed, remembering())
    for depth in reversed(depths(begun.trained.architecture)):
        with TemporaryDirectory() as folder:
            trials.append(tried(replace(config, freeze=depth), begun, views, Path(folder)))
        say(str(trials[-1]))
        if best_of(trials) is not trials[-1]:
            break
    chosen = best_of(trials).frozen.layers
    say(f"the first {chosen} layers are frozen")
    return replace(config, freeze=chosen, execution=None)


def depths(architecture: Architecture) -> list[int]:
    """Depths worth a trial: none, about a third and two thirds of the backbone's work, and the backbone."""
    amounts = work(architecture)[: backbone(architecture)]
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


def fold_of(train: DetectionSet, seed: int) -> Parts:
    """Some training pictures as the whole data of a trial."""
    chosen = chunks_of(len(train.pictures), PICTURES, seed, 0)[0]
    some = held_out(replace(train, pictures=tuple(train.pictures[index] for index in chosen)), share=SHARE, seed=seed)
    return Parts(some.split("train"), None, some.split("val"), ())


def tried(config: FinetuneConfig, begun: Beginning, views: Views, folder: Path) -> Trial:
    """One short run, with one fixed view of each picture, in a ``folder`` that nobody needs afterwards."""
    config = replace(config, recipe=replace(config.recipe, epochs=EPOCHS), views=1)
    assert config.execution is not None
    net = copy.deepcopy(begun.trained.net).train()
    frozen = freeze_for(config, begun, net)
    until = 0 if frozen.moving_statistics else frozen.layers
    config.execution.place(net)
    with ExitStack() as stack:
        caches = Caches(stack, config, folder, net, until, lambda line: None)
        judge = caches.judge(begun.parts.judge, views)
        batches = caches.batches(views)
        job, plan = job_and_plan(config, begun, net, until, loss_of(net, config), judge, batches, len(views))
        fit(job, plan, folder=folder, execution=config.execution)
    records = read_metrics(folder)
    seconds = sorted(record["seconds"] for record in records)[len(records) // 2]
    return Trial(frozen, records[-1]["val_ap50"], seconds)


def best_of(trials: list[Trial]) -> Trial:
    """The deepest freeze whose AP50 is within ``WORTH`` of the best: it is also the fastest."""
    best = max(trial.ap50 for trial in trials)
    return max((trial for trial in trials if trial.ap50 >= best - WORTH), key=lambda trial: trial.frozen.layers)
