"""Explanations of the results of the three models, each tested on the trained models.

They cover the image quality of PoolUpsampleNet, the effect of strided and transposed convolutions, and the effect of
skip connections.
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
    int_number,
    record_results,
    summary_source,
)
from chromabox.colour.data.datasets import ColourDataset
from chromabox.colour.evaluation.evaluate import Evaluation, evaluate
from chromabox.colour.training.train import read_config
from chromabox.colour.weights.checkpoint import load_palette_model
from chromabox.report.document.model import Block, Figure, Number, Source, Table, Text
from chromabox.report.plots import plot_confusion_matrix

#: Gradients count as vanishing if the largest relative gradient of a layer exceeds the smallest by this factor.
VANISHING_RATIO = 100.0
#: Images are called blurred if the energy or correlation of their fine detail is below this fraction.
MIN_DETAIL_FRACTION = 0.9
#: Images are called dull if their proportion of vivid pixels is below this fraction of the true proportion.
MIN_VIVID_FRACTION = 0.9
#: The mean probability of vivid colours is called close to their true frequency if it differs by less than this.
MAX_VIVID_GAP = 0.05
#: The fields of an analysis that contain gradients, by the time of measurement.
GRADIENT_FIELDS = {"start": "initial_gradients", "end": "final_gradients"}


def skip_explanation_blocks(
    without_skips: NetAnalysis,
    with_skips: NetAnalysis,
    data: AnalysisData,
    folder: Path,
    *,
    is_better: bool,
    other_analyses: tuple[NetAnalysis, ...],
) -> list[Block]:
    """Test the usual reasons for the effect of skip connections; figures also show ``other_analyses``."""
    near, gain = gain_near_edges(without_skips, with_skips, data, folder)
    return [
        _restored_detail_text(without_skips),
        probe_table(without_skips, with_skips),
        _dull_colours_text(without_skips, with_skips),
        gain,
        edge_distance_figure((*other_analyses, without_skips, with_skips), folder),
        _ablation_table(with_skips),
        _ablation_text(with_skips),
        _bottleneck_text(without_skips, with_skips),
        _gradients_text(without_skips, with_skips),
        gradient_figure((*other_analyses, without_skips, with_skips), folder),
        _skip_summary(without_skips, with_skips, gains_near_edges=near, is_better=is_better),
    ]


def _skip_restores_detail(without_skips: NetAnalysis) -> bool:
    """Return whether the half-resolution features contain more information for the task than the bottleneck."""
    bottleneck, half = (without_skips.probe_scores[layer].lookup_table_accuracy for layer in ("quarter", "half"))
    return half > bottleneck + MIN_DIFFERENCE


def _restored_detail_text(without_skips: NetAnalysis) -> Text:
    return Text(
        "First reason: skip connections restore the detail that downsampling loses. This is {not_}confirmed: a linear "
        "probe on the bottleneck of `{plain.model}` explains {plain.probe_scores.quarter.grey_detail:.1%} of the "
        "variance of the fine detail of the grey values, and a probe on the half-resolution features, which the first "
        "skip connection carries, explains {plain.probe_scores.half.grey_detail:.1%}. This detail matters because each "
        "palette colour covers a narrow range of grey values: a lookup table from grey values to colours finds the "
        "true colour of {plain.probe_scores.quarter.lookup_table_accuracy:.1%} of the pixels from the grey values "
        "reconstructed from the bottleneck, {plain.probe_scores.half.lookup_table_accuracy:.1%} from those "
        "reconstructed from half resolution, and {plain.probe_scores.input.lookup_table_accuracy:.1%} from those of "
        "the input.",
        plain=without_skips.source,
        not_="" if _skip_restores_detail(without_skips) else "not ",
    )


def _dull_colours_text(without_skips: NetAnalysis, with_skips: NetAnalysis) -> Text:
    """Test whether skip connections help dull colours, which differ in lightness, more than vivid ones."""
    before, after = without_skips.vivid_stats, with_skips.vivid_stats
    dull, vivid = after.dull_accuracy - before.dull_accuracy, after.vivid_accuracy - before.vivid_accuracy
    return Text(
        "If the skip connections restore only grey values, they should improve dull colours, which differ in "
        "lightness, but not hues. The accuracy on pixels of dull colours is {plain.vivid_stats.dull_accuracy:.1%} for "
        "`{plain.model}` and {skip.vivid_stats.dull_accuracy:.1%} for `{skip.model}`; on pixels of vivid colours it is "
        "{plain.vivid_stats.vivid_accuracy:.1%} and {skip.vivid_stats.vivid_accuracy:.1%}. {verdict}",
        plain=without_skips.source,
        skip=with_skips.source,
        verdict="This is confirmed."
        if dull > vivid + MIN_DIFFERENCE and dull > MIN_DIFFERENCE
        else "Dull colours do not gain more, which contradicts this explanation.",
    )


_ABLATION_NAMES = {
    "none intact": "none",
    "half zeroed": "half resolution: zeros",
    "half shuffled": "half resolution: features of another image",
    "input zeroed": "input: zeros",
    "input shuffled": "input: another image",
    "both zeroed": "both: zeros",
    "both shuffled": "both: another image",
}


def _ablation_table(with_skips: NetAnalysis) -> Table:
    scores, columns = with_skips.source, {"loss": ".3f", "accuracy": ".1%"}
    return Table(
        f"The trained `{with_skips.model}` on at most {NUM_ABLATION_IMAGES} test images, with the data of a skip "
        "connection replaced",
        ["skip connection: replacement", "loss", "accuracy (%)"],
        [
            [name, *(scores.number("skip_ablations", key, column, spec=spec) for column, spec in columns.items())]
            for key, name in _ABLATION_NAMES.items()
        ],
    )


def _ablation_text(with_skips: NetAnalysis) -> Text:
    intact = with_skips.skip_ablations["none intact"]["accuracy"]
    costs = {skip: intact - with_skips.skip_ablations[f"{skip} shuffled"]["accuracy"] for skip in ("half", "input")}
    used = [skip for skip, cost in costs.items() if cost > MIN_DIFFERENCE]
    names = {"half": "the half-resolution skip connection", "input": "the input skip connection"}
    conclusion = "The model hardly uses its skip connections"
    if len(used) == 2:
        conclusion = f"The model relies on both skip connections, mainly on {names[max(costs, key=costs.__getitem__)]}"
    elif used:
        conclusion = f"The model relies on {names.pop(used[0])} and hardly uses {names.popitem()[1]}"
    source = f"{with_skips.source.name}skip_ablations, none intact minus {{}} shuffled"
    return Text(
        "{conclusion}: with the features of another image, the half-resolution skip connection costs {half} "
        "percentage points of accuracy, and the input skip connection costs {input} percentage points. This shows what "
        "the trained model relies on, not the accuracy of a model that is trained without the skip connection.",
        {skip: Number(100 * cost, source.format(skip), ".1f") for skip, cost in costs.items()},
        conclusion=conclusion,
    )


def _bottleneck_text(without_skips: NetAnalysis, with_skips: NetAnalysis) -> Text:
    """Test whether a bottleneck that need not carry fine detail carries more information about the hue."""
    before, after = (analysis.probe_scores["quarter"] for analysis in (without_skips, with_skips))
    less_detail = after.grey_detail < before.grey_detail - MIN_DIFFERENCE
    more_hue = after.chroma > before.chroma + MIN_DIFFERENCE
    verdicts = {
        (True, True): "Both hold",
        (True, False): "Only the first holds; the freed capacity is not used for hues",
        (False, True): "Only the second holds",
        (False, False): "Neither holds",
    }
    return Text(
        "Second reason: a bottleneck that does not have to carry fine detail has capacity for properties that require "
        "a large receptive field, such as the hue. It should then contain less detail and more hue. {verdict}: linear "
        "probes explain {plain.probe_scores.quarter.grey_detail:.1%} of the variance of the fine grey detail from the "
        "bottleneck of `{plain.model}` and {skip.probe_scores.quarter.grey_detail:.1%} from that of `{skip.model}`; "
        "for the chroma of the target colours the values are {plain.probe_scores.quarter.chroma:.1%} and "
        "{skip.probe_scores.quarter.chroma:.1%}.",
        plain=without_skips.source,
        skip=with_skips.source,
        verdict=verdicts[less_detail, more_hue],
    )


def _gradient_ratio(analysis: NetAnalysis, gradients: str) -> float:
    """Return the ratio of the largest to the smallest relative gradient of a layer, in one of ``GRADIENT_FIELDS``."""
    norms = [layer.relative_norm for layer in getattr(analysis, gradients).values()]
    return max(norms) / min(norms) if min(norms) > 0 else math.inf


def has_vanishing_gradients(analysis: NetAnalysis) -> bool:
    """Return whether relative gradients of layers differ by orders of magnitude, before or after training."""
    return max(_gradient_ratio(analysis, gradients) for gradients in GRADIENT_FIELDS.values()) > VANISHING_RATIO


_OPTIMIZER_NOTES = {
    "adam": "Adam divides the step of each weight by the magnitude of its recent gradients",
    "adamw": "Adam divides the step of each weight by the magnitude of its recent gradients",
    "muon": "Muon gives all steps of a kernel the same magnitude",
}


def _gradients_text(without_skips: NetAnalysis, with_skips: NetAnalysis) -> Text:
    raised = [
        when
        for when, gradients in GRADIENT_FIELDS.items()
        if getattr(with_skips, gradients)["block1"].relative_norm
        > getattr(without_skips, gradients)["block1"].relative_norm
    ]
    changes = {0: "at neither time", 1: f"only {'at the start' if 'start' in raised else 'after training'}"}
    source = f"{without_skips.source.name}relative gradient > {{}}, largest over smallest"
    return Text(
        "A third reason is often given: skip connections prevent vanishing gradients in the first layers. {verdict} "
        "observed: in `{plain.model}`, which has no skip connections, the largest relative gradient of a layer (the "
        "norm of its gradient divided by the norm of its weights) is {start} times the smallest at the start of "
        "training and {end} times the smallest after training; vanishing gradients would differ by orders of "
        "magnitude. With {layers} layers, most of them followed by batch normalisation, gradients have little "
        "opportunity to vanish. The relative gradient of the first layer is "
        "{plain.relative gradient.start.block1:.3f} in `{plain.model}` and {skip.relative gradient.start.block1:.3f} "
        "in `{skip.model}` at the start, and {plain.relative gradient.end.block1:.3f} and "
        "{skip.relative gradient.end.block1:.3f} after training: the skip connections increase it {change}. In "
        "addition, {note}, so a small gradient alone would not slow a layer down: during training, the weights of the "
        "first layer changed by {plain.weight_change.block1:.0%} of their norm in `{plain.model}` and by "
        "{skip.weight_change.block1:.0%} in `{skip.model}`.",
        {
            when: Number(_gradient_ratio(without_skips, gradients), source.format(when), ",.0f")
            for when, gradients in GRADIENT_FIELDS.items()
        },
        plain=without_skips.source,
        skip=with_skips.source,
        verdict=f"{'Vanishing' if has_vanishing_gradients(without_skips) else 'No vanishing'} gradients were",
        layers=int_number(len(without_skips.initial_gradients), "kernels of the model"),
        change=changes.get(len(raised), "at both times"),
        note=_OPTIMIZER_NOTES[read_config(without_skips.run).recipe.optimizer],
    )


def gradient_figure(analyses: tuple[NetAnalysis, ...], folder: Path) -> Figure:
    """Plot the relative gradients of the layers of all models."""
    path = folder / "gradients.png"
    initial, final = (
        {analysis.model: analysis.to_json["relative gradient"][when] for analysis in analyses}
        for when in GRADIENT_FIELDS
    )
    plot_gradients(initial, final, path)
    return Figure(
        path,
        "Norm of the gradient of the loss with respect to the kernel of each layer, divided by the norm of the kernel, "
        "on training batches (one seed). With vanishing gradients, a curve would rise by orders of magnitude from left "
        "to right.",
    )


def _skip_summary(
    without_skips: NetAnalysis, with_skips: NetAnalysis, *, gains_near_edges: bool, is_better: bool
) -> Text:
    if not is_better:
        conclusion = "The skip connections did not improve the model in these runs, so there is no gain to explain."
    elif _skip_restores_detail(without_skips):
        remark = ", which is largest on edges" if gains_near_edges else ""
        conclusion = f"Of these reasons, the first one explains the gain{remark}."
    else:
        conclusion = "None of these reasons is confirmed by the measurements."
    if is_better and not has_vanishing_gradients(without_skips):
        conclusion += " Vanishing gradients do not explain it."
    return Text(
        "{conclusion} One effect was not separated: the skip connections also increase the number of parameters, from "
        "{before.parameters:,.0f} to {after.parameters:,.0f}.",
        conclusion=conclusion,
        before=summary_source(without_skips.run),
        after=summary_source(with_skips.run),
    )


#: Labels of the rows of an evaluation in the report.
ROW_LABELS = {
    "net": "model",
    "net, annealed mean": "model, annealed mean",
    "majority colour": "most frequent colour",
    "grey value's colour": "lookup table from grey value",
    "grey": "greyscale",
    "palette oracle": "true palette colour (upper bound)",
    "truth": "ground truth",
}


def baseline_blocks(model: str, run: Path, analysis_data: AnalysisData, folder: Path) -> list[Block]:
    """Compare the model with baselines and the upper bound, and describe its image quality and confusions."""
    data = analysis_data.inputs.data
    evaluation = evaluate(load_palette_model(run), ColourDataset(data.train, data.test))
    recorded = record_results(folder, evaluation.as_json()["rows"], "evaluation", model)
    # An infinite PSNR is null in the file, but is printed.
    scores = Source({row.name: row for row in evaluation.rows}, recorded.name)
    return [
        _baseline_table(model, evaluation, scores),
        _quality_text(evaluation, scores),
        confusion_figure(model, evaluation.confusion, analysis_data, folder),
    ]


def confusion_figure(
    model: str, confusion: Int64[np.ndarray, "truth prediction"], data: AnalysisData, folder: Path
) -> Figure:
    """Plot the confusion matrix with a colour swatch for every row and column."""
    path = folder / f"confusion-{model}.png"
    plot_confusion_matrix(confusion, data.inputs.palette.colours, path, "")
    return Figure(
        path,
        f"Confusion matrix of `{model}` (one seed): predicted colours of the pixels of each true colour. Every row "
        "adds up to one; correct predictions are on the diagonal.",
    )


def _baseline_table(model: str, evaluation: Evaluation, scores: Source) -> Table:
    columns = {"loss": ".4f", "accuracy": ".2%", "psnr": ".2f", "delta_e": ".2f", "colourfulness": ".1f"}
    return Table(
        f"`{model}` (one seed) on all test images, compared with baselines that need no model and with the upper bound "
        "set by the palette. Colourfulness after Hasler and Süsstrunk: 15 is slightly colourful, 33 moderately "
        "colourful",
        ["", "loss", "accuracy (%)", "PSNR (dB)", "ΔE2000", "colourfulness"],
        [
            [
                ROW_LABELS.get(row.name, row.name),
                *(
                    "–" if getattr(row, key) is None else scores.number(row.name, key, spec=spec)
                    for key, spec in columns.items()
                ),
            ]
            for row in evaluation.rows
        ],
    )


def _quality_text(evaluation: Evaluation, scores: Source) -> Text:
    ours, grey, table = (evaluation.row(name) for name in ("net", "grey", "grey value's colour"))
    assert ours.accuracy is not None
    assert table.accuracy is not None
    closer, more_accurate = ours.delta_e < grey.delta_e, ours.accuracy > table.accuracy
    answers = {0: "No.", 1: "Only partly.", 2: "Yes, by both measures."}
    return Text(
        "Do the images look good? {answer} By mean ΔE2000, the colourised images ({scores.net.delta_e:.2f}) are "
        "{nearness} the ground truth than the greyscale images ({scores.grey.delta_e:.2f}). A lookup table that maps "
        "every grey value to its most frequent colour, without using neighbouring pixels, classifies "
        "{scores.grey value's colour.accuracy:.1%} of the pixels correctly; the model classifies "
        "{scores.net.accuracy:.1%} correctly, which is {relation}. Even the true palette colour of every pixel has a "
        "ΔE2000 of {scores.palette oracle.delta_e:.2f}.",
        answer=answers[int(closer) + int(more_accurate)],
        nearness="closer to" if closer else "further from",
        relation="more" if more_accurate else "less",
        scores=scores,
    )


def blur_text(analysis: NetAnalysis) -> Text:
    """Describe whether the images have the fine detail of the ground truth, and where detail is lost."""
    energy, correlation = analysis.high_frequencies.energy, analysis.high_frequencies.correlation
    if energy < MIN_DETAIL_FRACTION:
        verdict = "The images are blurred"
    elif correlation < MIN_DETAIL_FRACTION:
        verdict = "The images have enough fine detail, but part of it is wrong"
    else:
        verdict = "The images preserve the fine detail"
    is_lost = analysis.probe_scores["quarter"].grey_detail < MIN_DETAIL_FRACTION
    near, far = analysis.accuracy_by_edge_distance.accuracy[0], analysis.accuracy_by_edge_distance.accuracy[-1]
    return Text(
        "{verdict}: the deviations of the pixels of a 4 × 4 block from their mean have "
        "{net.high_frequencies.energy:.1%} of the energy of those in the true colours, and a correlation of "
        "{net.high_frequencies.correlation:.2f} with them. After its resolution is halved twice, an image is "
        "represented by {net.bottleneck_shape.0:.0f} channels of {net.bottleneck_shape.1:.0f} × "
        "{net.bottleneck_shape.2:.0f} positions. A linear probe on one position, fitted on training images, explains "
        "{net.probe_scores.quarter.grey_detail:.1%} of the variance of the fine detail of the grey input, compared "
        "with {net.probe_scores.half.grey_detail:.1%} before the second halving: {loss}. On the edges of the greyscale "
        "image, {net.accuracy_by_edge_distance.accuracy.0:.1%} of the pixels are correct; at a distance of {away} or "
        "more pixels, {net.accuracy_by_edge_distance.accuracy.-1:.1%} are correct{remark}",
        net=analysis.source,
        verdict=verdict,
        loss="downsampling loses detail, and no later layer can restore it" if is_lost else "little detail is lost",
        away=int_number(int(EDGE_DISTANCE_BINS[-2]), "lower bound of the last distance bin"),
        remark=", as expected for images without fine detail." if near < far else ".",
    )


def dullness_text(analysis: NetAnalysis, data: AnalysisData) -> Text:
    """Describe whether vivid colours are predicted as often as they occur, and whether their probability is correct."""
    is_dull = analysis.vivid_stats.predicted_fraction < MIN_VIVID_FRACTION * analysis.vivid_stats.true_fraction
    is_close = abs(analysis.vivid_stats.mean_probability - analysis.vivid_stats.true_fraction) < MAX_VIVID_GAP
    explanation = ""
    if is_dull and is_close:
        explanation = (
            " The model thus assigns enough probability to vivid colours, but it is seldom confident enough of one hue "
            "to rank it first, and only the most likely colour of a pixel is shown."
        )
    return Text(
        "The colours {verdict} too dull: the vivid half of the palette (the half with the higher chroma in CIELab) "
        "contains the true colour of {net.vivid_stats.true_fraction:.1%} of the pixels and the predicted colour of "
        "{net.vivid_stats.predicted_fraction:.1%}. The accuracy is {net.vivid_stats.vivid_accuracy:.1%} on vivid "
        "pixels and {net.vivid_stats.dull_accuracy:.1%} on dull pixels. The colourfulness is "
        "{net.image_stats.colourfulness:.1f}, compared with {truth} for the ground truth. On average, the model gives "
        "vivid colours a probability of {net.vivid_stats.mean_probability:.1%}, which is {closeness} their true "
        "frequency.{explanation} A greyscale image contains little information about the hue: a linear probe on one "
        "position of the bottleneck explains {net.probe_scores.quarter.chroma:.1%} of the variance of the chroma of "
        "the target colours.",
        net=analysis.source,
        verdict="are" if is_dull else "are not",
        truth=Number(data.true_colourfulness, "colourfulness of the test images analysed", ".1f"),
        closeness="close to" if is_close else "not close to",
        explanation=explanation,
    )


def stride_explanation_blocks(
    pool: NetAnalysis, strided: NetAnalysis, data: AnalysisData, folder: Path, *, is_better: bool
) -> list[Block]:
    """Test the reasons for the effect of strides; ``is_better`` is whether there is a gain to explain."""
    near, gain = gain_near_edges(pool, strided, data, folder)
    before, after = (analysis.probe_scores["quarter"].grey_detail for analysis in (pool, strided))
    keeps_more = after > before + MIN_DIFFERENCE
    counts = [summary_source(analysis.run).number("parameters", spec=",.0f") for analysis in (pool, strided)]
    size = Text(
        "The models differ in size ({before} and {after} parameters), which may be an additional reason.",
        dict(zip(("before", "after"), counts, strict=True)),
    )
    if counts[0].value == counts[1].value:
        size = Text("The size is not a reason: both models have {count} parameters.", count=counts[1])
    support = {0: "Neither test supports", 1: "One of the two tests supports", 2: "Both tests support"}
    reason = "“strided convolutions preserve fine detail that pooling discards”"
    conclusion = f"{support[int(keeps_more) + int(near)]} the reason {reason}."
    if not is_better:
        conclusion = "The second model is not better in these runs, so there is no gain to explain."
    return [
        size,
        Text(
            "Detail in the bottleneck: max pooling keeps the largest of four neighbouring values and discards its "
            "position; a strided convolution combines all four with learnt weights, so it can preserve more detail. "
            "This is {not_}confirmed: a linear probe on the bottleneck of `{pool.model}` explains "
            "{pool.probe_scores.quarter.grey_detail:.1%} of the variance of the fine detail of the grey values, a "
            "probe on that of `{strided.model}` explains {strided.probe_scores.quarter.grey_detail:.1%}. From the "
            "reconstructed grey values, a lookup table finds the true colour of "
            "{pool.probe_scores.quarter.lookup_table_accuracy:.1%} and "
            "{strided.probe_scores.quarter.lookup_table_accuracy:.1%} of the pixels.",
            pool=pool.source,
            strided=strided.source,
            not_="" if keeps_more else "not ",
        ),
        probe_table(pool, strided),
        gain,
        edge_distance_figure((pool, strided), folder),
        Text(
            f"{conclusion} These runs cannot separate downsampling from upsampling: `{strided.model}` replaces pooling "
            "by strides and also upsampling by transposed convolutions. Only a model with one of the two changes would "
            "show the contribution of each."
        ),
    ]
