"""The nearest palette colour of every pixel: exact, and at the price of one look into a table.

A picture of 8-bit colours can hold only 256³ different ones, so the labels of all of them fit in a table of
16 MB and a pixel costs one read whatever the number of colours. What is left is to fill the table cheaply:

* It is filled on demand, in cells of 8×8×8 colours: a picture touches only a part of the cube.
* Within a cell most colours of the palette cannot win. The difference of two squared distances
  d_k² − d_j² is linear in the pixel, so over a cell of half-width h it departs from its value at the cell's
  centre by at most 2h‖c_k − c_j‖₁: colour k is out wherever its value there exceeds that.
* A cell with one colour left is filled with it; in the others those same linear differences are compared in
  float32, and wherever two of them are closer than that arithmetic can tell apart, the plain float64 way decides.

The labels are therefore those of `((pixel / 256 - colours) ** 2).sum(-1).argmin(-1)` in float64 for every
pixel, a tie going to the lower index. Work is in 8-bit units here (colours × 256): scaling by a power of
two changes no rounding.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, UInt8

CELL_SIZE = 8  # colours along an edge of a cell; the eight labels along blue are stored as one 64-bit word
CELLS_PER_AXIS = 256 // CELL_SIZE
UNFILLED = 255  # what an unfilled entry holds; a palette of 256 colours may also mean its last colour by it
TIE_TOLERANCE = 0.02  # squared 8-bit units: 20 times the worst float32 error of a difference within a cell
PIXELS_PER_CHUNK = 1 << 17  # the indices of a chunk (1 MB) stay in a core's cache
CELLS_PER_CHUNK = 512
MIN_PIXELS_TO_THREAD = 1 << 19  # pixels; below, starting threads costs about what they save
NUM_THREADS = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class ColourLUT:
    """Labels of all 8-bit colours for one palette, filled as they are asked for.

    colours: unit RGB/256, at most 256 of them. Takes 16 MB. Threads may share it: one fills at a time, and a
    cell counts as filled only once all its labels stand there.
    """

    def __init__(self, colours: Float[np.ndarray, "colours 3"]) -> None:
        # Of equal colours only the first can win; without the others no cell consists of ties.
        first = np.sort(np.unique(colours, axis=0, return_index=True)[1])
        self._index = first.astype(np.uint8)
        self._colours = colours[first].astype(np.float64) * 256
        self._squared_norms = (self._colours**2).sum(-1)
        apart = np.abs(self._colours[:, None] - self._colours).sum(-1)
        self._max_difference = (CELL_SIZE - 1) * apart + TIE_TOLERANCE
        self._table = np.full(256**3, UNFILLED, np.uint8)
        self._filled = np.zeros(CELLS_PER_AXIS**3, np.bool_)
        self._fill_lock = Lock()

    def lookup(self, planes: UInt8[np.ndarray, "3 *shape"]) -> UInt8[np.ndarray, "*shape"]:
        """Index of the nearest colour for pixels given as three planes, of any strides: views cost no copy."""
        labels = np.empty(planes.shape[1:], np.uint8)
        if not labels.size:
            return labels
        # A batch of one picture is cut up by its rows, a single pixel is a row of one.
        rows, planes = np.atleast_1d(labels), planes.reshape(3, 1) if planes.ndim == 1 else planes
        while len(rows) == 1 and rows.ndim > 1:
            rows, planes = rows[0], planes[:, 0]
        if labels.size < MIN_PIXELS_TO_THREAD or NUM_THREADS == 1:
            self._lookup_chunks(planes, rows)
            return labels
        slabs = range(0, len(rows), -(-len(rows) // (4 * NUM_THREADS)))
        with ThreadPoolExecutor(NUM_THREADS) as pool:  # numpy copies and takes without the interpreter's lock
            jobs = [
                pool.submit(self._lookup_chunks, planes[:, i : i + slabs.step], rows[i : i + slabs.step]) for i in slabs
            ]
        for job in jobs:
            job.result()
        return labels

    def _lookup_chunks(
        self, planes: UInt8[np.ndarray, "3 first *rest"], labels: UInt8[np.ndarray, "first *rest"]
    ) -> None:
        """Write the labels into `labels`, in chunks along the first axis that has many small enough items."""
        size = labels[0].size
        if size > PIXELS_PER_CHUNK:
            for item in range(len(labels)):
                self._lookup_chunks(planes[:, item], labels[item])
            return
        step = min(len(labels), PIXELS_PER_CHUNK // size)
        index = np.empty((step, *labels.shape[1:]), "<i8")
        octets = index.view(np.uint8).reshape(*index.shape, 8)
        for start in range(0, len(labels), step):
            chunk = labels[start : start + step]
            count = len(chunk)
            red, green, blue = planes[:, start : start + step]
            index[:count] = blue  # the lowest octet; clears the others
            octets[:count, ..., 1] = green
            octets[:count, ..., 2] = red
            self._gather(index[:count], chunk)

    def _gather(self, index: Int64[np.ndarray, "*shape"], labels: UInt8[np.ndarray, "*shape"]) -> None:
        """Read the table at red << 16 | green << 8 | blue; fill the cells met for the first time."""
        # "clip" only because "raise" makes numpy buffer the output; no index is ever out of range.
        np.take(self._table, index, out=labels, mode="clip")
        unknown = labels == UNFILLED
        if not unknown.any():
            return
        missing = index[unknown]
        cells = (missing >> 9 & 0x7C00) | (missing >> 6 & 0x3E0) | (missing >> 3 & 0x1F)
        wanted = np.zeros_like(self._filled)
        wanted[cells] = True
        with self._fill_lock:  # what another thread filled meanwhile is not filled again
            new = np.flatnonzero(wanted & ~self._filled)
            for start in range(0, len(new), CELLS_PER_CHUNK):
                self._fill(new[start : start + CELLS_PER_CHUNK])
        labels[unknown] = self._table[missing]

    def _fill(self, cells: Int64[np.ndarray, "cells"]) -> None:
        """Decide all colours of the given cells."""
        corner = np.stack(np.unravel_index(cells, (CELLS_PER_AXIS, CELLS_PER_AXIS, CELLS_PER_AXIS)), -1) * CELL_SIZE
        middle = corner + (CELL_SIZE - 1) / 2
        # d² less the pixel's own square, which is the same for every colour of the palette.
        power = self._squared_norms - 2 * middle @ self._colours.T
        best = power.argmin(-1)
        every = np.arange(len(cells))
        power -= power[every, best, None]
        rivals = power <= self._max_difference[best]
        rivals[every, best] = False
        count = rivals.sum(-1)
        labels = np.empty((len(cells), CELL_SIZE**3), np.uint8)
        labels[:] = self._index[best, None]
        order = np.argsort(-count, kind="stable")
        contested = order[: np.count_nonzero(count)]
        if contested.size:
            labels[contested] = self._resolve_contested(
                corner[contested], best[contested], power[contested], rivals[contested]
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
        power: Float64[np.ndarray, "cells colours"],
        candidates: Bool[np.ndarray, "cells colours"],
    ) -> UInt8[np.ndarray, "cells points"]:
        """Labels of every point of cells in which `best` (the middle's nearest) has rivals.

        The cells come with most rivals first, so that the n-th rivals concern only the first so many cells.
        """
        count = candidates.sum(-1)
        rival = np.nonzero(candidates)[1]
        begin = np.cumsum(count) - count
        lowest = np.zeros((len(best), CELL_SIZE**3), np.float32)
        labels = np.empty(lowest.shape, np.uint8)
        labels[:] = self._index[best, None]
        doubtful = np.zeros(lowest.shape, np.bool_)
        for turn in range(count[0]):
            n = np.count_nonzero(count > turn)
            challenger = rival[begin[:n] + turn]
            slope = -2 * (self._colours[challenger] - self._colours[best[:n]])
            plane = np.column_stack([power[np.arange(n), challenger], slope]).astype(np.float32)
            ahead = plane @ CELL_OFFSETS
            lead = ahead - lowest[:n]
            np.copyto(labels[:n], self._index[challenger, None], where=lead < 0)
            doubtful[:n] |= np.abs(lead, out=lead) < TIE_TOLERANCE
            np.minimum(lowest[:n], ahead, out=lowest[:n])
        cell, point = np.nonzero(doubtful)
        pixels = corner[cell] + np.stack(np.unravel_index(point, (CELL_SIZE, CELL_SIZE, CELL_SIZE)), -1)
        labels[cell, point] = self._brute_force(pixels)
        return labels

    def _brute_force(self, pixels: Int64[np.ndarray, "pixels 3"]) -> UInt8[np.ndarray, "pixels"]:
        """Labels by the squared distances to all colours in float64, in the order of the textbook formula."""
        nearest = np.empty(len(pixels), np.int64)
        for start in range(0, len(pixels), 4096):
            chunk = pixels[start : start + 4096].astype(np.float64)
            nearest[start : start + 4096] = ((chunk[:, None] - self._colours) ** 2).sum(-1).argmin(-1)
        return self._index[nearest]


# A point's offset from its cell's middle, with a leading one for the value there: [4, CELL³].
CELL_OFFSETS = np.concatenate(
    [np.ones((1, CELL_SIZE**3)), np.indices((CELL_SIZE, CELL_SIZE, CELL_SIZE)).reshape(3, -1) - (CELL_SIZE - 1) / 2]
).astype(np.float32)
