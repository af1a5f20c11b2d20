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

from chromabox.assignment.write_up import ReportFiles, write_report
from chromabox.colour.inference.batch import make_file_coloriser
from chromabox.colour.inference.predict import ColouriseOptions
from chromabox.colour.training.recipes import PALETTE_MODELS, RecipeName
from chromabox.colour.weights.checkpoint import load_model
from chromabox.detect.data.dataset import COCO_CLASSES
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.synthetic import make_synthetic_dataset
from chromabox.detect.models.architecture import yolov3_tiny
from chromabox.detect.models.darknet import DARKNET, DarknetModel
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.recipes import make_finetune_recipe
from chromabox.detect.weights.load import Detector, download_pretrained, save_detector
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import ChromaboxError
from chromabox.experiments.compare import Comparison, compare
from chromabox.experiments.sweep import sweep
from chromabox.experiments.sweep_results import SweepResult
from chromabox.io.images import read_image, to_uint8
from chromabox.io.paths import map_outputs
from chromabox.report.plots import RGBTile, plot_image_rows
from chromabox.report.training import finetune_if_missing

DATASET = "cifar10:horse"

#: Question B.5 names them.
BATCH_SIZES = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class AssignmentPlan:
    """How much is trained."""

    recipe: RecipeName
    seeds: tuple[int, ...]
    sweep_seeds: tuple[int, ...]
    detection_data: str | None
    """The set that a detector learns from; None: one that is made for it."""


#: The assignment to the letter, an hour or so on two cores; and a few minutes' worth.
COURSE = AssignmentPlan("course", seeds=(0, 1, 2), sweep_seeds=(0, 1), detection_data="coco128")
QUICK = AssignmentPlan("quick", seeds=(0, 1), sweep_seeds=(0,), detection_data=None)


@dataclass(frozen=True)
class AssignmentRuns:
    """What was trained, and the folders of it all."""

    comparison: Comparison
    batch_size_sweep: SweepResult
    folders: tuple[Path, ...]


def run_assignment(
    folder: Path,
    plan: AssignmentPlan,
    *,
    options: RuntimeOptions | None = None,
    log: Callable[[str], None] = print,
) -> AssignmentRuns:
    """Make the runs of the assignment in ``folder``, or take those that are there.

    Called again it goes on where it was stopped.
    """
    nets, batch_sizes = folder / "nets", folder / "batch-sizes"
    comparison = compare(
        nets,
        models=PALETTE_MODELS[:3],
        recipe=plan.recipe,
        seeds=plan.seeds,
        data=DATASET,
        palette="auto",
        options=options,
        log=log,
    )
    swept = sweep(
        batch_sizes,
        model="conv-transpose",
        recipe=plan.recipe,
        parameter="batch-size",
        values=BATCH_SIZES,
        seeds=plan.sweep_seeds,
        data=DATASET,
        options=options,
        log=log,
    )
    detector = _train_detector(folder / "detector", plan.detection_data, options, log)
    return AssignmentRuns(comparison, swept, (nets, batch_sizes, detector))


def _train_detector(
    folder: Path, detection_data: str | None, options: RuntimeOptions | None, log: Callable[[str], None]
) -> Path:
    """Fine-tuned on the labelled set, or where it cannot be had on one that any machine can make."""
    if detection_data is None or not _is_available(detection_data, log):
        return train_sample_detector(folder, log, options=options)
    config = FinetuneConfig(data=detection_data, recipe=make_finetune_recipe("default"), freeze=NUM_FROZEN)
    return finetune_if_missing(folder, lambda: config, options=options, log=log)


def _is_available(detection_data: str, log: Callable[[str], None]) -> bool:
    try:
        load_detection_dataset(detection_data)
    except ChromaboxError as error:
        log(f"{error}; a set made of CIFAR-10's pictures takes its place")
        return False
    return True


#: Photographs that ship inside scikit-image's wheel.
SAMPLE_IMAGES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration made."""

    assignment: AssignmentRuns
    photos: Path
    report: ReportFiles


def run_demo(folder: Path, log: Callable[[str], None]) -> DemoResult:
    """Colour photographs with the shipped net, do the assignment the quick way, and write it up."""
    photographs = colourise_samples(folder / "photographs", log)
    done = run_assignment(folder / "runs", QUICK, log=log)
    return DemoResult(done, photographs, write_report(done.folders, folder, include_missing=True))


def colourise_samples(folder: Path, log: Callable[[str], None]) -> Path:
    """Colour the sample photographs, and draw them as rows original | grey | coloured; returns the figure's path."""
    samples = [Path(skimage.__file__).parent / "data" / name for name in SAMPLE_IMAGES]
    present = [path for path in samples if path.is_file()]
    if not present:
        raise ChromaboxError(
            f"{samples[0].parent}: scikit-image ships none of {', '.join(SAMPLE_IMAGES)} there any more"
        )
    pairs = map_outputs(present, folder)
    work = make_file_coloriser(load_model(), ColouriseOptions())
    for source, target in pairs:
        work(source, target)
        log(str(target))
    originals = [_load_tile(source) for source, _ in pairs]
    greys = [np.repeat(np.rint(tile.mean(axis=2, keepdims=True)).astype(np.uint8), 3, axis=2) for tile in originals]
    figure = folder.parent / "photographs.png"
    plot_image_rows(
        {"original": originals, "grey": greys, "coloured": [_load_tile(target) for _, target in pairs]},
        figure,
        "Sample photographs, coloured by the shipped net",
        tile_size=2.0,
    )
    return figure


def _load_tile(path: Path, size: int = 256) -> RGBTile:
    """The central square of a picture, small."""
    pixels = to_uint8(read_image(path).pixels)
    edge = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - edge) // 2, (pixels.shape[1] - edge) // 2
    square = Image.fromarray(pixels[top : top + edge, left : left + edge])
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


#: Pictures of the set, and their side in pixels: no larger than what a minute on two cores allows.
SAMPLE_SPLITS, SAMPLE_IMAGE_SIZE = {"train": 64, "val": 32, "test": 16}, 192
NUM_EPOCHS, NUM_CACHED_VIEWS = 10, 4

#: As much as the assignment's tool froze.
NUM_FROZEN = 10


def train_sample_detector(
    folder: Path, log: Callable[[str], None], *, options: RuntimeOptions | None = None, epochs: int = NUM_EPOCHS
) -> Path:
    """Make a small labelled set in ``folder/set`` and fine-tune a detector on it in ``folder/run``, which is returned.

    YOLOv3-tiny begins from its published weights; where no source has them, from random ones, and that is said: such a
    net learns next to nothing in so short a time. What is there of the same run is taken, or gone on with.
    Raises ChromaboxError where CIFAR-10, of which the set is made, cannot be had either.
    """
    data, run = folder / "set", folder / "run"
    if not data.is_dir():
        boxes = make_synthetic_dataset(data, counts=SAMPLE_SPLITS, size=SAMPLE_IMAGE_SIZE)
        log(
            f"{data}: {sum(SAMPLE_SPLITS.values())} pictures with {sum(boxes.values())} boxes, made of CIFAR-10's pictures"
        )
    return finetune_if_missing(
        run, lambda: _sample_config(data, folder, epochs, log), options=options, export=False, log=log
    )


def _sample_config(data: Path, folder: Path, epochs: int, log: Callable[[str], None]) -> FinetuneConfig:
    """From published weights with the first layers still; from random ones everything is trained."""
    weights, freeze = "yolov3-tiny", NUM_FROZEN
    try:
        download_pretrained(weights)
    except ChromaboxError as error:
        log(f"no trained weights can be had ({error}); the detector begins from random ones, so expect little")
        weights, freeze = str(_random_weights(folder / "untrained.safetensors").resolve()), 0
    return FinetuneConfig(
        data=str(data.resolve()),
        recipe=make_finetune_recipe("default", epochs=epochs),
        weights=weights,
        freeze=freeze,
        size=SAMPLE_IMAGE_SIZE,
        num_cached_views=NUM_CACHED_VIEWS,
    )


def _random_weights(path: Path) -> Path:
    """YOLOv3-tiny as PyTorch draws it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = DarknetModel(yolov3_tiny(), DARKNET).eval()
    save_detector(path, Detector(net, COCO_CLASSES, SAMPLE_IMAGE_SIZE, {"name": "yolov3-tiny, untrained"}))
    return path
