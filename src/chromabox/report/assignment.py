"""All of the assignment by one command: whatever run is missing is made, then the write-up is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chromabox.colour.recipes import NETS_IN_ORDER, RecipeName
from chromabox.detect.finetune import FinetuneConfig
from chromabox.detect.recipes import finetune_recipe
from chromabox.engine.options import ExecutionOptions
from chromabox.report.compare import compare
from chromabox.report.finetuning import finetune_and_report
from chromabox.report.sweep import sweep

#: The assignment's own: question B.5 names them.
BATCH_SIZES = (32, 64, 128, 256, 512)
#: The assignment's tool froze so many layers.
FROZEN = 10


@dataclass(frozen=True)
class Extent:
    """How much is trained for the whole assignment."""

    recipe: RecipeName
    seeds: tuple[int, ...]
    sweep_epochs: int | None
    """None: as many as the assignment's."""
    detection: str
    """The labelled set that the detector learns from."""


#: The assignment to the letter, an hour or so on two cores; and a few minutes' worth.
COURSE = Extent("course", (0, 1, 2), None, "coco128")
QUICK = Extent("quick", (0, 1), 2, "collage")


def do_assignment(
    folder: Path,
    extent: Extent,
    *,
    options: ExecutionOptions | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Make the runs that the write-up is about, or take those that are in ``folder``; returns their folders.

    Stopped, it goes on where it was when called again.
    """
    nets = NETS_IN_ORDER[:3]
    palette, data = "auto", "cifar10:horse"
    runs, batch_sizes = folder / "nets", folder / "batch-sizes"
    compare(
        runs, nets=nets, recipe=extent.recipe, seeds=extent.seeds, data=data, palette=palette, options=options, say=say
    )
