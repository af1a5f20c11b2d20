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
class TrainingArgs:
    epochs: Annotated[int | None, option("N", "10; course: 5")] = None
    """Number of epochs."""
    batch_size: Annotated[int | None, option("N", "16")] = None
    """Number of images per batch."""
    size: Integer = 416
    """Side length of the square network input in pixels, a multiple of 32. Images are letterboxed."""
    patience: Annotated[int | None, option("N", "no early stopping")] = None
    """Stop after N epochs without an improvement in AP50 on a held-out part of the training images."""
    cached_views: Integer = 4
    """Number of augmented views per image whose frozen-layer features are cached. 0 disables the cache and
    augments the images again in every epoch."""
    cache_memory: Annotated[float, option("GB")] = 1.0
    """Maximum memory for cached features. Larger caches are stored as memory-mapped files in the run folder."""


@dataclass(frozen=True)
class ClassArgs:
    keep_old_classes: bool = False
    """Keep the classes of the initial weights, and append the new classes of the dataset."""
    retention_data: Annotated[str | None, option("NAME|PATH", "not measured")] = None
    """Dataset on which the AP50 of the original classes is measured before and after fine-tuning."""


@dataclass(frozen=True)
class FinetuneArgs:
    data: Annotated[Positional[str | None], option("DATA", "required unless --resume is given")] = None
    """A labelled dataset: a folder, a .yaml or .json file, or a name (coco128 or raccoon, from CHROMABOX_MIRROR or the
    cache)."""
    weights: Annotated[str, option("NAME|PATH")] = "yolov3-tiny"
    """yolov3-tiny (pretrained weights, downloaded and cached), a .safetensors, .weights, .onnx or .pt file, or a run
    folder."""
    freeze: Annotated[str, option("N|NAME")] = "backbone"
    """Layers to freeze: the first N layers, backbone, none, or auto (selected by short trials)."""
    recipe: FinetuneRecipeName = "default"
    """default: the recommended recipe; course: settings of the assignment's fine-tuning script."""
    seed: Integer = 0
    """Random seed."""
    output: Annotated[Path | None, option("PATH", "runs/finetune-DATA-seedN", short="-o")] = None
    """Run folder."""
    resume: Annotated[Path | None, option("PATH", "start a new run")] = None
    """Resume the run in this folder exactly where it stopped."""
    training: OmitArgPrefixes[TrainingArgs] = TrainingArgs()
    classes: Annotated[OmitArgPrefixes[ClassArgs], arg(name="class")] = ClassArgs()
    runtime: OmitArgPrefixes[RuntimeOptions] = DEFAULT_RUNTIME


def finetune(args: FinetuneArgs) -> int:
    """Fine-tune a detector on a labelled dataset.

    By default, the backbone is frozen, including its BatchNorm statistics.

    Examples:
      chromabox finetune raccoons/ --epochs 10 -o runs/raccoon
      chromabox finetune coco128 --freeze 10 --recipe course
      chromabox finetune raccoons/ --keep-old-classes --retention-data coco128
      chromabox finetune --resume runs/raccoon
    """
    from chromabox.detect.training.config import FinetuneConfig
    from chromabox.engine.runs import RunDir

    if args.resume is not None:
        run = RunDir(args.resume)
        config = run.resume_config(FinetuneConfig, args.runtime)
        allowed = FinetuneArgs(resume=args.resume, runtime=args.runtime)
        run.reject_changes(config, args, allowed, "runtime options")
    else:
        if args.data is None:
            raise UsageError("no dataset given: expected a labelled dataset, or --resume RUN")
        config = FinetuneConfig(
            data=absolute_path(args.data),
            recipe=make_finetune_recipe(args.recipe, epochs=args.training.epochs, batch_size=args.training.batch_size),
            weights=absolute_path(args.weights),
            freeze=args.freeze,
            size=args.training.size,
            num_cached_views=args.training.cached_views,
            cache_memory_gb=args.training.cache_memory,
            keep_old_classes=args.classes.keep_old_classes,
            retention_data=args.classes.retention_data and absolute_path(args.classes.retention_data),
            patience=args.training.patience,
            seed=args.seed,
        )
        run = RunDir(args.output or Path("runs") / f"finetune-{Path(args.data).stem}-seed{args.seed}")
        run.require_new()
    from chromabox.report.training import run_finetune

    run_finetune(config, run, options=args.runtime, resume=args.resume is not None)
    return 0
