"""D.1 and D.2: what stands still while a detector is fine-tuned, what its class term is, and what came of it."""

import inspect
from pathlib import Path

from chromabox.detect.training import freeze
from chromabox.detect.training.loss import DetectionLoss
from chromabox.detect.training.recipes import read_finetune_config
from chromabox.detect.training.setup import _by_role, loss_of
from chromabox.detect.weights.load import load_detector
from chromabox.engine.logger import read_metrics
from chromabox.report.finetuning import draw_losses
from chromabox.report.found import Found
from chromabox.report.handout.detector_formulas import class_term, formulas_of, terms_table
from chromabox.report.handout.detector_frozen import costs, how, stood_still, what_is_frozen
from chromabox.report.handout.detector_results import checked_and_shown, reached
from chromabox.report.written.document import Code, Figure, Missing, Section, Text

COMMAND = "chromabox finetune coco128 --freeze 10 -o runs/detector"


def freezing(found: Found, folder: Path) -> Section:
    """D.1: what was frozen, how, whether it stood still, and what that costs and saves."""
    head = (
        "D.1",
        "Fine-tuning with frozen layers",
        "Freeze the first layers of a detector that is trained already, by `named_parameters()`, and train the rest.",
    )
    if not found.detectors:
        return Section(*head, [Missing("a finished run of fine-tuning", COMMAND)])
    run = found.detectors[0]
    source = Code(
        "\n\n".join(inspect.getsource(one) for one in (freeze.freeze, freeze.StillBatchNorm2d, freeze._still))
    )
    return Section(
        *head,
        [
            *what_is_frozen(run),
            how(run),
            source,
            Text("The optimisers are given what is left, and so never touch the rest:"),
            Code(inspect.getsource(_by_role)),
            *stood_still(run, folder),
            *costs(found.detectors),
        ],
    )


def classification_loss(found: Found, folder: Path) -> Section:
    """D.2: the class term as formula, code and number; what fine-tuning reached; two pictures before and after."""
    head = (
        "D.2",
        "The classification loss and what it leads to",
        "Put in the class term of the loss, binary cross-entropy with logits, and show predictions on two pictures.",
    )
    if not found.detectors:
        return Section(*head, [Missing("a finished run of fine-tuning", COMMAND)])
    run = found.detectors[0]
    loss = loss_of(load_detector(run).net, read_finetune_config(run))
    records = read_metrics(run)
    path = folder / f"terms-{run.name}.png"
    draw_losses(records, path, "")
    caption = "Every term of the loss as it counts, and AP on held-out pictures, against epochs"
    return Section(
        *head,
        [
            *class_term(loss),
            Code(inspect.cleandoc("\n" + inspect.getsource(DetectionLoss._class_errors))),
            *formulas_of(loss),
            terms_table(run, records, loss),
            Figure(path, caption),
            *checked_and_shown(run, folder, COMMAND),
            *reached(run),
        ],
    )
