"""D.1's answers from a run: what was frozen, whether it stood still, what that costs and saves."""

import inspect
from collections.abc import Sequence
from pathlib import Path

from chromabox.assignment.analysis.detector_analysis import LayerWeightChange, weight_changes
from chromabox.assignment.analysis.plots import plot_weight_changes
from chromabox.assignment.sections.class_loss import FINETUNE_COMMAND
from chromabox.assignment.sections.numbers import RESULTS_FILE, base_name, int_number, record_results, summary_number
from chromabox.detect.training import freeze
from chromabox.detect.training.config import read_finetune_config
from chromabox.detect.training.freeze import FreezeReport, num_backbone_layers
from chromabox.detect.training.setup import _parameter_groups
from chromabox.detect.weights.load import load_detector
from chromabox.experiments.runs import RunIndex, read_summary
from chromabox.report.document.model import Block, Cell, Code, Figure, MissingRun, Number, Section, Table, Text


def frozen_part_blocks(run: Path) -> list[Block]:
    """Which net, on what, and which part of it stays."""
    summary, architecture = read_summary(run), load_detector(run).architecture
    begun = Text(
        f"The detector is `{architecture.name}`, begun from `{base_name(summary['weights'])}` and fine-tuned on "
        f"`{base_name(summary['data'])}` by the {summary['recipe']} recipe."
    )
    total = summary_number(run, "frozen", "all_parameters")
    depth, end = summary["frozen"]["layers"], num_backbone_layers(architecture)
    if not depth:
        return [begun, Text("Nothing is frozen: all {all} parameters are trained.", {"all": total})]
    place = "as many as its backbone has" if depth == end else "fewer than" if depth < end else "more than"
    place += "" if depth == end else " the {end} of its backbone"
    share = 100 * summary["frozen"]["parameters"] / summary["frozen"]["all_parameters"]
    numbers = {
        "depth": summary_number(run, "frozen", "layers"),
        "layers": int_number(len(architecture.layers), f"{run}/best.safetensors: architecture"),
        "kept": summary_number(run, "frozen", "parameters"),
        "all": total,
        "share": Number(share, f"{run}/summary.json: frozen > parameters / all_parameters", ".1f"),
        "work": summary_number(run, "frozen", "share_of_work", spec=".0f", scale=100.0),
    }
    return [
        begun,
        Text(
            "Its first {depth} of {layers} layers are frozen, "
            + place
            + ": {kept} of {all} parameters ({share} %), which take {work} % of the multiplications of a forward pass. "
            "Layers are counted as darknet counts them, poolings and concatenations among them.",
            numbers | ({} if depth == end else {"end": int_number(end, "detect/freeze.py: backbone")}),
        ),
    ]


def freezing_method_text(run: Path) -> Text:
    moving = read_summary(run)["frozen"]["moving_statistics"]
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


def frozen_check_blocks(run: Path, folder: Path) -> list[Block]:
    """The run's first and best checkpoint compared, number by number."""
    changes = weight_changes(run)
    summary = read_summary(run)
    depth = summary["frozen"]["layers"]
    parts = {
        "frozen": [one for one in changes if one.layer < depth],
        "trained": [one for one in changes if one.layer >= depth],
    }
    measured = {
        name: {
            "parameters": sum(one.num_parameters for one in part),
            "largest": max(one.max_change for one in part),
            "statistics": max(one.max_stats_change for one in part),
        }
        for name, part in parts.items()
        if part
    }
    record_results(folder, "frozen layers", {run.name: measured})
    source = f"{RESULTS_FILE}: frozen layers > {run.name}"
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
    plot_weight_changes(changes, depth, path)
    caption = (
        "Change of every convolution with its normalisation: the root of the summed squares of its parameters' changes "
        "as a part of that of the parameters themselves"
    )
    return [
        Text(frozen_verdict(changes, depth, update_bn_stats=summary["frozen"]["moving_statistics"])),
        Table(
            "Largest absolute change from `start.safetensors` to `best.safetensors`",
            ["", "parameters", "change of a parameter", "change of a mean or variance"],
            rows,
        ),
        Figure(path, caption),
    ]


def frozen_verdict(changes: Sequence[LayerWeightChange], num_frozen: int, *, update_bn_stats: bool) -> str:
    """Whether what was frozen stood still, said by what was measured."""
    frozen = [one for one in changes if one.layer < num_frozen]
    if not frozen:
        return "Nothing was frozen, so everything may move; how much did:"
    parameters = all(one.max_change == 0 for one in frozen)
    statistics = all(one.max_stats_change == 0 for one in frozen)
    compared = (
        "Was it really still? The run keeps the net of before its first step, and its result is compared with it "
        "number by number. "
    )
    if not parameters:
        return compared + "It was not: parameters of frozen layers have moved, which is an error of the program:"
    if not statistics:
        expected = "as this recipe leaves them to" if update_bn_stats else "which is an error of the program"
        return compared + f"No parameter of a frozen layer differs, but their statistics have moved, {expected}:"
    others = all(one.max_change > 0 for one in changes if one.layer >= num_frozen)
    return (
        compared
        + "In the frozen layers not a single bit differs, neither of parameters nor of statistics; "
        + ("all other layers have moved:" if others else "not all of the other layers have moved either:")
    )


def cost_blocks(runs: Sequence[Path]) -> list[Block]:
    """What an epoch takes, what freezing saves of it, and all runs side by side."""
    run = runs[0]
    values = read_summary(run)["frozen"]
    frozen = FreezeReport(
        num_layers=values["layers"],
        frozen_parameters=values["parameters"],
        total_parameters=values["all_parameters"],
        flops_fraction=values["share_of_work"],
        update_bn_stats=values["moving_statistics"],
    )
    views = read_finetune_config(run).num_cached_views
    taken = Text(
        "An epoch took {seconds} s (the median, validation included) and filling the caches {filling} s once.",
        {
            "seconds": summary_number(run, "seconds_per_epoch", spec=".1f"),
            "filling": summary_number(run, "seconds_filling", spec=".1f"),
        },
    )
    blocks = [taken, *_savings_blocks(frozen, int_number(views, f"{run}/config.json: views"))]
    return blocks if len(runs) < 2 else [*blocks, _runs_table(runs)]


def _savings_blocks(report: FreezeReport, num_cached_views: Number) -> list[Block]:
    """Which parts of a step need not be computed."""
    if not report.num_layers:
        return []
    saved = Number(100 * report.step_savings, "detect/freeze.py: Frozen.saved", ".0f")
    text = (
        "A backward pass takes about twice a forward pass; freezing saves the frozen layers' part of it, {saved} % of "
        "a step. "
    )
    if report.update_bn_stats:
        return [Text(text + "Their outputs cannot be kept, since their statistics move.", {"saved": saved})]
    if not num_cached_views.value:
        return [Text(text + "Their outputs are not kept: views are drawn anew in every epoch.", {"saved": saved})]
    text += (
        "Frozen layers that stand still give the same numbers for the same picture, so they are computed once for "
        "{views} fixed views of each picture and kept: then their forward part is saved too, {cached} % of a step in "
        "all."
    )
    cached = Number(100 * report.step_savings_with_cache, "detect/freeze.py: Frozen.saved_with_cache", ".0f")
    return [Text(text, {"saved": saved, "views": num_cached_views, "cached": cached})]


def _runs_table(runs: Sequence[Path]) -> Table:
    rows: list[list[Cell]] = [
        [
            run.name,
            Path(read_summary(run)["data"]).name,
            read_summary(run)["recipe"],
            summary_number(run, "frozen", "layers"),
            summary_number(run, "epochs"),
            summary_number(run, "seconds_per_epoch", spec=".1f"),
            summary_number(run, "seconds_filling", spec=".1f"),
            summary_number(run, "before", "ap50", spec=".1f", scale=100.0),
            summary_number(run, "after", "ap50", spec=".1f", scale=100.0),
        ]
        for run in runs
    ]
    columns = ["run", "data", "recipe", "frozen", "epochs", "s an epoch", "s for caches", "AP50 before %", "after %"]
    return Table("All fine-tuning runs", columns, rows)


def freezing_section(run_index: RunIndex, folder: Path) -> Section:
    """D.1: what was frozen, how, whether it stood still, and what that costs and saves."""
    head = (
        "D.1",
        "Fine-tuning with frozen layers",
        "Freeze the first layers of a detector that is trained already, by `named_parameters()`, and train the rest.",
    )
    if not run_index.detectors:
        return Section(*head, [MissingRun("a finished run of fine-tuning", FINETUNE_COMMAND)])
    run = run_index.detectors[0]
    source = Code(
        "\n\n".join(
            inspect.getsource(one) for one in (freeze.freeze, freeze.FrozenBatchNorm2d, freeze._freeze_batch_norm)
        )
    )
    return Section(
        *head,
        [
            *frozen_part_blocks(run),
            freezing_method_text(run),
            source,
            Text("The optimisers are given what is left, and so never touch the rest:"),
            Code(inspect.getsource(_parameter_groups)),
            *frozen_check_blocks(run, folder),
            *cost_blocks(run_index.detectors),
        ],
    )
