"""The command ``finetune``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from chromabox.cli.options import DEFAULT_RUNTIME, Integer, absolute_path, option
from chromabox.detect.training.recipes import FinetuneRecipeName, make_finetune_recipe
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError


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
        recipe: default: the recommended recipe; course: settings of the assignment's fine-tuning script.
        seed: Random seed.
        output: Run folder.
        resume: Resume the run in this folder exactly where it stopped.
    """
    from chromabox.detect.training.config import FinetuneConfig
    from chromabox.engine.runs import RunDir

    if resume is not None:
        args = FinetuneArgs(data, weights, freeze, recipe, seed, output, resume, training, classes, runtime)
        run = RunDir(resume)
        config = run.resume_config(FinetuneConfig, runtime)
        run.reject_changes(config, args, FinetuneArgs(resume=resume, runtime=runtime), "runtime options")
    else:
        if data is None:
            raise UsageError("no dataset given: expected a labelled dataset, or --resume RUN")
        if training.patience is not None and training.patience < 1:
            raise UsageError(f"--patience is {training.patience}, expected at least 1")
        retention_data = classes.retention_data
        config = FinetuneConfig(
            data=absolute_path(data),
            recipe=make_finetune_recipe(recipe, epochs=training.epochs, batch_size=training.batch_size),
            weights=absolute_path(weights),
            freeze=freeze,
            size=training.size,
            num_cached_views=training.cached_views,
            cache_memory_gb=training.cache_memory,
            keep_old_classes=classes.keep_old_classes,
            retention_data=None if retention_data is None else absolute_path(retention_data),
            patience=training.patience,
            seed=seed,
        )
        run = RunDir(output or Path("runs") / f"finetune-{Path(data).stem}-seed{seed}")
        run.require_new()
    from chromabox.report.training import run_finetune

    run_finetune(config, run, options=runtime, resume=resume is not None)
    return 0
