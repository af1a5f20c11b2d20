"""Checks of a student's class against the corresponding model of figure 1, and hints on how to fix the class."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.assignment.check.align import DiffLine, align, diff_ops
from chromabox.assignment.check.source import DEFAULT_SIZES, bind_constructor, describe_error
from chromabox.assignment.check.trace import INPUT, Op, OpTrace, trace_ops
from chromabox.colour.models import MODELS, num_trainable_parameters

#: Variants of the default sizes with one changed value, keyed by the name and value of the changed size.
OTHER_SIZES = {
    f"{role} {size}": {**DEFAULT_SIZES, role: size}
    for role, size in [("kernel", 1), ("kernel", 5), ("num_filters", 8), ("num_colours", 10), ("num_in_channels", 3)]
}
IMAGE_SIZE = 32
#: Shape of the logits of two images at the default sizes.
OUTPUT_SHAPE = [2, DEFAULT_SIZES["num_colours"], IMAGE_SIZE, IMAGE_SIZE]
#: Learning rate of the training step. It is small enough for all three models and for any initialisation.
LEARNING_RATE = 0.05
#: Maximum difference between two logits that are considered equal.
TOLERANCE = 1e-4
#: Maximum number of hints about layers. Later differences are usually consequences of the first ones.
MAX_HINTS = 6
#: Message for the layers of figure 1 that a failing forward pass does not reach.
NOT_REACHED = "not reached"
#: Effects of operations after the last convolution on training with cross-entropy.
FINAL_OP_HINTS = {
    "softmax": "cross-entropy expects logits and applies log-softmax itself; a preceding softmax impairs training",
    "log_softmax": "cross-entropy expects logits and applies log-softmax itself",
    "ReLU": "it sets negative logits and their gradients to 0",
}


@dataclass(frozen=True)
class CheckItem:
    """Result of one check."""

    name: str
    passed: bool | None
    """None if the check failed but the assignment does not require it to pass."""
    message: str


@dataclass
class NetReport:
    """Comparison of one class with the corresponding model in figure 1."""

    model: str
    class_name: str
    checks: list[CheckItem] = field(default_factory=list)
    diff: list[DiffLine] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    @property
    def matches(self) -> bool:
        """Whether all required checks passed."""
        return all(check.passed is not False for check in self.checks)

    def add(self, name: str, passed: bool | None, message: str) -> None:
        """Add the result of a check, unless the report has a check with the same message.

        A single error can make several checks fail with the same message.
        """
        if all(check.message != message for check in self.checks):
            self.checks.append(CheckItem(name, passed, message))


def layer_name(op: Op) -> str:
    """Return the printable layer name of an operation."""
    return "concatenation" if op.kind == "cat" else op.kind


def reference_ops(model_name: str) -> list[Op]:
    """Return the operations of a model of figure 1 at the default sizes, for two images of 32 × 32 pixels."""
    trace = _trace(MODELS[model_name](**DEFAULT_SIZES))
    if trace.error is not None:
        raise trace.error
    return trace.ops


def _trace(model: nn.Module) -> OpTrace:
    return trace_ops(model.train(), torch.rand(2, 1, IMAGE_SIZE, IMAGE_SIZE))


class ModelChecks:
    """Checks of one class.

    Every method adds its results to the report. Errors that the class raises are not caught, except in
    :meth:`check_trace` and :meth:`check_sizes`. Descriptions of errors refer to lines in the files ``filenames``.
    """

    def __init__(self, report: NetReport, model_class: Any, filenames: Sequence[str]) -> None:
        self.report, self.model_class, self.filenames = report, model_class, filenames
        self.reference = MODELS[report.model]
        self.build: Callable[[Mapping[str, int]], nn.Module]
        """Function that builds the model, set by :meth:`check_constructor`."""
        self.can_continue = False
        """Whether the remaining checks can run: the model has been built, and its output has the expected shape."""

    def check_constructor(self) -> None:
        """Check that the model can be built and that its class has all four sizes as parameters."""
        name, model_class = self.report.class_name, self.model_class
        if model_class is None:
            raise NameError(f"{name} could not be defined")
        if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
            raise TypeError(f"{name} is not a subclass of nn.Module")
        self.build, message, missing_roles = bind_constructor(model_class, name)
        self.build(DEFAULT_SIZES)
        self.can_continue = True
        if missing_roles:
            message += f": {', '.join(missing_roles)} cannot be set; expected parameters for all four sizes of figure 1"
        self.report.add("constructor", not missing_roles, message)

    def check_parameters(self) -> None:
        """Compare the number of parameters at the default sizes."""
        count, expected = map(num_trainable_parameters, (self.build(DEFAULT_SIZES), self.reference(**DEFAULT_SIZES)))
        message = f"{count:,}" if count == expected else f"{count:,} instead of {expected:,}"
        self.report.add("parameters", count == expected, message)

    def check_trace(self) -> None:
        """Compare the operations of a forward pass in training mode, for two images at the default sizes."""
        torch.manual_seed(0)
        report, self.can_continue = self.report, False
        trace, reference = _trace(self.build(DEFAULT_SIZES)), reference_ops(report.model)
        report.diff = lines = diff_ops(reference, trace.ops)
        if trace.error is None:
            output = list(trace.output.shape) if isinstance(trace.output, Tensor) else type(trace.output).__name__
            self.can_continue = output == OUTPUT_SHAPE
            message = f"input {[2, 1, IMAGE_SIZE, IMAGE_SIZE]}, output {output}"
            message += "" if self.can_continue else f" instead of {OUTPUT_SHAPE}"
        else:
            reached = max((index for index, line in enumerate(lines) if line.actual is not None), default=-1)
            lines[reached + 1 :] = [replace(line, message=NOT_REACHED) for line in lines[reached + 1 :]]
            message = f"forward pass of {report.class_name}: {describe_error(trace.error, self.filenames)}"
        report.add("shapes", self.can_continue, message)

        differences = [line for line in lines if line.status != "equal"]
        causes = [line for line in differences if not line.is_consequence and line.message != NOT_REACHED]
        message = f"all {len(lines)} operations are those of figure 1, in the same order"
        if causes:
            message = "; ".join(f"{line.location}: {layer_name(line.op)} {line.message}" for line in causes[:3])
            message += f"; and {len(causes) - 3} more" if len(causes) > 3 else ""
        elif differences:
            message = f"the forward pass fails; correct operations before the failure: {len(trace.ops)}"
        report.add("layers", not differences, message)
        report.hints += _layer_hints(causes) + _usage_hints(trace)

        last = max(index for index, line in enumerate(lines) if line.expected is not None)
        has_last = lines[last].actual is not None
        following = [line.actual.kind for line in lines[last + 1 :] if line.actual is not None]
        if has_last:
            kinds = [kind for kind in dict.fromkeys(following) if kind in FINAL_OP_HINTS]
            report.hints += [f"Remove the {kind} at the end: {FINAL_OP_HINTS[kind]}." for kind in kinds]
        if trace.error is not None:
            return
        actual, expected = (sum(op.kind == "BatchNorm2d" for op in ops) for ops in (trace.ops, reference))
        message = f"number of BatchNorm2d layers: {actual}" + ("" if actual == expected else f" instead of {expected}")
        report.add("BatchNorm", actual == expected, message)
        if report.model == "unet":
            cats = [line for line in differences if line.op.kind == "cat"]
            message = "; ".join(f"{line.location}: concatenation {line.message}" for line in cats)
            skips = (
                "block 4 also receives the output of block 1; the last convolution also receives the greyscale input"
            )
            report.add("skip connections", not cats, message or skips)
        message = "the output is that of the last convolution"
        if not has_last:
            final = trace.ops[-1].kind if trace.ops else "no operation"
            message = f"the model ends with {final} instead of a convolution"
        elif following:
            message = (
                f"the last convolution is followed by {', then '.join(following)}; figure 1 ends with this convolution"
            )
        report.add("logits", has_last and not following, message)

    def check_sizes(self) -> None:
        """Compare output shapes and numbers of parameters at other sizes.

        If the number of parameters is wrong even at the default sizes, it only has to change with the sizes.
        """
        labels: dict[str, list[str]] = {}
        kernels, others = list[str](), list[str]()
        default_count = num_trainable_parameters(self.build(DEFAULT_SIZES))
        is_default_correct = default_count == num_trainable_parameters(self.reference(**DEFAULT_SIZES))
        for label, sizes in OTHER_SIZES.items():
            expected_shape = [2, sizes["num_colours"], IMAGE_SIZE, IMAGE_SIZE]
            expected_count = num_trainable_parameters(self.reference(**sizes))
            message, shape = "", list[int]()
            try:
                model = self.build(sizes).eval()
                with torch.no_grad():
                    shape = list(model(torch.rand(2, sizes["num_in_channels"], IMAGE_SIZE, IMAGE_SIZE)).shape)
            except (Exception, SystemExit) as error:
                message = describe_error(error)
            else:
                count = num_trainable_parameters(model)
                if shape != expected_shape:
                    message = f"output shape {shape} instead of {expected_shape}"
                elif count == default_count or (is_default_correct and count != expected_count):
                    message = f"{count:,} parameters instead of {expected_count:,}"
            if message:
                labels.setdefault(message, []).append(label)
                (others if shape == expected_shape or not label.startswith("kernel") else kernels).append(label)
        # For strided models, the assignment specifies padding 1, which is correct only for kernel size 3.
        is_required = bool(others) or self.report.model == "pool-upsample"
        passed = not labels or (False if is_required else None)
        message = "; ".join(f"{', '.join(group)}: {message}" for message, group in labels.items())
        self.report.add("other sizes", passed, message or ", ".join(OTHER_SIZES))
        if kernels:
            self.report.hints.append(
                f"With {' and '.join(kernels)}, the shapes change. Use padding=(kernel - 1) // 2 and, for transposed "
                "convolutions, output_padding=kernel % 2 (question B.4)."
            )
        self.report.hints += [
            f"With {label}: the class may contain a constant instead of {label.split()[0]}." for label in others
        ]

    def check_function(self) -> None:
        """Compare the logits with those of the reference model with the same weights, in evaluation and training mode.

        Weights and BatchNorm parameters are random, because initial values of 0 and 1 could hide differences. Some
        BatchNorm scales are negative, because BatchNorm and max pooling commute if all scales are positive.
        """
        torch.manual_seed(0)
        reference, candidate = self.reference(**DEFAULT_SIZES), self.build(DEFAULT_SIZES)
        grey = torch.rand(4, 1, IMAGE_SIZE, IMAGE_SIZE)
        for key, tensor in reference.state_dict().items():
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if "running_var" in key else tensor.uniform_(-1.5, 1.5)
        copied, total = copy_weights(trace_ops(reference.eval(), grey), trace_ops(candidate.eval(), grey))
        results = []
        for name, mode in (("same function (eval)", "evaluation"), ("same function (train)", "training")):
            with torch.no_grad():
                first, second = (model.train(mode == "training")(grey) for model in (candidate, reference))
            difference = float((first - second).abs().max())
            results.append(copied == total and difference <= TOLERANCE)
            message = f"with the reference weights, the logits in {mode} mode differ by up to {difference:.2g}"
            if copied < total:
                message = f"only {copied} of the {total} reference tensors fit the model, so its function differs"
            elif results[-1]:
                message = f"same logits in {mode} mode with the reference weights (largest difference {difference:.1e})"
            self.report.add(name, results[-1], message)
        if all(results) and any(line.status != "equal" for line in self.report.diff):
            self.report.hints.append(
                "The class computes the same function as figure 1, but with other layers; use the layers of figure 1."
            )

    def check_batch(self) -> None:
        """Check that the logits of an image in evaluation mode do not depend on the other images of its batch."""
        model, grey = self.build(DEFAULT_SIZES).eval(), torch.rand(4, 1, IMAGE_SIZE, IMAGE_SIZE)
        with torch.no_grad():
            difference = float((model(grey) - torch.cat([model(image[None]) for image in grey])).abs().max())
        effect = "do not depend on the rest of its batch"
        if not difference <= TOLERANCE:
            effect = f"change by up to {difference:.2g} with the rest of its batch"
        message = f"in evaluation mode, the logits of an image {effect}"
        self.report.add("batch independence", difference <= TOLERANCE, message)

    def check_training(self) -> None:
        """Check that all weights have finite non-zero gradients, and that a step of gradient descent reduces the loss.

        The gradient of a bias may be 0; before BatchNorm, it always is. The step is implemented by hand, because
        PyTorch's optimizers import PyTorch's compiler, which would double the run time.
        """
        torch.manual_seed(0)
        model, grey = self.build(DEFAULT_SIZES).train(), torch.rand(4, 1, IMAGE_SIZE, IMAGE_SIZE)
        targets = (grey[:, 0] * DEFAULT_SIZES["num_colours"]).long()
        loss = F.cross_entropy(model(grey), targets)
        loss.backward()
        names = []
        for name, parameter in model.named_parameters():
            gradient = parameter.grad
            if gradient is None or not gradient.isfinite().all() or (parameter.dim() > 1 and not gradient.any()):
                names.append(name)
        message = f"missing, zero or non-finite gradient for {', '.join(names[:6])}" + (
            f" and {len(names) - 6} more" if names[6:] else ""
        )
        self.report.add("gradient", not names, message if names else "all parameters receive a gradient")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=LEARNING_RATE)
            before, after = float(loss), float(F.cross_entropy(model(grey), targets))
        message = f"cross-entropy {before:.3f} → {after:.3f} on the same batch"
        self.report.add("training step", after < before, message)


def copy_weights(reference: OpTrace, candidate: OpTrace) -> tuple[int, int]:
    """Copy the reference model's tensors to the matching operations of another model.

    Only tensors of equal shapes are copied. If the candidate concatenates channels in a different order, the weights
    applied to these channels are reordered accordingly. Return the number of copied tensors and the number of tensors
    of the reference model.
    """
    matches = align(reference.ops, candidate.ops)
    matched = {one.actual: one.expected for one in matches if one.actual is not None and one.expected is not None}
    # Element 0 is the number of channels of the input, whose index is -1.
    widths = [DEFAULT_SIZES["num_in_channels"], *(op.shape[1] for op in reference.ops)]
    copied = 0
    for actual, expected in matched.items():
        parts = _concatenated(reference, expected)
        other_parts = [INPUT if part == INPUT else matched.get(part) for part in _concatenated(candidate, actual)]
        for key, tensor in reference.tensors[expected].items():
            if key == "weight" and parts and set(parts) == set(other_parts):
                dimension = 0 if "Transpose" in reference.ops[expected].kind else 1
                pieces = dict(zip(parts, tensor.split([widths[part + 1] for part in parts], dimension), strict=True))
                tensor = torch.cat([pieces[part] for part in other_parts if part is not None], dimension)
            target = candidate.tensors[actual].get(key)
            if target is not None and target.shape == tensor.shape:
                target.detach().copy_(tensor)
                copied += 1
    return copied, sum(len(tensors) for tensors in reference.tensors)


def _concatenated(trace: OpTrace, index: int) -> tuple[int, ...]:
    """Return the inputs of the concatenation that an operation reads, or () if it reads no concatenation."""
    sources = trace.ops[index].sources
    reads_cat = len(sources) == 1 and sources[0] != INPUT and trace.ops[sources[0]].kind == "cat"
    return trace.ops[sources[0]].sources if reads_cat else ()


def _layer_hints(lines: Sequence[DiffLine]) -> list[str]:
    """Return hints on how to fix differences between layers."""
    hints = []
    for line in lines[:MAX_HINTS]:
        name = layer_name(line.op)
        hint = f"add the {name} with output shape {list(line.op.shape)}."
        if line.actual is not None:
            layer = f"{name} ({line.actual.place})"
            is_extra = line.expected is None
            hint = f"remove the {layer}; figure 1 has no such layer there." if is_extra else f"{layer} {line.message}."
        hints.append(f"{line.location}: {hint}")
    return hints


def _usage_hints(trace: OpTrace) -> list[str]:
    """Return hints about layers that are not used, or used more than once."""
    hints = []
    if trace.error is None:
        hints = [f"self.{name} is created in __init__ but not used in forward." for name in trace.unused_modules]
    counts = Counter(op.place for op in trace.ops if op.num_parameters and op.module)
    if shared := ", ".join(place for place, count in counts.items() if count > 1):
        hints.append(f"Used more than once: {shared}; figure 1 has a separate layer for every use.")
    return hints
