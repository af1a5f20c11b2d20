"""The real YOLOv3-tiny weights, from the cache, the mirror or their authors: read whole, and taken into the photo net.

The layers' shapes are those of the published yolov3-tiny.cfg, typed in from it.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from chromabox.colour.data.photos import PhotoDataset
from chromabox.colour.training.recipes import make_photo_recipe
from chromabox.colour.training.train_photo import NUM_FROZEN_LAYERS, PhotoConfig, init_model
from chromabox.errors import ChromaboxError
from chromabox.io.darknet_weights import download_yolov3_tiny, read_darknet_weights, unpack_layers

# Outputs, inputs and side of each convolution; those without batch normalisation are the two heads of 255 numbers.
LAYERS = [(16, 3, 3), (32, 16, 3), (64, 32, 3), (128, 64, 3), (256, 128, 3), (512, 256, 3), (1024, 512, 3)]
LAYERS += [(256, 1024, 1), (512, 256, 3), (255, 512, 1), (128, 256, 1), (256, 384, 3), (255, 256, 1)]


@pytest.fixture(scope="module")
def path() -> Path:
    try:
        return download_yolov3_tiny()
    except ChromaboxError as error:
        pytest.skip(f"THE REAL YOLOV3-TINY WEIGHTS CANNOT BE REACHED, SO NOTHING OF THEM IS TESTED: {error}")


def test_the_file_holds_the_published_net_to_the_last_number(path: Path) -> None:
    sizes = [outputs * ((1 if outputs == 255 else 4) + inputs * side * side) for outputs, inputs, side in LAYERS]
    assert len(read_darknet_weights(path).values) == sum(sizes)


def test_the_first_layers_are_trained_kernels(path: Path) -> None:
    for layer, (outputs, inputs, side) in zip(
        unpack_layers(read_darknet_weights(path).values, LAYERS[:6]), LAYERS, strict=False
    ):
        assert layer["kernel"].shape == (outputs, inputs, side, side)
        assert (layer["variance"] > 0).all()
        assert all(np.isfinite(values).all() for values in layer.values())
        assert 1e-3 < layer["kernel"].std() < 1


def test_a_photo_net_begins_with_them(path: Path) -> None:
    random = np.random.default_rng(0)
    photographs = PhotoDataset([random.integers(0, 256, (128, 128, 3), dtype=np.uint8) for _ in range(2)], [])
    config = PhotoConfig(recipe_name="quick", recipe=make_photo_recipe("quick"), data="unused", init="yolov3-tiny")
    begun = init_model(config, photographs, None)
    assert (begun.init, begun.model.frozen) == ("yolov3-tiny", NUM_FROZEN_LAYERS)
    first, second = unpack_layers(read_darknet_weights(path).values, LAYERS[:2])
    # Grey as red, green and blue alike gives the sums that the colour kernel would.
    torch.testing.assert_close(begun.model.encode[0][0].weight, torch.tensor(first["kernel"].sum(1, keepdims=True)))
    torch.testing.assert_close(begun.model.encode[1][0].weight, torch.tensor(second["kernel"]))
    torch.testing.assert_close(begun.model.encode[1][1].running_var, torch.tensor(second["variance"]))
    torch.testing.assert_close(begun.model.encode[1][1].bias.data, torch.tensor(second["bias"]))
