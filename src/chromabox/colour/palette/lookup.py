"""Exact nearest-palette-colour lookup with one table access per pixel.

There are only 256³ different 8-bit colours. The labels of all of them fit in a table of 16 MB, and each pixel costs
one read, whatever the number of palette colours. The table is filled efficiently:

* It is filled on demand, in cells of 8×8×8 colours: an image uses only a part of the cube.
* Within a cell, most colours of the palette cannot be the nearest. The difference of two squared distances
  d_k² − d_j² is linear in the pixel. Over a cell of half-width h it therefore differs from its value at the centre of
  the cell by at most 2h‖c_k − c_j‖₁: colour k is excluded if its value there exceeds this bound.
* A cell with one remaining colour is filled with it. In the other cells, the same linear differences are compared in
  float32. Where two of them are closer than the float32 error, the labels are computed by brute force in float64.

The labels are therefore those of `((pixel / 256 - colours) ** 2).sum(-1).argmin(-1)` in float64 for every pixel; a tie
goes to the lower index. This module computes in 8-bit units (colours × 256): scaling by a power of two changes no
rounding.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, UInt8

CELL_SIZE = 8  # colours along an edge of a cell; the eight labels along blue are stored as one 64-bit word
CELLS_PER_AXIS = 256 // CELL_SIZE
UNFILLED = 255  # marks an unfilled entry; in a palette of 256 colours it is also the label of the last colour
TIE_TOLERANCE = 0.02  # squared 8-bit units: 20 times the worst float32 error of a difference within a cell
PIXELS_PER_CHUNK = 1 << 17  # the indices of a chunk (1 MB) fit in a core's cache
CELLS_PER_CHUNK = 512
MIN_PIXELS_TO_THREAD = 1 << 19  # below this, starting threads costs about as much as they save
NUM_THREADS = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class ColourLUT:
    """Labels of all 8-bit colours for one palette, computed on demand.

    colours: at most 256, in the unit RGB/256. The table takes 16 MB. Threads can share an instance: only one thread
    fills the table at a time, and a cell is marked as filled only after all its labels have been written.
    """

    def __init__(self, colours: Float[np.ndarray, "colours 3"]) -> None:
        # Of equal colours, only the first can be the nearest. Without the others, no cell consists entirely of ties.
        first = np.sort(np.unique(colours, axis=0, return_index=True)[1])
        self._index = first.astype(np.uint8)
        self._colours = colours[first].astype(np.float64) * 256
        self._squared_norms = (self._colours**2).sum(-1)
        l1_distances = np.abs(self._colours[:, None] - self._colours).sum(-1)
        self._max_difference = (CELL_SIZE - 1) * l1_distances + TIE_TOLERANCE
        self._table = np.full(256**3, UNFILLED, np.uint8)
        self._filled = np.zeros(CELLS_PER_AXIS**3, np.bool_)
        self._fill_lock = Lock()

    def lookup(self, planes: UInt8[np.ndarray, "3 *shape"]) -> UInt8[np.ndarray, "*shape"]:
        """Return the index of each pixel's nearest colour; the three planes may have any strides and are not copied."""
        labels = np.empty(planes.shape[1:], np.uint8)
        if not labels.size:
            return labels
        # Split a batch of one image by its rows; treat a single pixel as a row of one.
        rows, planes = np.atleast_1d(labels), planes.reshape(3, 1) if planes.ndim == 1 else planes
        while len(rows) == 1 and rows.ndim > 1:
            rows, planes = rows[0], planes[:, 0]
        if labels.size < MIN_PIXELS_TO_THREAD or NUM_THREADS == 1:
            self._lookup_chunks(planes, rows)
            return labels
        row_chunks = range(0, len(rows), -(-len(rows) // (4 * NUM_THREADS)))
        with ThreadPoolExecutor(NUM_THREADS) as pool:  # NumPy copies and takes without the GIL
            futures = [
                pool.submit(self._lookup_chunks, planes[:, i : i + row_chunks.step], rows[i : i + row_chunks.step])
                for i in row_chunks
            ]
        for future in futures:
            future.result()
        return labels

    def _lookup_chunks(
        self, planes: UInt8[np.ndarray, "3 first *rest"], labels: UInt8[np.ndarray, "first *rest"]
    ) -> None:
        """Write the labels into `labels`, in chunks along the first axis whose items are small enough."""
        size = labels[0].size
        if size > PIXELS_PER_CHUNK:
            for item in range(len(labels)):
                self._lookup_chunks(planes[:, item], labels[item])
            return
        step = min(len(labels), PIXELS_PER_CHUNK // size)
        index = np.empty((step, *labels.shape[1:]), "<i8")
        channel_bytes = index.view(np.uint8).reshape(*index.shape, 8)
        for start in range(0, len(labels), step):
            chunk = labels[start : start + step]
            count = len(chunk)
            red, green, blue = planes[:, start : start + step]
            index[:count] = blue  # writes the lowest byte and clears the others
            channel_bytes[:count, ..., 1] = green
            channel_bytes[:count, ..., 2] = red
            self._gather(index[:count], chunk)

    def _gather(self, index: Int64[np.ndarray, "*shape"], labels: UInt8[np.ndarray, "*shape"]) -> None:
        """Read the table at red << 16 | green << 8 | blue; fill the cells that are not filled yet."""
        # With mode "raise", NumPy would buffer the output; no index is out of range.
        np.take(self._table, index, out=labels, mode="clip")
        unfilled = labels == UNFILLED
        if not unfilled.any():
            return
        missing = index[unfilled]
        cells = (missing >> 9 & 0x7C00) | (missing >> 6 & 0x3E0) | (missing >> 3 & 0x1F)
        required = np.zeros_like(self._filled)
        required[cells] = True
        with self._fill_lock:  # skips cells that another thread has filled in the meantime
            new = np.flatnonzero(required & ~self._filled)
            for start in range(0, len(new), CELLS_PER_CHUNK):
                self._fill(new[start : start + CELLS_PER_CHUNK])
        labels[unfilled] = self._table[missing]

    def _fill(self, cells: Int64[np.ndarray, "cells"]) -> None:
        """Compute the labels of all colours of the given cells."""
        corner = np.stack(np.unravel_index(cells, (CELLS_PER_AXIS, CELLS_PER_AXIS, CELLS_PER_AXIS)), -1) * CELL_SIZE
        centre = corner + (CELL_SIZE - 1) / 2
        # d² without the squared norm of the pixel, which is the same for every colour of the palette.
        distances = self._squared_norms - 2 * centre @ self._colours.T
        best = distances.argmin(-1)
        rows = np.arange(len(cells))
        distances -= distances[rows, best, None]
        candidates = distances <= self._max_difference[best]
        candidates[rows, best] = False
        count = candidates.sum(-1)
        labels = np.empty((len(cells), CELL_SIZE**3), np.uint8)
        labels[:] = self._index[best, None]
        order = np.argsort(-count, kind="stable")
        contested = order[: np.count_nonzero(count)]
        if contested.size:
            labels[contested] = self._resolve_contested(
                corner[contested], best[contested], distances[contested], candidates[contested]
            )
        words = labels.view(np.uint64).reshape(-1, CELL_SIZE, CELL_SIZE)
        red, green, blue = (corner // CELL_SIZE).T
        self._table.view(np.uint64).reshape(CELLS_PER_AXIS, CELL_SIZE, CELLS_PER_AXIS, CELL_SIZE, CELLS_PER_AXIS)[
            red, :, green, :, blue
        ] = words
        self._filled[cells] = True

    def _resolve_contested(
        self,
        corner: Int64[np.ndarray, "cells 3"],
        best: Int64[np.ndarray, "cells"],
        distances: Float64[np.ndarray, "cells colours"],
        candidates: Bool[np.ndarray, "cells colours"],
    ) -> UInt8[np.ndarray, "cells points"]:
        """Return the labels of all points in cells with candidates other than `best`, the colour nearest the centre.

        The cells are sorted by number of candidates, in descending order: only leading cells have an n-th candidate.
        """
        count = candidates.sum(-1)
        flat_candidates = np.nonzero(candidates)[1]
        first = np.cumsum(count) - count
        lowest = np.zeros((len(best), CELL_SIZE**3), np.float32)
        labels = np.empty(lowest.shape, np.uint8)
        labels[:] = self._index[best, None]
        near_tie = np.zeros(lowest.shape, np.bool_)
        for turn in range(count[0]):
            n = np.count_nonzero(count > turn)
            candidate = flat_candidates[first[:n] + turn]
            slope = -2 * (self._colours[candidate] - self._colours[best[:n]])
            plane = np.column_stack([distances[np.arange(n), candidate], slope]).astype(np.float32)
            difference = plane @ CELL_OFFSETS
            margin = difference - lowest[:n]
            np.copyto(labels[:n], self._index[candidate, None], where=margin < 0)
            near_tie[:n] |= np.abs(margin, out=margin) < TIE_TOLERANCE
            np.minimum(lowest[:n], difference, out=lowest[:n])
        cell, point = np.nonzero(near_tie)
        pixels = corner[cell] + np.stack(np.unravel_index(point, (CELL_SIZE, CELL_SIZE, CELL_SIZE)), -1)
        labels[cell, point] = self._brute_force(pixels)
        return labels

    def _brute_force(self, pixels: Int64[np.ndarray, "pixels 3"]) -> UInt8[np.ndarray, "pixels"]:
        """Compute labels from the squared distances to all colours in float64, like the reference formula."""
        nearest = np.empty(len(pixels), np.int64)
        for start in range(0, len(pixels), 4096):
            chunk = pixels[start : start + 4096].astype(np.float64)
            nearest[start : start + 4096] = ((chunk[:, None] - self._colours) ** 2).sum(-1).argmin(-1)
        return self._index[nearest]


# Offset of a point from the centre of its cell, with a leading one for the constant term: [4, CELL_SIZE³].
CELL_OFFSETS = np.concatenate(
    [np.ones((1, CELL_SIZE**3)), np.indices((CELL_SIZE, CELL_SIZE, CELL_SIZE)).reshape(3, -1) - (CELL_SIZE - 1) / 2]
).astype(np.float32)
