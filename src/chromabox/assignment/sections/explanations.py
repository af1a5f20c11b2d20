"""Why skip connections help, or do not: the reasons that textbooks give, each tested on the nets that were trained.

Whether the first net's pictures look good, and why not.

Why strided and transposed convolutions do better than pooling and upsampling, or do not: each reason is tested.
"""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from chromabox.assignment.analysis.net_analysis import (
    EDGE_DISTANCE_BINS,
    NUM_ABLATION_IMAGES,
    AnalysisData,
    NetAnalysis,
)
from chromabox.assignment.analysis.plots import plot_gradients
from chromabox.assignment.sections.comparison import MIN_DIFFERENCE, edge_distance_figure, gain_near_edges, probe_table
from chromabox.assignment.sections.numbers import (
    RESULTS_FILE,
    analysis_number,
    analysis_percent,
    int_number,
    record_results,
)
from chromabox.colour.data.datasets import ColourDataset
from chromabox.colour.evaluation.evaluate import Evaluation, EvaluationRow, evaluate
from chromabox.colour.training.train import read_config
from chromabox.colour.weights.checkpoint import load_palette_model
from chromabox.experiments.runs import read_summary
from chromabox.report.document.model import Block, Cell, Figure, Number, Table, Text
from chromabox.report.plots import plot_confusion_matrix

#: Gradients of two layers that are less than so many times apart are not said to vanish.
VANISHING_RATIO = 100.0


def skip_explanation_blocks(
    without_skips: NetAnalysis,
    with_skips: NetAnalysis,
    data: AnalysisData,
    folder: Path,
    *,
    is_better: bool,
    other_analyses: tuple[NetAnalysis, ...],
) -> list[Block]:
    """The reasons, with their numbers; ``others`` are nets to be drawn beside the two."""
    near, gain = gain_near_edges(without_skips, with_skips, data, folder)
    return [
        Text(
            "First reason: what the strides lose comes back at the end. " + _restored_detail_template(without_skips),
            _restored_detail_numbers(without_skips),
        ),
        probe_table(without_skips, with_skips),
        _dull_colours_text(without_skips, with_skips),
        gain,
        edge_distance_figure((*other_analyses, without_skips, with_skips), folder),
        _ablation_table(with_skips),
        _ablation_text(with_skips),
        _bottleneck_text(without_skips, with_skips),
        _gradients_text(without_skips, with_skips),
        _optimiser_text(without_skips, with_skips),
        gradient_figure((*other_analyses, without_skips, with_skips), folder),
        _skip_summary(without_skips, with_skips, gains_near_edges=near, is_better=is_better),
    ]


def _skip_restores_detail(without_skips: NetAnalysis) -> bool:
    """Whether more of the task's information is at half resolution than in the bottleneck."""
    lost, there = (without_skips.probe_scores[source].lookup_table_accuracy for source in ("quarter", "half"))
    return there > lost + MIN_DIFFERENCE


def _restored_detail_template(without_skips: NetAnalysis) -> str:
    said = "is borne out" if _skip_restores_detail(without_skips) else "is not borne out"
    return (
        f"This {said}: from `{without_skips.model}`'s bottleneck a linear map reads back {{detail}} % of the variance of grey's "
        "fine detail, from the half resolution that the first skip carries {half} %. It matters, because the "
        "palette's colours are narrow bands of grey: by the grey read back from the bottleneck a table of grey values "
        "finds the true colour of {table} % of the pixels, from half resolution {table_half} %, from the input itself "
        "{table_input} %."
    )


def _restored_detail_numbers(without_skips: NetAnalysis) -> dict[str, Number]:
    return {
        "detail": analysis_percent(without_skips, "recovered", "quarter", "grey_detail"),
        "half": analysis_percent(without_skips, "recovered", "half", "grey_detail"),
        "table": analysis_percent(without_skips, "recovered", "quarter", "table_accuracy"),
        "table_half": analysis_percent(without_skips, "recovered", "half", "table_accuracy"),
        "table_input": analysis_percent(without_skips, "recovered", "input", "table_accuracy"),
    }


def _dull_colours_text(without_skips: NetAnalysis, with_skips: NetAnalysis) -> Text:
    """Fine grey can tell one dull colour from another, but not a hue."""
    dull = with_skips.vivid_stats.dull_accuracy - without_skips.vivid_stats.dull_accuracy
    vivid = with_skips.vivid_stats.vivid_accuracy - without_skips.vivid_stats.vivid_accuracy
    return Text(
        "If the skips bring back grey and nothing else, they should help with dull colours, which differ in lightness, "
        "and not with hues. Of the pixels of dull colour `"
        + f"{without_skips.model}` has {{dull_before}} % right and `{with_skips.model}` {{dull_after}} %, of those of vivid colour "
        "{vivid_before} and {vivid_after} %: "
        + (
            "so it is."
            if dull > vivid + MIN_DIFFERENCE and dull > MIN_DIFFERENCE
            else "the dull ones do not gain more, which speaks against it."
        ),
        {
            "dull_before": analysis_percent(without_skips, "vividness", "dull_right"),
            "dull_after": analysis_percent(with_skips, "vividness", "dull_right"),
            "vivid_before": analysis_percent(without_skips, "vividness", "vivid_right"),
            "vivid_after": analysis_percent(with_skips, "vividness", "vivid_right"),
        },
    )


_ABLATION_NAMES = {
    "none intact": "as it is",
    "half zeroed": "half resolution, zeros",
    "half shuffled": "half resolution, another picture's",
    "input zeroed": "the input, zeros",
    "input shuffled": "the input, another picture's",
    "both zeroed": "both, zeros",
    "both shuffled": "both, another picture's",
}


def _ablation_table(with_skips: NetAnalysis) -> Table:
    return Table(
        f"`{with_skips.model}`, trained, on {NUM_ABLATION_IMAGES} test pictures at most, with what a skip carries replaced",
        ["skip, replaced by", "loss", "accuracy %"],
        [
            [
                name,
                analysis_number(with_skips, "skips", key, "loss", spec=".3f"),
                analysis_percent(with_skips, "skips", key, "accuracy"),
            ]
            for key, name in _ABLATION_NAMES.items()
        ],
    )


def _ablation_text(with_skips: NetAnalysis) -> Text:
    intact = with_skips.skip_ablations["none intact"]["accuracy"]
    costs = {skip: intact - with_skips.skip_ablations[f"{skip} shuffled"]["accuracy"] for skip in ("half", "input")}
    needed = [skip for skip, cost in costs.items() if cost > MIN_DIFFERENCE]
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
            skip: Number(
                100 * cost, f"results.json: nets > {with_skips.model} > skips, intact less {skip} shuffled", ".1f"
            )
            for skip, cost in costs.items()
        },
    )


def _bottleneck_text(without_skips: NetAnalysis, with_skips: NetAnalysis) -> Text:
    """Whether a bottleneck that need not carry detail carries something else instead."""
    before, after = (one.probe_scores["quarter"] for one in (without_skips, with_skips))
    relieved = after.grey_detail < before.grey_detail - MIN_DIFFERENCE
    more = after.chroma > before.chroma + MIN_DIFFERENCE
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
        f"`{without_skips.model}`'s bottleneck to {{detail_before}} % and from `{with_skips.model}`'s to {{detail_after}} %, what of "
        "the target colours is not grey to {hue_before} and {hue_after} %.",
        {
            "detail_before": analysis_percent(without_skips, "recovered", "quarter", "grey_detail"),
            "detail_after": analysis_percent(with_skips, "recovered", "quarter", "grey_detail"),
            "hue_before": analysis_percent(without_skips, "recovered", "quarter", "chroma"),
            "hue_after": analysis_percent(with_skips, "recovered", "quarter", "chroma"),
        },
    )


def _gradient_ratio(analysis: NetAnalysis, when: str) -> float:
    """How many times the largest relative gradient of a layer is the smallest."""
    values = [
        layer.relative_norm
        for layer in (analysis.initial_gradients if when == "start" else analysis.final_gradients).values()
    ]
    return max(values) / min(values) if min(values) > 0 else math.inf


def has_vanishing_gradients(analysis: NetAnalysis) -> bool:
    """Whether a layer's relative gradient is smaller than another's by orders of magnitude, at the start or after."""
    return max(_gradient_ratio(analysis, when) for when in ("start", "end")) > VANISHING_RATIO


def _gradients_text(without_skips: NetAnalysis, with_skips: NetAnalysis) -> Text:
    raised = {
        when: getattr(with_skips, when)["block1"].relative_norm > getattr(without_skips, when)["block1"].relative_norm
        for when in ("start", "end")
    }
    if all(raised.values()):
        changed = "the skips raise it at both times"
    elif any(raised.values()):
        changed = f"the skips raise it {'at the start' if raised['start'] else 'after training'} only"
    else:
        changed = "the skips raise it at neither time"
    gone = has_vanishing_gradients(without_skips)
    source = "results.json: nets > {} > relative gradient > {}, largest over smallest"
    numbers = {
        f"spread_{when}": Number(_gradient_ratio(without_skips, when), source.format(without_skips.model, when), ",.0f")
        for when in ("start", "end")
    }
    firsts = {
        f"{which}_{when}": analysis_number(one, "relative gradient", when, "block1", spec=".3f")
        for which, one in (("plain", without_skips), ("skip", with_skips))
        for when in ("start", "end")
    }
    return Text(
        "A third reason is often given: skips keep the gradients of the first layers from vanishing. "
        + ("Here they do vanish" if gone else "Here nothing vanishes")
        + f": in `{without_skips.model}`, which has no skips, the largest gradient of a layer (its norm over that of the layer's "
        "weights) is {spread_start} times the smallest at the start of training and {spread_end} times after it; "
        "vanishing would be orders of magnitude. With {layers} layers, most followed by batch normalisation, there is "
        "little for a gradient to vanish in. The first layer's is {plain_start} there and {skip_start} in "
        f"`{with_skips.model}` at the start, {{plain_end}} and {{skip_end}} after training: {changed}.",
        {**numbers, **firsts, "layers": int_number(len(without_skips.initial_gradients), "kernels of the net")},
    )


_OPTIMISER_NOTES = {
    "adam": "Adam divides each weight's step by the size of its own recent gradients",
    "adamw": "Adam divides each weight's step by the size of its own recent gradients",
    "muon": "Muon makes every step of a kernel equally large",
}


def _optimiser_text(without_skips: NetAnalysis, with_skips: NetAnalysis) -> Text:
    optimiser = read_config(without_skips.run).recipe.optimizer
    return Text(
        f"Besides, {_OPTIMISER_NOTES[optimiser]}, so that a small gradient alone would not hold a layer up: over the whole "
        f"training the first layer's weights went {{plain}} % of their norm in `{without_skips.model}` and {{skipping}} % in "
        f"`{with_skips.model}`.",
        {
            "plain": analysis_number(without_skips, "moved", "block1", spec=".0f", scale=100.0),
            "skipping": analysis_number(with_skips, "moved", "block1", spec=".0f", scale=100.0),
        },
    )


def gradient_figure(analyses: tuple[NetAnalysis, ...], folder: Path) -> Figure:
    """The layers' gradients of all the nets."""
    path = folder / "gradients.png"
    start, end = (
        {one.model: {layer: found.relative_norm for layer, found in getattr(one, when).items()} for one in analyses}
        for when in ("start", "end")
    )
    plot_gradients(start, end, path)
    return Figure(
        path,
        "Norm of the loss's gradient at each layer's kernel, over the norm of the kernel, on training batches (one "
        "seed). A net whose gradients vanish would rise by orders of magnitude from left to right.",
    )


def _skip_summary(
    without_skips: NetAnalysis, with_skips: NetAnalysis, *, gains_near_edges: bool, is_better: bool
) -> Text:
    counts = [int(read_summary(one.run)["parameters"]) for one in (without_skips, with_skips)]
    grey = _skip_restores_detail(without_skips)
    if not is_better:
        said = "As the skips did not make the net better here, there is no gain to explain."
    elif grey:
        said = "So of the reasons the first carries the gain" + (", on edges most." if gains_near_edges else ".")
    else:
        said = "So none of the reasons is borne out by these numbers."
    if is_better and not has_vanishing_gradients(without_skips):
        said += " Vanishing gradients do not explain it."
    return Text(
        f"{said} One thing is not told apart: the skips also make the net larger, from {{before}} to {{after}} "
        "parameters.",
        {
            name: int_number(count, f"{one.run}/summary.json: parameters")
            for name, count, one in zip(("before", "after"), counts, (without_skips, with_skips), strict=True)
        },
    )


#: Below this part of the true detail, in energy or in correlation, pictures are called blurred.
MIN_DETAIL_FRACTION = 0.9

#: Below this part of the true share of vivid pixels, pictures are called dull.
MIN_VIVID_FRACTION = 0.9

#: A net whose probability of vivid colours is nearer than this to their share is said to know of them.
MAX_VIVID_GAP = 0.05


def baseline_blocks(model: str, run: Path, analysis_data: AnalysisData, folder: Path) -> list[Block]:
    """The net's scores beside what no net and no palette beats, whether its pictures look good, and its mistakes."""
    data = analysis_data.inputs.data
    found = evaluate(load_palette_model(run), ColourDataset(data.train, data.test))
    record_results(folder, "evaluation", {model: found.as_json()["rows"]})
    return [
        _baseline_table(model, found),
        _quality_text(model, found),
        confusion_figure(model, found.confusion, analysis_data, folder),
    ]


def confusion_figure(
    model: str, confusion: Int64[np.ndarray, "truth prediction"], data: AnalysisData, folder: Path
) -> Figure:
    """Where the true colours' pixels went, drawn by swatch."""
    path = folder / f"confusion-{model}.png"
    plot_confusion_matrix(confusion, data.inputs.palette.colours, path, "")
    return Figure(
        path,
        f"Where each true colour's pixels go (`{model}`, one seed): a row adds to one; on the diagonal are those that "
        "are right.",
    )


def _score_cell(model: str, row: EvaluationRow, key: str, spec: str, scale: float = 1.0) -> Cell:
    value = getattr(row, key)
    return (
        "–"
        if value is None
        else Number(scale * value, f"{RESULTS_FILE}: evaluation > {model} > {row.name} > {key}", spec)
    )


def _baseline_table(model: str, evaluation: Evaluation) -> Table:
    columns = (("loss", ".4f", 1.0), ("accuracy", ".2f", 100.0), ("psnr", ".2f", 1.0), ("delta_e", ".2f", 1.0))
    return Table(
        f"`{model}` (one seed) on all test pictures, beside what needs no net and the ceiling that the palette sets. "
        "Colourfulness after Hasler and Süsstrunk: 15 is slightly, 33 moderately colourful",
        ["", "loss", "accuracy %", "PSNR dB", "ΔE2000", "colourfulness"],
        [
            [
                row.name,
                *(_score_cell(model, row, *column) for column in columns),
                _score_cell(model, row, "colourfulness", ".1f"),
            ]
            for row in evaluation.rows
        ],
    )


def _quality_text(model: str, evaluation: Evaluation) -> Text:
    ours, grey, table = (evaluation.row(name) for name in ("net", "grey", "grey value's colour"))
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
            "ours": _score_number(model, ours, "delta_e", ".2f"),
            "grey": _score_number(model, grey, "delta_e", ".2f"),
            "table": _score_number(model, table, "accuracy", ".1f", 100.0),
            "right": _score_number(model, ours, "accuracy", ".1f", 100.0),
            "ceiling": _score_number(model, evaluation.row("palette oracle"), "delta_e", ".2f"),
        },
    )


def _score_number(model: str, row: EvaluationRow, key: str, spec: str, scale: float = 1.0) -> Number:
    cell = _score_cell(model, row, key, spec, scale)
    assert isinstance(cell, Number)
    return cell


def blur_text(analysis: NetAnalysis) -> Text:
    """Whether the net's pictures have the fine detail of the true ones, and where it is lost."""
    energy, correlation = analysis.high_frequencies.energy, analysis.high_frequencies.correlation
    if energy < MIN_DETAIL_FRACTION:
        said = "The pictures are blurred"
    elif correlation < MIN_DETAIL_FRACTION:
        said = "The pictures have detail enough, but partly not the true one"
    else:
        said = "The pictures keep the fine detail"
    lost = analysis.probe_scores["quarter"].grey_detail < MIN_DETAIL_FRACTION
    near, far = analysis.accuracy_by_edge_distance.accuracy[0], analysis.accuracy_by_edge_distance.accuracy[-1]
    return Text(
        f"{said}: what makes the pixels of a 4 × 4 block differ has {{energy}} % of the energy that it has in the true "
        "colours, and a correlation of {correlation} with it. Halved twice, a picture is {channels} channels of "
        "{height} × {width} places. From those of one place a linear map, fitted on training pictures, reads back "
        "{quarter} % of the variance of that detail in the grey input, against {half} % before the second halving"
        + (": detail is lost on the way down, and no later layer can bring it back." if lost else ": little is lost.")
        + " On the edges of the grey picture {near} % of the pixels are right, {away} or more pixels away {far} %"
        + (", as one expects of a picture without its detail." if near < far else "."),
        {
            "energy": analysis_percent(analysis, "detail", "energy"),
            "correlation": analysis_number(analysis, "detail", "correlation", spec=".2f"),
            "channels": analysis_number(analysis, "bottleneck", 0, spec=".0f"),
            "height": analysis_number(analysis, "bottleneck", 1, spec=".0f"),
            "width": analysis_number(analysis, "bottleneck", 2, spec=".0f"),
            "quarter": analysis_percent(analysis, "recovered", "quarter", "grey_detail"),
            "half": analysis_percent(analysis, "recovered", "half", "grey_detail"),
            "near": analysis_percent(analysis, "by_distance", "accuracy", 0),
            "far": analysis_percent(analysis, "by_distance", "accuracy", -1),
            "away": int_number(int(EDGE_DISTANCE_BINS[-2]), "the last band's lower bound"),
        },
    )


def dullness_text(analysis: NetAnalysis, data: AnalysisData) -> Text:
    """Whether vivid colours are given as often as they are true, and whether the net knows how unsure it is."""
    dull = analysis.vivid_stats.predicted_fraction < MIN_VIVID_FRACTION * analysis.vivid_stats.true_fraction
    aware = abs(analysis.vivid_stats.mean_probability - analysis.vivid_stats.true_fraction) < MAX_VIVID_GAP
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
            "true": analysis_percent(analysis, "vividness", "true"),
            "said": analysis_percent(analysis, "vividness", "said"),
            "vivid": analysis_percent(analysis, "vividness", "vivid_right"),
            "dulls": analysis_percent(analysis, "vividness", "dull_right"),
            "ours": analysis_number(analysis, "looks", "colourfulness"),
            "truth": Number(data.true_colourfulness, "colourfulness of the first test pictures", ".1f"),
            "expected": analysis_percent(analysis, "vividness", "expected"),
            "hue": analysis_percent(analysis, "recovered", "quarter", "chroma"),
        },
    )


def stride_explanation_blocks(
    pool: NetAnalysis, strided: NetAnalysis, data: AnalysisData, folder: Path, *, is_better: bool
) -> list[Block]:
    """The reasons, with the numbers that they rest on; ``better``: whether there is a gain to be explained."""
    near, gain = gain_near_edges(pool, strided, data, folder)
    return [
        _size_text(pool, strided),
        _kept_detail_text(pool, strided),
        probe_table(pool, strided),
        gain,
        edge_distance_figure((pool, strided), folder),
        _stride_summary(pool, strided, gains_near_edges=near, is_better=is_better),
    ]


def _size_text(pool: NetAnalysis, strided: NetAnalysis) -> Text:
    before, after = (
        int_number(int(read_summary(one.run)["parameters"]), f"{one.run}/summary.json: parameters")
        for one in (pool, strided)
    )
    if before.value == after.value:
        return Text("Size is no reason: both nets have {count} parameters.", {"count": after})
    return Text(
        "The nets differ in size, {before} parameters against {after}, which may be a reason of its own.",
        {"before": before, "after": after},
    )


def _keeps_more_detail(pool: NetAnalysis, strided: NetAnalysis) -> bool:
    before, after = (one.probe_scores["quarter"].grey_detail for one in (pool, strided))
    return after > before + MIN_DIFFERENCE


def _kept_detail_text(pool: NetAnalysis, strided: NetAnalysis) -> Text:
    more = _keeps_more_detail(pool, strided)
    return Text(
        "What gets through the bottleneck: a pooling keeps the largest of four neighbours and forgets which it was; a "
        "convolution with stride weighs all of them, with weights that are learnt. "
        + ("This is borne out" if more else "This is not borne out")
        + f": from `{pool.model}`'s bottleneck a linear map reads back {{before}} % of the variance of grey's fine "
        f"detail, from `{strided.model}`'s {{after}} %. By the grey that is read back, a table of grey values finds the "
        "true colour of {table_before} and {table_after} % of the pixels.",
        {
            "before": analysis_percent(pool, "recovered", "quarter", "grey_detail"),
            "after": analysis_percent(strided, "recovered", "quarter", "grey_detail"),
            "table_before": analysis_percent(pool, "recovered", "quarter", "table_accuracy"),
            "table_after": analysis_percent(strided, "recovered", "quarter", "table_accuracy"),
        },
    )


def _stride_summary(pool: NetAnalysis, strided: NetAnalysis, *, gains_near_edges: bool, is_better: bool) -> Text:
    more = _keeps_more_detail(pool, strided)
    if not is_better:
        said = "As the second net is not better here, there is no gain that these reasons would have to explain."
    elif more and gains_near_edges:
        said = "Both tests support the reason “strides keep fine detail that pooling throws away”."
    elif more or gains_near_edges:
        said = "Of the two tests one supports the reason “strides keep fine detail that pooling throws away”."
    else:
        said = "Neither test supports the reason “strides keep fine detail that pooling throws away”."
    return Text(
        f"{said} What these runs cannot tell apart is the way down from the way up: `{strided.model}` has strides for "
        "poolings and also transposed convolutions for plain upsampling, and only a net with one of the two would say "
        "how much each brings."
    )
