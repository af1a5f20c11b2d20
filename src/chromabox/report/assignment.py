"""All of the assignment by one command: whatever run is missing is made, so that the write-up has all its parts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chromabox.colour.training.recipes import NETS_IN_ORDER, RecipeName
from chromabox.detect.data.load import load_detection_set
from chromabox.detect.training.recipes import FinetuneConfig, finetune_recipe
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.errors import ChromaboxError
from chromabox.report.compare import Comparison, compare
from chromabox.report.finetune_sample import FROZEN, finetune_sample
from chromabox.report.finetuning import finetune_missing
from chromabox.report.sweep import sweep
from chromabox.report.swept import Sweep

DATA = "cifar10:horse"
#: Question B.5 names them.
BATCH_SIZES = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Extent:
    """How much is trained."""

    recipe: RecipeName
    seeds: tuple[int, ...]
    sweep_seeds: tuple[int, ...]
    labelled: str | None
    """The set that a detector learns from; None: one that is made for it."""


#: The assignment to the letter, an hour or so on two cores; and a few minutes' worth.
COURSE = Extent("course", seeds=(0, 1, 2), sweep_seeds=(0, 1), labelled="coco128")
QUICK = Extent("quick", seeds=(0, 1), sweep_seeds=(0,), labelled=None)


@dataclass(frozen=True)
class Done:
    """What was trained, and the folders of it all."""

    comparison: Comparison
    batch_sizes: Sweep
    folders: tuple[Path, ...]


def do_assignment(
    folder: Path,
    extent: Extent,
    *,
    options: ExecutionOptions | None = None,
    say: Callable[[str], None] = print,
) -> Done:
    """Make the runs of the assignment in ``folder``, or take those that are there.

    Called again it goes on where it was stopped.
    """
    nets, batch_sizes = folder / "nets", folder / "batch-sizes"
    comparison = compare(
        nets,
        nets=NETS_IN_ORDER[:3],
        recipe=extent.recipe,
        seeds=extent.seeds,
        data=DATA,
        palette="auto",
        options=options,
        say=say,
    )
    swept = sweep(
        batch_sizes,
        net="conv-transpose",
        recipe=extent.recipe,
        over="batch-size",
        values=BATCH_SIZES,
        seeds=extent.sweep_seeds,
        data=DATA,
        options=options,
        say=say,
    )
    detector = _detector(folder / "detector", extent.labelled, options, say)
    return Done(comparison, swept, (nets, batch_sizes, detector))


def _detector(folder: Path, labelled: str | None, options: ExecutionOptions | None, say: Callable[[str], None]) -> Path:
    """Fine-tuned on the labelled set, or where it cannot be had on one that any machine can make."""
    if labelled is None or not _can_be_had(labelled, say):
        return finetune_sample(folder, say, options=options)
    config = FinetuneConfig(data=labelled, recipe=finetune_recipe("default"), freeze=FROZEN)
    return finetune_missing(folder, lambda: config, options=options, say=say)


def _can_be_had(labelled: str, say: Callable[[str], None]) -> bool:
    try:
        load_detection_set(labelled)
    except ChromaboxError as error:
        say(f"{error}; a set made of CIFAR-10's pictures takes its place")
        return False
    return True
