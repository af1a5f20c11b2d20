"""Exact lookup of the nearest palette colour with one table access per pixel.

There are only 256³ different 8-bit colours. The labels of all of them fit in a table of 16 MB. Each pixel costs one
read, whatever the number of palette colours. The table is filled efficiently:

* It is filled on demand, in cells of 8×8×8 colours, because an image uses only a part of the RGB cube.
* Within a cell, most colours of the palette cannot be the nearest. Let d_k be the distance of a pixel from colour c_k,
  and c_j the colour nearest to the centre of the cell. The difference d_k² − d_j² is a linear function of the pixel.
  Within a cell of half-width h, the difference therefore deviates from its value at the centre by at most
  2h‖c_k − c_j‖₁. Colour k is excluded if the value at the centre exceeds this bound.
* The distances from all points of a cell to the remaining colours are compared in float64. A squared distance is the
  sum of one term for each channel. Within a cell, each term has only eight different values.

The labels equal those of `((pixel / 256 - colours) ** 2).sum(-1).argmin(-1)` in float64 for every pixel. A tie goes to
the lower index. This module computes in 8-bit units (colours × 256). Scaling by a power of two does not change the
rounding.
"""

from threading import Lock

import numpy as np
from jaxtyping import Float, Int64, UInt8

from chromabox.runtime.parallel import map_row_bands

#: Number of colours along an edge of a cell. The eight labels along blue are stored as one 64-bit word.
CELL_SIZE = 8
CELLS_PER_AXIS = 256 // CELL_SIZE
#: Value that marks an unfilled entry. In a palette of 256 colours, it is also the label of the last colour.
UNFILLED = 255
#: Safety margin, in squared 8-bit units, far larger than the rounding error of a difference of squared distances.
ROUNDING_MARGIN = 0.02
PIXELS_PER_BAND = 1 << 17  # The indices of a band (1 MB) fit in a core's cache.
CELLS_PER_CHUNK = 128


class ColourLUT:
    """Labels of all 8-bit colours for one palette, computed on demand.

    colours: at most 256 colours, as RGB values divided by 256. The table takes 16 MB. Threads can share an instance.
    Only one thread fills the table at a time, and a cell is marked as filled after all its labels have been written.
    """

    def __init__(self, colours: Float[np.ndarray, "colours 3"]) -> None:
        # Of equal colours, only the first can be the nearest. Its duplicates would only be additional candidates.
        first = np.sort(np.unique(colours, axis=0, return_index=True)[1])
        self._index = first.astype(np.uint8)
        self._colours = colours[first].astype(np.float64) * 256
        self._squared_norms = (self._colours**2).sum(-1)
        l1_distances = np.abs(self._colours[:, None] - self._colours).sum(-1)
        self._max_difference = (CELL_SIZE - 1) * l1_distances + ROUNDING_MARGIN
        self._table = np.full(256**3, UNFILLED, np.uint8)
        self._filled = np.zeros(CELLS_PER_AXIS**3, np.bool_)
        self._fill_lock = Lock()

    def lookup(self, planes: UInt8[np.ndarray, "3 *shape"]) -> UInt8[np.ndarray, "*shape"]:
        """Return the index of each pixel's nearest colour. The three planes may have any strides and are not copied."""
        labels = np.empty(planes.shape[1:], np.uint8)
        if labels.ndim > 2 and (len(labels) == 1 or labels[0].size > PIXELS_PER_BAND):
            for item, item_labels in enumerate(labels):
                item_labels[...] = self.lookup(planes[:, item])
        elif labels.size:
            # Treat a single pixel as a row of one.
            rows, planes = (labels, planes) if labels.ndim else (labels.reshape(1), planes.reshape(3, 1))
            shape = (len(rows), rows[0].size)
            map_row_bands(lambda band: self._lookup_rows(planes[:, band], rows[band]), shape, PIXELS_PER_BAND)
        return labels

    def _lookup_rows(self, planes: UInt8[np.ndarray, "3 *shape"], labels: UInt8[np.ndarray, "*shape"]) -> None:
        """Set `labels` to the table entries at `red << 16 | green << 8 | blue`. Unfilled cells are filled first."""
        index = np.empty(labels.shape, "<i8")
        index[...] = planes[2]  # Write the lowest byte and clear the others.
        channel_bytes = index.view(np.uint8).reshape(*index.shape, 8)
        channel_bytes[..., 1], channel_bytes[..., 2] = planes[1], planes[0]
        # With mode "raise", NumPy would buffer the output. No index is out of range.
        np.take(self._table, index, out=labels, mode="clip")
        unfilled = labels == UNFILLED
        if not unfilled.any():
            return
        missing = index[unfilled]
        cells = (missing >> 9 & 0x7C00) | (missing >> 6 & 0x3E0) | (missing >> 3 & 0x1F)
        required = np.zeros_like(self._filled)
        required[cells] = True
        with self._fill_lock:  # Another thread may have filled some of these cells in the meantime.
            new = np.flatnonzero(required & ~self._filled)
            for start in range(0, len(new), CELLS_PER_CHUNK):
                self._fill(new[start : start + CELLS_PER_CHUNK])
        labels[unfilled] = self._table[missing]

    def _fill(self, cells: Int64[np.ndarray, "cells"]) -> None:
        """Compute the labels of all colours of the given cells."""
        corner = np.stack(np.unravel_index(cells, [CELLS_PER_AXIS] * 3), -1) * CELL_SIZE
        # d² without the squared norm of the pixel, which is the same for every colour of the palette.
        distances = self._squared_norms - 2 * (corner + (CELL_SIZE - 1) / 2) @ self._colours.T
        nearest = distances.argmin(-1)
        is_candidate = distances - distances.min(-1, keepdims=True) <= self._max_difference[nearest]
        # Sort the cells by number of candidates, in descending order. The cells with an n-th candidate are then first.
        count = is_candidate.sum(-1)
        order = np.argsort(-count, kind="stable")
        corner, count, candidates = corner[order], count[order], np.nonzero(is_candidate[order])[1]
        first = np.cumsum(count) - count
        channels = corner[..., None] + np.arange(CELL_SIZE)  # The values of each channel in each cell.
        lowest = np.full((len(cells), CELL_SIZE, CELL_SIZE, CELL_SIZE), np.inf)
        labels = np.empty(lowest.shape, np.uint8)
        labels[...] = self._index[nearest[order], None, None, None]
        for turn in range(count[0]):
            n = np.count_nonzero(count > max(turn, 1))  # Cells with one candidate are already complete.
            candidate = candidates[first[:n] + turn]
            red, green, blue = ((channels[:n] - self._colours[candidate, :, None]) ** 2).swapaxes(0, 1)
            distance = (red[:, :, None] + green[:, None])[..., None] + blue[:, None, None]
            np.copyto(labels[:n], self._index[candidate, None, None, None], where=distance < lowest[:n])
            np.minimum(lowest[:n], distance, out=lowest[:n])
        red, green, blue = (corner // CELL_SIZE).T
        words = self._table.view(np.uint64).reshape([CELLS_PER_AXIS, CELL_SIZE] * 2 + [CELLS_PER_AXIS])
        words[red, :, green, :, blue] = labels.view(np.uint64)[..., 0]
        self._filled[cells] = True
