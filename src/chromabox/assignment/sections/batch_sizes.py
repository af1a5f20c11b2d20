"""Question B.5: the effect of the batch size on losses and images, with equal epochs and with equal optimizer steps."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from chromabox.assignment.analysis.statistics import SIGNIFICANCE_LEVEL, RankTrend, rank_trend
from chromabox.colour.training.train import read_config
from chromabox.engine.logger import read_metrics
from chromabox.experiments.runs import RunIndex
from chromabox.experiments.sweep_results import SweepResult, SweepRow, SweepValue, read_sweep
from chromabox.io.atomic import atomic_write
from chromabox.report.document.model import Block, Cell, Figure, MissingRun, Number, Section, Table, Text

TITLE = "Batch sizes"
QUESTION = (
    "How does the batch size affect the training and validation losses and the final images if every batch size is "
    "trained for the same number of epochs?"
)

#: The batch sizes of the assignment.
SWEEP_COMMAND = "chromabox sweep conv-transpose --over batch-size=32,64,128,256,512 --seeds 0 1 --recipe course"

#: The last 1/5 of the epochs is used to test whether the loss is still decreasing.
LATE_FRACTION = 5


def batch_size_section(run_index: RunIndex, folder: Path) -> Section:
    """Build section B.5 from all sweeps over batch sizes, followed by other sweeps; figures are written to "
    "``folder``."""
    sweeps = [read_sweep(path) for path in run_index.sweeps]
    blocks: list[Block] = []
    for index, sweep in enumerate(sweeps):
        if sweep.parameter == "batch-size":
            blocks += _batch_size_blocks(sweep, folder, f"batch-sizes-{index}")
    if not blocks:
        blocks = [MissingRun("a finished sweep over batch sizes", SWEEP_COMMAND)]
    for index, sweep in enumerate(sweeps):
        if sweep.parameter != "batch-size":
            blocks += _other_sweep_blocks(sweep, folder, f"sweep-{index}")
    return Section("B.5", TITLE, QUESTION, blocks)


def _batch_size_blocks(sweep: SweepResult, folder: Path, name: str) -> list[Block]:
    """Return the answer from one sweep."""
    curves = (
        "Losses against epochs (left) and against optimizer steps (right, logarithmic). Solid: test images, with a "
        "band over the seeds; dashed: training batches. Diamonds mark the ends of the runs with equal numbers of steps"
    )
    samples = (
        "The first test images: greyscale, ground truth, and the output of the model of each batch size (first seed)"
    )
    return [
        _setting_text(sweep),
        sweep_table(sweep, EQUAL_EPOCHS, f"`{sweep.model}` with equal numbers of epochs"),
        claim_text(
            sweep,
            EQUAL_EPOCHS,
            "The claim that larger batches have a higher validation loss after the same number of epochs",
        ),
        copy_figure(sweep.curves_path, folder / f"{name}-curves.png", curves, _sweep_command(sweep)),
        sweep_table(sweep, EQUAL_STEPS, f"`{sweep.model}` with equal numbers of optimizer steps"),
        claim_text(
            sweep, EQUAL_STEPS, "The claim that they also have a higher loss after the same number of optimizer steps"
        ),
        _explanation_text(sweep),
        *_still_falling_blocks(sweep),
        _image_quality_text(sweep),
        copy_figure(sweep.samples_path, folder / f"{name}-sheet.png", samples, _sweep_command(sweep)),
        _time_text(sweep),
        *_missing_seed_blocks(sweep),
    ]


def _sweep_command(sweep: SweepResult, seeds: tuple[int, ...] = ()) -> str:
    """Return the command that runs this sweep, optionally with other seeds."""
    values = ",".join(str(row.value) for row in sweep.equal_epochs)
    args = ["chromabox", "sweep", sweep.model, "--over", f"{sweep.parameter}={values}", "--seeds"]
    args += [*map(str, seeds or sweep.seeds), "--recipe", sweep.recipe]
    args += ["--epochs", str(sweep.equal_epochs[0].epochs), "--data", sweep.data]
    if sweep.equal_steps:
        args += ["--steps", str(sweep.equal_steps[0].steps)]
    return shlex.join([*args, "-o", str(sweep.folder)])


def _setting_text(sweep: SweepResult) -> Text:
    rows = sweep.equal_epochs
    return Text(
        f"`{sweep.model}` was trained with the `{sweep.recipe}` recipe on `{sweep.data}` (palette `{sweep.palette}`) "
        "for {epochs} epochs, with {count} batch sizes from {low} to {high} and {seeds} "
        + ("seeds" if len(sweep.seeds) > 1 else "seed")
        + " per batch size; all other settings were equal. The validation images are the test images of the dataset. "
        "All losses are those of the trained model; the training loss is measured on as many training images as there "
        "are test images.",
        {
            "count": sweep_number(sweep, "equal_epochs, number of rows", len(rows)),
            "low": sweep_number(sweep, "equal_epochs, first value", rows[0].value),
            "high": sweep_number(sweep, "equal_epochs, last value", rows[-1].value),
            "seeds": sweep_number(sweep, "seeds", len(sweep.seeds)),
            "epochs": sweep_number(sweep, "equal_epochs > epochs", rows[0].epochs),
        },
    )


def _explanation_text(sweep: SweepResult) -> Text:
    """Explain the results of both comparisons."""
    first, last = sweep.equal_epochs[0], sweep.equal_epochs[-1]
    equal = sweep.equal_steps[0]
    rises = metric_trend(sweep, EQUAL_EPOCHS, "test_loss").is_rising
    direction = describe_direction(sweep, EQUAL_STEPS, "test_loss")
    if not rises:
        reason = "These runs show no increase of the loss with the batch size, so there is none to explain. "
    elif direction == "increases":
        reason = (
            "The smaller number of optimizer steps is not the only reason: with equal numbers of steps, the loss still "
            "increases with the batch size. "
        )
    else:
        result = (
            "the loss decreases with the batch size, because each step averages the gradient over more images"
            if direction == "decreases"
            else "these runs show no significant increase of the loss with the batch size"
        )
        reason = (
            f"The number of optimizer steps is the reason: with equal numbers of steps, {result}. With equal numbers "
            "of epochs, large batches are worse because the model is trained for fewer steps. "
        )
    return Text(
        f"{reason}An epoch is a fixed number of images, so larger batches mean fewer steps: {{most}} in total with "
        "batch size {low}, and {fewest} with batch size {high}. From the smallest to the largest batch size, the loss "
        "changes by {gap} with equal epochs and by {rest} with {updates} steps each.",
        {
            "most": sweep_number(sweep, f"equal_epochs > {first.value} > steps", first.steps),
            "fewest": sweep_number(sweep, f"equal_epochs > {last.value} > steps", last.steps),
            "low": sweep_number(sweep, "equal_epochs, first value", first.value),
            "high": sweep_number(sweep, "equal_epochs, last value", last.value),
            "gap": _loss_gap(sweep, EQUAL_EPOCHS),
            "rest": _loss_gap(sweep, EQUAL_STEPS),
            "updates": sweep_number(sweep, "equal_steps > steps", equal.steps),
        },
    )


def _loss_gap(sweep: SweepResult, comparison: str) -> Number:
    """Return the mean test loss of the largest batch size minus that of the smallest."""
    low, high = metric_number(sweep, comparison, 0, "test_loss"), metric_number(sweep, comparison, -1, "test_loss")
    return Number(high.value - low.value, f"{high.source} minus {low.source}", "+.4f")


def _still_falling_blocks(sweep: SweepResult) -> list[Block]:
    """State whether large batches were still improving at the end, if the learning rate is constant until then."""
    rows, schedule = sweep.equal_epochs, read_config(sweep.folder / sweep.equal_epochs[0].runs[0]).recipe.schedule
    late = rows[0].epochs // LATE_FRACTION
    if late == 0 or schedule != "constant":
        return []
    decreases = []
    for row in (rows[0], rows[-1]):
        losses = [[record["test_loss"] for record in read_metrics(sweep.folder / run)] for run in row.runs]
        decrease = float(np.mean([values[-1 - late] - values[-1] for values in losses]))
        source = (
            f"test_loss of the last {late} epochs in metrics.jsonl of {sweep.folder}/{row.runs[0]} and its other seeds"
        )
        decreases.append(Number(decrease, source, "+.4f"))
    small, large = decreases
    if large.value > max(small.value, 0):
        conclusion = "The training with large batches had therefore not converged at the last epoch."
    else:
        conclusion = "The ends of the curves therefore do not show that large batches needed more training."
    return [
        Text(
            "Over the last {late} epochs, with the same constant learning rate, the decrease of the test loss was "
            "{small} "
            f"with batch size {{low}} and {{large}} with batch size {{high}}. {conclusion}",
            {
                "late": sweep_number(sweep, f"equal_epochs > epochs, 1/{LATE_FRACTION} of them", late),
                "small": small,
                "large": large,
                "low": sweep_number(sweep, "equal_epochs, first value", rows[0].value),
                "high": sweep_number(sweep, "equal_epochs, last value", rows[-1].value),
            },
        )
    ]


def _image_quality_text(sweep: SweepResult) -> Text:
    """Describe how image quality depends on the batch size with equal epochs."""
    verdicts = {"increases": "become worse", "decreases": "become better"}
    verdict = verdicts.get(describe_direction(sweep, EQUAL_EPOCHS, "delta_e"), "do not change significantly")
    ends = {
        f"{name}{end}": metric_number(sweep, EQUAL_EPOCHS, index, name)
        for name in ("delta_e", "psnr", "colourfulness")
        for end, index in (("_first", 0), ("_last", -1))
    }
    return Text(
        f"With larger batches and equal numbers of epochs, the images {verdict}. Their mean colour difference ΔE2000 "
        "to the ground truth is {delta_e_first} with the smallest and {delta_e_last} with the largest batch size. The "
        "PSNR is {psnr_first} dB with the smallest and {psnr_last} dB with the largest batch size; it is {grey} "
        "dB for the greyscale images. The colourfulness "
        f"{describe_direction(sweep, EQUAL_EPOCHS, 'colourfulness')}: it is {{colourfulness_first}} with the smallest "
        "and {colourfulness_last} with the largest batch size, and {truth} for the ground truth.",
        {
            **ends,
            "grey": sweep_number(sweep, "grey_psnr", sweep.grey_psnr, ".2f"),
            "truth": sweep_number(sweep, "truth_colourfulness", sweep.truth_colourfulness, ".1f"),
        },
    )


def _time_text(sweep: SweepResult) -> Text:
    """Compare the time per epoch of the smallest and the largest batch size."""
    small, large = (metric_number(sweep, EQUAL_EPOCHS, index, "seconds_per_epoch") for index in (0, -1))
    ratio = small.value / large.value
    relation = "faster" if ratio > 1 else "slower"
    return Text(
        "An epoch, including the evaluation after it, took {small} s with the smallest and {large} s with the largest "
        f"batch size, a ratio of {{ratio}}. Large batches were therefore {relation} than small batches on this "
        "machine.",
        {
            "small": small,
            "large": large,
            "ratio": Number(ratio, f"{small.source} over {large.source}", ".2f"),
        },
    )


def _missing_seed_blocks(sweep: SweepResult) -> list[Block]:
    """Return a request for a second seed if there is only one, from which no variance can be estimated."""
    if len(sweep.seeds) > 1:
        return []
    return [MissingRun("a second seed", _sweep_command(sweep, (sweep.seeds[0], sweep.seeds[0] + 1)))]


def _other_sweep_blocks(sweep: SweepResult, folder: Path, name: str) -> list[Block]:
    """Report a sweep over another parameter: its table, the best value and its curves."""
    parameter = sweep.parameter.replace("-", " ")
    caption = f"`{sweep.model}` with the `{sweep.recipe}` recipe on `{sweep.data}`, by {parameter}"
    return [
        sweep_table(sweep, EQUAL_EPOCHS, caption),
        _best_value_text(sweep, parameter),
        copy_figure(
            sweep.curves_path,
            folder / f"{name}-curves.png",
            f"Test loss (solid), training loss (dashed) and test accuracy, by {parameter}",
            _sweep_command(sweep),
        ),
    ]


def _best_value_text(sweep: SweepResult, parameter: str) -> Text:
    """State the value with the lowest test loss, or with the lowest ΔE2000 if the losses are not comparable."""
    varies_palette = sweep.parameter == "colours"
    metric, label = ("delta_e", "ΔE2000") if varies_palette else ("test_loss", "test loss")
    means = [row.metrics[metric].mean for row in sweep.equal_epochs]
    best = int(np.argmin(means))
    remark = (
        "Losses and accuracies are not comparable between palettes of different sizes, because classification with "
        "more colours is harder; the images are comparable. "
        if varies_palette
        else ""
    )
    return Text(
        f"{remark}The lowest {label}, {{lowest}}, is obtained with {parameter} {{best}}; with increasing values, the "
        f"{label} {describe_direction(sweep, EQUAL_EPOCHS, metric)}.",
        {
            "lowest": metric_number(sweep, EQUAL_EPOCHS, best, metric),
            "best": sweep_number(sweep, f"value with the lowest {metric}", sweep.equal_epochs[best].value),
        },
    )


#: Columns of a table: metric, heading, format specification, scale.
METRIC_COLUMNS = (
    ("train_loss", "train loss", ".4f", 1.0),
    ("test_loss", "test loss", ".4f", 1.0),
    ("test_accuracy", "accuracy (%)", ".2f", 100.0),
    ("psnr", "PSNR (dB)", ".2f", 1.0),
    ("delta_e", "ΔE2000", ".2f", 1.0),
    ("colourfulness", "colourfulness", ".1f", 1.0),
    ("seconds_per_epoch", "s per epoch", ".2f", 1.0),
)
METRIC_FORMATS = {name: (spec, scale) for name, _, spec, scale in METRIC_COLUMNS}

#: The two comparisons, by their names in ``sweep.json``.
EQUAL_EPOCHS, EQUAL_STEPS = "equal_epochs", "equal_steps"


def comparison_rows(sweep: SweepResult, comparison: str) -> Sequence[SweepRow]:
    """Return the rows of one of the two comparisons."""
    return sweep.equal_epochs if comparison == EQUAL_EPOCHS else sweep.equal_steps


def sweep_number(sweep: SweepResult, key: str, value: SweepValue, spec: str = ",.6g") -> Number:
    """Return a number of ``sweep.json`` with its source."""
    return Number(float(value), f"{sweep.folder}/sweep.json: {key}", spec)


def metric_number(sweep: SweepResult, comparison: str, index: int, metric: str) -> Number:
    """Return a metric of a row: the mean over the seeds, with the standard deviation if there are several seeds."""
    row = comparison_rows(sweep, comparison)[index]
    stats, (spec, scale) = row.metrics[metric], METRIC_FORMATS[metric]
    std = None if stats.std is None else scale * stats.std
    source = f"{sweep.folder}/sweep.json: {comparison} > {row.value} > metrics > {metric}"
    return Number(scale * stats.mean, source, spec, std)


def sweep_table(sweep: SweepResult, comparison: str, caption: str) -> Table:
    """Return a table with a row for each value; the time is included only for equal epochs."""
    columns = [column for column in METRIC_COLUMNS if comparison == EQUAL_EPOCHS or column[0] != "seconds_per_epoch"]
    rows: list[list[Cell]] = []
    for index, row in enumerate(comparison_rows(sweep, comparison)):
        key = f"{comparison} > {row.value}"
        rows.append(
            [
                sweep_number(sweep, f"{key} > value", row.value),
                sweep_number(sweep, f"{key} > steps", row.steps, ",.0f"),
                *(metric_number(sweep, comparison, index, name) for name, *_ in columns),
            ]
        )
    spread = " (± is the sample standard deviation over the seeds)" if len(sweep.seeds) > 1 else ""
    headings = [sweep.parameter.replace("-", " "), "steps", *(heading for _, heading, *_ in columns)]
    return Table(f"{caption}{spread}", headings, rows)


def copy_figure(source: Path, target: Path, caption: str, command: str) -> Block:
    """Copy a figure of the sweep to the figures of the report; return a :class:`MissingRun` if it does not exist."""
    if not source.is_file():
        return MissingRun(f"the figure `{source}`", command)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        temporary.write_bytes(source.read_bytes())
    return Figure(target, caption)


def metric_trend(sweep: SweepResult, comparison: str, metric: str, sign: float = 1.0) -> RankTrend:
    """Test whether a metric increases with the values; ``sign`` −1 tests whether it decreases."""
    return rank_trend(sign * np.array([row.metrics[metric].values for row in comparison_rows(sweep, comparison)]).T)


def describe_direction(sweep: SweepResult, comparison: str, metric: str) -> str:
    """Describe how a metric changes with increasing values: "increases", "decreases" or no significant trend."""
    if metric_trend(sweep, comparison, metric).is_rising:
        return "increases"
    return "decreases" if metric_trend(sweep, comparison, metric, -1.0).is_rising else "shows no significant trend"


def claim_text(sweep: SweepResult, comparison: str, subject: str) -> Text:
    """Report the test of whether the test loss increases with the values; ``subject`` is the claim, as a noun "
    "phrase."""
    trend = metric_trend(sweep, comparison, "test_loss")
    last = len(comparison_rows(sweep, comparison)) - 1
    numbers = {
        "low": sweep_number(sweep, f"{comparison}: lowest value", comparison_rows(sweep, comparison)[0].value),
        "high": sweep_number(sweep, f"{comparison}: highest value", comparison_rows(sweep, comparison)[last].value),
        "first": metric_number(sweep, comparison, 0, "test_loss"),
        "last": metric_number(sweep, comparison, last, "test_loss"),
        "first_train": metric_number(sweep, comparison, 0, "train_loss"),
        "last_train": metric_number(sweep, comparison, last, "train_loss"),
        **_trend_numbers(sweep, comparison, trend),
    }
    name = sweep.parameter.replace("-", " ")
    return Text(
        f"{subject} {_trend_verdict(trend)}. From {name} {{low}} to {{high}}, the test loss changes from {{first}} to "
        f"{{last}}. It increases in {{up}} of {{steps}} comparisons of consecutive values"
        f"{_clear_rises_text(trend)}.{_correlation_text(trend, name)} The training loss "
        f"{describe_direction(sweep, comparison, 'train_loss')}; it changes from {{first_train}} to {{last_train}}.",
        numbers,
    )


def _trend_numbers(sweep: SweepResult, comparison: str, trend: RankTrend) -> Mapping[str, Number]:
    """Return the numbers of a trend test, by their placeholder names."""

    def number(value: SweepValue, statistic: str, spec: str) -> Number:
        return Number(float(value), f"{statistic} of test_loss in {sweep.folder}/sweep.json: {comparison}", spec)

    numbers = {
        "up": number(trend.num_rises, "increases between consecutive values", ".0f"),
        "steps": number(trend.num_steps, "comparisons of consecutive values", ".0f"),
    }
    if trend.num_seeds > 1:
        numbers["clearly"] = number(trend.num_clear_rises, "increases larger than the standard deviations", ".0f")
    if trend.p_value is not None:
        numbers["correlation"] = number(trend.correlation, "Spearman's rank correlation", ".2f")
        numbers["chance"] = number(trend.p_value, f"p-value of {_test_name(trend)}", ".2g")
        source = "assignment/analysis/statistics.py: SIGNIFICANCE_LEVEL"
        numbers["level"] = Number(SIGNIFICANCE_LEVEL, source, ".2f")
    return numbers


def _trend_verdict(trend: RankTrend) -> str:
    """Return the conclusion from the tests, as a predicate."""
    if trend.is_rising and trend.is_monotonic:
        return "holds in every comparison of consecutive values, by more than the standard deviation over the seeds"
    if trend.is_rising and trend.num_rises == trend.num_steps:
        return "holds in every comparison of consecutive values" + (
            ", but not always by more than the standard deviation over the seeds" if trend.num_seeds > 1 else ""
        )
    if trend.is_rising:
        return "holds overall, but not in every comparison of consecutive values"
    if trend.correlation > 0:
        return "is not confirmed: the observed tendency is not significant"
    return "does not hold"


def _clear_rises_text(trend: RankTrend) -> str:
    if trend.num_seeds == 1:
        return "; a single seed does not show whether these differences exceed random variation"
    return ", {clearly} of them by more than the root sum of squares of the two standard deviations"


def _correlation_text(trend: RankTrend, parameter: str) -> str:
    """Describe the rank test over all values; two values give no test beyond their comparison."""
    if trend.p_value is None:
        return ""
    relation = "below" if trend.p_value < SIGNIFICANCE_LEVEL else "not below"
    return (
        f" The rank correlation of {parameter} and loss is {{correlation}} (Spearman; 1 means a strictly increasing "
        f"loss), and the p-value of the trend ({_test_name(trend)}) is {{chance}}, which is {relation} the "
        "significance level of {level}."
    )


def _test_name(trend: RankTrend) -> str:
    return "Page's test" if trend.num_seeds > 1 else "Kendall's test"
