"""The report of the assignment: the sections of all questions, built from finished runs and written to three files."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from chromabox.assignment.sections import batch_sizes, class_loss, counting, freezing, networks, results
from chromabox.assignment.sections.numbers import SectionBuilder, int_number, mean_over_runs, summary_source
from chromabox.engine.autotune import num_threads
from chromabox.engine.runs import RunDir, package_versions
from chromabox.experiments.runs import RunIndex, find_runs
from chromabox.report.document.model import Block, Document, MissingRun, Text
from chromabox.report.document.write import write_document

#: The sections of the report in the order of the assignment, and whether each section can be built without runs.
SECTIONS: tuple[tuple[SectionBuilder, bool], ...] = (
    (networks.pool_upsample_section, True),
    (results.pool_upsample_results, False),
    (counting.count_section, True),
    (networks.conv_transpose_section, True),
    (results.conv_transpose_curves, False),
    (results.conv_transpose_results, False),
    (counting.padding_section, True),
    (batch_sizes.batch_size_section, False),
    (networks.unet_section, True),
    (results.unet_curves, False),
    (results.unet_results, False),
    (freezing.freezing_section, False),
    (class_loss.class_loss_section, False),
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
    """The files of a report, and the keys of the questions without an answer."""

    html: Path
    pdf: Path
    json: Path
    unanswered: list[str]

    def lines(self) -> list[str]:
        """Return lines to print: the unanswered questions and the paths of the files."""
        missing = [f"not answered (no finished runs): {', '.join(self.unanswered)}"] if self.unanswered else []
        return [*missing, f"HTML: {self.html}\nPDF: {self.pdf}\nJSON: {self.json}"]


def write_report(paths: Sequence[Path], folder: Path, *, include_missing: bool = False) -> ReportFiles:
    """Write ``report.html``, ``report.pdf`` and ``report.json`` about the runs below ``paths`` into ``folder``.

    If ``include_missing`` is True, every question has a section; the section of a question without runs names the
    command that trains them. Otherwise, only questions that the runs answer have a section.

    Raise UsageError if a path contains no finished run, and ChromaboxError if the files cannot be written.
    """
    run_index = find_runs(paths)
    # A second thread hardly speeds up such small computations, and slows them down on a busy machine.
    with num_threads(1):
        document, missing = build_document(run_index, folder / "figures", include_missing=include_missing)
    return ReportFiles(*write_document(document, folder), missing)


def build_document(run_index: RunIndex, figures: Path, *, include_missing: bool = False) -> tuple[Document, list[str]]:
    """Write the figures to the folder ``figures``. Return the report and the keys of the unanswered questions."""
    figures.mkdir(parents=True, exist_ok=True)
    builders = [
        builder for builder, needs_no_run in SECTIONS if include_missing or not needs_no_run or run_index.colour
    ]
    sections = [builder(run_index, figures) for builder in builders]
    answered = [section for section in sections if any(not isinstance(block, MissingRun) for block in section.blocks)]
    missing = [section.key for section in sections if section not in answered]
    shown = sections if include_missing else answered
    abstract: list[Block] = [_colour_summary(run_index)] if run_index.colour else []
    abstract += [_detector_summary(run) for run in run_index.detectors]
    if missing and shown:
        abstract.append(Text(f"Questions without an answer, because no finished run was given: {', '.join(missing)}."))
    abstract += [Text("{message}", message=message) for message in run_index.ignored]
    colour_runs = [run for runs in run_index.colour.values() for run in runs]
    document = Document(
        title="Image colourisation by classification and fine-tuning of an object detector",
        abstract=abstract,
        sections=shown,
        references=REFERENCES,
        metadata={
            "made": date.today().isoformat(),
            "with": ", ".join(f"{name} {number}" for name, number in package_versions().items()),
            "on": f"{platform.system()} {platform.machine()}, number of processors: {os.cpu_count()}",
            "from": ", ".join(map(str, colour_runs + run_index.sweeps + run_index.detectors)) or "no run",
        },
    )
    return document, missing


def _colour_summary(run_index: RunIndex) -> Text:
    """Return a text with the common settings of the models and the results of each model."""
    first = RunDir(next(iter(run_index.colour.values()))[0]).summary()
    sentences = [
        "Greyscale images ({data}) are colourised by classifying every pixel as one colour of a palette ({palette}). "
        "The models were trained with the {recipe} recipe."
    ]
    values: dict[str, Any] = {key: first[key] for key in ("data", "palette", "recipe")}
    for index, (model, runs) in enumerate(run_index.colour.items()):
        values[f"model{index}"] = {
            "accuracy": mean_over_runs(runs, "test_accuracy"),
            "loss": mean_over_runs(runs, "test_loss"),
            "runs": int_number(len(runs), "number of runs found"),
        }
        sentences.append(
            f"`{model}` classifies {{model{index}.accuracy}} % of the test pixels correctly, with a cross-entropy of "
            f"{{model{index}.loss}} nats per pixel ({{model{index}.runs}} {'seed' if len(runs) == 1 else 'seeds'})."
        )
    return Text(" ".join(sentences), values)


def _detector_summary(run: Path) -> Text:
    return Text(
        "Fine-tuning a detector on `{data}` changed its AP50 on held-out images from {run.before.ap50:.1%} to "
        "{run.after.ap50:.1%}.",
        run=summary_source(run),
        data=Path(str(RunDir(run).summary()["data"])).name,
    )
