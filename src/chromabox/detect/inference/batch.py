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
    Sighting,
    annotated,
    coco_results,
    write_class_names,
    write_coco_results,
    write_csv,
    write_yolo_text,
)
from chromabox.detect.inference.predict import Wanted, detect_file, detect_wanted
from chromabox.detect.inference.runtime import ReadyDetector
from chromabox.engine.logger import progress
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import refuse_overwrite_of_input, write_picture
from chromabox.io.paths import find, plan_outputs
from chromabox.io.video import VIDEO_SUFFIXES, frames_of, refuse_target, remake_film, survey_film
from chromabox.runtime.parallel import in_order, threads_at

Format = Literal["pictures", "json", "csv", "yolo"]
TABLES = {".json": "json", ".csv": "csv"}


@dataclass(frozen=True)
class Planned:
    """One picture or film: its file, its place as results name it, and the annotated copy to write (None: none)."""

    source: Path
    place: str
    target: Path | None


@dataclass(frozen=True)
class DetectionPlan:
    """All that is looked through, and where lists go (None: not written); ``labels`` is YOLO's folder of text files."""

    pictures: tuple[Planned, ...]
    films: tuple[Planned, ...]
    json: Path | None = None
    csv: Path | None = None
    labels: Path | None = None


def plan_detection(inputs: Sequence[Path], output: Path, formats: Sequence[Format] = ()) -> DetectionPlan:
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
    wanted: set[str] = set(formats) or {TABLES.get(suffix, "pictures")}
    films = [path for path in inputs if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()]
    others = [path for path in inputs if path not in films]
    if suffix in TABLES:
        _refuse_more(output, wanted, TABLES[suffix])
        plan = DetectionPlan(_undrawn(others, None), _undrawn_films(films))
        refuse_overwrite_of_input([one.source for one in (*plan.pictures, *plan.films)], output)
        return DetectionPlan(plan.pictures, plan.films, **{TABLES[suffix]: output})
    if "pictures" in wanted:
        pictures, drawn_films = _drawn(others, output), _drawn_films(films, output, alone=len(inputs) == 1)
    else:
        pictures, drawn_films = _undrawn(others, output), _undrawn_films(films)
    if any(one.target == output for one in (*pictures, *drawn_films)):
        _refuse_more(output, wanted, "pictures")
    if "yolo" in wanted:
        _refuse_equal_names(pictures)
    return DetectionPlan(
        pictures,
        drawn_films,
        json=output / "detections.json" if "json" in wanted else None,
        csv=output / "detections.csv" if "csv" in wanted else None,
        labels=output / "labels" if "yolo" in wanted else None,
    )


def _refuse_more(output: Path, wanted: set[str], held: str) -> None:
    if wanted != {held}:
        others = ", ".join(sorted(wanted - {held}))
        raise UsageError(f"{output}: is a single file, which cannot hold {others}; give -o FOLDER")


def _undrawn(inputs: Sequence[Path], output: Path | None) -> tuple[Planned, ...]:
    found = find(inputs, output) if inputs else []
    return tuple(Planned(path, place.as_posix(), None) for path, place in found)


def _drawn(inputs: Sequence[Path], output: Path) -> tuple[Planned, ...]:
    pairs = plan_outputs(inputs, output) if inputs else []
    places = dict(find(inputs, output)) if inputs else {}
    return tuple(Planned(source, places[source].as_posix(), target) for source, target in pairs)


def _undrawn_films(films: Iterable[Path]) -> tuple[Planned, ...]:
    for film in films:
        if not film.exists():
            raise UsageError(f"{film} does not exist: a picture, a folder of pictures or a film is needed")
    return tuple(Planned(film, film.name, None) for film in films)


def _drawn_films(films: Sequence[Path], output: Path, *, alone: bool) -> tuple[Planned, ...]:
    into_file = alone and output.suffix.lower() in VIDEO_SUFFIXES and not output.is_dir()
    planned = tuple(
        Planned(one.source, one.place, output if into_file else output / one.place) for one in _undrawn_films(films)
    )
    for one in planned:
        assert one.target is not None
        refuse_target(one.source, one.target)
    return planned


def _refuse_equal_names(pictures: Iterable[Planned]) -> None:
    """Two pictures whose places differ in their suffix only would have one text file."""
    seen: dict[Path, Planned] = {}
    for one in pictures:
        name = Path(one.place).with_suffix("")
        if name in seen:
            raise UsageError(
                f"{one.source} and {seen[name].source} would share {name}.txt; look through them into two folders"
            )
        seen[name] = one


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
