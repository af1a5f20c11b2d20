"""PhotoNet's encoder against torch.nn.functional with the layers of EfficientNet-Lite0; attention; frozen layers.

The layers are those of table 1 of Tan and Le 2019, with symmetric padding.
"""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.colour.models import num_trainable_parameters
from chromabox.colour.models.colournet import ResidualBlock
from chromabox.colour.models.photonet import GlobalContext, PhotoNet, SelfAttention

#: Kernel size, stride, expansion and output channels of all 16 blocks.
BLOCKS = [(3, 1, 1, 16), *[(3, 2, 6, 24), (3, 1, 6, 24)], *[(5, 2, 6, 40), (5, 1, 6, 40)]]
BLOCKS += [(3, 2, 6, 80), *[(3, 1, 6, 80)] * 2, *[(5, 1, 6, 112)] * 3, (5, 2, 6, 192), *[(5, 1, 6, 192)] * 3]
BLOCKS += [(3, 1, 6, 320)]


def small_photonet(frozen: int = 0) -> PhotoNet:
    """Return a PhotoNet with a narrow decoder; the encoder has its full width."""
    torch.manual_seed(0)
    return PhotoNet(7, widths=(8, 8, 12, 16), blocks=(1, 1, 1, 1), frozen=frozen)


def conv_norm(features: Tensor, weights: dict[str, Tensor], number: int, stride: int = 1) -> Tensor:
    """Convolve and apply batch normalisation. ``number`` counts the convolutions."""
    kernels = [name for name, value in weights.items() if value.ndim == 4]
    kernel = weights[kernels[number]]
    names = list(weights)
    first = names.index(kernels[number])
    scale, shift, mean, variance = (weights[name] for name in names[first + 1 : first + 5])
    groups = features.shape[1] // kernel.shape[1]
    output = F.conv2d(features, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
    return F.batch_norm(output, mean, variance, scale, shift, eps=1e-3)


def test_encoder_matches_efficientnet_lite0() -> None:
    model = small_photonet().eval()
    for name, value in model.encoder.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(value, std=0.1)
    outputs: list[Tensor] = []
    for layer in model.encoder:
        layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    lightness = torch.rand(1, 1, 64, 96)
    model(lightness)
    weights = dict(model.encoder.state_dict())
    features = F.relu6(conv_norm((2 * lightness - 1).repeat(1, 3, 1, 1), weights, 0, 2))
    torch.testing.assert_close(outputs[0], features, atol=1e-5, rtol=1e-4)
    number, expected = 1, []
    for _, stride, expansion, channels in BLOCKS:
        inputs = features
        if expansion > 1:
            features, number = F.relu6(conv_norm(features, weights, number)), number + 1
        features = F.relu6(conv_norm(features, weights, number, stride))
        features, number = conv_norm(features, weights, number + 1), number + 2
        features = features + inputs if features.shape == inputs.shape else features
        assert features.shape[1] == channels
        expected.append(features)
    last_blocks = [expected[index] for index in (0, 2, 4, 7, 10, 14, 15)]
    assert len(outputs) == 1 + len(last_blocks)
    for output, value in zip(outputs[1:], last_blocks, strict=True):
        torch.testing.assert_close(output, value, atol=1e-4, rtol=1e-3)
    assert outputs[-1].shape == (1, 320, 2, 3)


def test_global_context_is_the_identity_at_first_and_adds_the_same_at_every_position() -> None:
    features = torch.randn(2, 5, 4, 6)
    context = GlobalContext(5)
    assert torch.equal(context(features), features)
    nn.init.normal_(context.linear.weight)
    nn.init.normal_(context.linear.bias)
    added = (context(features) - features).flatten(2)
    expected = torch.relu(features.flatten(2).mean(-1)) @ context.linear.weight.T + context.linear.bias
    torch.testing.assert_close(added, expected[:, :, None].expand_as(added), atol=1e-5, rtol=1e-5)


def test_attention_is_the_identity_at_first_and_equals_the_published_formula() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 8, 3, 5)
    attention = SelfAttention(8, heads=2).eval()
    assert torch.equal(attention(features), features)
    nn.init.normal_(attention.project.weight)
    normed = attention.norm(features).flatten(2).transpose(1, 2)
    query, key, value = (normed @ attention.query_key_value.weight.flatten(1).T).chunk(3, -1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = query[..., head] @ key[..., head].transpose(1, 2) / math.sqrt(4)
        heads.append(scores.softmax(-1) @ value[..., head])
    expected = torch.cat(heads, -1) @ attention.project.weight.flatten(1).T
    actual = (attention(features) - features).flatten(2).transpose(1, 2)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_receptive_field_covers_the_whole_image() -> None:
    model = small_photonet().eval()
    nn.init.normal_(model.context[1].linear.weight)
    for layer in model.modules():
        if isinstance(layer, ResidualBlock):  # initialised to the identity
            nn.init.normal_(layer.branch[-1].weight)
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    model.train()(torch.rand(2, 1, 64, 256))  # Batch statistics keep the values at a useful scale.
    model.eval()
    uniform = torch.full((1, 1, 64, 1536), 0.5)
    changed = uniform.clone()
    changed[..., :64] = 0.9
    # The convolutions reach less than 1,400 pixels: only the context carries the change to the other end.
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
    assert all(parameter.grad is None for parameter in model.encoder[:frozen].parameters())
    unchanged = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    expected = {name for name in before if name.startswith("encoder.") and int(name.split(".")[1]) < frozen}
    trainable = {name for name in before if name.startswith("encoder.")} - expected
    assert expected <= unchanged
    assert not trainable & unchanged
    assert num_trainable_parameters(model) == sum(
        value.numel() for name, value in model.named_parameters() if name not in expected
    )
