"""All nets side by side: trained with several seeds, one table, one figure, the published numbers beside them."""

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
    """Accuracy range (%) and lowest loss over six public write-ups of the assignment: its setting and palette."""

    accuracy: tuple[float, float]
    loss: float


PUBLISHED_RESULTS: Mapping[str, PublishedResult] = {
    "pool-upsample": PublishedResult((41.2, 41.4), 1.578),
    "conv-transpose": PublishedResult((54.7, 55.2), 1.1445),
    "unet": PublishedResult((57.5, 59.3), 1.0332),
}


@dataclass(frozen=True)
class ComparisonRow:
    """One net's line of the table; accuracies in percent, spreads are sample standard deviations over seeds."""

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
    """The table, the runs behind it, and where both were put."""

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
    """Train every net with every seed into ``folder/NET-RECIPE-seedN``, unless it is there already, and tabulate."""
    for option, values in (("nets", models), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise UsageError(f"{option}: {values} holds {'one twice' if values else 'none'}; give each once")
    wanted = {
        net: {
            folder / f"{net}-{recipe}-seed{seed}": _make_config(net, recipe, data, palette, seed, epochs)
            for seed in seeds
        }
        for net in models
    }
    train_pending({run: config for group in wanted.values() for run, config in group.items()}, options=options, log=log)
    return tabulate(folder, {net: list(group) for net, group in wanted.items()})


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
    """Finished runs by net; UsageError for a folder without a summary or two runs of a net that cannot be averaged."""
    groups: dict[str, list[Path]] = {}
    for run in runs:
        if not (run / "summary.json").is_file():
            raise UsageError(f"{run}: holds no summary.json; give the folder of a run that finished")
        config = read_config(run)
        name = (
            config.model
            if config.recipe_name == read_config(runs[0]).recipe_name
            else f"{config.model} {config.recipe_name}"
        )
        groups.setdefault(name, []).append(run)
    for name, group in groups.items():
        configs = [read_config(run) for run in group]
        # The seed is what averaging is over; how a run was executed does not change what was trained.
        kinds = [replace(config, seed=0, runtime=None) for config in configs]
        if any(kind != kinds[0] for kind in kinds) or len({_palette_name(run) for run in group}) > 1:
            raise UsageError(
                f"runs of {name} differ in recipe, data, palette or settings and cannot be averaged; compare them apart"
            )
        if len({config.seed for config in configs}) < len(configs):
            raise UsageError(f"runs of {name} have the same seed twice; give each run once")
    return groups


def _palette_name(run: Path) -> str:
    """The name of the palette that was used, which for ``auto`` the configuration does not tell."""
    return str(json.loads((run / "summary.json").read_text(encoding="utf-8"))["palette"])


def tabulate(folder: Path, runs: Mapping[str, Sequence[Path]]) -> Comparison:
    """Table (csv) and figure of finished runs, a list of them (its seeds) for each name."""
    lines = [
        _make_row([json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in group])
        for group in runs.values()
    ]
    table, figure = folder / "comparison.csv", folder / "comparison.png"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(table) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[item.name for item in fields(ComparisonRow)])
        writer.writeheader()
        writer.writerows({key: "" if value is None else value for key, value in vars(line).items()} for line in lines)
    _plot_samples(figure, {name: group[0] for name, group in runs.items()}, lines)
    return Comparison(lines, {name: list(group) for name, group in runs.items()}, table, figure)


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
    """Rows grey, truth, then a row for each net, of the first test pictures."""
    rows: dict[str, Any] = {}
    for (name, run), line in zip(runs.items(), table_rows, strict=True):
        config = read_config(run)
        trained = load_palette_model(run)
        test = load_inputs(config, run).data.test
        grey, truth, predicted = sample_grid(trained.network, test, trained.palette)
        rows.setdefault("grey", grey)
        rows.setdefault("truth", truth)
        rows[f"{name}\n{line.accuracy:.1f} %"] = predicted
    plot_image_rows(
        rows,
        path,
        f"{table_rows[0].data}, {table_rows[0].recipe} recipe, palette {table_rows[0].palette}: first test pictures",
    )


def print_comparison(result: Comparison) -> None:
    """A line for each net, the published numbers beside it, and where table and figure are."""
    columns = ["net", "parameters", "seeds", "accuracy %", "loss", "seconds", "published %", "published loss"]
    rows = [
        [
            line.model,
            f"{line.parameters:,}",
            line.seeds,
            f"{line.accuracy:.2f}" + ("" if line.accuracy_std is None else f" ± {line.accuracy_std:.2f}"),
            f"{line.loss:.4f}" + ("" if line.loss_std is None else f" ± {line.loss_std:.4f}"),
            f"{line.seconds:.0f}",
            line.published_accuracy,
            line.published_loss,
        ]
        for line in result.rows
    ]
    first = result.rows[0]
    _print_table(f"{first.data}, {first.recipe} recipe, palette {first.palette}", columns, rows)
    print(f"table: {result.csv_path}\nfigure: {result.figure_path}")
