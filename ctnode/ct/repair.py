"""Carry out a plan: slices moved in their planes and interpolated along the normal, a few at a time (R12, R14, R15).

Everything is linear, so nothing is ever outside the range of what was measured. A voxel that would need a pixel which
is padding, or which lies outside of a source slice, becomes padding itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ctnode.ct.geometry import Plan

Mask = npt.NDArray[np.bool_]
Plane = npt.NDArray[np.float32]
_Voxels = npt.NDArray[np.int16] | npt.NDArray[np.float32]

# Gives source slice k as float32 ``(rows, columns)`` and its padding, None where it has none.
ReadPlane = Callable[[int], tuple[Plane, Mask | None]]


def carry_out(
    plan: Plan, read: ReadPlane, voxels: _Voxels, keep: Callable[[int, Mask], None], padding: float, *, threads: int = 2
) -> None:
    """Fill ``voxels`` slice by slice.

    Parameters
    ----------
    plan
        Which source slices make which slice of the grid.
    read
        Called for each source slice, seldom more than once.
    voxels
        ``(z, y, x)`` int16 or float32 of the grid, filled here; integers are rounded half to even.
    keep
        Called with the index of a slice and ``(y, x)`` bool where it is padding.
    padding
        The value of padding.
    """
    rows, columns = voxels.shape[1:]

    def part(start: int, stop: int) -> None:
        planes: OrderedDict[int, tuple[Plane, Mask]] = OrderedDict()

        def moved(index: int) -> tuple[Plane, Mask]:
            if index not in planes:
                while len(planes) > 1:
                    planes.popitem(last=False)
                planes[index] = shifted(*read(index), plan.shifts[index], rows, columns)
            return planes[index]

        for index in range(start, stop):
            plane, outside = moved(int(plan.lower[index]))
            share = float(plan.share[index])
            if share > 0.0:
                upper, beyond = moved(int(plan.upper[index]))
                plane = plane * np.float32(1.0 - share) + upper * np.float32(share)
                outside = outside | beyond
            voxels[index] = np.rint(plane) if voxels.dtype == np.int16 else plane
            voxels[index][outside] = padding
            keep(index, outside)

    cuts = np.linspace(0, len(voxels), threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        # In the order of space, so that of several faults the same one is always reported.
        for task in [pool.submit(part, start, stop) for start, stop in pairwise(cuts)]:
            task.result()


def shifted(
    plane: Plane, mask: Mask | None, shift: npt.ArrayLike, rows: int, columns: int, *, whole_pixels: float = 1e-4
) -> tuple[Plane, Mask]:
    """Return ``plane`` moved by ``shift`` (columns, rows) on a canvas of ``rows`` x ``columns``, and what is outside.

    A shift within ``whole_pixels`` of a whole number of pixels moves values and changes none.
    """
    mask = np.zeros(plane.shape, dtype=np.bool_) if mask is None else mask
    right, down = (float(part) for part in np.asarray(shift, dtype=np.float64))
    plane, mask, first_column = _moved(plane, mask, right, whole_pixels)
    turned, turned_mask, first_row = _moved(plane.T, mask.T, down, whole_pixels)
    canvas = np.zeros((rows, columns), dtype=np.float32)
    outside = np.ones((rows, columns), dtype=np.bool_)
    place = slice(first_row, first_row + turned.shape[1]), slice(first_column, first_column + turned.shape[0])
    canvas[place], outside[place] = turned.T, turned_mask.T
    return canvas, outside


def _moved(plane: Plane, mask: Mask, by: float, whole_pixels: float) -> tuple[Plane, Mask, int]:
    """Move along the second axis by less than a pixel; return also where the first sample then lies."""
    whole = round(by)
    if abs(by - whole) <= whole_pixels:
        return plane, mask, whole
    first = int(np.floor(by))
    part = np.float32(by - first)
    between = plane[:, 1:] * (1 - part) + plane[:, :-1] * part
    return between, mask[:, 1:] | mask[:, :-1], first + 1
