"""Sweeps: one model trained with several values of one hyperparameter, such as the batch size or the kernel size.

The model is trained with every value for the same number of epochs. Different batch sizes then take different numbers
of optimizer steps. A second comparison therefore uses the same number of steps for every batch size.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8

from chromabox.colour.data.datasets import FITTED_PREFIX, ColourDataset, LabelledImages, num_batches
from chromabox.colour.evaluation.evaluate import EVAL_BATCH_SIZE, predict_labels
from chromabox.colour.evaluation.metrics import colourfulness, delta_e, psnr
from chromabox.colour.models import build_model
from chromabox.colour.palette.io import load_palette
from chromabox.colour.palette.palette import MAX_COLOURS, decode_labels
from chromabox.colour.training.loss import loss_and_accuracy
from chromabox.colour.training.recipes import PaletteModelName, RecipeName, make_recipe
from chromabox.colour.training.train import TrainConfig, load_inputs
from chromabox.colour.weights.checkpoint import load_palette_model
from chromabox.engine.options import RuntimeOptions
from chromabox.engine.runs import RunDir
from chromabox.errors import UsageError
from chromabox.experiments.runs import require_distinct, train_palette_models
from chromabox.experiments.sweep_results import (
    METRICS,
    SeedStats,
    SweepResult,
    SweepRow,
    SweepValue,
    plot_sweep_curves,
    plot_sweep_samples,
    write_sweep,
)

#: For every parameter, a function that returns a configuration with the given value of the parameter.
SWEEP_PARAMETERS: Mapping[str, Callable[[TrainConfig, Any], TrainConfig]] = {
    "batch-size": lambda config, value: replace(config, recipe=replace(config.recipe, batch_size=value)),
    "kernel": lambda config, value: replace(config, model_args={"kernel": value}),
    "filters": lambda config, value: replace(config, model_args={"num_filters": value}),
    "learning-rate": lambda config, value: replace(config, recipe=replace(config.recipe, lr=value)),
    "colours": lambda config, value: replace(config, palette=f"{FITTED_PREFIX}{value}"),
}

#: The only parameter with float values. All others are integers.
FLOAT_PARAMETER = "learning-rate"

RGBBatch: TypeAlias = UInt8[np.ndarray, "images height width 3"]
#: For every value, the configurations of all seeds, keyed by run folder.
RunsByValue: TypeAlias = dict[SweepValue, dict[Path, TrainConfig]]


def parse_sweep(text: str) -> tuple[str, tuple[SweepValue, ...]]:
    """Parse ``batch-size=32,64`` into the parameter name and its values. Raise UsageError for anything else."""
    parameter, _, listed = text.partition("=")
    values: tuple[SweepValue, ...] = ()
    with suppress(ValueError):
        values = tuple(float(word) if parameter == FLOAT_PARAMETER else int(word) for word in listed.split(","))
    check_values(parameter, values, text)
    return parameter, values


def check_values(parameter: str, values: Sequence[SweepValue], text: str | None = None) -> None:
    """Raise UsageError unless the values are two or more different, valid values of the parameter.

    ``text`` is the text that the message quotes, for example ``kernel=1,3``. The default is composed from the other
    arguments.
    """
    if parameter not in SWEEP_PARAMETERS:
        names = ", ".join(SWEEP_PARAMETERS)
        raise UsageError(f"--over: unknown parameter {parameter!r}; expected PARAMETER=V1,V2,... with one of {names}")
    is_float, is_palette = parameter == FLOAT_PARAMETER, parameter == "colours"
    are_valid = all(
        (is_float or isinstance(value, int)) and 0 < value < math.inf and (not is_palette or 2 <= value <= MAX_COLOURS)
        for value in values
    )
    if not are_valid or len(values) < 2 or len(set(values)) < len(values):
        given = f"{parameter}={','.join(map(str, values))}" if text is None else text
        noun = "numbers" if is_float else "integers"
        bounds = f"from 2 to {MAX_COLOURS}" if is_palette else "above 0"
        raise UsageError(f"--over {given}: expected two or more different {noun} {bounds}, such as {parameter}=2,4")


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
) -> SweepResult:
    """Train the model with every value and seed into ``folder/PARAMETER-VALUE-seedN``, and tabulate the results.

    Args:
        parameter: a name in ``SWEEP_PARAMETERS``. For ``colours``, a palette of each size is fitted to the training
            images.
        epochs: number of epochs. None selects the recipe's number.
        steps: number of optimizer steps in the second comparison of a sweep over batch sizes. The runs of this
            comparison are in ``folder/PARAMETER-VALUE-stepsM-seedN``. None selects the number of steps that the largest
            batch size takes in the first comparison. A run of the first comparison with the same number of steps is
            used in both comparisons.

    Finished runs are reused and interrupted runs are resumed. Raise UsageError, before any training, for invalid values
    and if a run folder contains a run with different settings.
    """
    check_values(parameter, values)
    require_distinct("--seeds", seeds)
    if steps is not None and parameter != "batch-size":
        raise UsageError(f"--steps {steps}: all values of {parameter} take the same number of steps; omit --steps")
    if steps is not None and steps < 1:
        raise UsageError(f"--steps {steps}: expected at least 1")
    if parameter == "colours" and palette != "auto":
        raise UsageError(f"--palette {palette}: a sweep over colours fits a palette for each value; omit --palette")
    base_config = TrainConfig(
        model=model, recipe_name=recipe, recipe=make_recipe(recipe, model, epochs=epochs), data=data, palette=palette
    )
    configs = {value: SWEEP_PARAMETERS[parameter](base_config, value) for value in sorted(values)}
    for config in configs.values():
        build_model(model, **config.model_args)  # Raises UsageError for invalid arguments.
    step_configs: dict[SweepValue, TrainConfig] = {}
    if parameter == "batch-size":
        images = load_inputs(base_config).data.train
        totals = {value: config.recipe.epochs * _steps_per_epoch(config, images) for value, config in configs.items()}
        target = steps or min(totals.values())
        for value, config in configs.items():
            step_configs[value] = config if totals[value] == target else replace(config, max_steps=target)

    def runs_by_value(configs: Mapping[SweepValue, TrainConfig]) -> RunsByValue:
        runs: RunsByValue = {}
        for value, config in configs.items():
            name = f"{parameter}-{value}" + ("" if config.max_steps is None else f"-steps{config.max_steps}")
            runs[value] = {folder / f"{name}-seed{seed}": replace(config, seed=seed) for seed in seeds}
        return runs

    equal_epochs, equal_steps = runs_by_value(configs), runs_by_value(step_configs)
    all_configs: dict[Path, TrainConfig] = {}
    for group in (*equal_epochs.values(), *equal_steps.values()):
        all_configs |= group
    train_palette_models(all_configs, options=options)
    return _write_results(folder, parameter, tuple(seeds), all_configs, equal_epochs, equal_steps)


def _steps_per_epoch(config: TrainConfig, images: LabelledImages) -> int:
    return num_batches(len(images), config.recipe.batch_size, shuffle=config.recipe.shuffle)


def _write_results(
    folder: Path,
    parameter: str,
    seeds: tuple[int, ...],
    configs: Mapping[Path, TrainConfig],
    equal_epochs: RunsByValue,
    equal_steps: RunsByValue,
) -> SweepResult:
    """Evaluate the finished runs and write ``curves.png``, ``sheet.png``, ``sweep.csv`` and ``sweep.json``."""
    summaries = {run: RunDir(run).summary() for run in configs}
    first_run, first = next(iter(summaries.items()))
    for run, summary in summaries.items():
        # The palette "auto" can select different palettes.
        if parameter != "colours" and summary["palette"] != first["palette"]:
            raise UsageError(
                f"{run}: uses palette {summary['palette']}, but {first_run} uses {first['palette']}; select one "
                "palette with --palette and another folder with -o"
            )
    inputs = load_inputs(configs[first_run], first_run)
    test = inputs.data.test
    truth = np.ascontiguousarray(test.rgb.transpose(0, 2, 3, 1))
    metrics: dict[Path, dict[str, float]] = {}
    for run, config in configs.items():
        # The training images are labelled with the palette of the run.
        if not np.array_equal(inputs.palette.colours, load_palette(run / "palette.json").colours):
            inputs = load_inputs(config, run)
        metrics[run] = _evaluate_run(run, summaries[run], inputs.data, truth)
        num_epochs = summaries[run]["updates"] / _steps_per_epoch(config, inputs.data.train)
        metrics[run]["seconds_per_epoch"] = summaries[run]["seconds"] / num_epochs

    def make_rows(runs: RunsByValue) -> tuple[SweepRow, ...]:
        rows = []
        for value, group in runs.items():
            run, config = next(iter(group.items()))
            row = SweepRow(
                value=value,
                runs=tuple(run.relative_to(folder) for run in group),
                parameters=summaries[run]["parameters"],
                epochs=summaries[run]["epochs"],
                steps=summaries[run]["updates"],
                steps_per_epoch=_steps_per_epoch(config, inputs.data.train),
                metrics={name: SeedStats(tuple(metrics[run][name] for run in group)) for name in METRICS},
            )
            rows.append(row)
        return tuple(rows)

    grey = np.rint(test.grey_sum.numpy() / 3).astype(np.uint8)
    result = SweepResult(
        folder=folder,
        model=first["net"],
        recipe=first["recipe"],
        data=first["data"],
        palette=first["palette"] if parameter != "colours" else "fitted",
        parameter=parameter,
        seeds=seeds,
        grey_psnr=psnr(np.repeat(grey[..., None], 3, axis=-1), truth),
        truth_colourfulness=_mean_colourfulness(truth),
        equal_epochs=make_rows(equal_epochs),
        equal_steps=make_rows(equal_steps),
    )
    plot_sweep_curves(result, result.curves_path)
    plot_sweep_samples(result, result.samples_path, test)
    write_sweep(result)
    return result


def _evaluate_run(run: Path, summary: Mapping[str, Any], data: ColourDataset, truth: RGBBatch) -> dict[str, float]:
    """Return the metrics of one run, keyed by the names in ``METRICS``, except the seconds per epoch."""
    model = load_palette_model(run)
    train, test = data.train.select(slice(0, len(data.test))), data.test
    train_loss, train_accuracy = loss_and_accuracy(model.network, train.grey, train.labels)
    batches = [test.select(slice(i, i + EVAL_BATCH_SIZE)).grey for i in range(0, len(test), EVAL_BATCH_SIZE)]
    labels = np.concatenate([predict_labels(model.network, batch) for batch in batches])
    coloured = decode_labels(labels, model.palette)
    return {
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "test_loss": summary["test_loss"],
        "test_accuracy": summary["test_accuracy"],
        "psnr": psnr(coloured, truth),
        "delta_e": delta_e(coloured, truth),
        "colourfulness": _mean_colourfulness(coloured),
        "seconds": summary["seconds"],
    }


def _mean_colourfulness(images: RGBBatch) -> float:
    return float(np.mean([colourfulness(image) for image in images]))
