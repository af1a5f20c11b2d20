"""Non-maximum suppression of 10,000 boxes: ours against supervision's, OpenCV's and kornia's.

    python benchmarks/nms.py [-o benchmarks/results/nms.json]

Two sets of boxes of random places and sizes in a square of 640 pixels: of 80 classes, as a detector gives them, and of
one class. A library that is not installed is passed over with a message (pip install opencv-python-headless kornia);
times are medians, contenders take turns (what takes more than a second is timed once). All must keep the same boxes,
but for overlaps that rounding decides: how many they differ by is printed.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from chromabox.detect.boxes import nms
from chromabox.detect.detections import supervision
from machine import describe, seconds, write_results

BOXES, SIDE, IOU, TURNS = 10_000, 640, 0.45, 7
PATIENCE = 1.0  # seconds; what takes longer is timed once


def random_boxes(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes around 500 centres, as several cells and anchors find one thing; scores and classes."""
    rng = np.random.default_rng(seed)
    thing = rng.integers(0, 500, BOXES)
    centre = rng.uniform(0, SIDE, (500, 2))[thing] + rng.normal(0, 6, (BOXES, 2))
    sides = rng.uniform(10, 200, (500, 2))[thing] * np.exp(rng.normal(0, 0.15, (BOXES, 2)))
    boxes = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1).astype(np.float32)
    return boxes, rng.random(BOXES).astype(np.float32), rng.integers(0, classes, BOXES)


def contenders(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """What is timed: each gives the indices it keeps. Conversions to a library's own types are done beforehand."""
    rows = np.column_stack([boxes, scores, classes])

    def by_supervision() -> np.ndarray:
        return np.flatnonzero(supervision.box_non_max_suppression(rows, IOU))

    ways = {"chromabox": lambda: nms(boxes, scores, classes, IOU), "supervision": by_supervision}
    # OpenCV and kornia know no classes here: boxes of different ones are moved apart, which is the usual way.
    apart = boxes + (classes * 4.0 * SIDE)[:, None].astype(np.float32)
    try:
        import cv2

        corners = [[float(v) for v in (*box[:2], *(box[2:] - box[:2]))] for box in apart]
        weights = [float(score) for score in scores]
        ways["OpenCV"] = lambda: np.asarray(cv2.dnn.NMSBoxes(corners, weights, 0.0, IOU)).reshape(-1)
    except (ImportError, AttributeError):
        print("OpenCV: passed over; pip install opencv-python-headless")
    try:
        import torch
        from kornia.geometry.bbox import nms as kornia_nms

        tensors = torch.from_numpy(apart), torch.from_numpy(scores)
        ways["kornia"] = lambda: kornia_nms(*tensors, IOU).numpy()
    except ImportError:
        print("kornia: passed over; pip install kornia")
    return ways


def compare(classes: int) -> dict[str, object]:
    """All contenders on one set of boxes, in turns."""
    ways = contenders(*random_boxes(classes))
    kept: dict[str, set[int]] = {}
    times: dict[str, list[float]] = {}
    for name, way in ways.items():
        first = seconds(lambda name=name, way=way: kept.update({name: set(way().tolist())}))
        times[name] = [first] if first > PATIENCE else []
    slow = {name for name in ways if times[name]}
    for _ in range(TURNS):
        for name, way in ways.items():
            if name not in slow:
                times[name].append(seconds(way))
    result: dict[str, object] = {}
    for name in ways:
        median = statistics.median(times[name])
        differing = len(kept[name] ^ kept["chromabox"])
        ratio = median / statistics.median(times["chromabox"])
        print(
            f"{classes:3d} classes, {name:12s} {median * 1e3:9.2f} ms, best {min(times[name]) * 1e3:9.2f} ms, "
            f"{ratio:7.1f}× ours; keeps {len(kept[name])}, {differing} otherwise"
        )
        result[name] = {
            "milliseconds": median * 1e3,
            "best_milliseconds": min(times[name]) * 1e3,
            "times_ours": ratio,
            "kept": len(kept[name]),
            "kept_otherwise": differing,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="non-maximum suppression of 10,000 boxes")
    parser.add_argument("-o", "--output", type=Path, help="write the results there, as JSON")
    arguments = parser.parse_args()
    results: dict[str, object] = {"claim": "NMS of 10,000 boxes: 10 ms, or faster than the others", **describe()}
    for classes in (80, 1):
        results[f"{classes} classes"] = compare(classes)
    if arguments.output:
        write_results(arguments.output, results)


if __name__ == "__main__":
    main()
