"""Question D.2: the classification loss of the detector, its verification, and the results of fine-tuning."""

import inspect
from pathlib import Path

from sympy import Float, Function, IndexedBase, Mul, Sum, Symbol, log, symbols

from chromabox.assignment.analysis.detector_analysis import (
    MIN_DRAWN_CONFIDENCE,
    open_run,
    sample_detections,
    verify_class_loss,
)
from chromabox.assignment.analysis.plots import plot_sample_detections
from chromabox.assignment.sections.numbers import answers, record_results, summary_source
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.loss import DetectionLoss
from chromabox.detect.training.setup import build_loss
from chromabox.detect.weights.load import load_detector
from chromabox.engine.logger import read_metrics
from chromabox.engine.runs import RunDir
from chromabox.errors import ChromaboxError
from chromabox.experiments.runs import RunIndex
from chromabox.report.document.model import Block, Cell, Code, Figure, Formula, MissingRun, Number, Source, Table, Text
from chromabox.report.training import plot_losses

#: The verification also uses this weight of positive targets, because a weight of 1 has no effect.
TEST_POSITIVE_WEIGHT = 3.0
#: Maximum number of classes in the table of AP50.
MAX_TABLE_CLASSES = 10
FINETUNE_COMMAND = "chromabox finetune coco128 --freeze 10 -o runs/detector"


def class_loss_blocks(loss: DetectionLoss) -> list[Block]:
    """Explain the binary cross-entropy of one class at one position, and how the class term is computed from it."""
    x, y, weight = symbols("x y cls_pw")
    sigmoid, j, c = Function("σ"), Symbol("j"), Symbol("c")
    num_positions, num_classes = symbols("m C")
    error = -(Mul(weight, y, log(sigmoid(x)), evaluate=False) + (1 - y) * log(1 - sigmoid(x)))
    total = Sum(IndexedBase("bce")[j, c], (c, 1, num_classes), (j, 1, num_positions))
    is_exp = loss.variant.decode == "exp"
    divisor = Symbol("n") if is_exp else num_positions * num_classes
    term = "the mean over the m assigned positions and the C classes of each head"
    if is_exp:
        term = "the sum over the m assigned positions and the C classes, divided by the n images of the batch"
    return [
        Text(
            "A position of a head is an anchor in a cell. Each position that is assigned a ground-truth box outputs "
            "one logit x for each class. The target is y = 1 for the class of the box and y = 0 for all other classes. "
            "The classes are treated independently: each has its own probability σ(x) = 1/(1 + e⁻ˣ) instead of a "
            "common softmax, so an object may belong to several classes. The cross-entropy of one logit is"
        ),
        Formula("bce", error),
        Text(
            "`cls_pw` is the weight of positive targets. All but one of the C classes are negative, and a weight above "
            f"1 increases the cost of missing the positive class. The class term is {term}:"
        ),
        Formula("L_class", total / divisor),
        Text(
            "The code does not take the logarithm of a rounded σ(x), which is 0 for very negative x: "
            "`binary_cross_entropy_with_logits` computes it directly from x. `class_loss` returns the cross-entropy of "
            "every position and class:"
        ),
    ]


def total_loss_blocks(loss: DetectionLoss) -> list[Block]:
    """Show how the total loss is computed from its terms."""
    box, objectness, class_term = (Symbol(f"S_{name}") for name in ("box", "object", "class"))
    if loss.variant.decode == "exp":
        total = (box + objectness + class_term) / Symbol("n")
        over_heads = ""
    else:
        weights = loss.loss_weights(1)
        parts = [Float(weights[name]) * part for name, part in zip(weights, (box, objectness, class_term), strict=True)]
        total = sum(parts[1:], parts[0]) * (Symbol("n") if loss.recipe == "course" else 1)
        over_heads = ", summed over the heads"
    text = (
        "The class term is one of three terms. The box term compares the predicted boxes with the ground-truth boxes. "
        "The objectness term is the cross-entropy of the predicted objectness. If S_box, S_object and S_class are the "
        f"three terms{over_heads}, the loss is"
    )
    return [Text(text), Formula("L", total)]


@answers(
    "D.2",
    "The classification loss and the results of fine-tuning",
    "Add the class term of the loss, a binary cross-entropy with logits, and show predictions on two images.",
)
def class_loss_section(run_index: RunIndex, folder: Path) -> list[Block]:
    """Answer D.2: the class term as a formula, its code and its verification, and the results of fine-tuning."""
    if not run_index.detectors:
        return [MissingRun("a finished fine-tuning run", FINETUNE_COMMAND)]
    run = run_index.detectors[0]
    loss = build_loss(load_detector(run).model, RunDir(run).load_config(FinetuneConfig))
    path = folder / f"terms-{run.name}.png"
    plot_losses(read_metrics(run), path, "")
    return [
        *class_loss_blocks(loss),
        Code(inspect.cleandoc("\n" + inspect.getsource(DetectionLoss.class_loss))),
        *total_loss_blocks(loss),
        Figure(path, "The weighted loss terms and the AP on held-out images against epochs"),
        *verification_blocks(run, folder),
        *result_blocks(run),
    ]


def verification_blocks(run: Path, folder: Path) -> list[Block]:
    """Verify the class term and its gradients, and show detections on held-out images.

    Return only a :class:`MissingRun` block if the images of the run are not available.
    """
    try:
        opened_run = open_run(run)
    except ChromaboxError as error:
        return [MissingRun(f"the images of {run} ({error})", FINETUNE_COMMAND)]
    weights = {"first": opened_run.loss.cls_pw, "second": TEST_POSITIVE_WEIGHT}
    checks = {name: verify_class_loss(opened_run, weight) for name, weight in weights.items()}
    values = {f"{weights[name]:g}": check for name, check in checks.items()}
    recorded = record_results(folder, values, "class term", run.name)
    loss_error = max(abs(one["actual"] - one["expected"]) / max(abs(one["expected"]), 1e-12) for one in checks.values())
    gradient_error = max(one["max_gradient_difference"] / max(one["max_gradient"], 1e-12) for one in checks.values())
    conclusion = "At least one difference is more than rounding error, so the code does not implement the formula."
    if loss_error < 1e-9 and gradient_error < 1e-9:
        conclusion = "Both differences are float64 rounding errors, so the code implements the formula."
    text = Text(
        "The code was verified on held-out images with the trained model ({first.num_positions:,.0f} assigned "
        "positions). The code gives {first.actual:.6g} with `cls_pw` = {first.positive_weight:g} and "
        "{second.actual:.6g} with {second.positive_weight:g}. The formula, written out with logarithms, gives "
        "{first.expected:.6g} and {second.expected:.6g}. The relative difference is at most {error}. The gradients "
        "computed by automatic differentiation differ from those of the formula, (1 − y)·σ(x) − `cls_pw`·y·(1 − σ(x)), "
        "by at most {gradient} of the largest gradient. {conclusion}",
        {name: Source(check, f"{recorded.name}{weights[name]:g} > ") for name, check in checks.items()},
        error=Number(loss_error, f"{recorded.name}|actual − expected| / expected, the larger of two values", ".0e"),
        gradient=Number(
            gradient_error, f"{recorded.name}max_gradient_difference / max_gradient, the larger of two values", ".0e"
        ),
        conclusion=conclusion,
    )
    samples = sample_detections(opened_run)
    if not samples:
        return [text]
    path = folder / f"pictures-{run.name}.png"
    plot_sample_detections(samples, opened_run.detector.classes, path)
    caption = (
        "The first held-out images with labelled objects: ground-truth boxes, and detections with a confidence above "
        f"{MIN_DRAWN_CONFIDENCE:.2f} before and after fine-tuning"
    )
    return [text, Figure(path, caption)]


def result_blocks(run: Path) -> list[Block]:
    """Report AP before and after fine-tuning with confidence intervals and conclusions, and the AP50 of each class."""
    summary = summary_source(run)
    rows: list[list[Cell]] = []
    conclusions = []
    for key, name in (("ap50", "AP50"), ("ap", "AP")):
        cells: list[Cell] = [f"{name} (%)"]
        for value, interval, spec in (
            (("before", key), ("before", f"{key}_interval"), ".1%"),
            (("after", key), ("after", f"{key}_interval"), ".1%"),
            (("difference", key, "value"), ("difference", key, "interval"), "+.1%"),
        ):
            low, high = (summary.number(*interval, end, spec=spec) for end in (0, 1))
            cells += [summary.number(*value, spec=spec), f"{low} to {high}"]
        rows.append(cells)
        if low.value > 0 or high.value < 0:
            conclusions.append(f"{name} has {'increased' if low.value > 0 else 'decreased'} significantly")
        else:
            conclusions.append(f"the change in {name} is not significant")
    caption = (
        "COCO average precision on held-out images, with bootstrap confidence intervals over images (paired for the "
        "difference)"
    )
    columns = ["", "before", "95 % CI", "after", "95 % CI ", "difference", "95 % CI  "]
    blocks: list[Block] = [
        Table(caption, columns, rows),
        Text(f"According to these intervals, {' and '.join(conclusions)}."),
    ]
    if "retained" in summary.values:
        blocks.append(
            Text(
                "On `{data}`, the AP50 of the original classes changes from {run.retained.ap50_before:.1%} to "
                "{run.retained.ap50_after:.1%}.",
                data=Path(summary.get("retained", "data")).name,
                run=summary,
            )
        )
    per_class = summary.get("after", "per_class")
    names = sorted((name for name in per_class if per_class[name]["boxes"]), key=lambda name: -per_class[name]["boxes"])
    if len(names) > 1:  # The table above covers a single class.
        class_rows: list[list[Cell]] = [
            [
                name,
                summary.number("after", "per_class", name, "boxes", spec=",.0f"),
                *(summary.number(when, "per_class", name, "ap50", spec=".1%") for when in ("before", "after")),
            ]
            for name in names[:MAX_TABLE_CLASSES]
        ]
        caption = f"AP50 of the classes with the most boxes (at most {MAX_TABLE_CLASSES} classes)"
        blocks.append(Table(caption, ["class", "boxes", "before (%)", "after (%)"], class_rows))
    warnings = "; ".join(summary.get("warnings"))
    return [*blocks, Text("Warnings of the run: {warnings}.", warnings=warnings)] if warnings else blocks
