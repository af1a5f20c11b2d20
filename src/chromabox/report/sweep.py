"""One net trained with several values of one quantity: what does the batch size, the kernel, … change?

Every value is trained for the same number of epochs. Over batch sizes that is not the same number of steps of the
optimiser: there a second comparison gives every value as many of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from chromabox.colour.data.datasets import FITTED
from chromabox.colour.models import build_net
from chromabox.colour.palette.palette import MOST_COLOURS
from chromabox.colour.training.recipes import NetName, RecipeName, recipe_for
from chromabox.colour.training.train import TrainConfig, load_inputs
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.errors import UsageError
from chromabox.report.found import summary_of
from chromabox.report.runs import train_missing
from chromabox.report.sweep_figures import draw_sweep_curves, draw_sweep_sheet
from chromabox.report.sweep_measures import RunMeasures, colourfulness_of_truth, psnr_of_grey, updates_per_epoch
from chromabox.report.swept import Sweep, Value, write_sweep

#: What changes in a run with the value, by the quantity's name.
OVER: Mapping[str, Callable[[TrainConfig, Any], TrainConfig]] = {
    "batch-size": lambda config, value: replace(config, recipe=replace(config.recipe, batch_size=value)),
    "kernel": lambda config, value: replace(config, settings={"kernel": value}),
    "filters": lambda config, value: replace(config, settings={"num_filters": value}),
    "learning-rate": lambda config, value: replace(config, recipe=replace(config.recipe, learning_rate=value)),
    "colours": lambda config, value: replace(config, palette=f"{FITTED}{value}"),
}
#: All others take whole numbers.
FRACTIONAL = "learning-rate"


def parse_over(text: str) -> tuple[str, tuple[Value, ...]]:
    """``batch-size=32,64`` as a quantity's name and values; UsageError for anything else."""
    over, _, listed = text.partition("=")
    _check_over(over)
    values: list[Value] = []
    for word in listed.split(","):
        try:
            values.append(float(word) if over == FRACTIONAL else int(word))
        except ValueError:
            kind = "number" if over == FRACTIONAL else "whole number"
            raise UsageError(f"over {text}: {word!r} is not a {kind}; write for example {over}=1,2,3") from None
    check_values(over, values)
    return over, tuple(values)


def _check_over(over: str) -> None:
    if over not in OVER:
        raise UsageError(f"over {over!r}: unknown; write NAME=VALUE,VALUE,… with one of {', '.join(OVER)}")


def check_values(over: str, values: Sequence[Value]) -> None:
    """Raise UsageError unless these are two or more different values that the quantity can have."""
    _check_over(over)
    for value in values:
        if not (isinstance(value, int) or over == FRACTIONAL) or not 0 < value < math.inf:
            kind = "numbers" if over == FRACTIONAL else "whole numbers"
            raise UsageError(f"over {over}: {value} is not possible; give {kind} above 0")
        if over == "colours" and not 2 <= value <= MOST_COLOURS:
            raise UsageError(f"over {over}: {value} is not possible; a palette has 2 to {MOST_COLOURS}")
        if list(values).count(value) > 1:
            raise UsageError(f"over {over}: {value} stands there twice; give each value once")
    if len(values) < 2:
        raise UsageError(f"over {over}: {len(values)} value; give at least two, such as {over}=1,2")


def sweep(
    folder: Path,
    *,
    net: NetName,
    recipe: RecipeName,
    over: str,
    values: Sequence[Value],
    seeds: Sequence[int],
    data: str,
    palette: str = "auto",
    epochs: int | None = None,
    steps: int | None = None,
    options: ExecutionOptions | None = None,
    say: Callable[[str], None] = print,
) -> Sweep:
    """Train the net with every value and seed into ``folder/OVER-VALUE-seedN``, unless it is there, and tabulate.

    Args:
        over: a name in ``OVER``; over ``colours`` palettes of so many colours are fitted to the training pictures.
        epochs: instead of the recipe's.
        steps: of the second comparison over batch sizes, whose runs are in ``folder/OVER-VALUE-stepsM-seedN``; None: as
            many as the largest batch makes in the first. A run of the first that made as many is taken for both.

    Raises UsageError before anything is trained for values that cannot be, and if another run is in the place of one.
    """
    check_values(over, values)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds: {tuple(seeds)} holds {'one twice' if seeds else 'none'}; give each once")
    if steps is not None and (over != "batch-size" or steps < 1):
        what = "give at least 1" if over == "batch-size" else f"leave it out: over {over} all make as many steps anyway"
        raise UsageError(f"steps is {steps}: {what}")
    if over == "colours" and palette != "auto":
        raise UsageError(f"palette {palette}: a sweep over colours fits palettes of its own; leave it out")
    plain = TrainConfig(
        net=net, recipe_name=recipe, recipe=recipe_for(recipe, net, epochs=epochs), data=data, palette=palette
    )
    configs = {value: OVER[over](plain, value) for value in sorted(values)}
    for config in configs.values():
        build_net(net, **config.settings)  # which refuses what this net cannot be
    equal_epochs = _by_folder(folder, over, configs, seeds)
    counted = _with_equal_steps(configs, steps) if over == "batch-size" else {}
    equal_steps = _by_folder(folder, over, counted, seeds)
    wanted = [runs for rows in (equal_epochs, equal_steps) for runs in rows.values()]
    train_missing({run: config for runs in wanted for run, config in runs.items()}, options=options, say=say)
    return _tabulate(
        folder,
        over,
        tuple(seeds),
        {value: list(runs) for value, runs in equal_epochs.items()},
        {value: list(runs) for value, runs in equal_steps.items()},
    )


def _by_folder(
    folder: Path, over: str, configs: Mapping[Value, TrainConfig], seeds: Sequence[int]
) -> dict[Value, dict[Path, TrainConfig]]:
    """For every value the run of each seed and where it belongs."""

    def run(value: Value, steps: int | None, seed: int) -> Path:
        return folder / f"{over}-{value}{'' if steps is None else f'-steps{steps}'}-seed{seed}"

    return {
        value: {run(value, config.steps, seed): replace(config, seed=seed) for seed in seeds}
        for value, config in configs.items()
    }


def _with_equal_steps(configs: Mapping[Value, TrainConfig], steps: int | None) -> dict[Value, TrainConfig]:
    """The same with so many steps each (None: the fewest that one makes), or as it is where it makes them anyway."""
    train = load_inputs(next(iter(configs.values()))).data.train
    made = {value: config.recipe.epochs * updates_per_epoch(config, train) for value, config in configs.items()}
    wanted = steps or min(made.values())
    return {
        value: config if made[value] == wanted else replace(config, steps=wanted) for value, config in configs.items()
    }


def _tabulate(
    folder: Path,
    over: str,
    seeds: tuple[int, ...],
    equal_epochs: Mapping[Value, Sequence[Path]],
    equal_steps: Mapping[Value, Sequence[Path]],
) -> Sweep:
    """Measure the finished runs and write ``curves.png``, ``sheet.png``, ``sweep.csv`` and ``sweep.json``."""
    measures = RunMeasures(one_palette=over != "colours")
    first = next(iter(equal_epochs.values()))[0]
    said, test = summary_of(first), measures.pictures(first).test
    found = Sweep(
        folder=folder,
        net=said["net"],
        recipe=said["recipe"],
        data=said["data"],
        palette=said["palette"] if over != "colours" else "fitted",
        over=over,
        seeds=seeds,
        grey_psnr=psnr_of_grey(test),
        truth_colourfulness=colourfulness_of_truth(test),
        equal_epochs=tuple(measures.row(folder, value, runs) for value, runs in equal_epochs.items()),
        equal_steps=tuple(measures.row(folder, value, runs) for value, runs in equal_steps.items()),
    )
    draw_sweep_curves(found, found.curves)
    draw_sweep_sheet(found, found.sheet, test)
    write_sweep(found)
    return found
