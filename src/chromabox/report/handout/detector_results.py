"""D.2's answers from a run: whether the term is its formula, pictures before and after, what was reached."""

from collections.abc import Sequence
from pathlib import Path

from chromabox.errors import ChromaboxError
from chromabox.report.found import summary_of
from chromabox.report.handout.detector_figures import draw_shown
from chromabox.report.handout.detector_run import (
    SURE,
    TermCheck,
    check_class_term,
    open_run,
    shown_pictures,
)
from chromabox.report.handout.detector_stated import in_summary, last_part, literal
from chromabox.report.handout.stated import RECORD, record, whole
from chromabox.report.written.document import Block, Cell, Figure, Missing, Number, Table, Text

#: A weight of positives by which the term is checked beside the run's own, so that it plays a part.
OTHER_WEIGHT = 3.0
#: Classes that a table lists.
CLASSES = 10


def checked_and_shown(run: Path, folder: Path, command: str) -> list[Block]:
    """What needs the run's pictures; where they are gone, that they are."""
    try:
        opened = open_run(run)
    except ChromaboxError as error:
        return [Missing(f"the pictures of {run} ({error})", command)]
    blocks = [
        _checked(run, folder, [check_class_term(opened, weight) for weight in (opened.loss.cls_pw, OTHER_WEIGHT)])
    ]
    path = folder / f"pictures-{run.name}.png"
    shown = shown_pictures(opened)
    if not shown:
        return [*blocks, Text("None of the held-out pictures shows anything, so none is drawn.")]
    draw_shown(shown, opened.after.classes, path)
    caption = Text(
        "The first held-out pictures on which something is to be found: its true boxes, what the detector finds before "
        "fine-tuning, and after, with scores above {sure}",
        {"sure": Number(SURE, "report/handout/detector_run.py: SURE", ".2f")},
    )
    return [*blocks, Figure(path, str(caption))]


def _checked(run: Path, folder: Path, checks: Sequence[TermCheck]) -> Text:
    """Whether term and slopes are what the formula says."""
    record(folder, "class term", {run.name: {f"{one.positive:g}": one for one in checks}})
    numbers: dict[str, Number] = {}
    for index, one in enumerate(checks):
        source = f"{RECORD}: class term > {run.name} > {one.positive:g}"
        numbers |= {
            f"weight{index}": Number(one.positive, f"{source} > positive", "g"),
            f"ours{index}": Number(one.ours, f"{source} > ours", ".6g"),
            f"defined{index}": Number(one.defined, f"{source} > defined", ".6g"),
        }
    source = f"{RECORD}: class term > {run.name}"
    numbers["places"] = whole(checks[0].places, f"{source}: places")
    off = max(abs(one.ours - one.defined) / max(abs(one.defined), 1e-12) for one in checks)
    slope = max(one.slope_difference / max(one.slope, 1e-12) for one in checks)
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


def reached(run: Path) -> list[Block]:
    """AP before and after with intervals, what may be concluded, and the classes."""
    summary = summary_of(run)
    rows: list[list[Cell]] = []
    for key, name in (("ap50", "AP50"), ("ap", "AP")):
        cells: list[Cell] = [f"{name} %"]
        for when in ("before", "after"):
            low, high = (
                Number(100 * float(bound), f"{run}/summary.json: {when} > {key}_interval", ".1f")
                for bound in summary[when][f"{key}_interval"]
            )
            cells += [in_summary(run, when, key, spec=".1f", scale=100.0), f"{low} to {high}"]
        low, high = (
            Number(100 * float(bound), f"{run}/summary.json: difference > {key} > interval", "+.1f")
            for bound in summary["difference"][key]["interval"]
        )
        cells += [in_summary(run, "difference", key, "value", spec="+.1f", scale=100.0), f"{low} to {high}"]
        rows.append(cells)
    columns = ["", "before", "95 %", "after", "95 % ", "difference", "95 %  "]
    table = Table(
        "Average precision by COCO's definition on held-out pictures; intervals by resampling the pictures, of the "
        "difference in pairs",
        columns,
        rows,
    )
    return [table, _judged(run), *_classes(run), *_warned(run)]


def _judged(run: Path) -> Text:
    """What the intervals allow to say; and what is left of old classes, where that was measured."""
    summary = summary_of(run)
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
        text += " On `" + last_part(summary["retained"]["data"])
        text += "` AP50 of the classes known before goes from {old} to {new} %."
        numbers = {
            "old": in_summary(run, "retained", "ap50_before", spec=".1f", scale=100.0),
            "new": in_summary(run, "retained", "ap50_after", spec=".1f", scale=100.0),
        }
    return Text(text, numbers)


def _classes(run: Path) -> list[Block]:
    """The classes with most boxes; nothing where there is one alone, which the table above is about."""
    per_class = summary_of(run)["after"]["per_class"]
    names = sorted((name for name in per_class if per_class[name]["boxes"]), key=lambda one: -per_class[one]["boxes"])
    if len(names) < 2:
        return []
    rows: list[list[Cell]] = [
        [
            name,
            in_summary(run, "after", "per_class", name, "boxes"),
            in_summary(run, "before", "per_class", name, "ap50", spec=".1f", scale=100.0),
            in_summary(run, "after", "per_class", name, "ap50", spec=".1f", scale=100.0),
        ]
        for name in names[:CLASSES]
    ]
    caption = "AP50 of each class" if len(names) <= CLASSES else "AP50 of the classes with most boxes"
    return [Table(caption, ["class", "boxes", "before %", "after %"], rows)]


def _warned(run: Path) -> list[Block]:
    warnings = summary_of(run)["warnings"]
    return [Text(f"What the run itself warns of: {literal('; '.join(warnings))}.")] if warnings else []
