"""From finished runs to the write-up: what each question's section says, put together and written as three files."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from chromabox.assignment.sections.batch_sizes import batch_size_section
from chromabox.assignment.sections.class_loss import class_loss_section
from chromabox.assignment.sections.counting import count_section, padding_section
from chromabox.assignment.sections.freezing import freezing_section
from chromabox.assignment.sections.networks import conv_transpose_section, pool_upsample_section, unet_section
from chromabox.assignment.sections.numbers import int_number, mean_over_runs
from chromabox.assignment.sections.results import (
    conv_transpose_curves,
    conv_transpose_results,
    pool_upsample_results,
    unet_curves,
    unet_results,
)
from chromabox.engine.runs import package_versions
from chromabox.experiments.runs import RunIndex, find_runs, read_summary
from chromabox.report.document.model import Block, Document, MissingRun, Number, Section, Text
from chromabox.report.document.write import WrittenDocument, write_document
from chromabox.runtime.parallel import num_threads

SectionBuilder = Callable[[RunIndex, Path], Section]

#: The assignment's questions in their order. The second says whether the answer needs no run.
SECTIONS: tuple[tuple[SectionBuilder, bool], ...] = (
    (pool_upsample_section, True),
    (pool_upsample_results, False),
    (count_section, True),
    (conv_transpose_section, True),
    (conv_transpose_curves, False),
    (conv_transpose_results, False),
    (padding_section, True),
    (batch_size_section, False),
    (unet_section, True),
    (unet_curves, False),
    (unet_results, False),
    (freezing_section, False),
    (class_loss_section, False),
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
class ReportFiles:
    """What was written, and the questions that nothing was found for."""

    document: WrittenDocument
    unanswered: list[str]

    def lines(self) -> list[str]:
        """What is missing, and where everything is."""
        gaps = [f"not answered, for want of runs: {', '.join(self.unanswered)}"] if self.unanswered else []
        return [*gaps, f"page: {self.document.html}\npaper: {self.document.pdf}\nnumbers: {self.document.json}"]


def write_report(paths: Sequence[Path], folder: Path, *, include_missing: bool = False) -> ReportFiles:
    """Write ``report.html``, ``report.pdf`` and ``report.json`` about the runs below ``paths`` into ``folder``.

    Args:
        whole: every question of the assignment has its section, also where it can only say what is missing; otherwise
            only those that the runs answer have one.

    Raises UsageError for paths without a finished run, ChromaboxError where the folder cannot be written.
    """
    found = find_runs(paths)
    # What is computed is small: a second thread gains little, and loses much where other programs run.
    with num_threads(1):
        document, missing = build_document(found, folder / "figures", include_missing=include_missing)
    return ReportFiles(write_document(document, folder), missing)


def build_document(run_index: RunIndex, figures: Path, *, include_missing: bool = False) -> tuple[Document, list[str]]:
    """The write-up as data, its figures drawn into ``figures``, and the keys of the questions without an answer."""
    figures.mkdir(parents=True, exist_ok=True)
    wanted = [builder for builder, free in SECTIONS if include_missing or not free or run_index.colour]
    sections = [builder(run_index, figures) for builder in wanted]
    missing = [section.key for section in sections if not _is_answered(section)]
    if not include_missing:
        sections = [section for section in sections if _is_answered(section)]
    document = Document(
        title="Colours by classification, boxes by fine-tuning",
        abstract=_build_abstract(run_index, sections, missing),
        sections=sections,
        references=REFERENCES,
        metadata=_build_metadata(run_index),
    )
    return document, missing


def _is_answered(section: Section) -> bool:
    return any(not isinstance(block, MissingRun) for block in section.blocks)


def _build_abstract(run_index: RunIndex, sections: Sequence[Section], missing: Sequence[str]) -> list[Block]:
    """What was trained, and what became of it."""
    blocks = [_colour_summary(run_index)] if run_index.colour else []
    blocks += [_detector_summary(run) for run in run_index.detectors]
    if missing and sections:
        blocks.append(Text(f"Not answered here, because no run was given that could: {', '.join(missing)}."))
    return [*blocks, *(Text(_escape_braces(sentence)) for sentence in run_index.ignored)]


def _colour_summary(run_index: RunIndex) -> Text:
    """One sentence about the task, one about each net."""
    first = read_summary(next(iter(run_index.colour.values()))[0])
    sentences = [
        f"Grey pictures ({_escape_braces(first['data'])}) are coloured by choosing for every pixel one colour of a palette "
        f"({_escape_braces(first['palette'])}); the nets were trained by the {first['recipe']} recipe."
    ]
    numbers = {}
    for index, (net, runs) in enumerate(run_index.colour.items()):
        numbers[f"right{index}"] = mean_over_runs(runs, "test_accuracy", ".2f", 100.0)
        numbers[f"loss{index}"] = mean_over_runs(runs, "test_loss")
        numbers[f"runs{index}"] = int_number(len(runs), "number of runs found")
        seeds = "seed" if len(runs) == 1 else "seeds"
        sentences.append(
            f"`{net}` gets {{right{index}}} % of the test pixels right at a cross-entropy of {{loss{index}}} "
            f"({{runs{index}}} {seeds})."
        )
    return Text(" ".join(sentences), numbers)


def _detector_summary(run: Path) -> Text:
    summary = read_summary(run)
    numbers = {
        name: Number(100 * summary[name]["ap50"], f"{run}/summary.json: {name}.ap50", ".1f")
        for name in ("before", "after")
    }
    data = _escape_braces(Path(str(summary["data"])).name)
    return Text(
        f"A detector fine-tuned on `{data}` goes from {{before}} to {{after}} % AP50 on held-out pictures.", numbers
    )


def _escape_braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _build_metadata(run_index: RunIndex) -> dict[str, str]:
    runs = [
        *(str(run) for runs in run_index.colour.values() for run in runs),
        *map(str, run_index.sweeps + run_index.detectors),
    ]
    return {
        "made": date.today().isoformat(),
        "with": ", ".join(f"{name} {number}" for name, number in package_versions().items()),
        "on": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "from": ", ".join(runs) or "no run",
    }
