"""The runs of the complete assignment, the demonstration (``make demo``), and a small sample detector."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image, ImageOps

from chromabox.assignment.write_up import ReportFiles, write_report
from chromabox.colour.inference.batch import make_file_coloriser
from chromabox.colour.inference.load import open_model
from chromabox.colour.inference.predict import ColouriseOptions
from chromabox.colour.training.recipes import PALETTE_MODELS, RecipeName
from chromabox.detect.data.dataset import COCO_CLASSES
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.synthetic import make_synthetic_dataset
from chromabox.detect.models.architecture import DARKNET, yolov3_tiny
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.recipes import make_finetune_recipe
from chromabox.detect.weights.load import Detector, download_pretrained, save_detector
from chromabox.engine.options import RuntimeOptions
from chromabox.engine.runs import RunDir, train_pending
from chromabox.errors import ChromaboxError
from chromabox.experiments.compare import Comparison, compare
from chromabox.experiments.sweep import sweep
from chromabox.experiments.sweep_results import SweepResult
from chromabox.io.images import read_image, to_uint8
from chromabox.io.paths import map_outputs
from chromabox.report.plots import RGBTile, plot_image_rows
from chromabox.report.training import run_finetune

log = logging.getLogger(__name__)

DATASET = "cifar10:horse"


@dataclass(frozen=True)
class AssignmentPlan:
    """Settings of the assignment's runs."""

    recipe: RecipeName
    seeds: tuple[int, ...]
    sweep_seeds: tuple[int, ...]
    detection_data: str | None
    """Dataset for fine-tuning the detector; None stands for a synthetic dataset made from CIFAR-10 images."""
    batch_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Batch sizes of question B.5."""
    sample_epochs: int = 10
    """Number of epochs on the synthetic dataset."""


#: ``COURSE`` has the exact settings of the assignment (about an hour on two cores). ``QUICK`` takes about five minutes,
#: and ``DEMO`` about three.
COURSE = AssignmentPlan("course", seeds=(0, 1, 2), sweep_seeds=(0, 1), detection_data="coco128")
QUICK = AssignmentPlan("quick", seeds=(0, 1), sweep_seeds=(0,), detection_data=None)
DEMO = AssignmentPlan(
    "quick", seeds=(0,), sweep_seeds=(0,), detection_data=None, batch_sizes=(64, 512), sample_epochs=3
)


@dataclass(frozen=True)
class AssignmentRuns:
    """Results of the assignment's runs, and the folders that contain them."""

    comparison: Comparison
    batch_size_sweep: SweepResult
    folders: tuple[Path, ...]


def run_assignment(folder: Path, plan: AssignmentPlan, *, options: RuntimeOptions | None = None) -> AssignmentRuns:
    """Train the runs of the assignment that ``folder`` does not contain yet.

    Finished runs are reused and interrupted ones are resumed.
    """
    models_folder, batch_sizes_folder = folder / "nets", folder / "batch-sizes"
    comparison = compare(
        models_folder,
        models=PALETTE_MODELS[:3],
        recipe=plan.recipe,
        seeds=plan.seeds,
        data=DATASET,
        palette="auto",
        options=options,
    )
    batch_size_sweep = sweep(
        batch_sizes_folder,
        model="conv-transpose",
        recipe=plan.recipe,
        parameter="batch-size",
        values=plan.batch_sizes,
        seeds=plan.sweep_seeds,
        data=DATASET,
        options=options,
    )
    detector, data = folder / "detector", plan.detection_data
    if data is not None:
        try:
            load_detection_dataset(data)
        except ChromaboxError as error:
            log.warning(f"{error}; using a synthetic dataset made from CIFAR-10 images instead")
            data = None
    if data is None:
        detector = train_sample_detector(detector, options=options, epochs=plan.sample_epochs)
    else:
        config = FinetuneConfig(data=data, recipe=make_finetune_recipe("default"), freeze=NUM_FROZEN)
        _finetune_pending(detector, lambda: config, options)
    return AssignmentRuns(comparison, batch_size_sweep, (models_folder, batch_sizes_folder, detector))


def _finetune_pending(
    folder: Path, make_config: Callable[[], FinetuneConfig], options: RuntimeOptions | None, *, export: bool = True
) -> None:
    """Fine-tune in ``folder``. A finished run is skipped; an interrupted one is resumed with its saved settings."""

    def train(config: FinetuneConfig, run: RunDir) -> None:
        run_finetune(config, run, options=options, resume=run.is_started, export=export)

    run = RunDir(folder)
    train_pending({folder: run.load_config(FinetuneConfig) if run.is_started else make_config()}, train)


#: Photographs included in the scikit-image wheel.
SAMPLE_IMAGES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


def run_demo(folder: Path) -> tuple[Path, AssignmentRuns, ReportFiles]:
    """Colourise sample photographs with the bundled model, run a short version of the assignment and report on it.

    Return the path of a figure with the original, grey and colourised photographs, the runs, and the report.
    """
    figure = folder / "photographs.png"
    _colourise_samples(folder / "photographs", figure)
    # Selecting these settings by a benchmark would take longer than it saves in such short runs.
    options = RuntimeOptions(precision="float32", channels_last="on", compile="off")
    assignment = run_assignment(folder / "runs", DEMO, options=options)
    return figure, assignment, write_report(assignment.folders, folder, include_missing=True)


def _colourise_samples(folder: Path, figure: Path) -> None:
    samples = [Path(skimage.__file__).parent / "data" / name for name in SAMPLE_IMAGES]
    pairs = map_outputs([path for path in samples if path.is_file()], folder)
    if not pairs:
        raise ChromaboxError(
            f"{samples[0].parent}: no sample images of scikit-image found; "
            f"expected at least one of {', '.join(SAMPLE_IMAGES)}"
        )
    colourise_file = make_file_coloriser(open_model(), ColouriseOptions())
    for source, target in pairs:
        colourise_file(source, target)
        log.info(str(target))
    originals = [_load_tile(source) for source, _ in pairs]
    greys = [np.repeat(np.rint(tile.mean(axis=2, keepdims=True)).astype(np.uint8), 3, axis=2) for tile in originals]
    plot_image_rows(
        {"original": originals, "grey": greys, "colourised": [_load_tile(target) for _, target in pairs]},
        figure,
        "Sample photographs, colourised by the bundled model",
        tile_size=2.0,
    )


def _load_tile(path: Path, size: int = 256) -> RGBTile:
    """Return the central square of an image, resized to ``size`` × ``size`` pixels: uint8 [size, size, 3]."""
    image = Image.fromarray(to_uint8(read_image(path).pixels))
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))


#: Number of images per split and side length of an image in pixels; training takes under a minute on two cores.
SAMPLE_SPLITS, SAMPLE_IMAGE_SIZE = {"train": 64, "val": 32, "test": 16}, 192
NUM_CACHED_VIEWS = 4

#: Number of frozen layers, as in the assignment.
NUM_FROZEN = 10


def train_sample_detector(folder: Path, *, epochs: int, options: RuntimeOptions | None = None) -> Path:
    """Make a small synthetic dataset in ``folder/set``, fine-tune a detector on it and return ``folder/run``.

    YOLOv3-tiny starts from its pretrained weights. If they cannot be downloaded, a warning is logged and the model
    starts from random weights; it then learns very little in so few epochs. A finished run is reused and an interrupted
    one is resumed. Raise ChromaboxError if CIFAR-10, from which the dataset is made, cannot be loaded.
    """
    data, run = folder / "set", folder / "run"
    if not data.is_dir():
        boxes = make_synthetic_dataset(data, counts=SAMPLE_SPLITS, size=SAMPLE_IMAGE_SIZE)
        num_images, num_boxes = sum(SAMPLE_SPLITS.values()), sum(boxes.values())
        log.info(f"{data}: {num_images} images with {num_boxes} boxes, made from CIFAR-10 images")

    def make_config() -> FinetuneConfig:
        weights, num_frozen = "yolov3-tiny", NUM_FROZEN
        try:
            download_pretrained(weights)
        except ChromaboxError as error:
            log.warning(f"pretrained weights are not available ({error}); using random weights, so expect low accuracy")
            untrained = folder / "untrained.safetensors"
            weights, num_frozen = str(untrained.resolve()), 0  # Random layers are not frozen.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = DarknetModel(yolov3_tiny(), DARKNET).eval()
            metadata = {"name": "yolov3-tiny, untrained"}
            save_detector(untrained, Detector(model, COCO_CLASSES, SAMPLE_IMAGE_SIZE, metadata))
        return FinetuneConfig(
            data=str(data.resolve()),
            recipe=make_finetune_recipe("default", epochs=epochs),
            weights=weights,
            freeze=num_frozen,
            size=SAMPLE_IMAGE_SIZE,
            num_cached_views=NUM_CACHED_VIEWS,
        )

    _finetune_pending(run, make_config, options, export=False)
    return run
