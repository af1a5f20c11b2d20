"""Sweeps: one model trained with several values of one parameter, such as the batch size or the kernel size.

The model is trained with every value for the same number of epochs. With different batch sizes, the number of optimizer
steps differs; a second comparison then uses the same number of steps for every value. All finished runs of a sweep are
evaluated in the same way.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from chromabox.engine.runs import RunDir
from chromabox.engine.runtime_options import RuntimeOptions
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

#: For every parameter name, the function that sets the parameter's value in a configuration.
SWEEP_PARAMETERS: Mapping[str, Callable[[TrainConfig, Any], TrainConfig]] = {
    "batch-size": lambda config, value: replace(config, recipe=replace(config.recipe, batch_size=value)),
    "kernel": lambda config, value: replace(config, model_args={"kernel": value}),
    "filters": lambda config, value: replace(config, model_args={"num_filters": value}),
    "learning-rate": lambda config, value: replace(config, recipe=replace(config.recipe, lr=value)),
    "colours": lambda config, value: replace(config, palette=f"{FITTED_PREFIX}{value}"),
}

#: The only parameter with float values; all others are integers.
FLOAT_PARAMETER = "learning-rate"


def parse_sweep(text: str) -> tuple[str, tuple[SweepValue, ...]]:
    """Parse ``batch-size=32,64`` into the parameter name and its values; raise UsageError for anything else."""
    parameter, _, listed = text.partition("=")
    _check_parameter(parameter)
    values: list[SweepValue] = []
    for word in listed.split(","):
        try:
            values.append(float(word) if parameter == FLOAT_PARAMETER else int(word))
        except ValueError:
            kind = "a number" if parameter == FLOAT_PARAMETER else "an integer"
            raise UsageError(f"--over {text}: {word!r} is not {kind}; use, for example, {parameter}=1,2,3") from None
    check_values(parameter, values)
    return parameter, tuple(values)


def _check_parameter(parameter: str) -> None:
    if parameter not in SWEEP_PARAMETERS:
        raise UsageError(
            f"--over: unknown parameter {parameter!r}; expected PARAMETER=V1,V2,... with one of "
            f"{', '.join(SWEEP_PARAMETERS)}"
        )


def check_values(parameter: str, values: Sequence[SweepValue]) -> None:
    """Raise UsageError unless these are two or more different, valid values of the parameter."""
    _check_parameter(parameter)
    for value in values:
        if not (isinstance(value, int) or parameter == FLOAT_PARAMETER) or not 0 < value < math.inf:
            kind = "numbers" if parameter == FLOAT_PARAMETER else "integers"
            raise UsageError(f"--over {parameter}: invalid value {value}; expected {kind} above 0")
        if parameter == "colours" and not 2 <= value <= MAX_COLOURS:
            raise UsageError(f"--over {parameter}: invalid value {value}; expected 2 to {MAX_COLOURS} colours")
        if list(values).count(value) > 1:
            raise UsageError(f"--over {parameter}: duplicate value {value}; use each value once")
    if len(values) < 2:
        raise UsageError(f"--over {parameter}: got {len(values)} value; expected at least two, such as {parameter}=1,2")


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
    """Train the model with every value and seed into ``folder/PARAMETER-VALUE-seedN`` and tabulate the results.

    Args:
        parameter: a name in ``SWEEP_PARAMETERS``; with ``colours``, palettes of each size are fitted to the training
            images.
        epochs: number of epochs; None uses the recipe's number.
        steps: number of optimizer steps in the second comparison of a sweep over batch sizes, whose runs are in
            ``folder/PARAMETER-VALUE-stepsM-seedN``. None uses the number of steps of the largest batch size in the
            first comparison. A run of the first comparison with that number of steps is used in both.

    Finished runs are reused and interrupted ones are resumed. Raise UsageError, before any training, for invalid values
    and if a run folder contains a run with different settings.
    """
    check_values(parameter, values)
    require_distinct("--seeds", seeds)
    if steps is not None and parameter != "batch-size":
        raise UsageError(f"--steps {steps}: omit it, since all values of {parameter} take the same number of steps")
    if steps is not None and steps < 1:
        raise UsageError(f"--steps {steps}: expected at least 1")
    if parameter == "colours" and palette != "auto":
        raise UsageError(f"--palette {palette}: a sweep over colours fits its palettes; omit --palette")
    base_config = TrainConfig(
        model=model, recipe_name=recipe, recipe=make_recipe(recipe, model, epochs=epochs), data=data, palette=palette
    )
    configs = {value: SWEEP_PARAMETERS[parameter](base_config, value) for value in sorted(values)}
    for config in configs.values():
        build_model(model, **config.model_args)  # Raises UsageError for invalid arguments.
    step_configs = _equal_steps_configs(configs, steps) if parameter == "batch-size" else {}

    def runs_by_value(configs: Mapping[SweepValue, TrainConfig]) -> dict[SweepValue, dict[Path, TrainConfig]]:
        """Return, for every value, the configurations of all seeds, keyed by run folder."""
        names = {
            value: f"{parameter}-{value}{'' if config.max_steps is None else f'-steps{config.max_steps}'}"
            for value, config in configs.items()
        }
        return {
            value: {folder / f"{names[value]}-seed{seed}": replace(config, seed=seed) for seed in seeds}
            for value, config in configs.items()
        }

    equal_epochs, equal_steps = runs_by_value(configs), runs_by_value(step_configs)
    groups = [*equal_epochs.values(), *equal_steps.values()]
    train_palette_models({run: config for runs in groups for run, config in runs.items()}, options=options)
    return _write_results(folder, parameter, tuple(seeds), equal_epochs, equal_steps)


def _equal_steps_configs(configs: Mapping[SweepValue, TrainConfig], steps: int | None) -> dict[SweepValue, TrainConfig]:
    """Return the configurations with ``steps`` optimizer steps each; None uses the smallest number among them.

    A configuration that already takes that number of steps is unchanged.
    """
    train = load_inputs(next(iter(configs.values()))).data.train
    num_steps = {value: config.recipe.epochs * _steps_per_epoch(config, train) for value, config in configs.items()}
    target = steps or min(num_steps.values())
    return {
        value: config if num_steps[value] == target else replace(config, max_steps=target)
        for value, config in configs.items()
    }


def _steps_per_epoch(config: TrainConfig, train: LabelledImages) -> int:
    return num_batches(len(train), config.recipe.batch_size, shuffle=config.recipe.shuffle)


def _write_results(
    folder: Path,
    parameter: str,
    seeds: tuple[int, ...],
    equal_epochs: Mapping[SweepValue, Iterable[Path]],
    equal_steps: Mapping[SweepValue, Iterable[Path]],
) -> SweepResult:
    """Evaluate the finished runs and write ``curves.png``, ``sheet.png``, ``sweep.csv`` and ``sweep.json``."""
    runs = list(dict.fromkeys(run for rows in (equal_epochs, equal_steps) for group in rows.values() for run in group))
    summaries = {run: RunDir(run).summary() for run in runs}
    first = summaries[runs[0]]
    for run in runs:
        name = summaries[run]["palette"]
        if parameter != "colours" and name != first["palette"]:  # "auto" selected different palettes.
            raise UsageError(
                f"{run}: uses palette {name}, but {runs[0]} uses {first['palette']}; use --palette and another folder "
                "with -o"
            )
    metrics: dict[Path, dict[str, float]] = {}
    steps_per_epoch: dict[Path, int] = {}
    inputs = load_inputs(RunDir(runs[0]).load_config(TrainConfig), runs[0])
    test = inputs.data.test
    for run in runs:
        if not np.array_equal(inputs.palette.colours, load_palette(run / "palette.json").colours):
            inputs = load_inputs(
                RunDir(run).load_config(TrainConfig), run
            )  # The images are labelled with the run's palette.
        steps_per_epoch[run] = _steps_per_epoch(RunDir(run).load_config(TrainConfig), inputs.data.train)
        metrics[run] = _evaluate_run(run, summaries[run], inputs.data, steps_per_epoch[run])

    def make_row(value: SweepValue, group: Sequence[Path]) -> SweepRow:
        summary = summaries[group[0]]
        return SweepRow(
            value=value,
            runs=tuple(run.relative_to(folder) for run in group),
            parameters=summary["parameters"],
            epochs=summary["epochs"],
            steps=summary["updates"],
            steps_per_epoch=steps_per_epoch[group[0]],
            metrics={name: SeedStats(tuple(metrics[run][name] for run in group)) for name in METRICS},
        )

    grey = np.rint(test.grey_sum.numpy() / 3).astype(np.uint8)
    result = SweepResult(
        folder=folder,
        model=first["net"],
        recipe=first["recipe"],
        data=first["data"],
        palette=first["palette"] if parameter != "colours" else "fitted",
        parameter=parameter,
        seeds=seeds,
        grey_psnr=psnr(np.repeat(grey[..., None], 3, axis=-1), _true_rgb(test)),
        truth_colourfulness=_mean_colourfulness(_true_rgb(test)),
        equal_epochs=tuple(make_row(value, list(group)) for value, group in equal_epochs.items()),
        equal_steps=tuple(make_row(value, list(group)) for value, group in equal_steps.items()),
    )
    plot_sweep_curves(result, result.curves_path)
    plot_sweep_samples(result, result.samples_path, test)
    write_sweep(result)
    return result


RGBBatch = UInt8[np.ndarray, "images height width 3"]


def _evaluate_run(run: Path, summary: Mapping[str, Any], data: ColourDataset, steps_per_epoch: int) -> dict[str, float]:
    """Return the metrics of one run, keyed by the names in ``METRICS``."""
    model = load_palette_model(run)
    train, test = data.train.select(slice(0, len(data.test))), data.test
    train_loss, train_accuracy = loss_and_accuracy(model.network, train.grey, train.labels)
    batches = [test.select(slice(i, i + EVAL_BATCH_SIZE)).grey for i in range(0, len(test), EVAL_BATCH_SIZE)]
    labels = np.concatenate([predict_labels(model.network, batch) for batch in batches])
    coloured, truth = decode_labels(labels, model.palette), _true_rgb(test)
    return {
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "test_loss": summary["test_loss"],
        "test_accuracy": summary["test_accuracy"],
        "psnr": psnr(coloured, truth),
        "delta_e": delta_e(coloured, truth),
        "colourfulness": _mean_colourfulness(coloured),
        "seconds": summary["seconds"],
        "seconds_per_epoch": summary["seconds"] / (summary["updates"] / steps_per_epoch),
    }


def _true_rgb(test: LabelledImages) -> RGBBatch:
    return np.ascontiguousarray(test.rgb.transpose(0, 2, 3, 1))


def _mean_colourfulness(images: RGBBatch) -> float:
    return float(np.mean([colourfulness(image) for image in images]))
