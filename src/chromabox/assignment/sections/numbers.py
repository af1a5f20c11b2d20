"""Numbers as the answers state them: from the runs' summaries, from what was looked into, and beside the published.

Numbers of fine-tuning runs as the answers state them, and names as they may stand in a text.
"""

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


def get_runs(run_index: RunIndex, *models: str) -> list[list[Path]] | None:
    """The runs of each of these nets; None where one has none. UsageError for runs that cannot be averaged."""
    runs = [run_index.colour.get(net, []) for net in models]
    if not all(runs):
        return None
    group_runs([run for group in runs for run in group])
    return runs


def missing_runs_section(run_index: RunIndex, key: str, title: str, question: str, *models: str) -> Section:
    """The section that says which nets have no finished run, and how to get them."""
    wanting = [net for net in models if not run_index.colour.get(net)]
    names = " and ".join(f"`{net}`" for net in wanting)
    command = f"chromabox compare --nets {' '.join(models)} --recipe course --seeds 0 1 2 -o runs/course"
    return Section(key, title, question, [MissingRun(f"finished runs of {names}", command)])


def mean_over_runs(runs: Sequence[Path], key: str, spec: str = ".4f", scale: float = 1.0) -> Number:
    """The mean of a summary's number over runs, with the sample standard deviation where there are several."""
    values = [scale * float(read_summary(run)[key]) for run in runs]
    source = f"{key} of " + ", ".join(f"{run}/summary.json" for run in runs)
    return Number(mean(values), source, spec, stdev(values) if len(values) > 1 else None)


def analysis_number(analysis: NetAnalysis, *keys: str | int, spec: str = ".1f", scale: float = 1.0) -> Number:
    """A number of a net that was looked into, by its place in ``results.json``; "–" where there is none."""
    value: Any = analysis.to_json
    for key in keys:
        value = value[key]
    source = f"{RESULTS_FILE}: nets > {analysis.model} > {' > '.join(map(str, keys))}"
    return Number(float("nan") if value is None else scale * float(value), source, spec)


def analysis_percent(analysis: NetAnalysis, *keys: str | int) -> Number:
    """The same for a share, in percent."""
    return analysis_number(analysis, *keys, scale=100.0)


def int_number(value: int, source: str) -> Number:
    """A whole number."""
    return Number(float(value), source, ",.0f")


def record_results(folder: Path, section: str, values: Mapping[str, Any]) -> None:
    """Put values into a part of the folder's ``results.json``, beside what stands there already."""
    path = folder / RESULTS_FILE
    everything = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    everything.setdefault(section, {}).update(to_json_value(dict(values)))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, everything)


def compute_differences(
    runs: Sequence[Sequence[Path]], first: NetAnalysis, second: NetAnalysis
) -> dict[str, ConfidenceInterval]:
    """By how much the second net's accuracy (in points) and loss are greater: over seeds, else over pictures."""
    if all(len(group) > 1 for group in runs):
        scales = {"accuracy": 100.0, "loss": 1.0}
        return {
            name: difference_over_seeds(
                *([scale * float(read_summary(run)[f"test_{name}"]) for run in group] for group in runs)
            )
            for name, scale in scales.items()
        }
    a, b = first.predictions, second.predictions
    return {
        "accuracy": difference_over_images(100 * a.is_correct.mean((1, 2)), 100 * b.is_correct.mean((1, 2))),
        "loss": difference_over_images(a.loss.mean((1, 2)), b.loss.mean((1, 2))),
    }


def difference_text(folder: Path, first: str, second: str, intervals: Mapping[str, ConfidenceInterval]) -> Text:
    """What the differences say: which net is better, by how much, how surely."""
    name = f"{first} to {second}"
    record_results(folder, "differences", {name: intervals})
    numbers = {
        f"{what}_{part}": Number(getattr(one, part), f"{RESULTS_FILE}: differences > {name} > {what} > {part}", spec)
        for what, one, spec in (("accuracy", intervals["accuracy"], "+.2f"), ("loss", intervals["loss"], "+.4f"))
        for part in ("value", "low", "high")
    }
    return Text(
        f"From `{first}` to `{second}` accuracy changes by {{accuracy_value}} points (95 % interval {{accuracy_low}} "
        f"to {{accuracy_high}}) and loss by {{loss_value}} ({{loss_low}} to {{loss_high}}; both by "
        f"{intervals['loss'].method}, {intervals['loss'].caveat}). " + _difference_verdict(second, intervals),
        numbers,
    )


def _difference_verdict(second: str, intervals: Mapping[str, ConfidenceInterval]) -> str:
    accuracy, loss = intervals["accuracy"], intervals["loss"]
    if not (accuracy.excludes_zero or loss.excludes_zero):
        return "Both intervals hold 0: these runs cannot tell the two nets apart."
    said = [
        f"{name} is {'better' if better else 'worse'}"
        for name, one, better in (("accuracy", accuracy, accuracy.value > 0), ("loss", loss, loss.value < 0))
        if one.excludes_zero
    ]
    rest = [name for name, one in (("accuracy", accuracy), ("loss", loss)) if not one.excludes_zero]
    unclear = f"; for {rest[0]} the interval holds 0" if rest else ""
    return f"`{second}`'s {' and its '.join(said)}{unclear}."


def is_improvement(intervals: Mapping[str, ConfidenceInterval]) -> bool:
    """Whether the second net is better, in the loss it was trained on, by more than chance."""
    return intervals["loss"].excludes_zero and intervals["loss"].value < 0


def comparison_table(runs_by_model: Mapping[str, Sequence[Path]]) -> Table:
    """A line for each net, the published numbers beside it where they are of the same setting."""
    rows = [
        [
            net,
            int_number(read_summary(runs[0])["parameters"], f"{runs[0]}/summary.json: parameters"),
            int_number(len(runs), "runs found"),
            mean_over_runs(runs, "test_loss"),
            mean_over_runs(runs, "test_accuracy", ".2f", 100.0),
            *_published_cells(net, runs[0]),
        ]
        for net, runs in runs_by_model.items()
    ]
    spread = (
        "; ± is the sample standard deviation over seeds"
        if any(len(runs) > 1 for runs in runs_by_model.values())
        else ""
    )
    return Table(
        f"Results on the test pictures{spread}. Published: the range and the lowest loss over six public write-ups of "
        "the assignment",
        ["net", "parameters", "seeds", "loss", "accuracy %", "published loss", "published %"],
        rows,
    )


def is_comparable(run: Path) -> bool:
    """Whether a run has the setting of the published numbers."""
    summary = read_summary(run)
    return bool((summary["recipe"], summary["data"], summary["palette"]) == ("course", "cifar10:horse", "course"))


def _published_cells(model: str, run: Path) -> list[Cell]:
    if model not in PUBLISHED_RESULTS or not is_comparable(run):
        return ["–", "–"]
    found = PUBLISHED_RESULTS[model]
    low, high = (Number(bound, "report/compare.py: PUBLISHED", ".1f") for bound in found.accuracy)
    return [Number(found.loss, "report/compare.py: PUBLISHED", ".4f"), f"{low}–{high}"]


def published_comparison(runs_by_model: Mapping[str, Sequence[Path]]) -> list[Block]:
    """Where our accuracies stand beside the published range; nothing for another setting."""
    said: list[str] = []
    numbers: dict[str, Number] = {}
    for index, (net, runs) in enumerate(runs_by_model.items()):
        if net not in PUBLISHED_RESULTS or not is_comparable(runs[0]):
            continue
        low, high = PUBLISHED_RESULTS[net].accuracy
        ours = mean_over_runs(runs, "test_accuracy", ".2f", 100.0)
        place = "within" if low <= round(ours.value, 1) <= high else "below" if ours.value < low else "above"
        numbers |= {
            f"ours{index}": Number(ours.value, ours.source, ".2f"),
            f"low{index}": Number(low, "report/compare.py: PUBLISHED", ".1f"),
            f"high{index}": Number(high, "report/compare.py: PUBLISHED", ".1f"),
        }
        said.append(f"`{net}`'s {{ours{index}}} % is {place} the published {{low{index}}} to {{high{index}}} %")
    return [Text(f"{'; '.join(said)}.", numbers)] if said else []


def summary_number(run: Path, *keys: str, spec: str = ",.0f", scale: float = 1.0) -> Number:
    """A number of a run's summary; "–" where there is none."""
    value: Any = read_summary(run)
    for key in keys:
        value = value[key]
    given = float("nan") if value is None else scale * float(value)
    return Number(given, f"{run}/summary.json: {' > '.join(keys)}", spec)


def escape_braces(text: str) -> str:
    """Text that a template shows as it is."""
    return text.replace("{", "{{").replace("}", "}}")


def base_name(path: str) -> str:
    """The name of a file, folder or published set, without where it lies."""
    return escape_braces(Path(path).name)
