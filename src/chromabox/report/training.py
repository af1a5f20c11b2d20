"""A fine-tuning run as the command line does it: trained, told, drawn and written down.

What a colour run shows while it trains: a line, a sheet of pictures and at the end the curves.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import nn

from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.data.photos import PhotoDataset
from chromabox.colour.evaluation.evaluate import sample_grid
from chromabox.colour.training.train import TrainInputs
from chromabox.colour.training.train_photo import photo_sample_grid
from chromabox.detect.boxes import iou
from chromabox.detect.data.dataset import DetectionDataset, Sample
from chromabox.detect.detections import Detections
from chromabox.detect.inference.outputs import annotate
from chromabox.detect.inference.predict import detect_image
from chromabox.detect.inference.runtime import optimize_for_inference
from chromabox.detect.training.auto_freeze import choose_num_frozen
from chromabox.detect.training.config import FinetuneConfig, read_finetune_config
from chromabox.detect.training.finetune import FinetuneResult, finetune
from chromabox.detect.weights.convert import export_all_formats
from chromabox.engine.logger import EpochRecord, format_metrics, read_metrics
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.io.images import make_grid, read_image, to_uint8, write_image
from chromabox.report.detection import print_evaluation, write_evaluation
from chromabox.report.plots import TRAIN_COLOUR, VAL_COLOUR, plot_curves, save_figure

SquareTile = UInt8[np.ndarray, "side side 3"]

#: Pictures on the sheet, mistakes on theirs, and the side of each in pixels.
MAX_SAMPLES, MAX_ERRORS, TILE_SIZE = 12, 10, 320

#: From this score on a detection that finds nothing is a mistake.
MIN_ERROR_CONFIDENCE = 0.25


def run_finetune(
    config: FinetuneConfig,
    folder: Path,
    *,
    options: RuntimeOptions | None = None,
    resume: bool = False,
    export: bool = True,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Fine-tune into ``folder``, draw and tell what came of it; returns the summary.

    Beside what the run writes: ``curves.png`` (losses, AP), ``evaluation/`` (table, curves, confusions of the result on
    the judging pictures), ``sheet.png`` (truth | found), ``mistakes.png``, and with ``copies`` the result in the forms
    that other programs read. The curves are drawn for a run that was stopped, too. With ``freeze`` as ``auto`` the
    depth is chosen first.
    """
    if config.freeze == "auto":
        config = choose_num_frozen(config, options or RuntimeOptions(), log=log)
    try:
        outcome = finetune(
            config,
            folder,
            options=options,
            resume=resume,
            log=log,
            on_epoch_end=lambda record: log(format_metrics(record)),
        )
    finally:
        if read_metrics(folder):
            plot_losses(read_metrics(folder), folder / "curves.png", f"{Path(config.data).name}, {config.recipe.name}")
    title = f"{folder} on {Path(config.data).name}"
    print_evaluation(outcome.after, title)
    write_evaluation(outcome.after, folder / "evaluation", {"data": config.data, "size": config.size}, title)
    write_samples(outcome, folder)
    for warning in outcome.summary["warnings"]:
        print(f"chromabox: {warning}", file=sys.stderr)
    copied = list(export_all_formats(outcome.detector, folder)) if export else []
    for line in summary_lines(outcome, folder, copied):
        log(line)
    return outcome.summary


def finetune_if_missing(
    folder: Path,
    make_config: Callable[[], FinetuneConfig],
    *,
    options: RuntimeOptions | None = None,
    export: bool = True,
    log: Callable[[str], None] = print,
) -> Path:
    """Fine-tune into ``folder``, which is returned: a finished run is taken as it is, a begun one gone on with."""
    if (folder / "summary.json").is_file():
        log(f"{folder}: taken as it is")
        return folder
    begun = (folder / "last.safetensors").is_file()
    chosen = read_finetune_config(folder) if begun else make_config()
    run_finetune(chosen, folder, options=options, resume=begun, export=export, log=log)
    return folder


def summary_lines(result: FinetuneResult, folder: Path, exported: Sequence[str]) -> list[str]:
    """Before and after, what it cost, where it and its copies are, and how to use it."""
    summary = result.summary
    lines = []
    for name, heading in (("ap50", "AP50"), ("ap", "AP")):
        before, after, difference = summary["before"][name], summary["after"][name], summary["difference"][name]
        low, high = difference["interval"]
        lines.append(
            f"{heading} on {len(result.val_data.samples)} held-out pictures: {100 * before:.1f} % before, "
            f"{100 * after:.1f} % after; difference {100 * difference['value']:+.1f} "
            f"(95 %: {100 * low:+.1f} to {100 * high:+.1f})"
        )
    if "retained" in summary:
        kept = summary["retained"]
        lines.append(
            f"AP50 of the old classes on {kept['data']}: {100 * kept['ap50_before']:.1f} % before, "
            f"{100 * kept['ap50_after']:.1f} % after"
        )
    lines.append(
        f"{summary['epochs']} epochs of {summary['seconds_per_epoch']:.1f} s, {summary['seconds_filling']:.1f} s for "
        f"the caches, at most {summary['peak_memory'] / 1e9:.2f} GB of memory"
    )
    lines.append(f"run: {folder} (summary.json, curves.png, sheet.png, mistakes.png, evaluation/)")
    return [*lines, *exported, f"use it: chromabox detect PICTURE --weights {folder} -o found/"]


def plot_losses(records: Sequence[EpochRecord], path: Path, title: str) -> None:
    """Every term of the loss in training and on held-out pictures, and AP, against epochs; legible 16 cm wide."""
    terms = [name.removeprefix("train_") for name in records[0] if name.startswith("train_")]
    rows = -(-(len(terms) + 2) // 3)
    figure = Figure(figsize=(6.3, 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, 3).ravel()
    for place, name in zip(axes, terms, strict=False):
        _plot_series(place, records, {"training": f"train_{name}", "held out": f"val_{name}"})
        place.set_title(name.replace("_", " "), fontsize=8)
    for place, name in zip(axes[len(terms) :], ("ap50", "ap"), strict=False):
        _plot_series(place, records, {"held out": f"val_{name}"})
        place.set_title(name.upper(), fontsize=8)
        place.set_ylim(0, 1)
    for place in axes[len(terms) + 2 :]:
        place.set_axis_off()
    axes[0].legend(fontsize=7)
    figure.supxlabel("epoch", fontsize=8)
    figure.suptitle(title, parse_math=False, fontsize=9)
    save_figure(figure, path, dpi=200)


def _plot_series(axes: Axes, records: Sequence[EpochRecord], names: Mapping[str, str]) -> None:
    """Quantities against epochs, by what they are called; held-out pictures have no old net to be compared with."""
    for (label, name), colour in zip(names.items(), (TRAIN_COLOUR, VAL_COLOUR)[-len(names) :], strict=True):
        if name in records[0]:
            values = [record[name] for record in records]
            axes.plot([record["epoch"] for record in records], values, color=colour, marker=".", label=label)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


@dataclass(frozen=True)
class ErrorCase:
    """A sure detection of nothing, or a true box that was missed; ``weight`` is how bad that is, 0 to 1."""

    image_index: int
    severity: float
    kind: str


def write_samples(result: FinetuneResult, folder: Path) -> None:
    """``sheet.png``: the first pictures, truth beside prediction; ``mistakes.png``: the worst mistakes' pictures."""
    detector = optimize_for_inference(result.detector)
    pictures = result.val_data.samples
    found = [
        detect_image(read_image(one.path).pixels, detector, confidence=MIN_ERROR_CONFIDENCE, size=result.detector.size)
        for one in pictures
    ]
    rows = [_make_row(one, theirs, result.val_data) for one, theirs in zip(pictures[:MAX_SAMPLES], found, strict=False)]
    write_image(folder / "sheet.png", make_grid(rows, scale=1))
    mistakes = worst_errors(pictures, found)
    rows = [_make_row(pictures[one.image_index], found[one.image_index], result.val_data) for one in mistakes]
    if rows:
        write_image(folder / "mistakes.png", make_grid(rows, scale=1))


def worst_errors(
    samples: Sequence[Sample], detections: Sequence[Detections], max_errors: int = MAX_ERRORS
) -> list[ErrorCase]:
    """The worst mistake of each picture, the worst first: wrong detections by their score, missed boxes by their size.

    A detection is wrong if it overlaps no true box of its class by half; a true box is missed if no detection of its
    class overlaps it by half.
    """
    mistakes = []
    for index, (one, theirs) in enumerate(zip(samples, detections, strict=True)):
        boxes = theirs.xyxy.astype(np.float64)
        overlaps = iou(boxes, one.boxes) * (np.asarray(theirs.class_id)[:, None] == one.class_ids)
        wrong = (overlaps < 0.5).all(axis=1)
        missed = (overlaps < 0.5).all(axis=0) & ~one.is_crowd
        height, width = one.size
        shares = np.sqrt((one.boxes[:, 2:] - one.boxes[:, :2]).prod(axis=1) / (height * width))
        own = [ErrorCase(index, float(score), "wrong") for score in np.asarray(theirs.confidence)[wrong]]
        own += [ErrorCase(index, float(share), "missed") for share in shares[missed]]
        mistakes += [max(own, key=lambda mistake: mistake.severity)] if own else []
    return sorted(mistakes, key=lambda mistake: -mistake.severity)[:max_errors]


def _make_row(sample: Sample, detections: Detections, dataset: DetectionDataset) -> list[SquareTile]:
    """Truth and prediction, drawn into squares of the same size."""
    pixels = to_uint8(read_image(sample.path).pixels)
    truth = Detections(
        xyxy=sample.boxes.astype(np.float32),
        confidence=np.ones(len(sample.boxes), np.float32),
        class_id=sample.class_ids,
        data={"class_name": np.array(dataset.classes, dtype=str)[sample.class_ids]},
    )
    return [_fit_tile(annotate(pixels, each)) for each in (truth, detections)]


def _fit_tile(pixels: UInt8[np.ndarray, "height width 3"]) -> SquareTile:
    picture = Image.fromarray(pixels)
    picture.thumbnail((TILE_SIZE, TILE_SIZE), Image.Resampling.BOX)
    tile = Image.new("RGB", (TILE_SIZE, TILE_SIZE), (114, 114, 114))
    tile.paste(picture, ((TILE_SIZE - picture.width) // 2, (TILE_SIZE - picture.height) // 2))
    return np.asarray(tile)


def epoch_callback(folder: Path, log: Callable[[str], None]) -> Callable[[EpochRecord, nn.Module, TrainInputs], None]:
    """An ``after_epoch`` that says the numbers and draws grey | truth | prediction into ``sheets/``."""

    def after_epoch(record: EpochRecord, net: nn.Module, inputs: TrainInputs) -> None:
        log(format_metrics(record))
        rows = sample_grid(net, inputs.data.test, inputs.palette)
        write_image(folder / "sheets" / f"epoch-{int(record['epoch']):03d}.png", make_grid(rows, scale=3))

    return after_epoch


def photo_epoch_callback(folder: Path, log: Callable[[str], None]) -> Callable[..., None]:
    """An ``after_epoch`` for the photo net: the same, on the first validation photographs."""

    def after_epoch(record: EpochRecord, net: nn.Module, bins: ChromaBins, photographs: PhotoDataset) -> None:
        log(format_metrics(record))
        sheet = make_grid(photo_sample_grid(net, bins, photographs.val), scale=1)
        write_image(folder / "sheets" / f"epoch-{int(record['epoch']):03d}.png", sheet)

    return after_epoch


def plot_run(folder: Path, title: str) -> Path:
    """Draw ``curves.png`` from the run's metrics and return its path."""
    path = folder / "curves.png"
    records = read_metrics(folder)
    if records:
        plot_curves(records, path, title)
    return path
