"""Recorded operations. Expected values: the shapes of figure 1, the attributes of PyTorch modules, and arithmetic."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.assignment.check.trace import INPUT, OpTrace, trace_ops
from chromabox.colour.models import MODELS, num_trainable_parameters


class FunctionModule(nn.Module):
    """Module with a function as its forward."""

    def __init__(self, function, **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def trace_function(function, **children: nn.Module) -> OpTrace:
    return trace_ops(FunctionModule(function, **children), torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("name", ["pool-upsample", "conv-transpose", "unet"])
def test_operations_of_reference_models_are_their_modules_in_order(name: str) -> None:
    model = MODELS[name]()
    trace = trace_ops(model, torch.rand(2, 1, 32, 32))
    leaves = {name: module for name, module in model.named_modules() if not list(module.children())}
    module_ops = [op for op in trace.ops if op.module]
    assert [op.module for op in module_ops] == list(leaves)
    assert [op.kind for op in module_ops] == [type(module).__name__ for module in leaves.values()]
    assert sum(op.num_parameters for op in trace.ops) == num_trainable_parameters(model)
    for op in module_ops:
        module = leaves[op.module]
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert (op.settings["inputs"], op.settings["outputs"]) == (module.in_channels, module.out_channels)
            assert op.settings["stride"] == module.stride[0]
    assert trace.unused_modules == []


def test_settings_equal_those_of_the_module() -> None:
    layer = nn.ConvTranspose2d(6, 4, (3, 5), stride=2, padding=(1, 2), output_padding=1, groups=2, bias=False)
    op = trace_ops(layer, torch.rand(1, 6, 4, 4)).ops[0]
    expected = {"inputs": 6, "outputs": 4, "kernel": [3, 5], "stride": 2, "padding": [1, 2], "output padding": 1}
    assert op.settings == {**expected, "groups": 2, "bias": False, "dilation": 1}
    assert op.num_parameters == 6 * 2 * 3 * 5


@pytest.mark.parametrize(
    ("kind", "function"),
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
def test_functional_calls_are_operations(kind: str, function) -> None:
    trace = trace_function(function, norm=nn.InstanceNorm2d(1))
    assert [op.kind for op in trace.ops] == [kind]
    assert trace.error is None
    assert set(trace.ops[0].sources) == {INPUT}


def test_views_and_copies_are_not_operations() -> None:
    trace = trace_function(
        lambda _, x: F.relu(x.clone().contiguous()[:, :, 1:-1].reshape(2, 1, 6, 8).float()).view(2, -1)
    )
    assert [op.kind for op in trace.ops] == ["ReLU"]


def test_sources_follow_the_tensors_instead_of_the_order() -> None:
    def function(_: nn.Module, x: Tensor) -> Tensor:
        first = F.relu(x)
        second = F.max_pool2d(F.interpolate(first, scale_factor=2), 2)
        return torch.cat([x, second, first.view(2, 1, 8, 8)], 1)

    trace = trace_function(function)
    assert [(op.kind, op.sources) for op in trace.ops] == [
        ("ReLU", (INPUT,)),
        ("Upsample", (0,)),
        ("MaxPool2d", (1,)),
        ("cat", (INPUT, 2, 0)),
    ]


def test_modules_without_effect_are_unused() -> None:
    children = {"used": nn.ReLU(), "unused": nn.Conv2d(1, 1, 1), "weight_used": nn.Conv2d(1, 1, 1)}
    trace = trace_function(lambda self, x: self.used(F.conv2d(x, self.weight_used.weight)), **children)
    assert trace.unused_modules == ["unused"]
    assert [op.module for op in trace.ops] == ["", "used"]


@pytest.mark.parametrize("error", [RuntimeError("failed"), SystemExit(3)])
def test_operations_before_an_error_are_recorded(error: BaseException) -> None:
    def function(_: nn.Module, x: Tensor) -> Tensor:
        F.relu(x)
        raise error

    trace = trace_function(function)
    assert trace.error is error
    assert [op.kind for op in trace.ops] == ["ReLU"]
    assert trace.output is None


def test_hooks_are_removed() -> None:
    model = MODELS["unet"](num_filters=2, num_colours=2)
    trace_ops(model, torch.rand(1, 1, 8, 8))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
