"""The product's main job in a few minutes on real data: what ``make demo`` runs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

from chromabox.colour.inference.predict import Wishes
from chromabox.colour.weights.checkpoint import load_trained
from chromabox.errors import ChromaboxError
from chromabox.io.images import eight_bits, read_picture
from chromabox.io.paths import plan_outputs
from chromabox.report.assignment import QUICK, Done, do_assignment
from chromabox.report.colouring import picture_work
from chromabox.report.plots import Tile, draw_rows
from chromabox.report.write_up import WriteUp, write_up

#: Photographs that ship inside scikit-image's wheel.
SAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


@dataclass(frozen=True)
class Demo:
    """What the demonstration made."""

    assignment: Done
    photographs: Path
    write_up: WriteUp


def run_demo(folder: Path, say: Callable[[str], None]) -> Demo:
    """Colour photographs with the shipped net, do the assignment the quick way, and write it up."""
    photographs = colour_samples(folder / "photographs", say)
    done = do_assignment(folder / "runs", QUICK, say=say)
    return Demo(done, photographs, write_up(done.folders, folder, whole=True))


def colour_samples(folder: Path, say: Callable[[str], None]) -> Path:
    """Colour the sample photographs, and draw them as rows original | grey | coloured; returns the figure's path."""
    samples = [Path(skimage.__file__).parent / "data" / name for name in SAMPLES]
    present = [path for path in samples if path.is_file()]
    if not present:
        raise ChromaboxError(f"{samples[0].parent}: scikit-image ships none of {', '.join(SAMPLES)} there any more")
    pairs = plan_outputs(present, folder)
    work = picture_work(load_trained(), Wishes(), explain=False)
    for source, target in pairs:
        work(source, target)
        say(str(target))
    originals = [_tile(source) for source, _ in pairs]
    greys = [np.repeat(np.rint(tile.mean(axis=2, keepdims=True)).astype(np.uint8), 3, axis=2) for tile in originals]
    figure = folder.parent / "photographs.png"
    draw_rows(
        {"original": originals, "grey": greys, "coloured": [_tile(target) for _, target in pairs]},
        figure,
        "Sample photographs, coloured by the shipped net",
        tile=2.0,
    )
    return figure


def _tile(path: Path, side: int = 256) -> Tile:
    """The central square of a picture, small."""
    pixels = eight_bits(read_picture(path).pixels)
    edge = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - edge) // 2, (pixels.shape[1] - edge) // 2
    square = Image.fromarray(pixels[top : top + edge, left : left + edge])
    return np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))
