"""The command ``detect``."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from chromabox.cli.options import Float, OutputPath, log, log_lines, option


def detect(
    inputs: Annotated[Positional[tuple[Path, ...]], option("PATH ...", "required")] = (),
    /,
    *,
    output: OutputPath = Path("detections"),
    weights: Annotated[str, option("NAME|PATH")] = "yolov3-tiny",
    format: Annotated[tuple[Literal["images", "json", "csv", "yolo"], ...], option("FORMAT ...", "images")] = (),
    confidence: Float = 0.5,
    iou: Float = 0.45,
    classes: Annotated[tuple[str, ...], option("CLASS ...", "all")] = (),
    size: Annotated[int | None, option("N", "the size stored with the weights")] = None,
    device: Annotated[str, option("NAME")] = "auto",
    workers: Annotated[int | None, option("N", "one per core")] = None,
    overwrite: bool = False,
) -> int:
    """Detect objects in images, folders and videos.

    Writes annotated copies, or the boxes as JSON, CSV or YOLO labels.

    Examples:
      chromabox detect holiday/ -o annotated/
      chromabox detect dog.jpg -o dog-annotated.jpg --confidence 0.3
      chromabox detect holiday/ -o boxes.json --classes person dog
      chromabox detect film.mp4 -o film-annotated.mp4

    Args:
        inputs: Images, videos and folders. Files in folders are recognised by their content.
        output: Output folder, file for a single annotated image or video, or .json or .csv file for the boxes.
        weights: yolov3-tiny (pretrained weights, downloaded and cached), a .safetensors, .weights, .onnx or .pt file,
            or a run folder.
        format: Outputs to write: images (annotated), json (COCO results), csv, yolo (labels).
        confidence: Minimum confidence of the detections (0 to 1).
        iou: IoU threshold for non-maximum suppression (0 to 1).
        classes: Detect only these classes, given by name or index.
        size: Side length of the square network input in pixels, a multiple of 32. Images are letterboxed.
        device: cpu, cuda, coreml, directml, or auto (the best device that ONNX Runtime supports on this machine).
        workers: Number of images to process in parallel.
        overwrite: Replace existing files that Chromabox did not write.
    """
    from chromabox.detect.inference.batch import plan_detection_outputs, run_detection

    plan = plan_detection_outputs(inputs, output, format, overwrite=overwrite)
    from chromabox.detect.inference.load import open_detector
    from chromabox.detect.inference.predict import InferenceOptions
    from chromabox.io.kinds import count_skipped

    # Several images are processed in parallel by one thread each. A single image or a video frame uses all threads.
    threads = 1 if len(plan.images) > 1 and not plan.videos else None
    detector = open_detector(weights, size=size, threads=threads, device=device)
    options = InferenceOptions.for_detector(detector, confidence, iou, classes or None, size)
    log.info(f"weights: {weights}, network input: {options.size} pixels")
    summary = run_detection(plan, detector, options, workers=workers)
    log_lines(summary, *count_skipped(plan.skipped), output)
    failures = [*summary.errors, *plan.unreadable]
    for failure in failures:
        log.warning(f"failed: {failure}")
    return 1 if failures else 0
