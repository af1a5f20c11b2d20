"""B.5: what the batch size does to the losses and the pictures, at equal epochs and at equal steps.

The numbers of a sweep as the answers state them: in tables, in figures, and as trends in words.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from chromabox.assignment.analysis.statistics import SIGNIFICANCE_LEVEL, Trend, trend_of
from chromabox.colour.training.train import read_config
from chromabox.engine.logger import read_metrics
from chromabox.experiments.runs import Found
from chromabox.experiments.sweep_results import Row, Sweep, Value, read_sweep
from chromabox.io.atomic import write_whole
from chromabox.report.document.model import Block, Cell, Figure, Missing, Number, Section, Table, Text

TITLE = "Batch sizes"
QUESTION = (
    "How does the size of the batches change the training and validation losses and the final pictures, when every "
    "size is trained for the same number of epochs?"
)

#: The handout's own sizes.
COMMAND = "chromabox sweep conv-transpose --over batch-size=32,64,128,256,512 --seeds 0 1 --recipe course"

#: Over this part of the epochs, the last ones, is looked whether the loss still falls.
LATE = 5


def batch_size_section(found: Found, folder: Path) -> Section:
    """The answer from all sweeps over batch sizes, then a table of every other sweep; figures go into ``folder``."""
    sweeps = [read_sweep(path) for path in found.sweeps]
    blocks: list[Block] = []
    for index, sweep in enumerate(sweeps):
        if sweep.over == "batch-size":
            blocks += _batch_sizes(sweep, folder, f"batch-sizes-{index}")
    if not blocks:
        blocks = [Missing("a finished sweep over batch sizes", COMMAND)]
    for index, sweep in enumerate(sweeps):
        if sweep.over != "batch-size":
            blocks += _another(sweep, folder, f"sweep-{index}")
    return Section("B.5", TITLE, QUESTION, blocks)


def _batch_sizes(sweep: Sweep, folder: Path, name: str) -> list[Block]:
    """The answer from one sweep."""
    curves = (
        "Losses against epochs (left) and against updates (right, logarithmic): solid on the test pictures, with a "
        "band over the seeds, dashed on the batches that were learnt from. Diamonds: the ends of the runs with equally "
        "many updates"
    )
    sheet = "The first test pictures in grey, in truth, and as the net of each batch size colours them (first seed)"
    return [
        _setting(sweep),
        sweep_table(sweep, EPOCHS, f"`{sweep.net}` after equally many epochs"),
        claim(sweep, EPOCHS, "That larger batches end with a higher validation loss after as many epochs"),
        figure_block(sweep.curves, folder / f"{name}-curves.png", curves, _command(sweep)),
        sweep_table(sweep, STEPS, f"`{sweep.net}` after equally many updates"),
        claim(sweep, STEPS, "That they also do so after equally many updates"),
        _explanation(sweep),
        *_still_falling(sweep),
        _pictures(sweep),
        figure_block(sweep.sheet, folder / f"{name}-sheet.png", sheet, _command(sweep)),
        _time(sweep),
        *_more_seeds(sweep),
    ]


def _command(sweep: Sweep, seeds: tuple[int, ...] = ()) -> str:
    """What makes this sweep, or makes it with other seeds."""
    values = ",".join(str(row.value) for row in sweep.equal_epochs)
    words = ["chromabox", "sweep", sweep.net, "--over", f"{sweep.over}={values}", "--seeds"]
    words += [*map(str, seeds or sweep.seeds), "--recipe", sweep.recipe]
    words += ["--epochs", str(sweep.equal_epochs[0].epochs), "--data", sweep.data]
    if sweep.equal_steps:
        words += ["--steps", str(sweep.equal_steps[0].updates)]
    return shlex.join([*words, "-o", str(sweep.folder)])


def _setting(sweep: Sweep) -> Text:
    rows = sweep.equal_epochs
    return Text(
        f"`{sweep.net}` was trained by the `{sweep.recipe}` recipe on `{sweep.data}` (palette `{sweep.palette}`) with "
        "{count} batch sizes from {low} to {high}, everything else unchanged, {seeds} "
        + ("seeds each" if len(sweep.seeds) > 1 else "seed each")
        + ", for {epochs} epochs. Validation pictures are the data's test pictures. All losses are those of the "
        "finished net, the training loss on as many training pictures as there are test pictures.",
        {
            "count": said(sweep, "equal_epochs, rows", len(rows)),
            "low": said(sweep, "equal_epochs, first value", rows[0].value),
            "high": said(sweep, "equal_epochs, last value", rows[-1].value),
            "seeds": said(sweep, "seeds", len(sweep.seeds)),
            "epochs": said(sweep, "equal_epochs > epochs", rows[0].epochs),
        },
    )


def _explanation(sweep: Sweep) -> Text:
    """What the two tables say together."""
    first, last = sweep.equal_epochs[0], sweep.equal_epochs[-1]
    equal = sweep.equal_steps[0]
    rises = trend_in(sweep, EPOCHS, "test_loss").rises
    then = direction(sweep, STEPS, "test_loss")
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
            "most": said(sweep, f"equal_epochs > {first.value} > updates", first.updates),
            "fewest": said(sweep, f"equal_epochs > {last.value} > updates", last.updates),
            "low": said(sweep, "equal_epochs, first value", first.value),
            "high": said(sweep, "equal_epochs, last value", last.value),
            "gap": _gap(sweep, EPOCHS),
            "rest": _gap(sweep, STEPS),
            "updates": said(sweep, "equal_steps > updates", equal.updates),
        },
    )


def _gap(sweep: Sweep, kind: str) -> Number:
    """By how much the mean test loss of the largest batch exceeds that of the smallest."""
    low, high = measured(sweep, kind, 0, "test_loss"), measured(sweep, kind, -1, "test_loss")
    return Number(high.value - low.value, f"{high.source} minus {low.source}", "+.4f")


def _still_falling(sweep: Sweep) -> list[Block]:
    """Whether the large batches were still learning at the end; told only where the rate has not fallen by then."""
    rows, schedule = sweep.equal_epochs, read_config(sweep.folder / sweep.equal_epochs[0].runs[0]).recipe.schedule
    late = rows[0].epochs // LATE
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
                "late": said(sweep, f"equal_epochs > epochs, a part of 1/{LATE}", late),
                "small": small,
                "large": large,
                "low": said(sweep, "equal_epochs, first value", rows[0].value),
                "high": said(sweep, "equal_epochs, last value", rows[-1].value),
            },
        )
    ]


def _pictures(sweep: Sweep) -> Text:
    """What becomes of the coloured pictures at equal epochs."""
    judged = direction(sweep, EPOCHS, "delta_e")
    verdicts = {"rises": "become worse", "falls": "become better"}
    verdict = verdicts.get(judged, "are neither better nor worse by more than chance")
    ends = {
        f"{name}{end}": measured(sweep, EPOCHS, index, name)
        for name in ("delta_e", "psnr", "colourfulness")
        for end, index in (("_first", 0), ("_last", -1))
    }
    return Text(
        f"With larger batches and equally many epochs the pictures {verdict}, judged by their mean difference ΔE2000 "
        "to the true ones: {delta_e_first} with the smallest, {delta_e_last} with the largest batch. PSNR goes from "
        "{psnr_first} to {psnr_last} dB (the grey pictures themselves, dull as they are, have {grey} dB). "
        f"Colourfulness {direction(sweep, EPOCHS, 'colourfulness')}: {{colourfulness_first}} with the smallest, "
        "{colourfulness_last} with the largest batch, and {truth} in the true pictures.",
        {
            **ends,
            "grey": said(sweep, "grey_psnr", sweep.grey_psnr, ".2f"),
            "truth": said(sweep, "truth_colourfulness", sweep.truth_colourfulness, ".1f"),
        },
    )


def _time(sweep: Sweep) -> Text:
    small, large = (measured(sweep, EPOCHS, index, "seconds_per_epoch") for index in (0, -1))
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


def _more_seeds(sweep: Sweep) -> list[Block]:
    """One seed cannot tell an effect from chance."""
    if len(sweep.seeds) > 1:
        return []
    return [Missing("a second seed", _command(sweep, (sweep.seeds[0], sweep.seeds[0] + 1)))]


def _another(sweep: Sweep, folder: Path, name: str) -> list[Block]:
    """A sweep over something else: its table and what is best."""
    over = sweep.over.replace("-", " ")
    caption = f"`{sweep.net}` by the `{sweep.recipe}` recipe on `{sweep.data}`, over {over}"
    return [
        sweep_table(sweep, EPOCHS, caption),
        _best(sweep, over),
        figure_block(
            sweep.curves,
            folder / f"{name}-curves.png",
            f"Test loss (solid), training loss (dashed) and test accuracy over {over}",
            _command(sweep),
        ),
    ]


def _best(sweep: Sweep, over: str) -> Text:
    """Which value has the lowest loss or, where losses are not alike, the pictures nearest to the true ones."""
    colours = sweep.over == "colours"
    quantity, named = ("delta_e", "ΔE2000") if colours else ("test_loss", "test loss")
    means = [row.measured[quantity].mean for row in sweep.equal_epochs]
    best = int(np.argmin(means))
    lead = (
        "Losses and accuracies of palettes of different sizes are answers to different questions, as a choice among "
        "more colours is harder; the pictures can be compared. "
        if colours
        else ""
    )
    return Text(
        f"{lead}The {named} is lowest, {{lowest}}, at {over} {{best}}; with greater values it "
        f"{direction(sweep, EPOCHS, quantity)}.",
        {
            "lowest": measured(sweep, EPOCHS, best, quantity),
            "best": said(sweep, f"value of the least {quantity}", sweep.equal_epochs[best].value),
        },
    )


#: Which numbers a table has: name, heading, how it is printed, factor.
COLUMNS = (
    ("train_loss", "train loss", ".4f", 1.0),
    ("test_loss", "test loss", ".4f", 1.0),
    ("test_accuracy", "accuracy %", ".2f", 100.0),
    ("psnr", "PSNR dB", ".2f", 1.0),
    ("delta_e", "ΔE2000", ".2f", 1.0),
    ("colourfulness", "colourfulness", ".1f", 1.0),
    ("seconds_per_epoch", "s an epoch", ".2f", 1.0),
)
PRINTED = {name: (spec, scale) for name, _, spec, scale in COLUMNS}

#: The two comparisons by the names that they have in ``sweep.json``.
EPOCHS, STEPS = "equal_epochs", "equal_steps"


def rows_of(sweep: Sweep, kind: str) -> Sequence[Row]:
    """One of the two comparisons."""
    return sweep.equal_epochs if kind == EPOCHS else sweep.equal_steps


def said(sweep: Sweep, key: str, value: Value, spec: str = ",.6g") -> Number:
    """A number of ``sweep.json``."""
    return Number(float(value), f"{sweep.folder}/sweep.json: {key}", spec)


def measured(sweep: Sweep, kind: str, index: int, name: str) -> Number:
    """A quantity of the row with that index: its mean over the seeds and, of several, its spread."""
    row = rows_of(sweep, kind)[index]
    found, (spec, scale) = row.measured[name], PRINTED[name]
    spread = None if found.spread is None else scale * found.spread
    source = f"{sweep.folder}/sweep.json: {kind} > {row.value} > measured > {name}"
    return Number(scale * found.mean, source, spec, spread)


def sweep_table(sweep: Sweep, kind: str, caption: str) -> Table:
    """A line for each value; the time only where whole epochs were trained."""
    columns = [column for column in COLUMNS if kind == EPOCHS or column[0] != "seconds_per_epoch"]
    rows: list[list[Cell]] = []
    for index, row in enumerate(rows_of(sweep, kind)):
        key = f"{kind} > {row.value}"
        rows.append(
            [
                said(sweep, f"{key} > value", row.value),
                said(sweep, f"{key} > updates", row.updates, ",.0f"),
                *(measured(sweep, kind, index, name) for name, *_ in columns),
            ]
        )
    spread = "; ± is the sample standard deviation over the seeds" if len(sweep.seeds) > 1 else ""
    headings = [sweep.over.replace("-", " "), "updates", *(heading for _, heading, *_ in columns)]
    return Table(f"{caption}{spread}", headings, rows)


def figure_block(original: Path, copy: Path, caption: str, command: str) -> Block:
    """A figure of the sweep, copied to where the write-up's figures are."""
    if not original.is_file():
        return Missing(f"the figure `{original}`", command)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(copy) as aside:
        aside.write_bytes(original.read_bytes())
    return Figure(copy, caption)


def trend_in(sweep: Sweep, kind: str, name: str, sign: float = 1.0) -> Trend:
    """How a quantity goes with the values; with sign −1 how its opposite does, so that a fall rises."""
    return trend_of(sign * np.array([row.measured[name].each for row in rows_of(sweep, kind)]).T)


def direction(sweep: Sweep, kind: str, name: str) -> str:
    """What a quantity does as the values go up, in words."""
    if trend_in(sweep, kind, name).rises:
        return "rises"
    return "falls" if trend_in(sweep, kind, name, -1.0).rises else "has no order that these runs can tell from chance"


def claim(sweep: Sweep, kind: str, what: str) -> Text:
    """Whether the test loss rises with the values, tested; ``what`` is the claim as a subject."""
    trend = trend_in(sweep, kind, "test_loss")
    last = len(rows_of(sweep, kind)) - 1
    numbers = {
        "low": said(sweep, f"{kind}: the least value", rows_of(sweep, kind)[0].value),
        "high": said(sweep, f"{kind}: the greatest value", rows_of(sweep, kind)[last].value),
        "first": measured(sweep, kind, 0, "test_loss"),
        "last": measured(sweep, kind, last, "test_loss"),
        "first_train": measured(sweep, kind, 0, "train_loss"),
        "last_train": measured(sweep, kind, last, "train_loss"),
        **_tests(sweep, kind, trend),
    }
    name = sweep.over.replace("-", " ")
    return Text(
        f"{what} {_verdict(trend)}. From {name} {{low}} to {{high}} the test loss goes from {{first}} to {{last}}; it "
        f"rises at {{up}} of {{steps}} steps from one {name} to the next{_clearly(trend)}{_on_the_whole(trend, name)}. "
        f"The training loss {direction(sweep, kind, 'train_loss')}; it goes from {{first_train}} to {{last_train}}.",
        numbers,
    )


def _tests(sweep: Sweep, kind: str, trend: Trend) -> Mapping[str, Number]:
    def tested(value: Value, test: str, spec: str) -> Number:
        return Number(float(value), f"{test} of test_loss in {sweep.folder}/sweep.json: {kind}", spec)

    numbers = {
        "up": tested(trend.up, "rises between neighbours", ".0f"),
        "steps": tested(trend.steps, "neighbours", ".0f"),
    }
    if trend.seeds > 1:
        numbers["clearly"] = tested(trend.clearly_up, "rises by more than the spreads", ".0f")
    if trend.chance is not None:
        numbers["correlation"] = tested(trend.correlation, "Spearman's rank correlation", ".2f")
        numbers["chance"] = tested(trend.chance, _test_of(trend), ".2g")
        numbers["level"] = Number(SIGNIFICANCE_LEVEL, "report/trend.py: SIGNIFICANCE_LEVEL", ".2f")
    return numbers


def _verdict(trend: Trend) -> str:
    """What follows from the tests, as a predicate."""
    if trend.rises and trend.is_clear:
        return "holds, at every step and by more than the spread over the seeds"
    if trend.rises and trend.up == trend.steps:
        return "holds at every step" + (
            ", though not at all of them by more than the spread over the seeds" if trend.seeds > 1 else ""
        )
    if trend.rises:
        return "holds on the whole, though not at every step"
    if trend.correlation > 0:
        return "is not confirmed, as these runs cannot tell the tendency that there is from chance"
    return "does not hold"


def _clearly(trend: Trend) -> str:
    if trend.seeds == 1:
        return ", by how much more than chance a single seed cannot tell"
    return ", at {clearly} of them by more than the spreads on both sides together (root of the sum of squares)"


def _on_the_whole(trend: Trend, name: str) -> str:
    """The order of all values; of two there is nothing beyond the one step."""
    if trend.chance is None:
        return ""
    less = "less than" if trend.chance < SIGNIFICANCE_LEVEL else "not less than"
    return (
        f". The rank correlation of {name} and loss is {{correlation}} (Spearman; 1 is an unbroken rise), and without "
        f"any trend an order that rises as much would have a probability of {{chance}} ({_test_of(trend)}), which is "
        f"{less} {{level}}"
    )


def _test_of(trend: Trend) -> str:
    return "Page's test" if trend.seeds > 1 else "Kendall's test"
