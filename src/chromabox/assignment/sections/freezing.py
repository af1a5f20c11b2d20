"""D.1's answers from a run: what was frozen, whether it stood still, what that costs and saves."""

import inspect
from collections.abc import Sequence
from pathlib import Path

from chromabox.assignment.analysis.detector_analysis import LayerChange, layer_changes
from chromabox.assignment.analysis.plots import draw_changes
from chromabox.assignment.sections.class_loss import COMMAND
from chromabox.assignment.sections.numbers import RECORD, in_summary, last_part, record, whole
from chromabox.detect.training import freeze
from chromabox.detect.training.config import read_finetune_config
from chromabox.detect.training.freeze import Frozen, backbone
from chromabox.detect.training.setup import _by_role
from chromabox.detect.weights.load import load_detector
from chromabox.experiments.runs import Found, summary_of
from chromabox.report.document.model import Block, Cell, Code, Figure, Missing, Number, Section, Table, Text


def what_is_frozen(run: Path) -> list[Block]:
    """Which net, on what, and which part of it stays."""
    summary, architecture = summary_of(run), load_detector(run).architecture
    begun = Text(
        f"The detector is `{architecture.name}`, begun from `{last_part(summary['weights'])}` and fine-tuned on "
        f"`{last_part(summary['data'])}` by the {summary['recipe']} recipe."
    )
    total = in_summary(run, "frozen", "all_parameters")
    depth, end = summary["frozen"]["layers"], backbone(architecture)
    if not depth:
        return [begun, Text("Nothing is frozen: all {all} parameters are trained.", {"all": total})]
    place = "as many as its backbone has" if depth == end else "fewer than" if depth < end else "more than"
    place += "" if depth == end else " the {end} of its backbone"
    share = 100 * summary["frozen"]["parameters"] / summary["frozen"]["all_parameters"]
    numbers = {
        "depth": in_summary(run, "frozen", "layers"),
        "layers": whole(len(architecture.layers), f"{run}/best.safetensors: architecture"),
        "kept": in_summary(run, "frozen", "parameters"),
        "all": total,
        "share": Number(share, f"{run}/summary.json: frozen > parameters / all_parameters", ".1f"),
        "work": in_summary(run, "frozen", "share_of_work", spec=".0f", scale=100.0),
    }
    return [
        begun,
        Text(
            "Its first {depth} of {layers} layers are frozen, "
            + place
            + ": {kept} of {all} parameters ({share} %), which take {work} % of the multiplications of a forward pass. "
            "Layers are counted as darknet counts them, poolings and concatenations among them.",
            numbers | ({} if depth == end else {"end": whole(end, "detect/freeze.py: backbone")}),
        ),
    ]


def how(run: Path) -> Text:
    moving = summary_of(run)["frozen"]["moving_statistics"]
    return Text(
        "`named_parameters()` gives every parameter with its name, which begins with `layers.` and the layer's number. "
        "Those of the first layers get `requires_grad = False`: backward stops before them, and no optimiser has them. "
        "That alone does not keep a layer still. Means and variances of batch normalisation are no parameters but "
        "buffers, and in training mode every forward pass moves them; the frozen kernels would then meet other numbers "
        "than those they were trained with. "
        + (
            "This run leaves them moving, as the assignment's tool does."
            if moving
            else "So the batch normalisation of frozen layers is replaced by one that stays in evaluation mode."
        )
    )


def stood_still(run: Path, folder: Path) -> list[Block]:
    """The run's first and best checkpoint compared, number by number."""
    changes = layer_changes(run)
    summary = summary_of(run)
    depth = summary["frozen"]["layers"]
    parts = {
        "frozen": [one for one in changes if one.layer < depth],
        "trained": [one for one in changes if one.layer >= depth],
    }
    measured = {
        name: {
            "parameters": sum(one.parameters for one in part),
            "largest": max(one.largest for one in part),
            "statistics": max(one.statistics for one in part),
        }
        for name, part in parts.items()
        if part
    }
    record(folder, "frozen layers", {run.name: measured})
    source = f"{RECORD}: frozen layers > {run.name}"
    rows: list[list[Cell]] = [
        [
            f"{name} layers",
            *(
                Number(float(value), f"{source} > {name} > {key}", ",.0f" if key == "parameters" else ".2g")
                for key, value in values.items()
            ),
        ]
        for name, values in measured.items()
    ]
    path = folder / f"changes-{run.name}.png"
    draw_changes(changes, depth, path)
    caption = (
        "Change of every convolution with its normalisation: the root of the summed squares of its parameters' changes "
        "as a part of that of the parameters themselves"
    )
    return [
        Text(verdict(changes, depth, moving=summary["frozen"]["moving_statistics"])),
        Table(
            "Largest absolute change from `start.safetensors` to `best.safetensors`",
            ["", "parameters", "change of a parameter", "change of a mean or variance"],
            rows,
        ),
        Figure(path, caption),
    ]


def verdict(changes: Sequence[LayerChange], depth: int, *, moving: bool) -> str:
    """Whether what was frozen stood still, said by what was measured."""
    frozen = [one for one in changes if one.layer < depth]
    if not frozen:
        return "Nothing was frozen, so everything may move; how much did:"
    parameters = all(one.largest == 0 for one in frozen)
    statistics = all(one.statistics == 0 for one in frozen)
    compared = (
        "Was it really still? The run keeps the net of before its first step, and its result is compared with it "
        "number by number. "
    )
    if not parameters:
        return compared + "It was not: parameters of frozen layers have moved, which is an error of the program:"
    if not statistics:
        expected = "as this recipe leaves them to" if moving else "which is an error of the program"
        return compared + f"No parameter of a frozen layer differs, but their statistics have moved, {expected}:"
    others = all(one.largest > 0 for one in changes if one.layer >= depth)
    return (
        compared
        + "In the frozen layers not a single bit differs, neither of parameters nor of statistics; "
        + ("all other layers have moved:" if others else "not all of the other layers have moved either:")
    )


def costs(runs: Sequence[Path]) -> list[Block]:
    """What an epoch takes, what freezing saves of it, and all runs side by side."""
    run = runs[0]
    names = ("layers", "parameters", "all_parameters", "share_of_work", "moving_statistics")
    frozen = Frozen(**{name: summary_of(run)["frozen"][name] for name in names})
    views = read_finetune_config(run).views
    taken = Text(
        "An epoch took {seconds} s (the median, validation included) and filling the caches {filling} s once.",
        {
            "seconds": in_summary(run, "seconds_per_epoch", spec=".1f"),
            "filling": in_summary(run, "seconds_filling", spec=".1f"),
        },
    )
    blocks = [taken, *_saved(frozen, whole(views, f"{run}/config.json: views"))]
    return blocks if len(runs) < 2 else [*blocks, _all_runs(runs)]


def _saved(frozen: Frozen, views: Number) -> list[Block]:
    """Which parts of a step need not be computed."""
    if not frozen.layers:
        return []
    saved = Number(100 * frozen.saved, "detect/freeze.py: Frozen.saved", ".0f")
    text = (
        "A backward pass takes about twice a forward pass; freezing saves the frozen layers' part of it, {saved} % of "
        "a step. "
    )
    if frozen.moving_statistics:
        return [Text(text + "Their outputs cannot be kept, since their statistics move.", {"saved": saved})]
    if not views.value:
        return [Text(text + "Their outputs are not kept: views are drawn anew in every epoch.", {"saved": saved})]
    text += (
        "Frozen layers that stand still give the same numbers for the same picture, so they are computed once for "
        "{views} fixed views of each picture and kept: then their forward part is saved too, {cached} % of a step in "
        "all."
    )
    cached = Number(100 * frozen.saved_with_cache, "detect/freeze.py: Frozen.saved_with_cache", ".0f")
    return [Text(text, {"saved": saved, "views": views, "cached": cached})]


def _all_runs(runs: Sequence[Path]) -> Table:
    rows: list[list[Cell]] = [
        [
            run.name,
            Path(summary_of(run)["data"]).name,
            summary_of(run)["recipe"],
            in_summary(run, "frozen", "layers"),
            in_summary(run, "epochs"),
            in_summary(run, "seconds_per_epoch", spec=".1f"),
            in_summary(run, "seconds_filling", spec=".1f"),
            in_summary(run, "before", "ap50", spec=".1f", scale=100.0),
            in_summary(run, "after", "ap50", spec=".1f", scale=100.0),
        ]
        for run in runs
    ]
    columns = ["run", "data", "recipe", "frozen", "epochs", "s an epoch", "s for caches", "AP50 before %", "after %"]
    return Table("All fine-tuning runs", columns, rows)


def freezing(found: Found, folder: Path) -> Section:
    """D.1: what was frozen, how, whether it stood still, and what that costs and saves."""
    head = (
        "D.1",
        "Fine-tuning with frozen layers",
        "Freeze the first layers of a detector that is trained already, by `named_parameters()`, and train the rest.",
    )
    if not found.detectors:
        return Section(*head, [Missing("a finished run of fine-tuning", COMMAND)])
    run = found.detectors[0]
    source = Code(
        "\n\n".join(inspect.getsource(one) for one in (freeze.freeze, freeze.StillBatchNorm2d, freeze._still))
    )
    return Section(
        *head,
        [
            *what_is_frozen(run),
            how(run),
            source,
            Text("The optimisers are given what is left, and so never touch the rest:"),
            Code(inspect.getsource(_by_role)),
            *stood_still(run, folder),
            *costs(found.detectors),
        ],
    )
