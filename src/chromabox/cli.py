"""The verbs: parse, call, print. No work is done here, and torch is imported only by the verb that needs it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from chromabox.colour.recipes import NETS_IN_ORDER, NetName, RecipeName, recipe_for
from chromabox.engine.options import ExecutionOptions
from chromabox.errors import UsageError

if TYPE_CHECKING:
    from chromabox.colour.train import TrainConfig

EXECUTION = ExecutionOptions()
Output = Annotated[Path, arg(aliases=("-o",))]
OptionalOutput = Annotated[Path | None, arg(aliases=("-o",))]


def data(name: Positional[Literal["cifar10"]], /) -> int:
    """Fetch a data set, verify it, and say where it is.

    Sources are tried in order, a mirror named by CHROMABOX_MIRROR (a folder or an address) first; files go to
    CHROMABOX_CACHE, else to the platform's cache folder, and are verified by SHA-256 on every use.

    Example: chromabox data cifar10

    Args:
        name: The data set.
    """
    from chromabox.files.cifar10 import fetch_cifar10

    print(fetch_cifar10())
    return 0


@dataclass(frozen=True)
class Fit:
    """Fit a palette to pictures by k-means. Example: chromabox palette fit photos/ -k 24 -o mine.json"""

    pictures: Positional[tuple[str, ...]]
    """Pictures, folders, or cifar10:CLASS / cifar10:all."""
    output: Output
    """Where to write: .json, .npy or .gpl (GIMP)."""
    colours: Annotated[int, arg(aliases=("-k",))] = 24
    """How many colours, 2 to 256."""
    seed: int = 0
    """Seed of k-means."""


@dataclass(frozen=True)
class Show:
    """Draw a palette as a picture. Example: chromabox palette show horse24 -o swatch.png"""

    palette: Positional[str]
    """A file (.json, .npy, .gpl) or a shipped palette: horse24, cifar24."""
    output: Output
    """The picture to write."""


PaletteAction = OmitSubcommandPrefixes[
    OmitArgPrefixes[Annotated[Fit, subcommand("fit")] | Annotated[Show, subcommand("show")]]
]


def palette(*, action: PaletteAction) -> int:
    """Fit a palette to pictures, or look at one."""
    from chromabox.colour.palette import swatch
    from chromabox.colour.palette_files import load_palette, save_palette
    from chromabox.files.images import write_picture

    if isinstance(action, Show):
        write_picture(action.output, swatch(load_palette(action.palette)))
    else:
        from chromabox.colour.data import fit_palette_to

        fitted, distance = fit_palette_to(action.pictures, action.colours, seed=action.seed, name=action.output.stem)
        save_palette(action.output, fitted)
        print(f"{len(fitted)} colours, mean distance of a pixel to its colour {distance:.4f} (RGB/256)")
    print(action.output)
    return 0


@dataclass(frozen=True)
class TrainOptions:
    """What to train, on what, and how."""

    net: Positional[NetName | None] = None
    """The network; left out with --resume."""
    recipe: RecipeName = "default"
    """course: the assignment to the letter; default: our best 25 epochs; quick: the fastest way to a good net."""
    data: str = "cifar10:horse"
    """cifar10:CLASS (several joined by +), cifar10:all, or a folder of pictures."""
    palette: str = "auto"
    """A palette file, a shipped one (horse24, cifar24), course, or auto: the assignment's own where a mirror offers it
    (else horse24) for CIFAR horses, cifar24 for other CIFAR data, fitted to the pictures for a folder."""
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
    size: int = 32
    """Side in pixels to which a folder's pictures are brought; a multiple of 8."""
    kernel: int | None = None
    """Kernel size of the net's convolutions (3)."""
    filters: int | None = None
    """NF, the net's number of filters (32)."""
    dilation: int | None = None
    """Dilation of the ordinary convolutions (1); not for pool-upsample."""
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)


def train(*, options: OmitArgPrefixes[TrainOptions]) -> int:
    """Train a net that colours grey pictures; everything about the run goes into one folder.

    chromabox train unet --recipe quick -o runs/first

    chromabox train colournet --data photos/

    chromabox train --resume runs/first

    torchrun --nproc-per-node 2 -m chromabox train unet
    """
    from chromabox.engine.distributed import join_world

    with join_world() as world:
        say = print_line if world.is_main else lambda line: None
        resume = options.resume is not None
        folder, config = _resumed(options) if resume else _fresh(options, new=world.is_main)
        from chromabox.colour.train import train as train_net
        from chromabox.report.live import draw_run, watch_run

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


def _fresh(options: TrainOptions, *, new: bool) -> "tuple[Path, TrainConfig]":
    """A new run's folder and configuration; ``new``: the folder must not hold a run yet.

    Of several processes only the main one can ask that, since it is the one that begins the run there.
    """
    from chromabox.colour.train import TrainConfig

    if options.net is None:
        raise UsageError(f"net: name the network to train ({', '.join(NETS_IN_ORDER)}), or give --resume RUN")
    if options.patience is not None and not options.hold_out:
        raise UsageError("patience: early stopping needs pictures to judge by; give --hold-out 0.1 as well")
    if options.accumulate < 1:
        raise UsageError(f"accumulate is {options.accumulate}: give at least 1")
    given = {"kernel": options.kernel, "num_filters": options.filters, "dilation": options.dilation}
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
        data=_lasting(options.data),
        palette=_lasting(options.palette),
        seed=options.seed,
        size=options.size,
        hold_out=options.hold_out,
        accumulate=options.accumulate,
        patience=options.patience,
        settings={name: value for name, value in given.items() if value is not None},
    )
    folder = options.output or Path("runs") / f"{options.net}-{options.recipe}-seed{options.seed}"
    if new and (folder / "last.safetensors").exists():
        raise UsageError(f"{folder}: holds a run already; go on with --resume {folder}, or give another folder with -o")
    return folder, config


def _lasting(name: str) -> str:
    """A path that is right from any folder, since a run may be resumed from another one; other names as they are."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _resumed(options: TrainOptions) -> "tuple[Path, TrainConfig]":
    """An earlier run's folder and configuration; only its length and how it uses the machine may be changed."""
    from chromabox.colour.train import read_config
    from chromabox.engine.log import read_metrics

    folder = options.resume
    assert folder is not None
    config = read_config(folder)
    own = replace(TrainOptions(), net=options.net and config.net, resume=folder)
    if options != replace(own, epochs=options.epochs, execution=options.execution):
        raise UsageError(
            f"resume: {folder} goes on with its own net and settings; besides --resume only --epochs and how the run "
            "uses the machine can be given"
        )
    if not (folder / "last.safetensors").is_file():
        raise UsageError(f"{folder}: stopped before its first checkpoint; start it anew")
    if options.epochs is not None:
        done = len(read_metrics(folder))
        if options.epochs < max(done, 1):
            raise UsageError(f"epochs is {options.epochs}: {folder} has done {done} already; give at least as many")
        config = replace(config, recipe=replace(config.recipe, epochs=options.epochs))
    if config.execution is not None:
        config = replace(config, execution=config.execution.changed(options.execution))
    return folder, config


def evaluate(
    run: Positional[Path | None] = None,
    /,
    *,
    data: str | None = None,
    temperature: float = 0.38,
    output: OptionalOutput = None,
) -> int:
    """Measure a trained net beside the floors and the ceiling, all on the same test split.

    Example: chromabox evaluate runs/unet-default-seed0

    Args:
        run: A run folder or a checkpoint; the shipped net if left out.
        data: Instead of the data it was trained on.
        temperature: Of the annealed mean.
        output: Folder for evaluation.json and confusion.png; the run folder (or evaluation/) if left out.
    """
    from chromabox.colour.data import load_colour_data
    from chromabox.colour.evaluate import evaluate as measure
    from chromabox.colour.trained import load_trained
    from chromabox.engine.checkpoint import write_json
    from chromabox.report.plots import draw_confusion
    from chromabox.report.tables import print_evaluation

    trained = load_trained(run)
    spec = data or trained.description.get("data")
    if spec is None:
        raise UsageError(f"{run}: does not say what it was trained on; give --data")
    size = int(trained.description.get("size", 32))
    result = measure(trained, load_colour_data(spec, trained.palette, size=size), temperature=temperature)
    folder = output or (Path("evaluation") if run is None else run if run.is_dir() else run.parent)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{trained.description['net']} on {spec}, palette {trained.palette.name}"
    print_evaluation(result, title)
    write_json(folder / "evaluation.json", {"data": spec, "palette": trained.palette.name, **result.as_json()})
    draw_confusion(result.confusion, trained.palette.colours, folder / "confusion.png", title)
    print(f"{folder / 'evaluation.json'}\n{folder / 'confusion.png'}")
    return 0


def compare(
    *,
    output: Output = Path("runs/compare"),
    nets: tuple[NetName, ...] = NETS_IN_ORDER,
    recipe: RecipeName = "default",
    seeds: tuple[int, ...] = (0,),
    data: str = "cifar10:horse",
    palette: str = "auto",
    epochs: int | None = None,
    runs: tuple[Path, ...] = (),
    execution: OmitArgPrefixes[ExecutionOptions] = EXECUTION,
) -> int:
    """Train several nets with several seeds (or take finished runs) and put them side by side.

    Runs in the folder are taken as they are, or gone on with, so a comparison that was stopped goes on where it was.

    Example: chromabox compare --recipe course --seeds 0 1 2 -o runs/course

    Args:
        output: Folder for the runs, comparison.csv and comparison.png.
        nets: The networks.
        recipe: How to train them.
        seeds: One run of each net for each seed.
        data: Data set, as for train.
        palette: Palette, as for train.
        epochs: Instead of the recipe's.
        runs: Finished run folders to tabulate; nothing is trained then.
        execution: How training runs on this machine.
    """
    from chromabox.report.compare import compare as side_by_side
    from chromabox.report.compare import group_runs, tabulate
    from chromabox.report.tables import print_comparison

    if runs:
        result = tabulate(output, group_runs(runs))
    else:
        result = side_by_side(
            output,
            nets=nets,
            recipe=recipe,
            seeds=seeds,
            data=_lasting(data),
            palette=_lasting(palette),
            epochs=epochs,
            options=execution,
            say=print_line,
        )
    print_comparison(result)
    return 0


def colour(
    inputs: Positional[tuple[Path, ...]],
    /,
    *,
    output: Output,
    net: Path | None = None,
    temperature: float = 0.38,
    working_size: int = 32,
) -> int:
    """Colour pictures: any size, JPEG, PNG, TIFF, WebP or BMP, grey or not; size and luminance stay as they are.

    Example: chromabox colour old/ portrait.jpg -o coloured/

    Args:
        inputs: Pictures and folders.
        output: A file name for one picture, else a folder.
        net: A run folder or checkpoint; the shipped net if left out.
        temperature: 0 takes the likeliest colour of each place, 1 the mean of all; between them lies the pleasing part.
        working_size: Short side in pixels at which the net looks at a picture.
    """
    from chromabox.colour.predict import colour_files, plan_outputs
    from chromabox.colour.trained import load_trained
    from chromabox.engine.log import progress

    if not 0 <= temperature <= 1:
        raise UsageError(f"temperature is {temperature}: give a number from 0 to 1")
    if not 16 <= working_size <= 1024:
        raise UsageError(f"working-size is {working_size}: give 16 to 1024 pixels")
    if not inputs:
        raise UsageError("inputs: name at least one picture or folder to colour")
    pairs = plan_outputs(inputs, output)
    trained = load_trained(net)
    failed = []
    with progress("colouring", len(pairs), unit="pictures") as tick:
        for outcome in colour_files(pairs, trained, temperature=temperature, working_size=working_size):
            tick()
            if outcome.error is None:
                print_line(str(outcome.target))
            else:
                failed.append(outcome)
    for outcome in failed:
        print(f"chromabox: not coloured: {outcome.error}", file=sys.stderr)
    return 1 if failed else 0


def demo(*, output: Output = Path("demo")) -> int:
    """The main job in a few minutes: three nets trained the quick way and compared, sample photographs coloured.

    Example: chromabox demo -o demo

    Args:
        output: Folder for everything.
    """
    from chromabox.report.demo import run_demo
    from chromabox.report.tables import print_comparison

    result = run_demo(output, say=print_line)
    print_comparison(result.comparison)
    print(f"photographs: {result.photographs}")
    return 0


VERBS: dict[str, Callable[..., int]] = {
    "data": data,
    "palette": palette,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "colour": colour,
    "demo": demo,
}


def run(arguments: list[str] | None = None) -> int:
    """Parse and obey; returns the exit code."""
    return tyro.extras.subcommand_cli_from_dict(
        VERBS,
        prog="chromabox",
        description="Colour grey pictures with small networks that choose every pixel's colour from a palette. "
        "Start with: chromabox demo · chromabox colour photo.jpg -o coloured.jpg",
        args=arguments,
    )


def print_line(line: str) -> None:
    """Print at once, also into a pipe or a log file."""
    print(line, flush=True)
