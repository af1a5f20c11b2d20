"""The commands ``colour``, ``verify`` and ``score``."""

from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from chromabox.cli.options import Float, Integer, OutputPath, log, log_lines, option
from chromabox.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chromabox.colour.inference.batch import ColouriseResult
    from chromabox.colour.inference.predict import ColouriseOptions
    from chromabox.colour.weights.onnx_model import ColourModel
    from chromabox.io.images import Pages


@dataclass(frozen=True)
class ColourArgs:
    style: Literal["natural", "vivid"] = "natural"
    """natural: pale where the colours are uncertain; vivid: as colourful as colour photographs."""
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
    skip_colour: bool = False
    """Leave out images that are already in colour. By default, their colours are replaced. A toned (sepia) photograph
    is not in colour."""
    overwrite: bool = False
    """Process all images again, and replace existing files. By default, images whose output is up to date are skipped,
    and files that Chromabox did not write are not replaced."""
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
    quality: Annotated[int | None, option("N", "98, or lossless for lossless WebP")] = None,
    pages: Annotated[str, option("all|first|N", "all")] = "all",
    explain: bool = False,
    temporal_smoothing: Annotated[float | None, option("X", "0.8")] = None,
    colours: Annotated[OmitArgPrefixes[ColourArgs], arg(name="colour")] = ColourArgs(),
    folder: OmitArgPrefixes[FolderArgs] = FolderArgs(),
) -> int:
    """Colourise images, folders of images and videos.

    The size, bit depth, metadata and luminance of the input are preserved. The output is sRGB: values with another
    colour profile are converted. What an output cannot contain is listed at the end. The XMP metadata of each image
    state that it was colourised (see chromabox verify).

    Examples:
      chromabox colour portrait.jpg -o portrait-colour.jpg
      chromabox colour scans/ -o coloured/ --style vivid --contact-sheet all.jpg
      chromabox colour house.png -o coloured.png --ban purple --replace green=olive
      chromabox colour film.mp4 -o film-colour.mp4

    Args:
        inputs: Images, videos and folders. Files in folders are recognised by their content.
        output: Output file for a single image or video (.mp4, .m4v, .mov, .mkv), otherwise an output folder.
        model: A run folder, a checkpoint or an exported .onnx file.
        quality: Quality of JPEG and WebP outputs, 1 to 100.
        pages: For files with several pages or frames (TIFF, animated GIF, PNG and WebP): all, only the first, or only
            page N. All pages are written to one file. The frames of a GIF are written as an animated PNG.
        explain: Also write OUTPUT.explained.png for every output, which shows the confidence, the entropy, the most
            likely colours at selected points, and the colours of the result.
        temporal_smoothing: For a video: weight of the previous frames in static regions, 0 <= X < 1.
    """
    if not inputs:
        raise UsageError("no input given: expected at least one image, folder or video")
    selected_pages = _parse_pages(pages)
    from chromabox.colour.api import parse_options
    from chromabox.colour.constraints.constraints import ColourConstraints
    from chromabox.colour.inference.batch import cache_key, colourise_batch, make_file_coloriser
    from chromabox.colour.inference.load import open_model
    from chromabox.colour.inference.video import DEFAULT_SMOOTHING
    from chromabox.engine.logger import progress_bar
    from chromabox.io.images import LOSSY_SUFFIXES
    from chromabox.io.kinds import count_skipped
    from chromabox.io.manifest import MANIFEST_NAME, Manifest
    from chromabox.io.paths import check_outputs, name_outputs, select_inputs
    from chromabox.report.contact_sheet import contact_sheet_paths, draw_contact_sheets

    options = parse_options(**vars(colours), prefix="--")
    settings_files = [Path(path) for path in (model, colours.palette, colours.hints) if path is not None]
    if quality is not None and not 1 <= quality <= 100:
        raise UsageError(f"--quality is {quality}: expected 1 to 100")
    if temporal_smoothing is not None and not 0 <= temporal_smoothing < 1:
        raise UsageError(f"--temporal-smoothing is {temporal_smoothing}: expected at least 0 and less than 1")
    selection = select_inputs(inputs, output, match=folder.match, recursive=folder.recursive)
    pairs = name_outputs(selection, output)
    has_folder = any(path.is_dir() for path in inputs)
    is_lossy = any(target.suffix.lower() in LOSSY_SUFFIXES for _, target in pairs)
    for name, is_given, applies, needed in (
        ("--quality", quality is not None, is_lossy, "a JPEG or WebP output"),
        ("--pages", pages != "all", selection.images, "an image"),
        ("--temporal-smoothing", temporal_smoothing is not None, selection.videos, "a video"),
        ("--explain", explain, selection.images, "an image"),
        ("--contact-sheet", folder.contact_sheet is not None, selection.images, "an image"),
        ("--skip-colour", folder.skip_colour, selection.images, "an image"),
        ("--match", folder.match, has_folder, "a folder"),
        ("--no-recursive", not folder.recursive, has_folder, "a folder"),
    ):
        if is_given and not applies:
            raise UsageError(f"{name}: has no effect on the given inputs; expected {needed}")
    if selection.videos and (options.constraints != ColourConstraints() or options.hints is not None):
        raise UsageError(f"{selection.videos[0][0]}: colour constraints and hints are not supported for videos")
    smoothing = DEFAULT_SMOOTHING if temporal_smoothing is None else temporal_smoothing
    videos = {source for source, _ in selection.videos}
    image_pairs = [pair for pair in pairs if pair[0] not in videos]
    if options.hints is not None and len(pairs) > 1:
        raise UsageError(
            f"--hints: {options.hints} can be applied to only one image, but {len(pairs)} images were given"
        )
    write_figure = None
    explanations: dict[Path, list[Path]] = {target: [] for _, target in pairs}  # A video has no explanation.
    if explain:  # Imported only if needed, because importing matplotlib is slow.
        from chromabox.report.explain import explanation_path, write_explanation

        write_figure = write_explanation
        explanations |= {target: [explanation_path(target)] for _, target in image_pairs}
    sheets = [] if folder.contact_sheet is None else contact_sheet_paths(folder.contact_sheet, len(image_pairs))
    manifest = None if pairs[0][1] == output else Manifest(output / MANIFEST_NAME, {})
    check_outputs(
        [path for target, figures in explanations.items() for path in (target, *figures)] + sheets,
        [*(source for source, _ in pairs), *settings_files],
        overwrite=folder.overwrite,
        manifest=manifest,
    )
    network = open_model(model)
    settings = {**cache_key(network, vars(colours)), "quality": quality}

    def claim(*paths: Path) -> None:
        if manifest is not None:
            for path in paths:
                manifest.claim(path)

    def before_write(target: Path) -> None:
        claim(target, *explanations[target])

    colour_image = make_file_coloriser(
        network,
        options,
        settings=settings,
        quality=quality,
        pages=selected_pages,
        skip_colour=folder.skip_colour,
        on_result=write_figure,
        before_write=before_write,
    )

    def process_file(source: Path, target: Path) -> "Mapping[str, Any] | None":
        if source not in videos:
            return colour_image(source, target)
        before_write(target)
        return _colour_video(source, target, network, options, smoothing, settings, show_progress=len(pairs) == 1)

    results = []
    batch = colourise_batch(
        pairs,
        process_file,
        settings={**settings, "pages": pages, "temporal_smoothing": smoothing},
        workers=folder.workers,
        manifest_path=None if manifest is None else output / MANIFEST_NAME,
        overwrite=folder.overwrite,
        files_beside=explanations.__getitem__,
    )
    with progress_bar("colourising", len(pairs), unit="images") as tick, closing(batch):
        for result in batch:
            tick()
            results.append(result)
            if result.error is None and not result.left_out:
                log.info(f"{result.target}{' (up to date)' if result.skipped else ''}")
                log_lines(*(f"  {note}" for note in result.metadata.get("notes", ())))
    changes = Counter(change for result in results for change in result.metadata.get("changes", ()))
    log_lines(*(f"{change} (images: {count})" for change, count in changes.items()))
    omitted = Counter(name for result in results for name in result.metadata.get("omitted", ()))
    if omitted:
        log_lines("not contained in the outputs: " + ", ".join(f"{name} ({count})" for name, count in omitted.items()))
    log_lines(*_describe_observations(results, colours.style))
    failures = [result.error for result in results if result.error is not None] + selection.unreadable
    done = sorted((result.source, result.target) for result in results if not (result.error or result.left_out))
    drawn = [pair for pair in done if pair[0] not in videos]
    if folder.contact_sheet is not None and drawn:
        claim(*sheets)
        for path in draw_contact_sheets(drawn, folder.contact_sheet):
            log.info(path)
    if has_folder:
        skipped = sum(result.skipped for result in results)
        counts = {"colourised": len(done) - skipped, "up to date": skipped, "failed": len(failures)}
        if num_left_out := sum(result.left_out for result in results):
            counts["left out"] = num_left_out
        counts["not processed"] = sum(map(len, selection.skipped.values()))
        log_lines(", ".join(f"{name}: {count}" for name, count in counts.items()), *count_skipped(selection.skipped))
    for failure in failures:
        log.warning(f"failed: {failure}")
    return 1 if failures else 0


def _describe_observations(results: "Sequence[ColouriseResult]", style: str) -> list[str]:
    """Return a line for each kind of image of which the user should know: in colour, left out or nearly grey."""
    from chromabox.colour.inference.batch import BLACK_AND_WHITE, IN_COLOUR, NEARLY_GREY

    in_colour, nearly_grey, black_and_white = (
        [result.source for result in results if kind in result.metadata.get("observed", ())]
        for kind in (IN_COLOUR, NEARLY_GREY, BLACK_AND_WHITE)
    )
    options = ["--style vivid"] * (style != "vivid") + ["--hints"] * (len(results) == 1)
    advice = f"; try {' or '.join(options)}" if options else ""
    lines = (
        (in_colour, "already in colour, and their colours were replaced: {}; to leave them out, use --skip-colour"),
        (
            [result.source for result in results if result.left_out],
            "left out, because they are already in colour: {}",
        ),
        (nearly_grey, f"nearly grey, because the model found no likely colours: {{}}{advice}"),
        (
            black_and_white,
            "nearly grey, because black and white pixels have no colours at their lightness: {}; "
            "scan in greyscale, or make the image smaller so that it has grey levels",
        ),
    )
    return [line.format(_count_and_name(paths)) for paths, line in lines if paths]


def _count_and_name(paths: list[Path]) -> str:
    """Return the number of files and the paths of the first five."""
    names = ", ".join(str(path) for path in paths[:5])
    return f"{len(paths)} ({names}{', …' * (len(paths) > 5)})"


def _parse_pages(text: str) -> "Pages":
    if text in ("all", "first"):
        return "all" if text == "all" else "first"
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--pages is {text!r}: expected all, first, or the number of a page, from 1")
    return int(text)


def _colour_video(
    source: Path,
    target: Path,
    model: "ColourModel",
    options: "ColouriseOptions",
    smoothing: float,
    settings: "Mapping[str, Any]",
    show_progress: bool,
) -> dict[str, list[str]]:
    """Colourise a video and return notes about it, as the function for images does."""
    from chromabox.colour.inference.batch import describe_provenance
    from chromabox.colour.inference.predict import predict_chroma
    from chromabox.colour.inference.video import colourise_video

    summary = colourise_video(
        source,
        target,
        lambda frame: predict_chroma(frame, model, options),
        smoothing=smoothing,
        settings=settings,
        comment=describe_provenance({**settings, "temporal_smoothing": smoothing}),
        show_progress=show_progress,
    )
    return {"notes": [f"{summary.num_frames} frames, {summary.width} × {summary.height}"]}


def verify(
    original: Annotated[Positional[Path], option("ORIGINAL")],
    coloured: Annotated[Positional[Path], option("COLOURED")],
    /,
    *,
    tolerance: Float = 0.5,
) -> int:
    """Check that a colourised image kept the original lightness.

    Prints the mean and maximum difference of L* (0 to 100), also for each cell of a 3 × 3 grid, and what the metadata
    of the colourised image state. The exit code is 1 if the mean difference exceeds the tolerance.

    Examples:
      chromabox verify portrait.jpg portrait-colour.jpg

    Args:
        original: The image before colourisation.
        coloured: The colourised image, of the same size.
        tolerance: Largest accepted mean difference of L*.
    """
    from chromabox.colour.evaluation.image_scores import compare_lightness, first_page_notes
    from chromabox.colour.inference.batch import read_provenance
    from chromabox.io.images import read_image

    if not 0 <= tolerance <= 100:
        raise UsageError(f"--tolerance is {tolerance}: expected 0 to 100")
    before, after = read_image(original), read_image(coloured)
    change = compare_lightness(before, after, f"{coloured} and {original}")
    is_kept = change.mean <= tolerance
    verdict = "the lightness is that of the original" if is_kept else "the lightness differs from that of the original"
    log_lines(*first_page_notes({original: before, coloured: after}))
    log.info(f"difference of L*: mean {change.mean:.3f}, maximum {change.maximum:.3f}")
    for row, regions in zip(("top", "middle", "bottom"), change.regions, strict=False):
        if regions:  # An image with fewer than three rows has fewer regions.
            log.info(f"  {row:8}" + "".join(f"  mean {mean:.3f}, maximum {peak:.3f}" for mean, peak in regions))
    log.info(f"{verdict}: the mean is {'at most' if is_kept else 'more than'} {tolerance:g}")
    statement = read_provenance(after.metadata.xmp)
    log.info(f"{coloured} states:" if statement else f"{coloured} does not state how it was made")
    for name, value in statement.items():
        # Text from the file could contain control characters.
        log.info(f"  {name}: {value if value.isprintable() else ascii(value)}")
    return 0 if is_kept else 1


def score(
    originals: Annotated[Positional[Path], option("ORIGINALS")],
    coloured: Annotated[Positional[Path], option("COLOURED")],
    /,
    *,
    output: OutputPath = Path("scores"),
    fid: Annotated[Path | None, option("ONNX", "no FID")] = None,
    overwrite: bool = False,
) -> int:
    """Compare colourised images with their originals.

    Reports PSNR, SSIM, ΔE2000, colourfulness and ΔL*. Greyscale versions of the originals are scored as a baseline.

    Examples:
      chromabox score originals/ coloured/ -o scores/

    Args:
        originals: A colour image, or a folder of images.
        coloured: The colourised image, or a folder with the same file names.
        output: Folder for scores.csv and scores.json.
        fid: Also compute the FID with the features of this ONNX file, for example InceptionV3.
        overwrite: Replace existing files that Chromabox did not write.
    """
    from chromabox.io.manifest import MANIFEST_NAME, Manifest
    from chromabox.io.paths import check_outputs
    from chromabox.report.scores import SCORE_FILES, report_scores

    tables, manifest = [output / name for name in SCORE_FILES], Manifest(output / MANIFEST_NAME, {})
    check_outputs(tables, [originals, coloured], overwrite=overwrite, manifest=manifest)

    failed = report_scores(originals, coloured, output, fid_network=fid).failed
    for table in tables:
        manifest.claim(table)
    return 1 if failed else 0
