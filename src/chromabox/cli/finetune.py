"""The verb that fine-tunes a detector on a labelled set."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes, Positional

from chromabox.cli.options import OptionalOutputPath, absolute_path, print_line, require_new_run
from chromabox.detect.training.recipes import FinetuneRecipeName, make_finetune_recipe
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError

if TYPE_CHECKING:
    from chromabox.detect.training.config import FinetuneConfig


@dataclass(frozen=True)
class FinetuneArgs:
    """What to learn from, from which weights, and what of them stays."""

    data: Positional[str | None] = None
    """A labelled set: a folder, a .yaml, a .json, or a name (coco128, raccoon)."""
    weights: str = "yolov3-tiny"
    """A name (fetched and kept), a .safetensors, .weights, .onnx or .pt file, or the folder of a run."""
    freeze: str = "backbone"
    """The first N layers, or backbone, or none, or auto: the depth is chosen by short trials."""
    recipe: FinetuneRecipeName = "default"
    """default: ours; course: the setting of the course's tool."""
    epochs: int | None = None
    """Instead of the recipe's (default 10, course 5)."""
    size: int = 416
    """Side in pixels of the square that pictures are laid into, a multiple of 32."""
    batch_size: int | None = None
    """Pictures a step, instead of the recipe's 16."""
    cached_views: int = 4
    """Fixed views of each picture, of which what the frozen layers make of them is computed once; 0: new views in every
    epoch, and nothing is kept."""
    cache_memory: float = 1.0
    """GB of memory for what the frozen layers make; what is larger lies in a file of the run folder meanwhile."""
    keep_old_classes: bool = False
    """Keep the classes that the weights know, and append those of the data that are new."""
    retention_data: str | None = None
    """A labelled set on which is measured how well the old classes are still found."""
    patience: int | None = None
    """Stop after so many epochs without a better AP50, on training pictures kept apart for that."""
    seed: int = 0
    """Seed of everything random."""
    resume: Path | None = None
    """A run folder to go on with, exactly where it stopped."""
    output: OptionalOutputPath = None
    """The run folder; runs/finetune-DATA-seedN if left out."""
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)


def finetune(*, options: OmitArgPrefixes[FinetuneArgs]) -> int:
    """Fine-tune a detector on your own labelled pictures, with its first layers really still.

    chromabox finetune raccoons/ --epochs 10 -o runs/raccoon

    chromabox finetune coco128 --freeze 10 --recipe course

    chromabox finetune raccoons/ --keep-old-classes --retain coco128

    chromabox finetune --resume runs/raccoon
    """
    folder, config = _new_run(options) if options.resume is None else _resume_run(options)
    from chromabox.report.training import run_finetune

    run_finetune(config, folder, options=options.runtime, resume=options.resume is not None, log=print_line)
    return 0


def _new_run(options: FinetuneArgs) -> "tuple[Path, FinetuneConfig]":
    """A new run's folder and configuration."""
    if options.data is None:
        raise UsageError("data: name a labelled set to learn from, or give --resume RUN")
    if options.patience is not None and options.patience < 1:
        raise UsageError(f"patience is {options.patience}: give at least 1")
    recipe = make_finetune_recipe(options.recipe, epochs=options.epochs, batch_size=options.batch_size)
    folder = options.output or Path("runs") / f"finetune-{Path(options.data).stem}-seed{options.seed}"
    require_new_run(folder)
    from chromabox.detect.training.config import FinetuneConfig

    return folder, FinetuneConfig(
        data=absolute_path(options.data),
        recipe=recipe,
        weights=absolute_path(options.weights),
        freeze=options.freeze,
        size=options.size,
        num_cached_views=options.cached_views,
        cache_memory_gb=options.cache_memory,
        keep_old_classes=options.keep_old_classes,
        retention_data=None if options.retention_data is None else absolute_path(options.retention_data),
        patience=options.patience,
        seed=options.seed,
    )


def _resume_run(options: FinetuneArgs) -> "tuple[Path, FinetuneConfig]":
    """An earlier run's folder and configuration; only how it uses the machine may be changed."""
    folder = options.resume
    assert folder is not None
    if replace(options, runtime=RuntimeOptions()) != FinetuneArgs(resume=folder):
        raise UsageError(
            f"resume: {folder} goes on with its own data and settings; besides --resume only how the run uses the "
            "machine can be given"
        )
    from chromabox.detect.training.config import read_finetune_config

    config = read_finetune_config(folder)
    if not (folder / "last.safetensors").is_file():
        raise UsageError(f"{folder}: stopped before its first checkpoint; start it anew")
    assert config.runtime is not None
    return folder, replace(config, runtime=config.runtime.with_overrides(options.runtime))
