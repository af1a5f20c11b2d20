"""The script that trains the photo model on a GPU: its data augmentation, on the CPU."""

import importlib.util
import io
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab
from torch import nn

from chromabox.colour.models.photonet import PhotoNet

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_photo_gpu.py"
#: Width, height and colours (left, right) of the images. A portrait has its colours at the top and the bottom.
LANDSCAPE, PORTRAIT = (288, 192), (96, 128)
RED, BLUE = (200, 30, 40), (20, 60, 220)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_photo_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def encode(size: tuple[int, int]) -> bytes:
    """Return an image whose first half along the long side is red, and whose second half is blue."""
    width, height = size
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = RED
    pixels[height // 2 if height > width else 0 :, width // 2 if width > height else 0 :] = BLUE
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def test_crops_have_the_orientation_of_the_photograph(script: ModuleType) -> None:
    store = script.PhotoStore(4, "cpu")
    store.add([encode(LANDSCAPE), encode(PORTRAIT)], workers=0)
    assert store.count == 2
    torch.manual_seed(0)
    for index, along in ((0, 3), (1, 2)):
        crops = store.random_crops(torch.full((40,), index))
        assert crops.shape == (40, 3, 192, 192)
        red = crops[:, :1] > 0.5
        # Whatever the crop, all lines across the edge are equal, and the other axis has at most one edge.
        lines = red.movedim(along, -1)
        assert (lines == lines[:, :, :1]).all()
        edges = (red.diff(dim=along).sum((1, 2, 3)) // 192).tolist()
        assert set(edges) <= {0, 1}
        assert 1 in edges


def test_lab_equals_that_of_scikit_image(script: ModuleType) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)
    lightness, chroma = script.rgb_to_lab(torch.from_numpy(pixels).movedim(-1, 1) / 255)
    expected = rgb2lab(pixels)
    np.testing.assert_allclose(100 * lightness[:, 0].numpy(), expected[..., 0], atol=0.01)
    np.testing.assert_allclose(chroma.movedim(1, -1).numpy(), expected[..., 1:], atol=0.05)


def test_batches_have_inputs_in_range_and_chroma_at_a_quarter_of_their_size(script: ModuleType) -> None:
    store = script.PhotoStore(8, "cpu")
    store.add([encode(LANDSCAPE)] * 8, workers=0)
    lightness, chroma = script.make_batch(store, torch.arange(8))
    size = lightness.shape[-1]
    assert size in script.SIZES
    assert lightness.shape == (8, 1, size, size)
    assert chroma.shape == (8, 2, size // 4, size // 4)
    assert lightness.min() >= 0
    assert lightness.max() <= 1
    reds = rgb2lab(np.array([[RED]], np.uint8))[0, 0, 1:]
    assert (chroma - torch.tensor(reds)[:, None, None]).abs().amax(1).amin() < 1


def test_drop_path_scales_the_remaining_blocks_and_does_nothing_in_evaluation(script: ModuleType) -> None:
    model = PhotoNet(7, widths=(8, 8, 8, 8), blocks=(1, 1, 1, 1))
    script.add_drop_path(model)
    block = model.encoder[-2][-1]
    block.layers = nn.Sequential(nn.Identity())
    script.add_drop_path(model)
    ones = torch.ones(4000, 1, 1, 1)
    outputs = block.train()(ones) - ones
    values = outputs.unique().tolist()
    assert values[0] == 0
    assert len(values) == 2
    assert outputs.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(block.eval()(ones), 2 * ones)
