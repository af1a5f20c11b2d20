"""The verbs that colour pictures and films, judge the result, and hand the net on."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import OmitArgPrefixes, Positional

from chromabox.cli.options import OptionalOutputPath, OutputPath, print_line
from chromabox.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from chromabox.colour.constraints.constraints import ColourPrediction
    from chromabox.colour.inference.predict import ColouriseOptions, ColourModel
    from chromabox.io.images import ImageData


@dataclass(frozen=True)
class ColourArgs:
    """What to colour, into what, and how."""

    inputs: Positional[tuple[Path, ...]]
    """Pictures, folders of pictures, or one film (.mp4, .mov, .mkv)."""
    output: OutputPath
    """A file name for one picture or film, else a folder."""
    net: Path | None = None
    """A run folder, checkpoint or exported .onnx; the shipped net if left out."""
    style: Literal["natural", "vivid"] = "natural"
    """natural: likely colours, careful where it does not know; vivid: rare colours count more."""
    temperature: float | None = None
    """Instead of the style's: 0 takes the likeliest colour of each place, 1 the mean of all."""
    palette: str | None = None
    """Only these colours: a palette file (.json, .npy, .gpl), a shipped one, or a picture to take them from."""
    allow: tuple[str, ...] = ()
    """Only these colours, by name or #rrggbb; of a --palette, those nearest to them."""
    ban: tuple[str, ...] = ()
    """Never these colours."""
    replace: tuple[str, ...] = ()
    """A=B: what would become A becomes B."""
    hints: Path | None = None
    """A transparent picture with painted dots or strokes: these hold where they are and spread to alike places."""
    min_confidence: float = 0.0
    """Leave places grey about which the net is less certain than this (0 to 1)."""
    explain: bool = False
    """Also write NAME.explained.png: confidence, entropy, the likeliest colours at some points, swatches."""
    match: tuple[str, ...] = ()
    """In folders only files that fit one of these patterns, as *.jpg or scans/*."""
    recursive: bool = True
    """Also what lies in sub-folders."""
    workers: int = 1
    """Pictures coloured at the same time."""
    overwrite: bool = False
    """Also what is done already: else a folder's pictures are skipped while source, settings and result are as then."""
    contact_sheet: Path | None = None
    """Also draw before and after of all pictures into this picture."""
    temporal_smoothing: float | None = None
    """Of films: how much of the past a still place keeps, 0 to below 1."""


def colour(*, options: OmitArgPrefixes[ColourArgs]) -> int:
    """Colour pictures, folders of pictures and films; size, depth, metadata and luminance stay as they are.

    chromabox colour portrait.jpg -o portrait-in-colour.jpg

    chromabox colour old/ -o coloured/ --style vivid --contact-sheet sheet.jpg

    chromabox colour house.png -o out.png --ban purple --replace green=olive --hints dots.png --explain

    chromabox colour film.mp4 -o film-in-colour.mp4
    """
    if not options.inputs:
        raise UsageError("inputs: name at least one picture, folder or film to colour")
    from chromabox.colour.inference.batch import parse_options
    from chromabox.colour.weights.checkpoint import load_model
    from chromabox.io.video import VIDEO_SUFFIXES

    wishes = parse_options(options)
    films = [path for path in options.inputs if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()]
    if not films:
        return _colour_images(options, wishes)
    if len(options.inputs) > 1:
        raise UsageError(f"{films[0]}: is a film; films are coloured one at a time, without other inputs")
    return _colour_video(options, load_model(options.net), wishes)


def _colour_images(options: ColourArgs, colourise_options: "ColouriseOptions") -> int:
    from contextlib import closing

    from chromabox.colour.inference.batch import cache_key, colourise_batch, make_file_coloriser
    from chromabox.colour.weights.checkpoint import load_model
    from chromabox.engine.logger import progress_bar
    from chromabox.io.manifest import MANIFEST_NAME
    from chromabox.io.paths import map_outputs
    from chromabox.report.contact_sheet import draw_contact_sheets

    pairs = map_outputs(options.inputs, options.output, match=options.match, recursive=options.recursive)
    single = pairs[0][1] == options.output
    if options.hints is not None and len(pairs) > 1:
        raise UsageError(f"hints: {options.hints} is painted for one picture; {len(pairs)} are to be coloured")
    work = make_file_coloriser(
        load_model(options.net), colourise_options, on_result=_explanation_writer() if options.explain else None
    )
    record = None if single or options.overwrite else options.output / MANIFEST_NAME
    # Digests of the net and of files are for the record alone.
    settings = {} if record is None else cache_key(options)
    outcomes = []
    batch = colourise_batch(
        pairs, work, settings=settings, workers=options.workers, manifest_path=record, log=print_line
    )
    with progress_bar("colouring", len(pairs), unit="pictures") as tick, closing(batch):
        for outcome in batch:
            tick()
            outcomes.append(outcome)
            if outcome.error is None:
                print_line(f"{outcome.target}{' (done before)' if outcome.skipped else ''}")
                for note in outcome.metadata.get("notes", ()):
                    print_line(f"  {note}")
    done = [(outcome.source, outcome.target) for outcome in outcomes if outcome.error is None]
    if options.contact_sheet is not None and done:
        for sheet in draw_contact_sheets(sorted(done), options.contact_sheet):
            print_line(str(sheet))
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in failed:
        print(f"chromabox: not coloured: {outcome.error}", file=sys.stderr)
    return 1 if failed else 0


def _explanation_writer() -> "Callable[[ImageData, ImageData, ColourPrediction, Path], str]":
    # Imported only on demand: matplotlib takes long to import.
    from chromabox.report.explain import write_explanation

    return write_explanation


def _colour_video(options: ColourArgs, model: "ColourModel", colourise_options: "ColouriseOptions") -> int:
    from chromabox.colour.constraints.constraints import ColourConstraints
    from chromabox.colour.inference.predict import predict_chroma
    from chromabox.colour.inference.video import DEFAULT_SMOOTHING, colourise_video

    if colourise_options.constraints != ColourConstraints() or colourise_options.hints is not None:
        raise UsageError(f"{options.inputs[0]}: is a film; palette control and hints are for pictures")
    summary = colourise_video(
        options.inputs[0],
        options.output,
        lambda frame: predict_chroma(frame, model, colourise_options),
        smoothing=DEFAULT_SMOOTHING if options.temporal_smoothing is None else options.temporal_smoothing,
    )
    print_line(f"{options.output}: {summary.num_frames} frames, {summary.width} × {summary.height}")
    for left_out in summary.dropped_streams:
        print_line(f"  left out: {left_out}")
    return 0


def score(
    originals: Positional[Path],
    coloured: Positional[Path],
    /,
    *,
    output: OptionalOutputPath = None,
) -> int:
    """Judge coloured pictures by their originals: PSNR, SSIM, ΔE2000, colourfulness, ΔL*, beside plain grey.

    Example: chromabox score originals/ coloured/ -o scores/

    Args:
        originals: A picture in colour, or a folder of them.
        coloured: The coloured picture, or a folder with the same names inside.
        output: Folder for scores.csv and scores.json; scores/ if left out.
    """
    from chromabox.report.scores import report_scores

    card = report_scores(originals, coloured, output or Path("scores"))
    return 1 if card.failed else 0
