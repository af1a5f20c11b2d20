"""What the three nets reach, how they compare, and why: questions A.2, B.2, B.3, C.2 and C.3."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from chromabox.assignment.analysis.net_analysis import EXTENT, Examined, Ground, examine, ground_of
from chromabox.assignment.analysis.plots import draw_all_curves, draw_calibration, draw_sheet
from chromabox.assignment.sections.comparison import looks_table, row_of, side_by_side, truth_rows
from chromabox.assignment.sections.explanations import (
    blur,
    confusion_figure,
    dullness,
    floors_and_ceiling,
    skip_reasons,
    stride_reasons,
)
from chromabox.assignment.sections.numbers import (
    comparison_table,
    difference_text,
    differences,
    from_runs,
    improved,
    looked_up,
    published_text,
    record,
    runs_of,
    share,
    whole,
    without_runs,
)
from chromabox.colour.evaluation import metrics
from chromabox.colour.training.train import read_config
from chromabox.engine.logger import read_metrics
from chromabox.experiments.runs import Found, summary_of
from chromabox.report.document.model import Block, Figure, Number, Section, Text

#: Points of accuracy by which training pictures may be ahead before one speaks of learning by heart.
BY_HEART = 2.0

POOL, STRIDED, SKIPPING = "pool-upsample", "conv-transpose", "unet"


def pooling_results(found: Found, folder: Path) -> Section:
    """A.2: the first net's pictures, whether they look good, and why not."""
    head = ("A.2", "What pooling and upsampling reach", "Do the coloured pictures look good, and why or why not?")
    runs = runs_of(found, POOL)
    if runs is None:
        return without_runs(found, *head, POOL)
    [group] = runs
    one, ground = _examined(folder, group)
    sheet = folder / f"sheet-{POOL}.png"
    draw_sheet(truth_rows(one, ground) | {POOL: row_of(one, ground)}, sheet)
    return Section(
        *head,
        [
            _reached(POOL, group),
            *published_text({POOL: group}),
            Figure(sheet, f"The first test pictures: grey, the truth, and what `{POOL}` makes of the grey."),
            *floors_and_ceiling(POOL, group[0], ground, folder),
            blur(one),
            dullness(one, ground),
        ],
    )


def strided_curves(found: Found, folder: Path) -> Section:
    """B.2: the second net's training curves."""
    return _curves(found, folder, "B.2", "Training with strides", STRIDED, (POOL, STRIDED))


def skip_curves(found: Found, folder: Path) -> Section:
    """C.2: the third net's training curves."""
    return _curves(found, folder, "C.2", "Training with skip connections", SKIPPING, (POOL, STRIDED, SKIPPING))


def _curves(found: Found, folder: Path, key: str, title: str, net: str, beside: Sequence[str]) -> Section:
    """The curves of one net, and in the same figure those of nets before it."""
    head = (key, title, f"How do loss and accuracy of `{net}` change while it trains?")
    runs = runs_of(found, net)
    if runs is None:
        return without_runs(found, *head, net)
    drawn = {name: found.colour[name] for name in beside if found.colour.get(name)}
    path = folder / f"curves-{net}.png"
    draw_all_curves({name: [read_metrics(run) for run in group] for name, group in drawn.items()}, path)
    caption = (
        "Loss and accuracy of every run, a thin line for each seed; the training loss is the mean over the epoch's own "
        "batches, the training accuracy that of some training pictures after it."
    )
    return Section(*head, [Figure(path, caption), _end_of_curves(net, runs[0])])


def _end_of_curves(net: str, runs: Sequence[Path]) -> Text:
    """Whether the net was still learning and whether it learnt by heart, by its first run."""
    run = runs[0]
    records = read_metrics(run)
    last = records[-1]
    best = min(records, key=lambda record: record["test_loss"])
    gap = 100 * (last["train_accuracy"] - last["test_accuracy"])
    falling = best["epoch"] == last["epoch"]
    source = f"{run}/metrics.jsonl"
    return Text(
        f"After {{epochs}} epochs of batches of {{batch}}, `{net}` stands at a loss of {{loss}} and {{accuracy}} % on "
        "the test pictures, which the assignment calls validation. The lowest test loss of the first run is "
        + ("that of its last epoch: it has not yet begun to overfit. " if falling else "{best} at epoch {when}. ")
        + "At the end its accuracy on training pictures is {gap} points "
        + ("above" if gap >= 0 else "below")
        + " that on test pictures"
        + (": it has learnt hardly any of them by heart." if gap < BY_HEART else "."),
        {
            "epochs": whole(int(last["epoch"]), source),
            "batch": whole(read_config(run).recipe.batch_size, f"{run}/config.json: recipe > batch_size"),
            "loss": from_runs(runs, "test_loss"),
            "accuracy": from_runs(runs, "test_accuracy", ".2f", 100.0),
            "gap": Number(abs(gap), f"{source}: last train_accuracy less test_accuracy", ".1f"),
        }
        | (
            {}
            if falling
            else {
                "best": Number(best["test_loss"], f"{source}: lowest test_loss", ".4f"),
                "when": whole(int(best["epoch"]), f"{source}: epoch of the lowest test_loss"),
            }
        ),
    )


def strided_results(found: Found, folder: Path) -> Section:
    """B.3: the second net beside the first, and why they differ."""
    head = (
        "B.3",
        "Strides beside pooling",
        "How do the results compare with those of pooling and upsampling, and what explains the difference?",
    )
    runs = runs_of(found, POOL, STRIDED)
    if runs is None:
        return without_runs(found, *head, POOL, STRIDED)
    (pool, ground), (strided, _) = (_examined(folder, group) for group in runs)
    changes = differences(runs, pool, strided)
    return Section(
        *head,
        [
            comparison_table({POOL: runs[0], STRIDED: runs[1]}),
            difference_text(folder, POOL, STRIDED, changes),
            *published_text({POOL: runs[0], STRIDED: runs[1]}),
            *side_by_side(pool, strided, ground, folder),
            looks_table(ground, pool, strided),
            *stride_reasons(pool, strided, ground, folder, better=improved(changes)),
        ],
    )


def skip_results(found: Found, folder: Path) -> Section:
    """C.3: the third net beside the second, and why they differ."""
    head = (
        "C.3",
        "What skip connections change",
        "Did skip connections improve loss, accuracy and the pictures, and for what reasons?",
    )
    runs = runs_of(found, STRIDED, SKIPPING)
    if runs is None:
        return without_runs(found, *head, STRIDED, SKIPPING)
    (strided, ground), (skipping, _) = (_examined(folder, group) for group in runs)
    pools = runs_of(found, POOL)
    others = (_examined(folder, pools[0])[0],) if pools else ()
    changes = differences(runs, strided, skipping)
    return Section(
        *head,
        [
            comparison_table({STRIDED: runs[0], SKIPPING: runs[1]}),
            difference_text(folder, STRIDED, SKIPPING, changes),
            *published_text({STRIDED: runs[0], SKIPPING: runs[1]}),
            *side_by_side(strided, skipping, ground, folder),
            looks_table(ground, strided, skipping),
            _seen(strided, skipping),
            confusion_figure(SKIPPING, _confusion(skipping, ground), ground, folder),
            *skip_reasons(strided, skipping, ground, folder, better=improved(changes), others=others),
            *_surety((*others, strided, skipping), folder),
            _beside_the_table(runs[1], ground.table_accuracy),
        ],
    )


def _examined(folder: Path, group: Sequence[Path]) -> tuple[Examined, Ground]:
    """The net of a group's first run, looked into and recorded, and the ground that it stands on."""
    one = examine(group[0])
    record(folder, "examined", EXTENT)
    record(folder, "nets", {one.net: one.numbers})
    return one, ground_of(group[0])


def _confusion(one: Examined, ground: Ground) -> Int64[np.ndarray, "truth prediction"]:
    return metrics.confusion(one.answers.labels, ground.test.labels.numpy(), len(ground.inputs.palette))


def _reached(net: str, runs: Sequence[Path]) -> Text:
    return Text(
        f"`{net}` has {{accuracy}} % of the test pixels right at a cross-entropy of {{loss}} nats a pixel after "
        "{epochs} epochs (seeds: {seeds}).",
        {
            "accuracy": from_runs(runs, "test_accuracy", ".2f", 100.0),
            "loss": from_runs(runs, "test_loss"),
            "epochs": whole(int(summary_of(runs[0])["epochs"]), f"{runs[0]}/summary.json: epochs"),
            "seeds": whole(len(runs), "runs found"),
        },
    )


def _seen(before: Examined, after: Examined) -> Text:
    """Whether the pictures got better, and in what."""
    sharper = after.detail.correlation > before.detail.correlation
    nearer = after.looks.delta_e < before.looks.delta_e
    livelier = after.looks.colourfulness > before.looks.colourfulness
    return Text(
        f"To the eye: the fine detail of `{after.net}`'s pictures is {'' if sharper else 'not '}nearer to the true one "
        f"(correlation {{sharp_before}} before, {{sharp_after}} after), their colours are {'' if nearer else 'not '}"
        "nearer to the true ones (ΔE2000 {delta_before} before, {delta_after} after), and they are "
        f"{'' if livelier else 'not '}livelier (colourfulness {{lively_before}} before, {{lively_after}} after).",
        {
            f"{name}_{when}": looked_up(one, *keys, spec=spec)
            for name, keys, spec in (
                ("sharp", ("detail", "correlation"), ".3f"),
                ("delta", ("looks", "delta_e"), ".2f"),
                ("lively", ("looks", "colourfulness"), ".1f"),
            )
            for when, one in (("before", before), ("after", after))
        },
    )


def _surety(nets: Sequence[Examined], folder: Path) -> list[Block]:
    """How sure the nets are, beside how often they are right."""
    path = folder / "calibration.png"
    draw_calibration({one.net: one.calibration for one in nets}, path)
    after = nets[-1]
    modest = after.calibration.surplus < 0
    return [
        Text(
            f"How sure the net is, is a matter apart: `{after.net}` is "
            f"{'less sure than it is right' if modest else 'surer than it is right'}, by {{surplus}} points on average "
            "(expected calibration error {error} %).",
            {
                "surplus": Number(
                    100 * abs(after.calibration.surplus),
                    f"results.json: nets > {after.net} > calibration error > surplus",
                    ".1f",
                ),
                "error": share(after, "calibration error", "error"),
            },
        ),
        Figure(
            path,
            "How often an answer is right against the probability that the net gives it; on the dotted line the two "
            "agree.",
        ),
    ]


def _beside_the_table(runs: Sequence[Path], table: float) -> Text:
    ours = from_runs(runs, "test_accuracy", ".2f", 100.0)
    above = ours.value > 100 * table
    return Text(
        f"A last comparison puts the gain in its place: with {{ours}} % the net with skips is "
        f"{'above' if above else 'still below'} the {{table}} % of a table from grey values to colours, which looks at "
        "one pixel only.",
        {"ours": ours, "table": Number(100 * table, "grey_lookup_baseline on all test pictures", ".2f")},
    )
