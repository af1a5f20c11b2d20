"""Detecting in pictures, folders and films as the command line does it: read, find, draw, write down, tell."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from chromabox.detect.boxes import Pixels
from chromabox.detect.inference.predict import Wanted, detect_file, detect_wanted
from chromabox.detect.inference.runtime import ReadyDetector
from chromabox.engine.logger import progress
from chromabox.errors import ChromaboxError
from chromabox.io.images import write_picture
from chromabox.io.video import frames_of, remake_film, survey_film
from chromabox.report.boxes import (
    Sighting,
    annotated,
    coco_results,
    write_class_names,
    write_coco_results,
    write_csv,
    write_yolo_text,
)
from chromabox.report.detecting_plan import DetectionPlan, Planned
from chromabox.runtime.parallel import in_order, threads_at


@dataclass
class Summary:
    """What was done: pictures and frames looked through, boxes found, seconds it took, and what failed and why."""

    pictures: int = 0
    frames: int = 0
    boxes: int = 0
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.frames} frames"] if self.frames else []
        parts = [f"{self.pictures} pictures", *parts] if self.pictures or not parts else parts
        rate = (self.pictures + self.frames) / max(self.seconds, 1e-9)
        return f"{' and '.join(parts)}, {self.boxes} boxes, {self.seconds:.1f} s ({rate:.1f} images/s)"


def detect_inputs(
    plan: DetectionPlan,
    detector: ReadyDetector,
    wanted: Wanted,
    *,
    workers: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Look through all that is planned and write what is to be written; a bad file does not stop the rest.

    ``say`` is told of every picture and film; pictures are done by ``workers`` threads (None: one a core). Raises
    ChromaboxError only where a list of all boxes cannot be written.
    """
    summary = Summary()
    sightings: list[Sighting] = []
    begin = time.perf_counter()

    def note(sighting: Sighting) -> None:
        summary.boxes += len(sighting.detections)
        if plan.json is not None or plan.csv is not None:
            sightings.append(sighting)

    def work(planned: Planned) -> Sighting | str:
        return _detect_picture(planned, plan.labels, detector, wanted)

    results = in_order(plan.pictures, work, workers=workers)
    with progress("detecting", len(plan.pictures), unit="images") as tick, closing(results):
        for outcome in results:
            tick()
            if isinstance(outcome, str):
                summary.failed.append(outcome)
                continue
            summary.pictures += 1
            note(outcome)
            say(f"{outcome.file}: {outcome.summary()}")
    for film in plan.films:
        try:
            frames = _detect_film(film, plan.labels, detector, wanted, note)
            summary.frames += frames
            say(f"{film.place}: {frames} frames")
        except ChromaboxError as error:
            summary.failed.append(str(error))
    summary.seconds = time.perf_counter() - begin
    _write_lists(plan, sightings, detector.trained.classes)
    return summary


def _write_lists(plan: DetectionPlan, sightings: list[Sighting], classes: tuple[str, ...]) -> None:
    if plan.json is not None:
        write_coco_results(plan.json, coco_results(sightings, classes))
    if plan.csv is not None:
        write_csv(plan.csv, sightings)
    if plan.labels is not None:
        write_class_names(plan.labels / "classes.txt", classes)


def _detect_picture(planned: Planned, labels: Path | None, detector: ReadyDetector, wanted: Wanted) -> Sighting | str:
    """What was found, its files written; or in one sentence why not."""
    found = detect_file(planned.source, detector, wanted)
    if found.pixels is None or found.detections is None:
        return str(found.error)
    height, width, _ = found.pixels.shape
    sighting = Sighting(planned.place, (height, width), found.detections)
    try:
        if planned.target is not None:
            write_picture(planned.target, annotated(found.pixels, found.detections))
        if labels is not None:
            write_yolo_text(labels / f"{sighting.name}.txt", sighting)
    except ChromaboxError as error:
        return str(error)
    return sighting


def _detect_film(
    planned: Planned,
    labels: Path | None,
    detector: ReadyDetector,
    wanted: Wanted,
    note: Callable[[Sighting], None],
) -> int:
    """Look through a film, frame by frame; returns how many there were."""
    film = survey_film(planned.source)
    done = 0
    with progress(planned.place, film.frames, unit="frames") as tick, threads_at(detector.execution.threads):

        def look(pixels: Pixels) -> Pixels:
            nonlocal done
            detections = detect_wanted(pixels, detector, wanted)
            height, width, _ = pixels.shape
            sighting = Sighting(planned.place, (height, width), detections, done)
            if labels is not None:
                write_yolo_text(labels / f"{sighting.name}.txt", sighting)
            note(sighting)
            tick()
            done += 1
            return pixels if planned.target is None else annotated(pixels, detections)

        if planned.target is None:
            for frame in frames_of(planned.source):
                look(frame)
        else:
            remake_film(film, planned.target, look)
    return done
