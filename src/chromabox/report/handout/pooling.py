"""Whether the first net's pictures look good, and why not."""

from pathlib import Path

import numpy as np
from jaxtyping import Int64

from chromabox.colour.data.datasets import ColourData
from chromabox.colour.evaluation.evaluate import Evaluation, Scores, evaluate
from chromabox.colour.weights.checkpoint import load_palette_net
from chromabox.report.handout.examined import BOUNDS, Examined, Ground
from chromabox.report.handout.stated import RECORD, looked_up, record, share, whole
from chromabox.report.plots import draw_confusion
from chromabox.report.written.document import Block, Cell, Figure, Number, Table, Text

#: Below this part of the true detail, in energy or in correlation, pictures are called blurred.
BLURRED = 0.9
#: Below this part of the true share of vivid pixels, pictures are called dull.
DULL = 0.9
#: A net whose probability of vivid colours is nearer than this to their share is said to know of them.
AWARE = 0.05


def floors_and_ceiling(net: str, run: Path, ground: Ground, folder: Path) -> list[Block]:
    """The net's scores beside what no net and no palette beats, whether its pictures look good, and its mistakes."""
    data = ground.inputs.data
    found = evaluate(load_palette_net(run), ColourData(data.train, data.test))
    record(folder, "evaluation", {net: found.as_json()["rows"]})
    return [_table(net, found), _verdict(net, found), confusion_figure(net, found.confusion, ground, folder)]


def confusion_figure(
    net: str, confusion: Int64[np.ndarray, "truth prediction"], ground: Ground, folder: Path
) -> Figure:
    """Where the true colours' pixels went, drawn by swatch."""
    path = folder / f"confusion-{net}.png"
    draw_confusion(confusion, ground.inputs.palette.colours, path, "")
    return Figure(
        path,
        f"Where each true colour's pixels go (`{net}`, one seed): a row adds to one; on the diagonal are those that "
        "are right.",
    )


def _cell(net: str, row: Scores, key: str, spec: str, scale: float = 1.0) -> Cell:
    value = getattr(row, key)
    return "–" if value is None else Number(scale * value, f"{RECORD}: evaluation > {net} > {row.name} > {key}", spec)


def _table(net: str, found: Evaluation) -> Table:
    columns = (("loss", ".4f", 1.0), ("accuracy", ".2f", 100.0), ("psnr", ".2f", 1.0), ("delta_e", ".2f", 1.0))
    return Table(
        f"`{net}` (one seed) on all test pictures, beside what needs no net and the ceiling that the palette sets. "
        "Colourfulness after Hasler and Süsstrunk: 15 is slightly, 33 moderately colourful",
        ["", "loss", "accuracy %", "PSNR dB", "ΔE2000", "colourfulness"],
        [
            [row.name, *(_cell(net, row, *column) for column in columns), _cell(net, row, "colourfulness", ".1f")]
            for row in found.rows
        ],
    )


def _verdict(net: str, found: Evaluation) -> Text:
    ours, grey, table = (found.row(name) for name in ("net", "grey", "grey value's colour"))
    assert ours.accuracy is not None
    assert table.accuracy is not None
    nearer, righter = ours.delta_e < grey.delta_e, ours.accuracy > table.accuracy
    answer = "Yes, judged by numbers." if nearer and righter else "Only in part." if nearer or righter else "No."
    return Text(
        f"Do they look good? {answer} By mean ΔE2000 the coloured pictures ({{ours}}) are "
        f"{'nearer to' if nearer else 'further from'} the true ones than the grey pictures themselves ({{grey}}). "
        "A table that gives every grey value its most frequent colour, without looking at any neighbour, is right on "
        f"{{table}} % of the pixels, the net on {{right}} %, which is {'more' if righter else 'less'}. Even every "
        "pixel's true palette colour would leave a ΔE2000 of {ceiling}.",
        {
            "ours": _stated(net, ours, "delta_e", ".2f"),
            "grey": _stated(net, grey, "delta_e", ".2f"),
            "table": _stated(net, table, "accuracy", ".1f", 100.0),
            "right": _stated(net, ours, "accuracy", ".1f", 100.0),
            "ceiling": _stated(net, found.row("palette oracle"), "delta_e", ".2f"),
        },
    )


def _stated(net: str, row: Scores, key: str, spec: str, scale: float = 1.0) -> Number:
    cell = _cell(net, row, key, spec, scale)
    assert isinstance(cell, Number)
    return cell


def blur(one: Examined) -> Text:
    """Whether the net's pictures have the fine detail of the true ones, and where it is lost."""
    energy, correlation = one.detail.energy, one.detail.correlation
    if energy < BLURRED:
        said = "The pictures are blurred"
    elif correlation < BLURRED:
        said = "The pictures have detail enough, but partly not the true one"
    else:
        said = "The pictures keep the fine detail"
    lost = one.recovered["quarter"].grey_detail < BLURRED
    near, far = one.by_distance.accuracy[0], one.by_distance.accuracy[-1]
    return Text(
        f"{said}: what makes the pixels of a 4 × 4 block differ has {{energy}} % of the energy that it has in the true "
        "colours, and a correlation of {correlation} with it. Halved twice, a picture is {channels} channels of "
        "{height} × {width} places. From those of one place a linear map, fitted on training pictures, reads back "
        "{quarter} % of the variance of that detail in the grey input, against {half} % before the second halving"
        + (": detail is lost on the way down, and no later layer can bring it back." if lost else ": little is lost.")
        + " On the edges of the grey picture {near} % of the pixels are right, {away} or more pixels away {far} %"
        + (", as one expects of a picture without its detail." if near < far else "."),
        {
            "energy": share(one, "detail", "energy"),
            "correlation": looked_up(one, "detail", "correlation", spec=".2f"),
            "channels": looked_up(one, "bottleneck", 0, spec=".0f"),
            "height": looked_up(one, "bottleneck", 1, spec=".0f"),
            "width": looked_up(one, "bottleneck", 2, spec=".0f"),
            "quarter": share(one, "recovered", "quarter", "grey_detail"),
            "half": share(one, "recovered", "half", "grey_detail"),
            "near": share(one, "by_distance", "accuracy", 0),
            "far": share(one, "by_distance", "accuracy", -1),
            "away": whole(int(BOUNDS[-2]), "the last band's lower bound"),
        },
    )


def dullness(one: Examined, ground: Ground) -> Text:
    """Whether vivid colours are given as often as they are true, and whether the net knows how unsure it is."""
    dull = one.vividness.said < DULL * one.vividness.true
    aware = abs(one.vividness.expected - one.vividness.true) < AWARE
    reason = f"{'nearly' if aware else 'not'} as often as they are true"
    if dull and aware:
        reason += (
            ". So the net knows of the vivid colours, but is seldom sure enough of a hue to put one of them first, and "
            "only the likeliest colour of a pixel is shown"
        )
    return Text(
        f"They {'are too dull' if dull else 'are not too dull'}: the vivid half of the palette (the greater chroma in "
        "CIELab) is the true colour of {true} % of the pixels and the net's answer for {said} %; of the vivid pixels "
        "{vivid} % are right, of the dull ones {dulls} %. Colourfulness is {ours}, that of the true pictures {truth}. "
        f"On average its probabilities give them {{expected}} %, {reason}. Of a hue there is little to be seen in "
        "grey: of what in the target colours is not grey, a linear map reads {hue} % of the variance from a place of "
        "the bottleneck.",
        {
            "true": share(one, "vividness", "true"),
            "said": share(one, "vividness", "said"),
            "vivid": share(one, "vividness", "vivid_right"),
            "dulls": share(one, "vividness", "dull_right"),
            "ours": looked_up(one, "looks", "colourfulness"),
            "truth": Number(ground.truth_colourfulness, "colourfulness of the first test pictures", ".1f"),
            "expected": share(one, "vividness", "expected"),
            "hue": share(one, "recovered", "quarter", "chroma"),
        },
    )
