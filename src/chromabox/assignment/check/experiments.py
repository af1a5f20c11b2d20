"""Experiments on a student's class: other sizes, gradients, one step of training, and the same function as ours."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.assignment.check.align import align
from chromabox.assignment.check.source import USUAL, Call, told
from chromabox.assignment.check.trace import INPUT, Trace, record
from chromabox.colour.models import NETS

#: Sizes that are tried besides the usual ones, one changed at a time.
OTHER_SIZES = {
    "kernel 1": {"kernel": 1},
    "kernel 5": {"kernel": 5},
    "num_filters 8": {"num_filters": 8},
    "num_colours 10": {"num_colours": 10},
    "num_in_channels 3": {"num_in_channels": 3},
}
BATCH, SIDE = 4, 32
#: Of the step of training: small enough for all three nets, whatever they start from.
RATE = 0.05


def parameters_of(net: nn.Module) -> dict[str, int]:
    """The size of every parameter by its name."""
    return {name: parameter.numel() for name, parameter in net.named_parameters()}


def sizes_of(call: Call) -> dict[str, Any]:
    """The output's shape and the number of parameters at other sizes, or what was raised."""
    found: dict[str, Any] = {}
    for label, changed in OTHER_SIZES.items():
        sizes = {**USUAL, **changed}
        try:
            net = call.make(sizes).eval()
            with torch.no_grad():
                shape = list(net(torch.rand(2, sizes["num_in_channels"], SIDE, SIDE)).shape)
            found[label] = {"output": shape, "parameters": sum(parameters_of(net).values())}
        except (Exception, SystemExit) as error:
            found[label] = {"failed": told(error)}
    return found


def batch_gap(call: Call) -> float:
    """By how much a picture's scores in evaluation mode depend on the others of its batch; at most, absolute."""
    net, grey = call.make(USUAL).eval(), torch.rand(BATCH, 1, SIDE, SIDE)
    with torch.no_grad():
        alone = torch.cat([net(one[None]) for one in grey])
        return float((net(grey) - alone).abs().max())


def unreached(call: Call) -> list[str]:
    """Parameters to which no gradient comes; a bias may have one of zero, as before a BatchNorm it must."""
    net, grey = call.make(USUAL).train(), torch.rand(BATCH, 1, SIDE, SIDE)
    _loss(net, grey).backward()
    return [
        name
        for name, one in net.named_parameters()
        if one.grad is None or not one.grad.isfinite().all() or (one.dim() > 1 and not one.grad.any())
    ]


def one_step(call: Call) -> list[float]:
    """Cross-entropy of one batch before and after one step of plain gradient descent on it.

    By hand: an optimiser of PyTorch's imports its compiler, which takes as long as everything else here.
    """
    torch.manual_seed(0)
    net, grey = call.make(USUAL).train(), torch.rand(BATCH, 1, SIDE, SIDE)
    before = _loss(net, grey)
    before.backward()
    with torch.no_grad():
        for one in net.parameters():
            if one.grad is not None:
                one.sub_(one.grad, alpha=RATE)
    return [float(before.detach()), float(_loss(net, grey).detach())]


def _loss(net: nn.Module, grey: Tensor) -> Tensor:
    return F.cross_entropy(net(grey), (grey[:, 0] * USUAL["num_colours"]).long())


def function_gap(call: Call, name: str) -> dict[str, Any]:
    """The greatest difference of the scores to our net's, once it has its weights, in both modes.

    The weights are drawn, and BatchNorm's numbers too, so that nothing is equal by being 0 or 1; of both signs, for
    with positive factors BatchNorm and pooling may change places.
    """
    torch.manual_seed(0)
    ours, theirs, grey = NETS[name](**USUAL), call.make(USUAL), torch.rand(BATCH, 1, SIDE, SIDE)
    for key, tensor in ours.state_dict().items():
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if "running_var" in key else tensor.uniform_(-1.5, 1.5)
    own = {id(one) for one in (*theirs.parameters(), *theirs.buffers())}
    copied, total = copy_weights(record(ours.eval(), grey), record(theirs.eval(), grey), own)
    gaps: dict[str, Any] = {"copied": copied, "total": total}
    for mode in ("evaluation", "training"):
        with torch.no_grad():
            gaps[mode] = float(
                (theirs.train(mode == "training")(grey) - ours.train(mode == "training")(grey)).abs().max()
            )
    return gaps


def copy_weights(ours: Trace, theirs: Trace, own: set[int]) -> tuple[int, int]:
    """Give the steps of `theirs` the numbers of the steps of `ours` that they match; how many tensors, and of how many.

    Only tensors in `own` (by identity) are set, and only where the shapes agree. Where they put channels together in
    another order than we do, the weights that read them are reordered alike.
    """
    pairs = [(one.wanted, one.found) for one in align(ours.steps, theirs.steps) if one.wanted is not None]
    known = {found: wanted for wanted, found in pairs if found is not None}
    copied = 0
    for wanted, found in pairs:
        if found is None:
            continue
        order = _channels(ours, theirs, wanted, found, known)
        for key, tensor in ours.tensors[wanted].items():
            target = theirs.tensors[found].get(key)
            if key == "weight" and order is not None:
                tensor = tensor.index_select(0 if "Transpose" in ours.steps[wanted].kind else 1, order)
            if target is not None and id(target) in own and target.shape == tensor.shape:
                with torch.no_grad():
                    target.copy_(tensor)
                copied += 1
    return copied, sum(len(tensors) for tensors in ours.tensors)


def _channels(ours: Trace, theirs: Trace, wanted: int, found: int, known: dict[int, int]) -> Tensor | None:
    """Where in our concatenation the channels of theirs are; None where a step reads none, or the same."""
    joined = [trace.steps[index].sources for trace, index in ((ours, wanted), (theirs, found))]
    if any(len(sources) != 1 or sources[0] == INPUT for sources in joined):
        return None
    first, second = ours.steps[joined[0][0]], theirs.steps[joined[1][0]]
    parts = [source if source == INPUT else known.get(source) for source in second.sources]
    if first.kind != "cat" or second.kind != "cat" or sorted(first.sources) != sorted(one or 0 for one in parts):
        return None
    widths = [USUAL["num_in_channels"] if one == INPUT else ours.steps[one].shape[1] for one in first.sources]
    ranges = dict(zip(first.sources, torch.arange(sum(widths)).split(widths), strict=True))
    return torch.cat([ranges[part] for part in parts if part is not None])
