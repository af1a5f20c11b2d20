"""The commands ``compare`` and ``sweep``."""

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional

from chromabox.cli.options import DEFAULT_RUNTIME, DataName, OutputPath, PaletteName, Seeds, absolute_path, option
from chromabox.colour.training.recipes import PALETTE_MODELS, PaletteModelName, RecipeName
from chromabox.engine.options import RuntimeOptions

OptionalEpochs = Annotated[int | None, option("N", "set by the recipe")]


def sweep(
    model: Annotated[Positional[PaletteModelName], option("MODEL")],
    /,
    *,
    over: Annotated[str, option("PARAMETER=V1,V2,...")],
    seeds: Seeds = (0,),
    recipe: RecipeName = "default",
    epochs: OptionalEpochs = None,
    steps: Annotated[int | None, option("N", "the number of steps with the largest batch size")] = None,
    data: DataName = "cifar10:horse",
    palette: PaletteName = "auto",
    output: Annotated[Path | None, option("PATH", "runs/sweep-MODEL-RECIPE-PARAMETER", short="-o")] = None,
    runtime: OmitArgPrefixes[RuntimeOptions] = DEFAULT_RUNTIME,
) -> int:
    """Train one model with several values of one hyperparameter.

    Batch sizes are compared twice: after equal numbers of epochs and after equal
    numbers of optimizer steps.

    Finished runs in the output folder are reused. Interrupted runs are resumed.

    Examples:
      chromabox sweep conv-transpose --over batch-size=32,64,128,256,512 --seeds 0 1
      chromabox sweep unet --over kernel=1,3,5,7 --epochs 5 -o runs/kernels
      chromabox sweep unet --over colours=8,16,32,64 --data photos/

    Args:
        model: pool-upsample, conv-transpose, unet or colournet.
        over: The hyperparameter and its values: batch-size, kernel, filters, learning-rate or colours (palette size).
        seeds: Random seeds. One model is trained for each value and seed.
        recipe: Training recipe, as in chromabox train.
        epochs: Number of epochs.
        steps: Only for batch-size: number of optimizer steps of each run in the second comparison.
        data: Dataset, as in chromabox train.
        palette: Palette, as in chromabox train.
        output: Folder for the runs, sweep.json, sweep.csv, curves.png and sheet.png.
    """
    from chromabox.experiments.sweep import parse_sweep
    from chromabox.experiments.sweep import sweep as run_sweep
    from chromabox.experiments.sweep_results import print_sweep

    parameter, values = parse_sweep(over)
    result = run_sweep(
        output or Path("runs") / f"sweep-{model}-{recipe}-{parameter}",
        model=model,
        recipe=recipe,
        parameter=parameter,
        values=values,
        seeds=seeds,
        data=absolute_path(data),
        palette=absolute_path(palette),
        epochs=epochs,
        steps=steps,
        options=runtime,
    )
    print_sweep(result)
    return 0


def compare(
    *,
    output: OutputPath = Path("runs/compare"),
    models: Annotated[tuple[PaletteModelName, ...], option("MODEL ...")] = PALETTE_MODELS,
    recipe: RecipeName = "default",
    seeds: Seeds = (0,),
    data: DataName = "cifar10:horse",
    palette: PaletteName = "auto",
    epochs: OptionalEpochs = None,
    runs: Annotated[tuple[Path, ...], option("PATH ...", "none")] = (),
    runtime: OmitArgPrefixes[RuntimeOptions] = DEFAULT_RUNTIME,
) -> int:
    """Train several models with several seeds and compare them.

    Finished runs in the output folder are reused. Interrupted runs are resumed.

    Examples:
      chromabox compare --recipe course --seeds 0 1 2 -o runs/course
      chromabox compare --runs runs/first runs/second -o comparison/

    Args:
        output: Folder for the runs, comparison.csv and comparison.png.
        models: Models to train.
        recipe: Training recipe, as in chromabox train.
        seeds: Random seeds. Every model is trained once with each seed.
        data: Dataset, as in chromabox train.
        palette: Palette, as in chromabox train.
        epochs: Number of epochs.
        runs: Folders of finished runs to compare, instead of training new models.
    """
    from chromabox.experiments.compare import compare as run_comparison
    from chromabox.experiments.compare import group_runs, print_comparison, tabulate

    if runs:
        result = tabulate(output, group_runs(runs))
    else:
        result = run_comparison(
            output,
            models=models,
            recipe=recipe,
            seeds=seeds,
            data=absolute_path(data),
            palette=absolute_path(palette),
            epochs=epochs,
            options=runtime,
        )
    print_comparison(result)
    return 0
