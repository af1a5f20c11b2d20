"""The command ``finetune``."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from chromabox.cli.options import DEFAULT_RUNTIME, Integer, absolute_path, option, print_line, require_new_run
from chromabox.detect.training.recipes import FinetuneRecipeName, make_finetune_recipe
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError

if TYPE_CHECKING:
    from chromabox.detect.training.config import FinetuneConfig


@dataclass(frozen=True)
class FinetuneTrainingArgs:
    epochs: Annotated[int | None, option("N", "10; course: 5")] = None
    """Number of epochs."""
    batch_size: Annotated[int | None, option("N", "16")] = None
    """Images per batch."""
    size: Integer = 416
    """Input size in pixels (square, letterboxed), a multiple of 32."""
    patience: Annotated[int | None, option("N", "no early stopping")] = None
    """Stop after N epochs without an improvement in AP50 on a held-out part of the training images."""
    cached_views: Integer = 4
    """Augmented views per image whose frozen-layer features are cached; 0 disables the cache and augments the images
    again in every epoch."""
    cache_memory: Annotated[float, option("GB")] = 1.0
    """Maximum RAM for cached features; larger caches are memory-mapped in the run folder."""


@dataclass(frozen=True)
class ClassArgs:
    keep_old_classes: bool = False
    """Keep the classes of the initial weights and append the new classes of the dataset."""
    retention_data: Annotated[str | None, option("NAME|PATH", "not measured")] = None
    """Dataset used to measure how well the original classes are retained."""


@dataclass(frozen=True)
class FinetuneArgs:
    """All options of ``finetune``."""

    data: str | None = None
    weights: str = "yolov3-tiny"
    freeze: str = "backbone"
    recipe: FinetuneRecipeName = "default"
    seed: int = 0
    output: Path | None = None
    resume: Path | None = None
    training: FinetuneTrainingArgs = FinetuneTrainingArgs()
    classes: ClassArgs = ClassArgs()
    runtime: RuntimeOptions = DEFAULT_RUNTIME


def finetune(
    data: Annotated[Positional[str | None], option("DATA", "required unless --resume is given")] = None,
    /,
    *,
    weights: Annotated[str, option("NAME|PATH")] = "yolov3-tiny",
    freeze: Annotated[str, option("N|NAME")] = "backbone",
    recipe: FinetuneRecipeName = "default",
    seed: Integer = 0,
    output: Annotated[Path | None, option("PATH", "runs/finetune-DATA-seedN", short="-o")] = None,
    resume: Annotated[Path | None, option("PATH", "start a new run")] = None,
    training: OmitArgPrefixes[FinetuneTrainingArgs] = FinetuneTrainingArgs(),
    classes: Annotated[OmitArgPrefixes[ClassArgs], arg(name="class")] = ClassArgs(),
    runtime: OmitArgPrefixes[RuntimeOptions] = DEFAULT_RUNTIME,
) -> int:
    """Fine-tune a detector on a labelled dataset.

    The first layers are frozen, including their BatchNorm statistics.

    Examples:
      chromabox finetune raccoons/ --epochs 10 -o runs/raccoon
      chromabox finetune coco128 --freeze 10 --recipe course
      chromabox finetune raccoons/ --keep-old-classes --retention-data coco128
      chromabox finetune --resume runs/raccoon

    Args:
        data: A labelled dataset: a folder, a .yaml or .json file, or a name (coco128, raccoon).
        weights: A name (downloaded and cached), a .safetensors, .weights, .onnx or .pt file, or a run folder.
        freeze: Layers to freeze: the first N, backbone, none, or auto (chosen by short trials).
        recipe: default: our recipe; course: settings of the assignment's tool.
        seed: Random seed.
        output: Run folder.
        resume: Resume the run in this folder exactly where it stopped.
    """
    args = FinetuneArgs(data, weights, freeze, recipe, seed, output, resume, training, classes, runtime)
    folder, config = _new_run(args) if resume is None else _resume_run(args, resume)
    from chromabox.report.training import run_finetune

    run_finetune(config, folder, options=runtime, resume=resume is not None, log=print_line)
    return 0


def _new_run(args: FinetuneArgs) -> "tuple[Path, FinetuneConfig]":
    """Return the folder and configuration of a new run."""
    if args.data is None:
        raise UsageError("no dataset given: expected a labelled dataset, or --resume RUN")
    if args.training.patience is not None and args.training.patience < 1:
        raise UsageError(f"--patience is {args.training.patience}, expected at least 1")
    recipe = make_finetune_recipe(args.recipe, epochs=args.training.epochs, batch_size=args.training.batch_size)
    folder = args.output or Path("runs") / f"finetune-{Path(args.data).stem}-seed{args.seed}"
    require_new_run(folder)
    from chromabox.detect.training.config import FinetuneConfig

    retention_data = args.classes.retention_data
    return folder, FinetuneConfig(
        data=absolute_path(args.data),
        recipe=recipe,
        weights=absolute_path(args.weights),
        freeze=args.freeze,
        size=args.training.size,
        num_cached_views=args.training.cached_views,
        cache_memory_gb=args.training.cache_memory,
        keep_old_classes=args.classes.keep_old_classes,
        retention_data=None if retention_data is None else absolute_path(retention_data),
        patience=args.training.patience,
        seed=args.seed,
    )


def _resume_run(args: FinetuneArgs, folder: Path) -> "tuple[Path, FinetuneConfig]":
    """Return the folder and configuration of an earlier run, with the runtime options that were given."""
    if args != FinetuneArgs(resume=folder, runtime=args.runtime):
        raise UsageError(f"--resume {folder}: the run keeps its settings; only runtime options can be changed")
    from chromabox.detect.training.config import read_finetune_config

    config = read_finetune_config(folder)
    if not (folder / "last.safetensors").is_file():
        raise UsageError(f"--resume {folder}: the run stopped before its first checkpoint; start it again")
    assert config.runtime is not None
    return folder, replace(config, runtime=config.runtime.with_overrides(args.runtime))
