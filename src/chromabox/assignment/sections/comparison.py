"""Two nets side by side: how their pictures look, who is right where, and where the better one gains."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chromabox.assignment.analysis.net_analysis import BOUNDS, PICTURES, Examined, Ground
from chromabox.assignment.analysis.plots import draw_by_distance, draw_disagreement
from chromabox.assignment.analysis.predictions import disagreement
from chromabox.assignment.analysis.statistics import over_places
from chromabox.assignment.sections.numbers import RECORD, looked_up, record, share, whole
from chromabox.colour.evaluation.evaluate import sample_sheet
from chromabox.colour.palette.palette import labels_to_rgb
from chromabox.report.document.model import Block, Cell, Figure, Number, Table, Text
from chromabox.report.plots import Tile

#: Test pictures in a row of a figure.
COLUMNS = 8
#: Differences of R², of correlations and of shares below this are not spoken of as differences.
NOTICEABLE = 0.01


def truth_rows(one: Examined, ground: Ground) -> dict[str, Sequence[Tile]]:
    """The first test pictures in grey and in their true colours."""
    from chromabox.colour.weights.checkpoint import load_palette_net

    grey, truth, _ = sample_sheet(load_palette_net(one.run).net, ground.test, ground.inputs.palette, COLUMNS)
    return {"grey": grey, "truth": truth}


def row_of(one: Examined, ground: Ground) -> list[Tile]:
    """The same pictures as the net colours them."""
    return list(labels_to_rgb(one.answers.labels[:COLUMNS], ground.inputs.palette))


def side_by_side(first: Examined, second: Examined, ground: Ground, folder: Path) -> list[Block]:
    """The first test pictures by both nets, with a map of who is right, and how often each is alone right."""
    path = folder / f"{first.net}-and-{second.net}.png"
    rows = truth_rows(first, ground) | {one.net: row_of(one, ground) for one in (first, second)}
    draw_disagreement(rows, (first.net, second.net), first.answers, second.answers, path)
    name, found = f"{first.net} and {second.net}", disagreement(first.answers, second.answers)
    record(folder, "disagreement", {name: found})
    numbers = {
        key: Number(100 * getattr(found, key), f"{RECORD}: disagreement > {name} > {key}", ".1f")
        for key in ("differ", "only_first", "only_second", "both_wrong")
    }
    return [
        Figure(path, f"The first {COLUMNS} test pictures by `{first.net}` and `{second.net}`, and who is right where."),
        Text(
            f"On {{pictures}} test pictures the two nets differ in {{differ}} % of the pixels: only `{first.net}` is "
            f"right on {{only_first}} %, only `{second.net}` on {{only_second}} %, neither on {{both_wrong}} % "
            "(shares of all pixels).",
            {**numbers, "pictures": whole(len(ground.test), "test pictures examined")},
        ),
    ]


def looks_table(ground: Ground, *nets: Examined) -> Table:
    """How the pictures of the nets look beside the true ones."""
    rows: list[list[Cell]] = [
        [
            one.net,
            looked_up(one, "looks", "psnr", spec=".2f"),
            looked_up(one, "looks", "delta_e", spec=".2f"),
            looked_up(one, "looks", "colourfulness"),
            share(one, "detail", "energy"),
            looked_up(one, "detail", "correlation", spec=".3f"),
        ]
        for one in nets
    ]
    grey = [Number(getattr(ground.grey, key), f"grey test pictures: {key}", ".2f") for key in ("psnr", "delta_e")]
    nothing = Number(0.0, "colourfulness of grey", ".1f")
    truth = Number(ground.truth_colourfulness, "colourfulness of the test pictures examined", ".1f")
    return Table(
        f"How the pictures look (the first {len(ground.test)} test pictures, one seed). Detail is what makes the "
        "pixels of a 4 × 4 block differ: its energy beside the true colours', and its correlation with theirs",
        ["", "PSNR dB", "ΔE2000", "colourfulness", "detail's energy %", "detail's correlation"],
        [*rows, ["grey itself", *grey, nothing, "–", "–"], ["truth", "–", "–", truth, "–", "–"]],
    )


def probe_table(*nets: Examined) -> Table:
    """What a linear map reads back from inside the nets."""
    places = {"quarter": "the bottleneck", "half": "half resolution"}
    columns = ("grey_detail", "colour_detail", "chroma", "table_accuracy")
    rows: list[list[Cell]] = [
        [f"{one.net}, {place}", *(share(one, "recovered", source, column) for column in columns)]
        for one in nets
        for source, place in places.items()
    ]
    rows.append(["the input", *(share(nets[0], "recovered", "input", column) for column in columns)])
    return Table(
        "What a linear map (ridge regression, fitted on training pictures, judged on test pictures) reads back of a "
        "4 × 4 block: R² of the fine detail of grey and of the target colours, R² of what of the target colours is not "
        "grey, and how many pixels a table “grey value → its most frequent colour” gets right by the grey read back",
        ["from", "grey detail %", "colour detail %", "not grey %", "table right %"],
        rows,
    )


def draw_edges(nets: Sequence[Examined], folder: Path) -> Figure:
    """Accuracy by distance from edges, of all the nets."""
    path = folder / f"edges-{'-'.join(one.net for one in nets)}.png"
    draw_by_distance({one.net: one.by_distance for one in nets}, BOUNDS, path)
    return Figure(
        path,
        "Accuracy against the distance from the nearest edge of the grey picture (the steepest tenth of all pixels by "
        f"Sobel's operator), the first {PICTURES} test pictures, one seed.",
    )


def gain_near_edges(first: Examined, second: Examined, ground: Ground, folder: Path) -> tuple[bool, Text]:
    """Whether the second net gains more on edges than far from them, and the text that says so."""
    change = 100 * (second.answers.right.astype(np.float64) - first.answers.right)
    near, far = ground.distances < BOUNDS[1], np.isfinite(ground.distances) & (ground.distances >= BOUNDS[-2])
    found = over_places(change, far, near)
    name = f"{first.net} to {second.net}"
    record(folder, "gain on edges less gain far from them", {name: found})
    more = found.is_clear and found.value > 0
    if more:
        said = "so it gains most where there is fine detail to be seen"
    elif found.is_clear:
        said = "so the gain is not where the edges are"
    else:
        said = "so these pictures do not tell where it gains more"
    source = f"{RECORD}: gain on edges less gain far from them > {name}"
    text = Text(
        f"On edges `{first.net}` is right on {{first_near}} % of the pixels and `{second.net}` on {{second_near}} %, "
        "{away} or more pixels away on {first_far} and {second_far} %. The change on edges exceeds the one far away by "
        f"{{value}} points (95 % interval {{low}} to {{high}}, {found.how}), {said}.",
        {
            "first_near": share(first, "by_distance", "accuracy", 0),
            "second_near": share(second, "by_distance", "accuracy", 0),
            "first_far": share(first, "by_distance", "accuracy", -1),
            "second_far": share(second, "by_distance", "accuracy", -1),
            "away": whole(int(BOUNDS[-2]), "the last band's lower bound"),
            **{part: Number(getattr(found, part), f"{source} > {part}", "+.1f") for part in ("value", "low", "high")},
        },
    )
    return more, text
