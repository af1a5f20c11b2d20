"""A film in, the same film in colour out: every frame's own lightness, colours that do not flicker, all else kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from chromabox.colour.recolour import lightness, recolour
from chromabox.colour.smoothing import DEFAULT_SMOOTHING, ChromaSmoother
from chromabox.engine.logger import progress
from chromabox.io.video import DEFAULT_CRF, VIDEO_SUFFIXES, refuse_target, remake_film, survey_film

__all__ = ["VIDEO_SUFFIXES", "VideoSummary", "colour_video"]

Frame = UInt8[np.ndarray, "height width 3"]
ChromaMap = Float32[np.ndarray, "small_height small_width 2"]


@dataclass(frozen=True)
class VideoSummary:
    """What was written: `seconds` of video, the average rate `fps`, streams copied unchanged, and those left out."""

    frames: int
    seconds: float
    width: int
    height: int
    fps: float
    scenes: int
    audio_streams: int
    subtitle_streams: int
    left_out: tuple[str, ...]


def colour_video(
    source: Path,
    target: Path,
    predict: Callable[[Frame], ChromaMap],
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
    smoother = ChromaSmoother(smoothing)
    refuse_target(source, target)
    film = survey_film(source)
    with progress(source.name, film.frames, unit="frames", show=show_progress) as tick:

        def coloured(frame: Frame) -> Frame:
            chroma = predict(frame)
            result = recolour(frame, smoother(chroma, small_lightness(frame, *chroma.shape[:2])))
            tick()
            return result

        remade = remake_film(film, target, coloured, crf=crf)
    return VideoSummary(
        frames=remade.frames,
        seconds=film.seconds,
        width=remade.width,
        height=remade.height,
        fps=film.fps,
        scenes=smoother.cuts + 1,
        audio_streams=remade.audio_streams,
        subtitle_streams=remade.subtitle_streams,
        left_out=remade.left_out,
    )


def small_lightness(frame: Frame, height: int, width: int) -> Float32[np.ndarray, "{height} {width}"]:
    """L* of the frame averaged down to the size of a chroma map."""
    small = Image.fromarray(frame).resize((width, height), Image.Resampling.BOX)
    return lightness(np.asarray(small))
