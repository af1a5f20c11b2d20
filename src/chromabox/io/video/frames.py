"""Conversion of frames to and from upright RGB.

Decoding uses the colour matrix and range in the file. If the file specifies no matrix, BT.709 is used for 720 lines or
more and BT.601 for fewer lines, as in video players. Encoding uses the same matrix and range.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32, UInt8

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# ITU-T H.273 numbers for matrix coefficients, primaries and transfer functions, and FFmpeg's numbers for the range.
BT709, UNSPECIFIED, SMPTE170M = 1, 2, 6
LIMITED, FULL = 1, 2

# swscale's number for each H.273 number of a matrix: BT.601 variants are 5, SMPTE 240M is 7, BT.2020 is 9.
SWSCALE_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
FramePixels = UInt8[np.ndarray, "height width 3"]


def default_colour_matrix(height: int) -> int:
    """Return the colour matrix to use for a video of this height if its file specifies none."""
    return BT709 if height >= 720 else SMPTE170M


def decode_frame(frame: "VideoFrame") -> FramePixels:
    """Return the pixels of a frame as upright RGB, using the colour matrix, range and display matrix of the frame."""
    rgb = frame.reformat(
        format="rgb24",
        src_colorspace=None if frame.format.is_rgb else SWSCALE_MATRIX[frame_matrix(frame)],
        src_color_range=FULL if frame.format.is_rgb else frame_range(frame),
        dst_color_range=FULL,
        interpolation=_swscale_flags(),
    ).to_ndarray()
    display = display_matrix(frame)
    upright = rgb if display[0, 0] else rgb.swapaxes(0, 1)
    right, down = display.sum(axis=0)
    return np.ascontiguousarray(upright[::down, ::right])


def frame_matrix(frame: "VideoFrame") -> int:
    """Return the colour matrix of a frame (ITU-T H.273 number), or the default if it is unspecified or unsupported."""
    is_supported = not frame.format.is_rgb and frame.colorspace in SWSCALE_MATRIX
    return int(frame.colorspace) if is_supported else default_colour_matrix(frame.height)


def frame_range(frame: "VideoFrame") -> int:
    """Return ``FULL`` or ``LIMITED``, the range of the luma and chroma values of a frame (limited for RGB)."""
    is_full = frame.format.name.startswith("yuvj") or (frame.color_range == FULL and not frame.format.is_rgb)
    return FULL if is_full else LIMITED


def encode_frame(pixels: FramePixels, matrix: int, colour_range: int = LIMITED) -> "VideoFrame":
    """Return pixels of even height and width as a 4:2:0 frame."""
    from av.video.frame import VideoFrame

    frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(
        format="yuv420p",
        src_color_range=FULL,
        dst_color_range=colour_range,
        dst_colorspace=SWSCALE_MATRIX[matrix],
        interpolation=_swscale_flags(),
    )


def display_matrix(frame: "VideoFrame") -> Int32[np.ndarray, "2 2"]:
    """Return the directions in which the rows and the columns of the stored frame are displayed.

    The first row of the result is the direction along a stored row, the second the direction along a stored column. A
    direction is (right, down) with values of −1, 0 or 1. A rotation is rounded to the nearest multiple of 90°.
    """
    side_data: Any = frame.side_data  # PyAV's stubs cover only one type of side data.
    data = side_data.get("DISPLAYMATRIX")
    if data is None:
        return np.eye(2, dtype=np.int32)
    matrix = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2].astype(np.int64)
    is_diagonal = np.abs(np.diag(matrix)).sum() >= np.abs(np.diag(matrix[::-1])).sum()
    signs = np.where(matrix < 0, -1, 1) * (np.eye(2) if is_diagonal else np.eye(2)[::-1])
    return signs.astype(np.int32)


def has_side_data(frame: "VideoFrame", name: str) -> bool:
    """Return whether a frame has side data of a type, given by FFmpeg's name."""
    side_data: Any = frame.side_data  # PyAV's stubs cover only one type of side data.
    return side_data.get(name) is not None


def _swscale_flags() -> int:
    """Return swscale flags for accurate conversion. The faster default has errors of up to 2 (of 255)."""
    from av.video.reformatter import Interpolation

    accurate = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    return int(Interpolation.BICUBIC | accurate)
