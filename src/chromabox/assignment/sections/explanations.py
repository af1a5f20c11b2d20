"""Why skip connections help, or do not: the reasons that textbooks give, each tested on the nets that were trained.

Whether the first net's pictures look good, and why not.

Why strided and transposed convolutions do better than pooling and upsampling, or do not: each reason is tested.
"""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from chromabox.assignment.analysis.net_analysis import ABLATED, BOUNDS, Examined, Ground
from chromabox.assignment.analysis.plots import draw_gradients
from chromabox.assignment.sections.comparison import NOTICEABLE, draw_edges, gain_near_edges, probe_table
from chromabox.assignment.sections.numbers import RECORD, looked_up, record, share, whole
from chromabox.colour.data.datasets import ColourData
from chromabox.colour.evaluation.evaluate import Evaluation, Scores, evaluate
from chromabox.colour.training.train import read_config
from chromabox.colour.weights.checkpoint import load_palette_net
from chromabox.experiments.runs import summary_of
from chromabox.report.document.model import Block, Cell, Figure, Number, Table, Text
from chromabox.report.plots import draw_confusion

#: Gradients of two layers that are less than so many times apart are not said to vanish.
VANISHING = 100.0


def skip_reasons(
    plain: Examined, skipping: Examined, ground: Ground, folder: Path, *, better: bool, others: tuple[Examined, ...]
) -> list[Block]:
    """The reasons, with their numbers; ``others`` are nets to be drawn beside the two."""
    near, gain = gain_near_edges(plain, skipping, ground, folder)
    return [
        Text("First reason: what the strides lose comes back at the end. " + _back(plain), _back_numbers(plain)),
        probe_table(plain, skipping),
        _dull_gain(plain, skipping),
        gain,
        draw_edges((*others, plain, skipping), folder),
        _ablation_table(skipping),
        _ablation(skipping),
        _relief(plain, skipping),
        _gradients(plain, skipping),
        _optimiser(plain, skipping),
        draw_layers((*others, plain, skipping), folder),
        _summary(plain, skipping, near=near, better=better),
    ]


def _comes_back(plain: Examined) -> bool:
    """Whether more of the task's information is at half resolution than in the bottleneck."""
    lost, there = (plain.recovered[source].table_accuracy for source in ("quarter", "half"))
    return there > lost + NOTICEABLE


def _back(plain: Examined) -> str:
    said = "is borne out" if _comes_back(plain) else "is not borne out"
    return (
        f"This {said}: from `{plain.net}`'s bottleneck a linear map reads back {{detail}} % of the variance of grey's "
        "fine detail, from the half resolution that the first skip carries {half} %. It matters, because the "
        "palette's colours are narrow bands of grey: by the grey read back from the bottleneck a table of grey values "
        "finds the true colour of {table} % of the pixels, from half resolution {table_half} %, from the input itself "
        "{table_input} %."
    )


def _back_numbers(plain: Examined) -> dict[str, Number]:
    return {
        "detail": share(plain, "recovered", "quarter", "grey_detail"),
        "half": share(plain, "recovered", "half", "grey_detail"),
        "table": share(plain, "recovered", "quarter", "table_accuracy"),
        "table_half": share(plain, "recovered", "half", "table_accuracy"),
        "table_input": share(plain, "recovered", "input", "table_accuracy"),
    }


def _dull_gain(plain: Examined, skipping: Examined) -> Text:
    """Fine grey can tell one dull colour from another, but not a hue."""
    dull = skipping.vividness.dull_right - plain.vividness.dull_right
    vivid = skipping.vividness.vivid_right - plain.vividness.vivid_right
    return Text(
        "If the skips bring back grey and nothing else, they should help with dull colours, which differ in lightness, "
        "and not with hues. Of the pixels of dull colour `"
        + f"{plain.net}` has {{dull_before}} % right and `{skipping.net}` {{dull_after}} %, of those of vivid colour "
        "{vivid_before} and {vivid_after} %: "
        + (
            "so it is."
            if dull > vivid + NOTICEABLE and dull > NOTICEABLE
            else "the dull ones do not gain more, which speaks against it."
        ),
        {
            "dull_before": share(plain, "vividness", "dull_right"),
            "dull_after": share(skipping, "vividness", "dull_right"),
            "vivid_before": share(plain, "vividness", "vivid_right"),
            "vivid_after": share(skipping, "vividness", "vivid_right"),
        },
    )


_CHANGED = {
    "none intact": "as it is",
    "half zeroed": "half resolution, zeros",
    "half shuffled": "half resolution, another picture's",
    "input zeroed": "the input, zeros",
    "input shuffled": "the input, another picture's",
    "both zeroed": "both, zeros",
    "both shuffled": "both, another picture's",
}


def _ablation_table(skipping: Examined) -> Table:
    return Table(
        f"`{skipping.net}`, trained, on {ABLATED} test pictures at most, with what a skip carries replaced",
        ["skip, replaced by", "loss", "accuracy %"],
        [
            [name, looked_up(skipping, "skips", key, "loss", spec=".3f"), share(skipping, "skips", key, "accuracy")]
            for key, name in _CHANGED.items()
        ],
    )


def _ablation(skipping: Examined) -> Text:
    intact = skipping.skips["none intact"]["accuracy"]
    costs = {skip: intact - skipping.skips[f"{skip} shuffled"]["accuracy"] for skip in ("half", "input")}
    needed = [skip for skip, cost in costs.items() if cost > NOTICEABLE]
    names = {"half": "the skip at half resolution", "input": "the skip of the input"}
    if len(needed) == 2:
        said = f"The net leans on both skips, most on {names[max(costs, key=lambda skip: costs[skip])]}"
    elif needed:
        idle = next(skip for skip in costs if skip not in needed)
        said = f"All that the skips bring comes by {names[needed[0]]}; {names[idle]} is hardly used"
    else:
        said = "The net hardly uses its skips"
    return Text(
        f"{said}: with another picture's features in it, the one at half resolution costs {{half}} points of accuracy, "
        "the input's {input} points. This says what the trained net relies on, not what one trained without that skip "
        "would reach.",
        {
            skip: Number(100 * cost, f"results.json: nets > {skipping.net} > skips, intact less {skip} shuffled", ".1f")
            for skip, cost in costs.items()
        },
    )


def _relief(plain: Examined, skipping: Examined) -> Text:
    """Whether a bottleneck that need not carry detail carries something else instead."""
    before, after = (one.recovered["quarter"] for one in (plain, skipping))
    relieved = after.grey_detail < before.grey_detail - NOTICEABLE
    more = after.chroma > before.chroma + NOTICEABLE
    if relieved and more:
        said = "Both is so"
    elif relieved:
        said = "Only the first is so: what room there is, is not used for hues"
    elif more:
        said = "Only the second is so"
    else:
        said = "Neither is so"
    return Text(
        "Second reason: a bottleneck that need not carry the detail is free for what needs a wide view, such as the "
        f"hue. It should then hold less detail and more hue. {said}: grey's fine detail is read back from "
        f"`{plain.net}`'s bottleneck to {{detail_before}} % and from `{skipping.net}`'s to {{detail_after}} %, what of "
        "the target colours is not grey to {hue_before} and {hue_after} %.",
        {
            "detail_before": share(plain, "recovered", "quarter", "grey_detail"),
            "detail_after": share(skipping, "recovered", "quarter", "grey_detail"),
            "hue_before": share(plain, "recovered", "quarter", "chroma"),
            "hue_after": share(skipping, "recovered", "quarter", "chroma"),
        },
    )


def _spread(one: Examined, when: str) -> float:
    """How many times the largest relative gradient of a layer is the smallest."""
    values = [layer.relative for layer in (one.start if when == "start" else one.end).values()]
    return max(values) / min(values) if min(values) > 0 else math.inf


def vanishes(one: Examined) -> bool:
    """Whether a layer's relative gradient is smaller than another's by orders of magnitude, at the start or after."""
    return max(_spread(one, when) for when in ("start", "end")) > VANISHING


def _gradients(plain: Examined, skipping: Examined) -> Text:
    raised = {
        when: getattr(skipping, when)["block1"].relative > getattr(plain, when)["block1"].relative
        for when in ("start", "end")
    }
    if all(raised.values()):
        changed = "the skips raise it at both times"
    elif any(raised.values()):
        changed = f"the skips raise it {'at the start' if raised['start'] else 'after training'} only"
    else:
        changed = "the skips raise it at neither time"
    gone = vanishes(plain)
    source = "results.json: nets > {} > relative gradient > {}, largest over smallest"
    numbers = {
        f"spread_{when}": Number(_spread(plain, when), source.format(plain.net, when), ",.0f")
        for when in ("start", "end")
    }
    firsts = {
        f"{which}_{when}": looked_up(one, "relative gradient", when, "block1", spec=".3f")
        for which, one in (("plain", plain), ("skip", skipping))
        for when in ("start", "end")
    }
    return Text(
        "A third reason is often given: skips keep the gradients of the first layers from vanishing. "
        + ("Here they do vanish" if gone else "Here nothing vanishes")
        + f": in `{plain.net}`, which has no skips, the largest gradient of a layer (its norm over that of the layer's "
        "weights) is {spread_start} times the smallest at the start of training and {spread_end} times after it; "
        "vanishing would be orders of magnitude. With {layers} layers, most followed by batch normalisation, there is "
        "little for a gradient to vanish in. The first layer's is {plain_start} there and {skip_start} in "
        f"`{skipping.net}` at the start, {{plain_end}} and {{skip_end}} after training: {changed}.",
        {**numbers, **firsts, "layers": whole(len(plain.start), "kernels of the net")},
    )


_OPTIMISERS = {
    "adam": "Adam divides each weight's step by the size of its own recent gradients",
    "adamw": "Adam divides each weight's step by the size of its own recent gradients",
    "muon": "Muon makes every step of a kernel equally large",
}


def _optimiser(plain: Examined, skipping: Examined) -> Text:
    optimiser = read_config(plain.run).recipe.optimiser
    return Text(
        f"Besides, {_OPTIMISERS[optimiser]}, so that a small gradient alone would not hold a layer up: over the whole "
        f"training the first layer's weights went {{plain}} % of their norm in `{plain.net}` and {{skipping}} % in "
        f"`{skipping.net}`.",
        {
            "plain": looked_up(plain, "moved", "block1", spec=".0f", scale=100.0),
            "skipping": looked_up(skipping, "moved", "block1", spec=".0f", scale=100.0),
        },
    )


def draw_layers(nets: tuple[Examined, ...], folder: Path) -> Figure:
    """The layers' gradients of all the nets."""
    path = folder / "gradients.png"
    start, end = (
        {one.net: {layer: found.relative for layer, found in getattr(one, when).items()} for one in nets}
        for when in ("start", "end")
    )
    draw_gradients(start, end, path)
    return Figure(
        path,
        "Norm of the loss's gradient at each layer's kernel, over the norm of the kernel, on training batches (one "
        "seed). A net whose gradients vanish would rise by orders of magnitude from left to right.",
    )


def _summary(plain: Examined, skipping: Examined, *, near: bool, better: bool) -> Text:
    counts = [int(summary_of(one.run)["parameters"]) for one in (plain, skipping)]
    grey = _comes_back(plain)
    if not better:
        said = "As the skips did not make the net better here, there is no gain to explain."
    elif grey:
        said = "So of the reasons the first carries the gain" + (", on edges most." if near else ".")
    else:
        said = "So none of the reasons is borne out by these numbers."
    if better and not vanishes(plain):
        said += " Vanishing gradients do not explain it."
    return Text(
        f"{said} One thing is not told apart: the skips also make the net larger, from {{before}} to {{after}} "
        "parameters.",
        {
            name: whole(count, f"{one.run}/summary.json: parameters")
            for name, count, one in zip(("before", "after"), counts, (plain, skipping), strict=True)
        },
    )


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


def stride_reasons(pool: Examined, strided: Examined, ground: Ground, folder: Path, *, better: bool) -> list[Block]:
    """The reasons, with the numbers that they rest on; ``better``: whether there is a gain to be explained."""
    near, gain = gain_near_edges(pool, strided, ground, folder)
    return [
        _size(pool, strided),
        _kept(pool, strided),
        probe_table(pool, strided),
        gain,
        draw_edges((pool, strided), folder),
        _stride_summary(pool, strided, near=near, better=better),
    ]


def _size(pool: Examined, strided: Examined) -> Text:
    before, after = (
        whole(int(summary_of(one.run)["parameters"]), f"{one.run}/summary.json: parameters") for one in (pool, strided)
    )
    if before.value == after.value:
        return Text("Size is no reason: both nets have {count} parameters.", {"count": after})
    return Text(
        "The nets differ in size, {before} parameters against {after}, which may be a reason of its own.",
        {"before": before, "after": after},
    )


def _keeps_more(pool: Examined, strided: Examined) -> bool:
    before, after = (one.recovered["quarter"].grey_detail for one in (pool, strided))
    return after > before + NOTICEABLE


def _kept(pool: Examined, strided: Examined) -> Text:
    more = _keeps_more(pool, strided)
    return Text(
        "What gets through the bottleneck: a pooling keeps the largest of four neighbours and forgets which it was; a "
        "convolution with stride weighs all of them, with weights that are learnt. "
        + ("This is borne out" if more else "This is not borne out")
        + f": from `{pool.net}`'s bottleneck a linear map reads back {{before}} % of the variance of grey's fine "
        f"detail, from `{strided.net}`'s {{after}} %. By the grey that is read back, a table of grey values finds the "
        "true colour of {table_before} and {table_after} % of the pixels.",
        {
            "before": share(pool, "recovered", "quarter", "grey_detail"),
            "after": share(strided, "recovered", "quarter", "grey_detail"),
            "table_before": share(pool, "recovered", "quarter", "table_accuracy"),
            "table_after": share(strided, "recovered", "quarter", "table_accuracy"),
        },
    )


def _stride_summary(pool: Examined, strided: Examined, *, near: bool, better: bool) -> Text:
    more = _keeps_more(pool, strided)
    if not better:
        said = "As the second net is not better here, there is no gain that these reasons would have to explain."
    elif more and near:
        said = "Both tests support the reason “strides keep fine detail that pooling throws away”."
    elif more or near:
        said = "Of the two tests one supports the reason “strides keep fine detail that pooling throws away”."
    else:
        said = "Neither test supports the reason “strides keep fine detail that pooling throws away”."
    return Text(
        f"{said} What these runs cannot tell apart is the way down from the way up: `{strided.net}` has strides for "
        "poolings and also transposed convolutions for plain upsampling, and only a net with one of the two would say "
        "how much each brings."
    )
