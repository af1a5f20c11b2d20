"""Hat functions against numpy.interp; test-time augmentation of ColourNet against averaged probabilities."""

import numpy as np
import torch

from chromabox.colour.models import num_trainable_parameters
from chromabox.colour.models.colournet import ColourNet, ResidualBlock, hat_encoding


def test_hat_encoding_matches_numpy_interp() -> None:
    # numpy.interp of a unit vector is one hat function; the sum of all hat functions is 1 everywhere.
    grey = torch.linspace(0, 0.999, 97).reshape(1, 1, 1, -1)
    encoding = hat_encoding(grey, 8)[0, :, 0].T.numpy()
    expected = [np.interp(grey.flatten().numpy(), np.linspace(0, 1, 9), unit) for unit in np.eye(9)]
    np.testing.assert_allclose(encoding, np.stack(expected, axis=1), atol=1e-6)
    np.testing.assert_allclose(encoding.sum(axis=1), 1, atol=1e-6)


def test_colournet_has_at_most_4_million_parameters() -> None:
    assert num_trainable_parameters(ColourNet()) <= 4_000_000


def test_colournet_in_evaluation_mode_averages_probabilities_of_image_and_flip() -> None:
    torch.manual_seed(0)
    model = ColourNet(widths=(8, 8, 8), blocks=(1, 1, 1)).eval()
    grey = torch.rand(2, 1, 16, 24)
    with torch.no_grad():
        logits, logits_of_flipped = model(grey), model(grey.flip(-1))
        probabilities = model.logits(grey).softmax(1), model.logits(grey.flip(-1)).softmax(1).flip(-1)
    torch.testing.assert_close(logits.exp(), (probabilities[0] + probabilities[1]) / 2)
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(2, 16, 24))
    torch.testing.assert_close(logits_of_flipped.flip(-1), logits)


def test_residual_block_is_the_identity_after_initialisation() -> None:
    features = torch.rand(2, 8, 4, 4)
    torch.testing.assert_close(ResidualBlock(8).train()(features), features)
