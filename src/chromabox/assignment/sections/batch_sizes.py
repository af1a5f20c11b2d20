"""B.5: what the batch size does to the losses and the pictures, at equal epochs and at equal steps.

The numbers of a sweep as the answers state them: in tables, in figures, and as trends in words.
"""

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
    "How does the size of the batches change the training and validation losses and the final pictures, when every "
    "size is trained for the same number of epochs?"
)

#: The handout's own sizes.
SWEEP_COMMAND = "chromabox sweep conv-transpose --over batch-size=32,64,128,256,512 --seeds 0 1 --recipe course"

#: Over this part of the epochs, the last ones, is looked whether the loss still falls.
LATE_FRACTION = 5


def batch_size_section(run_index: RunIndex, folder: Path) -> Section:
    """The answer from all sweeps over batch sizes, then a table of every other sweep; figures go into ``folder``."""
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
    """The answer from one sweep."""
    curves = (
        "Losses against epochs (left) and against updates (right, logarithmic): solid on the test pictures, with a "
        "band over the seeds, dashed on the batches that were learnt from. Diamonds: the ends of the runs with equally "
        "many updates"
    )
    sheet = "The first test pictures in grey, in truth, and as the net of each batch size colours them (first seed)"
    return [
        _setting_text(sweep),
        sweep_table(sweep, EQUAL_EPOCHS, f"`{sweep.model}` after equally many epochs"),
        claim_text(sweep, EQUAL_EPOCHS, "That larger batches end with a higher validation loss after as many epochs"),
        copy_figure(sweep.curves_path, folder / f"{name}-curves.png", curves, _sweep_command(sweep)),
        sweep_table(sweep, EQUAL_STEPS, f"`{sweep.model}` after equally many updates"),
        claim_text(sweep, EQUAL_STEPS, "That they also do so after equally many updates"),
        _explanation_text(sweep),
        *_still_falling_blocks(sweep),
        _image_quality_text(sweep),
        copy_figure(sweep.samples_path, folder / f"{name}-sheet.png", sheet, _sweep_command(sweep)),
        _time_text(sweep),
        *_missing_seed_blocks(sweep),
    ]


def _sweep_command(sweep: SweepResult, seeds: tuple[int, ...] = ()) -> str:
    """What makes this sweep, or makes it with other seeds."""
    values = ",".join(str(row.value) for row in sweep.equal_epochs)
    words = ["chromabox", "sweep", sweep.model, "--over", f"{sweep.parameter}={values}", "--seeds"]
    words += [*map(str, seeds or sweep.seeds), "--recipe", sweep.recipe]
    words += ["--epochs", str(sweep.equal_epochs[0].epochs), "--data", sweep.data]
    if sweep.equal_steps:
        words += ["--steps", str(sweep.equal_steps[0].steps)]
    return shlex.join([*words, "-o", str(sweep.folder)])


def _setting_text(sweep: SweepResult) -> Text:
    rows = sweep.equal_epochs
    return Text(
        f"`{sweep.model}` was trained by the `{sweep.recipe}` recipe on `{sweep.data}` (palette `{sweep.palette}`) with "
        "{count} batch sizes from {low} to {high}, everything else unchanged, {seeds} "
        + ("seeds each" if len(sweep.seeds) > 1 else "seed each")
        + ", for {epochs} epochs. Validation pictures are the data's test pictures. All losses are those of the "
        "finished net, the training loss on as many training pictures as there are test pictures.",
        {
            "count": sweep_number(sweep, "equal_epochs, rows", len(rows)),
            "low": sweep_number(sweep, "equal_epochs, first value", rows[0].value),
            "high": sweep_number(sweep, "equal_epochs, last value", rows[-1].value),
            "seeds": sweep_number(sweep, "seeds", len(sweep.seeds)),
            "epochs": sweep_number(sweep, "equal_epochs > epochs", rows[0].epochs),
        },
    )


def _explanation_text(sweep: SweepResult) -> Text:
    """What the two tables say together."""
    first, last = sweep.equal_epochs[0], sweep.equal_epochs[-1]
    equal = sweep.equal_steps[0]
    rises = metric_trend(sweep, EQUAL_EPOCHS, "test_loss").is_rising
    then = describe_direction(sweep, EQUAL_STEPS, "test_loss")
    if not rises:
        why = "These runs show no rise of the loss with the batch size, so that there is none to explain. "
    elif then == "rises":
        why = (
            "Fewer updates are not the whole reason: with equally many of them the loss still rises with the batch "
            "size. "
        )
    else:
        instead = (
            "the loss falls as the batches grow, each update being averaged over more pictures"
            if then == "falls"
            else "these runs show no rise with the batch size that can be told from chance"
        )
        why = (
            f"It is the number of updates that matters: with equally many of them {instead}. What makes large batches "
            "worse at equal epochs is that they leave the net less trained. "
        )
    return Text(
        f"{why}An epoch is a fixed number of pictures, so that larger batches mean fewer updates: {{most}} in all with "
        "batch size {low}, {fewest} with {high}. From the smallest to the largest batch the loss changes by {gap} at "
        "equal epochs and by {rest} at {updates} updates each.",
        {
            "most": sweep_number(sweep, f"equal_epochs > {first.value} > updates", first.steps),
            "fewest": sweep_number(sweep, f"equal_epochs > {last.value} > updates", last.steps),
            "low": sweep_number(sweep, "equal_epochs, first value", first.value),
            "high": sweep_number(sweep, "equal_epochs, last value", last.value),
            "gap": _loss_gap(sweep, EQUAL_EPOCHS),
            "rest": _loss_gap(sweep, EQUAL_STEPS),
            "updates": sweep_number(sweep, "equal_steps > updates", equal.steps),
        },
    )


def _loss_gap(sweep: SweepResult, comparison: str) -> Number:
    """By how much the mean test loss of the largest batch exceeds that of the smallest."""
    low, high = metric_number(sweep, comparison, 0, "test_loss"), metric_number(sweep, comparison, -1, "test_loss")
    return Number(high.value - low.value, f"{high.source} minus {low.source}", "+.4f")


def _still_falling_blocks(sweep: SweepResult) -> list[Block]:
    """Whether the large batches were still learning at the end; told only where the rate has not fallen by then."""
    rows, schedule = sweep.equal_epochs, read_config(sweep.folder / sweep.equal_epochs[0].runs[0]).recipe.schedule
    late = rows[0].epochs // LATE_FRACTION
    if late == 0 or schedule != "constant":
        return []
    falls = []
    for row in (rows[0], rows[-1]):
        losses = [[record["test_loss"] for record in read_metrics(sweep.folder / run)] for run in row.runs]
        fall = float(np.mean([one[-1 - late] - one[-1] for one in losses]))
        source = f"test_loss of the last {late} epochs in metrics.jsonl of {sweep.folder}/{row.runs[0]} and its seeds"
        falls.append(Number(fall, source, "+.4f"))
    small, large = falls
    if large.value > max(small.value, 0):
        end = "the large batches were not done learning when the epochs ended."
    else:
        end = "so it is not seen from the ends of the curves that the large batches had more to learn."
    return [
        Text(
            "Over the last {late} epochs the test loss still fell by {small} with batch size {low} and by {large} with "
            f"{{high}}, at the same constant learning rate: {end}",
            {
                "late": sweep_number(sweep, f"equal_epochs > epochs, a part of 1/{LATE_FRACTION}", late),
                "small": small,
                "large": large,
                "low": sweep_number(sweep, "equal_epochs, first value", rows[0].value),
                "high": sweep_number(sweep, "equal_epochs, last value", rows[-1].value),
            },
        )
    ]


def _image_quality_text(sweep: SweepResult) -> Text:
    """What becomes of the coloured pictures at equal epochs."""
    judged = describe_direction(sweep, EQUAL_EPOCHS, "delta_e")
    verdicts = {"rises": "become worse", "falls": "become better"}
    verdict = verdicts.get(judged, "are neither better nor worse by more than chance")
    ends = {
        f"{name}{end}": metric_number(sweep, EQUAL_EPOCHS, index, name)
        for name in ("delta_e", "psnr", "colourfulness")
        for end, index in (("_first", 0), ("_last", -1))
    }
    return Text(
        f"With larger batches and equally many epochs the pictures {verdict}, judged by their mean difference ΔE2000 "
        "to the true ones: {delta_e_first} with the smallest, {delta_e_last} with the largest batch. PSNR goes from "
        "{psnr_first} to {psnr_last} dB (the grey pictures themselves, dull as they are, have {grey} dB). "
        f"Colourfulness {describe_direction(sweep, EQUAL_EPOCHS, 'colourfulness')}: {{colourfulness_first}} with the smallest, "
        "{colourfulness_last} with the largest batch, and {truth} in the true pictures.",
        {
            **ends,
            "grey": sweep_number(sweep, "grey_psnr", sweep.grey_psnr, ".2f"),
            "truth": sweep_number(sweep, "truth_colourfulness", sweep.truth_colourfulness, ".1f"),
        },
    )


def _time_text(sweep: SweepResult) -> Text:
    small, large = (metric_number(sweep, EQUAL_EPOCHS, index, "seconds_per_epoch") for index in (0, -1))
    ratio = small.value / large.value
    compared = "faster than" if ratio > 1 else "slower than"
    return Text(
        "An epoch took {small} s with the smallest and {large} s with the largest batch, measuring after it included: "
        f"{{ratio}} times the time, so that large batches were {compared} small ones on this machine.",
        {
            "small": small,
            "large": large,
            "ratio": Number(ratio, f"{small.source} over {large.source}", ".2f"),
        },
    )


def _missing_seed_blocks(sweep: SweepResult) -> list[Block]:
    """One seed cannot tell an effect from chance."""
    if len(sweep.seeds) > 1:
        return []
    return [MissingRun("a second seed", _sweep_command(sweep, (sweep.seeds[0], sweep.seeds[0] + 1)))]


def _other_sweep_blocks(sweep: SweepResult, folder: Path, name: str) -> list[Block]:
    """A sweep over something else: its table and what is best."""
    over = sweep.parameter.replace("-", " ")
    caption = f"`{sweep.model}` by the `{sweep.recipe}` recipe on `{sweep.data}`, over {over}"
    return [
        sweep_table(sweep, EQUAL_EPOCHS, caption),
        _best_value_text(sweep, over),
        copy_figure(
            sweep.curves_path,
            folder / f"{name}-curves.png",
            f"Test loss (solid), training loss (dashed) and test accuracy over {over}",
            _sweep_command(sweep),
        ),
    ]


def _best_value_text(sweep: SweepResult, parameter: str) -> Text:
    """Which value has the lowest loss or, where losses are not alike, the pictures nearest to the true ones."""
    colours = sweep.parameter == "colours"
    quantity, named = ("delta_e", "ΔE2000") if colours else ("test_loss", "test loss")
    means = [row.metrics[quantity].mean for row in sweep.equal_epochs]
    best = int(np.argmin(means))
    lead = (
        "Losses and accuracies of palettes of different sizes are answers to different questions, as a choice among "
        "more colours is harder; the pictures can be compared. "
        if colours
        else ""
    )
    return Text(
        f"{lead}The {named} is lowest, {{lowest}}, at {parameter} {{best}}; with greater values it "
        f"{describe_direction(sweep, EQUAL_EPOCHS, quantity)}.",
        {
            "lowest": metric_number(sweep, EQUAL_EPOCHS, best, quantity),
            "best": sweep_number(sweep, f"value of the least {quantity}", sweep.equal_epochs[best].value),
        },
    )


#: Which numbers a table has: name, heading, how it is printed, factor.
METRIC_COLUMNS = (
    ("train_loss", "train loss", ".4f", 1.0),
    ("test_loss", "test loss", ".4f", 1.0),
    ("test_accuracy", "accuracy %", ".2f", 100.0),
    ("psnr", "PSNR dB", ".2f", 1.0),
    ("delta_e", "ΔE2000", ".2f", 1.0),
    ("colourfulness", "colourfulness", ".1f", 1.0),
    ("seconds_per_epoch", "s an epoch", ".2f", 1.0),
)
METRIC_FORMATS = {name: (spec, scale) for name, _, spec, scale in METRIC_COLUMNS}

#: The two comparisons by the names that they have in ``sweep.json``.
EQUAL_EPOCHS, EQUAL_STEPS = "equal_epochs", "equal_steps"


def comparison_rows(sweep: SweepResult, comparison: str) -> Sequence[SweepRow]:
    """One of the two comparisons."""
    return sweep.equal_epochs if comparison == EQUAL_EPOCHS else sweep.equal_steps


def sweep_number(sweep: SweepResult, key: str, value: SweepValue, spec: str = ",.6g") -> Number:
    """A number of ``sweep.json``."""
    return Number(float(value), f"{sweep.folder}/sweep.json: {key}", spec)


def metric_number(sweep: SweepResult, comparison: str, index: int, metric: str) -> Number:
    """A quantity of the row with that index: its mean over the seeds and, of several, its spread."""
    row = comparison_rows(sweep, comparison)[index]
    found, (spec, scale) = row.metrics[metric], METRIC_FORMATS[metric]
    spread = None if found.std is None else scale * found.std
    source = f"{sweep.folder}/sweep.json: {comparison} > {row.value} > measured > {metric}"
    return Number(scale * found.mean, source, spec, spread)


def sweep_table(sweep: SweepResult, comparison: str, caption: str) -> Table:
    """A line for each value; the time only where whole epochs were trained."""
    columns = [column for column in METRIC_COLUMNS if comparison == EQUAL_EPOCHS or column[0] != "seconds_per_epoch"]
    rows: list[list[Cell]] = []
    for index, row in enumerate(comparison_rows(sweep, comparison)):
        key = f"{comparison} > {row.value}"
        rows.append(
            [
                sweep_number(sweep, f"{key} > value", row.value),
                sweep_number(sweep, f"{key} > updates", row.steps, ",.0f"),
                *(metric_number(sweep, comparison, index, name) for name, *_ in columns),
            ]
        )
    spread = "; ± is the sample standard deviation over the seeds" if len(sweep.seeds) > 1 else ""
    headings = [sweep.parameter.replace("-", " "), "updates", *(heading for _, heading, *_ in columns)]
    return Table(f"{caption}{spread}", headings, rows)


def copy_figure(source: Path, target: Path, caption: str, command: str) -> Block:
    """A figure of the sweep, copied to where the write-up's figures are."""
    if not source.is_file():
        return MissingRun(f"the figure `{source}`", command)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as aside:
        aside.write_bytes(source.read_bytes())
    return Figure(target, caption)


def metric_trend(sweep: SweepResult, comparison: str, metric: str, sign: float = 1.0) -> RankTrend:
    """How a quantity goes with the values; with sign −1 how its opposite does, so that a fall rises."""
    return rank_trend(sign * np.array([row.metrics[metric].values for row in comparison_rows(sweep, comparison)]).T)


def describe_direction(sweep: SweepResult, comparison: str, metric: str) -> str:
    """What a quantity does as the values go up, in words."""
    if metric_trend(sweep, comparison, metric).is_rising:
        return "rises"
    return (
        "falls"
        if metric_trend(sweep, comparison, metric, -1.0).is_rising
        else "has no order that these runs can tell from chance"
    )


def claim_text(sweep: SweepResult, comparison: str, subject: str) -> Text:
    """Whether the test loss rises with the values, tested; ``what`` is the claim as a subject."""
    trend = metric_trend(sweep, comparison, "test_loss")
    last = len(comparison_rows(sweep, comparison)) - 1
    numbers = {
        "low": sweep_number(sweep, f"{comparison}: the least value", comparison_rows(sweep, comparison)[0].value),
        "high": sweep_number(
            sweep, f"{comparison}: the greatest value", comparison_rows(sweep, comparison)[last].value
        ),
        "first": metric_number(sweep, comparison, 0, "test_loss"),
        "last": metric_number(sweep, comparison, last, "test_loss"),
        "first_train": metric_number(sweep, comparison, 0, "train_loss"),
        "last_train": metric_number(sweep, comparison, last, "train_loss"),
        **_trend_numbers(sweep, comparison, trend),
    }
    name = sweep.parameter.replace("-", " ")
    return Text(
        f"{subject} {_trend_verdict(trend)}. From {name} {{low}} to {{high}} the test loss goes from {{first}} to {{last}}; it "
        f"rises at {{up}} of {{steps}} steps from one {name} to the next{_clear_rises_text(trend)}{_correlation_text(trend, name)}. "
        f"The training loss {describe_direction(sweep, comparison, 'train_loss')}; it goes from {{first_train}} to {{last_train}}.",
        numbers,
    )


def _trend_numbers(sweep: SweepResult, comparison: str, trend: RankTrend) -> Mapping[str, Number]:
    def tested(value: SweepValue, test: str, spec: str) -> Number:
        return Number(float(value), f"{test} of test_loss in {sweep.folder}/sweep.json: {comparison}", spec)

    numbers = {
        "up": tested(trend.num_rises, "rises between neighbours", ".0f"),
        "steps": tested(trend.num_steps, "neighbours", ".0f"),
    }
    if trend.num_seeds > 1:
        numbers["clearly"] = tested(trend.num_clear_rises, "rises by more than the spreads", ".0f")
    if trend.p_value is not None:
        numbers["correlation"] = tested(trend.correlation, "Spearman's rank correlation", ".2f")
        numbers["chance"] = tested(trend.p_value, _test_name(trend), ".2g")
        numbers["level"] = Number(SIGNIFICANCE_LEVEL, "report/trend.py: SIGNIFICANCE_LEVEL", ".2f")
    return numbers


def _trend_verdict(trend: RankTrend) -> str:
    """What follows from the tests, as a predicate."""
    if trend.is_rising and trend.is_monotonic:
        return "holds, at every step and by more than the spread over the seeds"
    if trend.is_rising and trend.num_rises == trend.num_steps:
        return "holds at every step" + (
            ", though not at all of them by more than the spread over the seeds" if trend.num_seeds > 1 else ""
        )
    if trend.is_rising:
        return "holds on the whole, though not at every step"
    if trend.correlation > 0:
        return "is not confirmed, as these runs cannot tell the tendency that there is from chance"
    return "does not hold"


def _clear_rises_text(trend: RankTrend) -> str:
    if trend.num_seeds == 1:
        return ", by how much more than chance a single seed cannot tell"
    return ", at {clearly} of them by more than the spreads on both sides together (root of the sum of squares)"


def _correlation_text(trend: RankTrend, parameter: str) -> str:
    """The order of all values; of two there is nothing beyond the one step."""
    if trend.p_value is None:
        return ""
    less = "less than" if trend.p_value < SIGNIFICANCE_LEVEL else "not less than"
    return (
        f". The rank correlation of {parameter} and loss is {{correlation}} (Spearman; 1 is an unbroken rise), and without "
        f"any trend an order that rises as much would have a probability of {{chance}} ({_test_name(trend)}), which is "
        f"{less} {{level}}"
    )


def _test_name(trend: RankTrend) -> str:
    return "Page's test" if trend.num_seeds > 1 else "Kendall's test"
