"""Parallel batch colourisation of image files, which can be resumed after an interruption."""

import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chromabox import __version__
from chromabox.colour.constraints.constraints import ColourPrediction
from chromabox.colour.inference.network_input import is_black_and_white, is_in_colour, is_nearly_grey
from chromabox.colour.inference.predict import ColouriseOptions, apply_prediction, predict_colours
from chromabox.colour.weights.onnx_model import ColourModel
from chromabox.errors import ChromaboxError
from chromabox.io.images import ImageData, Pages, can_hold_pages, can_hold_xmp, check_file, read_pages, write_pages
from chromabox.io.manifest import Manifest, sha256_file
from chromabox.io.paths import check_writable
from chromabox.io.xmp import CHROMABOX_NS, IPTC_EXTENSION_NS, Property, edit_xmp, read_xmp
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
    left_out: bool = False
    """Whether the file was not to be colourised, so that nothing was written."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that ``process_file`` returned for the image. For a skipped image, they come from an earlier run."""


def colourise_batch(
    pairs: Sequence[tuple[Path, Path]],
    process_file: Callable[[Path, Path], Mapping[str, Any] | None],
    *,
    settings: Mapping[str, Any],
    workers: int = 1,
    manifest_path: Path | None = None,
    overwrite: bool = False,
    files_beside: Callable[[Path], Sequence[Path]] = lambda target: (),
) -> Generator[ColouriseResult, None, None]:
    """Process files in parallel and yield their results in order. A failure does not stop the batch.

    Args:
        pairs: sources and targets, as returned by ``map_outputs``.
        process_file: function that colourises a source, writes the target atomically, and returns metadata of the
            image as JSON values, or None if it wrote nothing because the source is not to be colourised. It is called
            from several threads.
        settings: JSON values that determine the result. An image made with other settings is processed again.
        workers: number of threads, at least 1. At most twice as many images are in progress or queued at any time.
        manifest_path: path of the manifest, which is used to skip finished images. With None, all images are processed.
        overwrite: process finished images again, and replace write-protected files.
        files_beside: function that returns the other files that ``process_file`` writes for a target. A finished image
            is processed again if they are missing.

    The batch stops on Ctrl-C or when the generator is closed, for example by ``contextlib.closing``. Images in progress
    are then finished, no other images are started, and the number of finished images is logged.

    Raise UsageError for fewer than one worker. Raise ChromaboxError for a manifest that cannot be read or written.
    """
    manifest = None if manifest_path is None else Manifest(manifest_path, settings)
    finished: list[Path] = []

    def process(pair: tuple[Path, Path]) -> ColouriseResult:
        # File errors and out-of-memory errors are returned as results. Other exceptions are bugs and propagate.
        source, target = pair
        beside = files_beside(target)
        try:
            check_file(source, "an image or a video")
            if manifest is not None:
                # Hash the source first. If it changes during processing, the next run processes it again.
                digest = sha256_file(source)
                metadata = None if overwrite else manifest.lookup(target, digest, beside)
                if metadata is not None:
                    finished.append(target)
                    return ColouriseResult(source, target, skipped=True, metadata=metadata)
            for path in () if overwrite else (target, *beside):
                check_writable(path)
            facts = process_file(source, target)
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
        finished.append(target)
        if facts is None:
            return ColouriseResult(source, target, left_out=True)
        if manifest is not None:
            manifest.add(target, digest, facts, beside)
        return ColouriseResult(source, target, metadata=facts)

    def report_if_stopped(results: Generator[ColouriseResult, None, None]) -> Generator[ColouriseResult, None, None]:
        try:
            yield from results
        except BaseException:  # KeyboardInterrupt, GeneratorExit and errors
            rerun = "process the remaining images" if manifest is not None else "process all images again"
            log.info(f"finished images: {len(finished)} of {len(pairs)}; run the same command to {rerun}")
            raise

    return report_if_stopped(map_ordered(pairs, process, workers=workers))


#: IPTC's term for images that were "edited using generative AI" (NewsCodes, version of 2024-10-23). The colours are not
#: recorded by a camera but predicted by a trained model. "Algorithmically-altered media" would not state this: its
#: examples are sharpening and noise reduction.
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
_SOURCE_TYPE, _ORIGINAL_SOURCE_TYPE = (IPTC_EXTENSION_NS, "DigitalSourceType"), (CHROMABOX_NS, "OriginalSourceType")
_VERSION, _MODEL, _SETTINGS = ((CHROMABOX_NS, name) for name in ("Version", "ModelSHA256", "Settings"))

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


def add_provenance(packet: bytes | None, settings: Mapping[str, Any]) -> bytes:
    """Return an XMP packet (None: a new one) with a statement of how the image was colourised.

    ``settings`` are the values of :func:`cache_key`. The statement consists of IPTC's digital source type, the version
    of the program, the digest of the model and the other settings as JSON. The digital source type of the original is
    kept under another name. Raise ValueError if the packet is not valid XMP.
    """
    names = {"lock": "allow", "leave_grey_below": "min_confidence"}
    used = {names.get(name, name): value for name, value in settings.items() if value not in (None, (), [])}
    used.pop("net")
    changes: dict[Property, str | None] = {
        _SOURCE_TYPE: DIGITAL_SOURCE_TYPE,
        _VERSION: __version__,
        _MODEL: settings["net"],
        _SETTINGS: json.dumps(used, sort_keys=True),
    }
    previous = (read_xmp(packet) if packet else {}).get(_SOURCE_TYPE)
    if previous not in (None, DIGITAL_SOURCE_TYPE):
        changes[_ORIGINAL_SOURCE_TYPE] = previous
    return edit_xmp(packet, changes)


def describe_provenance(settings: Mapping[str, Any]) -> str:
    """Return the statement of :func:`add_provenance` as one line of text, for the comment of a video."""
    statement = read_provenance(add_provenance(None, settings))
    return "; ".join(["colourised", *(f"{name}: {value}" for name, value in statement.items())])


def read_provenance(packet: bytes | None) -> dict[str, str]:
    """Return the statement of an XMP packet on how the image was made, by name. It is empty if there is no statement.

    Raise ValueError if the packet is not valid XMP.
    """
    properties = read_xmp(packet) if packet else {}
    names = {
        "digital source type": _SOURCE_TYPE,
        "Chromabox version": _VERSION,
        "SHA-256 of the model": _MODEL,
        "settings": _SETTINGS,
        "digital source type of the original": _ORIGINAL_SOURCE_TYPE,
    }
    return {name: properties[key] for name, key in names.items() if key in properties}


#: What is observed about an image, in the words of the summary of a batch.
IN_COLOUR, NEARLY_GREY, BLACK_AND_WHITE = "in colour", "nearly grey", "black and white"


class _InColourError(Exception):
    """An image is in colour and is to be left out."""


def make_file_coloriser(
    model: ColourModel,
    options: ColouriseOptions,
    *,
    settings: Mapping[str, Any] | None = None,
    quality: int | None = None,
    pages: Pages = "all",
    skip_colour: bool = False,
    on_result: Callable[[ImageData, ImageData, ColourPrediction, Path], str] | None = None,
    before_write: Callable[[Path], None] = lambda target: None,
) -> Callable[[Path, Path], Mapping[str, Any] | None]:
    """Return a function that colourises a source file, writes the target file and returns facts about the image.

    The facts are lists of lines: ``notes`` about this image, ``changes``, such as a conversion of the colour space,
    which are the same for many images, ``omitted``, the names of what the target does not contain, and ``observed``,
    ``IN_COLOUR`` if a page of the source is in colour, and ``NEARLY_GREY`` if all pages of the result are nearly grey
    (``BLACK_AND_WHITE`` if their pixels are black or white). With ``skip_colour``, a source with a page in colour is
    left out, and the result is None. ``settings`` are
    the values of :func:`cache_key`, which the target states in its XMP; with None, it states only the model.
    ``quality`` (1 to 100) applies to JPEG and WebP. With None, it is 98, and lossless WebP remains lossless. ``pages``
    selects the pages or frames. ``on_result`` is called with the input, the colourised image, the prediction and the
    path of the target, for the first selected page, and returns a line that is appended to the notes. ``before_write``
    is called with the path of the target before it is written.
    """
    stated = {"net": sha256_file(model.path)} if settings is None else settings

    def process_file(source: Path, target: Path) -> Mapping[str, Any] | None:
        facts: dict[str, list[str]] = {"notes": [], "changes": [], "omitted": [], "observed": []}
        notes, changes, omitted, observed = facts.values()
        grey_pages: list[str | None] = []  # For each page, why it stayed grey; None if colours can be seen.
        explained: list[tuple[ImageData, ImageData, ColourPrediction]] = []

        def colourise_pages() -> Iterator[ImageData]:
            for number, image in enumerate(read_pages(source, pages), 1):
                if number == 1:
                    check_pages(source, target, image.num_frames)
                if not image.is_grey and is_in_colour(image.pixels):
                    if skip_colour:
                        raise _InColourError
                    observed.append(IN_COLOUR)
                prediction = predict_colours(image.pixels, model, options)
                colourised = apply_prediction(image, prediction)
                reason = BLACK_AND_WHITE if is_black_and_white(image.pixels) else NEARLY_GREY
                grey_pages.append(reason if is_nearly_grey(colourised.pixels) else None)
                notes.extend(f"{source}: {note}" for note in image.notes)
                changes.extend(image.changes)
                metadata = replace(image.metadata, xmp=add_provenance(image.metadata.xmp, stated))
                if not can_hold_xmp(target, metadata.xmp):
                    metadata = replace(metadata, xmp=add_provenance(None, stated), extended_xmp=())
                    omitted.append("XMP")
                colourised = replace(colourised, metadata=metadata)
                if number == 1:
                    before_write(target)
                    if on_result is not None:
                        explained.append((image, colourised, prediction))
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
            elif on_result is not None:
                notes.append("only the first page is explained")

        try:
            omitted += write_pages(
                target, colourise_pages(), quality=quality or JPEG_QUALITY, keep_lossless=quality is None
            )
        except _InColourError:
            return None
        if None not in grey_pages:
            observed.append(BLACK_AND_WHITE if set(grey_pages) == {BLACK_AND_WHITE} else NEARLY_GREY)
        notes += [on_result(*result, target) for result in explained if on_result is not None]
        return {name: list(dict.fromkeys(lines)) for name, lines in facts.items()}

    return process_file
