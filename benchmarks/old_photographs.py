"""Colours of old photographs: degraded versions of validation photographs, with and without preparation of the input.

    python benchmarks/old_photographs.py --data SHARDS [--model RUN] [--limit N] [--parity even|odd] [-o RESULTS.json]

Each validation image of a dataset (see ``chromabox train photo --data``) is reduced to its lightness and degraded in
several ways. Chroma is predicted from the degraded version by the whole pipeline, and combined with the original
lightness, so that only the colours are scored:

* gain: mean PSNR gain over greyscale in dB, and the standard error of the difference that the preparation makes;
* cut: reduction of the mean CIEDE2000 relative to greyscale in per cent;
* colourfulness: as a percentage of the colourfulness that the clean version gets without preparation.

It also gives the share of images that count as being in colour: the photographs, which should, and versions toned in a
random hue on unevenly stained paper, with noise and JPEG compression, which should not. Thresholds were chosen on
images with even positions in the list, and are tested on those with odd positions.
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from chromabox.colour.chroma.lab import lab_to_rgb, lightness_to_grey
from chromabox.colour.chroma.recolour import apply_chroma, lightness
from chromabox.colour.data.photos import load_photos
from chromabox.colour.evaluation.metrics import colourfulness, delta_e, psnr, to_greyscale
from chromabox.colour.inference.load import open_model
from chromabox.colour.inference.network_input import is_in_colour, prepare_lightness
from chromabox.colour.inference.predict import ColouriseOptions, predict_colours
from chromabox.colour.weights.onnx_model import ColourModel
from environment import describe_machine, write_results

#: Width of the border of a scan, as a fraction of the short side.
BORDER = 0.08
Score = tuple[float, float, float, float]
#: For each version, the scores of the images without and with preparation.
Scores = dict[str, list[tuple[Score, Score]]]


def to_pixels(light: np.ndarray) -> np.ndarray:
    """Return grey 8-bit sRGB pixels [height, width, 3] with the lightness L* (0 to 100)."""
    grey = np.rint(255 * lightness_to_grey(light.clip(0, 100).astype(np.float32))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def dot_screen(grey: np.ndarray, period: int) -> np.ndarray:
    """Return a screen of black and white dots at 45 degrees, whose area is proportional to the 8-bit grey value."""
    rows, columns = np.indices(grey.shape)
    angle = np.pi / period * np.sqrt(2)
    wave = np.cos(angle * (rows + columns)) + np.cos(angle * (rows - columns))
    rank = wave.ravel().argsort().argsort().reshape(grey.shape) / grey.size
    return np.where(grey / 255 > rank, 255, 0).astype(np.uint8)


def degraded(grey: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and degraded versions of a grey image [height, width, 3]."""
    values, light = grey[..., 0], lightness(grey)
    height, width = values.shape
    yield "clean", grey
    one_bit = np.asarray(Image.fromarray(values).convert("1").convert("L"))
    yield "one bit per pixel, Floyd-Steinberg", np.repeat(one_bit[..., None], 3, axis=-1)
    for period in (4, 6, 8):
        yield f"dot screen, {period} pixels", np.repeat(dot_screen(values, period)[..., None], 3, axis=-1)
    for black, white in ((35, 70), (10, 50), (55, 90)):
        yield f"faded to L* {black} to {white}", to_pixels(black + (white - black) / 100 * light)
    for gamma in (0.5, 2.0):
        yield f"gamma {gamma:g}", to_pixels(100 * (light / 100) ** gamma)
    for sigma in (5, 10):
        yield f"grain, standard deviation {sigma} L*", to_pixels(light + sigma * rng.standard_normal(light.shape))
    grain = 4 * rng.standard_normal(light.shape)
    yield "faded to L* 35 to 70, grain 4 L*", to_pixels(35 + 0.35 * light + grain)
    yield "sepia", toned(light, np.deg2rad(65), 25.0)
    border = round(BORDER * min(height, width))
    yield "white border", np.pad(grey, ((border, border), (border, border), (0, 0)), constant_values=250)


def toned(light: np.ndarray, hue: float, chroma: float, paper: float = 6.0, stain: float = 0.0) -> np.ndarray:
    """Return a toned print: the chroma is highest at L* 50, and that of the paper is added in proportion to L*.

    ``stain`` is the fraction by which the chroma is higher at the right edge, and lower at the left edge.
    """
    amount = chroma * np.exp(-(((light - 50) / 40) ** 2)) + paper * light / 100
    amount = amount * np.linspace(1 - stain, 1 + stain, light.shape[1])
    lab = np.stack([10 + 0.85 * light, amount * np.cos(hue), amount * np.sin(hue)], axis=-1)
    return lab_to_rgb(lab.astype(np.float32))


def toned_scan(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a JPEG-compressed scan of a print with a random tone (80 % brown, otherwise blue), noise and a stain."""
    hue = np.deg2rad(rng.uniform(30, 110) if rng.random() < 0.8 else rng.uniform(220, 290))
    pixels = toned(light, float(hue), rng.uniform(5, 40), rng.uniform(0, 12), rng.uniform(0, 0.25))
    noisy = pixels + rng.normal(0, rng.uniform(0, 3), pixels.shape)
    data = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=int(rng.integers(40, 96)))
    with Image.open(data) as image:
        return np.asarray(image)


def score_chroma(original: np.ndarray, chroma: np.ndarray) -> Score:
    """Return gain in dB, CIEDE2000, CIEDE2000 of greyscale, and colourfulness, with the original lightness."""
    result, grey = apply_chroma(original, chroma), to_greyscale(original)
    gain = psnr(result, original) - psnr(grey, original)
    return gain, delta_e(result, original), delta_e(grey, original), colourfulness(result)


def without_border(chroma: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the part of a chroma map that lies inside the border of an image that had this shape before."""
    border = round(BORDER * min(shape[:2]))
    size = (shape[1] + 2 * border, shape[0] + 2 * border)
    planes = [Image.fromarray(np.ascontiguousarray(chroma[..., i])).resize(size) for i in (0, 1)]
    return np.stack([np.asarray(plane)[border:-border, border:-border] for plane in planes], axis=-1)


def evaluate_image(
    original: np.ndarray, model: ColourModel, rng: np.random.Generator
) -> Iterator[tuple[str, Score, Score]]:
    """Yield the name of each version, and its scores without and with preparation."""
    for name, pixels in degraded(to_greyscale(original), rng):
        scores = []
        for prepare in (False, True):
            if prepare and np.array_equal(prepare_lightness(lightness(pixels)), lightness(pixels)):
                scores.append(scores[0])
                continue
            chroma = predict_colours(pixels, model, ColouriseOptions(), prepare=prepare).chroma
            if name == "white border":
                chroma = without_border(chroma, original.shape)
            scores.append(score_chroma(original, chroma))
        yield name, scores[0], scores[1]


def summarise(scores: Scores) -> list[dict[str, object]]:
    """Return the means of each version. Pairs of values are without and with preparation."""
    clean = np.mean([before[3] for before, _ in scores["clean"]])
    rows: list[dict[str, object]] = []
    for name, pairs in scores.items():
        values = np.array(pairs)
        difference, means = values[:, 1, 0] - values[:, 0, 0], values.mean(0)
        row = {
            "version": name,
            "changed_percent": float(100 * (values[:, 0] != values[:, 1]).any(1).mean()),
            "gain_db": means[:, 0].tolist(),
            "gain_difference_error": float(difference.std() / len(difference) ** 0.5),
            "delta_e_cut_percent": (100 * (1 - means[:, 1] / means[:, 2])).tolist(),
            "colourfulness_percent": (100 * means[:, 3] / clean).tolist(),
        }
        rows.append(row)
        gain, cut, ratio = row["gain_db"], row["delta_e_cut_percent"], row["colourfulness_percent"]
        print(
            f"{name:36} changed {row['changed_percent']:3.0f} %, gain {gain[0]:+.2f} {gain[1]:+.2f} dB (difference ± "
            f"{row['gain_difference_error']:.2f}), cut {cut[0]:5.1f} {cut[1]:5.1f} %, "
            f"colourfulness {ratio[0]:4.0f} {ratio[1]:4.0f} %"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs or tar shards")
    parser.add_argument("--model", type=Path, help="run folder, checkpoint or ONNX file (default: the bundled model)")
    parser.add_argument("--limit", type=int, default=150, help="use only so many images, evenly spaced")
    parser.add_argument("--parity", choices=["even", "odd"], help="use only every second of these images")
    parser.add_argument("--threads", type=int, help="threads of the model (default: automatic)")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    model, photos = open_model(options.model, threads=options.threads), load_photos(options.data).val
    indices = np.unique(np.linspace(0, len(photos) - 1, min(options.limit, len(photos))).astype(int))
    start, step = {None: (0, 1), "even": (0, 2), "odd": (1, 2)}[options.parity]
    scores: Scores = {}
    in_colour = []
    for index in indices[start::step].tolist():
        original, rng = photos[index], np.random.default_rng(index)
        for name, before, after in evaluate_image(original, model, rng):
            scores.setdefault(name, []).append((before, after))
        in_colour.append((is_in_colour(original), is_in_colour(toned_scan(lightness(original), rng))))
    print(f"images: {len(in_colour)}; each value without and with preparation")
    rows = summarise(scores)
    natural, toned_share = 100 * np.mean(in_colour, axis=0)
    print(f"in colour: {natural:.1f} % of the photographs, {toned_share:.1f} % of their toned versions")
    if options.output:
        shares = {"photographs": float(natural), "toned": float(toned_share)}
        results = {"images": len(in_colour), "versions": rows, "in_colour_percent": shares}
        write_results(options.output, {**results, "machine": describe_machine()})
        print(options.output)


if __name__ == "__main__":
    main()
