"""Experiments on a student's class: other sizes, gradients, one step of training, and the same function as ours."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.assignment.check.align import align
from chromabox.assignment.check.source import DEFAULT_SIZES, Constructor, describe_error
from chromabox.assignment.check.trace import INPUT, OpTrace, trace_ops
from chromabox.colour.models import MODELS

#: Sizes that are tried besides the usual ones, one changed at a time.
OTHER_SIZES = {
    "kernel 1": {"kernel": 1},
    "kernel 5": {"kernel": 5},
    "num_filters 8": {"num_filters": 8},
    "num_colours 10": {"num_colours": 10},
    "num_in_channels 3": {"num_in_channels": 3},
}
BATCH_SIZE, IMAGE_SIZE = 4, 32
#: Of the step of training: small enough for all three nets, whatever they start from.
LEARNING_RATE = 0.05


def parameter_sizes(model: nn.Module) -> dict[str, int]:
    """The size of every parameter by its name."""
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def outputs_at_other_sizes(constructor: Constructor) -> dict[str, Any]:
    """The output's shape and the number of parameters at other sizes, or what was raised."""
    found: dict[str, Any] = {}
    for label, changed in OTHER_SIZES.items():
        sizes = {**DEFAULT_SIZES, **changed}
        try:
            net = constructor.build(sizes).eval()
            with torch.no_grad():
                shape = list(net(torch.rand(2, sizes["num_in_channels"], IMAGE_SIZE, IMAGE_SIZE)).shape)
            found[label] = {"output": shape, "parameters": sum(parameter_sizes(net).values())}
        except (Exception, SystemExit) as error:
            found[label] = {"failed": describe_error(error)}
    return found


def batch_dependence(constructor: Constructor) -> float:
    """By how much a picture's scores in evaluation mode depend on the others of its batch; at most, absolute."""
    net, grey = constructor.build(DEFAULT_SIZES).eval(), torch.rand(BATCH_SIZE, 1, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        alone = torch.cat([net(one[None]) for one in grey])
        return float((net(grey) - alone).abs().max())


def missing_gradients(constructor: Constructor) -> list[str]:
    """Parameters to which no gradient comes; a bias may have one of zero, as before a BatchNorm it must."""
    net, grey = constructor.build(DEFAULT_SIZES).train(), torch.rand(BATCH_SIZE, 1, IMAGE_SIZE, IMAGE_SIZE)
    _loss(net, grey).backward()
    return [
        name
        for name, one in net.named_parameters()
        if one.grad is None or not one.grad.isfinite().all() or (one.dim() > 1 and not one.grad.any())
    ]


def one_step(constructor: Constructor) -> list[float]:
    """Cross-entropy of one batch before and after one step of plain gradient descent on it.

    By hand: an optimiser of PyTorch's imports its compiler, which takes as long as everything else here.
    """
    torch.manual_seed(0)
    net, grey = constructor.build(DEFAULT_SIZES).train(), torch.rand(BATCH_SIZE, 1, IMAGE_SIZE, IMAGE_SIZE)
    before = _loss(net, grey)
    before.backward()
    with torch.no_grad():
        for one in net.parameters():
            if one.grad is not None:
                one.sub_(one.grad, alpha=LEARNING_RATE)
    return [float(before.detach()), float(_loss(net, grey).detach())]


def _loss(model: nn.Module, grey: Tensor) -> Tensor:
    return F.cross_entropy(model(grey), (grey[:, 0] * DEFAULT_SIZES["num_colours"]).long())


def output_difference(constructor: Constructor, name: str) -> dict[str, Any]:
    """The greatest difference of the scores to our net's, once it has its weights, in both modes.

    The weights are drawn, and BatchNorm's numbers too, so that nothing is equal by being 0 or 1; of both signs, for
    with positive factors BatchNorm and pooling may change places.
    """
    torch.manual_seed(0)
    ours, theirs, grey = (
        MODELS[name](**DEFAULT_SIZES),
        constructor.build(DEFAULT_SIZES),
        torch.rand(BATCH_SIZE, 1, IMAGE_SIZE, IMAGE_SIZE),
    )
    for key, tensor in ours.state_dict().items():
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if "running_var" in key else tensor.uniform_(-1.5, 1.5)
    own = {id(one) for one in (*theirs.parameters(), *theirs.buffers())}
    copied, total = copy_weights(trace_ops(ours.eval(), grey), trace_ops(theirs.eval(), grey), own)
    gaps: dict[str, Any] = {"copied": copied, "total": total}
    for mode in ("evaluation", "training"):
        with torch.no_grad():
            gaps[mode] = float(
                (theirs.train(mode == "training")(grey) - ours.train(mode == "training")(grey)).abs().max()
            )
    return gaps


def copy_weights(reference: OpTrace, candidate: OpTrace, candidate_ids: set[int]) -> tuple[int, int]:
    """Give the steps of `theirs` the numbers of the steps of `ours` that they match; how many tensors, and of how many.

    Only tensors in `own` (by identity) are set, and only where the shapes agree. Where they put channels together in
    another order than we do, the weights that read them are reordered alike.
    """
    pairs = [(one.expected, one.actual) for one in align(reference.ops, candidate.ops) if one.expected is not None]
    known = {found: wanted for wanted, found in pairs if found is not None}
    copied = 0
    for wanted, found in pairs:
        if found is None:
            continue
        order = _channel_order(reference, candidate, wanted, found, known)
        for key, tensor in reference.tensors[wanted].items():
            target = candidate.tensors[found].get(key)
            if key == "weight" and order is not None:
                tensor = tensor.index_select(0 if "Transpose" in reference.ops[wanted].kind else 1, order)
            if target is not None and id(target) in candidate_ids and target.shape == tensor.shape:
                with torch.no_grad():
                    target.copy_(tensor)
                copied += 1
    return copied, sum(len(tensors) for tensors in reference.tensors)


def _channel_order(
    reference: OpTrace, candidate: OpTrace, expected: int, actual: int, matched: dict[int, int]
) -> Tensor | None:
    """Where in our concatenation the channels of theirs are; None where a step reads none, or the same."""
    joined = [trace.ops[index].sources for trace, index in ((reference, expected), (candidate, actual))]
    if any(len(sources) != 1 or sources[0] == INPUT for sources in joined):
        return None
    first, second = reference.ops[joined[0][0]], candidate.ops[joined[1][0]]
    parts = [source if source == INPUT else matched.get(source) for source in second.sources]
    if first.kind != "cat" or second.kind != "cat" or sorted(first.sources) != sorted(one or 0 for one in parts):
        return None
    widths = [
        DEFAULT_SIZES["num_in_channels"] if one == INPUT else reference.ops[one].shape[1] for one in first.sources
    ]
    ranges = dict(zip(first.sources, torch.arange(sum(widths)).split(widths), strict=True))
    return torch.cat([ranges[part] for part in parts if part is not None])
