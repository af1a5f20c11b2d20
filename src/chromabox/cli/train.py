"""The commands ``train`` and ``evaluate``."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional

from chromabox.cli.options import (
    DEFAULT_RUNTIME,
    DataName,
    Float,
    Integer,
    PaletteName,
    absolute_path,
    option,
    print_line,
)
from chromabox.colour.training.recipes import (
    PALETTE_MODELS,
    ModelName,
    RecipeName,
    make_photo_recipe,
    make_recipe,
)
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import ChromaboxError, UsageError

if TYPE_CHECKING:
    from chromabox.colour.training.train import TrainConfig
    from chromabox.colour.training.train_photo import PhotoConfig
    from chromabox.colour.weights.checkpoint import PhotoModel
    from chromabox.engine.distributed import DistInfo
    from chromabox.engine.runs import ConfigT, RunDir

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingArgs:
    epochs: Annotated[int | None, option("N", "set by the recipe")] = None
    """Number of epochs."""
    batch_size: Annotated[int | None, option("N", "set by the recipe")] = None
    """Images per batch (per process under torchrun)."""
    accumulate: Integer = 1
    """Number of batches whose gradients are accumulated before each optimizer step."""
    learning_rate: Annotated[float | None, option("X", "set by the recipe")] = None
    """Peak learning rate."""
    val_fraction: Float = 0.0
    """Fraction of the training images held out for model selection (0: keep the last epoch)."""
    patience: Annotated[int | None, option("N", "no early stopping")] = None
    """Stop after N epochs without an improvement in validation loss (requires --val-fraction)."""


@dataclass(frozen=True)
class NetworkArgs:
    size: Annotated[int | None, option("N", "32; photo: 192")] = None
    """Side length in pixels of training images read from a folder: a multiple of 8 (photo: of 32)."""
    kernel: Annotated[int | None, option("N", "3")] = None
    """Kernel size of the convolutions."""
    num_filters: Annotated[int | None, option("N", "32")] = None
    """NF, the number of filters."""
    dilation: Annotated[int | None, option("N", "1")] = None
    """Dilation of the convolutions; not available for pool-upsample."""
    init: Annotated[str, option("NAME|PATH")] = "auto"
    """Initial weights for photo: a checkpoint or `shipped` (fine-tuning), `yolov3-tiny` (encoder only) or `none`;
    auto: yolov3-tiny if it can be downloaded."""


@dataclass(frozen=True)
class TrainArgs:
    """All options of ``train``."""

    model: ModelName | None = None
    recipe: RecipeName = "default"
    data: str = "cifar10:horse"
    palette: str = "auto"
    seed: int = 0
    output: Path | None = None
    resume: Path | None = None
    training: TrainingArgs = TrainingArgs()
    network: NetworkArgs = NetworkArgs()
    runtime: RuntimeOptions = DEFAULT_RUNTIME


def train(
    model: Annotated[Positional[ModelName | None], option("MODEL", "required unless --resume is given")] = None,
    /,
    *,
    recipe: RecipeName = "default",
    data: DataName = "cifar10:horse",
    palette: PaletteName = "auto",
    seed: Integer = 0,
    output: Annotated[Path | None, option("PATH", "runs/MODEL-RECIPE-seedN", short="-o")] = None,
    resume: Annotated[Path | None, option("PATH", "start a new run")] = None,
    training: OmitArgPrefixes[TrainingArgs] = TrainingArgs(),
    network: OmitArgPrefixes[NetworkArgs] = NetworkArgs(),
    runtime: OmitArgPrefixes[RuntimeOptions] = DEFAULT_RUNTIME,
) -> int:
    """Train a colourisation model.

    All outputs go to one run folder.

    Examples:
      chromabox train unet --recipe quick -o runs/first
      chromabox train colournet --data photos/
      chromabox train photo --data photos/ --init shipped --epochs 3
      chromabox train --resume runs/first
      torchrun --nproc-per-node 2 -m chromabox train unet

    Args:
        model: pool-upsample, conv-transpose, unet, colournet, or photo (photographs of any size).
        recipe: course: exact assignment settings; default: best 25-epoch recipe; quick: fastest recipe.
        data: cifar10:CLASS (several joined by +), cifar10:all, or a folder of images (photo: always a folder).
        palette: A palette file, horse24, cifar24, course, fitted:K (K colours fitted to the data), or auto: for CIFAR
            horses, the assignment's palette if a mirror provides it, otherwise horse24; for other CIFAR data, cifar24;
            for a folder, 24 colours fitted to its images.
        seed: Random seed.
        output: Run folder.
        resume: Resume the run in this folder exactly where it stopped.
    """
    from chromabox.engine.distributed import init_distributed
    from chromabox.engine.runs import RunDir

    args = TrainArgs(model, recipe, data, palette, seed, output, resume, training, network, runtime)
    if model is None and resume is None:
        raise UsageError(f"no model given: expected one of {', '.join(PALETTE_MODELS)}, photo, or --resume RUN")
    folder = resume or output or Path("runs") / f"{model}-{recipe}-seed{seed}"
    run = RunDir(folder)
    with init_distributed() as dist_info:
        # Of several processes only the main one can check this, since it creates the run.
        if resume is None and dist_info.is_main:
            run.require_new()
        try:
            if model == "photo" or (resume is not None and run.model_name() == "photo"):
                _train_photo(args, run, dist_info)
            else:
                _train_palette_model(args, run, dist_info)
        finally:
            if dist_info.is_main and run.model_name() is not None:
                from chromabox.report.training import plot_run

                plot_run(folder)
        if dist_info.is_main:
            _export_best(folder)
        log.info(f"run: {folder}\ncurves: {folder / 'curves.png'}\nsamples: {folder / 'sheets'}")
    return 0


def _train_palette_model(args: TrainArgs, run: "RunDir", dist_info: "DistInfo") -> None:
    from chromabox.colour.training.train import TrainConfig, load_inputs
    from chromabox.colour.training.train import train as train_model
    from chromabox.report.training import log_metrics, sample_callback

    config = _new_config(args) if args.resume is None else _resumed_config(args, run, TrainConfig)
    inputs = load_inputs(config, args.resume)
    summary = train_model(
        config,
        run.path,
        options=args.runtime,
        inputs=inputs,
        dist_info=dist_info,
        resume=args.resume is not None,
        callbacks=(log_metrics, sample_callback(run.path, inputs)),
    )
    log.info(f"test accuracy {100 * summary['test_accuracy']:.2f} %, test loss {summary['test_loss']:.4f}")


def _train_photo(args: TrainArgs, run: "RunDir", dist_info: "DistInfo") -> None:
    from chromabox.colour.data.photos import load_photos
    from chromabox.colour.training.train_photo import PhotoConfig, train_photo
    from chromabox.report.training import log_metrics, photo_sample_callback

    config = _new_photo_config(args) if args.resume is None else _resumed_config(args, run, PhotoConfig)
    photos = load_photos(Path(config.data))
    summary = train_photo(
        config,
        run.path,
        options=args.runtime,
        photos=photos,
        dist_info=dist_info,
        resume=args.resume is not None,
        callbacks=(log_metrics, photo_sample_callback(run.path, photos)),
    )
    log.info(
        f"best epoch {summary['best_epoch']}: {summary['val_psnr_gain']:+.2f} dB over greyscale, "
        f"ΔE2000 {-100 * summary['val_delta_e_cut']:+.1f} %, colourfulness "
        f"{100 * summary['val_colourfulness']:.0f} % of the originals', on the validation images of {config.data}"
    )


def _export_best(folder: Path) -> None:
    """Write ``best.onnx``, with which inference needs no PyTorch; log the reason if that fails."""
    from chromabox.colour.inference.load import open_model

    try:
        log.info(f"for chromabox colour --model: {open_model(folder).path}")
    except ChromaboxError as error:
        log.warning(f"no best.onnx: {error}")


def _new_photo_config(args: TrainArgs) -> "PhotoConfig":
    """Return the configuration of a new photo run; raise UsageError for options that photo lacks."""
    from chromabox.colour.training.train_photo import PhotoConfig

    defaults, training = TrainArgs(), args.training
    unsupported = {
        "--palette": args.palette != defaults.palette,
        "--val-fraction": training.val_fraction != defaults.training.val_fraction,
        "--kernel": args.network.kernel is not None,
        "--num-filters": args.network.num_filters is not None,
        "--dilation": args.network.dilation is not None,
    }
    for name, given in unsupported.items():
        if given:
            raise UsageError(f"{name}: not supported for photo")
    if args.recipe == "course":
        raise UsageError("--recipe course: not supported for photo, expected default or quick")
    recipe = make_photo_recipe(
        args.recipe,
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        finetune=args.network.init not in ("auto", "none", "yolov3-tiny"),
    )
    return PhotoConfig(
        recipe=recipe, init=absolute_path(args.network.init), size=args.network.size or 192, **_shared_settings(args)
    )


def _new_config(args: TrainArgs) -> "TrainConfig":
    """Return the configuration of a new run of a palette model."""
    from chromabox.colour.training.train import TrainConfig

    network, training = args.network, args.training
    if training.patience is not None and not training.val_fraction:
        raise UsageError("--patience: early stopping needs a validation set; use --val-fraction 0.1")
    assert args.model is not None
    assert args.model != "photo"
    model_args = {"kernel": network.kernel, "num_filters": network.num_filters, "dilation": network.dilation}
    recipe = make_recipe(
        args.recipe,
        args.model,
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
    )
    return TrainConfig(
        model=args.model,
        recipe=recipe,
        palette=absolute_path(args.palette),
        size=network.size or 32,
        val_fraction=training.val_fraction,
        model_args={name: value for name, value in model_args.items() if value is not None},
        **_shared_settings(args),
    )


def _shared_settings(args: TrainArgs) -> dict[str, Any]:
    """Return the settings that the configurations of all models share."""
    if args.training.accumulate < 1:
        raise UsageError(f"--accumulate is {args.training.accumulate}, expected at least 1")
    return {
        "recipe_name": args.recipe,
        "data": absolute_path(args.data),
        "seed": args.seed,
        "accumulate": args.training.accumulate,
        "patience": args.training.patience,
    }


def _resumed_config(args: TrainArgs, run: "RunDir", kind: "type[ConfigT]") -> "ConfigT":
    """Return the configuration of a run to resume; raise UsageError for options that a resumed run cannot change."""
    config = run.resume_config(kind, args.runtime, args.training.epochs)
    training = replace(TrainingArgs(), epochs=args.training.epochs)
    allowed = TrainArgs(resume=args.resume, training=training, runtime=args.runtime)
    if args.model not in (None, config.model) or replace(args, model=None) != allowed:
        raise UsageError(
            f"--resume {args.resume}: the run keeps its settings; only --epochs and runtime options can be changed"
        )
    return config


@dataclass(frozen=True)
class ColourEvaluationArgs:
    temperature: Float = 0.38
    """Temperature of the annealed mean of the predicted colours."""


@dataclass(frozen=True)
class DetectorEvaluationArgs:
    split: Annotated[str | None, option("NAME", "the held-out split")] = None
    """Split of the dataset."""
    size: Annotated[int | None, option("N", "stored with the weights")] = None
    """Input size in pixels (square, letterboxed)."""


def evaluate(
    run: Annotated[Positional[Path | None], option("RUN|PATH|NAME", "the bundled photo model")] = None,
    /,
    *,
    data: Annotated[
        str | None, option("NAME|PATH", "the dataset the model was trained on; required for detectors")
    ] = None,
    output: Annotated[Path | None, option("PATH", "the run folder, otherwise evaluation", short="-o")] = None,
    colour: OmitArgPrefixes[ColourEvaluationArgs] = ColourEvaluationArgs(),
    detector: OmitArgPrefixes[DetectorEvaluationArgs] = DetectorEvaluationArgs(),
) -> int:
    """Evaluate a colourisation model or a detector.

    Colourisation models are compared with baselines and an upper bound; detectors are evaluated with COCO AP.

    Examples:
      chromabox evaluate runs/unet-default-seed0
      chromabox evaluate yolov3-tiny --data coco128 --split val2017 -o evaluation/

    Args:
        run: A run folder, a checkpoint, or the weights of a detector (a file or yolov3-tiny).
        data: Dataset: cifar10:CLASS or a folder of images; for a detector, a labelled dataset.
        output: Output folder.
    """
    if run is not None and _is_detector(run):
        return _evaluate_detector(run, data, detector, output)
    if detector != DetectorEvaluationArgs():
        raise UsageError(f"--split, --size: only for detectors; {run or 'the bundled model'} is a colourisation model")
    from chromabox.colour.data.datasets import load_colour_dataset
    from chromabox.colour.evaluation.evaluate import evaluate as evaluate_model
    from chromabox.colour.weights.checkpoint import PhotoModel, load_model
    from chromabox.engine.checkpoint import write_json
    from chromabox.report.plots import plot_confusion_matrix
    from chromabox.report.tables import print_colour_evaluation

    model = load_model(run)
    if isinstance(model, PhotoModel):
        return _evaluate_photo(model, run, data)
    spec = data or model.metadata.get("data")
    if spec is None:
        raise UsageError(f"{run}: the checkpoint does not record its training data; use --data")
    side = int(model.metadata.get("size", 32))
    result = evaluate_model(model, load_colour_dataset(spec, model.palette, size=side), temperature=colour.temperature)
    folder = output or (Path("evaluation") if run is None else run if run.is_dir() else run.parent)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{model.metadata['net']} on {spec}, palette {model.palette.name}"
    print_colour_evaluation(result, title)
    write_json(folder / "evaluation.json", {"data": spec, "palette": model.palette.name, **result.as_json()})
    plot_confusion_matrix(result.confusion, model.palette.colours, folder / "confusion.png", title)
    print_line(f"{folder / 'evaluation.json'}\n{folder / 'confusion.png'}")
    return 0


def _is_detector(run: Path) -> bool:
    from chromabox.detect.weights.load import is_detector

    return is_detector(run)


def _evaluate_detector(run: Path, data: str | None, args: DetectorEvaluationArgs, output: Path | None) -> int:
    from chromabox.report.detection import evaluate_detector_file

    if data is None:
        raise UsageError(f"{run} is a detector: use --data with a labelled dataset, such as coco128 or a folder")
    folder = output or (run if run.is_dir() else Path("evaluation"))
    evaluate_detector_file(run, data, folder, split=args.split, size=args.size)
    return 0


def _evaluate_photo(model: "PhotoModel", run: Path | None, data: str | None) -> int:
    """Evaluate a photo model on the validation images of a folder, as during training."""
    from chromabox.colour.data.datasets import center_crop
    from chromabox.colour.data.photos import load_photos
    from chromabox.colour.training.train_photo import validate_photo

    if data is None:
        raise UsageError(
            f"{run or 'the bundled model'} is a photo model: use --data with a folder of colour photographs"
        )
    val = [center_crop(image) for image in load_photos(Path(data)).val]
    size = int(model.metadata.get("size", 192))
    for name, value in validate_photo(model.network, model.bins, val, size).items():
        print_line(f"{name}: {value:.4f}")
    print_line(f"{len(val)} images at {size} pixels; for whole images use chromabox colour and chromabox score")
    return 0
