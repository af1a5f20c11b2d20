"""Experiments on a student's class: other sizes, gradients, a training step, and equality with the reference model."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.assignment.check.align import align
from chromabox.assignment.check.source import DEFAULT_SIZES, Constructor, describe_error
from chromabox.assignment.check.trace import INPUT, OpTrace, trace_ops
from chromabox.colour.models import MODELS

#: Other sizes to try, by name; each differs from the default sizes in one value.
OTHER_SIZES = {
    f"{role} {size}": {**DEFAULT_SIZES, role: size}
    for role, size in [("kernel", 1), ("kernel", 5), ("num_filters", 8), ("num_colours", 10), ("num_in_channels", 3)]
}
BATCH_SIZE, IMAGE_SIZE = 4, 32
#: Shape of the logits of two images at the default sizes.
OUTPUT_SHAPE = [2, DEFAULT_SIZES["num_colours"], IMAGE_SIZE, IMAGE_SIZE]
#: Learning rate of the training step; small enough for all three models and any initialisation.
LEARNING_RATE = 0.05


def count_parameters(model: nn.Module) -> int:
    """Return the number of elements of all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def size_mismatches(constructor: Constructor, name: str) -> list[tuple[str, str, bool]]:
    """Return the sizes at which the output shape or the number of parameters differs, with a message for each.

    The third value is whether the shapes differ, rather than only the number of parameters. If the number of parameters
    is already wrong at the default sizes, it only has to change with the sizes.
    """
    mismatches = []
    default_count = count_parameters(constructor.build(DEFAULT_SIZES))
    is_default_correct = default_count == count_parameters(MODELS[name](**DEFAULT_SIZES))
    for label, sizes in OTHER_SIZES.items():
        expected_shape = [2, sizes["num_colours"], IMAGE_SIZE, IMAGE_SIZE]
        expected_count = count_parameters(MODELS[name](**sizes))
        try:
            model = constructor.build(sizes).eval()
            with torch.no_grad():
                shape = list(model(torch.rand(2, sizes["num_in_channels"], IMAGE_SIZE, IMAGE_SIZE)).shape)
            count = count_parameters(model)
        except (Exception, SystemExit) as error:
            mismatches.append((label, describe_error(error), True))
            continue
        if shape != expected_shape:
            mismatches.append((label, f"output shape {shape} instead of {expected_shape}", True))
        elif is_default_correct and count != expected_count:
            mismatches.append((label, f"{count:,} parameters instead of {expected_count:,}", False))
        elif count == default_count:
            mismatches.append((label, f"{default_count:,} parameters, as with the default", False))
    return mismatches


def batch_dependence(constructor: Constructor) -> float:
    """Return the largest absolute change in an image's logits in evaluation mode caused by the rest of its batch."""
    model, grey = constructor.build(DEFAULT_SIZES).eval(), torch.rand(BATCH_SIZE, 1, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        return float((model(grey) - torch.cat([model(image[None]) for image in grey])).abs().max())


def _loss(model: nn.Module, grey: Tensor) -> Tensor:
    return F.cross_entropy(model(grey), (grey[:, 0] * DEFAULT_SIZES["num_colours"]).long())


def missing_gradients(constructor: Constructor) -> list[str]:
    """Return the names of parameters without a finite gradient, and of weights with a gradient of 0.

    The gradient of a bias may be 0; before BatchNorm it always is.
    """
    model = constructor.build(DEFAULT_SIZES).train()
    _loss(model, torch.rand(BATCH_SIZE, 1, IMAGE_SIZE, IMAGE_SIZE)).backward()
    gradients = {name: (parameter.grad, parameter.dim()) for name, parameter in model.named_parameters()}
    return [
        name
        for name, (gradient, dimensions) in gradients.items()
        if gradient is None or not gradient.isfinite().all() or (dimensions > 1 and not gradient.any())
    ]


def one_step(constructor: Constructor) -> list[float]:
    """Return the cross-entropy of one batch before and after one gradient descent step on it.

    The step is implemented by hand, because PyTorch's optimizers import its compiler, which would double the run time.
    """
    torch.manual_seed(0)
    model, grey = constructor.build(DEFAULT_SIZES).train(), torch.rand(BATCH_SIZE, 1, IMAGE_SIZE, IMAGE_SIZE)
    before = _loss(model, grey)
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=LEARNING_RATE)
    return [float(before.detach()), float(_loss(model, grey).detach())]


def output_difference(constructor: Constructor, name: str) -> dict[str, Any]:
    """Return the largest difference from the logits of the reference model with the same weights, in both modes.

    Weights and BatchNorm parameters are random, because initial values of 0 and 1 could hide differences. They have
    both signs, because BatchNorm and max pooling commute if the scale is positive.
    """
    torch.manual_seed(0)
    reference, candidate = MODELS[name](**DEFAULT_SIZES), constructor.build(DEFAULT_SIZES)
    grey = torch.rand(BATCH_SIZE, 1, IMAGE_SIZE, IMAGE_SIZE)
    for key, tensor in reference.state_dict().items():
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if "running_var" in key else tensor.uniform_(-1.5, 1.5)
    own_ids = {id(tensor) for tensor in (*candidate.parameters(), *candidate.buffers())}
    copied, total = copy_weights(trace_ops(reference.eval(), grey), trace_ops(candidate.eval(), grey), own_ids)
    results: dict[str, Any] = {"copied": copied, "total": total}
    with torch.no_grad():
        for mode in ("evaluation", "training"):
            first, second = (model.train(mode == "training")(grey) for model in (candidate, reference))
            results[mode] = float((first - second).abs().max())
    return results


def copy_weights(reference: OpTrace, candidate: OpTrace, candidate_ids: set[int]) -> tuple[int, int]:
    """Copy the reference model's tensors to the matching operations; return the copied and total numbers of tensors.

    Only tensors whose ids are in ``candidate_ids`` are set, and only if the shapes agree. If the candidate concatenates
    channels in a different order, the weights that read them are reordered accordingly.
    """
    matched = {
        match_.actual: match_.expected
        for match_ in align(reference.ops, candidate.ops)
        if match_.expected is not None and match_.actual is not None
    }
    copied = 0
    for actual, expected in matched.items():
        parts = _concatenated(reference, expected)
        # An input without a match becomes -2, which is not an operation.
        other_parts = [INPUT if part == INPUT else matched.get(part, -2) for part in _concatenated(candidate, actual)]
        for key, tensor in reference.tensors[expected].items():
            if key == "weight" and parts and set(parts) == set(other_parts):
                # Element 0 is the input, whose index is -1.
                widths = [DEFAULT_SIZES["num_in_channels"], *(op.shape[1] for op in reference.ops)]
                dimension = 0 if "Transpose" in reference.ops[expected].kind else 1
                pieces = dict(zip(parts, tensor.split([widths[part + 1] for part in parts], dimension), strict=True))
                tensor = torch.cat([pieces[part] for part in other_parts], dimension)
            target = candidate.tensors[actual].get(key)
            if target is not None and id(target) in candidate_ids and target.shape == tensor.shape:
                with torch.no_grad():
                    target.copy_(tensor)
                copied += 1
    return copied, sum(len(tensors) for tensors in reference.tensors)


def _concatenated(trace: OpTrace, index: int) -> tuple[int, ...]:
    """Return the sources of the concatenation that is the only input of an operation; empty if there is none."""
    source = trace.ops[index].sources[0] if len(trace.ops[index].sources) == 1 else INPUT
    return trace.ops[source].sources if source != INPUT and trace.ops[source].kind == "cat" else ()
