"""The verb that finds things in pictures and films."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from chromabox.cli.options import print_line

#: Where results go if nothing else is said.
DEFAULT_OUTPUT = Path("detections")

#: From so many pictures on, and for films, the probe's second or two come back.
MIN_IMAGES_TO_AUTOTUNE = 50


@dataclass(frozen=True)
class DetectArgs:
    """What to look through, with what, and what to write."""

    inputs: Positional[tuple[Path, ...]]
    """Pictures, folders of pictures, or films (.mp4, .mov, .mkv)."""
    output: Annotated[Path, arg(aliases=("-o",))] = DEFAULT_OUTPUT
    """A folder; or the annotated file of one picture or film; or a .json or .csv for the boxes alone."""
    weights: str = "yolov3-tiny"
    """A name (fetched and kept), or a .safetensors, .weights, .onnx or .pt file."""
    format: tuple[Literal["pictures", "json", "csv", "yolo"], ...] = ()
    """What to write: annotated pictures, COCO's results as JSON, csv, YOLO's text files; pictures if left out."""
    confidence: float = 0.5
    """Boxes with a higher score are found (0 to 1)."""
    iou: float = 0.45
    """Of two boxes of one class that overlap by more, the one with the lower score goes (0 to 1)."""
    classes: tuple[str, ...] = ()
    """Only these classes, by name or number."""
    size: int | None = None
    """Side in pixels of the square that pictures are laid into, a multiple of 32; the weights' own if left out."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the net; auto: of films and many pictures bfloat16 where a short probe finds it faster."""
    workers: int | None = None
    """Pictures looked through at the same time; one a core if left out."""


def detect(*, options: OmitArgPrefixes[DetectArgs]) -> int:
    """Find things in pictures, folders and films, and draw or list what was found.

    chromabox detect holiday/ -o found/

    chromabox detect dog.jpg -o dog-with-boxes.jpg --confidence 0.3

    chromabox detect holiday/ -o boxes.json --classes person dog

    chromabox detect film.mp4 -o film-with-boxes.mp4
    """
    from chromabox.detect.inference.batch import plan_detection_outputs

    plan = plan_detection_outputs(options.inputs, options.output, options.format)
    from chromabox.detect.inference.batch import run_detection
    from chromabox.detect.inference.predict import InferenceOptions
    from chromabox.detect.inference.runtime import FLOAT32_OPTIONS, optimize_for_inference
    from chromabox.detect.weights.load import load_detector
    from chromabox.engine.runtime_options import RuntimeOptions

    trained = load_detector(options.weights)
    wanted = InferenceOptions.for_detector(
        trained, options.confidence, options.iou, options.classes or None, options.size
    )
    few = options.precision == "auto" and not plan.videos and len(plan.images) < MIN_IMAGES_TO_AUTOTUNE
    detector = optimize_for_inference(trained, FLOAT32_OPTIONS if few else RuntimeOptions(precision=options.precision))
    print_line(f"{options.weights} at {wanted.size}: {detector.runtime}")
    summary = run_detection(plan, detector, wanted, workers=options.workers, log=print_line)
    print_line(f"{summary}\n{options.output}")
    for reason in summary.errors:
        print(f"chromabox: not looked through: {reason}", file=sys.stderr)
    return 1 if summary.errors else 0
