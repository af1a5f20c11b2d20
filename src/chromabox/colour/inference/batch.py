"""Many pictures: which of them, where each goes, and colouring them side by side so that a stop costs nothing.

How one picture is coloured is the caller's: a function from a source file to a target file.

Colouring one file after another as the command line does it: read, predict, recolour, write.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from chromabox.colour.constraints.constraints import ColourConstraints, ColourPrediction, palette_from_image_or_file
from chromabox.colour.inference.predict import (
    ColouriseOptions,
    ColourModel,
    StyleName,
    apply_prediction,
    predict_colours,
)
from chromabox.colour.palette.io import parse_colour, parse_replacement
from chromabox.colour.weights.checkpoint import checkpoint_sha256
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import ImageData, read_image, write_image
from chromabox.io.manifest import Manifest, sha256_file


@dataclass(frozen=True)
class ColouriseResult:
    """What became of one file: where it went, or in one sentence why it did not; ``skipped``: it was there already."""

    source: Path
    target: Path
    error: str | None = None
    skipped: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the work said of the picture, now or when it was done."""


def colourise_batch(
    pairs: Sequence[tuple[Path, Path]],
    process_file: Callable[[Path, Path], Mapping[str, Any]],
    *,
    settings: Mapping[str, Any],
    workers: int = 1,
    manifest_path: Path | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Generator[ColouriseResult, None, None]:
    """Colour files side by side, each outcome as it is known; a bad file does not stop the rest.

    Args:
        pairs: sources and targets, as ``plan_outputs`` gives them.
        work: colours one source into one target, whole or not at all, in any thread; it returns facts about the
            picture as JSON values.
        settings: JSON values that decide the colours; a picture done with others is done anew.
        workers: threads; twice as many pictures are under way or waiting at a time, whatever their number.
        record: the record by which pictures that are done are skipped; None: everything is done.
        say: is told in one line how far it came, if it is stopped before the end.

    Stopping it (Ctrl-C, or closing it: use ``contextlib.closing``) lets the pictures under way finish and begins no
    others. Raises UsageError for fewer than one worker, ChromaboxError for a record that cannot be read or written.
    """
    if workers < 1:
        raise UsageError(f"workers is {workers}: give at least 1")
    return _run_batch(
        pairs, process_file, None if manifest_path is None else Manifest(manifest_path, settings), workers, log
    )


def _run_batch(
    pairs: Sequence[tuple[Path, Path]],
    process_file: Callable[[Path, Path], Mapping[str, Any]],
    manifest: Manifest | None,
    workers: int,
    log: Callable[[str], None],
) -> Generator[ColouriseResult, None, None]:
    """The loop of ``colour_batch``."""
    waiting = iter(pairs)
    under_way: set[Future[ColouriseResult]] = set()
    done, at_the_end = 0, False
    pool = ThreadPoolExecutor(workers, thread_name_prefix="colour")
    try:
        while True:
            for source, target in islice(waiting, 2 * workers - len(under_way)):
                under_way.add(pool.submit(_process_one, source, target, process_file, manifest))
            if not under_way:
                break
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                outcome = future.result()
                under_way.remove(future)
                done += outcome.error is None
                yield outcome
        at_the_end = True
    finally:
        pool.shutdown(cancel_futures=True)
        if not at_the_end:
            done += sum(_succeeded(future) for future in under_way)
            again = "goes on with the rest" if manifest is not None else "begins with the first"
            log(f"{done} of {len(pairs)} pictures are done; the same command {again}")


def _succeeded(future: Future[ColouriseResult]) -> bool:
    return not future.cancelled() and future.exception() is None and future.result().error is None


def _process_one(
    source: Path, target: Path, process_file: Callable[[Path, Path], Mapping[str, Any]], manifest: Manifest | None
) -> ColouriseResult:
    """Colour one picture unless it is done already, and note it; what a picture can be guilty of is its error."""
    try:
        if manifest is None:
            return ColouriseResult(source, target, metadata=process_file(source, target))
        # Before the work: should the source be changed meanwhile, the next run sees that.
        digest = sha256_file(source)
        facts = manifest.lookup(target, digest)
        if facts is not None:
            return ColouriseResult(source, target, skipped=True, metadata=facts)
        facts = dict(process_file(source, target))
    except ChromaboxError as error:
        return ColouriseResult(source, target, str(error))
    except OSError as error:
        problem = error.strerror or error
        return ColouriseResult(
            source, target, f"{source} cannot be coloured into {target} ({problem}): see to both places"
        )
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return ColouriseResult(
            source, target, f"{source} needs more memory than there is: make it smaller, or use fewer workers"
        )
    manifest.add(target, digest, facts)
    return ColouriseResult(source, target, metadata=facts)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: PyTorch has no kind of error of its own for that on the processor, only its words."""
    words = ("allocate memory", "out of memory", "not enough memory")
    return isinstance(error, MemoryError) or any(part in str(error) for part in words)


#: Of JPEG and WebP. At 95 JPEG's own loss moves L* by 0.3 to 0.6 on average, at 98 by less than 0.3.
JPEG_QUALITY = 98


@runtime_checkable
class ColourArgsProtocol(Protocol):
    """The options that decide the colours, as the command line has them: text and paths."""

    @property
    def model(self) -> Path | None: ...
    @property
    def style(self) -> StyleName: ...
    @property
    def temperature(self) -> float | None: ...
    @property
    def palette(self) -> str | None: ...
    @property
    def allow(self) -> tuple[str, ...]: ...
    @property
    def ban(self) -> tuple[str, ...]: ...
    @property
    def replace(self) -> tuple[str, ...]: ...
    @property
    def hints(self) -> Path | None: ...
    @property
    def min_confidence(self) -> float: ...


def parse_options(args: ColourArgsProtocol) -> ColouriseOptions:
    """The wishes that options stand for; UsageError for the first that makes no sense, before any work is begun."""
    if args.temperature is not None and not 0 <= args.temperature <= 1:
        raise UsageError(f"temperature is {args.temperature}: give a number from 0 to 1")
    if not 0 <= args.min_confidence <= 1:
        raise UsageError(f"leave-grey-below is {args.min_confidence}: give a confidence from 0 to 1")
    control = ColourConstraints(
        palette=None if args.palette is None else palette_from_image_or_file(args.palette),
        allowed=tuple(parse_colour(text, "lock") for text in args.allow),
        banned=tuple(parse_colour(text, "ban") for text in args.ban),
        replacements=tuple(parse_replacement(text) for text in args.replace),
        min_confidence=args.min_confidence,
    )
    return ColouriseOptions(style=args.style, temperature=args.temperature, constraints=control, hints=args.hints)


def cache_key(args: ColourArgsProtocol) -> dict[str, Any]:
    """What decides the colours of a picture, as JSON: with the same settings a picture need not be coloured again."""
    files = {name: getattr(args, name) for name in ("palette", "hints")}
    digests = {
        name: sha256_file(Path(path)) if path is not None and Path(path).is_file() else path
        for name, path in files.items()
    }
    return {
        "net": checkpoint_sha256(args.model),
        "style": args.style,
        "temperature": args.temperature,
        "lock": args.allow,
        "ban": args.ban,
        "replace": args.replace,
        "leave_grey_below": args.min_confidence,
        **digests,
    }


def make_file_coloriser(
    model: ColourModel,
    options: ColouriseOptions,
    *,
    on_result: Callable[[ImageData, ImageData, ColourPrediction, Path], str] | None = None,
) -> Callable[[Path, Path], Mapping[str, Any]]:
    """Return a function that colourises one file into another.

    ``on_result`` is called with the input, the colourised image, the prediction and the output path; what it returns
    is added to the notes on the file.
    """

    def work(source: Path, target: Path) -> Mapping[str, Any]:
        picture = read_image(source)
        decision = predict_colours(picture.pixels, model, options)
        coloured = apply_prediction(picture, decision)
        write_image(target, coloured, quality=JPEG_QUALITY)
        notes = []
        if picture.num_frames > 1:
            notes.append(f"{source} has {picture.num_frames} frames or pages; the first one is coloured")
        if on_result is not None:
            notes.append(on_result(picture, coloured, decision, target))
        return {"notes": notes}

    return work
