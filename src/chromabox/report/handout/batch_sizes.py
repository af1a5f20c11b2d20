"""B.5: what the batch size does to the losses and the pictures, at equal epochs and at equal steps."""

import shlex
from pathlib import Path

import numpy as np

from chromabox.colour.training.train import read_config
from chromabox.engine.logger import read_metrics
from chromabox.report.found import Found
from chromabox.report.handout.swept_numbers import (
    EPOCHS,
    STEPS,
    claim,
    direction,
    figure_block,
    measured,
    said,
    sweep_table,
    trend_in,
)
from chromabox.report.swept import Sweep, read_sweep
from chromabox.report.written.document import Block, Missing, Number, Section, Text

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
