"""Time of non-maximum suppression of 10,000 boxes, compared with supervision, OpenCV and kornia.

    python benchmarks/nms.py [-o benchmarks/results/nms.json]

There are two sets of boxes with random positions and sizes in a square of 640 pixels: one with 80 classes, like the
outputs of a detector, and one with a single class. A library that is not installed is skipped with a message (pip
install opencv-python-headless kornia). The libraries alternate. Times are medians, but calls that take more than a
second are timed once. All libraries must keep the same boxes, except for rounding differences in the overlap. The
number of different boxes is printed.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import supervision

from chromabox.detect.boxes import nms
from environment import describe_machine, time_call, write_results

NUM_BOXES, SIDE, IOU_THRESHOLD, NUM_TURNS = 10_000, 640, 0.45, 7
MAX_REPEATED_SECONDS = 1.0  # Slower calls are timed once.


def random_boxes(num_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes around 500 centres, like several detections per object, with scores and class indices."""
    rng = np.random.default_rng(seed)
    objects = rng.integers(0, 500, NUM_BOXES)
    centres = rng.uniform(0, SIDE, (500, 2))[objects] + rng.normal(0, 6, (NUM_BOXES, 2))
    sides = rng.uniform(10, 200, (500, 2))[objects] * np.exp(rng.normal(0, 0.15, (NUM_BOXES, 2)))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(np.float32)
    return boxes, rng.random(NUM_BOXES).astype(np.float32), rng.integers(0, num_classes, NUM_BOXES)


def nms_functions(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """Return functions that compute the kept indices. Inputs are converted to each library's types in advance."""
    rows = np.column_stack([boxes, scores, classes])

    def supervision_nms() -> np.ndarray:
        return np.flatnonzero(supervision.box_non_max_suppression(rows, IOU_THRESHOLD))

    functions = {"chromabox": lambda: nms(boxes, scores, classes, IOU_THRESHOLD), "supervision": supervision_nms}
    # OpenCV and kornia ignore classes. As usual, boxes of different classes are therefore shifted apart.
    shifted = boxes + (classes * 4.0 * SIDE)[:, None].astype(np.float32)
    try:
        import cv2

        corners = [[float(v) for v in (*box[:2], *(box[2:] - box[:2]))] for box in shifted]
        weights = [float(score) for score in scores]
        functions["OpenCV"] = lambda: np.asarray(cv2.dnn.NMSBoxes(corners, weights, 0.0, IOU_THRESHOLD)).reshape(-1)
    except (ImportError, AttributeError):
        print("OpenCV: skipped; pip install opencv-python-headless")
    try:
        import torch
        from kornia.geometry.bbox import nms as kornia_nms

        tensors = torch.from_numpy(shifted), torch.from_numpy(scores)
        functions["kornia"] = lambda: kornia_nms(*tensors, IOU_THRESHOLD).numpy()
    except ImportError:
        print("kornia: skipped; pip install kornia")
    return functions


def compare(num_classes: int) -> dict[str, object]:
    """Time all libraries alternately on one set of boxes."""
    functions = nms_functions(*random_boxes(num_classes))
    kept: dict[str, set[int]] = {}
    times: dict[str, list[float]] = {}
    for name, function in functions.items():
        first = time_call(lambda name=name, function=function: kept.update({name: set(function().tolist())}))
        times[name] = [first] if first > MAX_REPEATED_SECONDS else []
    slow = {name for name in functions if times[name]}
    for _ in range(NUM_TURNS):
        for name, function in functions.items():
            if name not in slow:
                times[name].append(time_call(function))
    result: dict[str, object] = {}
    for name in functions:
        median = statistics.median(times[name])
        num_different = len(kept[name] ^ kept["chromabox"])
        ratio = median / statistics.median(times["chromabox"])
        print(
            f"{num_classes:3d} classes, {name:12s} {median * 1e3:9.2f} ms, best {min(times[name]) * 1e3:9.2f} ms, "
            f"{ratio:7.1f}× chromabox; keeps {len(kept[name])}, {num_different} different"
        )
        result[name] = {
            "milliseconds": median * 1e3,
            "best_milliseconds": min(times[name]) * 1e3,
            "times_ours": ratio,
            "kept": len(kept[name]),
            "kept_otherwise": num_different,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="non-maximum suppression of 10,000 boxes")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    results: dict[str, object] = {
        "claim": "NMS of 10,000 boxes: 10 ms, or faster than the others",
        **describe_machine(),
    }
    for num_classes in (80, 1):
        results[f"{num_classes} classes"] = compare(num_classes)
    if arguments.output:
        write_results(arguments.output, results)


if __name__ == "__main__":
    main()
