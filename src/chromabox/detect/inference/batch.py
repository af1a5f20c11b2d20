"""Batch detection in images, folders and videos, as done by the command line.

:func:`plan_detection_outputs` determines all inputs and output files before :func:`run_detection` starts.
"""

import time
from collections.abc import Callable, Iterable, Sequence
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
from chromabox.detect.inference.predict import InferenceOptions, detect_file, run_detector
from chromabox.detect.weights.onnx_model import DetectorModel
from chromabox.engine.logger import progress_bar
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import check_not_input, write_image
from chromabox.io.paths import expand_inputs, map_outputs
from chromabox.io.video import VIDEO_SUFFIXES, check_target, iter_frames, probe_video, transcode
from chromabox.runtime.parallel import map_ordered

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
        raise UsageError("no inputs: expected at least one image, folder or video")
    suffix = "" if output.is_dir() else output.suffix.lower()
    selected: set[str] = set(formats) or {TABLE_FORMATS.get(suffix, "images")}
    video_inputs = [path for path in inputs if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()]
    image_inputs = [path for path in inputs if path not in video_inputs]
    if suffix in TABLE_FORMATS:
        _check_single_format(output, selected, TABLE_FORMATS[suffix])
        plan = OutputPlan(_plan_unannotated(image_inputs, None), _plan_unannotated_videos(video_inputs))
        check_not_input([planned.source for planned in (*plan.images, *plan.videos)], output)
        return OutputPlan(plan.images, plan.videos, **{TABLE_FORMATS[suffix]: output})
    if "images" in selected:
        images = _plan_annotated(image_inputs, output)
        videos = _plan_annotated_videos(video_inputs, output, single_input=len(inputs) == 1)
    else:
        images, videos = _plan_unannotated(image_inputs, output), _plan_unannotated_videos(video_inputs)
    if any(planned.target == output for planned in (*images, *videos)):
        _check_single_format(output, selected, "images")
    if "yolo" in selected:
        _check_unique_names(images)
    return OutputPlan(
        images,
        videos,
        json=output / "detections.json" if "json" in selected else None,
        csv=output / "detections.csv" if "csv" in selected else None,
        label_folder=output / "labels" if "yolo" in selected else None,
    )


def _check_single_format(output: Path, formats: set[str], supported: str) -> None:
    if formats != {supported}:
        unsupported = ", ".join(sorted(formats - {supported}))
        raise UsageError(f"{output}: a single file cannot contain {unsupported}; use a folder (-o FOLDER)")


def _plan_unannotated(inputs: Sequence[Path], output: Path | None) -> tuple[PlannedFile, ...]:
    files = expand_inputs(inputs, output) if inputs else []
    return tuple(PlannedFile(path, name.as_posix(), None) for path, name in files)


def _plan_annotated(inputs: Sequence[Path], output: Path) -> tuple[PlannedFile, ...]:
    pairs = map_outputs(inputs, output) if inputs else []
    names = dict(expand_inputs(inputs, output)) if inputs else {}
    return tuple(PlannedFile(source, names[source].as_posix(), target) for source, target in pairs)


def _plan_unannotated_videos(videos: Sequence[Path]) -> tuple[PlannedFile, ...]:
    for video in videos:
        if not video.exists():
            raise UsageError(f"{video} does not exist: expected an image, a folder of images or a video")
    return tuple(PlannedFile(video, video.name, None) for video in videos)


def _plan_annotated_videos(videos: Sequence[Path], output: Path, *, single_input: bool) -> tuple[PlannedFile, ...]:
    into_file = single_input and output.suffix.lower() in VIDEO_SUFFIXES and not output.is_dir()
    planned_videos = tuple(
        PlannedFile(planned.source, planned.name, output if into_file else output / planned.name)
        for planned in _plan_unannotated_videos(videos)
    )
    for planned in planned_videos:
        assert planned.target is not None
        check_target(planned.source, planned.target)
    return planned_videos


def _check_unique_names(images: Iterable[PlannedFile]) -> None:
    """Raise UsageError for two images whose names differ only in their suffix: they would have the same label file."""
    seen: dict[Path, PlannedFile] = {}
    for image in images:
        name = Path(image.name).with_suffix("")
        if name in seen:
            raise UsageError(
                f"{image.source} and {seen[name].source} have the same label file {name}.txt; process them separately "
                "and use two folders"
            )
        seen[name] = image


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
    log: Callable[[str], None] = lambda line: None,
) -> BatchSummary:
    """Process all planned inputs and write the outputs. A failed file is recorded, and the others are processed.

    ``log`` is called for every image and video. Images are processed by ``workers`` threads (None: one per core). Raise
    ChromaboxError only if a JSON, CSV or class list file cannot be written.
    """
    summary = BatchSummary()
    all_results: list[ImageDetections] = []
    start_time = time.perf_counter()

    def add_result(result: ImageDetections) -> None:
        summary.num_boxes += len(result.detections)
        if plan.json is not None or plan.csv is not None:
            all_results.append(result)

    def process(planned_file: PlannedFile) -> ImageDetections | str:
        return _process_image(planned_file, plan.label_folder, detector, options)

    results = map_ordered(plan.images, process, workers=workers)
    with progress_bar("detecting", len(plan.images), unit="images") as tick, closing(results):
        for result in results:
            tick()
            if isinstance(result, str):
                summary.errors.append(result)
                continue
            summary.num_images += 1
            add_result(result)
            log(f"{result.file}: {result.summary()}")
    for video in plan.videos:
        try:
            num_frames = _process_video(video, plan.label_folder, detector, options, add_result)
            summary.num_frames += num_frames
            log(f"{video.name}: {num_frames} frames")
        except ChromaboxError as error:
            summary.errors.append(str(error))
    summary.seconds = time.perf_counter() - start_time
    _write_results(plan, all_results, detector.classes)
    return summary


def _write_results(plan: OutputPlan, results: list[ImageDetections], classes: tuple[str, ...]) -> None:
    if plan.json is not None:
        write_coco_results(plan.json, coco_results(results, classes))
    if plan.csv is not None:
        write_csv(plan.csv, results)
    if plan.label_folder is not None:
        write_class_names(plan.label_folder / "classes.txt", classes)


def _process_image(
    planned_file: PlannedFile, labels: Path | None, detector: DetectorModel, options: InferenceOptions
) -> ImageDetections | str:
    """Detect objects in an image and write its files; return the detections, or an error message."""
    file_result = detect_file(planned_file.source, detector, options)
    if file_result.pixels is None or file_result.detections is None:
        return str(file_result.error)
    height, width, _ = file_result.pixels.shape
    result = ImageDetections(planned_file.name, (height, width), file_result.detections)
    try:
        if planned_file.target is not None:
            write_image(planned_file.target, annotate(file_result.pixels, file_result.detections))
        if labels is not None:
            write_yolo_labels(labels / f"{result.stem}.txt", result)
    except ChromaboxError as error:
        return str(error)
    return result


def _process_video(
    planned_file: PlannedFile,
    labels: Path | None,
    detector: DetectorModel,
    options: InferenceOptions,
    on_result: Callable[[ImageDetections], None],
) -> int:
    """Detect objects in a video, frame by frame, and write its files; return the number of frames."""
    video = probe_video(planned_file.source)
    num_done = 0
    with progress_bar(planned_file.name, video.num_frames, unit="frames") as tick:

        def process_frame(pixels: Pixels) -> Pixels:
            nonlocal num_done
            detections = run_detector(pixels, detector, options)
            height, width, _ = pixels.shape
            result = ImageDetections(planned_file.name, (height, width), detections, num_done)
            if labels is not None:
                write_yolo_labels(labels / f"{result.stem}.txt", result)
            on_result(result)
            tick()
            num_done += 1
            return pixels if planned_file.target is None else annotate(pixels, detections)

        if planned_file.target is None:
            for frame in iter_frames(planned_file.source):
                process_frame(frame)
        else:
            transcode(video, planned_file.target, process_frame)
    return num_done
