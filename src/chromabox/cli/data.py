"""The commands ``data``, ``palette``, ``weights`` and ``export``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitSubcommandPrefixes, Positional, subcommand

from chromabox.cli.options import Integer, OutputPath, log, log_lines, option
from chromabox.errors import UsageError


@dataclass(frozen=True)
class DownloadCifar10:
    """Download CIFAR-10, verify it, and print its folder.

    If CHROMABOX_MIRROR (a folder or a URL) is set, it is tried first.

    The files are stored in CHROMABOX_CACHE (default: the user's cache folder).

    They are verified by SHA-256 on every use.
    """


@dataclass(frozen=True)
class ValidateDataset:
    """Validate a detection dataset in YOLO, COCO or Pascal VOC format.

    Reports:
    - the number of boxes per class,
    - images without labels, corrupt images, and images in more than one split,
    - labels that could belong to several images, and labels for another image size,
    - duplicate labels, and boxes that lie outside the image or are smaller than a pixel,
    - labels without images, unused images, and labels in several formats.

    The dataset is never modified. The exit code is 1 if there are problems.
    """

    path: Annotated[Positional[str], option("PATH|NAME")]
    """A folder or .zip file, a .yaml, .data or .json file, or a name (coco128 or raccoon, from CHROMABOX_MIRROR or the
    cache)."""
    repair: Annotated[Path | None, option("FOLDER", "no copy")] = None
    """Write a cleaned copy to this new folder, with a report of all changes. It is compared with the dataset."""
    output: Annotated[Path | None, option("PATH", "not written", short="-o")] = None
    """Also write the results to this .json file."""
    overwrite: bool = False
    """Replace an existing output file."""


@dataclass(frozen=True)
class MakeSynthetic:
    """Paste CIFAR-10 images onto backgrounds to create a small detection dataset.

    The backgrounds are photographs and plain colours.

    The train, val and test splits share neither objects nor backgrounds.
    """

    folder: Annotated[Positional[Path], option("FOLDER")]
    """New folder for data.yaml, images/ and labels/ (YOLO)."""
    size: Integer = 320
    """Side length of the images in pixels, at least 64."""
    seed: Integer = 0
    """Random seed."""


def data(
    args: OmitSubcommandPrefixes[
        Annotated[DownloadCifar10, subcommand("cifar10")]
        | Annotated[ValidateDataset, subcommand("check")]
        | Annotated[MakeSynthetic, subcommand("synth")]
    ],
) -> int:
    """Download, validate or create a dataset.

    Examples:
      chromabox data cifar10
      chromabox data check my-dataset/ --repair my-dataset-clean/
      chromabox data synth synthetic/
    """
    if isinstance(args, ValidateDataset):
        from chromabox.report.dataset import report_validation

        report = report_validation(args.path, clean_copy=args.repair, output=args.output, overwrite=args.overwrite)
        return 0 if report.is_valid else 1
    if isinstance(args, MakeSynthetic):
        from chromabox.detect.data.synthetic import make_synthetic_dataset

        boxes = make_synthetic_dataset(args.folder, size=args.size, seed=args.seed, show_progress=True)
        log_lines(", ".join(f"{split}: {count} boxes" for split, count in boxes.items()), args.folder)
        return 0
    from chromabox.io.cifar10 import download_cifar10

    log.info(download_cifar10())
    return 0


@dataclass(frozen=True)
class FitPalette:
    """Fit a palette to images by k-means."""

    images: Annotated[Positional[tuple[str, ...]], option("PATH|NAME ...", "required")]
    """Images, folders, cifar10:CLASS or cifar10:all."""
    output: OutputPath
    """Palette file: .json, .npy or .gpl (GIMP)."""
    colours: Annotated[int, option("N", short="-k")] = 24
    """Number of colours, 2 to 256."""
    seed: Integer = 0
    """Random seed for k-means."""
    overwrite: bool = False
    """Replace an existing palette file."""


@dataclass(frozen=True)
class ShowPalette:
    """Draw a palette as an image."""

    palette: Annotated[Positional[str], option("NAME|PATH")]
    """A palette file (.json, .npy, .gpl), horse24 or cifar24."""
    output: OutputPath
    """Image file."""
    overwrite: bool = False
    """Replace an existing image file."""


def palette(
    args: OmitSubcommandPrefixes[Annotated[FitPalette, subcommand("fit")] | Annotated[ShowPalette, subcommand("show")]],
) -> int:
    """Fit a palette to images, or draw a palette.

    Examples:
      chromabox palette fit photos/ -k 24 -o palette.json
      chromabox palette show horse24 -o palette.png
    """
    from chromabox.colour.palette.io import check_palette_suffix, load_palette, save_palette
    from chromabox.colour.palette.palette import draw_palette
    from chromabox.io.images import write_image
    from chromabox.io.paths import check_outputs

    inputs = [args.palette] if isinstance(args, ShowPalette) else args.images
    check_outputs([args.output], [Path(name) for name in inputs], overwrite=args.overwrite)
    if isinstance(args, ShowPalette):
        write_image(args.output, draw_palette(load_palette(args.palette)))
    else:
        from chromabox.colour.data.datasets import fit_palette_to_images

        check_palette_suffix(args.output)
        name = args.output.stem
        fitted, distance = fit_palette_to_images(args.images, args.colours, seed=args.seed, name=name)
        save_palette(args.output, fitted)
        log.info(
            f"{len(fitted)} colours; mean distance from a pixel to its palette colour: {distance:.4f} "
            "(in RGB, with values divided by 256)"
        )
    log.info(args.output)
    return 0


def weights(
    weights: Annotated[Positional[str], option("NAME|PATH")],
    /,
    *,
    output: Annotated[
        Path | None,
        option(
            "PATH",
            "yolov3-tiny: a file in the cache; otherwise the input path with the suffix .safetensors",
            short="-o",
        ),
    ] = None,
    architecture: Annotated[
        str | None, option("NAME|PATH", "the .cfg file next to the weights, otherwise inferred from the file size")
    ] = None,
    variant: Annotated[str | None, option("NAME", "read from the file, otherwise darknet")] = None,
    classes: Annotated[
        tuple[str, ...], option("NAME ...", "the names in the file, otherwise the COCO names if there are 80 classes")
    ] = (),
    sanity_check: bool = True,
    overwrite: bool = False,
) -> int:
    """Download or convert detector weights.

    Examples:
      chromabox weights yolov3-tiny
      chromabox weights custom.weights --architecture custom.cfg -o my.safetensors

    Args:
        weights: yolov3-tiny (downloaded), or a .weights, .onnx, .pt or .safetensors file.
        output: A .safetensors file (with all metadata), or a Darknet .weights file (with a .cfg and a .names file).
        architecture: yolov3, yolov3-tiny or a Darknet .cfg file.
        variant: Weight format: darknet, ultralytics-9.0 or ultralytics-9.6.
        classes: Class names, in the order of their indices.
        sanity_check: Before the file is written, check the detections in a reference image.
        overwrite: Replace existing output files.
    """
    from chromabox.detect.weights.convert import convert_weights

    convert_weights(
        weights,
        output,
        architecture=architecture,
        variant=variant,
        classes=classes or None,
        run_sanity_check=sanity_check,
        overwrite=overwrite,
    )
    return 0


def export(
    checkpoint: Annotated[Positional[Path | None], option("RUN|PATH", "the bundled photo model")] = None,
    /,
    *,
    onnx: Annotated[Path, option("PATH")],
    size: Annotated[int | None, option("N", "the size stored with the weights")] = None,
    overwrite: bool = False,
) -> int:
    """Export a model to ONNX.

    The outputs of the exported model are compared with those of the PyTorch model
    before the file is written.

    Examples:
      chromabox export runs/photo-default-seed0 --onnx photo.onnx
      chromabox export runs/finetune-raccoon-seed0 --onnx raccoon.onnx

    Args:
        checkpoint: A run folder, a checkpoint, or the weights of a detector.
        onnx: Output file, for chromabox colour, chromabox detect or any other program that runs ONNX models.
        size: Detectors: side length of the square network input in pixels.
        overwrite: Replace an existing output file.
    """
    from chromabox.detect.weights.load import is_detector
    from chromabox.io.paths import check_outputs

    check_outputs([onnx], [] if checkpoint is None else [checkpoint], overwrite=overwrite)

    if checkpoint is not None and is_detector(checkpoint):
        from chromabox.detect.weights.convert import export_detector
        from chromabox.detect.weights.load import load_detector

        log_lines(export_detector(load_detector(checkpoint), onnx, size=size), onnx)
        return 0
    if size is not None:
        raise UsageError(f"--size: only for detectors; {checkpoint or 'the bundled model'} is a colourisation model")
    from chromabox.colour.weights.checkpoint import load_model
    from chromabox.colour.weights.export import export_onnx

    log_lines(export_onnx(load_model(checkpoint), onnx), onnx)
    return 0
