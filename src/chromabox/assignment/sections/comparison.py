"""Two nets side by side: how their pictures look, who is right where, and where the better one gains."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chromabox.assignment.analysis.net_analysis import EDGE_DISTANCE_BINS, NUM_TEST_IMAGES, AnalysisData, NetAnalysis
from chromabox.assignment.analysis.plots import plot_accuracy_by_edge_distance, plot_agreement
from chromabox.assignment.analysis.predictions import measure_agreement
from chromabox.assignment.analysis.statistics import difference_between_regions
from chromabox.assignment.sections.numbers import (
    RESULTS_FILE,
    analysis_number,
    analysis_percent,
    int_number,
    record_results,
)
from chromabox.colour.evaluation.evaluate import sample_grid
from chromabox.colour.palette.palette import decode_labels
from chromabox.report.document.model import Block, Cell, Figure, Number, Table, Text
from chromabox.report.plots import RGBTile

#: Test pictures in a row of a figure.
NUM_SAMPLES = 8
#: Differences of R², of correlations and of shares below this are not spoken of as differences.
MIN_DIFFERENCE = 0.01


def reference_rows(analysis: NetAnalysis, data: AnalysisData) -> dict[str, Sequence[RGBTile]]:
    """The first test pictures in grey and in their true colours."""
    from chromabox.colour.weights.checkpoint import load_palette_model

    grey, truth, _ = sample_grid(load_palette_model(analysis.run).network, data.test, data.inputs.palette, NUM_SAMPLES)
    return {"grey": grey, "truth": truth}


def predicted_images(analysis: NetAnalysis, data: AnalysisData) -> list[RGBTile]:
    """The same pictures as the net colours them."""
    return list(decode_labels(analysis.predictions.labels[:NUM_SAMPLES], data.inputs.palette))


def side_by_side(first: NetAnalysis, second: NetAnalysis, data: AnalysisData, folder: Path) -> list[Block]:
    """The first test pictures by both nets, with a map of who is right, and how often each is alone right."""
    path = folder / f"{first.model}-and-{second.model}.png"
    rows = reference_rows(first, data) | {one.model: predicted_images(one, data) for one in (first, second)}
    plot_agreement(rows, (first.model, second.model), first.predictions, second.predictions, path)
    name, found = f"{first.model} and {second.model}", measure_agreement(first.predictions, second.predictions)
    record_results(folder, "disagreement", {name: found})
    numbers = {
        key: Number(100 * getattr(found, key), f"{RESULTS_FILE}: disagreement > {name} > {key}", ".1f")
        for key in ("differ", "only_first", "only_second", "both_wrong")
    }
    return [
        Figure(
            path,
            f"The first {NUM_SAMPLES} test pictures by `{first.model}` and `{second.model}`, and who is right where.",
        ),
        Text(
            f"On {{pictures}} test pictures the two nets differ in {{differ}} % of the pixels: only `{first.model}` is "
            f"right on {{only_first}} %, only `{second.model}` on {{only_second}} %, neither on {{both_wrong}} % "
            "(shares of all pixels).",
            {**numbers, "pictures": int_number(len(data.test), "test pictures examined")},
        ),
    ]


def image_quality_table(data: AnalysisData, *analyses: NetAnalysis) -> Table:
    """How the pictures of the nets look beside the true ones."""
    rows: list[list[Cell]] = [
        [
            one.model,
            analysis_number(one, "looks", "psnr", spec=".2f"),
            analysis_number(one, "looks", "delta_e", spec=".2f"),
            analysis_number(one, "looks", "colourfulness"),
            analysis_percent(one, "detail", "energy"),
            analysis_number(one, "detail", "correlation", spec=".3f"),
        ]
        for one in analyses
    ]
    grey = [Number(getattr(data.grey_stats, key), f"grey test pictures: {key}", ".2f") for key in ("psnr", "delta_e")]
    nothing = Number(0.0, "colourfulness of grey", ".1f")
    truth = Number(data.true_colourfulness, "colourfulness of the test pictures examined", ".1f")
    return Table(
        f"How the pictures look (the first {len(data.test)} test pictures, one seed). Detail is what makes the "
        "pixels of a 4 × 4 block differ: its energy beside the true colours', and its correlation with theirs",
        ["", "PSNR dB", "ΔE2000", "colourfulness", "detail's energy %", "detail's correlation"],
        [*rows, ["grey itself", *grey, nothing, "–", "–"], ["truth", "–", "–", truth, "–", "–"]],
    )


def probe_table(*analyses: NetAnalysis) -> Table:
    """What a linear map reads back from inside the nets."""
    places = {"quarter": "the bottleneck", "half": "half resolution"}
    columns = ("grey_detail", "colour_detail", "chroma", "table_accuracy")
    rows: list[list[Cell]] = [
        [f"{one.model}, {place}", *(analysis_percent(one, "recovered", source, column) for column in columns)]
        for one in analyses
        for source, place in places.items()
    ]
    rows.append(["the input", *(analysis_percent(analyses[0], "recovered", "input", column) for column in columns)])
    return Table(
        "What a linear map (ridge regression, fitted on training pictures, judged on test pictures) reads back of a "
        "4 × 4 block: R² of the fine detail of grey and of the target colours, R² of what of the target colours is not "
        "grey, and how many pixels a table “grey value → its most frequent colour” gets right by the grey read back",
        ["from", "grey detail %", "colour detail %", "not grey %", "table right %"],
        rows,
    )


def edge_distance_figure(analyses: Sequence[NetAnalysis], folder: Path) -> Figure:
    """Accuracy by distance from edges, of all the nets."""
    path = folder / f"edges-{'-'.join(one.model for one in analyses)}.png"
    plot_accuracy_by_edge_distance(
        {one.model: one.accuracy_by_edge_distance for one in analyses}, EDGE_DISTANCE_BINS, path
    )
    return Figure(
        path,
        "Accuracy against the distance from the nearest edge of the grey picture (the steepest tenth of all pixels by "
        f"Sobel's operator), the first {NUM_TEST_IMAGES} test pictures, one seed.",
    )


def gain_near_edges(first: NetAnalysis, second: NetAnalysis, data: AnalysisData, folder: Path) -> tuple[bool, Text]:
    """Whether the second net gains more on edges than far from them, and the text that says so."""
    change = 100 * (second.predictions.is_correct.astype(np.float64) - first.predictions.is_correct)
    near, far = (
        data.edge_distances < EDGE_DISTANCE_BINS[1],
        np.isfinite(data.edge_distances) & (data.edge_distances >= EDGE_DISTANCE_BINS[-2]),
    )
    found = difference_between_regions(change, far, near)
    name = f"{first.model} to {second.model}"
    record_results(folder, "gain on edges less gain far from them", {name: found})
    more = found.excludes_zero and found.value > 0
    if more:
        said = "so it gains most where there is fine detail to be seen"
    elif found.excludes_zero:
        said = "so the gain is not where the edges are"
    else:
        said = "so these pictures do not tell where it gains more"
    source = f"{RESULTS_FILE}: gain on edges less gain far from them > {name}"
    text = Text(
        f"On edges `{first.model}` is right on {{first_near}} % of the pixels and `{second.model}` on {{second_near}} %, "
        "{away} or more pixels away on {first_far} and {second_far} %. The change on edges exceeds the one far away by "
        f"{{value}} points (95 % interval {{low}} to {{high}}, {found.method}), {said}.",
        {
            "first_near": analysis_percent(first, "by_distance", "accuracy", 0),
            "second_near": analysis_percent(second, "by_distance", "accuracy", 0),
            "first_far": analysis_percent(first, "by_distance", "accuracy", -1),
            "second_far": analysis_percent(second, "by_distance", "accuracy", -1),
            "away": int_number(int(EDGE_DISTANCE_BINS[-2]), "the last band's lower bound"),
            **{part: Number(getattr(found, part), f"{source} > {part}", "+.1f") for part in ("value", "low", "high")},
        },
    )
    return more, text
