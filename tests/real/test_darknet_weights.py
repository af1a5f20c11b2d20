"""Tests of reading the published YOLOv3-tiny weights.

The shapes of the layers are copied from the published yolov3-tiny.cfg.
"""

from pathlib import Path

import numpy as np
import pytest

from chromabox.engine.darknet_weights import download_yolov3_tiny, read_darknet_weights, unpack_layers
from chromabox.errors import ChromaboxError

# Outputs, inputs and kernel size of each convolution; only the two heads with 255 outputs have no BatchNorm.
LAYERS = [(16, 3, 3), (32, 16, 3), (64, 32, 3), (128, 64, 3), (256, 128, 3), (512, 256, 3), (1024, 512, 3)]
LAYERS += [(256, 1024, 1), (512, 256, 3), (255, 512, 1), (128, 256, 1), (256, 384, 3), (255, 256, 1)]


@pytest.fixture(scope="module")
def path() -> Path:
    try:
        return download_yolov3_tiny()
    except ChromaboxError as error:
        pytest.skip(f"THE REAL YOLOV3-TINY WEIGHTS ARE NOT AVAILABLE, SO THEIR TESTS ARE SKIPPED: {error}")


def test_file_has_the_number_of_values_of_the_architecture(path: Path) -> None:
    sizes = [outputs * ((1 if outputs == 255 else 4) + inputs * kernel * kernel) for outputs, inputs, kernel in LAYERS]
    assert len(read_darknet_weights(path).values) == sum(sizes)


def test_first_layers_have_plausible_values(path: Path) -> None:
    for layer, (outputs, inputs, kernel) in zip(
        unpack_layers(read_darknet_weights(path).values, LAYERS[:6]), LAYERS, strict=False
    ):
        assert layer["kernel"].shape == (outputs, inputs, kernel, kernel)
        assert (layer["variance"] > 0).all()
        assert all(np.isfinite(values).all() for values in layer.values())
        assert 1e-3 < layer["kernel"].std() < 1
