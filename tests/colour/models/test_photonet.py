"""PhotoNet's encoder against torch.nn.functional with the layers of yolov3-tiny.cfg; global context; frozen layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from chromabox.colour.models import num_trainable_parameters
from chromabox.colour.models.colournet import ResidualBlock
from chromabox.colour.models.photonet import GlobalContext, PhotoNet


def small_photonet(frozen: int = 0) -> PhotoNet:
    """Return a PhotoNet with a narrow decoder; the encoder's channels are those of YOLOv3-tiny."""
    torch.manual_seed(0)
    return PhotoNet(7, widths=(8, 12, 16), blocks=(1, 1, 1), frozen=frozen)


def test_global_context_is_the_identity_at_first_and_adds_the_same_at_every_position() -> None:
    features = torch.randn(2, 5, 4, 6)
    context = GlobalContext(5)
    assert torch.equal(context(features), features)
    nn.init.normal_(context.tell.weight)
    nn.init.normal_(context.tell.bias)
    added = (context(features) - features).flatten(2)
    expected = torch.relu(features.flatten(2).mean(-1)) @ context.tell.weight.T + context.tell.bias
    torch.testing.assert_close(added, expected[:, :, None].expand_as(added), atol=1e-5, rtol=1e-5)


def test_encoder_matches_yolov3_tiny() -> None:
    # yolov3-tiny.cfg: convolution, batch normalisation, leaky ReLU with slope 0.1, then max pooling by 2.
    model = small_photonet().eval()
    outputs = []
    for layer in model.encode:
        layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    image = torch.rand(1, 1, 64, 96)
    model(image)
    features = image
    for index, layer in enumerate(model.encode):
        weights = dict(layer.state_dict())
        pooled = F.max_pool2d(features, 2, 2) if index else features
        features = F.conv2d(pooled, weights["0.weight"], padding=1)
        statistics = (weights[f"1.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        features = F.leaky_relu(F.batch_norm(features, *statistics), 0.1)
        assert features.shape[1:] == (16 * 2**index, 64 // 2**index, 96 // 2**index)
        torch.testing.assert_close(outputs[index], features, atol=1e-5, rtol=1e-4)


def test_receptive_field_covers_the_whole_image() -> None:
    model = small_photonet().eval()
    for layer in model.modules():
        if isinstance(layer, GlobalContext):
            nn.init.normal_(layer.tell.weight)
        if isinstance(layer, ResidualBlock):  # initialised to the identity
            nn.init.normal_(layer.branch[-1].weight)
    uniform = torch.full((1, 1, 96, 512), 0.5)
    changed = uniform.clone()
    changed[..., :64] = 0.9
    # The radius of 14 convolutions at 1/32 and finer is less than 448 pixels: only the global context carries the
    # change to the other end.
    assert not torch.allclose(model(uniform)[..., -1], model(changed)[..., -1], atol=1e-6)


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_frozen_layers_do_not_change_in_training(frozen: int) -> None:
    model = small_photonet(frozen).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(2):  # the first step changes only the layers initialised to zero
        loss = model(torch.rand(4, 1, 32, 64)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in model.encode[:frozen].parameters())
    unchanged = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    expected = {name for name in before if name.startswith("encode.") and int(name.split(".")[1]) < frozen}
    trainable = {name for name in before if name.startswith("encode.")} - expected
    assert expected <= unchanged
    assert not trainable & unchanged
    assert num_trainable_parameters(model) == sum(
        value.numel() for name, value in model.named_parameters() if name not in expected
    )
