"""Reports on training runs: fine-tuning with a summary and figures, and epoch callbacks for colourisation runs."""

import json
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageOps
from torch import nn

from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.data.photos import PhotoDataset
from chromabox.colour.evaluation.evaluate import sample_grid
from chromabox.colour.training.train import TrainInputs
from chromabox.colour.training.train_photo import photo_sample_grid
from chromabox.detect.boxes import iou
from chromabox.detect.data.dataset import DetectionDataset, Sample
from chromabox.detect.detections import Detections
from chromabox.detect.inference.outputs import annotate, describe_numbered_classes
from chromabox.detect.inference.predict import detect_image
from chromabox.detect.training.auto_freeze import choose_num_frozen
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.finetune import FinetuneResult, finetune
from chromabox.detect.training.setup import initialise_run, prepare_retention
from chromabox.detect.weights.convert import export_all_formats
from chromabox.engine.autotune import resolve_device
from chromabox.engine.logger import EpochRecord, format_metrics
from chromabox.engine.options import RuntimeOptions
from chromabox.engine.runs import RunDir
from chromabox.engine.train import EpochCallback
from chromabox.io.images import make_grid, read_image, to_uint8, write_image
from chromabox.report.detection import print_evaluation, write_evaluation
from chromabox.report.plots import TRAIN_COLOUR, VAL_COLOUR, plot_curves, save_figure

log = logging.getLogger(__name__)

SquareTile = UInt8[np.ndarray, "side side 3"]

#: Maximum numbers of images in ``sheet.png`` and ``mistakes.png``, and the side length of each tile in pixels.
MAX_SAMPLES, MAX_ERRORS, TILE_SIZE = 12, 10, 320

#: Minimum confidence at which a false positive counts as an error.
MIN_ERROR_CONFIDENCE = 0.25


def run_finetune(
    config: FinetuneConfig,
    run: RunDir,
    *,
    options: RuntimeOptions | None = None,
    resume: bool = False,
    export: bool = True,
) -> dict[str, Any]:
    """Fine-tune a detector in a run folder, write figures, log the results and return the summary.

    In addition to the files of the run, write ``curves.png`` (loss terms and AP), ``evaluation/`` (metrics, curves and
    confusion matrix on the validation images), ``sheet.png`` (ground truth and predictions) and ``mistakes.png`` (the
    worst errors). If ``export`` is True, also write the model in other formats. The curves are also drawn if the run is
    interrupted. If ``config.freeze`` is ``auto``, the number of frozen layers is selected first.
    """
    folder, options = run.path, options or RuntimeOptions()
    resolve_device(options)  # Raises UsageError before data is read.
    initial = initialise_run(config, folder if resume else None)
    if config.freeze == "auto":
        prepare_retention(config, initial.detector)  # Raises errors before the trials.
        config = choose_num_frozen(config, initial, options)
    try:
        result = finetune(config, folder, options=options, initial=initial, resume=resume, callbacks=(log_metrics,))
    finally:
        if records := run.metrics():
            plot_losses(records, folder / "curves.png", f"{Path(config.data).name}, {config.recipe.name}")
    title = f"{folder} on {Path(config.data).name}"
    print_evaluation(result.after, title)
    write_evaluation(result.after, folder / "evaluation", {"data": config.data, "size": config.size}, title)
    write_samples(result, folder)
    for warning in (*result.after.warnings, *describe_numbered_classes(result.detector.classes)):
        log.warning(warning)
    exported = list(export_all_formats(result.detector, folder)) if export else []
    for line in summary_lines(result, folder, exported):
        log.info(line)
    return result.summary


def log_metrics(record: EpochRecord, model: nn.Module) -> None:
    """Log the metrics of an epoch."""
    log.info(format_metrics(record))


def summary_lines(result: FinetuneResult, folder: Path, exported: Sequence[str]) -> list[str]:
    """Return lines with AP before and after fine-tuning, time and memory, the written files and a usage example."""
    summary = result.summary
    lines = []
    for name, heading in (("ap50", "AP50"), ("ap", "AP")):
        before, after, difference = (summary[key][name] for key in ("before", "after", "difference"))
        low, high = difference["interval"]
        lines.append(
            f"{heading} on the validation images ({len(result.val_data.samples)}): {100 * before:.1f} % before, "
            f"{100 * after:.1f} % after; difference {100 * difference['value']:+.1f} "
            f"(95 % confidence interval: {100 * low:+.1f} to {100 * high:+.1f})"
        )
    if retained := summary.get("retained"):
        lines.append(
            f"AP50 of the original classes on {retained['data']}: {100 * retained['ap50_before']:.1f} % before, "
            f"{100 * retained['ap50_after']:.1f} % after"
        )
    return [
        *lines,
        f"epochs: {summary['epochs']} ({summary['seconds_per_epoch']:.1f} s each), feature caches: "
        f"{summary['seconds_filling']:.1f} s, peak memory: {summary['peak_memory'] / 1e9:.2f} GB",
        f"run: {folder} (summary.json, curves.png, sheet.png, mistakes.png, evaluation/)",
        *exported,
        f"next: chromabox detect IMAGE --weights {folder} -o detections/",
    ]


def plot_losses(records: Sequence[EpochRecord], path: Path, title: str) -> None:
    """Plot the training and validation loss terms and AP against epochs; the figure is legible at a width of 16 cm."""
    terms = [name.removeprefix("train_") for name in records[0] if name.startswith("train_")]
    rows = -(-(len(terms) + 2) // 3)
    figure = Figure(figsize=(6.3, 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, 3).ravel()
    epochs = [record["epoch"] for record in records]
    for panel, term in zip(axes, (*terms, "ap50", "ap"), strict=False):
        for split, label, colour in (("train", "training", TRAIN_COLOUR), ("val", "validation", VAL_COLOUR)):
            name = f"{split}_{term}"
            if name in records[0]:  # Distillation terms have no validation loss, and AP has no training value.
                panel.plot(epochs, [record[name] for record in records], color=colour, marker=".", label=label)
        panel.set_title(term.replace("_", " ") if term in terms else term.upper(), fontsize=8)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=7)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if term not in terms:
            panel.set_ylim(0, 1)
    for panel in axes[len(terms) + 2 :]:
        panel.set_axis_off()
    axes[0].legend(fontsize=7)
    figure.supxlabel("epoch", fontsize=8)
    figure.suptitle(title, parse_math=False, fontsize=9)
    save_figure(figure, path, dpi=200)


def write_samples(result: FinetuneResult, folder: Path) -> None:
    """Write ``sheet.png`` (ground truth and prediction of the first images) and ``mistakes.png`` (the worst errors)."""
    detector = result.detector.fused()
    samples, size = result.val_data.samples, result.detector.size
    detections = [
        detect_image(read_image(sample.path).pixels, detector, confidence=MIN_ERROR_CONFIDENCE, size=size)
        for sample in samples
    ]
    for name, indices in (
        ("sheet.png", range(min(MAX_SAMPLES, len(samples)))),
        ("mistakes.png", [index for index, _ in worst_errors(samples, detections)]),
    ):
        rows = [_make_row(samples[index], detections[index], result.val_data) for index in indices]
        if rows:
            write_image(folder / name, make_grid(rows, scale=1))


def worst_errors(
    samples: Sequence[Sample], detections: Sequence[Detections], max_errors: int = MAX_ERRORS
) -> list[tuple[int, float]]:
    """Return the images with the most severe errors: index and severity (0 to 1), most severe first.

    A detection is wrong if its IoU with every ground-truth box of its class is below 0.5. Its severity is its
    confidence. A ground-truth box is missed if its IoU with every detection of its class is below 0.5. Its severity is
    the square root of its fraction of the image area. The severity of an image is that of its most severe error.
    """
    worst: dict[int, float] = {}
    for index, (sample, image_detections) in enumerate(zip(samples, detections, strict=True)):
        boxes = image_detections.xyxy.astype(np.float64)
        overlaps = iou(boxes, sample.boxes) * (np.asarray(image_detections.class_id)[:, None] == sample.class_ids)
        is_wrong = (overlaps < 0.5).all(axis=1)
        is_missed = (overlaps < 0.5).all(axis=0) & ~sample.is_crowd
        relative_sizes = np.sqrt((sample.boxes[:, 2:] - sample.boxes[:, :2]).prod(axis=1) / np.prod(sample.size))
        errors = [*np.asarray(image_detections.confidence)[is_wrong], *relative_sizes[is_missed]]
        if errors:
            worst[index] = float(max(errors))
    return sorted(worst.items(), key=lambda error: -error[1])[:max_errors]


def _make_row(sample: Sample, detections: Detections, dataset: DetectionDataset) -> list[SquareTile]:
    """Draw the ground truth and the prediction into tiles of the same size."""
    pixels = to_uint8(read_image(sample.path).pixels)
    truth = Detections(
        xyxy=sample.boxes.astype(np.float32),
        confidence=np.ones(len(sample.boxes), np.float32),
        class_id=sample.class_ids,
        class_names=np.array(dataset.classes, dtype=str)[sample.class_ids],
    )
    images = (Image.fromarray(annotate(pixels, boxes)) for boxes in (truth, detections))
    size = (TILE_SIZE, TILE_SIZE)
    return [np.asarray(ImageOps.pad(image, size, Image.Resampling.BOX, (114, 114, 114))) for image in images]


def sample_callback(folder: Path, inputs: TrainInputs) -> EpochCallback:
    """Return a callback that writes test images (grey, original and predicted) to ``sheets/`` after every epoch."""

    def draw(record: EpochRecord, model: nn.Module) -> None:
        rows = sample_grid(model, inputs.data.test, inputs.palette)
        write_image(folder / "sheets" / f"epoch-{int(record['epoch']):03d}.png", make_grid(rows, scale=3))

    return draw


def photo_sample_callback(folder: Path, photos: PhotoDataset) -> EpochCallback:
    """Return a callback that writes validation images (grey, original, predicted) to ``sheets/`` after every epoch."""

    @cache
    def load_bins() -> ChromaBins:  # ``bins.json`` is written after the callback is created.
        return ChromaBins.from_json(json.loads((folder / "bins.json").read_text(encoding="utf-8")))

    def draw(record: EpochRecord, model: nn.Module) -> None:
        sheet = make_grid(photo_sample_grid(model, load_bins(), photos.val), scale=1)
        write_image(folder / "sheets" / f"epoch-{int(record['epoch']):03d}.png", sheet)

    return draw


def plot_run(folder: Path) -> Path:
    """Plot the metrics of a colourisation run into ``curves.png`` and return its path."""
    run, path = RunDir(folder), folder / "curves.png"
    if records := run.metrics():
        config = run.config_values()
        recipe, data, seed = (config.get(name, "unknown") for name in ("recipe_name", "data", "seed"))
        title = f"{config['model']}, {recipe} recipe, {Path(str(data)).name}, seed {seed}"
        plot_curves(records, path, title)
    return path
