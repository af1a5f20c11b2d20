"""Comparison of models: each trained with several seeds, tabulated with published results, and plotted."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chromabox.colour.evaluation.evaluate import sample_grid
from chromabox.colour.training.recipes import PaletteModelName, RecipeName, make_recipe
from chromabox.colour.training.train import TrainConfig, load_inputs
from chromabox.colour.weights.checkpoint import load_palette_model
from chromabox.engine.runs import RunDir
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError
from chromabox.experiments.runs import require_distinct, train_palette_models
from chromabox.experiments.sweep_results import SeedStats, print_table, write_table
from chromabox.report.plots import plot_image_rows


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
class Comparison:
    """Table rows, the runs behind each row, and the paths of the table and the figure."""

    rows: list[dict[str, Any]]
    """Cells of ``comparison.csv``, one row per model. Accuracies are in percent; columns whose names end in ``_std``
    contain sample standard deviations over the seeds, None for a single seed."""
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

    Finished runs are reused and interrupted ones are resumed. Raise UsageError if a list is empty or has duplicates, or
    if a run folder contains a run with different settings.
    """
    require_distinct("--models", models)
    require_distinct("--seeds", seeds)
    configs = {
        model: {
            folder / f"{model}-{recipe}-seed{seed}": TrainConfig(
                model=model,
                recipe_name=recipe,
                recipe=make_recipe(recipe, model, epochs=epochs),
                data=data,
                palette=palette,
                seed=seed,
            )
            for seed in seeds
        }
        for model in models
    }
    all_configs = {run: config for group in configs.values() for run, config in group.items()}
    train_palette_models(all_configs, options=options)
    return tabulate(folder, {model: list(group) for model, group in configs.items()})


def group_runs(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Group finished runs by model (and by recipe, if the runs use several).

    Raise UsageError if a folder contains no summary or if the runs of a group cannot be averaged.
    """
    groups: dict[str, list[Path]] = {}
    for run in runs:
        if not (run / "summary.json").is_file():
            raise UsageError(f"{run}: contains no summary.json; use the folder of a finished run")
        config = RunDir(run).load_config(TrainConfig)
        has_first_recipe = config.recipe_name == RunDir(runs[0]).load_config(TrainConfig).recipe_name
        groups.setdefault(config.model if has_first_recipe else f"{config.model} {config.recipe_name}", []).append(run)
    for name, group in groups.items():
        configs = [RunDir(run).load_config(TrainConfig) for run in group]
        # Averaging is over seeds, and runtime options do not change the trained model.
        comparable = [replace(config, seed=0, runtime=None) for config in configs]
        # With the palette "auto", only the summary contains the palette that was used.
        palettes = {RunDir(run).summary()["palette"] for run in group}
        if any(config != comparable[0] for config in comparable) or len(palettes) > 1:
            raise UsageError(
                f"runs of {name} differ in recipe, data, palette or settings and cannot be averaged; "
                "compare them separately"
            )
        if len({config.seed for config in configs}) < len(configs):
            raise UsageError(f"runs of {name} have duplicate seeds; use each seed once")
    return groups


def tabulate(folder: Path, runs: Mapping[str, Sequence[Path]]) -> Comparison:
    """Write ``comparison.csv`` and ``comparison.png`` for finished runs, given as one list of runs (seeds) per name."""
    rows = [_make_row([RunDir(run).summary() for run in group]) for group in runs.values()]
    result = Comparison(
        rows,
        {name: list(group) for name, group in runs.items()},
        csv_path=folder / "comparison.csv",
        figure_path=folder / "comparison.png",
    )
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
    columns = {
        "model": ("model", "", 1.0),
        "parameters": ("parameters", ",", 1.0),
        "seeds": ("seeds", "", 1.0),
        "accuracy": ("accuracy %", ".2f", 1.0),
        "loss": ("loss", ".4f", 1.0),
        "seconds": ("seconds", ".0f", 1.0),
        "published_accuracy": ("published %", "", 1.0),
        "published_loss": ("published loss", "", 1.0),
    }
    print_table(_describe(result.rows[0]), result.rows, columns)
    print(f"table: {result.csv_path}\nfigure: {result.figure_path}")
