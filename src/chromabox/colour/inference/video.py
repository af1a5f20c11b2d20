"""A film in, the same film in colour out: every frame's own lightness, colours that do not flicker, all else kept.

Chroma maps that do not flicker from frame to frame: an average over time that lets go where something moves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch.nn import functional as F

from chromabox.colour.chroma.recolour import ChromaMap, apply_chroma, lightness
from chromabox.engine.logger import progress_bar
from chromabox.errors import UsageError
from chromabox.io.video import DEFAULT_CRF, check_target, probe_video, transcode

#: Share of the past in the average where nothing moves: an old colour is half gone after three frames.
DEFAULT_SMOOTHING = 0.8

#: Changes of lightness L* up to which a place counts as still, and from which it counts as new.
STATIC_BELOW, MOVING_ABOVE = 2.0, 8.0

#: A frame begins a new scene if its lightness differs from the last frame's by this much on average, in L* (more
#: than noise does) …
MIN_CUT_DIFFERENCE = 3.0

#: … and the correlation of the two is below this (a flash, a fade and a fast movement keep it higher).
MAX_CUT_CORRELATION = 0.5


@dataclass
class TemporalSmoother:
    """Averages the chroma maps of a film's frames, in their order.

    With cₜ the chroma and Lₜ the lightness of frame t at one place of the map, Cₜ and Rₜ their averages:

        eₜ = Lₜ − Rₜ₋₁, less its median over the frame
        dₜ = | mean of eₜ over the 3 × 3 places around |
        sₜ = (dₜ − STILL) / (MOVED − STILL), clipped to [0, 1]
        wₜ = (1 − smoothing) + smoothing · sₜ
        Cₜ = Cₜ₋₁ + wₜ (cₜ − Cₜ₋₁),   Rₜ = Rₜ₋₁ + wₜ (Lₜ − Rₜ₋₁)

    A still place is averaged exponentially; a place whose lightness has moved away from what its colour was averaged
    over takes the new colour at once. Comparing with Rₜ₋₁ instead of the last frame also notices slow movement. The
    median is there so that the flicker of old film and fades do not look like movement, the mean over 3 × 3 places so
    that noise does not. At a cut (see CUT_DIFFERENCE and CUT_CORRELATION) the average begins anew. What moves without
    a change of lightness is not seen to move: there the old colour fades by the factor ``smoothing`` a frame.

    Attributes:
        smoothing: from 0 (every frame by itself) to below 1.
        cuts: how many frames began a new scene, the first one not counted.
    """

    smoothing: float = DEFAULT_SMOOTHING
    num_cuts: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"smoothing is {self.smoothing}: give 0 (each frame by itself) to below 1, such as 0.9")
        self._previous: Float32[np.ndarray, "height width"] | None = None

    def __call__(
        self, chroma: Float32[np.ndarray, "height width 2"], lightness: Float32[np.ndarray, "height width"]
    ) -> Float32[np.ndarray, "height width 2"]:
        """The smoothed a* and b* of the next frame; all frames' maps are of one size.

        Args:
            chroma: a* and b* of this frame by itself.
            lightness: L* of this frame, 0 to 100, averaged over each place of the map.
        """
        last, self._previous = self._previous, lightness
        if last is None or is_scene_cut(last, lightness):
            self.num_cuts += last is not None
            self._chroma, self._reference = chroma, lightness
            return chroma
        change = lightness - self._reference
        local = np.abs(_local_mean(change - np.median(change)))
        moved = ((local - STATIC_BELOW) / (MOVING_ABOVE - STATIC_BELOW)).clip(0, 1)
        weight = (1 - self.smoothing) + self.smoothing * moved
        self._reference = self._reference + weight * change
        self._chroma = self._chroma + weight[..., None] * (chroma - self._chroma)
        return self._chroma


def is_scene_cut(previous: Float32[np.ndarray, "height width"], current: Float32[np.ndarray, "height width"]) -> bool:
    """Whether a new scene begins between two frames, judged by their L* maps."""
    if np.abs(current - previous).mean() < MIN_CUT_DIFFERENCE:
        return False
    a, b = previous - previous.mean(), current - current.mean()
    return bool((a * b).sum() <= MAX_CUT_CORRELATION * np.sqrt((a * a).sum() * (b * b).sum()))


def _local_mean(plane: Float32[np.ndarray, "height width"]) -> Float32[np.ndarray, "height width"]:
    """Mean over each place and its neighbours; at the edges over those that exist."""
    means = F.avg_pool2d(torch.from_numpy(plane)[None, None], 3, stride=1, padding=1, count_include_pad=False)
    result: np.ndarray = means[0, 0].numpy()
    return result


Frame = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class VideoSummary:
    """What was written: `seconds` of video, the average rate `fps`, streams copied unchanged, and those left out."""

    num_frames: int
    seconds: float
    width: int
    height: int
    fps: float
    num_scenes: int
    audio_streams: int
    subtitle_streams: int
    skipped_streams: tuple[str, ...]


def colourise_video(
    source: Path,
    target: Path,
    predict_chroma: Callable[[Frame], ChromaMap],
    *,
    smoothing: float = DEFAULT_SMOOTHING,
    crf: float = DEFAULT_CRF,
    show_progress: bool = True,
) -> VideoSummary:
    """Colour the film at `source` and write it to `target`, MP4, MOV or Matroska by suffix.

    Args:
        source: a film; of a coloured one ``predict`` alone decides whether its colours matter.
        target: is written aside and put in place when it is whole; its folder is made if need be.
        predict: from an upright frame, sRGB 0 to 255, to its a* and b*; one size of map for all frames.
        smoothing: how much of the past a still place keeps, 0 to below 1 (see :class:`ChromaSmoother`).
        crf: quality of the encoding, 0 (lossless) to 51 (worst).
        show_progress: a bar with rate and time left, where standard error is a terminal.

    Memory does not grow with the number of frames. Raises UsageError and ChromaboxError as :func:`survey_film` and
    :func:`remake_film` say; then, and on Ctrl-C, nothing is left at `target` that was not there before.
    """
    smoother = TemporalSmoother(smoothing)
    check_target(source, target)
    film = probe_video(source)
    with progress_bar(source.name, film.num_frames, unit="frames", show=show_progress) as tick:

        def coloured(frame: Frame) -> Frame:
            chroma = predict_chroma(frame)
            result = apply_chroma(frame, smoother(chroma, lightness_at_size(frame, *chroma.shape[:2])))
            tick()
            return result

        remade = transcode(film, target, coloured, crf=crf)
    return VideoSummary(
        num_frames=remade.num_frames,
        seconds=film.seconds,
        width=remade.width,
        height=remade.height,
        fps=film.fps,
        num_scenes=smoother.num_cuts + 1,
        audio_streams=remade.audio_streams,
        subtitle_streams=remade.subtitle_streams,
        skipped_streams=remade.skipped_streams,
    )


def lightness_at_size(frame: Frame, height: int, width: int) -> Float32[np.ndarray, "{height} {width}"]:
    """L* of the frame averaged down to the size of a chroma map."""
    small = Image.fromarray(frame).resize((width, height), Image.Resampling.BOX)
    return lightness(np.asarray(small))
