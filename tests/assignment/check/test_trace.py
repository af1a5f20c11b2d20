"""Recorded steps. Expected values: figure 1's shapes, PyTorch's modules' own settings, and arithmetic."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.assignment.check.trace import INPUT, OpTrace, trace_ops
from chromabox.colour.models import MODELS, num_trainable_parameters


class Does(nn.Module):
    """Runs a function as its forward."""

    def __init__(self, work, **parts: nn.Module) -> None:
        super().__init__()
        self.work = work
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.work(self, x)


def trace(work, **parts: nn.Module) -> OpTrace:
    return trace_ops(Does(work, **parts), torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("net", ["pool-upsample", "conv-transpose", "unet"])
def test_our_nets_are_their_modules_in_order(net: str) -> None:
    module = MODELS[net]()
    seen = trace_ops(module, torch.rand(2, 1, 32, 32))
    leaves = {name: part for name, part in module.named_modules() if not list(part.children())}
    named = [step for step in seen.ops if step.module]
    assert [step.module for step in named] == list(leaves)
    assert [step.kind for step in named] == [type(part).__name__ for part in leaves.values()]
    assert sum(step.num_parameters for step in seen.ops) == num_trainable_parameters(module)
    for step in named:
        part = leaves[step.module]
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            assert (step.settings["inputs"], step.settings["outputs"]) == (part.in_channels, part.out_channels)
            assert step.settings["stride"] == part.stride[0]
    assert seen.last_op == len(seen.ops) - 1
    assert seen.unused_modules == []


def test_settings_are_the_modules_own() -> None:
    part = nn.ConvTranspose2d(6, 4, (3, 5), stride=2, padding=(1, 2), output_padding=1, groups=2, bias=False)
    step = trace_ops(part, torch.rand(1, 6, 4, 4)).ops[0]
    expected = {"inputs": 6, "outputs": 4, "kernel": [3, 5], "stride": 2, "padding": [1, 2], "output padding": 1}
    assert step.settings == {**expected, "groups": 2, "bias": False, "dilation": 1}
    assert step.num_parameters == 6 * 2 * 3 * 5


@pytest.mark.parametrize(
    ("kind", "work"),
    [
        ("ReLU", lambda _, x: F.relu(x)),
        ("ReLU", lambda _, x: torch.relu(x)),
        ("ReLU", lambda _, x: x.clone().relu_()),
        ("ReLU", lambda _, x: x.clamp(min=0)),
        ("ReLU", lambda _, x: nn.ReLU(inplace=True)(x)),
        ("ReLU", lambda _, x: torch.clamp_min(x, 0)),
        ("clamp", lambda _, x: x.clamp(0, 6)),
        ("MaxPool2d", lambda _, x: F.max_pool2d(x, 2)),
        ("AvgPool2d", lambda _, x: F.avg_pool2d(x, 2)),
        ("Upsample", lambda _, x: F.interpolate(x, scale_factor=2)),
        ("Upsample", lambda _, x: F.interpolate(x, size=(16, 16), mode="bilinear")),
        ("cat", lambda _, x: torch.cat([x, x], 1)),
        ("cat", lambda _, x: torch.hstack([x, x])),
        ("softmax", lambda _, x: F.softmax(x, 1)),
        ("log_softmax", lambda _, x: x.log_softmax(1)),
        ("Dropout", lambda _, x: F.dropout(x)),
        ("Dropout", lambda _, x: nn.Dropout2d()(x)),
        ("BatchNorm2d", lambda _, x: F.batch_norm(x, None, None, training=True)),
        ("InstanceNorm2d", lambda self, x: self.norm(x)),
        ("div", lambda _, x: x / 255),
    ],
)
def test_functional_calls_are_steps(kind: str, work) -> None:
    seen = trace(work, norm=nn.InstanceNorm2d(1))
    assert [step.kind for step in seen.ops] == [kind]
    assert seen.error is None
    assert set(seen.ops[0].sources) == {INPUT}
    assert seen.last_op == 0


def test_handing_on_is_no_step() -> None:
    seen = trace(lambda _, x: F.relu(x.clone().contiguous()[:, :, 1:-1].reshape(2, 1, 6, 8).float()).view(2, -1))
    assert [step.kind for step in seen.ops] == ["ReLU"]
    assert seen.last_op == 0


def test_sources_follow_the_tensors_not_the_order() -> None:
    def work(_: nn.Module, x: Tensor) -> Tensor:
        first = F.relu(x)
        second = F.max_pool2d(F.interpolate(first, scale_factor=2), 2)
        return torch.cat([x, second, first.view(2, 1, 8, 8)], 1)

    seen = trace(work)
    assert [(step.kind, step.sources) for step in seen.ops] == [
        ("ReLU", (INPUT,)),
        ("Upsample", (0,)),
        ("MaxPool2d", (1,)),
        ("cat", (INPUT, 2, 0)),
    ]


def test_what_takes_no_part_is_unused() -> None:
    parts = {"used": nn.ReLU(), "idle": nn.Conv2d(1, 1, 1), "lent": nn.Conv2d(1, 1, 1)}
    seen = trace(lambda self, x: self.used(F.conv2d(x, self.lent.weight)), **parts)
    assert seen.unused_modules == ["idle"]
    assert [step.module for step in seen.ops] == ["", "used"]


@pytest.mark.parametrize("error", [RuntimeError("half-way"), SystemExit(3)])
def test_an_error_keeps_the_steps_before_it(error: BaseException) -> None:
    def work(_: nn.Module, x: Tensor) -> Tensor:
        F.relu(x)
        raise error

    seen = trace(work)
    assert seen.error is error
    assert [step.kind for step in seen.ops] == ["ReLU"]
    assert seen.output is None
    assert seen.last_op is None


def test_hooks_go_away() -> None:
    net = MODELS["unet"](num_filters=2, num_colours=2)
    trace_ops(net, torch.rand(1, 1, 8, 8))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
