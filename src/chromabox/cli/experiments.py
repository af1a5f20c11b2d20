"""The verb that trains one net with several values of one quantity."""

from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from chromabox.cli.options import DEFAULT_RUNTIME, OptionalOutputPath, OutputPath, absolute_path, print_line
from chromabox.colour.training.recipes import PALETTE_MODELS, PaletteModelName, RecipeName
from chromabox.engine.runtime_options import RuntimeOptions


def sweep(
    net: Positional[PaletteModelName],
    /,
    *,
    over: str,
    seeds: tuple[int, ...] = (0,),
    recipe: RecipeName = "default",
    epochs: int | None = None,
    steps: int | None = None,
    data: str = "cifar10:horse",
    palette: str = "auto",
    output: OptionalOutputPath = None,
    runtime: OmitArgPrefixes[RuntimeOptions] = DEFAULT_RUNTIME,
) -> int:
    """Train one net with several values of one quantity, and put them side by side.

    Over batch sizes there are two tables: all trained for as many epochs, and all for as many steps of the optimiser.
    Runs in the folder are taken as they are, or gone on with, so a sweep that was stopped goes on where it was.

    chromabox sweep conv-transpose --over batch-size=32,64,128,256,512 --seeds 0 1 --recipe course

    chromabox sweep unet --over kernel=1,3,5,7 --epochs 5 -o runs/kernels

    chromabox sweep unet --over colours=8,16,32,64 --data photos/

    Args:
        net: The network.
        over: The quantity and its values: batch-size, kernel, filters, learning-rate or colours (of the palette, each
            fitted to the training pictures), then = and the values with commas between them.
        seeds: One run of each value for each seed.
        recipe: How to train.
        epochs: Instead of the recipe's.
        steps: Of the second table over batch sizes, instead of as many as the largest batch makes in all epochs.
        data: Data set, as for train.
        palette: Palette, as for train.
        output: Folder for the runs, sweep.json, sweep.csv, curves.png and sheet.png; runs/sweep-NET-RECIPE-QUANTITY if
            left out.
        execution: How training runs on this machine.
    """
    from chromabox.experiments.sweep import parse_sweep
    from chromabox.experiments.sweep import sweep as train_all
    from chromabox.experiments.sweep_results import print_sweep

    quantity, values = parse_sweep(over)
    found = train_all(
        output or Path("runs") / f"sweep-{net}-{recipe}-{quantity}",
        model=net,
        recipe=recipe,
        parameter=quantity,
        values=values,
        seeds=seeds,
        data=absolute_path(data),
        palette=absolute_path(palette),
        epochs=epochs,
        steps=steps,
        options=runtime,
        log=print_line,
    )
    print_sweep(found)
    return 0


def compare(
    *,
    output: OutputPath = Path("runs/compare"),
    nets: tuple[PaletteModelName, ...] = PALETTE_MODELS,
    recipe: RecipeName = "default",
    seeds: tuple[int, ...] = (0,),
    data: str = "cifar10:horse",
    palette: str = "auto",
    epochs: int | None = None,
    runs: tuple[Path, ...] = (),
    runtime: OmitArgPrefixes[RuntimeOptions] = DEFAULT_RUNTIME,
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
    from chromabox.experiments.compare import compare as side_by_side
    from chromabox.experiments.compare import group_runs, print_comparison, tabulate

    if runs:
        result = tabulate(output, group_runs(runs))
    else:
        result = side_by_side(
            output,
            models=nets,
            recipe=recipe,
            seeds=seeds,
            data=absolute_path(data),
            palette=absolute_path(palette),
            epochs=epochs,
            options=runtime,
            log=print_line,
        )
    print_comparison(result)
    return 0
