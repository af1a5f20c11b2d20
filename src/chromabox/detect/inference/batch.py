"""Batch detection in images, folders and videos, as done by the command line.

:func:`plan_detection_outputs` determines all inputs and output files before :func:`run_detection` starts.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chromabox.detect.boxes import Pixels
from chromabox.detect.inference.outputs import (
    ImageDetections,
    annotate,
    coco_results,
    write_class_names,
    write_coco_results,
    write_csv,
    write_yolo_labels,
)
from chromabox.detect.inference.predict import InferenceOptions, run_detector
from chromabox.detect.weights.onnx_model import DetectorModel
from chromabox.engine.logger import progress_bar
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import check_not_input, read_image, write_image
from chromabox.io.paths import expand_inputs, map_outputs
from chromabox.io.video import VIDEO_SUFFIXES, check_target, iter_frames, probe_video, transcode
from chromabox.runtime.parallel import map_ordered

log = logging.getLogger(__name__)

OutputFormat = Literal["images", "json", "csv", "yolo"]
TABLE_FORMATS = {".json": "json", ".csv": "csv"}


@dataclass(frozen=True)
class PlannedFile:
    """One image or video: its file, its name in the results, and the path of the annotated copy (None: not written)."""

    source: Path
    name: str
    target: Path | None


@dataclass(frozen=True)
class OutputPlan:
    """All inputs, and the output files (None: not written). ``label_folder`` is the folder for YOLO labels."""

    images: tuple[PlannedFile, ...]
    videos: tuple[PlannedFile, ...]
    json: Path | None = None
    csv: Path | None = None
    label_folder: Path | None = None


def plan_detection_outputs(inputs: Sequence[Path], output: Path, formats: Sequence[OutputFormat] = ()) -> OutputPlan:
    """Plan the output files of all inputs.

    Args:
        inputs: image and video files, and folders, which are searched for images.
        output: a folder; alternatively, the path of the annotated copy of a single image or video, or, for boxes only,
            a .json or .csv file.
        formats: formats to write; if empty, the format given by the suffix of ``output``, or annotated copies for a
            folder.

    Raise UsageError for missing inputs, an output that is an input, two inputs with the same output file, and formats
    that cannot be written to ``output``.
    """
    if not inputs:
        raise UsageError("no input given: expected at least one image, folder or video")
    suffix = "" if output.is_dir() else output.suffix.lower()
    selected: set[str] = set(formats) or {TABLE_FORMATS.get(suffix, "images")}
    is_annotated = "images" in selected and suffix not in TABLE_FORMATS
    video_inputs = [path for path in inputs if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()]
    image_inputs = [path for path in inputs if path not in video_inputs]
    for path in video_inputs:
        if not path.exists():
            raise UsageError(f"{path} does not exist: expected an image, a folder of images or a video")
    # Only an output folder inside an input folder contains earlier results.
    files = expand_inputs(image_inputs, None if suffix in TABLE_FORMATS else output) if image_inputs else []
    targets: list[Path | None] = [None] * len(files)
    if is_annotated and image_inputs:
        targets = [target for _, target in map_outputs(image_inputs, output)]
    images = [PlannedFile(path, name.as_posix(), target) for (path, name), target in zip(files, targets, strict=True)]
    videos = []
    for path in video_inputs:
        target = None
        if is_annotated:
            target = output if len(inputs) == 1 and suffix in VIDEO_SUFFIXES else output / path.name
            check_target(path, target)
        videos.append(PlannedFile(path, path.name, target))
    single_format = TABLE_FORMATS.get(suffix)
    if single_format is not None:
        check_not_input([planned.source for planned in (*images, *videos)], output)
    elif any(planned.target == output for planned in (*images, *videos)):
        single_format = "images"
    if single_format is not None and selected != {single_format}:
        unsupported = ", ".join(sorted(selected - {single_format}))
        raise UsageError(f"{output}: a single file cannot contain {unsupported}; use a folder (-o FOLDER)")
    if "yolo" in selected:
        sources: dict[Path, Path] = {}
        for image in images:
            name = Path(image.name).with_suffix("")
            if name in sources:
                raise UsageError(
                    f"{image.source} and {sources[name]} have the same label file {name}.txt; process them separately "
                    "and use two folders"
                )
            sources[name] = image.source
    paths = {
        name: output if suffix in TABLE_FORMATS else output / f"detections.{name}"
        for name in TABLE_FORMATS.values()
        if name in selected
    }
    label_folder = output / "labels" if "yolo" in selected else None
    return OutputPlan(tuple(images), tuple(videos), paths.get("json"), paths.get("csv"), label_folder)


@dataclass
class BatchSummary:
    """Number of processed images, video frames and detected boxes, time in seconds, and errors."""

    num_images: int = 0
    num_frames: int = 0
    num_boxes: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.num_frames} frames"] if self.num_frames else []
        parts = [f"{self.num_images} images", *parts] if self.num_images or not parts else parts
        rate = (self.num_images + self.num_frames) / max(self.seconds, 1e-9)
        return f"{' and '.join(parts)}, {self.num_boxes} boxes, {self.seconds:.1f} s ({rate:.1f} images/s)"


def run_detection(
    plan: OutputPlan,
    detector: DetectorModel,
    options: InferenceOptions,
    *,
    workers: int | None = None,
) -> BatchSummary:
    """Process all planned inputs and write the outputs. A failed file is recorded, and the others are processed.

    Every image and video is logged. Images are processed by ``workers`` threads (None: one per core). Raise
    ChromaboxError only if a JSON, CSV or class list file cannot be written.
    """
    summary = BatchSummary()
    all_results: list[ImageDetections] = []
    start_time = time.perf_counter()

    def detect(planned: PlannedFile, pixels: Pixels, frame: int | None = None) -> ImageDetections:
        height, width, _ = pixels.shape
        result = ImageDetections(planned.name, (height, width), run_detector(pixels, detector, options), frame)
        if plan.label_folder is not None:
            write_yolo_labels(plan.label_folder / f"{result.stem}.txt", result)
        return result

    def process_image(planned: PlannedFile) -> ImageDetections | str:
        """Detect objects in an image and write its files; return the detections, or an error message."""
        try:
            pixels = read_image(planned.source).pixels
            result = detect(planned, pixels)
            if planned.target is not None:
                write_image(planned.target, annotate(pixels, result.detections))
        except ChromaboxError as error:
            return str(error)
        return result

    def add_result(result: ImageDetections) -> None:
        summary.num_boxes += len(result.detections)
        if plan.json is not None or plan.csv is not None:
            all_results.append(result)

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
            num_frames = _process_video(planned, detect, add_result)
            summary.num_frames += num_frames
            log.info(f"{planned.name}: {num_frames} frames")
        except ChromaboxError as error:
            summary.errors.append(str(error))
    summary.seconds = time.perf_counter() - start_time
    if plan.json is not None:
        write_coco_results(plan.json, coco_results(all_results, detector.classes))
    if plan.csv is not None:
        write_csv(plan.csv, all_results)
    if plan.label_folder is not None:
        write_class_names(plan.label_folder / "classes.txt", detector.classes)
    return summary


def _process_video(
    planned: PlannedFile,
    detect: Callable[[PlannedFile, Pixels, int], ImageDetections],
    on_result: Callable[[ImageDetections], None],
) -> int:
    """Detect objects in a video, frame by frame, and write the annotated video; return the number of frames."""
    video = probe_video(planned.source)
    num_done = 0
    with progress_bar(planned.name, video.num_frames, unit="frames") as tick:

        def process_frame(pixels: Pixels) -> Pixels:
            nonlocal num_done
            result = detect(planned, pixels, num_done)
            on_result(result)
            tick()
            num_done += 1
            return pixels if planned.target is None else annotate(pixels, result.detections)

        if planned.target is None:
            for frame in iter_frames(planned.source):
                process_frame(frame)
        else:
            transcode(video, planned.target, process_frame)
    return num_done
