"""The numbers of a sweep as the answers state them: in tables, in figures, and as trends in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from chromabox.io.atomic import write_whole
from chromabox.report.swept import Row, Sweep, Value
from chromabox.report.trend import SIGNIFICANCE_LEVEL, Trend, trend_of
from chromabox.report.written.document import Block, Cell, Figure, Missing, Number, Table, Text

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
