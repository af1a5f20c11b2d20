"""The commands ``detect`` and ``finetune``."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from chromabox.cli.options import (
    DEFAULT_RUNTIME,
    Float,
    Integer,
    OutputPath,
    absolute_path,
    log,
    log_lines,
    option,
)
from chromabox.detect.training.recipes import FinetuneRecipeName, make_finetune_recipe
from chromabox.engine.options import RuntimeOptions
from chromabox.errors import UsageError


def detect(
    inputs: Annotated[Positional[tuple[Path, ...]], option("PATH ...", "required")] = (),
    /,
    *,
    output: OutputPath = Path("detections"),
    weights: Annotated[str, option("NAME|PATH")] = "yolov3-tiny",
    format: Annotated[tuple[Literal["images", "json", "csv", "yolo"], ...], option("FORMAT ...", "images")] = (),
    confidence: Float = 0.5,
    iou: Float = 0.45,
    classes: Annotated[tuple[str, ...], option("CLASS ...", "all")] = (),
    size: Annotated[int | None, option("N", "the size stored with the weights")] = None,
    device: Annotated[str, option("NAME")] = "auto",
    workers: Annotated[int | None, option("N", "one per core")] = None,
    overwrite: bool = False,
) -> int:
    """Detect objects in images, folders and videos.

    Writes annotated copies, or the boxes as JSON, CSV or a YOLO dataset.

    Examples:
      chromabox detect holiday/ -o annotated/
      chromabox detect dog.jpg -o dog-annotated.jpg --confidence 0.3
      chromabox detect holiday/ -o boxes.json --classes person dog
      chromabox detect film.mp4 -o film-annotated.mp4

    Args:
        inputs: Images, videos and folders. Files in folders are recognised by their content.
        output: Output folder, file for a single annotated image or video, or .json or .csv file for the boxes.
        weights: yolov3-tiny (pretrained weights, downloaded and cached), a .safetensors, .weights, .onnx or .pt file,
            or a run folder. Class names of .weights files are read from the .names file with the same name.
        format: Outputs to write: images (annotated), json (COCO results), csv, yolo (a dataset: copies
            of the images and, of videos, each frame as JPEG; labels; data.yaml).
        confidence: Minimum confidence of the detections (0 to 1).
        iou: IoU threshold for non-maximum suppression (0 to 1).
        classes: Detect only these classes, given by name or index.
        size: Side length of the square network input in pixels, a multiple of 32. Images are letterboxed.
        device: cpu, cuda, coreml, directml, or auto (the best device that ONNX Runtime supports on this machine).
        workers: Number of images to process in parallel.
        overwrite: Replace existing files that Chromabox did not write.
    """
    from chromabox.detect.inference.batch import plan_detection_outputs, run_detection

    plan = plan_detection_outputs(inputs, output, format, overwrite=overwrite)
    from chromabox.detect.inference.load import open_detector
    from chromabox.detect.inference.predict import InferenceOptions
    from chromabox.io.kinds import count_skipped

    # Several images are processed in parallel by one thread each. A single image or a video frame uses all threads.
    threads = 1 if len(plan.images) > 1 and not plan.videos else None
    detector = open_detector(weights, size=size, threads=threads, device=device)
    options = InferenceOptions.for_detector(detector, confidence, iou, classes or None, size)
    log.info(f"weights: {weights}, network input: {options.size} pixels")
    summary = run_detection(plan, detector, options, workers=workers)
    log_lines(summary, *count_skipped(plan.skipped), output)
    failures = [*summary.errors, *plan.unreadable]
    for failure in failures:
        log.warning(f"failed: {failure}")
    return 1 if failures else 0


@dataclass(frozen=True)
class TrainingArgs:
    epochs: Annotated[int | None, option("N", "10; course: 5")] = None
    """Number of epochs."""
    batch_size: Annotated[int | None, option("N", "16")] = None
    """Number of images per batch."""
    learning_rate: Annotated[float | None, option("X", "set by the recipe; lower without new classes")] = None
    """Peak learning rate of the convolution kernels. All other learning rates change by the same factor."""
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
    classes: Annotated[tuple[str, ...], option("CLASS ...", "all")] = ()
    """Train only on these classes of the dataset, given by name or number."""
    keep_old_classes: bool = False
    """Keep the classes of the initial weights, and append the new classes of the dataset."""
    new_classes: Annotated[list[str] | None, option("CLASS ...", "classes whose names the weights lack")] = None
    """Classes of the dataset that are new although the weights have a class of this name, for example mouse (an animal,
    but a device in COCO). Without names: all classes."""
    retention_data: Annotated[str | None, option("NAME|PATH", "not measured")] = None
    """Dataset on which the AP50 of the original classes is measured before and after fine-tuning."""


@dataclass(frozen=True)
class FinetuneArgs:
    data: Annotated[Positional[str | None], option("DATA", "required unless --resume is given")] = None
    """A labelled dataset: a folder or .zip file, a .yaml, .data or .json file, or a name (coco128 or raccoon, from
    CHROMABOX_MIRROR or the cache). With --resume: where the dataset of the run is now, if it was moved."""
    moved_data: Annotated[str | None, option("DATA", "the dataset of the run", name="data")] = None
    """The same as the argument DATA."""
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
      chromabox finetune --resume runs/raccoon --data moved/raccoons/
    """
    from chromabox.detect.training.config import FinetuneConfig
    from chromabox.engine.runs import RunDir

    if args.data is not None and args.moved_data is not None:
        raise UsageError(f"two datasets given, {args.data} and --data {args.moved_data}: expected one")
    data = args.data if args.moved_data is None else args.moved_data
    if args.resume is not None:
        run = RunDir(args.resume)
        config = run.resume_config(FinetuneConfig, args.runtime)
        allowed = FinetuneArgs(data=args.data, moved_data=args.moved_data, resume=args.resume, runtime=args.runtime)
        run.reject_changes(config, args, allowed, "the place of the dataset and runtime options")
        config = config if data is None else replace(config, data=absolute_path(data))
    else:
        if data is None:
            raise UsageError("no dataset given: expected a labelled dataset, or --resume RUN")
        training = args.training
        config = FinetuneConfig(
            data=absolute_path(data),
            recipe=make_finetune_recipe(
                args.recipe,
                epochs=training.epochs,
                batch_size=training.batch_size,
                learning_rate=training.learning_rate,
            ),
            weights=absolute_path(args.weights),
            freeze=args.freeze,
            size=args.training.size,
            num_cached_views=args.training.cached_views,
            cache_memory_gb=args.training.cache_memory,
            classes=list(args.classes.classes) or None,
            keep_old_classes=args.classes.keep_old_classes,
            new_classes=args.classes.new_classes,
            retention_data=args.classes.retention_data and absolute_path(args.classes.retention_data),
            patience=args.training.patience,
            seed=args.seed,
        )
        run = RunDir(args.output or Path("runs") / f"finetune-{Path(data).stem}-seed{args.seed}")
        run.require_new()
    from chromabox.report.training import run_finetune

    run_finetune(config, run, options=args.runtime, resume=args.resume is not None)
    return 0
