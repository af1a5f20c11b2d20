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
from chromabox.colour.data.photos import Photographs
from chromabox.colour.evaluation.evaluate import sample_sheet
from chromabox.colour.training.train import Inputs
from chromabox.colour.training.train_photo import photo_sheet
from chromabox.detect.boxes import iou
from chromabox.detect.data.dataset import DetectionSet, Labelled
from chromabox.detect.detections import Detections
from chromabox.detect.inference.outputs import annotated
from chromabox.detect.inference.predict import detect_picture
from chromabox.detect.inference.runtime import make_ready
from chromabox.detect.training.auto_freeze import choose_depth
from chromabox.detect.training.config import FinetuneConfig, read_finetune_config
from chromabox.detect.training.finetune import Outcome, finetune
from chromabox.detect.weights.convert import write_copies
from chromabox.engine.logger import Record, read_metrics, sentence
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.io.images import eight_bits, grid, read_picture, write_picture
from chromabox.report.detection import print_evaluation, write_evaluation
from chromabox.report.plots import TRAIN_COLOUR, VAL_COLOUR, draw_curves, save_figure

Tile = UInt8[np.ndarray, "side side 3"]

#: Pictures on the sheet, mistakes on theirs, and the side of each in pixels.
SHEET, WORST, SIDE = 12, 10, 320

#: From this score on a detection that finds nothing is a mistake.
SURE = 0.25


def finetune_and_report(
    config: FinetuneConfig,
    folder: Path,
    *,
    options: ExecutionOptions | None = None,
    resume: bool = False,
    copies: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Fine-tune into ``folder``, draw and tell what came of it; returns the summary.

    Beside what the run writes: ``curves.png`` (losses, AP), ``evaluation/`` (table, curves, confusions of the result on
    the judging pictures), ``sheet.png`` (truth | found), ``mistakes.png``, and with ``copies`` the result in the forms
    that other programs read. The curves are drawn for a run that was stopped, too. With ``freeze`` as ``auto`` the
    depth is chosen first.
    """
    if config.freeze == "auto":
        config = choose_depth(config, options or ExecutionOptions(), say=say)
    try:
        outcome = finetune(
            config, folder, options=options, resume=resume, say=say, after_epoch=lambda record: say(sentence(record))
        )
    finally:
        if read_metrics(folder):
            draw_losses(read_metrics(folder), folder / "curves.png", f"{Path(config.data).name}, {config.recipe.name}")
    title = f"{folder} on {Path(config.data).name}"
    print_evaluation(outcome.after, title)
    write_evaluation(outcome.after, folder / "evaluation", {"data": config.data, "size": config.size}, title)
    write_pictures(outcome, folder)
    for warning in outcome.summary["warnings"]:
        print(f"chromabox: {warning}", file=sys.stderr)
    copied = list(write_copies(outcome.trained, folder)) if copies else []
    for line in told(outcome, folder, copied):
        say(line)
    return outcome.summary


def finetune_missing(
    folder: Path,
    config: Callable[[], FinetuneConfig],
    *,
    options: ExecutionOptions | None = None,
    copies: bool = True,
    say: Callable[[str], None] = print,
) -> Path:
    """Fine-tune into ``folder``, which is returned: a finished run is taken as it is, a begun one gone on with."""
    if (folder / "summary.json").is_file():
        say(f"{folder}: taken as it is")
        return folder
    begun = (folder / "last.safetensors").is_file()
    chosen = read_finetune_config(folder) if begun else config()
    finetune_and_report(chosen, folder, options=options, resume=begun, copies=copies, say=say)
    return folder


def told(outcome: Outcome, folder: Path, copied: Sequence[str]) -> list[str]:
    """Before and after, what it cost, where it and its copies are, and how to use it."""
    summary = outcome.summary
    lines = []
    for name, heading in (("ap50", "AP50"), ("ap", "AP")):
        before, after, difference = summary["before"][name], summary["after"][name], summary["difference"][name]
        low, high = difference["interval"]
        lines.append(
            f"{heading} on {len(outcome.judge.pictures)} held-out pictures: {100 * before:.1f} % before, "
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
    return [*lines, *copied, f"use it: chromabox detect PICTURE --weights {folder} -o found/"]


def draw_losses(records: Sequence[Record], path: Path, title: str) -> None:
    """Every term of the loss in training and on held-out pictures, and AP, against epochs; legible 16 cm wide."""
    terms = [name.removeprefix("train_") for name in records[0] if name.startswith("train_")]
    rows = -(-(len(terms) + 2) // 3)
    figure = Figure(figsize=(6.3, 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, 3).ravel()
    for place, name in zip(axes, terms, strict=False):
        _draw_lines(place, records, {"training": f"train_{name}", "held out": f"val_{name}"})
        place.set_title(name.replace("_", " "), fontsize=8)
    for place, name in zip(axes[len(terms) :], ("ap50", "ap"), strict=False):
        _draw_lines(place, records, {"held out": f"val_{name}"})
        place.set_title(name.upper(), fontsize=8)
        place.set_ylim(0, 1)
    for place in axes[len(terms) + 2 :]:
        place.set_axis_off()
    axes[0].legend(fontsize=7)
    figure.supxlabel("epoch", fontsize=8)
    figure.suptitle(title, parse_math=False, fontsize=9)
    save_figure(figure, path, dpi=200)


def _draw_lines(axes: Axes, records: Sequence[Record], names: Mapping[str, str]) -> None:
    """Quantities against epochs, by what they are called; held-out pictures have no old net to be compared with."""
    for (label, name), colour in zip(names.items(), (TRAIN_COLOUR, VAL_COLOUR)[-len(names) :], strict=True):
        if name in records[0]:
            values = [record[name] for record in records]
            axes.plot([record["epoch"] for record in records], values, color=colour, marker=".", label=label)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


@dataclass(frozen=True)
class Mistake:
    """A sure detection of nothing, or a true box that was missed; ``weight`` is how bad that is, 0 to 1."""

    picture: int
    weight: float
    text: str


def write_pictures(outcome: Outcome, folder: Path) -> None:
    """``sheet.png``: the first pictures, truth beside prediction; ``mistakes.png``: the worst mistakes' pictures."""
    detector = make_ready(outcome.trained)
    pictures = outcome.judge.pictures
    found = [
        detect_picture(read_picture(one.path).pixels, detector, confidence=SURE, size=outcome.trained.size)
        for one in pictures
    ]
    rows = [_row(one, theirs, outcome.judge) for one, theirs in zip(pictures[:SHEET], found, strict=False)]
    write_picture(folder / "sheet.png", grid(rows, scale=1))
    mistakes = worst_mistakes(pictures, found)
    rows = [_row(pictures[one.picture], found[one.picture], outcome.judge) for one in mistakes]
    if rows:
        write_picture(folder / "mistakes.png", grid(rows, scale=1))


def worst_mistakes(pictures: Sequence[Labelled], found: Sequence[Detections], most: int = WORST) -> list[Mistake]:
    """The worst mistake of each picture, the worst first: wrong detections by their score, missed boxes by their size.

    A detection is wrong if it overlaps no true box of its class by half; a true box is missed if no detection of its
    class overlaps it by half.
    """
    mistakes = []
    for index, (one, theirs) in enumerate(zip(pictures, found, strict=True)):
        boxes = theirs.xyxy.astype(np.float64)
        overlaps = iou(boxes, one.boxes) * (np.asarray(theirs.class_id)[:, None] == one.classes)
        wrong = (overlaps < 0.5).all(axis=1)
        missed = (overlaps < 0.5).all(axis=0) & ~one.is_crowd
        height, width = one.size
        shares = np.sqrt((one.boxes[:, 2:] - one.boxes[:, :2]).prod(axis=1) / (height * width))
        own = [Mistake(index, float(score), "wrong") for score in np.asarray(theirs.confidence)[wrong]]
        own += [Mistake(index, float(share), "missed") for share in shares[missed]]
        mistakes += [max(own, key=lambda mistake: mistake.weight)] if own else []
    return sorted(mistakes, key=lambda mistake: -mistake.weight)[:most]


def _row(one: Labelled, found: Detections, data: DetectionSet) -> list[Tile]:
    """Truth and prediction, drawn into squares of the same size."""
    pixels = eight_bits(read_picture(one.path).pixels)
    truth = Detections(
        xyxy=one.boxes.astype(np.float32),
        confidence=np.ones(len(one.boxes), np.float32),
        class_id=one.classes,
        data={"class_name": np.array(data.classes, dtype=str)[one.classes]},
    )
    return [_fitted(annotated(pixels, each)) for each in (truth, found)]


def _fitted(pixels: UInt8[np.ndarray, "height width 3"]) -> Tile:
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    tile = Image.new("RGB", (SIDE, SIDE), (114, 114, 114))
    tile.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return np.asarray(tile)


def watch_run(folder: Path, say: Callable[[str], None]) -> Callable[[Record, nn.Module, Inputs], None]:
    """An ``after_epoch`` that says the numbers and draws grey | truth | prediction into ``sheets/``."""

    def after_epoch(record: Record, net: nn.Module, inputs: Inputs) -> None:
        say(sentence(record))
        rows = sample_sheet(net, inputs.data.test, inputs.palette)
        write_picture(folder / "sheets" / f"epoch-{int(record['epoch']):03d}.png", grid(rows, scale=3))

    return after_epoch


def watch_photo_run(folder: Path, say: Callable[[str], None]) -> Callable[..., None]:
    """An ``after_epoch`` for the photo net: the same, on the first validation photographs."""

    def after_epoch(record: Record, net: nn.Module, bins: ChromaBins, photographs: Photographs) -> None:
        say(sentence(record))
        sheet = grid(photo_sheet(net, bins, photographs.val), scale=1)
        write_picture(folder / "sheets" / f"epoch-{int(record['epoch']):03d}.png", sheet)

    return after_epoch


def draw_run(folder: Path, title: str) -> Path:
    """Draw ``curves.png`` from the run's metrics and return its path."""
    path = folder / "curves.png"
    records = read_metrics(folder)
    if records:
        draw_curves(records, path, title)
    return path
