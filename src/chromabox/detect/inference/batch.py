"""Batch detection in images, folders and videos, as on the command line.

:func:`plan_detection_outputs` determines all inputs and output files before :func:`run_detection` starts.
"""

import itertools
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Literal

from chromabox.detect.boxes import Pixels
from chromabox.detect.inference import outputs
from chromabox.detect.inference.outputs import ImageDetections
from chromabox.detect.inference.predict import InferenceOptions, run_detector
from chromabox.detect.weights.onnx_model import DetectorModel
from chromabox.engine.logger import progress_bar
from chromabox.errors import ChromaboxError, UsageError, escape_unprintable
from chromabox.io.atomic import atomic_write, check_writable_folder
from chromabox.io.images import IMAGE_SUFFIXES, read_image, write_image
from chromabox.io.manifest import MANIFEST_NAME, Manifest
from chromabox.io.paths import Selection, check_outputs, name_outputs, select_inputs
from chromabox.io.video import iter_frames, probe_video, transcode
from chromabox.runtime.parallel import map_ordered

log = logging.getLogger(__name__)

OutputFormat = Literal["images", "json", "csv", "yolo"]
TABLE_FORMATS = {".json": "json", ".csv": "csv"}


@dataclass(frozen=True)
class PlannedFile:
    """An image or video. ``name`` is its name in the results. ``target`` is the annotated copy, if one is written.

    ``dataset_image`` is the image in the YOLO dataset, if one is written: a copy, or the input itself if it is there.
    """

    source: Path
    name: str
    target: Path | None
    dataset_image: Path | None = None


@dataclass(frozen=True)
class OutputPlan:
    """All inputs and output paths. ``json``, ``csv`` and ``label_folder`` are None for formats that are not written.

    ``label_folder`` is the folder ``labels`` of a YOLO dataset. The frames of videos are images of the dataset.

    ``folder`` is the output folder, or None if the output is a single file. ``skipped`` and ``unreadable`` are as in
    :class:`~chromabox.io.paths.Selection`.
    """

    images: tuple[PlannedFile, ...]
    videos: tuple[PlannedFile, ...]
    json: Path | None
    csv: Path | None
    label_folder: Path | None
    folder: Path | None
    skipped: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    unreadable: Sequence[str] = ()

    def outputs(self) -> list[Path]:
        """Return the paths of all files that will be written. Files of video frames are included if they exist."""
        files = [planned.target for planned in (*self.images, *self.videos) if planned.target is not None]
        files += [path for path in (self.json, self.csv) if path is not None]
        if self.label_folder is not None:
            dataset = self.label_folder.parent
            copies = [image.dataset_image for image in self.images if image.dataset_image is not None]
            files += [outputs.yolo_label_file(path) for path in copies]
            # An input that is already in the dataset is not written.
            files += [
                path
                for path, image in zip(copies, self.images, strict=True)
                if path.resolve() != image.source.resolve()
            ]
            for video in self.videos:
                image = _dataset_image(dataset, Path(video.name).with_suffix(".jpg"))
                files += sorted(image.parent.glob(f"{escape(image.stem)}_[0-9]*.jpg"))
                files += sorted(outputs.yolo_label_file(image).parent.glob(f"{escape(image.stem)}_[0-9]*.txt"))
            names = ("data.yaml", "labels/classes.txt", *(f"{split}.txt" for split in outputs.YOLO_SPLITS))
            files += [dataset / name for name in names]
        return files


def plan_detection_outputs(
    inputs: Sequence[Path], output: Path, formats: Sequence[OutputFormat] = (), *, overwrite: bool = False
) -> OutputPlan:
    """Plan the output files of all inputs.

    Args:
        inputs: image and video files, and folders, which are searched for images.
        output: a folder, the path of the annotated copy of a single image or video, or a .json or .csv file for the
            boxes.
        formats: formats to write. If empty, the suffix of ``output`` determines the format; if ``output`` is a
            folder, annotated copies are written.
        overwrite: allow outputs that exist and were not written by an earlier run.

    Raise UsageError for missing inputs, an output file that is also an input, two inputs with the same output file,
    an output that exists, and formats that cannot be written to ``output``.
    """
    if not inputs:
        raise UsageError("no input given: expected at least one image, folder or video")
    suffix = "" if output.is_dir() else output.suffix.lower()
    check_writable_folder(output.parent if suffix else output)
    single_format = TABLE_FORMATS.get(suffix)
    selected: set[str] = set(formats) or {single_format or "images"}
    is_annotated = "images" in selected and single_format is None
    selection = select_inputs(inputs, None if single_format else output)
    _distinguish_names(selection)
    targets: list[Path | None] = [None] * len(selection.files)
    if is_annotated:
        targets = [target for _, target in name_outputs(selection, output)]
    dataset = output if "yolo" in selected else None
    planned = [
        PlannedFile(path, name.as_posix(), target, None if dataset is None else _dataset_image(dataset, name))
        for (path, name), target in zip(selection.files, targets, strict=True)
    ]
    images, videos = planned[: len(selection.images)], planned[len(selection.images) :]
    if single_format is None and any(planned.target == output for planned in (*images, *videos)):
        single_format = "images"
    if single_format is not None and selected != {single_format}:
        unsupported = ", ".join(sorted(selected - {single_format}))
        raise UsageError(f"{output}: a single file cannot contain {unsupported}; use a folder (-o FOLDER)")
    if "yolo" in selected:
        _check_label_files(images, videos)
    tables = {name: output if single_format else output / f"detections.{name}" for name in selected}
    label_folder = output / "labels" if "yolo" in selected else None
    folder = None if single_format else output
    plan = OutputPlan(
        tuple(images),
        tuple(videos),
        tables.get("json"),
        tables.get("csv"),
        label_folder,
        folder,
        selection.skipped,
        selection.unreadable,
    )
    manifest = None if folder is None else Manifest(folder / MANIFEST_NAME, {})
    sources = [planned.source for planned in (*images, *videos)]
    check_outputs(plan.outputs(), sources, overwrite=overwrite, manifest=manifest)
    return plan


def _dataset_image(dataset: Path, name: Path) -> Path:
    """Return the path of an image in a YOLO dataset.

    The name has a usual suffix and neither backslashes nor unprintable characters, which lists of images cannot
    contain.
    """
    readable = Path(escape_unprintable(name.as_posix()).replace("\\", "_"))
    known = name.suffix.lower() in IMAGE_SUFFIXES
    return dataset / "images" / (readable if known else readable.with_name(f"{readable.name}.png"))


def _check_label_files(images: Sequence[PlannedFile], videos: Sequence[PlannedFile]) -> None:
    """Raise UsageError if two inputs would be written to the same label file."""
    sources: dict[str, Path] = {}
    inputs = [(video, f"{_label_name(Path(video.name).with_suffix('.jpg'))}_*") for video in videos]
    inputs += [(image, _label_name(Path(image.name))) for image in images]
    for planned, name in inputs:
        # An image can have the name of a frame, since the labels of frame 12 of a.mp4 are a_000012.txt.
        other = sources.get(name) or sources.get(re.sub(r"_\d{6,}$", "_*", name))
        if other is not None:
            raise UsageError(
                f"{planned.source} and {other} would be written to the same label file {name}.txt; process "
                "them separately, with different output folders"
            )
        sources[name] = planned.source


def _label_name(image: Path) -> str:
    """Return the path of the label file of an image in the folder ``labels`` of a YOLO dataset, without suffix."""
    return _dataset_image(Path(), image).relative_to("images").with_suffix("").as_posix()


def _distinguish_names(selection: Selection) -> None:
    """Replace the names of the files by their paths in the common folder if files of several inputs have equal names.

    Suffixes are not compared, because they are not part of the names of labels.
    """
    stems = {name.with_suffix("") for _, name in selection.files}
    paths = [Path(os.path.abspath(path)) for path, _ in selection.files]
    if len(stems) == len({path.with_suffix("") for path in paths}):
        return
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    log.info(f"inputs in different folders have equal names; the results contain their paths in {folder}")
    for files in (selection.images, selection.videos):
        files[:] = [(path, Path(os.path.abspath(path)).relative_to(folder)) for path, _ in files]


@dataclass
class BatchSummary:
    """Numbers of processed images, video frames and detected boxes, time in seconds, and errors."""

    num_images: int = 0
    num_frames: int = 0
    num_boxes: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ((self.num_images, "images"), (self.num_frames, "frames"))
        processed = ", ".join(f"{name}: {count}" for count, name in counts if count) or "images: 0"
        rate = (self.num_images + self.num_frames) / max(self.seconds, 1e-9)
        return f"{processed}, boxes: {self.num_boxes}; {self.seconds:.1f} s ({rate:.1f} images/s)"


def run_detection(
    plan: OutputPlan, detector: DetectorModel, options: InferenceOptions, *, workers: int | None = None
) -> BatchSummary:
    """Process all planned inputs and write the outputs.

    An error in a file is recorded in the summary, and the other files are processed. Every image and video is logged.
    Images are processed by ``workers`` threads (None: one per core). Raise ChromaboxError only if the JSON file, the
    CSV file or the list of classes cannot be written.
    """
    manifest = None if plan.folder is None else Manifest(plan.folder / MANIFEST_NAME, {})
    if manifest is not None:
        for path in plan.outputs():
            manifest.claim(path)
    summary = BatchSummary()
    if any(planned.target is not None for planned in (*plan.images, *plan.videos)):
        for line in outputs.describe_numbered_classes(detector.classes):
            log.info(line)
    all_results: list[ImageDetections] = []
    dataset_images: list[Path] = []
    start_time = time.perf_counter()

    def detect(planned: PlannedFile, pixels: Pixels, frame: int | None = None) -> ImageDetections:
        height, width, _ = pixels.shape
        result = ImageDetections(planned.name, (height, width), run_detector(pixels, detector, options), frame)
        if plan.label_folder is not None and planned.dataset_image is not None:
            image = planned.dataset_image
            if frame is not None:
                image = _dataset_image(plan.label_folder.parent, Path(f"{result.stem}.jpg"))
            label_file = outputs.yolo_label_file(image)
            if manifest is not None and frame is not None:
                manifest.claim(image)
                manifest.claim(label_file)
            _write_dataset_image(image, None if frame is not None else planned.source, pixels)
            outputs.write_yolo_labels(label_file, result)
            dataset_images.append(image)
        return result

    def add_result(result: ImageDetections) -> None:
        summary.num_boxes += len(result.detections)
        if plan.json is not None or plan.csv is not None:
            all_results.append(result)

    def process_image(planned: PlannedFile) -> ImageDetections | str:
        """Detect objects in an image and write the outputs; return the detections, or an error message."""
        try:
            image = read_image(planned.source)
            pixels = image.pixels
            for note in image.notes:
                log.info(f"{planned.source}: {note}")
            if image.num_frames > 1:
                log.info(f"{planned.source} has {image.num_frames} frames or pages; objects are detected in the first")
            result = detect(planned, pixels)
            if planned.target is not None:
                write_image(planned.target, outputs.annotate(pixels, result.detections))
        except ChromaboxError as error:
            return str(error)
        return result

    def process_video(planned: PlannedFile) -> int:
        """Detect objects in each frame of a video and write the outputs; return the number of frames."""
        video, indices = probe_video(planned.source), itertools.count()

        def process_frame(pixels: Pixels) -> Pixels:
            result = detect(planned, pixels, next(indices))
            add_result(result)
            tick()
            return pixels if planned.target is None else outputs.annotate(pixels, result.detections)

        with progress_bar(planned.name, video.num_frames, unit="frames") as tick:
            if planned.target is not None:
                transcode(video, planned.target, process_frame)
            else:
                for frame in iter_frames(planned.source):
                    process_frame(frame)
        return next(indices)

    results = map_ordered(plan.images, process_image, workers=workers)
    with progress_bar("detecting", len(plan.images), unit="images") as tick, closing(results):
        for result in results:
            tick()
            if isinstance(result, str):
                summary.errors.append(result)
                continue
            summary.num_images += 1
            add_result(result)
            log.info(f"{result.file}: {result.summary()}")
    for planned in plan.videos:
        try:
            num_frames = process_video(planned)
        except ChromaboxError as error:
            summary.errors.append(str(error))
        else:
            summary.num_frames += num_frames
            log.info(f"{planned.name} (number of frames: {num_frames})")
    summary.seconds = time.perf_counter() - start_time
    if plan.json is not None:
        outputs.write_coco_results(plan.json, all_results, detector.classes, detector.category_ids)
    if plan.csv is not None:
        outputs.write_csv(plan.csv, all_results)
    if plan.label_folder is not None:
        outputs.write_yolo_description(plan.label_folder.parent, sorted(dataset_images), detector.classes)
    return summary


def _write_dataset_image(path: Path, source: Path | None, pixels: Pixels) -> None:
    """Write an image of a YOLO dataset: a copy of the file ``source``, if its suffix is kept, otherwise the pixels.

    Raise ChromaboxError if the image cannot be written.
    """
    if source is None or source.suffix != path.suffix:
        write_image(path, pixels)
    elif source.resolve() != path.resolve():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                shutil.copyfile(source, temporary)
        except OSError as error:
            raise ChromaboxError(f"{path}: cannot be written ({error.strerror}); use a writable folder") from error
