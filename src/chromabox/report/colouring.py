"""Colouring one file after another as the command line does it: read, decide, recolour, write, explain."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from chromabox.colour.constraints.constraints import Control, palette_from
from chromabox.colour.inference.predict import StyleName, Trained, Wishes, decide_colours, in_colours
from chromabox.colour.palette.io import parse_colour, parse_replacement
from chromabox.colour.weights.checkpoint import net_digest
from chromabox.errors import UsageError
from chromabox.io.images import read_picture, write_picture
from chromabox.io.manifest import file_digest

#: Of JPEG and WebP. At 95 JPEG's own loss moves L* by 0.3 to 0.6 on average, at 98 by less than 0.3.
QUALITY = 98


@runtime_checkable
class Asked(Protocol):
    """The options that decide the colours, as the command line has them: text and paths."""

    @property
    def net(self) -> Path | None: ...
    @property
    def style(self) -> StyleName: ...
    @property
    def temperature(self) -> float | None: ...
    @property
    def palette(self) -> str | None: ...
    @property
    def lock(self) -> tuple[str, ...]: ...
    @property
    def ban(self) -> tuple[str, ...]: ...
    @property
    def replace(self) -> tuple[str, ...]: ...
    @property
    def hints(self) -> Path | None: ...
    @property
    def leave_grey_below(self) -> float: ...


def wishes_of(asked: Asked) -> Wishes:
    """The wishes that options stand for; UsageError for the first that makes no sense, before any work is begun."""
    if asked.temperature is not None and not 0 <= asked.temperature <= 1:
        raise UsageError(f"temperature is {asked.temperature}: give a number from 0 to 1")
    if not 0 <= asked.leave_grey_below <= 1:
        raise UsageError(f"leave-grey-below is {asked.leave_grey_below}: give a confidence from 0 to 1")
    control = Control(
        palette=None if asked.palette is None else palette_from(asked.palette),
        lock=tuple(parse_colour(text, "lock") for text in asked.lock),
        ban=tuple(parse_colour(text, "ban") for text in asked.ban),
        replace=tuple(parse_replacement(text) for text in asked.replace),
        leave_grey_below=asked.leave_grey_below,
    )
    return Wishes(style=asked.style, temperature=asked.temperature, control=control, hints=asked.hints)


def settings_of(asked: Asked) -> dict[str, Any]:
    """What decides the colours of a picture, as JSON: with the same settings a picture need not be coloured again."""
    names = ("style", "temperature", "lock", "ban", "replace", "leave_grey_below")
    files = {name: getattr(asked, name) for name in ("palette", "hints")}
    digests = {
        name: file_digest(Path(path)) if path is not None and Path(path).is_file() else path
        for name, path in files.items()
    }
    return {"net": net_digest(asked.net), **{name: getattr(asked, name) for name in names}, **digests}


def picture_work(trained: Trained, wishes: Wishes, *, explain: bool) -> Callable[[Path, Path], Mapping[str, Any]]:
    """A function that colours one file into another, and with ``explain`` draws why beside it."""

    def work(source: Path, target: Path) -> Mapping[str, Any]:
        picture = read_picture(source)
        decision = decide_colours(picture.pixels, trained, wishes)
        coloured = in_colours(picture, decision)
        write_picture(target, coloured, quality=QUALITY)
        notes = []
        if picture.frames > 1:
            notes.append(f"{source} has {picture.frames} frames or pages; the first one is coloured")
        if explain:
            # Imported late: who wants no figure should not wait for matplotlib.
            from chromabox.report.explain import draw_explanation

            figure = target.with_name(f"{target.stem}.explained.png")
            draw_explanation(picture, coloured, decision, figure, target.name)
            notes.append(str(figure))
        return {"notes": notes}

    return work
