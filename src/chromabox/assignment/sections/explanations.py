"""Explanations of the results of the three models. Each explanation is tested on the trained models.

The explanations cover the image quality of PoolUpsampleNet, the effect of strided and transposed convolutions, and the
effect of skip connections.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chromabox.assignment.analysis.net_analysis import (
    EDGE_DISTANCE_BINS,
    NUM_ABLATION_IMAGES,
    AnalysisData,
    NetAnalysis,
)
from chromabox.assignment.analysis.plots import plot_accuracy_by_edge_distance, plot_gradients
from chromabox.assignment.analysis.statistics import difference_between_regions
from chromabox.assignment.sections.numbers import int_number, record_results
from chromabox.engine.runs import RunDir
from chromabox.report.document.model import Block, Cell, Figure, Number, Table, Text

#: Differences in R² or in accuracy (as a fraction) that are smaller than this are ignored.
MIN_DIFFERENCE = 0.01
#: Gradients count as vanishing if the ratio of the largest to the smallest relative gradient exceeds this value.
VANISHING_RATIO = 100.0
#: Images are called blurred if the relative energy of their fine detail is below this value. Their detail is called
#: partly wrong if its correlation is below it. A layer is said to lose detail if R² of a linear probe is below it.
MIN_DETAIL_FRACTION = 0.9
#: Images are called dull if their proportion of vivid pixels is below this fraction of the true proportion.
MIN_VIVID_FRACTION = 0.9
#: The mean probability of vivid colours is called close to their true frequency if the two differ by less than this.
MAX_VIVID_GAP = 0.05


def blur_text(analysis: NetAnalysis) -> Text:
    """Describe whether the images have the fine detail of the ground truth, and where detail is lost."""
    energy, correlation = analysis.high_frequencies["energy"], analysis.high_frequencies["correlation"]
    if energy < MIN_DETAIL_FRACTION:
        verdict = "The images are blurred"
    elif correlation < MIN_DETAIL_FRACTION:
        verdict = "The images have enough fine detail, but part of it is wrong"
    else:
        verdict = "The images preserve the fine detail"
    is_lost = analysis.probe_scores["quarter"]["grey_detail"] < MIN_DETAIL_FRACTION
    near, far = analysis.accuracy_by_edge_distance.accuracy[0], analysis.accuracy_by_edge_distance.accuracy[-1]
    return Text(
        "{verdict}: the deviations of the pixels from the mean of their 4 × 4 block have "
        "{net.high_frequencies.energy:.1%} of the energy of the same deviations in the true colours, and a correlation "
        "of {net.high_frequencies.correlation:.2f} with them. In the bottleneck, after two halvings of the resolution, "
        "an image is represented by {net.bottleneck_shape.0:.0f} channels of {net.bottleneck_shape.1:.0f} × "
        "{net.bottleneck_shape.2:.0f} positions. A linear probe on one position, fitted on training images, explains "
        "{net.probe_scores.quarter.grey_detail:.1%} of the variance of the fine detail of the grey input. Before the "
        "second halving, such a probe explains {net.probe_scores.half.grey_detail:.1%}. {loss} On the edges of the "
        "greyscale image, {net.accuracy_by_edge_distance.accuracy.0:.1%} of the pixels are correct; at a distance of "
        "{away} or more pixels from an edge, {net.accuracy_by_edge_distance.accuracy.-1:.1%} are correct{remark}.",
        net=analysis.source,
        verdict=verdict,
        loss="Downsampling loses detail, and no later layer can restore it." if is_lost else "Little detail is lost.",
        away=int_number(int(EDGE_DISTANCE_BINS[-2]), "lower bound of the last distance bin"),
        remark=", as expected for images without fine detail" if near < far else "",
    )


def dullness_text(analysis: NetAnalysis) -> Text:
    """Describe whether vivid colours are predicted as often as they occur, and whether their probability is right."""
    is_dull = analysis.vivid_stats["predicted_fraction"] < MIN_VIVID_FRACTION * analysis.vivid_stats["true_fraction"]
    is_close = abs(analysis.vivid_stats["mean_probability"] - analysis.vivid_stats["true_fraction"]) < MAX_VIVID_GAP
    explanation = ""
    if is_dull and is_close:
        explanation = (
            " The model thus assigns enough probability to vivid colours, but it is seldom confident enough of one hue "
            "to rank it first, and only the most likely colour of a pixel is shown."
        )
    return Text(
        "The colours {verdict} too dull: the vivid half of the palette (the half with the higher chroma in CIELAB) "
        "contains the true colour of {net.vivid_stats.true_fraction:.1%} of the pixels and the predicted colour of "
        "{net.vivid_stats.predicted_fraction:.1%}. The accuracy is {net.vivid_stats.vivid_accuracy:.1%} on vivid "
        "pixels and {net.vivid_stats.dull_accuracy:.1%} on dull pixels. On average, the model gives vivid colours a "
        "probability of {net.vivid_stats.mean_probability:.1%}, which is {closeness} their true frequency."
        "{explanation}",
        net=analysis.source,
        verdict="are" if is_dull else "are not",
        closeness="close to" if is_close else "not close to",
        explanation=explanation,
    )


def explain_strides(
    pool: NetAnalysis, strided: NetAnalysis, data: AnalysisData, folder: Path, *, is_better: bool
) -> list[Block]:
    """Test explanations of the effect of strided convolutions; ``is_better`` is True if the second model is better."""
    gains_near_edges, edge_blocks = _edge_blocks((pool, strided), data, folder)
    before, after = (analysis.probe_scores["quarter"]["grey_detail"] for analysis in (pool, strided))
    keeps_more = after > before + MIN_DIFFERENCE
    sizes = {RunDir(analysis.run).summary()["parameters"] for analysis in (pool, strided)}
    size_remark = "The models differ in size, which may contribute to the difference in their results."
    if len(sizes) == 1:
        size_remark = (
            "The size does not explain the difference, because both models have the same number of parameters."
        )
    support = ("Neither test supports", "One of the two tests supports", "Both tests support")
    conclusion = (
        f"{support[keeps_more + gains_near_edges]} the explanation that strided convolutions preserve fine detail that "
        "pooling discards."
    )
    if not is_better:
        conclusion = "The second model is not better in these runs, so there is no gain to explain."
    return [
        Text(size_remark),
        Text(
            "Detail in the bottleneck: max pooling keeps the largest of four neighbouring values and discards its "
            "position; a strided convolution combines all four with learnt weights, so it can preserve more detail. "
            "This is {not_}confirmed: a linear probe on the bottleneck of `{pool.model}` explains "
            "{pool.probe_scores.quarter.grey_detail:.1%} of the variance of the fine detail of the grey values, and a "
            "probe on that of `{strided.model}` explains {strided.probe_scores.quarter.grey_detail:.1%}.",
            pool=pool.source,
            strided=strided.source,
            not_="" if keeps_more else "not ",
        ),
        _probe_table(pool, strided),
        *edge_blocks,
        Text(
            f"{conclusion} These runs cannot separate downsampling from upsampling: `{strided.model}` replaces both "
            "pooling by strided convolutions and upsampling by transposed convolutions. Only a model with one of the "
            "two changes would show the contribution of each."
        ),
    ]


def explain_skips(
    without_skips: NetAnalysis,
    with_skips: NetAnalysis,
    data: AnalysisData,
    folder: Path,
    *,
    is_better: bool,
    other_analyses: tuple[NetAnalysis, ...],
) -> list[Block]:
    """Test the usual explanations of why skip connections help. The figures also show ``other_analyses``."""
    scores = without_skips.probe_scores
    before, after = scores["quarter"], with_skips.probe_scores["quarter"]
    restores_detail = scores["half"]["lookup_table_accuracy"] > before["lookup_table_accuracy"] + MIN_DIFFERENCE
    less_detail = after["grey_detail"] < before["grey_detail"] - MIN_DIFFERENCE
    more_hue = after["chroma"] > before["chroma"] + MIN_DIFFERENCE
    bottleneck_verdict = {
        (True, True): "Both predictions hold",
        (True, False): "Only the first prediction holds",
        (False, True): "Only the second prediction holds",
        (False, False): "Neither prediction holds",
    }[less_detail, more_hue]
    analyses = (*other_analyses, without_skips, with_skips)
    gains_near_edges, edge_blocks = _edge_blocks(analyses, data, folder)
    if not is_better:
        conclusion = "The skip connections did not improve the model in these runs, so there is no gain to explain."
    elif restores_detail:
        remark = ", which is largest on edges" if gains_near_edges else ""
        conclusion = f"Of these reasons, the first one explains the gain{remark}."
    else:
        conclusion = "None of these reasons is confirmed by the measurements."
    if is_better and not has_vanishing_gradients(without_skips):
        conclusion += " Vanishing gradients do not explain the gain."
    return [
        Text(
            "First reason: skip connections restore the detail that downsampling loses. This is {not_}confirmed: a "
            "linear probe on the bottleneck of `{plain.model}` explains {plain.probe_scores.quarter.grey_detail:.1%} "
            "of the variance of the fine detail of the grey values, and a probe on the half-resolution features, which "
            "the first skip connection carries, explains {plain.probe_scores.half.grey_detail:.1%}. This detail "
            "matters because each palette colour covers a narrow range of grey values. A lookup table from grey values "
            "to colours finds the true colour of {plain.probe_scores.quarter.lookup_table_accuracy:.1%} of the pixels "
            "from the grey values reconstructed from the bottleneck, and of "
            "{plain.probe_scores.half.lookup_table_accuracy:.1%} from those reconstructed from the half-resolution "
            "features.",
            plain=without_skips.source,
            not_="" if restores_detail else "not ",
        ),
        _probe_table(without_skips, with_skips),
        *edge_blocks,
        _ablation_text(with_skips),
        Text(
            "Second reason: a bottleneck that does not have to carry fine detail has more capacity for properties that "
            "require a large receptive field, such as the hue. The bottleneck should then contain less detail and more "
            "hue. {verdict}: linear probes explain {plain.probe_scores.quarter.grey_detail:.1%} of the variance of the "
            "fine grey detail from the bottleneck of `{plain.model}` and {skip.probe_scores.quarter.grey_detail:.1%} "
            "from that of `{skip.model}`. For the chroma of the target colours, they explain "
            "{plain.probe_scores.quarter.chroma:.1%} and {skip.probe_scores.quarter.chroma:.1%}.",
            plain=without_skips.source,
            skip=with_skips.source,
            verdict=bottleneck_verdict,
        ),
        *_gradient_blocks(analyses, folder),
        Text(
            f"{conclusion} The skip connections also increase the number of parameters. The effect of the size was not "
            "separated from the other effects."
        ),
    ]


def _ablation_text(with_skips: NetAnalysis) -> Text:
    """Describe how much accuracy is lost by replacing each skip connection, and which of them the model relies on."""
    intact = with_skips.skip_ablations["none intact"]["accuracy"]
    costs = {skip: intact - with_skips.skip_ablations[f"{skip} shuffled"]["accuracy"] for skip in ("half", "input")}
    used = [skip for skip, cost in costs.items() if cost > MIN_DIFFERENCE]
    names = {"half": "the half-resolution skip connection", "input": "the input skip connection"}
    conclusion = "The model hardly uses its skip connections"
    if len(used) == 2:
        conclusion = f"The model relies on both skip connections, mainly on {names[max(costs, key=costs.__getitem__)]}"
    elif used:
        conclusion = f"The model relies on {names.pop(used[0])} and hardly uses {names.popitem()[1]}"
    source = f"{with_skips.source.name}skip_ablations, none intact minus"
    return Text(
        "{conclusion}: replacing the features of a skip connection by those of another image costs {half} percentage "
        "points of accuracy for the half-resolution skip connection and {input} percentage points for the input skip "
        "connection (measured on at most {count} test images). This shows what the trained model relies on, not the "
        "accuracy of a model that is trained without the skip connection.",
        {skip: Number(100 * cost, f"{source} {skip} shuffled", ".1f") for skip, cost in costs.items()},
        conclusion=conclusion,
        count=int_number(NUM_ABLATION_IMAGES, "number of images for the ablation of skip connections"),
    )


def _gradient_ratios(analysis: NetAnalysis) -> dict[str, float]:
    """Return the ratio of the largest to the smallest relative gradient, at the "start" and "end" of training."""
    return {
        when: max(norms.values()) / min(norms.values()) if min(norms.values()) > 0 else math.inf
        for when, norms in analysis.to_json["relative gradient"].items()
    }


def has_vanishing_gradients(analysis: NetAnalysis) -> bool:
    """Return whether the relative gradients of the layers differ by orders of magnitude before or after training."""
    return max(_gradient_ratios(analysis).values()) > VANISHING_RATIO


def _gradient_blocks(analyses: Sequence[NetAnalysis], folder: Path) -> list[Block]:
    """Compare the gradients of the last two models, without and with skip connections; the figure shows all models."""
    *_, without_skips, with_skips = analyses
    initial, final = (
        {analysis.model: analysis.to_json["relative gradient"][when] for analysis in analyses}
        for when in ("start", "end")
    )
    path = folder / "gradients.png"
    plot_gradients(initial, final, path)
    text = Text(
        "A third reason is often given: skip connections prevent vanishing gradients in the first layers. {verdict} "
        "observed: in `{plain.model}`, which has no skip connections, the largest relative gradient of a layer (the "
        "norm of its gradient divided by the norm of its weights) is {start} times the smallest at the start of "
        "training and {end} times the smallest after training. Vanishing gradients would differ by orders of "
        "magnitude. With {layers} layers, most of them followed by batch normalisation, gradients have little "
        "opportunity to vanish. The relative gradient of the first layer is {plain.relative gradient.start.block1:.3f} "
        "in `{plain.model}` and {skip.relative gradient.start.block1:.3f} in `{skip.model}` at the start, and "
        "{plain.relative gradient.end.block1:.3f} and {skip.relative gradient.end.block1:.3f} after training.",
        {
            when: Number(ratio, f"{without_skips.source.name}relative gradient > {when}, largest over smallest", ",.0f")
            for when, ratio in _gradient_ratios(without_skips).items()
        },
        plain=without_skips.source,
        skip=with_skips.source,
        verdict=f"{'Vanishing' if has_vanishing_gradients(without_skips) else 'No vanishing'} gradients were",
        layers=int_number(len(without_skips.initial_gradients), "number of kernels of the model"),
    )
    caption = (
        "Norm of the gradient of the loss with respect to the kernel of each layer, divided by the norm of the kernel, "
        "on training batches (one seed). With vanishing gradients, a curve would rise by orders of magnitude from left "
        "to right."
    )
    return [text, Figure(path, caption)]


def _probe_table(*analyses: NetAnalysis) -> Table:
    """Return a table of the linear-probe scores for two inner layers of each model and for the input."""
    layers = {"quarter": "bottleneck", "half": "half resolution"}
    probes = [(f"{analysis.model}, {name}", analysis, layer) for analysis in analyses for layer, name in layers.items()]
    columns = ("grey_detail", "colour_detail", "chroma", "lookup_table_accuracy")
    rows: list[list[Cell]] = [
        [name, *(analysis.source.number("probe_scores", layer, column, spec=".1%") for column in columns)]
        for name, analysis, layer in [*probes, ("input", analyses[0], "input")]
    ]
    return Table(
        "Linear probes (ridge regression, fitted on training images and evaluated on test images) of 4 × 4 blocks of "
        "pixels: R² of the fine detail of the grey values and of the target colours, R² of the chroma of the target "
        "colours, and the accuracy of a lookup table from each grey value to its most frequent colour, applied to the "
        "reconstructed grey values",
        ["probed layer", "grey detail (%)", "colour detail (%)", "chroma (%)", "lookup accuracy (%)"],
        rows,
    )


def _edge_blocks(analyses: Sequence[NetAnalysis], data: AnalysisData, folder: Path) -> tuple[bool, list[Block]]:
    """Compare how much the last model gains over the model before it on edges and far from edges.

    Return whether the gain is larger on edges, and a text and a figure. The figure shows all models.
    """
    *_, first, second = analyses
    change = 100 * (second.predictions.is_correct.astype(np.float64) - first.predictions.is_correct)
    near = data.edge_distances < EDGE_DISTANCE_BINS[1]
    far = np.isfinite(data.edge_distances) & (data.edge_distances >= EDGE_DISTANCE_BINS[-2])
    interval = difference_between_regions(change, far, near)
    gains_near_edges = interval.excludes_zero and interval.value > 0
    if gains_near_edges:
        conclusion = "The gain is therefore largest where the image has fine detail"
    elif interval.excludes_zero:
        conclusion = "The gain is therefore not concentrated on edges"
    else:
        conclusion = "The interval contains 0, so these images do not show where the gain is larger"
    name = f"{first.model} to {second.model}"
    text = Text(
        "On edges, `{first.model}` classifies {first.accuracy_by_edge_distance.accuracy.0:.1%} of the pixels correctly "
        "and `{second.model}` {second.accuracy_by_edge_distance.accuracy.0:.1%}; at a distance of {away} or more "
        "pixels from an edge, the accuracies are {first.accuracy_by_edge_distance.accuracy.-1:.1%} and "
        "{second.accuracy_by_edge_distance.accuracy.-1:.1%}. The change on edges minus the change far from edges is "
        "{change.value:+.1f} percentage points (95 % confidence interval {change.low:+.1f} to {change.high:+.1f}, "
        "{change.method}). {conclusion}.",
        first=first.source,
        second=second.source,
        away=int_number(int(EDGE_DISTANCE_BINS[-2]), "lower bound of the last distance bin"),
        change=record_results(folder, interval, "gain on edges less gain far from them", name),
        conclusion=conclusion,
    )
    path = folder / f"edges-{'-'.join(analysis.model for analysis in analyses)}.png"
    results = {analysis.model: analysis.accuracy_by_edge_distance for analysis in analyses}
    plot_accuracy_by_edge_distance(results, EDGE_DISTANCE_BINS, path)
    caption = (
        "Accuracy against the distance from the nearest edge of the greyscale image. Edges are the 10 % of the pixels "
        f"with the steepest gradient (Sobel operator). First {len(change)} test images, one seed."
    )
    return gains_near_edges, [text, Figure(path, caption)]
