"""What a colour run shows while it trains: a line, a sheet of pictures and at the end the curves."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.data.photos import Photographs
from chromabox.colour.evaluation.evaluate import sample_sheet
from chromabox.colour.training.train import Inputs
from chromabox.colour.training.train_photo import photo_sheet
from chromabox.engine.logger import Record, read_metrics, sentence
from chromabox.io.images import grid, write_picture
from chromabox.report.plots import draw_curves


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
