"""The verbs for data and palettes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from chromabox.cli.options import OptionalOutputPath, OutputPath, print_line
from chromabox.errors import UsageError


@dataclass(frozen=True)
class FetchCifar10:
    """Fetch CIFAR-10, verify it, and say where it is.

    Sources are tried in order, a mirror named by CHROMABOX_MIRROR (a folder or an address) first; files go to
    CHROMABOX_CACHE, else to the platform's cache folder, and are verified by SHA-256 on every use.

    Example: chromabox data cifar10
    """


@dataclass(frozen=True)
class ValidateDataset:
    """Look a detection data set over: YOLO txt, COCO json or Pascal VOC xml, recognised by looking.

    Counts, classes, empty and double labels, boxes out of range or without a size, damaged pictures, pictures that two
    splits share. Your files are never changed; --repair writes a sound copy. The exit code is 1 if anything is wrong.

    Example: chromabox data check my-set/ --repair my-set-repaired/
    """

    path: Positional[str]
    """A folder, a .yaml or .json file, or a set by name: coco128, raccoon."""
    repair: Path | None = None
    """A folder to be made, for a copy without the faults and a report of what was changed."""
    output: OptionalOutputPath = None
    """Also write everything that was found into this .json file."""


@dataclass(frozen=True)
class MakeSynthetic:
    """Make a small detection set: CIFAR-10's pictures pasted on photographs and plain grounds, boxes known.

    Train, val and test are apart in things and grounds; what a detector learns from it can be tried on any machine.

    Example: chromabox data collage my-collage/
    """

    output: Positional[Path]
    """A folder to be made: data.yaml, images/ and labels/ (YOLO txt)."""
    size: int = 320
    """Side of the pictures in pixels, at least 64."""
    seed: int = 0
    """Decides everything."""


DataAction = OmitSubcommandPrefixes[
    OmitArgPrefixes[
        Annotated[FetchCifar10, subcommand("cifar10")]
        | Annotated[ValidateDataset, subcommand("check")]
        | Annotated[MakeSynthetic, subcommand("collage")]
    ]
]


def data(*, action: DataAction) -> int:
    """Fetch a data set, make a small one, or check one of your own."""
    if isinstance(action, ValidateDataset):
        from chromabox.report.dataset import report_validation

        return 0 if report_validation(action.path, clean_copy=action.repair, output=action.output).is_valid else 1
    if isinstance(action, MakeSynthetic):
        from chromabox.detect.data.synthetic import make_synthetic_dataset

        boxes = make_synthetic_dataset(action.output, size=action.size, seed=action.seed, show_progress=True)
        print(", ".join(f"{split}: {count} boxes" for split, count in boxes.items()))
        print(action.output)
        return 0
    from chromabox.io.cifar10 import download_cifar10

    print(download_cifar10())
    return 0


@dataclass(frozen=True)
class FitPalette:
    """Fit a palette to pictures by k-means. Example: chromabox palette fit photos/ -k 24 -o mine.json"""

    images: Positional[tuple[str, ...]]
    """Pictures, folders, or cifar10:CLASS / cifar10:all."""
    output: OutputPath
    """Where to write: .json, .npy or .gpl (GIMP)."""
    colours: Annotated[int, arg(aliases=("-k",))] = 24
    """How many colours, 2 to 256."""
    seed: int = 0
    """Seed of k-means."""


@dataclass(frozen=True)
class ShowPalette:
    """Draw a palette as a picture. Example: chromabox palette show horse24 -o swatch.png"""

    palette: Positional[str]
    """A file (.json, .npy, .gpl) or a shipped palette: horse24, cifar24."""
    output: OutputPath
    """The picture to write."""


PaletteAction = OmitSubcommandPrefixes[
    OmitArgPrefixes[Annotated[FitPalette, subcommand("fit")] | Annotated[ShowPalette, subcommand("show")]]
]


def palette(*, action: PaletteAction) -> int:
    """Fit a palette to pictures, or look at one."""
    from chromabox.colour.palette.io import load_palette, save_palette
    from chromabox.colour.palette.palette import draw_palette
    from chromabox.io.images import write_image

    if isinstance(action, ShowPalette):
        write_image(action.output, draw_palette(load_palette(action.palette)))
    else:
        from chromabox.colour.data.datasets import fit_palette_to_images

        fitted, distance = fit_palette_to_images(
            action.images, action.colours, seed=action.seed, name=action.output.stem
        )
        save_palette(action.output, fitted)
        print(f"{len(fitted)} colours, mean distance of a pixel to its colour {distance:.4f} (RGB/256)")
    print(action.output)
    return 0


def export(checkpoint: Positional[Path | None] = None, /, *, onnx: Path, size: int | None = None) -> int:
    """Export a trained net, of colours or of boxes, as ONNX, checked against PyTorch on the spot.

    chromabox export runs/photo-default-seed0 --onnx photo.onnx

    chromabox export runs/finetune-raccoon-seed0 --onnx raccoon.onnx

    Args:
        checkpoint: A run folder, a checkpoint or a detector's weights; the shipped photo net if left out.
        onnx: The file to write; chromabox colour --net or chromabox detect --weights takes it, and any ONNX runtime.
        size: Of a detector: side in pixels of the squares that the file takes; the detector's own if left out.
    """
    from chromabox.detect.weights.load import is_detector

    if checkpoint is not None and is_detector(checkpoint):
        from chromabox.detect.weights.convert import export_detector
        from chromabox.detect.weights.load import load_detector

        print_line(f"{export_detector(load_detector(checkpoint), onnx, size=size)}\n{onnx}")
        return 0
    if size is not None:
        raise UsageError(f"size: is for detectors; {checkpoint or 'the shipped net'} colours pictures of any size")
    from chromabox.colour.weights.checkpoint import load_model
    from chromabox.colour.weights.export import export_onnx

    print_line(f"{export_onnx(load_model(checkpoint), onnx)}\n{onnx}")
    return 0


@dataclass(frozen=True)
class WeightsArgs:
    """Which weights, what they mean, and where to."""

    weights: Positional[str]
    """yolov3-tiny (fetched), or a .weights, .onnx, .pt or .safetensors file."""
    output: OptionalOutputPath = None
    """.safetensors (with everything that the numbers mean) or .weights (darknet's, with its .cfg beside it)."""
    architecture: str | None = None
    """yolov3, yolov3-tiny or a .cfg file; found by the count of numbers if left out."""
    variant: str | None = None
    """What the numbers mean: darknet, ultralytics-9.0 or ultralytics-9.6; the file's own kind if left out."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in order; COCO's for 80 of them if left out."""
    sanity_check: bool = True
    """Show the net a known picture before anything is written."""


def weights(*, options: OmitArgPrefixes[WeightsArgs]) -> int:
    """Fetch published detector weights, or convert a file; what they mean is tested on a known picture.

    chromabox weights yolov3-tiny

    chromabox weights mine.weights --architecture mine.cfg -o mine.safetensors
    """
    from chromabox.detect.weights.convert import convert_weights

    convert_weights(
        options.weights,
        options.output,
        architecture=options.architecture,
        variant=options.variant,
        classes=options.classes or None,
        run_sanity_check=options.sanity_check,
        log=print_line,
    )
    return 0
