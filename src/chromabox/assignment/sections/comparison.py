"""Comparison of two models: image quality, agreement of their predictions, and accuracy near edges."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chromabox.assignment.analysis.net_analysis import EDGE_DISTANCE_BINS, NUM_TEST_IMAGES, AnalysisData, NetAnalysis
from chromabox.assignment.analysis.plots import plot_accuracy_by_edge_distance, plot_agreement
from chromabox.assignment.analysis.predictions import measure_agreement
from chromabox.assignment.analysis.statistics import difference_between_regions
from chromabox.assignment.sections.numbers import int_number, record_results
from chromabox.colour.evaluation.evaluate import sample_grid
from chromabox.colour.palette.palette import decode_labels
from chromabox.report.document.model import Block, Cell, Figure, Number, Table, Text
from chromabox.report.plots import RGBTile

#: Test images in a row of a figure.
NUM_SAMPLES = 8
#: Smaller differences in R², correlations and fractions are not reported as differences.
MIN_DIFFERENCE = 0.01


def reference_rows(analysis: NetAnalysis, data: AnalysisData) -> dict[str, Sequence[RGBTile]]:
    """Return the first test images in greyscale and in their true colours."""
    from chromabox.colour.weights.checkpoint import load_palette_model

    grey, truth, _ = sample_grid(load_palette_model(analysis.run).network, data.test, data.inputs.palette, NUM_SAMPLES)
    return {"greyscale": grey, "ground truth": truth}


def predicted_images(analysis: NetAnalysis, data: AnalysisData) -> list[RGBTile]:
    """Return the first test images as colourised by the model."""
    return list(decode_labels(analysis.predictions.labels[:NUM_SAMPLES], data.inputs.palette))


def side_by_side(first: NetAnalysis, second: NetAnalysis, data: AnalysisData, folder: Path) -> list[Block]:
    """Show the first test images of both models with a map of correct pixels, and describe their agreement."""
    path = folder / f"{first.model}-and-{second.model}.png"
    rows = reference_rows(first, data) | {
        analysis.model: predicted_images(analysis, data) for analysis in (first, second)
    }
    plot_agreement(rows, (first.model, second.model), first.predictions, second.predictions, path)
    agreement = measure_agreement(first.predictions, second.predictions)
    return [
        Figure(
            path,
            f"The first {NUM_SAMPLES} test images, colourised by `{first.model}` and `{second.model}`, and a map of "
            "the pixels that each model classifies correctly.",
        ),
        Text(
            "On {images} test images, the predictions of the two models differ in {pixels.different:.1%} of the "
            "pixels. Only `{first}` is correct on {pixels.only_first:.1%}, only `{second}` on "
            "{pixels.only_second:.1%}, and neither on {pixels.both_wrong:.1%} (percentages of all pixels).",
            first=first.model,
            second=second.model,
            images=int_number(len(data.test), "number of test images analysed"),
            pixels=record_results(folder, agreement, "disagreement", f"{first.model} and {second.model}"),
        ),
    ]


def image_quality_table(data: AnalysisData, *analyses: NetAnalysis) -> Table:
    """Return a table of image quality against the ground truth, with the greyscale images as a baseline."""
    columns = {
        ("image_stats", "psnr"): ".2f",
        ("image_stats", "delta_e"): ".2f",
        ("image_stats", "colourfulness"): ".1f",
        ("high_frequencies", "energy"): ".1%",
        ("high_frequencies", "correlation"): ".3f",
    }
    rows: list[list[Cell]] = [
        [analysis.model, *(analysis.source.number(*keys, spec=spec) for keys, spec in columns.items())]
        for analysis in analyses
    ]
    grey = [
        Number(getattr(data.grey_stats, key), f"greyscale test images: {key}", ".2f") for key in ("psnr", "delta_e")
    ]
    zero = Number(0.0, "colourfulness of greyscale images", ".1f")
    truth = Number(data.true_colourfulness, "colourfulness of the test images analysed", ".1f")
    return Table(
        f"Image quality (first {len(data.test)} test images, one seed). Fine detail is the deviation of the pixels of "
        "a 4 × 4 block from their mean; its energy is relative to that of the true colours, and its correlation is "
        "with the fine detail of the true colours",
        ["", "PSNR (dB)", "ΔE2000", "colourfulness", "detail energy (%)", "detail correlation"],
        [*rows, ["greyscale", *grey, zero, "–", "–"], ["ground truth", "–", "–", truth, "–", "–"]],
    )


def probe_table(*analyses: NetAnalysis) -> Table:
    """Return a table of linear-probe scores for inner layers of the models and for the input."""
    layers = {"quarter": "bottleneck", "half": "half resolution"}
    probes = [(f"{analysis.model}, {name}", analysis, layer) for analysis in analyses for layer, name in layers.items()]
    columns = ("grey_detail", "colour_detail", "chroma", "lookup_table_accuracy")
    rows: list[list[Cell]] = [
        [
            name,
            *(analysis.source.number("probe_scores", layer, column, spec=".1%") for column in columns),
        ]
        for name, analysis, layer in [*probes, ("input", analyses[0], "input")]
    ]
    return Table(
        "Linear probes (ridge regression, fitted on training images and evaluated on test images) of 4 × 4 blocks of "
        "pixels: R² of the fine detail of the grey values and of the target colours, R² of the chroma of the target "
        "colours, and the accuracy of a lookup table from grey value to its most frequent colour, applied to the "
        "reconstructed grey values",
        ["probed layer", "grey detail (%)", "colour detail (%)", "chroma (%)", "lookup accuracy (%)"],
        rows,
    )


def edge_distance_figure(analyses: Sequence[NetAnalysis], folder: Path) -> Figure:
    """Plot the accuracy of the models against the distance from the nearest edge."""
    path = folder / f"edges-{'-'.join(analysis.model for analysis in analyses)}.png"
    plot_accuracy_by_edge_distance(
        {analysis.model: analysis.accuracy_by_edge_distance for analysis in analyses}, EDGE_DISTANCE_BINS, path
    )
    return Figure(
        path,
        "Accuracy against the distance from the nearest edge of the greyscale image. Edges are the 10 % of the pixels "
        f"with the steepest gradient (Sobel operator). First {NUM_TEST_IMAGES} test images, one seed.",
    )


def gain_near_edges(first: NetAnalysis, second: NetAnalysis, data: AnalysisData, folder: Path) -> tuple[bool, Text]:
    """Return whether the second model gains more accuracy on edges than far from them, and a text about it."""
    change = 100 * (second.predictions.is_correct.astype(np.float64) - first.predictions.is_correct)
    near, far = (
        data.edge_distances < EDGE_DISTANCE_BINS[1],
        np.isfinite(data.edge_distances) & (data.edge_distances >= EDGE_DISTANCE_BINS[-2]),
    )
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
        "pixels, the accuracies are {first.accuracy_by_edge_distance.accuracy.-1:.1%} and "
        "{second.accuracy_by_edge_distance.accuracy.-1:.1%}. The change on edges exceeds the change far from edges by "
        "{change.value:+.1f} percentage points (95 % confidence interval {change.low:+.1f} to {change.high:+.1f}, "
        "{change.method}). {conclusion}.",
        first=first.source,
        second=second.source,
        away=int_number(int(EDGE_DISTANCE_BINS[-2]), "lower bound of the last distance bin"),
        change=record_results(folder, interval, "gain on edges less gain far from them", name),
        conclusion=conclusion,
    )
    return gains_near_edges, text
