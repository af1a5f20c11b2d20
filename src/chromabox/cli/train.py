"""The verbs that train nets and measure them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes, Positional

from chromabox.cli.options import OptionalOutput, lasting, print_line, refuse_begun_run
from chromabox.colour.training.recipes import NETS_IN_ORDER, RecipeName, TrainableName, photo_recipe, recipe_for
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.errors import UsageError

if TYPE_CHECKING:
    from chromabox.colour.training.train import TrainConfig
    from chromabox.colour.training.train_photo import PhotoConfig
    from chromabox.colour.weights.checkpoint import TrainedPhotoNet
    from chromabox.engine.distributed import World


@dataclass(frozen=True)
class TrainOptions:
    """What to train, on what, and how."""

    net: Positional[TrainableName | None] = None
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
    output: OptionalOutput = None
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
    hold_out: float = 0.0
    """Fraction of the training pictures kept apart to choose the best epoch by; 0: the last epoch is the best."""
    patience: int | None = None
    """Stop after so many epochs without a better held-out loss (needs --hold-out)."""
    size: int | None = None
    """Side in pixels of a folder's pictures as the net sees them: 32, a multiple of 8; for photo 192, of 32."""
    kernel: int | None = None
    """Kernel size of the net's convolutions (3)."""
    filters: int | None = None
    """NF, the net's number of filters (32)."""
    dilation: int | None = None
    """Dilation of the ordinary convolutions (1); not for pool-upsample."""
    start: str = "auto"
    """What photo begins as: shipped or a checkpoint (to fine-tune it on your own pictures), yolov3-tiny (its first
    layers), none; auto: yolov3-tiny where its file can be fetched."""
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)


def train(*, options: OmitArgPrefixes[TrainOptions]) -> int:
    """Train a net that colours grey pictures; everything about the run goes into one folder.

    chromabox train unet --recipe quick -o runs/first

    chromabox train colournet --data photos/

    chromabox train photo --data photos/ --start shipped --epochs 3

    chromabox train --resume runs/first

    torchrun --nproc-per-node 2 -m chromabox train unet
    """
    from chromabox.engine.distributed import join_world

    with join_world() as world:
        say = print_line if world.is_main else lambda line: None
        if is_photo_run(options):
            return _train_photo(options, world, say)
        resume = options.resume is not None
        folder, config = _resumed(options) if resume else _fresh(options, new=world.is_main)
        from chromabox.colour.training.train import train as train_net
        from chromabox.report.training import draw_run, watch_run

        title = f"{config.net}, {config.recipe_name} recipe, {config.data}, seed {config.seed}"
        watch = watch_run(folder, say)
        try:
            summary = train_net(
                config, folder, options=options.execution, world=world, resume=resume, say=say, after_epoch=watch
            )
        finally:
            if world.is_main:
                draw_run(folder, title)
        say(f"test accuracy {100 * summary['test_accuracy']:.2f} %, test loss {summary['test_loss']:.4f}")
        say(f"run: {folder}\ncurves: {folder / 'curves.png'}\npictures: {folder / 'sheets'}")
    return 0


def is_photo_run(options: TrainOptions) -> bool:
    """Whether a photo net is asked for, by name or by the run to go on with."""
    if options.resume is None or options.net is not None:
        return options.net == "photo"
    from chromabox.colour.training.train_photo import read_photo_config

    return read_photo_config(options.resume) is not None


def _train_photo(options: TrainOptions, world: "World", say: Callable[[str], None]) -> int:
    """The photo net's training, begun or gone on with."""
    from chromabox.colour.training.train_photo import train_photo
    from chromabox.report.training import draw_run, watch_photo_run

    folder, config = _resumed_photo(options) if options.resume else _fresh_photo(options, new=world.is_main)
    try:
        summary = train_photo(
            config,
            folder,
            options=options.execution,
            world=world,
            resume=options.resume is not None,
            say=say,
            after_epoch=watch_photo_run(folder, say),
        )
    finally:
        if world.is_main:
            draw_run(folder, f"photo, {config.recipe_name} recipe, {Path(config.data).name}, seed {config.seed}")
    say(
        f"best epoch {summary['best_epoch']}: {summary['val_psnr_gain']:+.2f} dB over grey, "
        f"ΔE2000 {-100 * summary['val_delta_e_cut']:+.1f} %, colourfulness "
        f"{100 * summary['val_colourfulness']:.0f} % of the originals', on {config.data}'s validation pictures"
    )
    say(f"run: {folder}\ncurves: {folder / 'curves.png'}\npictures: {folder / 'sheets'}")
    return 0


def _fresh_photo(options: TrainOptions, *, new: bool) -> "tuple[Path, PhotoConfig]":
    """A new photo run's folder and configuration; refuses what this net does not have."""
    from chromabox.colour.training.train_photo import PhotoConfig

    foreign = replace(TrainOptions(), palette=options.palette, hold_out=options.hold_out, kernel=options.kernel)
    foreign = replace(foreign, filters=options.filters, dilation=options.dilation)
    for name, value in vars(foreign).items():
        if value != getattr(TrainOptions(), name):
            raise UsageError(f"{name.replace('_', '-')} is {value}: photo has no such setting; leave it out")
    if options.recipe == "course":
        raise UsageError("recipe course: the assignment has no photo net; leave --recipe out, or give quick")
    if options.accumulate < 1:
        raise UsageError(f"accumulate is {options.accumulate}: give at least 1")
    config = PhotoConfig(
        recipe_name=options.recipe,
        recipe=photo_recipe(
            options.recipe,
            epochs=options.epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            tuning=options.start not in ("auto", "none", "yolov3-tiny"),
        ),
        data=lasting(options.data),
        start=lasting(options.start),
        seed=options.seed,
        size=options.size or 192,
        accumulate=options.accumulate,
        patience=options.patience,
    )
    folder = options.output or Path("runs") / f"photo-{options.recipe}-seed{options.seed}"
    if new:
        refuse_begun_run(folder)
    return folder, config


def _resumed_photo(options: TrainOptions) -> "tuple[Path, PhotoConfig]":
    """An earlier photo run's folder and configuration; only its length and how it uses the machine may be changed."""
    from chromabox.colour.training.train_photo import read_photo_config

    assert options.resume is not None
    config = read_photo_config(options.resume)
    if config is None:
        raise UsageError(f"{options.resume}: holds no config.json of a photo run; leave the net's name out")
    _refuse_new_settings(options, config.net)
    if options.epochs is not None:
        config = replace(config, recipe=replace(config.recipe, epochs=_more_epochs(options)))
    assert config.execution is not None
    return options.resume, replace(config, execution=config.execution.changed(options.execution))


def _fresh(options: TrainOptions, *, new: bool) -> "tuple[Path, TrainConfig]":
    """A new run's folder and configuration; ``new``: the folder must not hold a run yet.

    Of several processes only the main one can ask that, since it is the one that begins the run there.
    """
    from chromabox.colour.training.train import TrainConfig

    if options.net is None:
        raise UsageError(f"net: name the network to train ({', '.join(NETS_IN_ORDER)}), or give --resume RUN")
    if options.patience is not None and not options.hold_out:
        raise UsageError("patience: early stopping needs pictures to judge by; give --hold-out 0.1 as well")
    if options.accumulate < 1:
        raise UsageError(f"accumulate is {options.accumulate}: give at least 1")
    given = {"kernel": options.kernel, "num_filters": options.filters, "dilation": options.dilation}
    assert options.net != "photo"  # which has a folder and a configuration of its own
    config = TrainConfig(
        net=options.net,
        recipe_name=options.recipe,
        recipe=recipe_for(
            options.recipe,
            options.net,
            epochs=options.epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
        ),
        data=lasting(options.data),
        palette=lasting(options.palette),
        seed=options.seed,
        size=options.size or 32,
        hold_out=options.hold_out,
        accumulate=options.accumulate,
        patience=options.patience,
        settings={name: value for name, value in given.items() if value is not None},
    )
    folder = options.output or Path("runs") / f"{options.net}-{options.recipe}-seed{options.seed}"
    if new:
        refuse_begun_run(folder)
    return folder, config


def _resumed(options: TrainOptions) -> "tuple[Path, TrainConfig]":
    """An earlier run's folder and configuration; only its length and how it uses the machine may be changed."""
    from chromabox.colour.training.train import read_config

    folder = options.resume
    assert folder is not None
    config = read_config(folder)
    _refuse_new_settings(options, config.net)
    if options.epochs is not None:
        config = replace(config, steps=None, recipe=replace(config.recipe, epochs=_more_epochs(options)))
    if config.execution is not None:
        config = replace(config, execution=config.execution.changed(options.execution))
    return folder, config


def _refuse_new_settings(options: TrainOptions, net: str) -> None:
    """A run goes on as it began, and from a checkpoint."""
    folder = options.resume
    assert folder is not None
    own = replace(TrainOptions(), resume=folder)
    named = options.net in (None, net)
    if not named or replace(options, net=None) != replace(own, epochs=options.epochs, execution=options.execution):
        raise UsageError(
            f"resume: {folder} goes on with its own net and settings; besides --resume only --epochs and how the run "
            "uses the machine can be given"
        )
    if not (folder / "last.safetensors").is_file():
        raise UsageError(f"{folder}: stopped before its first checkpoint; start it anew")


def _more_epochs(options: TrainOptions) -> int:
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
    output: OptionalOutput = None,
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
    from chromabox.colour.data.datasets import load_colour_data
    from chromabox.colour.evaluation.evaluate import evaluate as measure
    from chromabox.colour.weights.checkpoint import TrainedPhotoNet, load_trained
    from chromabox.engine.checkpoint import write_json
    from chromabox.report.plots import draw_confusion
    from chromabox.report.tables import print_evaluation

    trained = load_trained(run)
    if isinstance(trained, TrainedPhotoNet):
        return _evaluate_photo(trained, run, data)
    spec = data or trained.description.get("data")
    if spec is None:
        raise UsageError(f"{run}: does not say what it was trained on; give --data")
    side = int(trained.description.get("size", 32))
    result = measure(trained, load_colour_data(spec, trained.palette, size=side), temperature=temperature)
    folder = output or (Path("evaluation") if run is None else run if run.is_dir() else run.parent)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{trained.description['net']} on {spec}, palette {trained.palette.name}"
    print_evaluation(result, title)
    write_json(folder / "evaluation.json", {"data": spec, "palette": trained.palette.name, **result.as_json()})
    draw_confusion(result.confusion, trained.palette.colours, folder / "confusion.png", title)
    print(f"{folder / 'evaluation.json'}\n{folder / 'confusion.png'}")
    return 0


def _is_detector(run: Path) -> bool:
    from chromabox.detect.weights.load import is_detector

    return is_detector(run)


def _evaluate_detector(run: Path, data: str | None, split: str | None, size: int | None, output: Path | None) -> int:
    from chromabox.report.detection import evaluate_weights

    if data is None:
        raise UsageError(f"{run}: is a detector; give --data, a labelled set such as coco128 or a folder")
    evaluate_weights(run, data, output or (run if run.is_dir() else Path("evaluation")), split=split, size=size)
    return 0


def _evaluate_photo(trained: "TrainedPhotoNet", run: Path | None, data: str | None) -> int:
    """A photo net on a folder's validation pictures, as training judges it."""
    from chromabox.colour.data.photos import central_square, load_photographs
    from chromabox.colour.training.train_photo import validate_photo

    if data is None:
        raise UsageError(f"{run or 'the shipped net'}: is a photo net; give --data FOLDER, of photographs in colour")
    val = [central_square(photograph) for photograph in load_photographs(Path(data), print_line).val]
    size = int(trained.description.get("size", 192))
    for name, value in validate_photo(trained.net, trained.bins, val, size).items():
        print(f"{name}: {value:.4f}")
    print(f"{len(val)} pictures at {size} pixels; to judge whole pictures: chromabox colour, then chromabox score")
    return 0
