"""The runs of the complete assignment, the demonstration (``make demo``), and a small sample detector."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image

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
from chromabox.engine.runs import RunDir, train_pending
from chromabox.engine.runtime_options import RuntimeOptions
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

#: Batch sizes of question B.5.
BATCH_SIZES = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class AssignmentPlan:
    """Recipe, seeds and detection data of the assignment's runs."""

    recipe: RecipeName
    seeds: tuple[int, ...]
    sweep_seeds: tuple[int, ...]
    detection_data: str | None
    """Dataset for fine-tuning the detector; None: a synthetic dataset made from CIFAR-10 images."""


#: ``COURSE`` has the exact settings of the assignment (about an hour on two cores); ``QUICK`` takes a few minutes.
COURSE = AssignmentPlan("course", seeds=(0, 1, 2), sweep_seeds=(0, 1), detection_data="coco128")
QUICK = AssignmentPlan("quick", seeds=(0, 1), sweep_seeds=(0,), detection_data=None)


@dataclass(frozen=True)
class AssignmentRuns:
    """Results of the assignment's runs, and the folders that contain them."""

    comparison: Comparison
    batch_size_sweep: SweepResult
    folders: tuple[Path, ...]


def run_assignment(
    folder: Path,
    plan: AssignmentPlan,
    *,
    options: RuntimeOptions | None = None,
) -> AssignmentRuns:
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
        values=BATCH_SIZES,
        seeds=plan.sweep_seeds,
        data=DATASET,
        options=options,
    )
    detector = _train_detector(folder / "detector", plan.detection_data, options)
    return AssignmentRuns(comparison, batch_size_sweep, (models_folder, batch_sizes_folder, detector))


def _train_detector(folder: Path, detection_data: str | None, options: RuntimeOptions | None) -> Path:
    """Fine-tune on ``detection_data``, or on a synthetic dataset if that is None or not available."""
    if detection_data is None or not _is_available(detection_data):
        return train_sample_detector(folder, options=options)
    config = FinetuneConfig(data=detection_data, recipe=make_finetune_recipe("default"), freeze=NUM_FROZEN)
    return _finetune_pending(folder, lambda: config, options)


def _finetune_pending(
    folder: Path, make_config: Callable[[], FinetuneConfig], options: RuntimeOptions | None, *, export: bool = True
) -> Path:
    """Fine-tune in ``folder`` and return it. Skip a finished run; resume an interrupted one with its saved settings."""

    def train(config: FinetuneConfig, run: RunDir) -> None:
        run_finetune(config, run, options=options, resume=run.is_started, export=export)

    run = RunDir(folder)
    train_pending({folder: run.load_config(FinetuneConfig) if run.is_started else make_config()}, train)
    return folder


def _is_available(detection_data: str) -> bool:
    try:
        load_detection_dataset(detection_data)
    except ChromaboxError as error:
        log.warning(f"{error}; using a synthetic dataset made from CIFAR-10 images instead")
        return False
    return True


#: Photographs included in the scikit-image wheel.
SAMPLE_IMAGES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


@dataclass(frozen=True)
class DemoResult:
    """Files of the demonstration."""

    assignment: AssignmentRuns
    photos: Path
    report: ReportFiles


def run_demo(folder: Path) -> DemoResult:
    """Colourise sample photographs with the bundled model, run the quick assignment and write its report."""
    figure = colourise_samples(folder / "photographs")
    assignment = run_assignment(folder / "runs", QUICK)
    return DemoResult(assignment, figure, write_report(assignment.folders, folder, include_missing=True))


def colourise_samples(folder: Path) -> Path:
    """Colourise the sample photographs and return the path of a figure with original, grey and colourised rows.

    Raise ChromaboxError if scikit-image contains none of the photographs.
    """
    samples = [Path(skimage.__file__).parent / "data" / name for name in SAMPLE_IMAGES]
    available = [path for path in samples if path.is_file()]
    if not available:
        raise ChromaboxError(
            f"{samples[0].parent}: expected sample images of scikit-image, found none of {', '.join(SAMPLE_IMAGES)}"
        )
    pairs = map_outputs(available, folder)
    colourise_file = make_file_coloriser(open_model(), ColouriseOptions())
    for source, target in pairs:
        colourise_file(source, target)
        log.info(str(target))
    originals = [_load_tile(source) for source, _ in pairs]
    greys = [np.repeat(np.rint(tile.mean(axis=2, keepdims=True)).astype(np.uint8), 3, axis=2) for tile in originals]
    figure = folder.parent / "photographs.png"
    plot_image_rows(
        {"original": originals, "grey": greys, "colourised": [_load_tile(target) for _, target in pairs]},
        figure,
        "Sample photographs, colourised by the bundled model",
        tile_size=2.0,
    )
    return figure


def _load_tile(path: Path, size: int = 256) -> RGBTile:
    """Return the central square of an image, resized to ``size`` × ``size`` pixels: uint8 [size, size, 3]."""
    pixels = to_uint8(read_image(path).pixels)
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


#: Images per split and their side length in pixels, chosen so that training takes under a minute on two cores.
SAMPLE_SPLITS, SAMPLE_IMAGE_SIZE = {"train": 64, "val": 32, "test": 16}, 192
NUM_EPOCHS, NUM_CACHED_VIEWS = 10, 4

#: Number of frozen layers, as in the assignment.
NUM_FROZEN = 10


def train_sample_detector(folder: Path, *, options: RuntimeOptions | None = None, epochs: int = NUM_EPOCHS) -> Path:
    """Make a small synthetic dataset in ``folder/set``, fine-tune a detector on it and return ``folder/run``.

    YOLOv3-tiny starts from its pretrained weights. If these cannot be downloaded, it starts from random weights, which
    is logged: such a model learns very little in so few epochs. A finished run is reused and an interrupted one is
    resumed. Raise ChromaboxError if CIFAR-10, the source of the objects, cannot be loaded either.
    """
    data = folder / "set"
    if not data.is_dir():
        boxes = make_synthetic_dataset(data, counts=SAMPLE_SPLITS, size=SAMPLE_IMAGE_SIZE)
        num_images, num_boxes = sum(SAMPLE_SPLITS.values()), sum(boxes.values())
        log.info(f"{data}: {num_images} images with {num_boxes} boxes, made from CIFAR-10 images")
    return _finetune_pending(folder / "run", lambda: _sample_config(folder, epochs), options, export=False)


def _sample_config(folder: Path, epochs: int) -> FinetuneConfig:
    """Return a configuration; the first layers are frozen for pretrained weights, but not for random ones."""
    weights, freeze = "yolov3-tiny", NUM_FROZEN
    try:
        download_pretrained(weights)
    except ChromaboxError as error:
        log.warning(f"pretrained weights are not available ({error}); using random weights, so expect low accuracy")
        weights, freeze = str(_random_weights(folder / "untrained.safetensors").resolve()), 0
    return FinetuneConfig(
        data=str((folder / "set").resolve()),
        recipe=make_finetune_recipe("default", epochs=epochs),
        weights=weights,
        freeze=freeze,
        size=SAMPLE_IMAGE_SIZE,
        num_cached_views=NUM_CACHED_VIEWS,
    )


def _random_weights(path: Path) -> Path:
    """Save YOLOv3-tiny with PyTorch's default initialisation (seed 0) and return ``path``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DarknetModel(yolov3_tiny(), DARKNET).eval()
    save_detector(path, Detector(model, COCO_CLASSES, SAMPLE_IMAGE_SIZE, {"name": "yolov3-tiny, untrained"}))
    return path
