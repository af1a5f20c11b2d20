"""The loss of a detector as mathematics: its class term, how the terms add up, and what each came to in a run."""

from collections.abc import Sequence
from pathlib import Path

from sympy import Float, Function, IndexedBase, Mul, Sum, Symbol, log, symbols

from chromabox.detect.training.loss import BALANCE, DetectionLoss
from chromabox.engine.logger import Record
from chromabox.report.written.document import Block, Cell, Formula, Number, Table, Text

#: What the terms of each decode sum up, before they are weighed.
MEANING = {
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
        + ", ".join(f"{weight:g}" for weight in BALANCE)
        + " from the finest",
        "class": "mean cross-entropy of every class, over the places that learn a box",
    },
    "old": {
        "old_box": "half the squared distance from the old net's boxes, where it was sure",
        "old_class": "divergence from the old net's classes, where it was sure",
    },
}


def class_term(loss: DetectionLoss) -> list[Block]:
    """Binary cross-entropy with logits of one class at one place, and the term that all of them make."""
    x, y, weight = symbols("x y cls_pw")
    sure, j, c = Function("σ"), Symbol("j"), Symbol("c")
    places, classes = symbols("m C")
    error = -(Mul(weight, y, log(sure(x)), evaluate=False) + (1 - y) * log(1 - sure(x)))
    each = Sum(IndexedBase("bce")[j, c], (c, 1, classes), (j, 1, places))
    exp = loss.kind.decode == "exp"
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


def formulas_of(loss: DetectionLoss) -> list[Block]:
    """How the terms add up."""
    box, objectness, category = (Symbol(f"S_{name}") for name in ("box", "object", "class"))
    if loss.kind.decode == "exp":
        total = (box + objectness + category) / Symbol("n")
    else:
        shares = loss.shares(1)
        parts = [Float(shares[name]) * part for name, part in zip(shares, (box, objectness, category), strict=True)]
        total = sum(parts[1:], parts[0]) * (Symbol("n") if loss.recipe == "course" else 1)
    of_heads = "" if loss.kind.decode == "exp" else ", each added up over the heads"
    return [Text(f"It is one of three terms. With S for what the table says of each{of_heads}:"), Formula("L", total)]


def terms_table(run: Path, records: Sequence[Record], loss: DetectionLoss) -> Table:
    """Every term: what it is, and what it came to in the first and last epoch."""
    meaning = MEANING[loss.kind.decode] | MEANING["old"]
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
