"""Questions A.2, B.2, B.3, C.2 and C.3: the results of the three models, compared and explained."""

from collections.abc import Sequence
from pathlib import Path

from chromabox.assignment.analysis.net_analysis import (
    SAMPLE_SIZES,
    AnalysisData,
    NetAnalysis,
    analyse,
    load_analysis_data,
)
from chromabox.assignment.analysis.pixels import measure_agreement
from chromabox.assignment.analysis.plots import plot_agreement, plot_all_curves, plot_calibration, plot_samples
from chromabox.assignment.sections.explanations import blur_text, dullness_text, explain_skips, explain_strides
from chromabox.assignment.sections.numbers import (
    SectionBuilder,
    answers,
    comparison_table,
    compute_differences,
    difference_text,
    int_number,
    is_improvement,
    mean_over_runs,
    published_blocks,
    record_results,
    summary_source,
)
from chromabox.colour.data.datasets import ColourDataset
from chromabox.colour.evaluation.evaluate import evaluate, sample_grid
from chromabox.colour.palette.palette import decode_labels
from chromabox.colour.training.train import TrainConfig
from chromabox.colour.weights.checkpoint import load_palette_model
from chromabox.engine.logger import read_metrics
from chromabox.engine.runs import RunDir
from chromabox.experiments.runs import RunIndex
from chromabox.report.document.model import Block, Cell, Figure, Number, Source, Table, Text
from chromabox.report.plots import RGBTile, plot_confusion_matrix
from chromabox.report.tables import DISPLAY_NAMES

#: Gap between training and test accuracy, in percentage points, from which a model is said to overfit.
OVERFITTING_GAP = 2.0
#: Number of test images in a row of a figure.
NUM_SAMPLES = 8

POOL_UPSAMPLE = "pool-upsample"
MODELS = (POOL_UPSAMPLE, "conv-transpose", "unet")


@answers(
    "A.2", "Results with pooling and upsampling", "Do the colourised images look good, and why or why not?", MODELS[:1]
)
def pool_upsample_results(run_index: RunIndex, folder: Path, runs: Sequence[Path]) -> list[Block]:
    """Answer A.2: whether the images of PoolUpsampleNet look good, and why."""
    analysis, data = _analyse_and_record(folder, runs)
    path = folder / f"sheet-{POOL_UPSAMPLE}.png"
    plot_samples(_sample_rows(data, analysis), path)
    return [
        Text(
            "After {first.epochs:,.0f} epochs, `{first.net}` classifies {accuracy} % of the test pixels correctly, "
            "with a cross-entropy of {loss} nats per pixel (number of seeds: {seeds}).",
            first=summary_source(runs[0]),
            accuracy=mean_over_runs(runs, "test_accuracy"),
            loss=mean_over_runs(runs, "test_loss"),
            seeds=int_number(len(runs), "number of runs found"),
        ),
        *published_blocks(POOL_UPSAMPLE, runs),
        Figure(path, f"The first test images: greyscale, ground truth, and the output of `{POOL_UPSAMPLE}`."),
        *_baseline_blocks(runs[0], data, folder),
        blur_text(analysis),
        dullness_text(analysis),
    ]


def _curves_section(key: str, title: str, models: Sequence[str]) -> SectionBuilder:
    """Return a function that builds the section on the training of the last model; its figure shows all ``models``."""
    model = models[-1]

    @answers(key, title, f"How do the loss and accuracy of `{model}` change during training?", [model])
    def answer(run_index: RunIndex, folder: Path, runs: Sequence[Path]) -> list[Block]:
        path = folder / f"curves-{model}.png"
        available = [name for name in models if run_index.colour.get(name)]
        plot_all_curves({name: [read_metrics(run) for run in run_index.colour[name]] for name in available}, path)
        caption = (
            "Loss and accuracy of every run, with a thin line for each seed. The training loss is the mean over the "
            "batches of the epoch; the training accuracy is measured on a sample of training images after the epoch."
        )
        run, records = runs[0], read_metrics(runs[0])
        last, best = records[-1], min(records, key=lambda record: record["test_loss"])
        gap = 100 * (last["train_accuracy"] - last["test_accuracy"])
        batch_size = RunDir(run).load_config(TrainConfig).recipe.batch_size
        source = f"{run}/metrics.jsonl"
        text = Text(
            "After {epochs} epochs with batches of {batch} images, `{model}` has a loss of {loss} and an accuracy of "
            "{accuracy} % on the test images (the assignment calls them validation images). In the first run, the test "
            "loss reaches its minimum of {best} after epoch {when}. At the end, the accuracy on training images is "
            "{gap} percentage points {relation} the accuracy on test images{remark}.",
            epochs=int_number(int(last["epoch"]), source),
            batch=int_number(batch_size, f"{run}/config.json: recipe > batch_size"),
            model=model,
            loss=mean_over_runs(runs, "test_loss"),
            accuracy=mean_over_runs(runs, "test_accuracy"),
            when=int_number(int(best["epoch"]), f"{source}: epoch of the lowest test_loss"),
            best=Number(best["test_loss"], f"{source}: lowest test_loss", ".4f"),
            gap=Number(abs(gap), f"{source}: last train_accuracy minus test_accuracy", ".1f"),
            relation="above" if gap >= 0 else "below",
            remark=", so the model does not overfit noticeably" if gap < OVERFITTING_GAP else "",
        )
        return [Figure(path, caption), text]

    return answer


conv_transpose_curves = _curves_section("B.2", "Training with strided convolutions", MODELS[:2])
unet_curves = _curves_section("C.2", "Training with skip connections", MODELS)


@answers(
    "B.3",
    "Strided convolutions compared with pooling",
    "How do the results compare with those of pooling and upsampling, and what explains the difference?",
    MODELS[:2],
)
def conv_transpose_results(run_index: RunIndex, folder: Path, *runs: Sequence[Path]) -> list[Block]:
    """Answer B.3: compare ConvTransposeNet with PoolUpsampleNet and explain the difference."""
    pool, strided, data, is_better, blocks = _compare(folder, *runs)
    return [*blocks, *explain_strides(pool, strided, data, folder, is_better=is_better)]


@answers(
    "C.3",
    "The effect of skip connections",
    "Did skip connections improve the loss, the accuracy and the images, and for what reasons?",
    MODELS[1:],
)
def unet_results(run_index: RunIndex, folder: Path, *runs: Sequence[Path]) -> list[Block]:
    """Answer C.3: compare UNet with ConvTransposeNet and explain the difference."""
    strided, with_skips, data, is_better, blocks = _compare(folder, *runs)
    pool_runs = run_index.colour.get(POOL_UPSAMPLE)
    others = (_analyse_and_record(folder, pool_runs)[0],) if pool_runs else ()
    return [
        *blocks,
        _image_quality_change_text(strided, with_skips),
        *explain_skips(strided, with_skips, data, folder, is_better=is_better, other_analyses=others),
        *_calibration_blocks((*others, strided, with_skips), folder),
        Text(
            "The accuracy of the model with skip connections is {ours} %. A lookup table from grey values to colours, "
            "which uses single pixels without their neighbours, has an accuracy of {table} %.",
            ours=mean_over_runs(runs[1], "test_accuracy"),
            table=Number(100 * data.lookup_table_accuracy, "grey_lookup_baseline on all test images", ".2f"),
        ),
    ]


def _compare(folder: Path, *runs: Sequence[Path]) -> tuple[NetAnalysis, NetAnalysis, AnalysisData, bool, list[Block]]:
    """Return the analyses of two models, their data, whether the second is better, and blocks that compare the two."""
    (first, data), (second, _) = (_analyse_and_record(folder, group) for group in runs)
    runs_by_model = {first.model: runs[0], second.model: runs[1]}
    changes = compute_differences(runs, first, second)
    blocks = [
        comparison_table(runs_by_model),
        difference_text(folder, first.model, second.model, changes),
        *(block for model, group in runs_by_model.items() for block in published_blocks(model, group)),
        *_side_by_side(first, second, data, folder),
        _image_quality_table(data, first, second),
    ]
    return first, second, data, is_improvement(changes), blocks


def _analyse_and_record(folder: Path, runs: Sequence[Path]) -> tuple[NetAnalysis, AnalysisData]:
    """Analyse the first run of a group and record the results. Return the analysis and the data of the run."""
    analysis = analyse(runs[0])
    record_results(folder, SAMPLE_SIZES, "examined")
    record_results(folder, analysis.to_json, "nets", analysis.model)
    return analysis, load_analysis_data(runs[0])


def _image_quality_change_text(before: NetAnalysis, after: NetAnalysis) -> Text:
    """Describe how the sharpness, the colour difference and the colourfulness of the images changed."""
    improvements = {
        "sharper": after.high_frequencies["correlation"] > before.high_frequencies["correlation"],
        "nearer": after.image_stats["delta_e"] < before.image_stats["delta_e"],
        "livelier": after.image_stats["colourfulness"] > before.image_stats["colourfulness"],
    }
    return Text(
        "Compared with the images of `{before}`, the images of `{after}` are {livelier}more colourful, their fine "
        "detail is {sharper}closer to the ground truth, and their colours are {nearer}closer to the true colours. The "
        "table above contains the measurements.",
        {name: "" if improved else "not " for name, improved in improvements.items()},
        before=before.model,
        after=after.model,
    )


def _calibration_blocks(analyses: Sequence[NetAnalysis], folder: Path) -> list[Block]:
    """Compare the confidence of the models with their accuracy."""
    path = folder / "calibration.png"
    plot_calibration({analysis.model: analysis.calibration for analysis in analyses}, path)
    after = analyses[-1]
    return [
        Text(
            "The trained `{after.model}` is {verdict}: its mean confidence minus its accuracy is "
            "{after.calibration error.surplus:+.1%} (expected calibration error {after.calibration error.error:.1%}).",
            after=after.source,
            verdict="underconfident" if after.calibration.overconfidence < 0 else "overconfident",
        ),
        Figure(
            path,
            "Reliability diagram: accuracy against predicted probability. The dotted line marks perfect calibration.",
        ),
    ]


def _sample_rows(data: AnalysisData, *analyses: NetAnalysis) -> dict[str, Sequence[RGBTile]]:
    """Return the first test images in greyscale, in their true colours, and as colourised by each model."""
    network, palette = load_palette_model(analyses[0].run).network, data.inputs.palette
    grey, truth, _ = sample_grid(network, data.test, palette, NUM_SAMPLES)
    images = {
        analysis.model: list(decode_labels(analysis.predictions.labels[:NUM_SAMPLES], palette)) for analysis in analyses
    }
    return {"greyscale": grey, "ground truth": truth, **images}


def _side_by_side(first: NetAnalysis, second: NetAnalysis, data: AnalysisData, folder: Path) -> list[Block]:
    """Show the first test images as colourised by both models, with a map of correct pixels, and compare the models."""
    path = folder / f"{first.model}-and-{second.model}.png"
    rows = _sample_rows(data, first, second)
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


def _image_quality_table(data: AnalysisData, *analyses: NetAnalysis) -> Table:
    """Return a table of image quality relative to the ground truth, with the greyscale images as a baseline."""
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
    grey = [Number(data.grey_stats[key], f"greyscale test images: {key}", ".2f") for key in ("psnr", "delta_e")]
    zero = Number(0.0, "colourfulness of greyscale images", ".1f")
    truth = Number(data.true_colourfulness, "colourfulness of the test images analysed", ".1f")
    return Table(
        f"Image quality (first {len(data.test)} test images, one seed). Fine detail is the deviation of the pixels "
        "from the mean of their 4 × 4 block. The energy is relative to that of the fine detail of the true colours, "
        "and the correlation is with the fine detail of the true colours",
        ["", "PSNR (dB)", "ΔE2000", "colourfulness", "detail energy (%)", "detail correlation"],
        [*rows, ["greyscale", *grey, zero, "–", "–"], ["ground truth", "–", "–", truth, "–", "–"]],
    )


def _baseline_blocks(run: Path, analysis_data: AnalysisData, folder: Path) -> list[Block]:
    """Compare PoolUpsampleNet with baselines and the upper bound set by the palette, and show its confusion matrix."""
    model, data = POOL_UPSAMPLE, analysis_data.inputs.data
    evaluation = evaluate(load_palette_model(run), ColourDataset(data.train, data.test))
    recorded = record_results(folder, evaluation.as_json()["rows"], "evaluation", model)
    # An infinite PSNR is stored as null in the file. These rows contain infinity, so that ∞ is printed.
    scores = Source({row.name: row for row in evaluation.rows}, recorded.name)
    columns = {"loss": ".4f", "accuracy": ".2%", "psnr": ".2f", "delta_e": ".2f", "colourfulness": ".1f"}
    rows: list[list[Cell]] = [
        [
            DISPLAY_NAMES.get(row.name, row.name),
            *("–" if getattr(row, key) is None else scores.number(row.name, key, spec=columns[key]) for key in columns),
        ]
        for row in evaluation.rows
    ]
    ours, grey, table = (evaluation.row(name) for name in ("net", "grey", "grey value's colour"))
    assert ours.accuracy is not None
    assert table.accuracy is not None
    closer, more_accurate = ours.delta_e < grey.delta_e, ours.accuracy > table.accuracy
    verdict = ("No.", "Only partly.", "Yes, by both measures.")[int(closer) + int(more_accurate)]
    path = folder / f"confusion-{model}.png"
    plot_confusion_matrix(evaluation.confusion, analysis_data.inputs.palette.colours, path, "")
    return [
        Table(
            f"`{model}` (one seed) on all test images, compared with baselines that need no model and with the upper "
            "bound set by the palette. On the colourfulness scale of Hasler and Süsstrunk, 15 is slightly colourful "
            "and 33 is moderately colourful",
            ["", "loss", "accuracy (%)", "PSNR (dB)", "ΔE2000", "colourfulness"],
            rows,
        ),
        Text(
            "Do the images look good? {answer} By mean ΔE2000, the colourised images ({scores.net.delta_e:.2f}) are "
            "{nearness} the ground truth than the greyscale images ({scores.grey.delta_e:.2f}). A lookup table that "
            "maps every grey value to its most frequent colour, without using neighbouring pixels, classifies "
            "{scores.grey value's colour.accuracy:.1%} of the pixels correctly; the model classifies "
            "{scores.net.accuracy:.1%} correctly, which is {relation}. If every pixel had its true palette colour, "
            "ΔE2000 would still be {scores.palette oracle.delta_e:.2f}.",
            answer=verdict,
            nearness="closer to" if closer else "further from",
            relation="more" if more_accurate else "less",
            scores=scores,
        ),
        Figure(
            path,
            f"Confusion matrix of `{model}` (one seed): each row shows the predicted colours of the pixels with one "
            "true colour and adds up to 1. Correct predictions are on the diagonal.",
        ),
    ]
