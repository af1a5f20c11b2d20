"""Which pictures and films are looked through, and which files come of it: decided before any work is begun."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chromabox.errors import UsageError
from chromabox.io.images import refuse_overwrite_of_input
from chromabox.io.paths import find, plan_outputs
from chromabox.io.video import VIDEO_SUFFIXES, refuse_target

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
