"""Why skip connections help, or do not: the reasons that textbooks give, each tested on the nets that were trained."""

import math
from pathlib import Path

from chromabox.colour.training.train import read_config
from chromabox.report.found import summary_of
from chromabox.report.handout.compared import NOTICEABLE, draw_edges, gain_near_edges, probe_table
from chromabox.report.handout.examined import ABLATED, Examined, Ground
from chromabox.report.handout.stated import looked_up, share, whole
from chromabox.report.why import draw_gradients
from chromabox.report.written.document import Block, Figure, Number, Table, Text

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
