"""Frames of films as upright RGB, and RGB as frames that can be encoded.

Frames are decoded by the matrix and range that the film names, and where it names none by BT.709 from 720 lines on and
BT.601 below, as players do. What is to be encoded is BT.709 from 720 lines on and BT.601 below, in limited range.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32, UInt8

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# FFmpeg's numbers (ITU-T H.273): matrix coefficients (primaries and transfer functions alike), range.
BT709, UNSPECIFIED, SMPTE170M = 1, 2, 6
LIMITED, FULL = 1, 2
# swscale's own numbers for the same matrices, where they differ: all of BT.601 is 5, SMPTE 240M is 7, BT.2020 is 9.
_SWSCALE_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_HD_LINES = 720

Pixels = UInt8[np.ndarray, "height width 3"]


def matrix_for(height: int) -> int:
    """The matrix of a film of so many lines that does not name one."""
    return BT709 if height >= _HD_LINES else SMPTE170M


def upright_pixels(frame: "VideoFrame") -> Pixels:
    """The frame as RGB, by its own matrix and range, turned and mirrored as its display matrix says."""
    name = frame.format.name
    matrix = _SWSCALE_MATRIX.get(frame.colorspace)
    if matrix is None:
        matrix = _SWSCALE_MATRIX[matrix_for(frame.height)]
    full = frame.color_range == FULL or name.startswith("yuvj")
    rgb = frame.reformat(
        format="rgb24",
        src_colorspace=None if frame.format.is_rgb else matrix,
        src_color_range=FULL if full or frame.format.is_rgb else LIMITED,
        dst_color_range=FULL,
        interpolation=_exact(),
    ).to_ndarray()
    return _turned(rgb, display_matrix(frame))


def frame_to_encode(pixels: Pixels, original: "VideoFrame", matrix: int) -> "VideoFrame":
    """The pixels, sides made even, as 4:2:0 in limited range by a matrix, at the time of the original."""
    from av.video.frame import VideoFrame

    frame = VideoFrame.from_ndarray(np.ascontiguousarray(even(pixels)), format="rgb24")
    frame = frame.reformat(
        format="yuv420p",
        src_color_range=FULL,
        dst_color_range=LIMITED,
        dst_colorspace=_SWSCALE_MATRIX[matrix],
        interpolation=_exact(),
    )
    frame.pts, frame.time_base, frame.duration = original.pts, original.time_base, original.duration
    return frame


def display_matrix(frame: "VideoFrame") -> Int32[np.ndarray, "2 2"]:
    """Where the frame's right and its bottom point when shown, as two rows of (right, down): −1, 0 or 1 each.

    A turn that is not by a multiple of 90° counts as the nearest that is.
    """
    side_data: Any = frame.side_data  # PyAV's stubs know only one kind of it.
    data = side_data.get("DISPLAYMATRIX")
    if data is None:
        return np.eye(2, dtype=np.int32)
    matrix = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2].astype(np.int64)
    straight = np.abs(np.diag(matrix)).sum() >= np.abs(np.diag(matrix[::-1])).sum()
    signs = np.where(matrix < 0, -1, 1) * (np.eye(2) if straight else np.eye(2)[::-1])
    return signs.astype(np.int32)


def _turned(pixels: Pixels, matrix: Int32[np.ndarray, "2 2"]) -> UInt8[np.ndarray, "upright_height upright_width 3"]:
    if matrix[0, 0] == 0:
        pixels = pixels.swapaxes(0, 1)
    right, down = matrix.sum(axis=0)
    return np.ascontiguousarray(pixels[::down, ::right])


def even(pixels: Pixels) -> UInt8[np.ndarray, "even_height even_width 3"]:
    """A side of odd length gets its last row or column once more."""
    height, width, _ = pixels.shape
    if height % 2 == width % 2 == 0:
        return pixels
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _exact() -> int:
    """How swscale converts: by the book instead of by its shortcuts, which are off by up to 2 of 255."""
    from av.video.reformatter import Interpolation

    exact = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    return int(Interpolation.BICUBIC | exact)
