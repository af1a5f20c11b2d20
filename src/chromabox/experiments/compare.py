"""All nets side by side: trained with several seeds, one table, one figure, the published numbers beside them."""

import csv
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from chromabox.colour.evaluation.evaluate import sample_sheet
from chromabox.colour.training.recipes import NetName, RecipeName, recipe_for
from chromabox.colour.training.train import TrainConfig, load_inputs, read_config
from chromabox.colour.weights.checkpoint import load_palette_net
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.errors import UsageError
from chromabox.experiments.runs import train_missing
from chromabox.io.atomic import write_whole
from chromabox.report.plots import draw_rows
from chromabox.report.tables import _table


@dataclass(frozen=True)
class Published:
    """Accuracy range (%) and lowest loss over six public write-ups of the assignment: its setting and palette."""

    accuracy: tuple[float, float]
    loss: float


PUBLISHED: Mapping[str, Published] = {
    "pool-upsample": Published((41.2, 41.4), 1.578),
    "conv-transpose": Published((54.7, 55.2), 1.1445),
    "unet": Published((57.5, 59.3), 1.0332),
}


@dataclass(frozen=True)
class Line:
    """One net's line of the table; accuracies in percent, spreads are sample standard deviations over seeds."""

    net: str
    recipe: str
    data: str
    palette: str
    parameters: int
    seeds: str
    accuracy: float
    accuracy_spread: float | None
    loss: float
    loss_spread: float | None
    seconds: float
    published_accuracy: str
    published_loss: str


@dataclass(frozen=True)
class Comparison:
    """The table, the runs behind it, and where both were put."""

    lines: list[Line]
    runs: dict[str, list[Path]]
    table: Path
    figure: Path


def compare(
    folder: Path,
    *,
    nets: Sequence[NetName],
    recipe: RecipeName,
    seeds: Sequence[int],
    data: str,
    palette: str,
    epochs: int | None = None,
    options: ExecutionOptions | None = None,
    say: Callable[[str], None] = print,
) -> Comparison:
    """Train every net with every seed into ``folder/NET-RECIPE-seedN``, unless it is there already, and tabulate."""
    for option, values in (("nets", nets), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise UsageError(f"{option}: {values} holds {'one twice' if values else 'none'}; give each once")
    wanted = {
        net: {
            folder / f"{net}-{recipe}-seed{seed}": _config(net, recipe, data, palette, seed, epochs) for seed in seeds
        }
        for net in nets
    }
    train_missing({run: config for group in wanted.values() for run, config in group.items()}, options=options, say=say)
    return tabulate(folder, {net: list(group) for net, group in wanted.items()})


def _config(net: NetName, recipe: RecipeName, data: str, palette: str, seed: int, epochs: int | None) -> TrainConfig:
    return TrainConfig(
        net=net,
        recipe_name=recipe,
        recipe=recipe_for(recipe, net, epochs=epochs),
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
            config.net
            if config.recipe_name == read_config(runs[0]).recipe_name
            else f"{config.net} {config.recipe_name}"
        )
        groups.setdefault(name, []).append(run)
    for name, group in groups.items():
        configs = [read_config(run) for run in group]
        # The seed is what averaging is over; how a run was executed does not change what was trained.
        kinds = [replace(config, seed=0, execution=None) for config in configs]
        if any(kind != kinds[0] for kind in kinds) or len({_palette_of(run) for run in group}) > 1:
            raise UsageError(
                f"runs of {name} differ in recipe, data, palette or settings and cannot be averaged; compare them apart"
            )
        if len({config.seed for config in configs}) < len(configs):
            raise UsageError(f"runs of {name} have the same seed twice; give each run once")
    return groups


def _palette_of(run: Path) -> str:
    """The name of the palette that was used, which for ``auto`` the configuration does not tell."""
    return str(json.loads((run / "summary.json").read_text(encoding="utf-8"))["palette"])


def tabulate(folder: Path, runs: Mapping[str, Sequence[Path]]) -> Comparison:
    """Table (csv) and figure of finished runs, a list of them (its seeds) for each name."""
    lines = [
        _line([json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in group])
        for group in runs.values()
    ]
    table, figure = folder / "comparison.csv", folder / "comparison.png"
    folder.mkdir(parents=True, exist_ok=True)
    with write_whole(table) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[item.name for item in fields(Line)])
        writer.writeheader()
        writer.writerows({key: "" if value is None else value for key, value in vars(line).items()} for line in lines)
    _draw(figure, {name: group[0] for name, group in runs.items()}, lines)
    return Comparison(lines, {name: list(group) for name, group in runs.items()}, table, figure)


def _line(summaries: Sequence[Mapping[str, Any]]) -> Line:
    first = summaries[0]
    accuracies = [100 * summary["test_accuracy"] for summary in summaries]
    losses = [summary["test_loss"] for summary in summaries]
    comparable = (
        PUBLISHED.get(first["net"]) if first["data"] == "cifar10:horse" and first["recipe"] == "course" else None
    )
    published = comparable or PUBLISHED.get(first["net"])
    return Line(
        net=first["net"],
        recipe=first["recipe"],
        data=first["data"],
        palette=first["palette"],
        parameters=first["parameters"],
        seeds=" ".join(str(summary["seed"]) for summary in summaries),
        accuracy=round(statistics.mean(accuracies), 3),
        accuracy_spread=round(statistics.stdev(accuracies), 3) if len(accuracies) > 1 else None,
        loss=round(statistics.mean(losses), 5),
        loss_spread=round(statistics.stdev(losses), 5) if len(losses) > 1 else None,
        seconds=round(statistics.mean(summary["seconds"] for summary in summaries), 1),
        published_accuracy="–".join(str(bound) for bound in published.accuracy) if published else "",
        published_loss=str(published.loss) if published else "",
    )


def _draw(path: Path, runs: Mapping[str, Path], lines: Sequence[Line]) -> None:
    """Rows grey, truth, then a row for each net, of the first test pictures."""
    rows: dict[str, Any] = {}
    for (name, run), line in zip(runs.items(), lines, strict=True):
        config = read_config(run)
        trained = load_palette_net(run)
        test = load_inputs(config, run).data.test
        grey, truth, predicted = sample_sheet(trained.net, test, trained.palette)
        rows.setdefault("grey", grey)
        rows.setdefault("truth", truth)
        rows[f"{name}\n{line.accuracy:.1f} %"] = predicted
    draw_rows(rows, path, f"{lines[0].data}, {lines[0].recipe} recipe, palette {lines[0].palette}: first test pictures")


def print_comparison(result: Comparison) -> None:
    """A line for each net, the published numbers beside it, and where table and figure are."""
    columns = ["net", "parameters", "seeds", "accuracy %", "loss", "seconds", "published %", "published loss"]
    rows = [
        [
            line.net,
            f"{line.parameters:,}",
            line.seeds,
            f"{line.accuracy:.2f}" + ("" if line.accuracy_spread is None else f" ± {line.accuracy_spread:.2f}"),
            f"{line.loss:.4f}" + ("" if line.loss_spread is None else f" ± {line.loss_spread:.4f}"),
            f"{line.seconds:.0f}",
            line.published_accuracy,
            line.published_loss,
        ]
        for line in result.lines
    ]
    first = result.lines[0]
    _table(f"{first.data}, {first.recipe} recipe, palette {first.palette}", columns, rows)
    print(f"table: {result.table}\nfigure: {result.figure}")
