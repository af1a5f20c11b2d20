"""Printed and JSON reports on the validation of datasets, for ``chromabox data check``."""

from collections import Counter
from pathlib import Path

from chromabox.detect.data.coco import coco_files
from chromabox.detect.data.dataset import COCO_CLASSES, DetectionDataset, list_names, normalise_name
from chromabox.detect.data.load import resolve_dataset
from chromabox.detect.data.validate import (
    MAX_LINES_PER_ISSUE,
    MIN_BOXES_PER_CLASS,
    DatasetReport,
    issue_lines,
    validate_dataset,
    write_clean_copy,
)
from chromabox.errors import UsageError
from chromabox.io.paths import check_outputs
from chromabox.report.tables import print_grid, printable, save_results


def report_validation(
    path: Path | str, *, clean_copy: Path | None = None, output: Path | None = None, overwrite: bool = True
) -> DatasetReport:
    """Validate a dataset and print the report.

    If `output` is not None, write the report to it as JSON. If `clean_copy` is not None, write a corrected copy of the
    dataset to that folder. Raise UsageError if `clean_copy` exists or lies inside the dataset, if `output` is a file of
    the dataset, or if it exists and `overwrite` is false. Raise ChromaboxError if a file cannot be written. Errors
    raised while loading the dataset are passed on.
    """
    dataset_path = resolve_dataset(path)
    if output is not None:
        if output.suffix.lower() != ".json":
            raise UsageError(f"--output: {output}: unsupported suffix; expected a .json file")
        check_outputs([output], [dataset_path, *coco_files(dataset_path)], overwrite=overwrite)
    report = validate_dataset(dataset_path, show_progress=True)
    print_report(report, str(dataset_path))
    if output is not None:
        save_results(output, report.as_json())
    if clean_copy is not None:
        copy = write_clean_copy(report, dataset_path, clean_copy)
        counts = f"images: {copy['pictures']}, boxes: {copy['boxes']}, changes: {len(copy['changes'])}"
        print(printable(f"{clean_copy}: {counts} (listed in repair.json)"))
    return report


def print_report(report: DatasetReport, title: str) -> None:
    """Print a table of the numbers of images and boxes, then the issues, the duplicates and the rare classes.

    At most ``MAX_LINES_PER_ISSUE`` lines are printed for each type of issue.
    """
    data, boxes = report.data, report.box_counts
    image_counts = Counter(sample.split for sample in data.samples)
    empty_counts = Counter(sample.split for sample in data.samples if len(sample.boxes) == 0)
    rows = [
        ["images", *(str(image_counts[split]) for split in data.splits)],
        ["images without boxes", *(str(empty_counts[split]) for split in data.splits)],
        ["boxes", *(str(sum(boxes[split].values())) for split in data.splits)],
        [],
    ]
    for name in data.classes:
        if any(boxes[split][name] for split in data.splits):
            rows.append([name, *(str(boxes[split][name]) for split in data.splits)])
    print_grid(f"{title} ({data.format.upper()})", ["", *(split or "all" for split in data.splits)], rows)
    lines = issue_lines(report.issues)
    leaks = set(report.leaks)
    for pair in report.duplicates[:MAX_LINES_PER_ISSUE]:
        similarity = f"near-duplicates ({pair.hash_distance} of 64 hash bits differ)"
        similarity = "identical files" if pair.exact else similarity
        lines.append(f"{pair.first} and {pair.second} are {similarity}{', across splits' if pair in leaks else ''}")
    remaining = len(report.duplicates) - MAX_LINES_PER_ISSUE
    lines += [f"… more pairs: {remaining}; pairs across splits in total: {len(leaks)}"] if remaining > 0 else []
    rare = [
        name
        for name in report.data.classes
        if any(0 < counts[name] < MIN_BOXES_PER_CLASS for counts in report.box_counts.values())
    ]
    lines += [f"fewer than {MIN_BOXES_PER_CLASS} boxes in a split: {', '.join(rare)}"] if rare else []
    problem = report.training_problem
    lines += report.class_warnings if problem is None else [f"cannot be used for training: {problem}"]
    lines += _class_notes(data)
    verdict = "Problems found. Use --repair FOLDER to write a cleaned copy; the original is not modified."
    if report.is_valid:
        verdict = "No problems found." if problem is None else "No other problems found."
    for line in (*lines, verdict):
        print(printable(line))


def _class_notes(data: DetectionDataset) -> list[str]:
    """Return a line about classes without names, or about names that weights trained on COCO have, too."""
    if not data.has_class_names:
        return ["no class names found (in a .yaml file, classes.txt or *.names): the classes are class 0, class 1, …"]
    coco_names = set(map(normalise_name, COCO_CLASSES))
    shared = [name for name in data.classes if normalise_name(name) in coco_names]
    note = "names of COCO classes, which finetune takes over from weights trained on COCO (except for --new-classes)"
    return [f"{note}: {list_names(shared, 20)}"] if shared else []
