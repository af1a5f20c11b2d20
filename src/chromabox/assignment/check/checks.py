"""Checks of a student's class against a model of figure 1: operations, experiments, and hints."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.assignment.check.align import DiffLine, align, diff_ops
from chromabox.assignment.check.source import DEFAULT_SIZES, Builder, bind_constructor, describe_error
from chromabox.assignment.check.trace import INPUT, Op, OpTrace, trace_ops
from chromabox.colour.models import MODELS, num_trainable_parameters

#: Other sizes to try, by name; each differs from the default sizes in one value.
OTHER_SIZES = {
    f"{role} {size}": {**DEFAULT_SIZES, role: size}
    for role, size in [("kernel", 1), ("kernel", 5), ("num_filters", 8), ("num_colours", 10), ("num_in_channels", 3)]
}
IMAGE_SIZE = 32
#: Shape of the logits of two images at the default sizes.
OUTPUT_SHAPE = [2, DEFAULT_SIZES["num_colours"], IMAGE_SIZE, IMAGE_SIZE]
#: Learning rate of the training step; small enough for all three models and any initialisation.
LEARNING_RATE = 0.05
#: Maximum difference between two logits that are considered equal.
TOLERANCE = 1e-4
#: Maximum number of hints on layers; later differences are usually consequences of the first ones.
MAX_HINTS = 6
#: Message for the layers of figure 1 after the point where a forward pass fails.
NOT_REACHED = "not reached"
#: Effects of a final operation on logits that are passed to cross-entropy.
FINAL_OP_HINTS = {
    "softmax": "cross-entropy expects logits and applies log-softmax itself; a softmax before it impairs training",
    "log_softmax": "cross-entropy expects logits and applies log-softmax itself",
    "ReLU": "it sets negative logits to 0, and their gradient is 0",
}


@dataclass(frozen=True)
class CheckItem:
    """Result of one check."""

    name: str
    passed: bool | None
    """None: reported only, because the assignment does not require it."""
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
        """Whether everything that the assignment requires matches."""
        return all(check.passed is not False for check in self.checks)

    def add(self, name: str, passed: bool | None, message: str) -> None:
        """Add the result of a check, unless another check has the same message: one failure may affect several."""
        if all(check.message != message for check in self.checks):
            self.checks.append(CheckItem(name, passed, message))


def layer_name(op: Op) -> str:
    """Return the printable name of the layer of an operation."""
    return "concatenation" if op.kind == "cat" else op.kind


def reference_ops(model_name: str) -> list[Op]:
    """Return the operations of the reference model at the default sizes, for two images of 32 × 32 pixels."""
    trace = trace_ops(MODELS[model_name](**DEFAULT_SIZES).train(), torch.rand(2, 1, IMAGE_SIZE, IMAGE_SIZE))
    if trace.error is not None:
        raise trace.error
    return trace.ops


class ModelChecks:
    """Checks of one class. Every method adds its results to the report and passes on errors of the class.

    Descriptions of errors name lines of the files ``filenames``.
    """

    def __init__(self, report: NetReport, model_class: Any, filenames: Sequence[str]) -> None:
        self.report, self.model_class, self.filenames = report, model_class, filenames
        self.build: Builder = MODELS[report.model]
        """Function that builds the model; set by :meth:`check_constructor`."""
        self.can_continue = False
        """Whether the class can be built and, after :meth:`check_trace`, whether its output has the right shape."""

    def check_constructor(self) -> None:
        """Check that the class can be built and has all four sizes as parameters."""
        name, model_class = self.report.class_name, self.model_class
        if model_class is None:
            raise NameError(f"{name} could not be defined")
        if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
            raise TypeError(f"{name} is not a subclass of nn.Module")
        constructor = bind_constructor(model_class, name)
        self.build = constructor.build
        self.build(DEFAULT_SIZES)
        self.can_continue = True
        message, missing = constructor.signature, ", ".join(constructor.missing_roles)
        message += f": {missing} cannot be set; all four sizes of figure 1 are parameters" if missing else ""
        self.report.add("constructor", not missing, message)

    def check_parameters(self) -> None:
        """Compare the number of parameters at the default sizes."""
        count = num_trainable_parameters(self.build(DEFAULT_SIZES))
        expected = num_trainable_parameters(MODELS[self.report.model](**DEFAULT_SIZES))
        message = f"{count:,}" if count == expected else f"{count:,} instead of {expected:,}"
        self.report.add("parameters", count == expected, message)

    def check_trace(self) -> None:
        """Compare the operations of a forward pass in training mode, for two images at the default sizes."""
        torch.manual_seed(0)
        report, self.can_continue = self.report, False
        trace = trace_ops(self.build(DEFAULT_SIZES).train(), torch.rand(2, 1, IMAGE_SIZE, IMAGE_SIZE))
        report.diff = lines = diff_ops(reference_ops(report.model), trace.ops)
        output = list(trace.output.shape) if isinstance(trace.output, Tensor) else type(trace.output).__name__
        self.can_continue = trace.error is None and output == OUTPUT_SHAPE
        if trace.error is not None:
            reached = max((index for index, line in enumerate(lines) if line.actual is not None), default=-1)
            lines[reached + 1 :] = [replace(line, message=NOT_REACHED) for line in lines[reached + 1 :]]
            message = f"forward pass of {report.class_name}: {describe_error(trace.error, self.filenames)}"
        else:
            message = f"input {[2, 1, IMAGE_SIZE, IMAGE_SIZE]}, output {output}"
            message += "" if output == OUTPUT_SHAPE else f" instead of {OUTPUT_SHAPE}"
        report.add("shapes", self.can_continue, message)

        differences = [line for line in lines if line.status != "equal"]
        causes = [line for line in differences if not line.is_consequence and line.message != NOT_REACHED]
        message = f"all {len(lines)} operations are those of figure 1, in the same order"
        if causes:
            message = "; ".join(f"{line.location}: {layer_name(line.op)} {line.message}" for line in causes[:3])
            message += f"; and {len(causes) - 3} more" if len(causes) > 3 else ""
        elif differences:
            message = f"the first {len(trace.ops)} operations are those of figure 1, then the forward pass fails"
        report.add("layers", not differences, message)

        last = max(index for index, line in enumerate(lines) if line.expected is not None)
        following = [line.actual.kind for line in lines[last + 1 :] if line.actual is not None]
        if trace.error is None:
            expected = sum(line.expected is not None and line.expected.kind == "BatchNorm2d" for line in lines)
            actual = sum(op.kind == "BatchNorm2d" for op in trace.ops)
            message = f"{actual} BatchNorm2d layers" + ("" if actual == expected else f" instead of {expected}")
            report.add("BatchNorm", actual == expected, message)
            if report.model == "unet":
                cats = [line for line in differences if line.op.kind == "cat"]
                message = "; ".join(f"{line.location}: concatenation {line.message}" for line in cats)
                skips = "block 4 also receives the output of block 1, and the last convolution the greyscale input"
                report.add("skip connections", not cats, message or skips)
            message = "the output is that of the last convolution"
            if lines[last].actual is None:
                message = f"the model ends with {trace.ops[-1].kind if trace.ops else 'no operation'} instead of a "
                message += "convolution"
            elif following:
                message = f"the last convolution is followed by {', then '.join(following)}; figure 1 ends with it"
            report.add("logits", not following and lines[last].actual is not None, message)
        report.hints += _layer_hints(causes) + _usage_hints(trace)
        if lines[last].actual is not None:
            kinds = [kind for kind in dict.fromkeys(following) if kind in FINAL_OP_HINTS]
            report.hints += [f"No {kind} at the end: {FINAL_OP_HINTS[kind]}." for kind in kinds]

    def check_sizes(self) -> None:
        """Compare output shapes and numbers of parameters at other sizes.

        If the number of parameters is already wrong at the default sizes, it only has to change with the sizes.
        """
        model_name, hints = self.report.model, self.report.hints
        labels: dict[str, list[str]] = {}
        kernels, others = list[str](), list[str]()
        default_count = num_trainable_parameters(self.build(DEFAULT_SIZES))
        is_default_correct = default_count == num_trainable_parameters(MODELS[model_name](**DEFAULT_SIZES))
        for label, sizes in OTHER_SIZES.items():
            expected_shape = [2, sizes["num_colours"], IMAGE_SIZE, IMAGE_SIZE]
            expected_count = num_trainable_parameters(MODELS[model_name](**sizes))
            message, has_shape = "", False
            try:
                model = self.build(sizes).eval()
                with torch.no_grad():
                    shape = list(model(torch.rand(2, sizes["num_in_channels"], IMAGE_SIZE, IMAGE_SIZE)).shape)
                count, has_shape = num_trainable_parameters(model), shape == expected_shape
            except (Exception, SystemExit) as error:
                message = describe_error(error)
            else:
                if not has_shape:
                    message = f"output shape {shape} instead of {expected_shape}"
                elif is_default_correct and count != expected_count:
                    message = f"{count:,} parameters instead of {expected_count:,}"
                elif count == default_count:
                    message = f"{default_count:,} parameters, as with the default"
            if message:
                labels.setdefault(message, []).append(label)
                (others if has_shape or not label.startswith("kernel") else kernels).append(label)
        # For strided models, the assignment specifies padding 1, which is meant for kernel 3.
        passed = not labels or (False if others or model_name == "pool-upsample" else None)
        message = "; ".join(f"{', '.join(group)}: {message}" for message, group in labels.items())
        self.report.add("other sizes", passed, message or ", ".join(OTHER_SIZES))
        if kernels and model_name == "pool-upsample":
            advice = "the shapes must not change: padding=kernel // 2 keeps them for odd kernels"
            hints.append(f"With {' and '.join(kernels)}, {advice}.")
        elif kernels:
            hints.append(
                f"With {' and '.join(kernels)}, the shapes change: the assignment sets padding 1 for kernel 3; "
                "padding=(kernel - 1) // 2 and output_padding=kernel % 2 keep them for every kernel (question B.4)."
            )
        hints += [f"With {label}: the class may contain a constant instead of {label.split()[0]}." for label in others]

    def check_function(self) -> None:
        """Compare the logits with those of the reference model with the same weights, in both modes.

        Weights and BatchNorm parameters are random, because initial values of 0 and 1 could hide differences. They have
        both signs, because BatchNorm and max pooling commute if the scale is positive.
        """
        torch.manual_seed(0)
        reference, candidate = MODELS[self.report.model](**DEFAULT_SIZES), self.build(DEFAULT_SIZES)
        grey = _random_batch()
        for key, tensor in reference.state_dict().items():
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if "running_var" in key else tensor.uniform_(-1.5, 1.5)
        own_ids = {id(tensor) for tensor in (*candidate.parameters(), *candidate.buffers())}
        copied, total = copy_weights(trace_ops(reference.eval(), grey), trace_ops(candidate.eval(), grey), own_ids)
        results = []
        for name, mode in (("same function (eval)", "evaluation"), ("same function (train)", "training")):
            with torch.no_grad():
                first, second = (model.train(mode == "training")(grey) for model in (candidate, reference))
            difference = float((first - second).abs().max())
            results.append(copied == total and difference <= TOLERANCE)
            message = f"the logits in {mode} mode differ by up to {difference:.2g} with the reference weights"
            if copied < total:
                message = f"only {copied} of the {total} reference tensors fit the model; its function differs"
            elif results[-1]:
                message = f"same logits in {mode} mode with the reference weights (largest difference {difference:.1e})"
            self.report.add(name, results[-1], message)
        if all(results) and any(line.status != "equal" for line in self.report.diff):
            self.report.hints.append(
                "It computes the function of figure 1 with other layers; the layers of figure 1 are required."
            )

    def check_batch(self) -> None:
        """Check that the logits of an image in evaluation mode do not depend on the rest of its batch."""
        model, grey = self.build(DEFAULT_SIZES).eval(), _random_batch()
        with torch.no_grad():
            difference = float((model(grey) - torch.cat([model(image[None]) for image in grey])).abs().max())
        passed = difference <= TOLERANCE
        message = "in evaluation mode, the logits of an image "
        change = f"change by up to {difference:.2g} with its batch"
        message += "do not depend on the rest of its batch" if passed else change
        self.report.add("batch independence", passed, message)

    def check_training(self) -> None:
        """Check that all weights have finite gradients other than 0, and that a step along them reduces the loss.

        The gradient of a bias may be 0; before BatchNorm it always is. The step is implemented by hand, because
        PyTorch's optimizers import its compiler, which would double the run time.
        """
        torch.manual_seed(0)
        model, grey = self.build(DEFAULT_SIZES).train(), _random_batch()
        targets = (grey[:, 0] * DEFAULT_SIZES["num_colours"]).long()
        loss = F.cross_entropy(model(grey), targets)
        loss.backward()
        names = []
        for name, parameter in model.named_parameters():
            gradient = parameter.grad
            if gradient is None or not gradient.isfinite().all() or (parameter.dim() > 1 and not gradient.any()):
                names.append(name)
        message = f"no gradient for {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if names[6:] else "")
        self.report.add("gradient", not names, message if names else "all parameters receive a gradient")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=LEARNING_RATE)
            before, after = float(loss), float(F.cross_entropy(model(grey), targets))
        message = f"cross-entropy {before:.3f} → {after:.3f} on the same batch"
        self.report.add("training step", after < before, message)


def _random_batch() -> Tensor:
    return torch.rand(4, 1, IMAGE_SIZE, IMAGE_SIZE)


def copy_weights(reference: OpTrace, candidate: OpTrace, candidate_ids: set[int]) -> tuple[int, int]:
    """Copy the reference model's tensors to the matching operations; return the copied and total numbers of tensors.

    Only tensors whose ids are in ``candidate_ids`` are set, and only if the shapes agree. If the candidate concatenates
    channels in a different order, the weights that read them are reordered accordingly.
    """
    matches = align(reference.ops, candidate.ops)
    matched = {one.actual: one.expected for one in matches if one.actual is not None and one.expected is not None}
    # Element 0 is the input, whose index is -1.
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
            if target is not None and id(target) in candidate_ids and target.shape == tensor.shape:
                with torch.no_grad():
                    target.copy_(tensor)
                copied += 1
    return copied, sum(len(tensors) for tensors in reference.tensors)


def _concatenated(trace: OpTrace, index: int) -> tuple[int, ...]:
    """Return the sources of the concatenation that is the only input of an operation; empty if there is none."""
    sources = trace.ops[index].sources
    is_concatenated = len(sources) == 1 and sources[0] != INPUT and trace.ops[sources[0]].kind == "cat"
    return trace.ops[sources[0]].sources if is_concatenated else ()


def _place(op: Op) -> str:
    return f"(self.{op.module})" if op.module else "(in forward)"


def _layer_hints(lines: Sequence[DiffLine]) -> list[str]:
    """Return hints on how to fix differences between layers."""
    hints = []
    for line in lines:
        name, op = layer_name(line.op), line.actual
        where = "" if op is None else f" {_place(op)}"
        if line.status == "missing":
            hints.append(f"{line.location}: add the {name} with output shape {list(line.op.shape)}.")
        elif line.status == "extra":
            hints.append(f"{line.location}: remove the {name}{where}; figure 1 has none there.")
        else:
            hints.append(f"{line.location}: {name}{where} {line.message}.")
    if len(hints) > MAX_HINTS:
        hints[MAX_HINTS:] = [f"… and {len(hints) - MAX_HINTS} more lines of the table; start with the first ones."]
    return list(dict.fromkeys(hints))


def _usage_hints(trace: OpTrace) -> list[str]:
    """Return hints on unused and shared layers."""
    hints, ops = list[str](), trace.ops
    if trace.error is None:
        hints += [f"self.{name} is created in __init__ but not used in forward." for name in trace.unused_modules]
    if trace.last_op is not None:
        used = {trace.last_op}
        # Sources precede the operations that use them.
        for index in range(len(ops) - 1, -1, -1):
            used.update(ops[index].sources if index in used else ())
        unused = ", ".join(f"{op.kind} {_place(op)}" for index, op in enumerate(ops) if index not in used)
        hints += [f"Computed but not used: {unused}."] if unused else []
    counts = Counter(f"self.{op.module}" for op in ops if op.num_parameters and op.module)
    shared = ", ".join(name for name, count in counts.items() if count > 1)
    return hints + ([f"Used more than once: {shared}; figure 1 has a separate layer each time."] if shared else [])
