"""The verbs that train nets and measure them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes, Positional

from chromabox.cli.options import OptionalOutputPath, absolute_path, print_line, require_new_run
from chromabox.colour.training.recipes import PALETTE_MODELS, ModelName, RecipeName, make_photo_recipe, make_recipe
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError

if TYPE_CHECKING:
    from chromabox.colour.training.train import TrainConfig
    from chromabox.colour.training.train_photo import PhotoConfig
    from chromabox.colour.weights.checkpoint import PhotoModel
    from chromabox.engine.distributed import DistInfo


@dataclass(frozen=True)
class TrainArgs:
    """What to train, on what, and how."""

    net: Positional[ModelName | None] = None
    """The network; left out with --resume. photo is the one for photographs of any size."""
    recipe: RecipeName = "default"
    """course: the assignment to the letter; default: our best 25 epochs; quick: the fastest way to a good net."""
    data: str = "cifar10:horse"
    """cifar10:CLASS (several joined by +), cifar10:all, or a folder of pictures (photo: always a folder)."""
    palette: str = "auto"
    """A palette file, a shipped one (horse24, cifar24), course, fitted:K (K colours fitted to the data), or auto: the
    assignment's own where a mirror offers it (else horse24) for CIFAR horses, cifar24 for other CIFAR data, fitted to
    the pictures for a folder."""
    seed: int = 0
    """Seed of everything random."""
    output: OptionalOutputPath = None
    """The run folder; runs/NET-RECIPE-seedN if left out."""
    resume: Path | None = None
    """A run folder to go on with, exactly where it stopped."""
    epochs: int | None = None
    """Instead of the recipe's."""
    batch_size: int | None = None
    """Pictures a step (of each process, under torchrun), instead of the recipe's."""
    accumulate: int = 1
    """Batches whose gradients are added up before one step."""
    learning_rate: float | None = None
    """Instead of the recipe's."""
    val_fraction: float = 0.0
    """Fraction of the training pictures kept apart to choose the best epoch by; 0: the last epoch is the best."""
    patience: int | None = None
    """Stop after so many epochs without a better held-out loss (needs --hold-out)."""
    size: int | None = None
    """Side in pixels of a folder's pictures as the net sees them: 32, a multiple of 8; for photo 192, of 32."""
    kernel: int | None = None
    """Kernel size of the net's convolutions (3)."""
    num_filters: int | None = None
    """NF, the net's number of filters (32)."""
    dilation: int | None = None
    """Dilation of the ordinary convolutions (1); not for pool-upsample."""
    init: str = "auto"
    """What photo begins as: shipped or a checkpoint (to fine-tune it on your own pictures), yolov3-tiny (its first
    layers), none; auto: yolov3-tiny where its file can be fetched."""
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)


def train(*, options: OmitArgPrefixes[TrainArgs]) -> int:
    """Train a net that colours grey pictures; everything about the run goes into one folder.

    chromabox train unet --recipe quick -o runs/first

    chromabox train colournet --data photos/

    chromabox train photo --data photos/ --start shipped --epochs 3

    chromabox train --resume runs/first

    torchrun --nproc-per-node 2 -m chromabox train unet
    """
    from chromabox.engine.distributed import init_distributed

    with init_distributed() as world:
        say = print_line if world.is_main else lambda line: None
        if is_photo_run(options):
            return _train_photo(options, world, say)
        resume = options.resume is not None
        folder, config = _resume_run(options) if resume else _new_run(options, require_new=world.is_main)
        from chromabox.colour.training.train import train as train_net
        from chromabox.report.training import epoch_callback, plot_run

        title = f"{config.model}, {config.recipe_name} recipe, {config.data}, seed {config.seed}"
        watch = epoch_callback(folder, say)
        try:
            summary = train_net(
                config, folder, options=options.runtime, world=world, resume=resume, log=say, on_epoch_end=watch
            )
        finally:
            if world.is_main:
                plot_run(folder, title)
        say(f"test accuracy {100 * summary['test_accuracy']:.2f} %, test loss {summary['test_loss']:.4f}")
        say(f"run: {folder}\ncurves: {folder / 'curves.png'}\npictures: {folder / 'sheets'}")
    return 0


def is_photo_run(options: TrainArgs) -> bool:
    """Whether a photo net is asked for, by name or by the run to go on with."""
    if options.resume is None or options.net is not None:
        return options.net == "photo"
    from chromabox.colour.training.train_photo import read_photo_config

    return read_photo_config(options.resume) is not None


def _train_photo(options: TrainArgs, dist_info: "DistInfo", log: Callable[[str], None]) -> int:
    """The photo net's training, begun or gone on with."""
    from chromabox.colour.training.train_photo import train_photo
    from chromabox.report.training import photo_epoch_callback, plot_run

    folder, config = (
        _resume_photo_run(options) if options.resume else _new_photo_run(options, require_new=dist_info.is_main)
    )
    try:
        summary = train_photo(
            config,
            folder,
            options=options.runtime,
            world=dist_info,
            resume=options.resume is not None,
            log=log,
            on_epoch_end=photo_epoch_callback(folder, log),
        )
    finally:
        if dist_info.is_main:
            plot_run(folder, f"photo, {config.recipe_name} recipe, {Path(config.data).name}, seed {config.seed}")
    log(
        f"best epoch {summary['best_epoch']}: {summary['val_psnr_gain']:+.2f} dB over grey, "
        f"ΔE2000 {-100 * summary['val_delta_e_cut']:+.1f} %, colourfulness "
        f"{100 * summary['val_colourfulness']:.0f} % of the originals', on {config.data}'s validation pictures"
    )
    log(f"run: {folder}\ncurves: {folder / 'curves.png'}\npictures: {folder / 'sheets'}")
    return 0


def _new_photo_run(options: TrainArgs, *, require_new: bool) -> "tuple[Path, PhotoConfig]":
    """A new photo run's folder and configuration; refuses what this net does not have."""
    from chromabox.colour.training.train_photo import PhotoConfig

    foreign = replace(TrainArgs(), palette=options.palette, val_fraction=options.val_fraction, kernel=options.kernel)
    foreign = replace(foreign, num_filters=options.num_filters, dilation=options.dilation)
    for name, value in vars(foreign).items():
        if value != getattr(TrainArgs(), name):
            raise UsageError(f"{name.replace('_', '-')} is {value}: photo has no such setting; leave it out")
    if options.recipe == "course":
        raise UsageError("recipe course: the assignment has no photo net; leave --recipe out, or give quick")
    if options.accumulate < 1:
        raise UsageError(f"accumulate is {options.accumulate}: give at least 1")
    config = PhotoConfig(
        recipe_name=options.recipe,
        recipe=make_photo_recipe(
            options.recipe,
            epochs=options.epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            finetune=options.init not in ("auto", "none", "yolov3-tiny"),
        ),
        data=absolute_path(options.data),
        init=absolute_path(options.init),
        seed=options.seed,
        size=options.size or 192,
        accumulate=options.accumulate,
        patience=options.patience,
    )
    folder = options.output or Path("runs") / f"photo-{options.recipe}-seed{options.seed}"
    if require_new:
        require_new_run(folder)
    return folder, config


def _resume_photo_run(options: TrainArgs) -> "tuple[Path, PhotoConfig]":
    """An earlier photo run's folder and configuration; only its length and how it uses the machine may be changed."""
    from chromabox.colour.training.train_photo import read_photo_config

    assert options.resume is not None
    config = read_photo_config(options.resume)
    if config is None:
        raise UsageError(f"{options.resume}: holds no config.json of a photo run; leave the net's name out")
    _check_resume_args(options, config.model)
    if options.epochs is not None:
        config = replace(config, recipe=replace(config.recipe, epochs=_resumed_epochs(options)))
    assert config.runtime is not None
    return options.resume, replace(config, runtime=config.runtime.with_overrides(options.runtime))


def _new_run(options: TrainArgs, *, require_new: bool) -> "tuple[Path, TrainConfig]":
    """A new run's folder and configuration; ``new``: the folder must not hold a run yet.

    Of several processes only the main one can ask that, since it is the one that begins the run there.
    """
    from chromabox.colour.training.train import TrainConfig

    if options.net is None:
        raise UsageError(f"net: name the network to train ({', '.join(PALETTE_MODELS)}), or give --resume RUN")
    if options.patience is not None and not options.val_fraction:
        raise UsageError("patience: early stopping needs pictures to judge by; give --hold-out 0.1 as well")
    if options.accumulate < 1:
        raise UsageError(f"accumulate is {options.accumulate}: give at least 1")
    given = {"kernel": options.kernel, "num_filters": options.num_filters, "dilation": options.dilation}
    assert options.net != "photo"  # which has a folder and a configuration of its own
    config = TrainConfig(
        model=options.net,
        recipe_name=options.recipe,
        recipe=make_recipe(
            options.recipe,
            options.net,
            epochs=options.epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
        ),
        data=absolute_path(options.data),
        palette=absolute_path(options.palette),
        seed=options.seed,
        size=options.size or 32,
        val_fraction=options.val_fraction,
        accumulate=options.accumulate,
        patience=options.patience,
        model_args={name: value for name, value in given.items() if value is not None},
    )
    folder = options.output or Path("runs") / f"{options.net}-{options.recipe}-seed{options.seed}"
    if require_new:
        require_new_run(folder)
    return folder, config


def _resume_run(options: TrainArgs) -> "tuple[Path, TrainConfig]":
    """An earlier run's folder and configuration; only its length and how it uses the machine may be changed."""
    from chromabox.colour.training.train import read_config

    folder = options.resume
    assert folder is not None
    config = read_config(folder)
    _check_resume_args(options, config.model)
    if options.epochs is not None:
        config = replace(config, max_steps=None, recipe=replace(config.recipe, epochs=_resumed_epochs(options)))
    if config.runtime is not None:
        config = replace(config, runtime=config.runtime.with_overrides(options.runtime))
    return folder, config


def _check_resume_args(options: TrainArgs, model_name: str) -> None:
    """A run goes on as it began, and from a checkpoint."""
    folder = options.resume
    assert folder is not None
    own = replace(TrainArgs(), resume=folder)
    named = options.net in (None, model_name)
    if not named or replace(options, net=None) != replace(own, epochs=options.epochs, runtime=options.runtime):
        raise UsageError(
            f"resume: {folder} goes on with its own net and settings; besides --resume only --epochs and how the run "
            "uses the machine can be given"
        )
    if not (folder / "last.safetensors").is_file():
        raise UsageError(f"{folder}: stopped before its first checkpoint; start it anew")


def _resumed_epochs(options: TrainArgs) -> int:
    """The epochs asked for, at least as many as are done."""
    from chromabox.engine.logger import read_metrics

    assert options.resume is not None
    assert options.epochs is not None
    done = len(read_metrics(options.resume))
    if options.epochs < max(done, 1):
        raise UsageError(f"epochs is {options.epochs}: {options.resume} has done {done} already; give at least as many")
    return options.epochs


def evaluate(
    run: Positional[Path | None] = None,
    /,
    *,
    data: str | None = None,
    temperature: float = 0.38,
    split: str | None = None,
    size: int | None = None,
    output: OptionalOutputPath = None,
) -> int:
    """Measure a trained net: a colour net beside the floors and the ceiling, a detector by COCO's average precision.

    chromabox evaluate runs/unet-default-seed0

    chromabox evaluate yolov3-tiny --data coco128 --split val2017 -o evaluation/

    Args:
        run: A run folder, a checkpoint or a detector's weights (a file or yolov3-tiny); the shipped net if left out.
        data: Instead of the data it was trained on; of a detector a labelled set.
        temperature: Of a colour net's annealed mean.
        split: Of a detector's data: which pictures; those that are held out if left out.
        size: Of a detector: side in pixels at which it sees them; its own if left out.
        output: Folder for what is written; the run folder (or evaluation/) if left out.
    """
    if run is not None and _is_detector(run):
        return _evaluate_detector(run, data, split, size, output)
    if split is not None or size is not None:
        raise UsageError(f"split, size: are for detectors; {run or 'the shipped net'} colours pictures")
    from chromabox.colour.data.datasets import load_colour_dataset
    from chromabox.colour.evaluation.evaluate import evaluate as measure
    from chromabox.colour.weights.checkpoint import PhotoModel, load_model
    from chromabox.engine.checkpoint import write_json
    from chromabox.report.plots import plot_confusion_matrix
    from chromabox.report.tables import print_colour_evaluation

    trained = load_model(run)
    if isinstance(trained, PhotoModel):
        return _evaluate_photo(trained, run, data)
    spec = data or trained.metadata.get("data")
    if spec is None:
        raise UsageError(f"{run}: does not say what it was trained on; give --data")
    side = int(trained.metadata.get("size", 32))
    result = measure(trained, load_colour_dataset(spec, trained.palette, size=side), temperature=temperature)
    folder = output or (Path("evaluation") if run is None else run if run.is_dir() else run.parent)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{trained.metadata['net']} on {spec}, palette {trained.palette.name}"
    print_colour_evaluation(result, title)
    write_json(folder / "evaluation.json", {"data": spec, "palette": trained.palette.name, **result.as_json()})
    plot_confusion_matrix(result.confusion, trained.palette.colours, folder / "confusion.png", title)
    print(f"{folder / 'evaluation.json'}\n{folder / 'confusion.png'}")
    return 0


def _is_detector(run: Path) -> bool:
    from chromabox.detect.weights.load import is_detector

    return is_detector(run)


def _evaluate_detector(run: Path, data: str | None, split: str | None, size: int | None, output: Path | None) -> int:
    from chromabox.report.detection import evaluate_detector_file

    if data is None:
        raise UsageError(f"{run}: is a detector; give --data, a labelled set such as coco128 or a folder")
    evaluate_detector_file(run, data, output or (run if run.is_dir() else Path("evaluation")), split=split, size=size)
    return 0


def _evaluate_photo(model: "PhotoModel", run: Path | None, data: str | None) -> int:
    """A photo net on a folder's validation pictures, as training judges it."""
    from chromabox.colour.data.photos import center_crop, load_photos
    from chromabox.colour.training.train_photo import validate_photo

    if data is None:
        raise UsageError(f"{run or 'the shipped net'}: is a photo net; give --data FOLDER, of photographs in colour")
    val = [center_crop(photograph) for photograph in load_photos(Path(data), print_line).val]
    size = int(model.metadata.get("size", 192))
    for name, value in validate_photo(model.network, model.bins, val, size).items():
        print(f"{name}: {value:.4f}")
    print(f"{len(val)} pictures at {size} pixels; to judge whole pictures: chromabox colour, then chromabox score")
    return 0
