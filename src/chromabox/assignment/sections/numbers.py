"""Helpers for all sections: missing runs, numbers with their sources, and comparisons of models."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeAlias

from chromabox.assignment.analysis.net_analysis import RESULTS_FILE, NetAnalysis, to_json_value
from chromabox.assignment.analysis.statistics import ConfidenceInterval, difference_over_images, difference_over_seeds
from chromabox.engine.checkpoint import write_json
from chromabox.engine.runs import RunDir
from chromabox.experiments.compare import PUBLISHED_RESULTS, group_runs
from chromabox.experiments.runs import RunIndex
from chromabox.report.document.model import Block, Cell, MissingRun, Number, Section, Source, Table, Text

#: A function that builds a section from the available runs and writes its figures into a folder.
SectionBuilder: TypeAlias = Callable[[RunIndex, Path], Section]


def answers(
    key: str, title: str, question: str, models: Sequence[str] = ()
) -> Callable[[Callable[..., list[Block]]], SectionBuilder]:
    """Return a decorator for a function that returns the blocks of a section; the decorated function returns a section.

    The function is called with the run index, the folder for figures, and the finished runs of each model in
    ``models``. If a model has no runs, the function is not called, and the section names the command that trains the
    models. The decorated function raises UsageError if the runs of a model cannot be averaged because they differ in
    more than the seed.
    """

    def decorate(answer: Callable[..., list[Block]]) -> SectionBuilder:
        @wraps(answer)
        def build(run_index: RunIndex, folder: Path) -> Section:
            missing = " and ".join(f"`{model}`" for model in models if not run_index.colour.get(model))
            if missing:
                command = f"chromabox compare --models {' '.join(models)} --recipe course --seeds 0 1 2 -o runs/course"
                return Section(key, title, question, [MissingRun(f"finished runs of {missing}", command)])
            runs = [run_index.colour[model] for model in models]
            group_runs([run for group in runs for run in group])
            return Section(key, title, question, answer(run_index, folder, *runs))

        return build

    return decorate


def summary_source(run: Path) -> Source:
    """Return the summary of a run as a :class:`Source` for texts and tables."""
    return Source(RunDir(run).summary(), f"{run}/summary.json: ")


def mean_over_runs(runs: Sequence[Path], key: str) -> Number:
    """Return the mean of a summary value over runs, with the sample standard deviation if there are several runs.

    Losses are in nats per pixel, and accuracies are in percent.
    """
    scale, spec = (100.0, ".2f") if key.endswith("accuracy") else (1.0, ".4f")
    values = [scale * float(RunDir(run).summary()[key]) for run in runs]
    source = f"{key} of " + ", ".join(f"{run}/summary.json" for run in runs)
    return Number(mean(values), source, spec, stdev(values) if len(values) > 1 else None)


def int_number(value: int, source: str) -> Number:
    """Return a :class:`Number` for an integer, which is printed with thousands separators."""
    return Number(float(value), source, ",.0f")


def record_results(folder: Path, values: Any, section: str, name: str = "") -> Source:
    """Record values in ``folder/results.json`` and return the recorded values; other entries in the file are kept.

    The values are stored under the key ``section`` or, if ``name`` is not empty, under the key ``name`` inside it.
    """
    path = folder / RESULTS_FILE
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    recorded = to_json_value(values)
    results.setdefault(section, {}).update({name: recorded} if name else recorded)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, results)
    return Source(recorded, f"{RESULTS_FILE}: {section} > {name} > ")


def compute_differences(
    runs: Sequence[Sequence[Path]], first: NetAnalysis, second: NetAnalysis
) -> dict[str, ConfidenceInterval]:
    """Return the changes in test accuracy (in percentage points) and in test loss from the first to the second model.

    The confidence intervals describe the variation between seeds if both models have several runs, otherwise the
    variation between the test images of one seed.
    """
    if all(len(group) > 1 for group in runs):
        return {
            name: difference_over_seeds(
                *([scale * float(RunDir(run).summary()[f"test_{name}"]) for run in group] for group in runs)
            )
            for name, scale in (("accuracy", 100.0), ("loss", 1.0))
        }
    before, after = first.predictions, second.predictions
    return {
        "accuracy": difference_over_images(100 * before.is_correct.mean((1, 2)), 100 * after.is_correct.mean((1, 2))),
        "loss": difference_over_images(before.loss.mean((1, 2)), after.loss.mean((1, 2))),
    }


def difference_text(folder: Path, first: str, second: str, intervals: Mapping[str, ConfidenceInterval]) -> Text:
    """Describe which model is better, by how much, and with what confidence."""
    accuracy, loss = intervals["accuracy"], intervals["loss"]
    changes = [
        f"{name} is {'better' if is_better else 'worse'}"
        for name, is_better in (("accuracy", accuracy.value > 0), ("loss", loss.value < 0))
        if intervals[name].excludes_zero
    ]
    unclear = "; ".join(
        f"the interval of the {name} contains 0" for name in intervals if not intervals[name].excludes_zero
    )
    verdict = f"The {' and the '.join(changes)} with `{second}`{unclear and f'; {unclear}'}."
    if not changes:
        verdict = "Both intervals contain 0, so these runs show no significant difference between the two models."
    return Text(
        "From `{first}` to `{second}`, the accuracy changes by {change.accuracy.value:+.2f} percentage points (95 % "
        "confidence interval {change.accuracy.low:+.2f} to {change.accuracy.high:+.2f}) and the loss by "
        "{change.loss.value:+.4f} ({change.loss.low:+.4f} to {change.loss.high:+.4f}). Both intervals were computed by "
        "{change.loss.method} ({change.loss.caveat}). {verdict}",
        first=first,
        second=second,
        change=record_results(folder, dict(intervals), "differences", f"{first} to {second}"),
        verdict=verdict,
    )


def is_improvement(intervals: Mapping[str, ConfidenceInterval]) -> bool:
    """Return whether the confidence interval of the difference in test loss lies entirely below 0."""
    return intervals["loss"].excludes_zero and intervals["loss"].value < 0


def comparison_table(runs_by_model: Mapping[str, Sequence[Path]]) -> Table:
    """Return a table of each model's results, and of published results if the runs have the assignment's settings."""
    rows: list[list[Cell]] = []
    for model, runs in runs_by_model.items():
        published = _published_numbers(model, runs[0])
        cells: list[Cell] = [published[2], f"{published[0]}–{published[1]}"] if published else ["–", "–"]
        means = [mean_over_runs(runs, key) for key in ("test_loss", "test_accuracy")]
        parameters = summary_source(runs[0]).number("parameters", spec=",.0f")
        rows.append([model, parameters, int_number(len(runs), "runs found"), *means, *cells])
    is_spread = any(len(runs) > 1 for runs in runs_by_model.values())
    return Table(
        f"Results on the test images{' (± is the sample standard deviation over the seeds)' if is_spread else ''}. The "
        "published values are the range of accuracies and the lowest loss from six public solutions of the assignment",
        ["model", "parameters", "seeds", "loss", "accuracy %", "published loss", "published %"],
        rows,
    )


def _published_numbers(model: str, run: Path) -> list[Number]:
    """Return the lowest and highest published accuracy in percent, and the lowest published loss.

    The list is empty if the settings of the run are not those of the assignment.
    """
    summary, published = RunDir(run).summary(), PUBLISHED_RESULTS.get(model)
    settings = (summary["recipe"], summary["data"], summary["palette"])
    if published is None or settings != ("course", "cifar10:horse", "course"):
        return []
    source = "experiments/compare.py: PUBLISHED_RESULTS"
    return [*(Number(bound, source, ".1f") for bound in published.accuracy), Number(published.loss, source, ".4f")]


def published_blocks(model: str, runs: Sequence[Path]) -> list[Block]:
    """Compare the accuracy with the published range; return no block for settings without published results."""
    published = _published_numbers(model, runs[0])
    if not published:
        return []
    (low, high, _), ours = published, mean_over_runs(runs, "test_accuracy")
    position = "within" if round(ours.value, 1) <= high.value else "above"
    return [
        Text(
            "The accuracy of `{model}`, {ours} %, is {position} the published range of {low} % to {high} %.",
            model=model,
            ours=Number(ours.value, ours.source, ".2f"),
            position=position if low.value <= round(ours.value, 1) else "below",
            low=low,
            high=high,
        )
    ]
