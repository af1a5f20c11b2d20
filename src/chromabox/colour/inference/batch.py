"""Parallel batch colourisation of image files, which can be resumed after an interruption."""

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chromabox.colour.constraints.constraints import ColourPrediction
from chromabox.colour.inference.predict import ColouriseOptions, apply_prediction, predict_colours
from chromabox.colour.weights.onnx_model import ColourModel
from chromabox.errors import ChromaboxError
from chromabox.io.images import ImageData, Pages, can_hold_pages, read_pages, write_pages
from chromabox.io.manifest import Manifest, sha256_file
from chromabox.runtime.parallel import map_ordered

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ColouriseResult:
    """Result for one file."""

    source: Path
    target: Path
    error: str | None = None
    """Error message if the file could not be colourised."""
    skipped: bool = False
    """Whether the target was already up to date."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that ``process_file`` returned for the image. For a skipped image, they come from an earlier run."""


def colourise_batch(
    pairs: Sequence[tuple[Path, Path]],
    process_file: Callable[[Path, Path], Mapping[str, Any]],
    *,
    settings: Mapping[str, Any],
    workers: int = 1,
    manifest_path: Path | None = None,
) -> Generator[ColouriseResult, None, None]:
    """Process files in parallel and yield their results in order. A failure does not stop the batch.

    Args:
        pairs: sources and targets, as returned by ``map_outputs``.
        process_file: function that colourises a source, writes the target atomically, and returns metadata of the
            image as JSON values. It is called from several threads.
        settings: JSON values that determine the result. An image made with other settings is processed again.
        workers: number of threads, at least 1. At most twice as many images are in progress or queued at any time.
        manifest_path: path of the manifest, which is used to skip finished images. With None, all images are processed.

    The batch stops on Ctrl-C or when the generator is closed, for example by ``contextlib.closing``. Images in progress
    are then finished, no other images are started, and the number of finished images is logged.

    Raise UsageError for fewer than one worker. Raise ChromaboxError for a manifest that cannot be read or written.
    """
    manifest = None if manifest_path is None else Manifest(manifest_path, settings)
    finished: list[Path] = []

    def process(pair: tuple[Path, Path]) -> ColouriseResult:
        # File errors and out-of-memory errors are returned as results. Other exceptions are bugs and propagate.
        source, target = pair
        try:
            if manifest is not None:
                # Hash the source first. If it changes during processing, the next run processes it again.
                digest = sha256_file(source)
                metadata = manifest.lookup(target, digest)
                if metadata is not None:
                    finished.append(target)
                    return ColouriseResult(source, target, skipped=True, metadata=metadata)
            metadata = dict(process_file(source, target))
        except ChromaboxError as error:
            return ColouriseResult(source, target, str(error))
        except OSError as error:
            message = f"{source}: colourisation to {target} failed ({error.strerror or error}); check both paths"
            return ColouriseResult(source, target, message)
        except (MemoryError, RuntimeError) as error:
            # On the CPU, PyTorch raises a plain RuntimeError if memory runs out.
            phrases = ("allocate memory", "out of memory", "not enough memory")
            if isinstance(error, RuntimeError) and not any(phrase in str(error) for phrase in phrases):
                raise
            return ColouriseResult(source, target, f"{source}: out of memory; use a smaller image or fewer workers")
        if manifest is not None:
            manifest.add(target, digest, metadata)
        finished.append(target)
        return ColouriseResult(source, target, metadata=metadata)

    def report_if_stopped(results: Generator[ColouriseResult, None, None]) -> Generator[ColouriseResult, None, None]:
        try:
            yield from results
        except BaseException:  # KeyboardInterrupt, GeneratorExit and errors
            rerun = "process the remaining images" if manifest is not None else "process all images again"
            log.info(f"finished images: {len(finished)} of {len(pairs)}; run the same command to {rerun}")
            raise

    return report_if_stopped(map_ordered(pairs, process, workers=workers))


#: Quality of JPEG and WebP files. At quality 95, JPEG compression changes L* by 0.3 to 0.6 on average. At quality 98,
#: the average change is less than 0.3.
JPEG_QUALITY = 98


def cache_key(model: ColourModel, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON values that determine the colours. An image is up to date if these values have not changed.

    ``options`` are the arguments of :func:`~chromabox.colour.api.parse_options`, as on the command line. Files are
    identified by their SHA-256 digests instead of their paths.
    """
    digests = {
        name: sha256_file(Path(path)) if path is not None and Path(path).is_file() else path
        for name, path in options.items()
        if name in ("palette", "hints")
    }
    return {
        "net": sha256_file(model.path),
        "style": options["style"],
        "temperature": options["temperature"],
        "lock": options["allow"],
        "ban": options["ban"],
        "replace": options["replace"],
        "leave_grey_below": options["min_confidence"],
        **digests,
    }


def make_file_coloriser(
    model: ColourModel,
    options: ColouriseOptions,
    *,
    pages: Pages = "all",
    on_result: Callable[[ImageData, ImageData, ColourPrediction, Path], str] | None = None,
) -> Callable[[Path, Path], Mapping[str, Any]]:
    """Return a function that colourises a source file, writes the target file and returns notes and changes.

    Both are lists of lines. The notes are about this image. The changes, such as a conversion of the colour space, are
    the same for many images. ``pages`` selects the pages or frames. ``on_result`` is called with the input, the
    colourised image, the prediction and the path of the target, for the first selected page, and returns a line that is
    appended to the notes.
    """

    def process_file(source: Path, target: Path) -> Mapping[str, Any]:
        notes: list[str] = []
        changes: list[str] = []
        results: list[str] = []

        def colourise_pages() -> Iterator[ImageData]:
            for number, image in enumerate(read_pages(source, pages), 1):
                if number == 1:
                    check_pages(source, target, image.num_frames)
                prediction = predict_colours(image.pixels, model, options)
                colourised = apply_prediction(image, prediction)
                notes.extend(f"{source}: {note}" for note in image.notes)
                changes.extend(image.changes)
                if on_result is not None and number == 1:
                    results.append(on_result(image, colourised, prediction, target))
                    if pages == "all" and image.num_frames > 1:
                        results.append("only the first page is explained")
                yield colourised

        def check_pages(source: Path, target: Path, count: int) -> None:
            if count == 1:
                return
            if pages != "all":
                which = "the first" if pages == "first" else f"page {pages}"
                notes.append(f"{source} has {count} frames or pages; only {which} was colourised")
            elif options.hints is not None:
                raise ChromaboxError(f"{source} has {count} frames or pages: hints apply to one; add --pages first")
            elif not can_hold_pages(target):
                raise ChromaboxError(
                    f"{source} has {count} frames or pages, and {target} can hold one: expected an output with the "
                    "suffix .tif, .png or .webp, or --pages first"
                )

        write_pages(target, colourise_pages(), quality=JPEG_QUALITY)
        return {"notes": list(dict.fromkeys(notes + results)), "changes": list(dict.fromkeys(changes))}

    return process_file
