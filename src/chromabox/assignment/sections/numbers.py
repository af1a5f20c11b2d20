"""Numbers for the answers, each with its source: from summaries, from model analyses, and published values."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from chromabox.assignment.analysis.net_analysis import NetAnalysis, to_json_value
from chromabox.assignment.analysis.statistics import ConfidenceInterval, difference_over_images, difference_over_seeds
from chromabox.engine.checkpoint import write_json
from chromabox.experiments.compare import PUBLISHED_RESULTS, group_runs
from chromabox.experiments.runs import RunIndex, read_summary
from chromabox.report.document.model import Block, Cell, MissingRun, Number, Section, Table, Text

RESULTS_FILE = "results.json"
#: Source of the published results.
PUBLISHED_SOURCE = "experiments/compare.py: PUBLISHED_RESULTS"


def get_runs(run_index: RunIndex, *models: str) -> list[list[Path]] | None:
    """Return the finished runs of each model, or None if one of them has no run.

    Raise UsageError if the runs of a model differ in more than the seed and cannot be averaged.
    """
    runs = [run_index.colour.get(model, []) for model in models]
    if not all(runs):
        return None
    group_runs([run for group in runs for run in group])
    return runs


def missing_runs_section(run_index: RunIndex, key: str, title: str, question: str, *models: str) -> Section:
    """Return a section that lists the models without a finished run and the command that trains them."""
    missing = [model for model in models if not run_index.colour.get(model)]
    names = " and ".join(f"`{model}`" for model in missing)
    command = f"chromabox compare --models {' '.join(models)} --recipe course --seeds 0 1 2 -o runs/course"
    return Section(key, title, question, [MissingRun(f"finished runs of {names}", command)])


def mean_over_runs(runs: Sequence[Path], key: str, spec: str = ".4f", scale: float = 1.0) -> Number:
    """Return the mean of a summary value over runs, with the sample standard deviation if there are several runs."""
    values = [scale * float(read_summary(run)[key]) for run in runs]
    source = f"{key} of " + ", ".join(f"{run}/summary.json" for run in runs)
    return Number(mean(values), source, spec, stdev(values) if len(values) > 1 else None)


def analysis_number(analysis: NetAnalysis, *keys: str | int, spec: str = ".1f", scale: float = 1.0) -> Number:
    """Return a value of a model analysis, addressed by its keys in ``results.json``.

    A missing value (null) becomes NaN, which is printed as "–".
    """
    value: Any = analysis.to_json
    for key in keys:
        value = value[key]
    source = f"{RESULTS_FILE}: nets > {analysis.model} > {' > '.join(map(str, keys))}"
    return Number(float("nan") if value is None else scale * float(value), source, spec)


def analysis_percent(analysis: NetAnalysis, *keys: str | int) -> Number:
    """Return a fraction of a model analysis in percent; see :func:`analysis_number`."""
    return analysis_number(analysis, *keys, scale=100.0)


def int_number(value: int, source: str) -> Number:
    """Return an integer as a number with thousands separators."""
    return Number(float(value), source, ",.0f")


def record_results(folder: Path, section: str, values: Mapping[str, Any]) -> None:
    """Add values to a section of the folder's ``results.json``; other entries are kept."""
    path = folder / RESULTS_FILE
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results.setdefault(section, {}).update(to_json_value(dict(values)))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, results)


def compute_differences(
    runs: Sequence[Sequence[Path]], first: NetAnalysis, second: NetAnalysis
) -> dict[str, ConfidenceInterval]:
    """Return the differences "second minus first" of test accuracy (in percentage points) and test loss.

    Intervals are computed over seeds if both models have several runs, otherwise over the test images of one seed.
    """
    if all(len(group) > 1 for group in runs):
        scales = {"accuracy": 100.0, "loss": 1.0}
        return {
            name: difference_over_seeds(
                *([scale * float(read_summary(run)[f"test_{name}"]) for run in group] for group in runs)
            )
            for name, scale in scales.items()
        }
    before, after = first.predictions, second.predictions
    return {
        "accuracy": difference_over_images(100 * before.is_correct.mean((1, 2)), 100 * after.is_correct.mean((1, 2))),
        "loss": difference_over_images(before.loss.mean((1, 2)), after.loss.mean((1, 2))),
    }


def difference_text(folder: Path, first: str, second: str, intervals: Mapping[str, ConfidenceInterval]) -> Text:
    """Describe the differences: which model is better, by how much, and with what confidence."""
    name = f"{first} to {second}"
    record_results(folder, "differences", {name: intervals})
    numbers = {
        f"{metric}_{part}": Number(
            getattr(interval, part), f"{RESULTS_FILE}: differences > {name} > {metric} > {part}", spec
        )
        for metric, interval, spec in (("accuracy", intervals["accuracy"], "+.2f"), ("loss", intervals["loss"], "+.4f"))
        for part in ("value", "low", "high")
    }
    return Text(
        f"From `{first}` to `{second}`, the accuracy changes by {{accuracy_value}} percentage points (95 % confidence "
        "interval {accuracy_low} to {accuracy_high}) and the loss by {loss_value} ({loss_low} to {loss_high}). "
        f"Both intervals were computed by {intervals['loss'].method} ({intervals['loss'].caveat}). "
        + _difference_verdict(second, intervals),
        numbers,
    )


def _difference_verdict(second: str, intervals: Mapping[str, ConfidenceInterval]) -> str:
    accuracy, loss = intervals["accuracy"], intervals["loss"]
    if not (accuracy.excludes_zero or loss.excludes_zero):
        return "Both intervals contain 0, so these runs show no significant difference between the two models."
    changes = [
        f"{name} is {'better' if better else 'worse'}"
        for name, interval, better in (("accuracy", accuracy, accuracy.value > 0), ("loss", loss, loss.value < 0))
        if interval.excludes_zero
    ]
    unclear = [name for name, interval in (("accuracy", accuracy), ("loss", loss)) if not interval.excludes_zero]
    remark = f"; the interval of the {unclear[0]} contains 0" if unclear else ""
    return f"The {' and the '.join(changes)} with `{second}`{remark}."


def is_improvement(intervals: Mapping[str, ConfidenceInterval]) -> bool:
    """Return whether the second model has a significantly lower test loss (the confidence interval is below 0)."""
    return intervals["loss"].excludes_zero and intervals["loss"].value < 0


def comparison_table(runs_by_model: Mapping[str, Sequence[Path]]) -> Table:
    """Return a table with a row for each model; published values are included if the settings are the same."""
    rows = [
        [
            model,
            int_number(read_summary(runs[0])["parameters"], f"{runs[0]}/summary.json: parameters"),
            int_number(len(runs), "runs found"),
            mean_over_runs(runs, "test_loss"),
            mean_over_runs(runs, "test_accuracy", ".2f", 100.0),
            *_published_cells(model, runs[0]),
        ]
        for model, runs in runs_by_model.items()
    ]
    spread = (
        " (± is the sample standard deviation over the seeds)"
        if any(len(runs) > 1 for runs in runs_by_model.values())
        else ""
    )
    return Table(
        f"Results on the test images{spread}. The published values are the range of accuracies and the lowest loss of "
        "six public solutions of the assignment",
        ["model", "parameters", "seeds", "loss", "accuracy %", "published loss", "published %"],
        rows,
    )


def is_comparable(run: Path) -> bool:
    """Return whether a run has the settings of the published results."""
    summary = read_summary(run)
    return bool((summary["recipe"], summary["data"], summary["palette"]) == ("course", "cifar10:horse", "course"))


def _published_cells(model: str, run: Path) -> list[Cell]:
    if model not in PUBLISHED_RESULTS or not is_comparable(run):
        return ["–", "–"]
    published = PUBLISHED_RESULTS[model]
    low, high = (Number(bound, PUBLISHED_SOURCE, ".1f") for bound in published.accuracy)
    return [Number(published.loss, PUBLISHED_SOURCE, ".4f"), f"{low}–{high}"]


def published_comparison(runs_by_model: Mapping[str, Sequence[Path]]) -> list[Block]:
    """Compare the accuracies with the published ranges; return no block if the settings differ."""
    sentences: list[str] = []
    numbers: dict[str, Number] = {}
    for index, (model, runs) in enumerate(runs_by_model.items()):
        if model not in PUBLISHED_RESULTS or not is_comparable(runs[0]):
            continue
        low, high = PUBLISHED_RESULTS[model].accuracy
        ours = mean_over_runs(runs, "test_accuracy", ".2f", 100.0)
        position = "within" if low <= round(ours.value, 1) <= high else "below" if ours.value < low else "above"
        numbers |= {
            f"ours{index}": Number(ours.value, ours.source, ".2f"),
            f"low{index}": Number(low, PUBLISHED_SOURCE, ".1f"),
            f"high{index}": Number(high, PUBLISHED_SOURCE, ".1f"),
        }
        sentences.append(
            f"The accuracy of `{model}`, {{ours{index}}} %, is {position} the published range of {{low{index}}} % to "
            f"{{high{index}}} %."
        )
    return [Text(" ".join(sentences), numbers)] if sentences else []


def summary_number(run: Path, *keys: str, spec: str = ",.0f", scale: float = 1.0) -> Number:
    """Return a value of a run's summary, scaled by ``scale``; a missing value (null) is printed as "–"."""
    value: Any = read_summary(run)
    for key in keys:
        value = value[key]
    scaled = float("nan") if value is None else scale * float(value)
    return Number(scaled, f"{run}/summary.json: {' > '.join(keys)}", spec)


def escape_braces(text: str) -> str:
    """Escape braces, so that a template shows ``text`` unchanged."""
    return text.replace("{", "{{").replace("}", "}}")


def base_name(path: str) -> str:
    """Return the last component of a path, or the name of a dataset, with braces escaped."""
    return escape_braces(Path(path).name)
