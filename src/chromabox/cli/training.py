"""The verbs that train nets and measure them."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes, Positional

from chromabox.cli.options import EXECUTION, OptionalOutput, Output, lasting, print_line
from chromabox.colour.recipes import NETS_IN_ORDER, NetName, RecipeName, TrainableName, recipe_for
from chromabox.engine.options import ExecutionOptions
from chromabox.errors import UsageError

if TYPE_CHECKING:
    from chromabox.colour.train import TrainConfig


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
        data=lasting(options.data),
        palette=lasting(options.palette),
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
            data=lasting(data),
            palette=lasting(palette),
            epochs=epochs,
            options=execution,
            say=print_line,
        )
    print_comparison(result)
    return 0
