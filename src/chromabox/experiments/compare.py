"""Comparison of models: each trained with several seeds, tabulated with published results, and plotted."""

import csv
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from chromabox.colour.evaluation.evaluate import sample_grid
from chromabox.colour.training.recipes import PaletteModelName, RecipeName, make_recipe
from chromabox.colour.training.train import TrainConfig, load_inputs, read_config
from chromabox.colour.weights.checkpoint import load_palette_model
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError
from chromabox.experiments.runs import train_pending
from chromabox.io.atomic import atomic_write
from chromabox.report.plots import plot_image_rows
from chromabox.report.tables import _print_table


@dataclass(frozen=True)
class PublishedResult:
    """Accuracy range in percent and lowest loss of six public solutions, with the assignment's data and palette."""

    accuracy: tuple[float, float]
    loss: float


PUBLISHED_RESULTS: Mapping[str, PublishedResult] = {
    "pool-upsample": PublishedResult((41.2, 41.4), 1.578),
    "conv-transpose": PublishedResult((54.7, 55.2), 1.1445),
    "unet": PublishedResult((57.5, 59.3), 1.0332),
}


@dataclass(frozen=True)
class ComparisonRow:
    """Results of one model. Accuracies are in percent; ``_std`` fields are sample standard deviations over seeds."""

    model: str
    recipe: str
    data: str
    palette: str
    parameters: int
    seeds: str
    accuracy: float
    accuracy_std: float | None
    loss: float
    loss_std: float | None
    seconds: float
    published_accuracy: str
    published_loss: str


@dataclass(frozen=True)
class Comparison:
    """Table rows, the runs behind each row, and the paths of the table and the figure."""

    rows: list[ComparisonRow]
    runs: dict[str, list[Path]]
    csv_path: Path
    figure_path: Path


def compare(
    folder: Path,
    *,
    models: Sequence[PaletteModelName],
    recipe: RecipeName,
    seeds: Sequence[int],
    data: str,
    palette: str,
    epochs: int | None = None,
    options: RuntimeOptions | None = None,
    log: Callable[[str], None] = print,
) -> Comparison:
    """Train every model with every seed into ``folder/MODEL-RECIPE-seedN`` and tabulate the results.

    Finished runs are reused and interrupted ones are resumed. Raise UsageError if a list is empty or has duplicates, or
    if a run folder contains a run with other settings.
    """
    for option, values in (("--models", models), ("--seeds", seeds)):
        if not values or len(set(values)) < len(values):
            problem = "has duplicate values" if values else "is empty"
            raise UsageError(f"{option}: {values} {problem}; expected one or more different values")
    configs = {
        model: {
            folder / f"{model}-{recipe}-seed{seed}": _make_config(model, recipe, data, palette, seed, epochs)
            for seed in seeds
        }
        for model in models
    }
    all_configs = {run: config for group in configs.values() for run, config in group.items()}
    train_pending(all_configs, options=options, log=log)
    return tabulate(folder, {model: list(group) for model, group in configs.items()})


def _make_config(
    model: PaletteModelName, recipe: RecipeName, data: str, palette: str, seed: int, epochs: int | None
) -> TrainConfig:
    return TrainConfig(
        model=model,
        recipe_name=recipe,
        recipe=make_recipe(recipe, model, epochs=epochs),
        data=data,
        palette=palette,
        seed=seed,
    )


def group_runs(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Group finished runs by model (and by recipe, if the runs use several).

    Raise UsageError if a folder contains no summary or if the runs of a group cannot be averaged.
    """
    groups: dict[str, list[Path]] = {}
    for run in runs:
        if not (run / "summary.json").is_file():
            raise UsageError(f"{run}: contains no summary.json; use the folder of a finished run")
        config = read_config(run)
        name = (
            config.model
            if config.recipe_name == read_config(runs[0]).recipe_name
            else f"{config.model} {config.recipe_name}"
        )
        groups.setdefault(name, []).append(run)
    for name, group in groups.items():
        configs = [read_config(run) for run in group]
        # Averaging is over seeds, and runtime options do not change the trained model.
        comparable = [replace(config, seed=0, runtime=None) for config in configs]
        if any(config != comparable[0] for config in comparable) or len({_palette_name(run) for run in group}) > 1:
            raise UsageError(
                f"runs of {name} differ in recipe, data, palette or settings and cannot be averaged; "
                "compare them separately"
            )
        if len({config.seed for config in configs}) < len(configs):
            raise UsageError(f"runs of {name} have duplicate seeds; use each seed once")
    return groups


def _palette_name(run: Path) -> str:
    """Return the name of the palette in use; with ``auto`` the configuration does not contain it."""
    return str(json.loads((run / "summary.json").read_text(encoding="utf-8"))["palette"])


def tabulate(folder: Path, runs: Mapping[str, Sequence[Path]]) -> Comparison:
    """Write ``comparison.csv`` and ``comparison.png`` for finished runs, given as one list of runs (seeds) per name."""
    rows = [
        _make_row([json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in group])
        for group in runs.values()
    ]
    table, figure = folder / "comparison.csv", folder / "comparison.png"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(table) as temp_path, temp_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[item.name for item in fields(ComparisonRow)])
        writer.writeheader()
        writer.writerows({key: "" if value is None else value for key, value in vars(row).items()} for row in rows)
    _plot_samples(figure, {name: group[0] for name, group in runs.items()}, rows)
    return Comparison(rows, {name: list(group) for name, group in runs.items()}, table, figure)


def _make_row(summaries: Sequence[Mapping[str, Any]]) -> ComparisonRow:
    first = summaries[0]
    accuracies = [100 * summary["test_accuracy"] for summary in summaries]
    losses = [summary["test_loss"] for summary in summaries]
    comparable = (
        PUBLISHED_RESULTS.get(first["net"])
        if first["data"] == "cifar10:horse" and first["recipe"] == "course"
        else None
    )
    published = comparable or PUBLISHED_RESULTS.get(first["net"])
    return ComparisonRow(
        model=first["net"],
        recipe=first["recipe"],
        data=first["data"],
        palette=first["palette"],
        parameters=first["parameters"],
        seeds=" ".join(str(summary["seed"]) for summary in summaries),
        accuracy=round(statistics.mean(accuracies), 3),
        accuracy_std=round(statistics.stdev(accuracies), 3) if len(accuracies) > 1 else None,
        loss=round(statistics.mean(losses), 5),
        loss_std=round(statistics.stdev(losses), 5) if len(losses) > 1 else None,
        seconds=round(statistics.mean(summary["seconds"] for summary in summaries), 1),
        published_accuracy="–".join(str(bound) for bound in published.accuracy) if published else "",
        published_loss=str(published.loss) if published else "",
    )


def _plot_samples(path: Path, runs: Mapping[str, Path], table_rows: Sequence[ComparisonRow]) -> None:
    """Plot the first test images: rows of greyscale inputs, ground truth, and one row per model."""
    image_rows: dict[str, Any] = {}
    for (name, run), row in zip(runs.items(), table_rows, strict=True):
        config = read_config(run)
        model = load_palette_model(run)
        test = load_inputs(config, run).data.test
        grey, truth, predicted = sample_grid(model.network, test, model.palette)
        image_rows.setdefault("grey", grey)
        image_rows.setdefault("truth", truth)
        image_rows[f"{name}\n{row.accuracy:.1f} %"] = predicted
    plot_image_rows(
        image_rows,
        path,
        f"{table_rows[0].data}, {table_rows[0].recipe} recipe, palette {table_rows[0].palette}: first test images",
    )


def print_comparison(result: Comparison) -> None:
    """Print one row per model with the published results, and the paths of the table and the figure."""
    columns = ["model", "parameters", "seeds", "accuracy %", "loss", "seconds", "published %", "published loss"]
    rows = [
        [
            row.model,
            f"{row.parameters:,}",
            row.seeds,
            f"{row.accuracy:.2f}" + ("" if row.accuracy_std is None else f" ± {row.accuracy_std:.2f}"),
            f"{row.loss:.4f}" + ("" if row.loss_std is None else f" ± {row.loss_std:.4f}"),
            f"{row.seconds:.0f}",
            row.published_accuracy,
            row.published_loss,
        ]
        for row in result.rows
    ]
    first = result.rows[0]
    _print_table(f"{first.data}, {first.recipe} recipe, palette {first.palette}", columns, rows)
    print(f"table: {result.csv_path}\nfigure: {result.figure_path}")
