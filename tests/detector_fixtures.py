"""A detector small enough for tests: one head of stride 32 and random weights; about half of its scores exceed 0.5."""

import numpy as np
import torch

from chromabox.detect.models.architecture import DARKNET, Architecture, Convolution, Variant, Yolo
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.weights.load import Detector

CLASS_NAMES = ("cat", "dog", "red fox")


def make_small_detector(variant: Variant = DARKNET, seed: int = 0) -> Detector:
    """Build a detector with five convolutions of stride 2, two anchors, three classes and input size 64."""
    head = Yolo((0, 1), ((60.0, 60.0), (80.0, 50.0)), len(CLASS_NAMES))
    num_outputs = len(head.mask) * (5 + len(CLASS_NAMES))
    layers = (
        *(Convolution(8, 3, 2) for _ in range(5)),
        Convolution(num_outputs, 1, batch_normalise=False, activation="linear"),
        head,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DarknetModel(Architecture("small", layers, size=64), variant).eval()
        for layer in model.layers[:5]:
            layer.norm.running_mean.normal_(0, 0.1)
            layer.norm.running_var.uniform_(0.02, 0.1)
        with torch.no_grad():
            # Spread the scores; box sizes stay near those of the anchors, so boxes overlap.
            model.layers[5].convolution.weight.view(2, -1, 8)[:, 4:] *= 3
            model.layers[5].convolution.bias.view(2, -1)[:, 4:] += 1.5
    return Detector(model, CLASS_NAMES, 64, {})


def random_images(count: int = 3, size: int = 64) -> np.ndarray:
    """Return noise as the input of a detector: float32 [count, 3, size, size] in [0, 1)."""
    return np.random.default_rng(0).random((count, 3, size, size), np.float32)
