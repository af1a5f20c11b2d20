"""The commands ``train`` and ``evaluate``."""

from contextlib import suppress
from dataclasses import dataclass
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
    log,
    log_lines,
    option,
)
from chromabox.colour.training.recipes import (
    PALETTE_MODELS,
    ModelName,
    RecipeName,
    make_photo_recipe,
    make_recipe,
)
from chromabox.engine.options import RuntimeOptions
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import check_writable_folder

if TYPE_CHECKING:
    from chromabox.colour.training.train import TrainConfig
    from chromabox.colour.training.train_photo import PhotoConfig
    from chromabox.colour.weights.checkpoint import PaletteModel, PhotoModel
    from chromabox.engine.distributed import DistInfo
    from chromabox.engine.runs import ConfigT, RunDir


@dataclass(frozen=True)
class TrainingArgs:
    epochs: Annotated[int | None, option("N", "set by the recipe")] = None
    """Number of epochs."""
    max_steps: Annotated[int | None, option("N", "all epochs")] = None
    """Number of optimizer steps after which training ends, within an epoch if necessary."""
    batch_size: Annotated[int | None, option("N", "set by the recipe")] = None
    """Number of images per batch (per process under torchrun)."""
    accumulate: Integer = 1
    """Number of batches whose gradients are accumulated before each optimizer step."""
    learning_rate: Annotated[float | None, option("X", "set by the recipe")] = None
    """Peak learning rate."""
    val_fraction: Float = 0.0
    """Fraction of the training images that is held out to select the best epoch. 0 selects the last epoch (not
    available for photo, which always uses a validation set)."""
    patience: Annotated[int | None, option("N", "no early stopping")] = None
    """Stop after N epochs without an improvement in validation loss (requires --val-fraction, except
    for photo)."""


@dataclass(frozen=True)
class NetworkArgs:
    size: Annotated[int | None, option("N", "32; photo: 192")] = None
    """Side length in pixels of training images from a folder, a multiple of 8 (photo: a multiple of 32)."""
    max_size: Annotated[int | None, option("N", "--size")] = None
    """Largest side length of training images for photo. The side of each batch is then random."""
    kernel: Annotated[int | None, option("N", "3")] = None
    """Kernel size of the convolutions (not available for photo)."""
    num_filters: Annotated[int | None, option("N", "32")] = None
    """Number of filters (NF in the assignment; not available for photo)."""
    dilation: Annotated[int | None, option("N", "1")] = None
    """Dilation of the convolutions (not available for pool-upsample and photo)."""
    init: Annotated[str, option("NAME|PATH")] = "auto"
    """Initial weights of the photo model: shipped (the bundled model), a checkpoint, efficientnet-lite0 (initialises
    only the encoder), none, or auto (efficientnet-lite0 if its weights are installed, otherwise none)."""


@dataclass(frozen=True)
class TrainArgs:
    model: Annotated[Positional[ModelName | None], option("MODEL", "required unless --resume is given")] = None
    """pool-upsample, conv-transpose, unet, colournet, or photo (photographs of any size)."""
    recipe: RecipeName = "default"
    """course: exact settings of the assignment (not available for photo); default: most accurate recipe (25
    epochs); quick: fastest recipe."""
    data: DataName = "cifar10:horse"
    """cifar10:CLASS (join several classes with +), cifar10:all, or a folder of images (required for photo). For
    photo, also a folder of tar shards."""
    palette: PaletteName = "auto"
    """A palette file, horse24, cifar24, course, fitted:K (K colours fitted to the data), or auto. Photo models do not
    have a palette. For cifar10:horse, auto is the assignment's palette if CHROMABOX_MIRROR provides it, otherwise
    horse24. For other CIFAR data, auto is cifar24. For a folder, auto fits 24 colours to the images."""
    seed: Integer = 0
    """Random seed."""
    output: Annotated[Path | None, option("PATH", "runs/MODEL-RECIPE-seedN", short="-o")] = None
    """Run folder."""
    resume: Annotated[Path | None, option("PATH", "start a new run")] = None
    """Resume the run in this folder exactly where it stopped."""
    training: OmitArgPrefixes[TrainingArgs] = TrainingArgs()
    network: OmitArgPrefixes[NetworkArgs] = NetworkArgs()
    runtime: OmitArgPrefixes[RuntimeOptions] = DEFAULT_RUNTIME

    def recipe_overrides(self) -> dict[str, Any]:
        """Return the arguments that override settings of the recipe."""
        return {name: getattr(self.training, name) for name in ("epochs", "batch_size", "learning_rate")}


def train(args: TrainArgs) -> int:
    """Train a colourisation model.

    All outputs are written to one run folder.

    Examples:
      chromabox train unet --recipe quick -o runs/first
      chromabox train colournet --data photos/
      chromabox train photo --data photos/ --init shipped --epochs 3
      chromabox train --resume runs/first
      torchrun --nproc-per-node 2 -m chromabox train unet
    """
    if args.model is None and args.resume is None:
        raise UsageError(f"no model given: expected one of {', '.join(PALETTE_MODELS)}, photo, or --resume RUN")
    if args.training.accumulate < 1:
        raise UsageError(f"--accumulate is {args.training.accumulate}: expected at least 1")
    if args.training.max_steps is not None and args.training.max_steps < 1:
        raise UsageError(f"--max-steps is {args.training.max_steps}: expected at least 1")
    from chromabox.colour.inference.load import open_model
    from chromabox.engine.autotune import resolve_device
    from chromabox.engine.distributed import init_distributed
    from chromabox.engine.runs import RunDir
    from chromabox.report.training import plot_run

    folder = args.resume or args.output or Path("runs") / f"{args.model}-{args.recipe}-seed{args.seed}"
    if args.resume is None or folder.exists():
        check_writable_folder(folder)
    run = RunDir(folder)
    resolve_device(args.runtime)  # Raises UsageError before data is read.
    with init_distributed() as dist_info:
        # Only the main process checks this, because another process could already find the run that the main process
        # creates.
        if args.resume is None and dist_info.is_main:
            run.require_new()
        is_photo = args.model == "photo" or (args.resume is not None and run.model_name() == "photo")
        try:
            (_train_photo if is_photo else _train_palette_model)(args, run, dist_info)
        finally:
            if dist_info.is_main and run.model_name() in (*PALETTE_MODELS, "photo"):
                # Damaged metrics must not hide the original error.
                with suppress(ChromaboxError):
                    plot_run(folder)
        if dist_info.is_main:
            try:
                log.info(f"model (for chromabox colour --model): {open_model(folder).path}")
            except ChromaboxError as error:
                log.warning(f"no best.onnx was written: {error}")
        log_lines(f"run: {folder}", f"curves: {folder / 'curves.png'}", f"samples: {folder / 'sheets'}")
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


def _new_config(args: TrainArgs) -> "TrainConfig":
    """Return the configuration of a new run of a palette model."""
    from chromabox.colour.training.train import TrainConfig

    if args.training.patience is not None and not args.training.val_fraction:
        raise UsageError("--patience: early stopping needs a validation set; use --val-fraction 0.1")
    if args.network.init != NetworkArgs.init:
        raise UsageError("--init: only supported for photo")
    if args.network.max_size is not None:
        raise UsageError("--max-size: only supported for photo")
    assert args.model is not None
    assert args.model != "photo"
    model_args = {name: getattr(args.network, name) for name in ("kernel", "num_filters", "dilation")}
    return TrainConfig(
        model=args.model,
        recipe=make_recipe(args.recipe, args.model, **args.recipe_overrides()),
        palette=absolute_path(args.palette),
        size=32 if args.network.size is None else args.network.size,
        val_fraction=args.training.val_fraction,
        model_args={name: value for name, value in model_args.items() if value is not None},
        **_shared_settings(args),
    )


def _new_photo_config(args: TrainArgs) -> "PhotoConfig":
    """Return the configuration of a new photo run. Raise UsageError for options that do not apply to photo."""
    from chromabox.colour.training.train_photo import PhotoConfig

    given = {"palette": args.palette, "val_fraction": args.training.val_fraction, **vars(args.network)}
    default = {"palette": TrainArgs.palette, "val_fraction": TrainingArgs.val_fraction, **vars(NetworkArgs())}
    for name in ("palette", "val_fraction", "kernel", "num_filters", "dilation"):
        if given[name] != default[name]:
            raise UsageError(f"--{name.replace('_', '-')}: not supported for photo")
    if args.recipe == "course":
        raise UsageError("--recipe course: not supported for photo; expected default or quick")
    if args.data == TrainArgs.data:
        raise UsageError("--data: required for photo; expected a folder of photographs")
    finetune = args.network.init not in ("auto", "none", "efficientnet-lite0")
    recipe = make_photo_recipe(args.recipe, **args.recipe_overrides(), finetune=finetune)
    size = 192 if args.network.size is None else args.network.size
    max_size = args.network.max_size or size
    if max_size < size or max_size % 32:
        raise UsageError(f"--max-size is {max_size}: expected a multiple of 32, at least {size} (--size)")
    init = absolute_path(args.network.init)
    return PhotoConfig(recipe=recipe, init=init, size=size, max_size=max_size, **_shared_settings(args))


def _shared_settings(args: TrainArgs) -> dict[str, Any]:
    """Return the settings that the configurations of all models share."""
    settings = {name: getattr(args.training, name) for name in ("accumulate", "patience", "max_steps")}
    return {"recipe_name": args.recipe, "data": absolute_path(args.data), "seed": args.seed, **settings}


def _resumed_config(args: TrainArgs, run: "RunDir", kind: "type[ConfigT]") -> "ConfigT":
    """Return the configuration of a run to resume. Raise UsageError for options that a resumed run cannot change."""
    config = run.resume_config(kind, args.runtime, args.training.epochs)
    allowed = TrainArgs(resume=args.resume, training=TrainingArgs(epochs=args.training.epochs), runtime=args.runtime)
    run.reject_changes(config, args, allowed, "--epochs and runtime options")
    return config


def evaluate(
    run: Annotated[Positional[Path | None], option("RUN|PATH|NAME", "the bundled photo model")] = None,
    /,
    *,
    data: Annotated[
        str | None, option("NAME|PATH", "the model's training data; required for a photo model or a detector")
    ] = None,
    output: Annotated[
        Path | None, option("PATH", "the run folder if a run is given, otherwise evaluation/", short="-o")
    ] = None,
    temperature: Annotated[float | None, option("X", "0.38")] = None,
    split: Annotated[str | None, option("NAME", "val if it exists, otherwise test or all images")] = None,
    size: Annotated[int | None, option("N", "the size stored with the weights")] = None,
    device: Annotated[str, option("NAME")] = "cpu",
) -> int:
    """Evaluate a colourisation model or a detector.

    Models with a palette are compared with baselines and with the upper bound set by the palette.

    Photo models are evaluated as during training.

    Detectors are evaluated with COCO AP.

    Examples:
      chromabox evaluate runs/unet-default-seed0
      chromabox evaluate yolov3-tiny --data coco128 --split val2017 -o evaluation/

    Args:
        run: A run folder, a checkpoint, or the weights of a detector (a file or yolov3-tiny).
        data: Dataset: cifar10:CLASS or a folder of images. For a detector: a labelled dataset.
        output: Output folder (not for photo models, whose results are only printed).
        temperature: Models with a palette: temperature of the annealed mean of the predicted colours.
        split: Detectors: split of the dataset.
        size: Detectors: side length of the square network input in pixels. Images are letterboxed.
        device: Detectors: cpu, cuda, cuda:N (the GPU with the number N), or auto (cuda if available).
    """
    runtime = RuntimeOptions(device=device)
    from chromabox.detect.weights.load import is_detector
    from chromabox.engine.autotune import resolve_device

    torch_device = resolve_device(runtime)
    name = run or "the bundled model"
    if temperature is not None and not 0 <= temperature <= 1:
        raise UsageError(f"--temperature is {temperature}: expected a number from 0 to 1")
    if output is not None:
        check_writable_folder(output)
    if run is not None and is_detector(run):
        from chromabox.report.detection import evaluate_detector_file

        if temperature is not None:
            raise UsageError(f"--temperature: only for models with a palette, but {run} is a detector")
        if data is None:
            raise UsageError(f"{run}: is a detector; use --data with a labelled dataset, such as coco128 or a folder")
        folder = output or (run if run.is_dir() else Path("evaluation"))
        evaluate_detector_file(run, data, folder, split=split, size=size, device=torch_device)
        return 0
    if split is not None or size is not None or runtime.device != "cpu":
        raise UsageError(f"--split, --size, --device: only for detectors, but {name} is a colourisation model")
    from chromabox.colour.weights.checkpoint import PhotoModel, load_model

    model = load_model(run)
    if isinstance(model, PhotoModel):
        if temperature is not None or output is not None:
            raise UsageError(f"--temperature, --output: only for models with a palette, but {name} is a photo model")
        if data is None:
            raise UsageError(f"{name}: is a photo model; use --data with a folder of colour photographs")
        _evaluate_photo(model, Path(data))
        return 0
    spec = data or model.metadata.get("data")
    if spec is None:
        raise UsageError(f"{run}: the checkpoint does not record its training data; use --data")
    folder = output or (Path("evaluation") if run is None else run if run.is_dir() else run.parent)
    _evaluate_palette_model(model, spec, folder, 0.38 if temperature is None else temperature)
    return 0


def _evaluate_photo(model: "PhotoModel", data: Path) -> None:
    """Print the metrics of the validation images, which are evaluated as during training."""
    from chromabox.colour.data.datasets import center_crop
    from chromabox.colour.data.photos import load_photos
    from chromabox.colour.training.train_photo import validate_photo

    val = [center_crop(image) for image in load_photos(data).val]
    side = int(model.metadata.get("size", 192))
    for metric, value in validate_photo(model.network, model.bins, val, side).items():
        log.info(f"{metric}: {value:.4f}")
    log.info(
        f"validation images: {len(val)}, at {side} pixels; "
        "to evaluate whole images, use chromabox colour and chromabox score"
    )


def _evaluate_palette_model(model: "PaletteModel", spec: str, folder: Path, temperature: float) -> None:
    """Print a table of the metrics, and write it and the confusion matrix to the folder."""
    from chromabox.colour.data.datasets import load_colour_dataset
    from chromabox.colour.evaluation.evaluate import evaluate as evaluate_model
    from chromabox.engine.checkpoint import write_json
    from chromabox.report.plots import plot_confusion_matrix
    from chromabox.report.tables import print_colour_evaluation

    data = load_colour_dataset(spec, model.palette, size=int(model.metadata.get("size", 32)))
    result = evaluate_model(model, data, temperature=temperature)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{model.metadata['net']} on {spec}, palette {model.palette.name}"
    print_colour_evaluation(result, title)
    write_json(folder / "evaluation.json", {"data": spec, "palette": model.palette.name, **result.as_json()})
    plot_confusion_matrix(result.confusion, model.palette.colours, folder / "confusion.png", title)
    log_lines(folder / "evaluation.json", folder / "confusion.png")
