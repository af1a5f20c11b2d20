"""Comparison of models trained with several seeds: a table that includes published results, and a figure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from chromabox.colour.evaluation.evaluate import sample_grid
from chromabox.colour.training.recipes import PaletteModelName, RecipeName, make_recipe
from chromabox.colour.training.train import TrainConfig, load_inputs
from chromabox.colour.weights.checkpoint import load_palette_model
from chromabox.engine.options import RuntimeOptions
from chromabox.engine.runs import RunDir
from chromabox.errors import UsageError, escape_unprintable
from chromabox.experiments.runs import require_distinct, train_palette_models
from chromabox.experiments.sweep_results import SeedStats, format_mean, write_table
from chromabox.report.plots import plot_image_rows
from chromabox.report.tables import format_number, print_grid


class PublishedResult(NamedTuple):
    """Accuracy range (percent) and lowest loss of six public solutions that use the assignment's data and palette."""

    accuracy: tuple[float, float]
    loss: float


PUBLISHED_RESULTS: Mapping[str, PublishedResult] = {
    "pool-upsample": PublishedResult((41.2, 41.4), 1.578),
    "conv-transpose": PublishedResult((54.7, 55.2), 1.1445),
    "unet": PublishedResult((57.5, 59.3), 1.0332),
}


@dataclass(frozen=True)
class Comparison:
    """Table rows, the runs of each row, and the paths of the table and the figure."""

    rows: list[dict[str, Any]]
    """Cells of ``comparison.csv``, one row per model. Accuracies are in percent. Columns whose names end in ``_std``
    contain sample standard deviations over the seeds, or None for a single seed."""
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
) -> Comparison:
    """Train every model with every seed into ``folder/MODEL-RECIPE-seedN`` and tabulate the results.

    Finished runs are reused and interrupted runs are resumed. Raise UsageError if a list is empty or has duplicates, or
    if a run folder contains a run with different settings.
    """
    require_distinct("--models", models)
    require_distinct("--seeds", seeds)
    runs: dict[str, list[Path]] = {}
    configs: dict[Path, TrainConfig] = {}
    for model in models:
        runs[model] = [folder / f"{model}-{recipe}-seed{seed}" for seed in seeds]
        settings = make_recipe(recipe, model, epochs=epochs)
        config = TrainConfig(model=model, recipe_name=recipe, recipe=settings, data=data, palette=palette)
        configs |= {run: replace(config, seed=seed) for run, seed in zip(runs[model], seeds, strict=True)}
    train_palette_models(configs, options=options)
    return tabulate(folder, runs)


def group_runs(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Group finished runs by model, and also by recipe if the runs use several recipes.

    Raise UsageError if a folder contains no summary or if the runs of a group cannot be averaged.
    """
    for run in runs:
        if not (run / "summary.json").is_file():
            raise UsageError(f"{run}: contains no summary.json; use the folder of a finished run")
    configs = [RunDir(run).load_config(TrainConfig) for run in runs]
    groups: dict[str, list[tuple[Path, TrainConfig]]] = {}
    for run, config in zip(runs, configs, strict=True):
        name = config.model if config.recipe_name == configs[0].recipe_name else f"{config.model} {config.recipe_name}"
        groups.setdefault(name, []).append((run, config))
    for name, group in groups.items():
        # The results are averaged over seeds. Runtime options do not change the trained model.
        settings = [replace(config, seed=0, runtime=None) for _, config in group]
        # If the configuration has the palette "auto", only the summary contains the name of the palette.
        palettes = {RunDir(run).summary()["palette"] for run, _ in group}
        if any(config != settings[0] for config in settings) or len(palettes) > 1:
            raise UsageError(
                f"the runs of {name} differ in recipe, data, palette or settings and cannot be averaged; "
                "compare them separately"
            )
        if len({config.seed for _, config in group}) < len(group):
            raise UsageError(f"the runs of {name} have duplicate seeds; expected one run for each seed")
    return {name: [run for run, _ in group] for name, group in groups.items()}


def tabulate(folder: Path, runs: Mapping[str, Sequence[Path]]) -> Comparison:
    """Write ``comparison.csv`` and ``comparison.png`` for finished runs. The runs of a name differ only in the seed."""
    rows = [_make_row([RunDir(run).summary() for run in group]) for group in runs.values()]
    groups = {name: list(group) for name, group in runs.items()}
    result = Comparison(rows, groups, folder / "comparison.csv", folder / "comparison.png")
    folder.mkdir(parents=True, exist_ok=True)
    write_table(result.csv_path, rows)
    images: dict[str, Any] = {}
    for (name, (run, *_)), row in zip(result.runs.items(), rows, strict=True):
        model, test = load_palette_model(run), load_inputs(RunDir(run).load_config(TrainConfig), run).data.test
        grey, truth, predicted = sample_grid(model.network, test, model.palette)
        images = {"grey": grey, "truth": truth, **images, f"{name}\n{row['accuracy']:.1f} %": predicted}
    plot_image_rows(images, result.figure_path, f"{_describe(rows[0])}: first test images")
    return result


def _make_row(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = summaries[0]
    accuracy = SeedStats(tuple(100 * summary["test_accuracy"] for summary in summaries))
    loss = SeedStats(tuple(summary["test_loss"] for summary in summaries))
    published = PUBLISHED_RESULTS.get(first["net"])
    return {
        "model": first["net"],
        **{name: first[name] for name in ("recipe", "data", "palette", "parameters")},
        "seeds": " ".join(str(summary["seed"]) for summary in summaries),
        "accuracy": round(accuracy.mean, 3),
        "accuracy_std": None if accuracy.std is None else round(accuracy.std, 3),
        "loss": round(loss.mean, 5),
        "loss_std": None if loss.std is None else round(loss.std, 5),
        "seconds": round(statistics.mean(summary["seconds"] for summary in summaries), 1),
        "published_accuracy": "–".join(str(bound) for bound in published.accuracy) if published else "",
        "published_loss": str(published.loss) if published else "",
    }


def _describe(row: Mapping[str, Any]) -> str:
    return f"{row['data']}, {row['recipe']} recipe, palette {row['palette']}"


def print_comparison(result: Comparison) -> None:
    """Print one row per model with the published results, and the paths of the table and the figure."""
    columns = ["model", "parameters", "seeds", "accuracy %", "loss", "seconds", "published %", "published loss"]
    rows = [
        [
            row["model"],
            f"{row['parameters']:,}",
            row["seeds"],
            format_mean(row["accuracy"], row["accuracy_std"], 2),
            format_mean(row["loss"], row["loss_std"], 4),
            format_number(row["seconds"], 0),
            row["published_accuracy"],
            row["published_loss"],
        ]
        for row in result.rows
    ]
    print_grid(_describe(result.rows[0]), columns, rows)
    for line in (f"table: {result.csv_path}", f"figure: {result.figure_path}"):
        print(escape_unprintable(line))
