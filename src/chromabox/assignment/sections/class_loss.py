"""The loss of a detector as mathematics: its class term, how the terms add up, and what each came to in a run.

D.1 and D.2: what stands still while a detector is fine-tuned, what its class term is, and what came of it.

D.2's answers from a run: whether the term is its formula, pictures before and after, what was reached.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path

from sympy import Float, Function, IndexedBase, Mul, Sum, Symbol, log, symbols

from chromabox.assignment.analysis.detector_analysis import (
    MIN_DRAWN_CONFIDENCE,
    ClassLossCheck,
    open_run,
    sample_detections,
    verify_class_loss,
)
from chromabox.assignment.analysis.plots import plot_sample_detections
from chromabox.assignment.sections.numbers import (
    RESULTS_FILE,
    base_name,
    escape_braces,
    int_number,
    record_results,
    summary_number,
)
from chromabox.detect.training.config import read_finetune_config
from chromabox.detect.training.loss import HEAD_BALANCE, DetectionLoss
from chromabox.detect.training.setup import build_loss
from chromabox.detect.weights.load import load_detector
from chromabox.engine.logger import EpochRecord, read_metrics
from chromabox.errors import ChromaboxError
from chromabox.experiments.runs import RunIndex, read_summary
from chromabox.report.document.model import Block, Cell, Code, Figure, Formula, MissingRun, Number, Section, Table, Text
from chromabox.report.training import plot_losses

#: What the terms of each decode sum up, before they are weighed.
TERM_DESCRIPTIONS = {
    "exp": {
        "box": "(2 − width·height) times the cross-entropy of the centre in its cell and half the squared error of the "
        "logarithms of the sides, over the places that learn a box",
        "objectness": "cross-entropy of whether a box is learnt there, over all places but those that overlap a true "
        "box without learning it",
        "class": "cross-entropy of every class, over the places that learn a box",
    },
    "sigmoid2": {
        "box": "mean of 1 − CIoU, over the places that learn a box",
        "objectness": "mean cross-entropy towards the overlap that the box has reached, over all places, heads weighed "
        + ", ".join(f"{weight:g}" for weight in HEAD_BALANCE)
        + " from the finest",
        "class": "mean cross-entropy of every class, over the places that learn a box",
    },
    "old": {
        "old_box": "half the squared distance from the old net's boxes, where it was sure",
        "old_class": "divergence from the old net's classes, where it was sure",
    },
}


def class_loss_blocks(loss: DetectionLoss) -> list[Block]:
    """Binary cross-entropy with logits of one class at one place, and the term that all of them make."""
    x, y, weight = symbols("x y cls_pw")
    sure, j, c = Function("σ"), Symbol("j"), Symbol("c")
    places, classes = symbols("m C")
    error = -(Mul(weight, y, log(sure(x)), evaluate=False) + (1 - y) * log(1 - sure(x)))
    each = Sum(IndexedBase("bce")[j, c], (c, 1, classes), (j, 1, places))
    exp = loss.variant.decode == "exp"
    parts = Symbol("n") if exp else places * classes
    return [
        Text(
            "A place of a head that learns a box (an anchor in a cell) puts out one number x for each class, a logit. "
            "What is wanted is y = 1 for the box's class and y = 0 for all others. Classes are judged independently of "
            "each other, each by its own σ(x) = 1/(1 + e⁻ˣ) and not by a softmax, so that a thing may be of two "
            "classes. The cross-entropy of one number is"
        ),
        Formula("bce", error),
        Text(
            "`cls_pw` weighs positives: of C classes all but one are negative, and above 1 it makes a missed class "
            "cost more. The class term is "
            + (
                "the sum over the m places that learn a box and over the C classes, divided by the n pictures of the "
                "batch:"
                if exp
                else "the mean over the m places that learn a box and over the C classes, of each head:"
            )
        ),
        Formula("L_class", each / parts),
        Text(
            "In code the logarithm of σ(x) is never taken of a rounded σ(x), which for a very negative x is 0: "
            "`binary_cross_entropy_with_logits` computes it from x itself. `_class_errors` gives the errors of all "
            "places and classes:"
        ),
    ]


def total_loss_blocks(loss: DetectionLoss) -> list[Block]:
    """How the terms add up."""
    box, objectness, category = (Symbol(f"S_{name}") for name in ("box", "object", "class"))
    if loss.variant.decode == "exp":
        total = (box + objectness + category) / Symbol("n")
    else:
        shares = loss.loss_weights(1)
        parts = [Float(shares[name]) * part for name, part in zip(shares, (box, objectness, category), strict=True)]
        total = sum(parts[1:], parts[0]) * (Symbol("n") if loss.recipe == "course" else 1)
    of_heads = "" if loss.variant.decode == "exp" else ", each added up over the heads"
    return [Text(f"It is one of three terms. With S for what the table says of each{of_heads}:"), Formula("L", total)]


def loss_terms_table(run: Path, records: Sequence[EpochRecord], loss: DetectionLoss) -> Table:
    """Every term: what it is, and what it came to in the first and last epoch."""
    meaning = TERM_DESCRIPTIONS[loss.variant.decode] | TERM_DESCRIPTIONS["old"]
    names = [name.removeprefix("train_") for name in records[0] if name.startswith("train_")]
    rows: list[list[Cell]] = []
    for name in [*(one for one in names if one != "loss"), "loss"]:
        cells: list[Cell] = [name.replace("_", " "), meaning.get(name, "the sum")]
        for split in ("train", "val"):
            for place, at in (("first", 0), ("last", -1)):
                key = f"{split}_{name}"
                value = records[at].get(key, float("nan"))
                cells.append(Number(float(value), f"{run}/metrics.jsonl: {place} epoch > {key}", ".4g"))
        rows.append(cells)
    columns = ["term", "what is summed", "training, first", "last", "held out, first", "last "]
    return Table("The terms of the loss as they count, in the first and the last epoch", columns, rows)


FINETUNE_COMMAND = "chromabox finetune coco128 --freeze 10 -o runs/detector"


def class_loss_section(run_index: RunIndex, folder: Path) -> Section:
    """D.2: the class term as formula, code and number; what fine-tuning reached; two pictures before and after."""
    head = (
        "D.2",
        "The classification loss and what it leads to",
        "Put in the class term of the loss, binary cross-entropy with logits, and show predictions on two pictures.",
    )
    if not run_index.detectors:
        return Section(*head, [MissingRun("a finished run of fine-tuning", FINETUNE_COMMAND)])
    run = run_index.detectors[0]
    loss = build_loss(load_detector(run).model, read_finetune_config(run))
    records = read_metrics(run)
    path = folder / f"terms-{run.name}.png"
    plot_losses(records, path, "")
    caption = "Every term of the loss as it counts, and AP on held-out pictures, against epochs"
    return Section(
        *head,
        [
            *class_loss_blocks(loss),
            Code(inspect.cleandoc("\n" + inspect.getsource(DetectionLoss.class_loss))),
            *total_loss_blocks(loss),
            loss_terms_table(run, records, loss),
            Figure(path, caption),
            *verification_blocks(run, folder, FINETUNE_COMMAND),
            *result_blocks(run),
        ],
    )


#: A weight of positives by which the term is checked beside the run's own, so that it plays a part.
TEST_POSITIVE_WEIGHT = 3.0

#: Classes that a table lists.
MAX_TABLE_CLASSES = 10


def verification_blocks(run: Path, folder: Path, command: str) -> list[Block]:
    """What needs the run's pictures; where they are gone, that they are."""
    try:
        opened = open_run(run)
    except ChromaboxError as error:
        return [MissingRun(f"the pictures of {run} ({error})", command)]
    blocks = [
        _verification_text(
            run, folder, [verify_class_loss(opened, weight) for weight in (opened.loss.cls_pw, TEST_POSITIVE_WEIGHT)]
        )
    ]
    path = folder / f"pictures-{run.name}.png"
    shown = sample_detections(opened)
    if not shown:
        return [*blocks, Text("None of the held-out pictures shows anything, so none is drawn.")]
    plot_sample_detections(shown, opened.detector.classes, path)
    caption = Text(
        "The first held-out pictures on which something is to be found: its true boxes, what the detector finds before "
        "fine-tuning, and after, with scores above {sure}",
        {"sure": Number(MIN_DRAWN_CONFIDENCE, "report/handout/detector_run.py: SURE", ".2f")},
    )
    return [*blocks, Figure(path, str(caption))]


def _verification_text(run: Path, folder: Path, checks: Sequence[ClassLossCheck]) -> Text:
    """Whether term and slopes are what the formula says."""
    record_results(folder, "class term", {run.name: {f"{one.positive_weight:g}": one for one in checks}})
    numbers: dict[str, Number] = {}
    for index, one in enumerate(checks):
        source = f"{RESULTS_FILE}: class term > {run.name} > {one.positive_weight:g}"
        numbers |= {
            f"weight{index}": Number(one.positive_weight, f"{source} > positive", "g"),
            f"ours{index}": Number(one.actual, f"{source} > ours", ".6g"),
            f"defined{index}": Number(one.expected, f"{source} > defined", ".6g"),
        }
    source = f"{RESULTS_FILE}: class term > {run.name}"
    numbers["places"] = int_number(checks[0].num_positions, f"{source}: places")
    off = max(abs(one.actual - one.expected) / max(abs(one.expected), 1e-12) for one in checks)
    slope = max(one.max_gradient_difference / max(one.max_gradient, 1e-12) for one in checks)
    numbers["off"] = Number(off, f"{source}: |ours − defined| / defined, the larger", ".0e")
    numbers["slope"] = Number(slope, f"{source}: slope_difference / slope, the larger", ".0e")
    right = off < 1e-9 and slope < 1e-9
    return Text(
        "Checked on held-out pictures with the trained net ({places} places that learn a class): the code gives "
        "{ours0} with `cls_pw` = {weight0} and {ours1} with {weight1}, the formula written out with logarithms "
        "{defined0} and {defined1}. The difference is at most {off} of the value; the slopes of automatic "
        "differentiation differ from those of the formula, (1 − y)·σ(x) − `cls_pw`·y·(1 − σ(x)), by at most {slope} of "
        "the largest. "
        + ("Both are rounding of float64: the code is the formula." if right else "That is more than rounding."),
        numbers,
    )


def result_blocks(run: Path) -> list[Block]:
    """AP before and after with intervals, what may be concluded, and the classes."""
    summary = read_summary(run)
    rows: list[list[Cell]] = []
    for key, name in (("ap50", "AP50"), ("ap", "AP")):
        cells: list[Cell] = [f"{name} %"]
        for when in ("before", "after"):
            low, high = (
                Number(100 * float(bound), f"{run}/summary.json: {when} > {key}_interval", ".1f")
                for bound in summary[when][f"{key}_interval"]
            )
            cells += [summary_number(run, when, key, spec=".1f", scale=100.0), f"{low} to {high}"]
        low, high = (
            Number(100 * float(bound), f"{run}/summary.json: difference > {key} > interval", "+.1f")
            for bound in summary["difference"][key]["interval"]
        )
        cells += [summary_number(run, "difference", key, "value", spec="+.1f", scale=100.0), f"{low} to {high}"]
        rows.append(cells)
    columns = ["", "before", "95 %", "after", "95 % ", "difference", "95 %  "]
    table = Table(
        "Average precision by COCO's definition on held-out pictures; intervals by resampling the pictures, of the "
        "difference in pairs",
        columns,
        rows,
    )
    return [table, _interval_text(run), *_per_class_blocks(run), *_warning_blocks(run)]


def _interval_text(run: Path) -> Text:
    """What the intervals allow to say; and what is left of old classes, where that was measured."""
    summary = read_summary(run)
    said = []
    for key, name in (("ap50", "AP50"), ("ap", "AP")):
        low, high = summary["difference"][key]["interval"]
        said.append(
            f"{name} has become {'better' if low > 0 else 'worse'}"
            if low > 0 or high < 0
            else f"the change of {name} cannot be told from chance"
        )
    text = f"By these intervals {' and '.join(said)}."
    numbers = {}
    if "retained" in summary:
        text += " On `" + base_name(summary["retained"]["data"])
        text += "` AP50 of the classes known before goes from {old} to {new} %."
        numbers = {
            "old": summary_number(run, "retained", "ap50_before", spec=".1f", scale=100.0),
            "new": summary_number(run, "retained", "ap50_after", spec=".1f", scale=100.0),
        }
    return Text(text, numbers)


def _per_class_blocks(run: Path) -> list[Block]:
    """The classes with most boxes; nothing where there is one alone, which the table above is about."""
    per_class = read_summary(run)["after"]["per_class"]
    names = sorted((name for name in per_class if per_class[name]["boxes"]), key=lambda one: -per_class[one]["boxes"])
    if len(names) < 2:
        return []
    rows: list[list[Cell]] = [
        [
            name,
            summary_number(run, "after", "per_class", name, "boxes"),
            summary_number(run, "before", "per_class", name, "ap50", spec=".1f", scale=100.0),
            summary_number(run, "after", "per_class", name, "ap50", spec=".1f", scale=100.0),
        ]
        for name in names[:MAX_TABLE_CLASSES]
    ]
    caption = "AP50 of each class" if len(names) <= MAX_TABLE_CLASSES else "AP50 of the classes with most boxes"
    return [Table(caption, ["class", "boxes", "before %", "after %"], rows)]


def _warning_blocks(run: Path) -> list[Block]:
    warnings = read_summary(run)["warnings"]
    return [Text(f"What the run itself warns of: {escape_braces('; '.join(warnings))}.")] if warnings else []
