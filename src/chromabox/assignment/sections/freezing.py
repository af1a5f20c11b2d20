"""Question D.1: the frozen layers of a fine-tuning run, whether they have changed, and the time saved."""

import inspect
from collections.abc import Sequence
from pathlib import Path

from chromabox.assignment.analysis.detector_analysis import LayerWeightChange, weight_changes
from chromabox.assignment.analysis.plots import plot_weight_changes
from chromabox.assignment.sections.class_loss import FINETUNE_COMMAND
from chromabox.assignment.sections.numbers import answers, int_number, record_results, summary_source
from chromabox.detect.training import freeze
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.freeze import FreezeReport, num_backbone_layers
from chromabox.detect.training.setup import parameter_groups
from chromabox.detect.weights.load import load_detector
from chromabox.engine.runs import RunDir
from chromabox.experiments.runs import RunIndex
from chromabox.report.document.model import Block, Cell, Code, Figure, MissingRun, Number, Source, Table, Text


def frozen_part_blocks(run: Path) -> list[Block]:
    """Describe the detector, its dataset and its frozen layers."""
    summary, architecture = summary_source(run), load_detector(run).architecture
    frozen, end = summary.get("frozen"), num_backbone_layers(architecture)
    depth = frozen["layers"]
    relation = "as many as" if depth == end else f"{'fewer' if depth < end else 'more'} than"
    return [
        Text(
            "The detector is `{name}`. It was initialised from `{weights}` and fine-tuned on `{data}` with the "
            "{recipe} recipe.",
            name=architecture.name,
            weights=Path(summary.get("weights")).name,
            data=Path(summary.get("data")).name,
            recipe=summary.get("recipe"),
        ),
        Text(
            "The first {run.frozen.layers:,.0f} of its {layers} layers are frozen, {relation} the {end} layers of its "
            "backbone. These layers have {run.frozen.parameters:,.0f} of {run.frozen.all_parameters:,.0f} parameters "
            "({fraction} %) and account for {run.frozen.share_of_work:.0%} of the multiplications of a forward pass. "
            "Layers are counted as in Darknet, including pooling layers and concatenations.",
            run=summary,
            relation=relation,
            layers=int_number(len(architecture.layers), f"{run}/best.safetensors: architecture"),
            end=int_number(end, "detect/training/freeze.py: num_backbone_layers"),
            fraction=Number(
                100 * frozen["parameters"] / frozen["all_parameters"],
                f"{run}/summary.json: frozen > parameters / all_parameters",
                ".1f",
            ),
        ),
    ]


def frozen_check_blocks(run: Path, folder: Path) -> list[Block]:
    """Compare the parameters and statistics of the initial and the best checkpoint of the run, value by value."""
    changes = weight_changes(run)
    frozen = RunDir(run).summary()["frozen"]
    depth = frozen["layers"]
    results = {}
    for name, is_frozen in (("frozen", True), ("trained", False)):
        if group := [change for change in changes if (change.layer < depth) == is_frozen]:
            results[name] = {
                "parameters": sum(change.num_parameters for change in group),
                "largest": max(change.max_change for change in group),
                "statistics": max(change.max_stats_change for change in group),
            }
    recorded = record_results(folder, results, "frozen layers", run.name)
    specs = {"parameters": ",.0f", "largest": ".2g", "statistics": ".2g"}
    rows: list[list[Cell]] = [
        [f"{name} layers", *(recorded.number(name, key, spec=spec) for key, spec in specs.items())] for name in results
    ]
    path = folder / f"changes-{run.name}.png"
    plot_weight_changes(changes, depth, path)
    caption = (
        "Relative change of every convolution with its batch normalisation: norm of the change of its parameters "
        "divided by the norm of the parameters"
    )
    return [
        Text(frozen_verdict(changes, depth, update_bn_stats=frozen["moving_statistics"])),
        Table(
            "Largest absolute change from `start.safetensors` to `best.safetensors`",
            ["", "parameters", "change of a parameter", "change of a running mean or variance"],
            rows,
        ),
        Figure(path, caption),
    ]


def frozen_verdict(changes: Sequence[LayerWeightChange], num_frozen: int, *, update_bn_stats: bool) -> str:
    """Return a sentence that states whether the frozen layers have changed."""
    frozen = [change for change in changes if change.layer < num_frozen]
    if not frozen:
        return "No layer was frozen, so all parameters may change. The changes are:"
    method = "To verify the freezing, the trained model is compared with the initial model value by value. "
    if any(change.max_change for change in frozen):
        return method + "Parameters of frozen layers have changed, which is an error in the program:"
    if any(change.max_stats_change for change in frozen):
        expected = "as this recipe intends" if update_bn_stats else "which is an error in the program"
        return method + f"The frozen parameters have not changed, but the BatchNorm statistics have, {expected}:"
    others = "all other layers have changed"
    if not all(change.max_change > 0 for change in changes if change.layer >= num_frozen):
        others = "some of the other layers have not changed either"
    return f"{method}In the frozen layers, all parameters and statistics are bitwise identical; {others}:"


def cost_blocks(runs: Sequence[Path]) -> list[Block]:
    """Report the time per epoch and the time saved by freezing. If there are several runs, add a table."""
    run = runs[0]
    values, num_cached_views = RunDir(run).summary()["frozen"], RunDir(run).load_config(FinetuneConfig).num_cached_views
    keys = ("layers", "parameters", "all_parameters", "share_of_work", "moving_statistics")
    report = FreezeReport(*(values[key] for key in keys))
    text = (
        "A backward pass takes about twice as long as a forward pass. Freezing saves the backward pass of the frozen "
        "layers, which accounts for {report.step_savings:.0%} of the computation in a step. "
    )
    numbers = {}
    if report.update_bn_stats:
        text += "The outputs of these layers cannot be cached, because their statistics change."
    elif not num_cached_views:
        text += "The outputs of these layers are not cached, because the images are augmented again in every epoch."
    else:
        text += (
            "Frozen layers have the same output for the same input, so their outputs are computed once for {views} "
            "fixed augmented views of each image and cached. This also saves their forward pass; in total, freezing "
            "saves {report.flops_fraction:.0%} of the computation in a step."
        )
        numbers["views"] = int_number(num_cached_views, f"{run}/config.json: num_cached_views")
    blocks: list[Block] = [
        Text(
            "An epoch took {run.seconds_per_epoch:.1f} s (median, including validation). Filling the feature cache "
            "took {run.seconds_filling:.1f} s once.",
            run=summary_source(run),
        )
    ]
    if report.num_layers:
        blocks.append(Text(text, numbers, report=Source(report, "detect/training/freeze.py: FreezeReport.")))
    if len(runs) == 1:
        return blocks
    rows: list[list[Cell]] = [
        [
            run.name,
            Path(summary.get("data")).name,
            summary.get("recipe"),
            summary.number("frozen", "layers", spec=",.0f"),
            summary.number("epochs", spec=",.0f"),
            *(summary.number(key, spec=".1f") for key in ("seconds_per_epoch", "seconds_filling")),
            *(summary.number(when, "ap50", spec=".1%") for when in ("before", "after")),
        ]
        for run, summary in zip(runs, map(summary_source, runs), strict=True)
    ]
    columns = ["run", "data", "recipe", "frozen", "epochs", "s per epoch", "s for cache"]
    return [*blocks, Table("All fine-tuning runs", [*columns, "AP50 before (%)", "after (%)"], rows)]


@answers(
    "D.1",
    "Fine-tuning with frozen layers",
    "Freeze the first layers of a pretrained detector using `named_parameters()`, and train the remaining layers.",
)
def freezing_section(run_index: RunIndex, folder: Path) -> list[Block]:
    """Answer D.1: how layers are frozen, whether the frozen layers changed, and how much time freezing saved."""
    if not run_index.detectors:
        return [MissingRun("a finished fine-tuning run", FINETUNE_COMMAND)]
    run = run_index.detectors[0]
    remark = "Batch normalisation of frozen layers is therefore replaced by a layer that stays in evaluation mode."
    if RunDir(run).summary()["frozen"]["moving_statistics"]:
        remark = "In this run, the statistics are still updated, as in the tool that the assignment uses."
    code = [inspect.getsource(item) for item in (freeze.freeze, freeze.FrozenBatchNorm2d, freeze._freeze_batch_norm)]
    return [
        *frozen_part_blocks(run),
        Text(
            "`named_parameters()` yields every parameter with its name, which begins with `layers.` and the number of "
            "the layer. For the parameters of the first layers, `requires_grad` is set to False: the backward pass "
            "stops before these layers, and the optimizers do not contain their parameters. This alone does not freeze "
            "a layer. The means and variances of batch normalisation are buffers, not parameters, and every forward "
            "pass in training mode updates them. The frozen kernels would then receive inputs whose statistics differ "
            f"from those they were trained with. {remark}"
        ),
        Code("\n\n".join(code)),
        Text("The optimizers receive only the remaining parameters:"),
        Code(inspect.getsource(parameter_groups)),
        *frozen_check_blocks(run, folder),
        *cost_blocks(run_index.detectors),
    ]
