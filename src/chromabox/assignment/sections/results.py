"""What the three nets reach, how they compare, and why: questions A.2, B.2, B.3, C.2 and C.3."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from chromabox.assignment.analysis.net_analysis import (
    SAMPLE_SIZES,
    AnalysisData,
    NetAnalysis,
    analyse,
    load_analysis_data,
)
from chromabox.assignment.analysis.plots import plot_all_curves, plot_calibration, plot_samples
from chromabox.assignment.sections.comparison import image_quality_table, predicted_images, reference_rows, side_by_side
from chromabox.assignment.sections.explanations import (
    baseline_blocks,
    blur_text,
    confusion_figure,
    dullness_text,
    skip_explanation_blocks,
    stride_explanation_blocks,
)
from chromabox.assignment.sections.numbers import (
    analysis_number,
    analysis_percent,
    comparison_table,
    compute_differences,
    difference_text,
    get_runs,
    int_number,
    is_improvement,
    mean_over_runs,
    missing_runs_section,
    published_comparison,
    record_results,
)
from chromabox.colour.evaluation import metrics
from chromabox.colour.training.train import read_config
from chromabox.engine.logger import read_metrics
from chromabox.experiments.runs import RunIndex, read_summary
from chromabox.report.document.model import Block, Figure, Number, Section, Text

#: Points of accuracy by which training pictures may be ahead before one speaks of learning by heart.
OVERFITTING_GAP = 2.0

POOL_UPSAMPLE, CONV_TRANSPOSE, UNET = "pool-upsample", "conv-transpose", "unet"


def pool_upsample_results(run_index: RunIndex, folder: Path) -> Section:
    """A.2: the first net's pictures, whether they look good, and why not."""
    head = ("A.2", "What pooling and upsampling reach", "Do the coloured pictures look good, and why or why not?")
    runs = get_runs(run_index, POOL_UPSAMPLE)
    if runs is None:
        return missing_runs_section(run_index, *head, POOL_UPSAMPLE)
    [group] = runs
    one, ground = _analyse_and_record(folder, group)
    sheet = folder / f"sheet-{POOL_UPSAMPLE}.png"
    plot_samples(reference_rows(one, ground) | {POOL_UPSAMPLE: predicted_images(one, ground)}, sheet)
    return Section(
        *head,
        [
            _scores_text(POOL_UPSAMPLE, group),
            *published_comparison({POOL_UPSAMPLE: group}),
            Figure(sheet, f"The first test pictures: grey, the truth, and what `{POOL_UPSAMPLE}` makes of the grey."),
            *baseline_blocks(POOL_UPSAMPLE, group[0], ground, folder),
            blur_text(one),
            dullness_text(one, ground),
        ],
    )


def conv_transpose_curves(run_index: RunIndex, folder: Path) -> Section:
    """B.2: the second net's training curves."""
    return _curves_section(
        run_index, folder, "B.2", "Training with strides", CONV_TRANSPOSE, (POOL_UPSAMPLE, CONV_TRANSPOSE)
    )


def unet_curves(run_index: RunIndex, folder: Path) -> Section:
    """C.2: the third net's training curves."""
    return _curves_section(
        run_index, folder, "C.2", "Training with skip connections", UNET, (POOL_UPSAMPLE, CONV_TRANSPOSE, UNET)
    )


def _curves_section(
    run_index: RunIndex, folder: Path, key: str, title: str, model: str, other_models: Sequence[str]
) -> Section:
    """The curves of one net, and in the same figure those of nets before it."""
    head = (key, title, f"How do loss and accuracy of `{model}` change while it trains?")
    runs = get_runs(run_index, model)
    if runs is None:
        return missing_runs_section(run_index, *head, model)
    drawn = {name: run_index.colour[name] for name in other_models if run_index.colour.get(name)}
    path = folder / f"curves-{model}.png"
    plot_all_curves({name: [read_metrics(run) for run in group] for name, group in drawn.items()}, path)
    caption = (
        "Loss and accuracy of every run, a thin line for each seed; the training loss is the mean over the epoch's own "
        "batches, the training accuracy that of some training pictures after it."
    )
    return Section(*head, [Figure(path, caption), _convergence_text(model, runs[0])])


def _convergence_text(model: str, runs: Sequence[Path]) -> Text:
    """Whether the net was still learning and whether it learnt by heart, by its first run."""
    run = runs[0]
    records = read_metrics(run)
    last = records[-1]
    best = min(records, key=lambda record: record["test_loss"])
    gap = 100 * (last["train_accuracy"] - last["test_accuracy"])
    falling = best["epoch"] == last["epoch"]
    source = f"{run}/metrics.jsonl"
    return Text(
        f"After {{epochs}} epochs of batches of {{batch}}, `{model}` stands at a loss of {{loss}} and {{accuracy}} % on "
        "the test pictures, which the assignment calls validation. The lowest test loss of the first run is "
        + ("that of its last epoch: it has not yet begun to overfit. " if falling else "{best} at epoch {when}. ")
        + "At the end its accuracy on training pictures is {gap} points "
        + ("above" if gap >= 0 else "below")
        + " that on test pictures"
        + (": it has learnt hardly any of them by heart." if gap < OVERFITTING_GAP else "."),
        {
            "epochs": int_number(int(last["epoch"]), source),
            "batch": int_number(read_config(run).recipe.batch_size, f"{run}/config.json: recipe > batch_size"),
            "loss": mean_over_runs(runs, "test_loss"),
            "accuracy": mean_over_runs(runs, "test_accuracy", ".2f", 100.0),
            "gap": Number(abs(gap), f"{source}: last train_accuracy less test_accuracy", ".1f"),
        }
        | (
            {}
            if falling
            else {
                "best": Number(best["test_loss"], f"{source}: lowest test_loss", ".4f"),
                "when": int_number(int(best["epoch"]), f"{source}: epoch of the lowest test_loss"),
            }
        ),
    )


def conv_transpose_results(run_index: RunIndex, folder: Path) -> Section:
    """B.3: the second net beside the first, and why they differ."""
    head = (
        "B.3",
        "Strides beside pooling",
        "How do the results compare with those of pooling and upsampling, and what explains the difference?",
    )
    runs = get_runs(run_index, POOL_UPSAMPLE, CONV_TRANSPOSE)
    if runs is None:
        return missing_runs_section(run_index, *head, POOL_UPSAMPLE, CONV_TRANSPOSE)
    (pool, ground), (strided, _) = (_analyse_and_record(folder, group) for group in runs)
    changes = compute_differences(runs, pool, strided)
    return Section(
        *head,
        [
            comparison_table({POOL_UPSAMPLE: runs[0], CONV_TRANSPOSE: runs[1]}),
            difference_text(folder, POOL_UPSAMPLE, CONV_TRANSPOSE, changes),
            *published_comparison({POOL_UPSAMPLE: runs[0], CONV_TRANSPOSE: runs[1]}),
            *side_by_side(pool, strided, ground, folder),
            image_quality_table(ground, pool, strided),
            *stride_explanation_blocks(pool, strided, ground, folder, is_better=is_improvement(changes)),
        ],
    )


def unet_results(run_index: RunIndex, folder: Path) -> Section:
    """C.3: the third net beside the second, and why they differ."""
    head = (
        "C.3",
        "What skip connections change",
        "Did skip connections improve loss, accuracy and the pictures, and for what reasons?",
    )
    runs = get_runs(run_index, CONV_TRANSPOSE, UNET)
    if runs is None:
        return missing_runs_section(run_index, *head, CONV_TRANSPOSE, UNET)
    (strided, ground), (skipping, _) = (_analyse_and_record(folder, group) for group in runs)
    pools = get_runs(run_index, POOL_UPSAMPLE)
    others = (_analyse_and_record(folder, pools[0])[0],) if pools else ()
    changes = compute_differences(runs, strided, skipping)
    return Section(
        *head,
        [
            comparison_table({CONV_TRANSPOSE: runs[0], UNET: runs[1]}),
            difference_text(folder, CONV_TRANSPOSE, UNET, changes),
            *published_comparison({CONV_TRANSPOSE: runs[0], UNET: runs[1]}),
            *side_by_side(strided, skipping, ground, folder),
            image_quality_table(ground, strided, skipping),
            _image_quality_text(strided, skipping),
            confusion_figure(UNET, _confusion_matrix(skipping, ground), ground, folder),
            *skip_explanation_blocks(
                strided, skipping, ground, folder, is_better=is_improvement(changes), other_analyses=others
            ),
            *_calibration_blocks((*others, strided, skipping), folder),
            _lookup_table_text(runs[1], ground.lookup_table_accuracy),
        ],
    )


def _analyse_and_record(folder: Path, runs: Sequence[Path]) -> tuple[NetAnalysis, AnalysisData]:
    """The net of a group's first run, looked into and recorded, and the ground that it stands on."""
    one = analyse(runs[0])
    record_results(folder, "examined", SAMPLE_SIZES)
    record_results(folder, "nets", {one.model: one.to_json})
    return one, load_analysis_data(runs[0])


def _confusion_matrix(analysis: NetAnalysis, data: AnalysisData) -> Int64[np.ndarray, "truth prediction"]:
    return metrics.confusion_matrix(analysis.predictions.labels, data.test.labels.numpy(), len(data.inputs.palette))


def _scores_text(model: str, runs: Sequence[Path]) -> Text:
    return Text(
        f"`{model}` has {{accuracy}} % of the test pixels right at a cross-entropy of {{loss}} nats a pixel after "
        "{epochs} epochs (seeds: {seeds}).",
        {
            "accuracy": mean_over_runs(runs, "test_accuracy", ".2f", 100.0),
            "loss": mean_over_runs(runs, "test_loss"),
            "epochs": int_number(int(read_summary(runs[0])["epochs"]), f"{runs[0]}/summary.json: epochs"),
            "seeds": int_number(len(runs), "runs found"),
        },
    )


def _image_quality_text(before: NetAnalysis, after: NetAnalysis) -> Text:
    """Whether the pictures got better, and in what."""
    sharper = after.high_frequencies.correlation > before.high_frequencies.correlation
    nearer = after.image_stats.delta_e < before.image_stats.delta_e
    livelier = after.image_stats.colourfulness > before.image_stats.colourfulness
    return Text(
        f"To the eye: the fine detail of `{after.model}`'s pictures is {'' if sharper else 'not '}nearer to the true one "
        f"(correlation {{sharp_before}} before, {{sharp_after}} after), their colours are {'' if nearer else 'not '}"
        "nearer to the true ones (ΔE2000 {delta_before} before, {delta_after} after), and they are "
        f"{'' if livelier else 'not '}livelier (colourfulness {{lively_before}} before, {{lively_after}} after).",
        {
            f"{name}_{when}": analysis_number(one, *keys, spec=spec)
            for name, keys, spec in (
                ("sharp", ("detail", "correlation"), ".3f"),
                ("delta", ("looks", "delta_e"), ".2f"),
                ("lively", ("looks", "colourfulness"), ".1f"),
            )
            for when, one in (("before", before), ("after", after))
        },
    )


def _calibration_blocks(analyses: Sequence[NetAnalysis], folder: Path) -> list[Block]:
    """How sure the nets are, beside how often they are right."""
    path = folder / "calibration.png"
    plot_calibration({one.model: one.calibration for one in analyses}, path)
    after = analyses[-1]
    modest = after.calibration.overconfidence < 0
    return [
        Text(
            f"How sure the net is, is a matter apart: `{after.model}` is "
            f"{'less sure than it is right' if modest else 'surer than it is right'}, by {{surplus}} points on average "
            "(expected calibration error {error} %).",
            {
                "surplus": Number(
                    100 * abs(after.calibration.overconfidence),
                    f"results.json: nets > {after.model} > calibration error > surplus",
                    ".1f",
                ),
                "error": analysis_percent(after, "calibration error", "error"),
            },
        ),
        Figure(
            path,
            "How often an answer is right against the probability that the net gives it; on the dotted line the two "
            "agree.",
        ),
    ]


def _lookup_table_text(runs: Sequence[Path], table_accuracy: float) -> Text:
    ours = mean_over_runs(runs, "test_accuracy", ".2f", 100.0)
    above = ours.value > 100 * table_accuracy
    return Text(
        f"A last comparison puts the gain in its place: with {{ours}} % the net with skips is "
        f"{'above' if above else 'still below'} the {{table}} % of a table from grey values to colours, which looks at "
        "one pixel only.",
        {"ours": ours, "table": Number(100 * table_accuracy, "grey_lookup_baseline on all test pictures", ".2f")},
    )
