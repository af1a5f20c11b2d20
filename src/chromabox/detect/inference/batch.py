"""Detecting in pictures, folders and films as the command line does it: read, find, draw, write down, tell.

Which pictures and films are looked through, and which files come of it: decided before any work is begun.
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
from chromabox.detect.inference.runtime import OptimizedDetector
from chromabox.engine.logger import progress_bar
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import check_not_input, write_image
from chromabox.io.paths import expand_inputs, map_outputs
from chromabox.io.video import VIDEO_SUFFIXES, check_target, iter_frames, probe_video, transcode
from chromabox.runtime.parallel import map_ordered, num_threads

OutputFormat = Literal["images", "json", "csv", "yolo"]
TABLE_FORMATS = {".json": "json", ".csv": "csv"}


@dataclass(frozen=True)
class PlannedFile:
    """One picture or film: its file, its place as results name it, and the annotated copy to write (None: none)."""

    source: Path
    name: str
    target: Path | None


@dataclass(frozen=True)
class OutputPlan:
    """All that is looked through, and where lists go (None: not written); ``labels`` is YOLO's folder of text files."""

    images: tuple[PlannedFile, ...]
    videos: tuple[PlannedFile, ...]
    json: Path | None = None
    csv: Path | None = None
    label_folder: Path | None = None


def plan_detection_outputs(inputs: Sequence[Path], output: Path, formats: Sequence[OutputFormat] = ()) -> OutputPlan:
    """What comes of the inputs (pictures, folders, films).

    Args:
        inputs: files, taken whatever they are called, and folders, which are searched for pictures.
        output: a folder; of a single picture or film it may be the annotated one, of boxes alone a .json or .csv.
        formats: what to write; if empty what the output's suffix says, annotated pictures into a folder.

    Raises UsageError for inputs that are not there, an output that is an input, two inputs that would become one file,
    and formats that the output cannot hold.
    """
    if not inputs:
        raise UsageError("inputs: name at least one picture, folder or film to look through")
    suffix = "" if output.is_dir() else output.suffix.lower()
    wanted: set[str] = set(formats) or {TABLE_FORMATS.get(suffix, "images")}
    films = [path for path in inputs if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()]
    others = [path for path in inputs if path not in films]
    if suffix in TABLE_FORMATS:
        _check_single_format(output, wanted, TABLE_FORMATS[suffix])
        plan = OutputPlan(_plan_unannotated(others, None), _plan_unannotated_videos(films))
        check_not_input([one.source for one in (*plan.images, *plan.videos)], output)
        return OutputPlan(plan.images, plan.videos, **{TABLE_FORMATS[suffix]: output})
    if "images" in wanted:
        pictures, drawn_films = (
            _plan_annotated(others, output),
            _plan_annotated_videos(films, output, single_input=len(inputs) == 1),
        )
    else:
        pictures, drawn_films = _plan_unannotated(others, output), _plan_unannotated_videos(films)
    if any(one.target == output for one in (*pictures, *drawn_films)):
        _check_single_format(output, wanted, "images")
    if "yolo" in wanted:
        _check_unique_names(pictures)
    return OutputPlan(
        pictures,
        drawn_films,
        json=output / "detections.json" if "json" in wanted else None,
        csv=output / "detections.csv" if "csv" in wanted else None,
        label_folder=output / "labels" if "yolo" in wanted else None,
    )


def _check_single_format(output: Path, formats: set[str], supported: str) -> None:
    if formats != {supported}:
        others = ", ".join(sorted(formats - {supported}))
        raise UsageError(f"{output}: is a single file, which cannot hold {others}; give -o FOLDER")


def _plan_unannotated(inputs: Sequence[Path], output: Path | None) -> tuple[PlannedFile, ...]:
    found = expand_inputs(inputs, output) if inputs else []
    return tuple(PlannedFile(path, place.as_posix(), None) for path, place in found)


def _plan_annotated(inputs: Sequence[Path], output: Path) -> tuple[PlannedFile, ...]:
    pairs = map_outputs(inputs, output) if inputs else []
    places = dict(expand_inputs(inputs, output)) if inputs else {}
    return tuple(PlannedFile(source, places[source].as_posix(), target) for source, target in pairs)


def _plan_unannotated_videos(videos: Iterable[Path]) -> tuple[PlannedFile, ...]:
    for film in videos:
        if not film.exists():
            raise UsageError(f"{film} does not exist: a picture, a folder of pictures or a film is needed")
    return tuple(PlannedFile(film, film.name, None) for film in videos)


def _plan_annotated_videos(videos: Sequence[Path], output: Path, *, single_input: bool) -> tuple[PlannedFile, ...]:
    into_file = single_input and output.suffix.lower() in VIDEO_SUFFIXES and not output.is_dir()
    planned = tuple(
        PlannedFile(one.source, one.name, output if into_file else output / one.name)
        for one in _plan_unannotated_videos(videos)
    )
    for one in planned:
        assert one.target is not None
        check_target(one.source, one.target)
    return planned


def _check_unique_names(images: Iterable[PlannedFile]) -> None:
    """Two pictures whose places differ in their suffix only would have one text file."""
    seen: dict[Path, PlannedFile] = {}
    for one in images:
        name = Path(one.name).with_suffix("")
        if name in seen:
            raise UsageError(
                f"{one.source} and {seen[name].source} would share {name}.txt; look through them into two folders"
            )
        seen[name] = one


@dataclass
class BatchSummary:
    """What was done: pictures and frames looked through, boxes found, seconds it took, and what failed and why."""

    num_images: int = 0
    num_frames: int = 0
    num_boxes: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.num_frames} frames"] if self.num_frames else []
        parts = [f"{self.num_images} pictures", *parts] if self.num_images or not parts else parts
        rate = (self.num_images + self.num_frames) / max(self.seconds, 1e-9)
        return f"{' and '.join(parts)}, {self.num_boxes} boxes, {self.seconds:.1f} s ({rate:.1f} images/s)"


def run_detection(
    plan: OutputPlan,
    detector: OptimizedDetector,
    options: InferenceOptions,
    *,
    workers: int | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> BatchSummary:
    """Look through all that is planned and write what is to be written; a bad file does not stop the rest.

    ``say`` is told of every picture and film; pictures are done by ``workers`` threads (None: one a core). Raises
    ChromaboxError only where a list of all boxes cannot be written.
    """
    summary = BatchSummary()
    sightings: list[ImageDetections] = []
    begin = time.perf_counter()

    def note(sighting: ImageDetections) -> None:
        summary.num_boxes += len(sighting.detections)
        if plan.json is not None or plan.csv is not None:
            sightings.append(sighting)

    def work(planned: PlannedFile) -> ImageDetections | str:
        return _process_image(planned, plan.label_folder, detector, options)

    results = map_ordered(plan.images, work, workers=workers)
    with progress_bar("detecting", len(plan.images), unit="images") as tick, closing(results):
        for outcome in results:
            tick()
            if isinstance(outcome, str):
                summary.errors.append(outcome)
                continue
            summary.num_images += 1
            note(outcome)
            log(f"{outcome.file}: {outcome.summary()}")
    for film in plan.videos:
        try:
            frames = _process_video(film, plan.label_folder, detector, options, note)
            summary.num_frames += frames
            log(f"{film.name}: {frames} frames")
        except ChromaboxError as error:
            summary.errors.append(str(error))
    summary.seconds = time.perf_counter() - begin
    _write_results(plan, sightings, detector.detector.classes)
    return summary


def _write_results(plan: OutputPlan, results: list[ImageDetections], classes: tuple[str, ...]) -> None:
    if plan.json is not None:
        write_coco_results(plan.json, coco_results(results, classes))
    if plan.csv is not None:
        write_csv(plan.csv, results)
    if plan.label_folder is not None:
        write_class_names(plan.label_folder / "classes.txt", classes)


def _process_image(
    planned_file: PlannedFile, labels: Path | None, detector: OptimizedDetector, options: InferenceOptions
) -> ImageDetections | str:
    """What was found, its files written; or in one sentence why not."""
    found = detect_file(planned_file.source, detector, options)
    if found.pixels is None or found.detections is None:
        return str(found.error)
    height, width, _ = found.pixels.shape
    sighting = ImageDetections(planned_file.name, (height, width), found.detections)
    try:
        if planned_file.target is not None:
            write_image(planned_file.target, annotate(found.pixels, found.detections))
        if labels is not None:
            write_yolo_labels(labels / f"{sighting.stem}.txt", sighting)
    except ChromaboxError as error:
        return str(error)
    return sighting


def _process_video(
    planned_file: PlannedFile,
    labels: Path | None,
    detector: OptimizedDetector,
    options: InferenceOptions,
    on_result: Callable[[ImageDetections], None],
) -> int:
    """Look through a film, frame by frame; returns how many there were."""
    film = probe_video(planned_file.source)
    done = 0
    with progress_bar(planned_file.name, film.num_frames, unit="frames") as tick, num_threads(detector.runtime.threads):

        def look(pixels: Pixels) -> Pixels:
            nonlocal done
            detections = run_detector(pixels, detector, options)
            height, width, _ = pixels.shape
            sighting = ImageDetections(planned_file.name, (height, width), detections, done)
            if labels is not None:
                write_yolo_labels(labels / f"{sighting.stem}.txt", sighting)
            on_result(sighting)
            tick()
            done += 1
            return pixels if planned_file.target is None else annotate(pixels, detections)

        if planned_file.target is None:
            for frame in iter_frames(planned_file.source):
                look(frame)
        else:
            transcode(film, planned_file.target, look)
    return done
