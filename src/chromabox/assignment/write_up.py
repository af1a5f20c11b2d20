"""From finished runs to the write-up: what each question's section says, put together and written as three files."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from chromabox.assignment.sections.batch_sizes import batch_size_section
from chromabox.assignment.sections.class_loss import classification_loss
from chromabox.assignment.sections.counting import count_section, geometry_section
from chromabox.assignment.sections.freezing import freezing
from chromabox.assignment.sections.networks import conv_code, pool_code, unet_code
from chromabox.assignment.sections.numbers import from_runs, whole
from chromabox.assignment.sections.results import (
    pooling_results,
    skip_curves,
    skip_results,
    strided_curves,
    strided_results,
)
from chromabox.engine.runs import versions
from chromabox.experiments.runs import Found, find_runs, summary_of
from chromabox.report.document.model import Block, Document, Missing, Number, Section, Text
from chromabox.report.document.write import Written, write_document
from chromabox.runtime.parallel import threads_at

Builder = Callable[[Found, Path], Section]

#: The assignment's questions in their order. The second says whether the answer needs no run.
QUESTIONS: tuple[tuple[Builder, bool], ...] = (
    (pool_code, True),
    (pooling_results, False),
    (count_section, True),
    (conv_code, True),
    (strided_curves, False),
    (strided_results, False),
    (geometry_section, True),
    (batch_size_section, False),
    (unet_code, True),
    (skip_curves, False),
    (skip_results, False),
    (freezing, False),
    (classification_loss, False),
)

REFERENCES = (
    "A. Krizhevsky. Learning multiple layers of features from tiny images. Technical report, 2009. (CIFAR-10)",
    "O. Ronneberger, P. Fischer, T. Brox. U-Net: convolutional networks for biomedical images. MICCAI 2015.",
    "S. Ioffe, C. Szegedy. Batch normalization: accelerating deep network training. ICML 2015.",
    "R. Zhang, P. Isola, A. A. Efros. Colorful image colorization. ECCV 2016.",
    "D. Hasler, S. Süsstrunk. Measuring colourfulness in natural images. Human Vision and Electronic Imaging 2003.",
    "G. Alain, Y. Bengio. Understanding intermediate layers using linear classifier probes. ICLR workshop 2017.",
    "T.-Y. Lin et al. Microsoft COCO: common objects in context. ECCV 2014.",
    "J. Redmon, A. Farhadi. YOLOv3: an incremental improvement. 2018.",
    "Z. Zheng et al. Distance-IoU loss: faster and better learning for bounding box regression. AAAI 2020. (CIoU)",
)


@dataclass(frozen=True)
class WriteUp:
    """What was written, and the questions that nothing was found for."""

    written: Written
    missing: list[str]

    def told(self) -> list[str]:
        """What is missing, and where everything is."""
        gaps = [f"not answered, for want of runs: {', '.join(self.missing)}"] if self.missing else []
        return [*gaps, f"page: {self.written.html}\npaper: {self.written.pdf}\nnumbers: {self.written.json}"]


def write_up(paths: Sequence[Path], folder: Path, *, whole: bool = False) -> WriteUp:
    """Write ``report.html``, ``report.pdf`` and ``report.json`` about the runs below ``paths`` into ``folder``.

    Args:
        whole: every question of the assignment has its section, also where it can only say what is missing; otherwise
            only those that the runs answer have one.

    Raises UsageError for paths without a finished run, ChromaboxError where the folder cannot be written.
    """
    found = find_runs(paths)
    # What is computed is small: a second thread gains little, and loses much where other programs run.
    with threads_at(1):
        document, missing = build_document(found, folder / "figures", whole=whole)
    return WriteUp(write_document(document, folder), missing)


def build_document(found: Found, figures: Path, *, whole: bool = False) -> tuple[Document, list[str]]:
    """The write-up as data, its figures drawn into ``figures``, and the keys of the questions without an answer."""
    figures.mkdir(parents=True, exist_ok=True)
    wanted = [builder for builder, free in QUESTIONS if whole or not free or found.colour]
    sections = [builder(found, figures) for builder in wanted]
    missing = [section.key for section in sections if not _answered(section)]
    if not whole:
        sections = [section for section in sections if _answered(section)]
    document = Document(
        title="Colours by classification, boxes by fine-tuning",
        abstract=_abstract(found, sections, missing),
        sections=sections,
        references=REFERENCES,
        about=_about(found),
    )
    return document, missing


def _answered(section: Section) -> bool:
    return any(not isinstance(block, Missing) for block in section.blocks)


def _abstract(found: Found, sections: Sequence[Section], missing: Sequence[str]) -> list[Block]:
    """What was trained, and what became of it."""
    blocks = [_coloured(found)] if found.colour else []
    blocks += [_detected(run) for run in found.detectors]
    if missing and sections:
        blocks.append(Text(f"Not answered here, because no run was given that could: {', '.join(missing)}."))
    return [*blocks, *(Text(_literal(sentence)) for sentence in found.left_out)]


def _coloured(found: Found) -> Text:
    """One sentence about the task, one about each net."""
    first = summary_of(next(iter(found.colour.values()))[0])
    sentences = [
        f"Grey pictures ({_literal(first['data'])}) are coloured by choosing for every pixel one colour of a palette "
        f"({_literal(first['palette'])}); the nets were trained by the {first['recipe']} recipe."
    ]
    numbers = {}
    for index, (net, runs) in enumerate(found.colour.items()):
        numbers[f"right{index}"] = from_runs(runs, "test_accuracy", ".2f", 100.0)
        numbers[f"loss{index}"] = from_runs(runs, "test_loss")
        numbers[f"runs{index}"] = whole(len(runs), "number of runs found")
        seeds = "seed" if len(runs) == 1 else "seeds"
        sentences.append(
            f"`{net}` gets {{right{index}}} % of the test pixels right at a cross-entropy of {{loss{index}}} "
            f"({{runs{index}}} {seeds})."
        )
    return Text(" ".join(sentences), numbers)


def _detected(run: Path) -> Text:
    summary = summary_of(run)
    numbers = {
        name: Number(100 * summary[name]["ap50"], f"{run}/summary.json: {name}.ap50", ".1f")
        for name in ("before", "after")
    }
    data = _literal(Path(str(summary["data"])).name)
    return Text(
        f"A detector fine-tuned on `{data}` goes from {{before}} to {{after}} % AP50 on held-out pictures.", numbers
    )


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _about(found: Found) -> dict[str, str]:
    runs = [*(str(run) for runs in found.colour.values() for run in runs), *map(str, found.sweeps + found.detectors)]
    return {
        "made": date.today().isoformat(),
        "with": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "on": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "from": ", ".join(runs) or "no run",
    }
