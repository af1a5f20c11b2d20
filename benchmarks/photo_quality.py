"""Quality of the photo model on validation photographs: scores, consistency of colours in objects, reliability.

    python benchmarks/photo_quality.py --data SHARDS [--model RUN] [--limit N] [-o RESULTS.json]

The validation images of a dataset (see ``chromabox train photo --data``) are colourised by the whole pipeline at their
stored size, in the styles natural and vivid.

* Scores: those of ``chromabox score``, for all images together, with 95 % bootstrap intervals over images.
* Consistency: the lightness of an image is divided into segments (Felzenszwalb and Huttenlocher 2004, scikit-image,
  scale 200). Each segment that covers at least 2 % of the image is divided into two halves at the median of its longer
  axis. The measure is the CIEDE2000 between the mean chroma of the two halves, at lightness 50, averaged over all
  segments of all images. It is given for the results, for the originals, and as their ratio.
* Reliability: the confidence of a position is the predicted probability that the true chroma is within 20 units of the
  chosen chroma. The positions are grouped into ten intervals of confidence. A model is reliable if the share of
  positions within 20 units equals the confidence in each group. The expected calibration error is the mean absolute
  difference, weighted by the number of positions.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.segmentation import felzenszwalb

from chromabox.colour.chroma.distribution import SAME_COLOUR_RADIUS
from chromabox.colour.chroma.lab import rgb_to_lab
from chromabox.colour.data.photos import load_photos
from chromabox.colour.evaluation.image_scores import SUMMARY, FileScores, ScoreReport, score_image
from chromabox.colour.evaluation.metrics import ciede2000
from chromabox.colour.inference.load import open_model
from chromabox.colour.inference.predict import STYLES, ColouriseOptions, apply_prediction, predict_colours
from chromabox.colour.weights.onnx_model import ColourModel
from chromabox.io.images import ImageData
from environment import describe_machine, write_results

MIN_SEGMENT_FRACTION = 0.02
NUM_INTERVALS = 10


@dataclass
class Totals:
    """Results of one style, accumulated over the images."""

    files: list[FileScores] = field(default_factory=list)
    halves: list[tuple[float, float]] = field(default_factory=list)
    """CIEDE2000 between the halves of each segment, in the result and in the original."""
    counts: np.ndarray = field(default_factory=lambda: np.zeros((3, NUM_INTERVALS)))
    """For each interval of confidence: number of positions, sum of confidence, positions within the radius."""


def segment_halves(lightness: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pairs of masks: the halves of each large segment."""
    labels = felzenszwalb(lightness / 100, scale=200, sigma=0.8, min_size=50)
    pairs = []
    for label in range(labels.max() + 1):
        rows, columns = np.nonzero(labels == label)
        if len(rows) < MIN_SEGMENT_FRACTION * labels.size:
            continue
        axis = rows if np.ptp(rows) > np.ptp(columns) else columns
        first = axis <= np.median(axis)
        masks = np.zeros((2, *labels.shape), bool)
        masks[0, rows[first], columns[first]] = True
        masks[1, rows[~first], columns[~first]] = True
        if masks.any((1, 2)).all():
            pairs.append((masks[0], masks[1]))
    return pairs


def half_difference(lab: np.ndarray, halves: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the CIEDE2000 between the mean chroma of two regions at lightness 50."""
    first, second = (np.array([50.0, *lab[mask][:, 1:].mean(0)], np.float32)[None] for mask in halves)
    return float(ciede2000(first, second)[0])


def evaluate_image(pixels: np.ndarray, model: ColourModel, totals: dict[str, Totals]) -> None:
    lab = rgb_to_lab(pixels)
    pairs = segment_halves(lab[..., 0])
    for style, total in totals.items():
        prediction = predict_colours(pixels, model, ColouriseOptions(style=style))
        result = apply_prediction(ImageData(pixels), prediction).pixels
        total.files.append(FileScores(Path(), Path(), *pixels.shape[1::-1], score_image(pixels, result)))
        result_lab = rgb_to_lab(result)
        total.halves += [(half_difference(result_lab, halves), half_difference(lab, halves)) for halves in pairs]
        height, width = prediction.chroma.shape[:2]
        chroma = [
            np.asarray(Image.fromarray(lab[..., i]).resize((width, height), Image.Resampling.BOX)) for i in (1, 2)
        ]
        distance = np.hypot(*(prediction.chroma[..., index] - plane for index, plane in enumerate(chroma)))
        confidence = prediction.confidence
        group = np.minimum((confidence * NUM_INTERVALS).astype(int), NUM_INTERVALS - 1).ravel()
        for row, weights in enumerate((None, confidence.ravel(), (distance <= SAME_COLOUR_RADIUS).ravel())):
            total.counts[row] += np.bincount(group, weights, NUM_INTERVALS)


def summarise(total: Totals) -> dict[str, object]:
    result: dict[str, object] = dict(ScoreReport(total.files, {}).summarise())
    ours, truth = np.mean(total.halves, 0)
    number, confidence, within = total.counts
    used = number > 0
    result |= {"halves_delta_e": ours, "halves_delta_e_original": truth, "segments": len(total.halves)}
    result["reliability"] = [
        {"positions": int(n), "confidence": float(c / n), "within_radius": float(w / n)}
        for n, c, w in zip(number[used], confidence[used], within[used], strict=True)
    ]
    result["expected_calibration_error"] = float(np.abs(confidence - within).sum() / number.sum())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs or tar shards")
    parser.add_argument("--model", type=Path, help="run folder, checkpoint or ONNX file (default: the bundled model)")
    parser.add_argument("--limit", type=int, help="use only so many images, evenly spaced")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    model, photos = open_model(options.model), load_photos(options.data).val
    indices = np.unique(np.linspace(0, len(photos) - 1, min(options.limit or len(photos), len(photos))).astype(int))
    totals = {style: Totals() for style in STYLES}
    for index in indices.tolist():
        evaluate_image(photos[index], model, totals)
    results = {style: summarise(total) for style, total in totals.items()}
    print(f"images: {len(indices)}")
    for style, result in results.items():
        print(f"{style}:")
        for name in SUMMARY:
            low, high = result[f"{name}_interval"]
            print(f"  {name}: {result[name]:.2f} ({low:.2f} to {high:.2f})")
        print(
            f"  halves of segments: ΔE2000 {result['halves_delta_e']:.2f}, "
            f"originals {result['halves_delta_e_original']:.2f}"
        )
        print(f"  expected calibration error: {result['expected_calibration_error']:.3f}")
        for row in result["reliability"]:
            print(
                f"    confidence {row['confidence']:.2f}: within radius {row['within_radius']:.2f} "
                f"({row['positions']} positions)"
            )
    if options.output:
        write_results(options.output, {"images": len(indices), "styles": results, "machine": describe_machine()})
        print(options.output)


if __name__ == "__main__":
    main()
