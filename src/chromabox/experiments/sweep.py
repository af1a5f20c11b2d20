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

from chromabox.colour.data.datasets import FITTED_PREFIX, ColourDataset, LabelledImages, num_batches
from chromabox.colour.evaluation import metrics
from chromabox.colour.evaluation.evaluate import EVAL_BATCH_SIZE, predict_labels
from chromabox.colour.models import build_model
from chromabox.colour.palette.io import load_palette
from chromabox.colour.palette.palette import MAX_COLOURS, decode_labels
from chromabox.colour.training.loss import loss_and_accuracy
from chromabox.colour.training.recipes import PaletteModelName, RecipeName, make_recipe
from chromabox.colour.training.train import TrainConfig, TrainInputs, load_inputs, read_config
from chromabox.colour.weights.checkpoint import PaletteModel, load_palette_model
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError
from chromabox.experiments.runs import read_summary, train_pending
from chromabox.experiments.sweep_results import (
    SeedStats,
    SweepResult,
    SweepRow,
    SweepValue,
    plot_sweep_curves,
    plot_sweep_samples,
    write_sweep,
)

#: What changes in a run with the value, by the quantity's name.
SWEEP_PARAMETERS: Mapping[str, Callable[[TrainConfig, Any], TrainConfig]] = {
    "batch-size": lambda config, value: replace(config, recipe=replace(config.recipe, batch_size=value)),
    "kernel": lambda config, value: replace(config, model_args={"kernel": value}),
    "filters": lambda config, value: replace(config, model_args={"num_filters": value}),
    "learning-rate": lambda config, value: replace(config, recipe=replace(config.recipe, lr=value)),
    "colours": lambda config, value: replace(config, palette=f"{FITTED_PREFIX}{value}"),
}

#: All others take whole numbers.
FLOAT_PARAMETER = "learning-rate"


def parse_sweep(text: str) -> tuple[str, tuple[SweepValue, ...]]:
    """``batch-size=32,64`` as a quantity's name and values; UsageError for anything else."""
    over, _, listed = text.partition("=")
    _check_parameter(over)
    values: list[SweepValue] = []
    for word in listed.split(","):
        try:
            values.append(float(word) if over == FLOAT_PARAMETER else int(word))
        except ValueError:
            kind = "number" if over == FLOAT_PARAMETER else "whole number"
            raise UsageError(f"over {text}: {word!r} is not a {kind}; write for example {over}=1,2,3") from None
    check_values(over, values)
    return over, tuple(values)


def _check_parameter(parameter: str) -> None:
    if parameter not in SWEEP_PARAMETERS:
        raise UsageError(
            f"over {parameter!r}: unknown; write NAME=VALUE,VALUE,… with one of {', '.join(SWEEP_PARAMETERS)}"
        )


def check_values(parameter: str, values: Sequence[SweepValue]) -> None:
    """Raise UsageError unless these are two or more different values that the quantity can have."""
    _check_parameter(parameter)
    for value in values:
        if not (isinstance(value, int) or parameter == FLOAT_PARAMETER) or not 0 < value < math.inf:
            kind = "numbers" if parameter == FLOAT_PARAMETER else "whole numbers"
            raise UsageError(f"over {parameter}: {value} is not possible; give {kind} above 0")
        if parameter == "colours" and not 2 <= value <= MAX_COLOURS:
            raise UsageError(f"over {parameter}: {value} is not possible; a palette has 2 to {MAX_COLOURS}")
        if list(values).count(value) > 1:
            raise UsageError(f"over {parameter}: {value} stands there twice; give each value once")
    if len(values) < 2:
        raise UsageError(f"over {parameter}: {len(values)} value; give at least two, such as {parameter}=1,2")


def sweep(
    folder: Path,
    *,
    model: PaletteModelName,
    recipe: RecipeName,
    parameter: str,
    values: Sequence[SweepValue],
    seeds: Sequence[int],
    data: str,
    palette: str = "auto",
    epochs: int | None = None,
    steps: int | None = None,
    options: RuntimeOptions | None = None,
    log: Callable[[str], None] = print,
) -> SweepResult:
    """Train the net with every value and seed into ``folder/OVER-VALUE-seedN``, unless it is there, and tabulate.

    Args:
        over: a name in ``OVER``; over ``colours`` palettes of so many colours are fitted to the training pictures.
        epochs: instead of the recipe's.
        steps: of the second comparison over batch sizes, whose runs are in ``folder/OVER-VALUE-stepsM-seedN``; None: as
            many as the largest batch makes in the first. A run of the first that made as many is taken for both.

    Raises UsageError before anything is trained for values that cannot be, and if another run is in the place of one.
    """
    check_values(parameter, values)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds: {tuple(seeds)} holds {'one twice' if seeds else 'none'}; give each once")
    if steps is not None and (parameter != "batch-size" or steps < 1):
        what = (
            "give at least 1"
            if parameter == "batch-size"
            else f"leave it out: over {parameter} all make as many steps anyway"
        )
        raise UsageError(f"steps is {steps}: {what}")
    if parameter == "colours" and palette != "auto":
        raise UsageError(f"palette {palette}: a sweep over colours fits palettes of its own; leave it out")
    plain = TrainConfig(
        model=model, recipe_name=recipe, recipe=make_recipe(recipe, model, epochs=epochs), data=data, palette=palette
    )
    configs = {value: SWEEP_PARAMETERS[parameter](plain, value) for value in sorted(values)}
    for config in configs.values():
        build_model(model, **config.model_args)  # which refuses what this net cannot be
    equal_epochs = _runs_by_folder(folder, parameter, configs, seeds)
    counted = _equal_steps_configs(configs, steps) if parameter == "batch-size" else {}
    equal_steps = _runs_by_folder(folder, parameter, counted, seeds)
    wanted = [runs for rows in (equal_epochs, equal_steps) for runs in rows.values()]
    train_pending({run: config for runs in wanted for run, config in runs.items()}, options=options, log=log)
    return _write_results(
        folder,
        parameter,
        tuple(seeds),
        {value: list(runs) for value, runs in equal_epochs.items()},
        {value: list(runs) for value, runs in equal_steps.items()},
    )


def _runs_by_folder(
    folder: Path, parameter: str, configs: Mapping[SweepValue, TrainConfig], seeds: Sequence[int]
) -> dict[SweepValue, dict[Path, TrainConfig]]:
    """For every value the run of each seed and where it belongs."""

    def run(value: SweepValue, steps: int | None, seed: int) -> Path:
        return folder / f"{parameter}-{value}{'' if steps is None else f'-steps{steps}'}-seed{seed}"

    return {
        value: {run(value, config.max_steps, seed): replace(config, seed=seed) for seed in seeds}
        for value, config in configs.items()
    }


def _equal_steps_configs(configs: Mapping[SweepValue, TrainConfig], steps: int | None) -> dict[SweepValue, TrainConfig]:
    """The same with so many steps each (None: the fewest that one makes), or as it is where it makes them anyway."""
    train = load_inputs(next(iter(configs.values()))).data.train
    made = {value: config.recipe.epochs * count_steps_per_epoch(config, train) for value, config in configs.items()}
    wanted = steps or min(made.values())
    return {
        value: config if made[value] == wanted else replace(config, max_steps=wanted)
        for value, config in configs.items()
    }


def _write_results(
    folder: Path,
    parameter: str,
    seeds: tuple[int, ...],
    equal_epochs: Mapping[SweepValue, Sequence[Path]],
    equal_steps: Mapping[SweepValue, Sequence[Path]],
) -> SweepResult:
    """Measure the finished runs and write ``curves.png``, ``sheet.png``, ``sweep.csv`` and ``sweep.json``."""
    measures = RunEvaluator(require_same_palette=parameter != "colours")
    first = next(iter(equal_epochs.values()))[0]
    said, test = read_summary(first), measures.load_data(first).test
    found = SweepResult(
        folder=folder,
        model=said["net"],
        recipe=said["recipe"],
        data=said["data"],
        palette=said["palette"] if parameter != "colours" else "fitted",
        parameter=parameter,
        seeds=seeds,
        grey_psnr=grey_psnr(test),
        truth_colourfulness=true_colourfulness(test),
        equal_epochs=tuple(measures.make_row(folder, value, runs) for value, runs in equal_epochs.items()),
        equal_steps=tuple(measures.make_row(folder, value, runs) for value, runs in equal_steps.items()),
    )
    plot_sweep_curves(found, found.curves_path)
    plot_sweep_samples(found, found.samples_path, test)
    write_sweep(found)
    return found


RGBBatch = UInt8[np.ndarray, "pictures height width 3"]


class RunEvaluator:
    """Measures runs, each once; pictures that were read are kept for the next run with the same palette."""

    def __init__(self, *, require_same_palette: bool) -> None:
        self.require_same_palette = require_same_palette
        self.inputs: TrainInputs | None = None
        self.cache: dict[Path, dict[str, float]] = {}
        self.palettes: dict[str, Path] = {}

    def make_row(self, folder: Path, value: SweepValue, runs: Sequence[Path]) -> SweepRow:
        """What the runs of one value reached; they lie in ``folder``."""
        found = [self.evaluate(run) for run in runs]
        summary = read_summary(runs[0])
        return SweepRow(
            value=value,
            runs=tuple(run.relative_to(folder) for run in runs),
            parameters=summary["parameters"],
            epochs=summary["epochs"],
            steps=summary["updates"],
            steps_per_epoch=count_steps_per_epoch(read_config(runs[0]), self.load_data(runs[0]).train),
            metrics={name: SeedStats(tuple(one[name] for one in found)) for name in found[0]},
        )

    def evaluate(self, run: Path) -> dict[str, float]:
        """One run's numbers, by the names in ``MEASURED``."""
        if run not in self.cache:
            self.check_same_palette(run)
            self.cache[run] = _evaluate_run(run, self.load_data(run))
        return self.cache[run]

    def load_data(self, run: Path) -> ColourDataset:
        """The run's pictures under its own palette."""
        palette = load_palette(run / "palette.json")
        if self.inputs is None or not np.array_equal(self.inputs.palette.colours, palette.colours):
            self.inputs = load_inputs(read_config(run), run)
        return self.inputs.data

    def check_same_palette(self, run: Path) -> None:
        """UsageError where ``auto`` found another palette while a part of the runs was trained."""
        name = read_summary(run)["palette"]
        self.palettes.setdefault(name, run)
        if self.require_same_palette and len(self.palettes) > 1:
            other, first = next(iter(self.palettes.items()))
            raise UsageError(
                f"{run}: has palette {name}, but {first} has {other}; give --palette and another -o folder"
            )


def count_steps_per_epoch(config: TrainConfig, train: LabelledImages) -> int:
    """Steps of the optimiser in a whole epoch."""
    return num_batches(len(train), config.recipe.batch_size, shuffle=config.recipe.shuffle)


def grey_psnr(test: LabelledImages) -> float:
    """PSNR in dB of the grey pictures, what is reached without any colour."""
    grey = np.rint(test.grey_sum.numpy() / 3).astype(np.uint8)
    return metrics.psnr(np.repeat(grey[..., None], 3, axis=-1), _true_rgb(test))


def true_colourfulness(test: LabelledImages) -> float:
    """Mean colourfulness of the true pictures."""
    return _mean_colourfulness(_true_rgb(test))


def _evaluate_run(run: Path, data: ColourDataset) -> dict[str, float]:
    summary, trained = read_summary(run), load_palette_model(run)
    train = data.train.select(slice(0, len(data.test)))
    train_loss, train_accuracy = loss_and_accuracy(trained.network, train.grey, train.labels)
    coloured, truth = _predict_rgb(trained, data.test), _true_rgb(data.test)
    passes = summary["updates"] / count_steps_per_epoch(read_config(run), data.train)
    return {
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "test_loss": summary["test_loss"],
        "test_accuracy": summary["test_accuracy"],
        "psnr": metrics.psnr(coloured, truth),
        "delta_e": metrics.delta_e(coloured, truth),
        "colourfulness": _mean_colourfulness(coloured),
        "seconds": summary["seconds"],
        "seconds_per_epoch": summary["seconds"] / passes,
    }


def _predict_rgb(model: PaletteModel, test: LabelledImages) -> RGBBatch:
    """Every pixel in its likeliest colour."""
    parts = [
        predict_labels(model.network, test.select(slice(i, i + EVAL_BATCH_SIZE)).grey)
        for i in range(0, len(test), EVAL_BATCH_SIZE)
    ]
    return decode_labels(np.concatenate(parts), model.palette)


def _true_rgb(test: LabelledImages) -> RGBBatch:
    return np.ascontiguousarray(test.rgb.transpose(0, 2, 3, 1))


def _mean_colourfulness(images: RGBBatch) -> float:
    return float(np.mean([metrics.colourfulness(picture) for picture in images]))
