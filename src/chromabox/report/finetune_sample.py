"""A detector fine-tuned from nothing but what any machine has, in under a minute: the demonstration's second half."""

from collections.abc import Callable
from pathlib import Path

import torch

from chromabox.detect.data.dataset import COCO_CLASSES
from chromabox.detect.data.synthetic import write_collage
from chromabox.detect.models.architecture import yolov3_tiny
from chromabox.detect.models.darknet import DARKNET, DetectorNet
from chromabox.detect.training.recipes import FinetuneConfig, finetune_recipe
from chromabox.detect.weights.load import TrainedDetector, fetch_detector, save_detector
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.errors import ChromaboxError
from chromabox.report.finetuning import finetune_missing

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
