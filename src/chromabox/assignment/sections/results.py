"""Questions A.2, B.2, B.3, C.2 and C.3: the results of the three models, their comparison and its explanation."""

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
    RESULTS_FILE,
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

#: A smaller gap between training and test accuracy, in percentage points, is not called overfitting.
OVERFITTING_GAP = 2.0

POOL_UPSAMPLE, CONV_TRANSPOSE, UNET = "pool-upsample", "conv-transpose", "unet"


def pool_upsample_results(run_index: RunIndex, folder: Path) -> Section:
    """Build section A.2: the images of PoolUpsampleNet, whether they look good, and why not."""
    head = ("A.2", "Results with pooling and upsampling", "Do the colourised images look good, and why or why not?")
    runs = get_runs(run_index, POOL_UPSAMPLE)
    if runs is None:
        return missing_runs_section(run_index, *head, POOL_UPSAMPLE)
    [group] = runs
    analysis, data = _analyse_and_record(folder, group)
    path = folder / f"sheet-{POOL_UPSAMPLE}.png"
    plot_samples(reference_rows(analysis, data) | {POOL_UPSAMPLE: predicted_images(analysis, data)}, path)
    return Section(
        *head,
        [
            _scores_text(POOL_UPSAMPLE, group),
            *published_comparison({POOL_UPSAMPLE: group}),
            Figure(path, f"The first test images: greyscale, data truth, and the output of `{POOL_UPSAMPLE}`."),
            *baseline_blocks(POOL_UPSAMPLE, group[0], data, folder),
            blur_text(analysis),
            dullness_text(analysis, data),
        ],
    )


def conv_transpose_curves(run_index: RunIndex, folder: Path) -> Section:
    """Build section B.2: the training curves of ConvTransposeNet."""
    return _curves_section(
        run_index, folder, "B.2", "Training with strided convolutions", CONV_TRANSPOSE, (POOL_UPSAMPLE, CONV_TRANSPOSE)
    )


def unet_curves(run_index: RunIndex, folder: Path) -> Section:
    """Build section C.2: the training curves of UNet."""
    return _curves_section(
        run_index, folder, "C.2", "Training with skip connections", UNET, (POOL_UPSAMPLE, CONV_TRANSPOSE, UNET)
    )


def _curves_section(
    run_index: RunIndex, folder: Path, key: str, title: str, model: str, other_models: Sequence[str]
) -> Section:
    """Build a section with the training curves of ``model``, plotted together with those of ``other_models``."""
    head = (key, title, f"How do the loss and accuracy of `{model}` change during training?")
    runs = get_runs(run_index, model)
    if runs is None:
        return missing_runs_section(run_index, *head, model)
    runs_by_model = {name: run_index.colour[name] for name in other_models if run_index.colour.get(name)}
    path = folder / f"curves-{model}.png"
    plot_all_curves({name: [read_metrics(run) for run in group] for name, group in runs_by_model.items()}, path)
    caption = (
        "Loss and accuracy of every run, with a thin line for each seed. The training loss is the mean over the "
        "batches of the epoch; the training accuracy is measured on a sample of training images after the epoch."
    )
    return Section(*head, [Figure(path, caption), _convergence_text(model, runs[0])])


def _convergence_text(model: str, runs: Sequence[Path]) -> Text:
    """Describe, for the first run, whether training had converged and whether the model overfits."""
    run = runs[0]
    records = read_metrics(run)
    last = records[-1]
    best = min(records, key=lambda record: record["test_loss"])
    gap = 100 * (last["train_accuracy"] - last["test_accuracy"])
    falling = best["epoch"] == last["epoch"]
    source = f"{run}/metrics.jsonl"
    return Text(
        f"After {{epochs}} epochs with batches of {{batch}} images, `{model}` has a loss of {{loss}} and an accuracy "
        "of {accuracy} % on the test images (the assignment calls them validation images). The first run has its "
        "lowest test loss "
        + ("after the last epoch, so overfitting has not begun. " if falling else "after epoch {when} ({best}). ")
        + "At the end, the accuracy on training images is {gap} percentage points "
        + ("above" if gap >= 0 else "below")
        + " the accuracy on test images"
        + (", so the model does not overfit noticeably." if gap < OVERFITTING_GAP else "."),
        {
            "epochs": int_number(int(last["epoch"]), source),
            "batch": int_number(read_config(run).recipe.batch_size, f"{run}/config.json: recipe > batch_size"),
            "loss": mean_over_runs(runs, "test_loss"),
            "accuracy": mean_over_runs(runs, "test_accuracy", ".2f", 100.0),
            "gap": Number(abs(gap), f"{source}: last train_accuracy minus test_accuracy", ".1f"),
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
    """Build section B.3: ConvTransposeNet compared with PoolUpsampleNet, and why they differ."""
    head = (
        "B.3",
        "Strided convolutions compared with pooling",
        "How do the results compare with those of pooling and upsampling, and what explains the difference?",
    )
    runs = get_runs(run_index, POOL_UPSAMPLE, CONV_TRANSPOSE)
    if runs is None:
        return missing_runs_section(run_index, *head, POOL_UPSAMPLE, CONV_TRANSPOSE)
    (pool, data), (strided, _) = (_analyse_and_record(folder, group) for group in runs)
    changes = compute_differences(runs, pool, strided)
    return Section(
        *head,
        [
            comparison_table({POOL_UPSAMPLE: runs[0], CONV_TRANSPOSE: runs[1]}),
            difference_text(folder, POOL_UPSAMPLE, CONV_TRANSPOSE, changes),
            *published_comparison({POOL_UPSAMPLE: runs[0], CONV_TRANSPOSE: runs[1]}),
            *side_by_side(pool, strided, data, folder),
            image_quality_table(data, pool, strided),
            *stride_explanation_blocks(pool, strided, data, folder, is_better=is_improvement(changes)),
        ],
    )


def unet_results(run_index: RunIndex, folder: Path) -> Section:
    """Build section C.3: UNet compared with ConvTransposeNet, and why they differ."""
    head = (
        "C.3",
        "The effect of skip connections",
        "Did skip connections improve the loss, the accuracy and the images, and for what reasons?",
    )
    runs = get_runs(run_index, CONV_TRANSPOSE, UNET)
    if runs is None:
        return missing_runs_section(run_index, *head, CONV_TRANSPOSE, UNET)
    (strided, data), (with_skips, _) = (_analyse_and_record(folder, group) for group in runs)
    pool_runs = get_runs(run_index, POOL_UPSAMPLE)
    others = (_analyse_and_record(folder, pool_runs[0])[0],) if pool_runs else ()
    changes = compute_differences(runs, strided, with_skips)
    return Section(
        *head,
        [
            comparison_table({CONV_TRANSPOSE: runs[0], UNET: runs[1]}),
            difference_text(folder, CONV_TRANSPOSE, UNET, changes),
            *published_comparison({CONV_TRANSPOSE: runs[0], UNET: runs[1]}),
            *side_by_side(strided, with_skips, data, folder),
            image_quality_table(data, strided, with_skips),
            _image_quality_change_text(strided, with_skips),
            confusion_figure(UNET, _confusion_matrix(with_skips, data), data, folder),
            *skip_explanation_blocks(
                strided, with_skips, data, folder, is_better=is_improvement(changes), other_analyses=others
            ),
            *_calibration_blocks((*others, strided, with_skips), folder),
            _lookup_table_text(runs[1], data.lookup_table_accuracy),
        ],
    )


def _analyse_and_record(folder: Path, runs: Sequence[Path]) -> tuple[NetAnalysis, AnalysisData]:
    """Analyse the first run of a group, record the results, and return them with the data of the run."""
    analysis = analyse(runs[0])
    record_results(folder, "examined", SAMPLE_SIZES)
    record_results(folder, "nets", {analysis.model: analysis.to_json})
    return analysis, load_analysis_data(runs[0])


def _confusion_matrix(analysis: NetAnalysis, data: AnalysisData) -> Int64[np.ndarray, "truth prediction"]:
    return metrics.confusion_matrix(analysis.predictions.labels, data.test.labels.numpy(), len(data.inputs.palette))


def _scores_text(model: str, runs: Sequence[Path]) -> Text:
    return Text(
        f"After {{epochs}} epochs, `{model}` classifies {{accuracy}} % of the test pixels correctly, with a "
        "cross-entropy of {loss} nats per pixel (number of seeds: {seeds}).",
        {
            "accuracy": mean_over_runs(runs, "test_accuracy", ".2f", 100.0),
            "loss": mean_over_runs(runs, "test_loss"),
            "epochs": int_number(int(read_summary(runs[0])["epochs"]), f"{runs[0]}/summary.json: epochs"),
            "seeds": int_number(len(runs), "number of runs found"),
        },
    )


def _image_quality_change_text(before: NetAnalysis, after: NetAnalysis) -> Text:
    """Describe how sharpness, colour difference and colourfulness of the images changed."""
    sharper = after.high_frequencies.correlation > before.high_frequencies.correlation
    nearer = after.image_stats.delta_e < before.image_stats.delta_e
    more_colourful = after.image_stats.colourfulness > before.image_stats.colourfulness
    return Text(
        f"Compared with the images of `{before.model}`, the fine detail of the images of `{after.model}` is "
        f"{'' if sharper else 'not '}closer to the ground truth (correlation {{sharp_before}} before, {{sharp_after}} "
        f"after), their colours are {'' if nearer else 'not '}closer to the true colours (ΔE2000 {{delta_before}} "
        f"before, {{delta_after}} after), and they are {'' if more_colourful else 'not '}more colourful (colourfulness "
        "{lively_before} before, {lively_after} after).",
        {
            f"{name}_{when}": analysis_number(analysis, *keys, spec=spec)
            for name, keys, spec in (
                ("sharp", ("high_frequencies", "correlation"), ".3f"),
                ("delta", ("image_stats", "delta_e"), ".2f"),
                ("lively", ("image_stats", "colourfulness"), ".1f"),
            )
            for when, analysis in (("before", before), ("after", after))
        },
    )


def _calibration_blocks(analyses: Sequence[NetAnalysis], folder: Path) -> list[Block]:
    """Compare the confidence of the models with their accuracy."""
    path = folder / "calibration.png"
    plot_calibration({analysis.model: analysis.calibration for analysis in analyses}, path)
    after = analyses[-1]
    underconfident = after.calibration.overconfidence < 0
    return [
        Text(
            f"Confidence is a separate question: `{after.model}` is "
            f"{'underconfident' if underconfident else 'overconfident'}. On average, its confidence is {{surplus}} "
            f"percentage points {'below' if underconfident else 'above'} its accuracy (expected calibration error "
            "{error} %).",
            {
                "surplus": Number(
                    100 * abs(after.calibration.overconfidence),
                    f"{RESULTS_FILE}: nets > {after.model} > calibration error > surplus",
                    ".1f",
                ),
                "error": analysis_percent(after, "calibration error", "error"),
            },
        ),
        Figure(
            path,
            "Reliability diagram: accuracy against predicted probability. On the dotted line the two are equal.",
        ),
    ]


def _lookup_table_text(runs: Sequence[Path], table_accuracy: float) -> Text:
    ours = mean_over_runs(runs, "test_accuracy", ".2f", 100.0)
    above = ours.value > 100 * table_accuracy
    return Text(
        f"For comparison, the accuracy of the model with skip connections, {{ours}} %, is "
        f"{'above' if above else 'still below'} the {{table}} % of a lookup table from grey values to colours, which "
        "uses single pixels without their neighbours.",
        {"ours": ours, "table": Number(100 * table_accuracy, "grey_lookup_baseline on all test pictures", ".2f")},
    )
