"""Colourisation of videos, with temporal smoothing of the chroma maps to reduce flicker.

The lightness of every frame, the audio and the other streams are preserved. The smoothing is a running average that is
reset where the image moves.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from chromabox.colour.chroma.recolour import ChromaMap, apply_chroma, box_filter, lightness
from chromabox.engine.logger import progress_bar
from chromabox.errors import UsageError
from chromabox.io.manifest import sha256_file
from chromabox.io.video import (
    DEFAULT_CRF,
    SEGMENT_FRAMES,
    Resumption,
    TranscodeResult,
    check_target,
    encoder_version,
    probe_video,
    transcode,
)

log = logging.getLogger(__name__)

#: Default weight of the previous frames in the running average in static regions. With this weight, the contribution
#: of a frame is halved after about three frames.
DEFAULT_SMOOTHING = 0.8

#: A position is static if its lightness L* changes by less than ``STATIC_BELOW``, and fully moving if L* changes by
#: more than ``MOVING_ABOVE``.
STATIC_BELOW, MOVING_ABOVE = 2.0, 8.0

#: A frame starts a new scene if the mean absolute difference of L* between this frame and the previous one is at least
#: this value, and the correlation of L* in the two frames is at most ``MAX_CUT_CORRELATION``. Noise causes smaller
#: differences.
MIN_CUT_DIFFERENCE = 3.0

#: Maximum correlation of L* across a scene cut. The correlation is higher at flashes, fades and fast movement.
MAX_CUT_CORRELATION = 0.5


class TemporalSmoother:
    """Running average of the chroma maps of a video. Call the instance on the frames in order.

    Let cₜ be the chroma and Lₜ the lightness of frame t at one position of the map, and let Cₜ and Rₜ be the running
    averages of cₜ and Lₜ:

        eₜ = Lₜ − Rₜ₋₁, minus its median over the frame
        dₜ = | mean of eₜ over the 3 × 3 neighbourhood |
        sₜ = (dₜ − STATIC_BELOW) / (MOVING_ABOVE − STATIC_BELOW), clipped to [0, 1]
        wₜ = (1 − smoothing) + smoothing · sₜ
        Cₜ = Cₜ₋₁ + wₜ (cₜ − Cₜ₋₁),   Rₜ = Rₜ₋₁ + wₜ (Lₜ − Rₜ₋₁)

    At a static position, Cₜ is an exponential moving average. Where the lightness differs strongly from its average,
    the new colour takes effect immediately. The comparison with Rₜ₋₁ instead of the previous frame also detects slow
    movement. Subtracting the median prevents brightness flicker and fades from being detected as movement. The 3 × 3
    mean suppresses noise. At a scene cut (see :func:`is_scene_cut`), the average is reset. Movement without a change in
    lightness is not detected. In this case, the weight of the previous colour is multiplied by ``smoothing`` in every
    frame.

    ``smoothing`` is at least 0 (independent frames) and less than 1. Raise UsageError for other values.
    """

    def __init__(self, smoothing: float = DEFAULT_SMOOTHING) -> None:
        if not 0 <= smoothing < 1:
            raise UsageError(
                f"temporal smoothing is {smoothing}: expected at least 0 (independent frames) and less than 1"
            )
        self.smoothing = smoothing
        self._previous: Float32[np.ndarray, "height width"] | None = None

    def __call__(
        self, chroma: Float32[np.ndarray, "height width 2"], lightness: Float32[np.ndarray, "height width"]
    ) -> Float32[np.ndarray, "height width 2"]:
        """Return the smoothed a* and b* of the next frame. The maps of all frames must have the same size.

        Args:
            chroma: a* and b* predicted for this frame alone.
            lightness: L* of this frame, 0 to 100, averaged over the area of each position of the map.
        """
        previous, self._previous = self._previous, lightness
        if previous is None or is_scene_cut(previous, lightness):
            self._chroma, self._reference = chroma, lightness
            return chroma
        change = lightness - self._reference
        local_change = np.abs(box_filter((change - np.median(change))[None])[0])
        movement = ((local_change - STATIC_BELOW) / (MOVING_ABOVE - STATIC_BELOW)).clip(0, 1)
        weight = (1 - self.smoothing) + self.smoothing * movement
        self._reference = self._reference + weight * change
        self._chroma = self._chroma + weight[..., None] * (chroma - self._chroma)
        return self._chroma

    def get_state(self) -> dict[str, Float32[np.ndarray, "..."]]:
        """Return the running averages as arrays, from which :meth:`restore` continues."""
        if self._previous is None:
            return {}
        return {"previous": self._previous, "chroma": self._chroma, "reference": self._reference}

    def restore(self, state: Mapping[str, Float32[np.ndarray, "..."]]) -> None:
        """Continue after the frame at which `state` was returned."""
        if state:
            self._previous, self._chroma, self._reference = (state[key] for key in ("previous", "chroma", "reference"))


def is_scene_cut(previous: Float32[np.ndarray, "height width"], current: Float32[np.ndarray, "height width"]) -> bool:
    """Return whether a new scene starts between two frames, given their L* maps (0 to 100)."""
    if np.abs(current - previous).mean() < MIN_CUT_DIFFERENCE:
        return False
    a, b = previous - previous.mean(), current - current.mean()
    return bool((a * b).sum() <= MAX_CUT_CORRELATION * np.sqrt((a * a).sum() * (b * b).sum()))


Frame = UInt8[np.ndarray, "height width 3"]


def colourise_video(
    source: Path,
    target: Path,
    predict_chroma: Callable[[Frame], ChromaMap],
    *,
    smoothing: float = DEFAULT_SMOOTHING,
    crf: float = DEFAULT_CRF,
    settings: Mapping[str, Any] | None = None,
    comment: str = "",
    show_progress: bool = True,
) -> TranscodeResult:
    """Colourise the video at `source` and write it to `target` as MP4, MOV or Matroska, according to the suffix.

    If `settings` are given, finished segments are kept in a hidden folder next to the target when the work stops, and
    the next call with the same source, target and settings resumes after them.

    Args:
        source: a grey or colour video. Only the lightness of its frames is kept.
        target: path of the output, which is written atomically. Missing folders are created.
        predict_chroma: function that takes an upright frame (sRGB, 0 to 255) and returns a small map of its a* and b*
            [height, width, 2]. The map must have the same size for all frames.
        smoothing: weight of the previous frames in static regions, in [0, 1) (see :class:`TemporalSmoother`).
        crf: constant rate factor of the encoder, 0 (lossless) to 51 (worst).
        settings: JSON values that determine the chroma maps, such as the digest of the model.
        comment: text that is appended to the comment in the metadata of the file.
        show_progress: show a progress bar if standard error is a terminal.

    Memory use does not depend on the number of frames. Raise UsageError and ChromaboxError as :func:`probe_video` and
    :func:`transcode` do. In these cases, and on Ctrl-C, `target` is unchanged.
    """
    smoother = TemporalSmoother(smoothing)
    check_target(source, target)
    video = probe_video(source)
    with progress_bar(source.name, video.num_frames, unit="frames", show=show_progress) as tick:

        def colourise_frame(frame: Frame) -> Frame:
            chroma = predict_chroma(frame)
            result = apply_chroma(frame, smoother(chroma, lightness_at_size(frame, *chroma.shape[:2])))
            tick()
            return result

        def restore(state: Mapping[str, np.ndarray], num_frames: int) -> None:
            smoother.restore(state)
            tick(num_frames)
            log.info(f"{source}: resumed after frame {num_frames} of {video.num_frames}")

        resumption = None
        if settings is not None:
            everything = [
                sha256_file(source),
                dict(settings),
                comment,
                smoothing,
                crf,
                SEGMENT_FRAMES,
                encoder_version(),
            ]
            key = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
            resumption = Resumption(key, smoother.get_state, restore)
        return transcode(video, target, colourise_frame, crf=crf, resumption=resumption, comment=comment)


def lightness_at_size(frame: Frame, height: int, width: int) -> Float32[np.ndarray, "{height} {width}"]:
    """Return L* (0 to 100) of the frame, reduced to the size of a chroma map by box filtering of its sRGB values."""
    small = Image.fromarray(frame).resize((width, height), Image.Resampling.BOX)
    return lightness(np.asarray(small))
