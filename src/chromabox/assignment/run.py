"""All of the assignment by one command: whatever run is missing is made, so that the write-up has all its parts.

The product's main job in a few minutes on real data: what ``make demo`` runs.

A detector fine-tuned from nothing but what any machine has, in under a minute: the demonstration's second half.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image

from chromabox.assignment.write_up import WriteUp, write_up
from chromabox.colour.inference.batch import picture_work
from chromabox.colour.inference.predict import Wishes
from chromabox.colour.training.recipes import NETS_IN_ORDER, RecipeName
from chromabox.colour.weights.checkpoint import load_trained
from chromabox.detect.data.dataset import COCO_CLASSES
from chromabox.detect.data.load import load_detection_set
from chromabox.detect.data.synthetic import write_collage
from chromabox.detect.models.architecture import yolov3_tiny
from chromabox.detect.models.darknet import DARKNET, DetectorNet
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.recipes import finetune_recipe
from chromabox.detect.weights.load import TrainedDetector, fetch_detector, save_detector
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.errors import ChromaboxError
from chromabox.experiments.compare import Comparison, compare
from chromabox.experiments.sweep import sweep
from chromabox.experiments.sweep_results import Sweep
from chromabox.io.images import eight_bits, read_picture
from chromabox.io.paths import plan_outputs
from chromabox.report.plots import Tile, draw_rows
from chromabox.report.training import finetune_missing

DATA = "cifar10:horse"

#: Question B.5 names them.
BATCH_SIZES = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Extent:
    """How much is trained."""

    recipe: RecipeName
    seeds: tuple[int, ...]
    sweep_seeds: tuple[int, ...]
    labelled: str | None
    """The set that a detector learns from; None: one that is made for it."""


#: The assignment to the letter, an hour or so on two cores; and a few minutes' worth.
COURSE = Extent("course", seeds=(0, 1, 2), sweep_seeds=(0, 1), labelled="coco128")
QUICK = Extent("quick", seeds=(0, 1), sweep_seeds=(0,), labelled=None)


@dataclass(frozen=True)
class Done:
    """What was trained, and the folders of it all."""

    comparison: Comparison
    batch_sizes: Sweep
    folders: tuple[Path, ...]


def do_assignment(
    folder: Path,
    extent: Extent,
    *,
    options: ExecutionOptions | None = None,
    say: Callable[[str], None] = print,
) -> Done:
    """Make the runs of the assignment in ``folder``, or take those that are there.

    Called again it goes on where it was stopped.
    """
    nets, batch_sizes = folder / "nets", folder / "batch-sizes"
    comparison = compare(
        nets,
        nets=NETS_IN_ORDER[:3],
        recipe=extent.recipe,
        seeds=extent.seeds,
        data=DATA,
        palette="auto",
        options=options,
        say=say,
    )
    swept = sweep(
        batch_sizes,
        net="conv-transpose",
        recipe=extent.recipe,
        over="batch-size",
        values=BATCH_SIZES,
        seeds=extent.sweep_seeds,
        data=DATA,
        options=options,
        say=say,
    )
    detector = _detector(folder / "detector", extent.labelled, options, say)
    return Done(comparison, swept, (nets, batch_sizes, detector))


def _detector(folder: Path, labelled: str | None, options: ExecutionOptions | None, say: Callable[[str], None]) -> Path:
    """Fine-tuned on the labelled set, or where it cannot be had on one that any machine can make."""
    if labelled is None or not _can_be_had(labelled, say):
        return finetune_sample(folder, say, options=options)
    config = FinetuneConfig(data=labelled, recipe=finetune_recipe("default"), freeze=FROZEN)
    return finetune_missing(folder, lambda: config, options=options, say=say)


def _can_be_had(labelled: str, say: Callable[[str], None]) -> bool:
    try:
        load_detection_set(labelled)
    except ChromaboxError as error:
        say(f"{error}; a set made of CIFAR-10's pictures takes its place")
        return False
    return True


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
    work = picture_work(load_trained(), Wishes())
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


#: Pictures of the set, and their side in pixels: no larger than what a minute on two cores allows.
COUNTS, SIZE = {"train": 64, "val": 32, "test": 16}, 192
EPOCHS, VIEWS = 10, 4

#: As much as the assignment's tool froze.
FROZEN = 10


def finetune_sample(
    folder: Path, say: Callable[[str], None], *, options: ExecutionOptions | None = None, epochs: int = EPOCHS
) -> Path:
    """Make a small labelled set in ``folder/set`` and fine-tune a detector on it in ``folder/run``, which is returned.

    YOLOv3-tiny begins from its published weights; where no source has them, from random ones, and that is said: such a
    net learns next to nothing in so short a time. What is there of the same run is taken, or gone on with.
    Raises ChromaboxError where CIFAR-10, of which the set is made, cannot be had either.
    """
    data, run = folder / "set", folder / "run"
    if not data.is_dir():
        boxes = write_collage(data, counts=COUNTS, size=SIZE)
        say(f"{data}: {sum(COUNTS.values())} pictures with {sum(boxes.values())} boxes, made of CIFAR-10's pictures")
    return finetune_missing(run, lambda: _config(data, folder, epochs, say), options=options, copies=False, say=say)


def _config(data: Path, folder: Path, epochs: int, say: Callable[[str], None]) -> FinetuneConfig:
    """From published weights with the first layers still; from random ones everything is trained."""
    weights, freeze = "yolov3-tiny", FROZEN
    try:
        fetch_detector(weights)
    except ChromaboxError as error:
        say(f"no trained weights can be had ({error}); the detector begins from random ones, so expect little")
        weights, freeze = str(_random_weights(folder / "untrained.safetensors").resolve()), 0
    return FinetuneConfig(
        data=str(data.resolve()),
        recipe=finetune_recipe("default", epochs=epochs),
        weights=weights,
        freeze=freeze,
        size=SIZE,
        views=VIEWS,
    )


def _random_weights(path: Path) -> Path:
    """YOLOv3-tiny as PyTorch draws it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = DetectorNet(yolov3_tiny(), DARKNET).eval()
    save_detector(path, TrainedDetector(net, COCO_CLASSES, SIZE, {"name": "yolov3-tiny, untrained"}))
    return path
