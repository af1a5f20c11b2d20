"""The commands ``colour`` and ``score``."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from chromabox.cli.options import Float, Integer, OutputPath, option, print_line
from chromabox.errors import UsageError

if TYPE_CHECKING:
    from chromabox.colour.inference.predict import ColouriseOptions


@dataclass(frozen=True)
class ColourArgs:
    model: Annotated[Path | None, option("PATH", "the bundled photo model")] = None
    """A run folder, a checkpoint or an exported .onnx file."""
    style: Literal["natural", "vivid"] = "natural"
    """natural: conservative colours; vivid: up-weights rare colours."""
    temperature: Annotated[float | None, option("X", "set by the style")] = None
    """0 selects the most likely colour of each pixel, 1 the mean of all colours."""
    palette: Annotated[str | None, option("NAME|PATH", "any colour")] = None
    """Use only the colours of a palette: a .json, .npy or .gpl file, horse24, cifar24, or an image to fit one to."""
    allow: Annotated[tuple[str, ...], option("COLOUR ...", "all")] = ()
    """Use only these colours (name or #rrggbb); with --palette, the palette colours nearest to them."""
    ban: Annotated[tuple[str, ...], option("COLOUR ...", "none")] = ()
    """Never use these colours."""
    replace: Annotated[tuple[str, ...], option("A=B ...", "none")] = ()
    """Use colour B where colour A is predicted."""
    hints: Annotated[Path | None, option("PATH", "none")] = None
    """Transparent PNG with colour hints; hints are applied exactly and propagated to similar regions."""
    min_confidence: Float = 0.0
    """Keep pixels grey where the confidence is below this threshold (0 to 1)."""


@dataclass(frozen=True)
class FolderArgs:
    match: Annotated[tuple[str, ...], option("PATTERN ...", "all images")] = ()
    """Process only images that match a pattern, such as *.jpg or scans/*."""
    recursive: bool = True
    """Include sub-folders."""
    overwrite: bool = False
    """Reprocess images that are already up to date; by default they are skipped."""
    workers: Integer = 1
    """Number of images processed in parallel."""
    contact_sheet: Annotated[Path | None, option("PATH", "none")] = None
    """Also write an overview image that shows every image before and after."""


@dataclass(frozen=True)
class VideoArgs:
    temporal_smoothing: Annotated[float | None, option("X", "0.8")] = None
    """Weight of the previous frames in static regions, 0 <= X < 1."""


def colour(
    inputs: Annotated[Positional[tuple[Path, ...]], option("PATH ...", "required")] = (),
    /,
    *,
    output: OutputPath,
    explain: bool = False,
    colours: Annotated[OmitArgPrefixes[ColourArgs], arg(name="colour")] = ColourArgs(),
    folder: OmitArgPrefixes[FolderArgs] = FolderArgs(),
    video: OmitArgPrefixes[VideoArgs] = VideoArgs(),
) -> int:
    """Colourise images, folders of images and videos.

    Size, bit depth, metadata and luminance of the input are preserved.

    Examples:
      chromabox colour portrait.jpg -o portrait-colour.jpg
      chromabox colour scans/ -o coloured/ --style vivid --contact-sheet overview.jpg
      chromabox colour house.png -o house-colour.png --ban purple --replace green=olive
      chromabox colour film.mp4 -o film-colour.mp4

    Args:
        inputs: Images, folders, or one video (.mp4, .mov, .mkv).
        output: Output file for a single image or video, otherwise an output folder.
        explain: Also write NAME.explained.png: confidence, entropy, alternatives at selected points, colours used.
    """
    if not inputs:
        raise UsageError("no input given: expected at least one image, folder or video")
    from chromabox.io.video import VIDEO_SUFFIXES

    videos = [path for path in inputs if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()]
    if not videos:
        return _colour_images(inputs, output, colours, folder, explain=explain)
    if len(inputs) > 1:
        raise UsageError(f"{videos[0]}: a video is processed alone, expected no other inputs")
    return _colour_video(inputs[0], output, colours, video.temporal_smoothing)


def _parse_colour_args(colours: ColourArgs) -> "tuple[dict[str, Any], ColouriseOptions]":
    """Return the arguments that determine the colours, apart from the model, and the options parsed from them."""
    from chromabox.colour.api import parse_options

    arguments = {name: value for name, value in vars(colours).items() if name != "model"}
    return arguments, parse_options(**arguments, prefix="--")


def _colour_images(
    inputs: tuple[Path, ...], output: Path, colours: ColourArgs, folder: FolderArgs, *, explain: bool
) -> int:
    from contextlib import closing

    from chromabox.colour.inference.batch import cache_key, colourise_batch, make_file_coloriser
    from chromabox.colour.inference.load import open_model
    from chromabox.engine.logger import progress_bar
    from chromabox.io.manifest import MANIFEST_NAME
    from chromabox.io.paths import map_outputs
    from chromabox.report.contact_sheet import draw_contact_sheets

    arguments, options = _parse_colour_args(colours)
    pairs = map_outputs(inputs, output, match=folder.match, recursive=folder.recursive)
    single = pairs[0][1] == output
    if options.hints is not None and len(pairs) > 1:
        raise UsageError(f"--hints: {options.hints} belongs to one image, but {len(pairs)} images are to be processed")
    if explain:  # Imported only on demand: matplotlib takes long to import.
        from chromabox.report.explain import write_explanation
    model = open_model(colours.model)
    work = make_file_coloriser(model, options, on_result=write_explanation if explain else None)
    manifest = None if single or folder.overwrite else output / MANIFEST_NAME
    # The digests of the model and of files are needed only for the manifest.
    settings = {} if manifest is None else cache_key(model, arguments)
    results = []
    batch = colourise_batch(pairs, work, settings=settings, workers=folder.workers, manifest_path=manifest)
    with progress_bar("colourising", len(pairs), unit="images") as tick, closing(batch):
        for result in batch:
            tick()
            results.append(result)
            if result.error is None:
                print_line(f"{result.target}{' (up to date)' if result.skipped else ''}")
                for note in result.metadata.get("notes", ()):
                    print_line(f"  {note}")
    done = [(result.source, result.target) for result in results if result.error is None]
    if folder.contact_sheet is not None and done:
        for path in draw_contact_sheets(sorted(done), folder.contact_sheet):
            print_line(str(path))
    failed = [result for result in results if result.error is not None]
    for result in failed:
        print(f"chromabox: skipped: {result.error}", file=sys.stderr)
    return 1 if failed else 0


def _colour_video(source: Path, target: Path, colours: ColourArgs, smoothing: float | None) -> int:
    from chromabox.colour.constraints.constraints import ColourConstraints
    from chromabox.colour.inference.load import open_model
    from chromabox.colour.inference.predict import predict_chroma
    from chromabox.colour.inference.video import DEFAULT_SMOOTHING, colourise_video

    _, options = _parse_colour_args(colours)
    model = open_model(colours.model)
    if options.constraints != ColourConstraints() or options.hints is not None:
        raise UsageError(f"{source}: colour constraints and hints are not supported for videos")
    summary = colourise_video(
        source,
        target,
        lambda frame: predict_chroma(frame, model, options),
        smoothing=DEFAULT_SMOOTHING if smoothing is None else smoothing,
    )
    print_line(f"{target}: {summary.num_frames} frames, {summary.width} × {summary.height}")
    for stream in summary.skipped_streams:
        print_line(f"  not copied: {stream}")
    return 0


def score(
    originals: Annotated[Positional[Path], option("ORIGINALS")],
    coloured: Annotated[Positional[Path], option("COLOURED")],
    /,
    *,
    output: OutputPath = Path("scores"),
) -> int:
    """Compare colourised images with their originals.

    Reports PSNR, SSIM, ΔE2000, colourfulness and ΔL*, with greyscale as the baseline.

    Examples:
      chromabox score originals/ coloured/ -o scores/

    Args:
        originals: A colour image, or a folder of images.
        coloured: The colourised image, or a folder with the same file names.
        output: Folder for scores.csv and scores.json.
    """
    from chromabox.report.scores import report_scores

    return 1 if report_scores(originals, coloured, output).failed else 0
