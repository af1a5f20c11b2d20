"""The commands ``colour`` and ``score``."""

from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from chromabox.cli.options import Float, Integer, OutputPath, log, option
from chromabox.errors import UsageError

if TYPE_CHECKING:
    from chromabox.colour.inference.predict import ColouriseOptions
    from chromabox.io.images import Pages


@dataclass(frozen=True)
class ColourArgs:
    style: Literal["natural", "vivid"] = "natural"
    """natural: conservative colours; vivid: rare colours have a larger weight."""
    temperature: Annotated[float | None, option("X", "set by the style")] = None
    """0 selects the most likely colour of each pixel. 1 uses the mean of all colours, weighted by probability."""
    palette: Annotated[str | None, option("NAME|PATH", "any colour")] = None
    """Use only the colours of a palette: horse24, cifar24, a .json, .npy or .gpl file, or an image to fit a
    palette to."""
    allow: Annotated[tuple[str, ...], option("COLOUR ...", "all")] = ()
    """Use only these colours (name or #rrggbb). With --palette, use only the palette colours nearest to them."""
    ban: Annotated[tuple[str, ...], option("COLOUR ...", "none")] = ()
    """Never use these colours."""
    replace: Annotated[tuple[str, ...], option("A=B ...", "none")] = ()
    """Use colour B where colour A is predicted."""
    hints: Annotated[Path | None, option("PATH", "none")] = None
    """Transparent PNG file with colour hints, for a single image. Hints are applied exactly and propagated to similar
    regions."""
    min_confidence: Float = 0.0
    """Keep pixels grey where the confidence is below this threshold (0 to 1)."""


@dataclass(frozen=True)
class FolderArgs:
    match: Annotated[tuple[str, ...], option("PATTERN ...", "all images")] = ()
    """Process only images that match a pattern, such as *.jpg or scans/*."""
    recursive: bool = True
    """Include subfolders."""
    overwrite: bool = False
    """Process all images again. By default, images whose output is up to date are skipped."""
    workers: Integer = 1
    """Number of images to process in parallel."""
    contact_sheet: Annotated[Path | None, option("PATH", "none")] = None
    """Also write an overview of all images before and after colourisation."""


def colour(
    inputs: Annotated[Positional[tuple[Path, ...]], option("PATH ...", "required")] = (),
    /,
    *,
    output: OutputPath,
    model: Annotated[Path | None, option("PATH", "the bundled photo model")] = None,
    pages: Annotated[str, option("all|first|N", "all")] = "all",
    explain: bool = False,
    temporal_smoothing: Float = 0.8,
    colours: Annotated[OmitArgPrefixes[ColourArgs], arg(name="colour")] = ColourArgs(),
    folder: OmitArgPrefixes[FolderArgs] = FolderArgs(),
) -> int:
    """Colourise images, folders of images and videos.

    The size, bit depth, metadata and luminance of the input are preserved.
    The output is sRGB: values with another colour profile are converted.

    Examples:
      chromabox colour portrait.jpg -o portrait-colour.jpg
      chromabox colour scans/ -o coloured/ --style vivid --contact-sheet all.jpg
      chromabox colour house.png -o coloured.png --ban purple --replace green=olive
      chromabox colour film.mp4 -o film-colour.mp4

    Args:
        inputs: Images, folders, or one video (.mp4, .mov, .mkv).
        output: Output file for a single image or video, otherwise an output folder.
        model: A run folder, a checkpoint or an exported .onnx file.
        pages: For files with several pages or frames (TIFF, animated GIF, PNG and WebP): all, only the first, or only
            page N. All pages are written to one file. The frames of a GIF are written as an animated PNG.
        explain: Also write NAME.explained.png, which shows the confidence, the entropy, the most likely colours at
            selected points, and the colours of the result.
        temporal_smoothing: For a video: weight of the previous frames in static regions, 0 <= X < 1.
    """
    if not inputs:
        raise UsageError("no input given: expected at least one image, folder or video")
    selected_pages = _parse_pages(pages)
    from chromabox.colour.api import parse_options
    from chromabox.colour.inference.batch import cache_key, colourise_batch, make_file_coloriser
    from chromabox.colour.inference.load import open_model
    from chromabox.engine.logger import progress_bar
    from chromabox.io.manifest import MANIFEST_NAME
    from chromabox.io.paths import map_outputs
    from chromabox.io.video import VIDEO_SUFFIXES
    from chromabox.report.contact_sheet import draw_contact_sheets

    videos = [path for path in inputs if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()]
    if videos and len(inputs) > 1:
        raise UsageError(f"{videos[0]}: is a video; expected no other inputs")
    options = parse_options(**vars(colours), prefix="--")
    if videos:
        return _colour_video(inputs[0], output, model, options, temporal_smoothing)
    pairs = map_outputs(inputs, output, match=folder.match, recursive=folder.recursive)
    if options.hints is not None and len(pairs) > 1:
        raise UsageError(
            f"--hints: {options.hints} can be applied to only one image, but {len(pairs)} images were given"
        )
    if explain:  # Imported only if needed, because importing matplotlib is slow.
        from chromabox.report.explain import write_explanation
    network = open_model(model)
    work = make_file_coloriser(network, options, pages=selected_pages, on_result=write_explanation if explain else None)
    manifest = None if pairs[0][1] == output or folder.overwrite else output / MANIFEST_NAME
    # The digests of the model and the files are needed only for the manifest.
    settings = {} if manifest is None else cache_key(network, vars(colours)) | {"pages": pages}
    results = []
    batch = colourise_batch(pairs, work, settings=settings, workers=folder.workers, manifest_path=manifest)
    with progress_bar("colourising", len(pairs), unit="images") as tick, closing(batch):
        for result in batch:
            tick()
            results.append(result)
            if result.error is None:
                notes = (f"\n  {note}" for note in result.metadata.get("notes", ()))
                log.info(f"{result.target}{' (up to date)' if result.skipped else ''}{''.join(notes)}")
    changes = Counter(change for result in results for change in result.metadata.get("changes", ()))
    for change, count in changes.items():
        log.info(f"{change} (images: {count})")
    done = sorted((result.source, result.target) for result in results if result.error is None)
    if folder.contact_sheet is not None and done:
        for path in draw_contact_sheets(done, folder.contact_sheet):
            log.info(path)
    for result in results:
        if result.error is not None:
            log.warning(f"failed: {result.error}")
    return 0 if len(done) == len(results) else 1


def _parse_pages(text: str) -> "Pages":
    if text in ("all", "first"):
        return "all" if text == "all" else "first"
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--pages is {text!r}: expected all, first, or the number of a page, from 1")
    return int(text)


def _colour_video(
    source: Path, target: Path, model_path: Path | None, options: "ColouriseOptions", smoothing: float
) -> int:
    from chromabox.colour.constraints.constraints import ColourConstraints
    from chromabox.colour.inference.load import open_model
    from chromabox.colour.inference.predict import predict_chroma
    from chromabox.colour.inference.video import colourise_video

    model = open_model(model_path)
    if options.constraints != ColourConstraints() or options.hints is not None:
        raise UsageError(f"{source}: colour constraints and hints are not supported for videos")
    summary = colourise_video(source, target, lambda frame: predict_chroma(frame, model, options), smoothing=smoothing)
    log.info(f"{target}: {summary.num_frames} frames, {summary.width} × {summary.height}")
    for stream in summary.skipped_streams:
        log.info(f"  not copied: {stream}")
    return 0


def score(
    originals: Annotated[Positional[Path], option("ORIGINALS")],
    coloured: Annotated[Positional[Path], option("COLOURED")],
    /,
    *,
    output: OutputPath = Path("scores"),
) -> int:
    """Compare colourised images with their originals.

    Reports PSNR, SSIM, ΔE2000, colourfulness and ΔL*. Greyscale versions of the originals are scored as a baseline.

    Examples:
      chromabox score originals/ coloured/ -o scores/

    Args:
        originals: A colour image, or a folder of images.
        coloured: The colourised image, or a folder with the same file names.
        output: Folder for scores.csv and scores.json.
    """
    from chromabox.report.scores import report_scores

    return 1 if report_scores(originals, coloured, output).failed else 0
