"""One net trained with several values of one quantity: what does the batch size, the kernel, … change?

Every value is trained for the same number of epochs. Over batch sizes that is not the same number of steps of the
optimiser: there a second comparison gives every value as many of them.

What the finished runs of a sweep reached, measured alike for all of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from chromabox.colour.data.datasets import FITTED, ColourData, Pictures, batches_per_epoch
from chromabox.colour.evaluation import metrics
from chromabox.colour.evaluation.evaluate import BATCH, predict_labels
from chromabox.colour.models import build_net
from chromabox.colour.palette.io import load_palette
from chromabox.colour.palette.palette import MOST_COLOURS, labels_to_rgb
from chromabox.colour.training.loss import loss_and_accuracy
from chromabox.colour.training.recipes import NetName, RecipeName, recipe_for
from chromabox.colour.training.train import Inputs, TrainConfig, load_inputs, read_config
from chromabox.colour.weights.checkpoint import TrainedNet, load_palette_net
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.errors import UsageError
from chromabox.experiments.runs import summary_of, train_missing
from chromabox.experiments.sweep_results import (
    Measured,
    Row,
    Sweep,
    Value,
    draw_sweep_curves,
    draw_sweep_sheet,
    write_sweep,
)

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


Rgb = UInt8[np.ndarray, "pictures height width 3"]


class RunMeasures:
    """Measures runs, each once; pictures that were read are kept for the next run with the same palette."""

    def __init__(self, *, one_palette: bool) -> None:
        self.one_palette = one_palette
        self.inputs: Inputs | None = None
        self.done: dict[Path, dict[str, float]] = {}
        self.palettes: dict[str, Path] = {}

    def row(self, folder: Path, value: Value, runs: Sequence[Path]) -> Row:
        """What the runs of one value reached; they lie in ``folder``."""
        found = [self.measured(run) for run in runs]
        summary = summary_of(runs[0])
        return Row(
            value=value,
            runs=tuple(run.relative_to(folder) for run in runs),
            parameters=summary["parameters"],
            epochs=summary["epochs"],
            updates=summary["updates"],
            updates_per_epoch=updates_per_epoch(read_config(runs[0]), self.pictures(runs[0]).train),
            measured={name: Measured(tuple(one[name] for one in found)) for name in found[0]},
        )

    def measured(self, run: Path) -> dict[str, float]:
        """One run's numbers, by the names in ``MEASURED``."""
        if run not in self.done:
            self.refuse_another_palette(run)
            self.done[run] = _measured(run, self.pictures(run))
        return self.done[run]

    def pictures(self, run: Path) -> ColourData:
        """The run's pictures under its own palette."""
        palette = load_palette(run / "palette.json")
        if self.inputs is None or not np.array_equal(self.inputs.palette.colours, palette.colours):
            self.inputs = load_inputs(read_config(run), run)
        return self.inputs.data

    def refuse_another_palette(self, run: Path) -> None:
        """UsageError where ``auto`` found another palette while a part of the runs was trained."""
        name = summary_of(run)["palette"]
        self.palettes.setdefault(name, run)
        if self.one_palette and len(self.palettes) > 1:
            other, first = next(iter(self.palettes.items()))
            raise UsageError(
                f"{run}: has palette {name}, but {first} has {other}; give --palette and another -o folder"
            )


def updates_per_epoch(config: TrainConfig, train: Pictures) -> int:
    """Steps of the optimiser in a whole epoch."""
    return batches_per_epoch(len(train), config.recipe.batch_size, shuffle=config.recipe.shuffle)


def psnr_of_grey(test: Pictures) -> float:
    """PSNR in dB of the grey pictures, what is reached without any colour."""
    grey = np.rint(test.grey_sum.numpy() / 3).astype(np.uint8)
    return metrics.psnr(np.repeat(grey[..., None], 3, axis=-1), _truth(test))


def colourfulness_of_truth(test: Pictures) -> float:
    """Mean colourfulness of the true pictures."""
    return _colourfulness(_truth(test))


def _measured(run: Path, data: ColourData) -> dict[str, float]:
    summary, trained = summary_of(run), load_palette_net(run)
    train = data.train.take(slice(0, len(data.test)))
    train_loss, train_accuracy = loss_and_accuracy(trained.net, train.grey, train.labels)
    coloured, truth = _coloured(trained, data.test), _truth(data.test)
    passes = summary["updates"] / updates_per_epoch(read_config(run), data.train)
    return {
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "test_loss": summary["test_loss"],
        "test_accuracy": summary["test_accuracy"],
        "psnr": metrics.psnr(coloured, truth),
        "delta_e": metrics.delta_e(coloured, truth),
        "colourfulness": _colourfulness(coloured),
        "seconds": summary["seconds"],
        "seconds_per_epoch": summary["seconds"] / passes,
    }


def _coloured(trained: TrainedNet, test: Pictures) -> Rgb:
    """Every pixel in its likeliest colour."""
    parts = [predict_labels(trained.net, test.take(slice(i, i + BATCH)).grey) for i in range(0, len(test), BATCH)]
    return labels_to_rgb(np.concatenate(parts), trained.palette)


def _truth(test: Pictures) -> Rgb:
    return np.ascontiguousarray(test.rgb.transpose(0, 2, 3, 1))


def _colourfulness(pictures: Rgb) -> float:
    return float(np.mean([metrics.colourfulness(picture) for picture in pictures]))
