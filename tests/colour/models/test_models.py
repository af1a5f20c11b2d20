"""The registry of models: output shapes of all models, rejected names and options, number of trainable parameters."""

import pytest
import torch

from chromabox.colour.models import MODELS, build_model, num_trainable_parameters
from chromabox.colour.models.baselines import PoolUpsampleNet
from chromabox.colour.models.photonet import PhotoNet
from chromabox.errors import UsageError


@pytest.mark.parametrize("name", MODELS)
def test_logits_have_the_expected_shape_at_every_supported_size(name: str) -> None:
    model = build_model(name, num_colours=5).eval()
    divisor, stride = model.size_divisor, 4 if name == "photo" else 1
    for height, width in ((divisor, 3 * divisor), (32, 32), (5 * divisor, 2 * divisor)):
        logits = model(torch.rand(2, 1, height, width))
        assert logits.shape == (2, 5, height // stride, width // stride)
        assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "model_args", "message"),
    [
        ("unet", {"dilation": 0}, "dilation is 0"),
        ("conv-transpose", {"kernel": 9, "dilation": 5}, "kernel 9 with dilation 5 covers 41 pixels"),
        ("pool-upsample", {"dilation": 2}, "invalid options"),
        ("vgg", {}, "unknown model 'vgg': expected one of pool-upsample, conv-transpose, unet"),
    ],
)
def test_unknown_models_and_invalid_options_are_rejected(name: str, model_args: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model(name, **model_args)


def test_frozen_parameters_are_not_counted() -> None:
    model = PoolUpsampleNet()
    total = num_trainable_parameters(model)
    model.last.weight.requires_grad_(False)
    assert num_trainable_parameters(model) == total - 9 * 24 * 24


def test_photo_model_args_can_be_lists() -> None:
    model = build_model("photo", num_colours=3, widths=[8, 8, 8, 8], blocks=[1, 1, 1, 1], frozen=2)
    assert isinstance(model, PhotoNet)
    assert model.eval()(torch.rand(1, 1, 32, 32)).shape == (1, 3, 8, 8)
    with pytest.raises(UsageError, match="invalid options"):
        build_model("photo", num_colours=3, kernel=3)
