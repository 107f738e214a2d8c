"""The coarse work grid: about 2 mm, in fixed anatomical axes, and the way back to the native voxels.

Whole-chest morphology needs neither the native resolution nor the order in which a scanner stored the slices. The work
grid averages whole blocks of native voxels, so that every native voxel belongs to exactly one work voxel and nothing
is interpolated, and its axes always grow to the head, to the back and to the left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, Final, Self

import cc3d
import numpy as np
import numpy.typing as npt

from ctnode.ct.grid import Grid, Volume

WORK_SPACING_MM: Final = 2.0

Int16Array = npt.NDArray[np.int16]
Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]
Box = tuple[slice, slice, slice]

# Labels of the masks, on the work grid and on the native one.
RIGHT: Final = 1
LEFT: Final = 2
AIRWAY: Final = 3

# The axes of a work array, as indices of LPS: axis 0 to the head (S), axis 1 to the back (P), axis 2 to the left (L).
_WORK_AXES_LPS: Final = (2, 1, 0)

# Nothing that was measured is under this; scanners fill what they did not reconstruct with -1500, -2000 or -3024.
_LOWEST_MEASURED_HU: Final = -1100
# A constant fill at or under this, in the corners of a plane, is no measurement either: room air has noise.
_LARGEST_FILL_HU: Final = -1000

# Codes of a work voxel for the refinement: 1..3 are copied; with this offset the native voxels decide by threshold.
BY_THRESHOLD: Final = 3


@dataclass(frozen=True, eq=False, slots=True)
class Coarse:
    """A volume on the work grid.

    Parameters
    ----------
    hu
        ``(s, p, l)`` int16, means of blocks, clipped to what CT numbers mean (-1024..3071 HU).
    outside
        ``(s, p, l)`` bool, true where at least one native voxel of the block is padding, or all of them hold the
        constant that fills the corners of the plane.
    spacing_mm
        Along ``(s, p, l)``.
    order, flipped
        Work axis ``a`` is native axis ``order[a]``, reversed where ``flipped[a]``.
    factors
        Native voxels per work voxel along the native ``(z, y, x)``.
    fill_hu
        The least value that fills corners of planes, 0 where none does.
    """

    hu: Int16Array
    outside: Mask
    spacing_mm: tuple[float, float, float]
    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    factors: tuple[int, int, int]
    fill_hu: float

    @property
    def voxel_ml(self) -> float:
        """Return the volume of one work voxel in millilitres."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    def part(self, box: Box) -> Self:
        """Return what lies in ``box``; its arrays go with others of that box, not back to the native voxels."""
        return replace(self, hu=np.ascontiguousarray(self.hu[box]), outside=np.ascontiguousarray(self.outside[box]))

    def to_native_order(self, work: Labels) -> Labels:
        """Return ``work`` (s, p, l) with its axes in the native order and direction, still coarse."""
        flips = tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)
        return np.ascontiguousarray(work[flips].transpose(np.argsort(self.order)))


def anatomical_axes(grid: Grid) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return which native axis runs along S, P and L, and whether it runs against it.

    The assignment maximises the sum of the direction cosines, so it is unique short of a 45 degree oblique. It comes
    from the affine alone: prone, feet-first and flipped stacks differ from others only there.
    """
    columns = grid.directions[:, ::-1]  # columns of the native array axes (z, y, x)
    best = max(
        permutations(range(3)),
        key=lambda order: sum(abs(float(columns[lps, axis])) for lps, axis in zip(_WORK_AXES_LPS, order, strict=True)),
    )
    flipped = tuple(bool(columns[lps, axis] < 0.0) for lps, axis in zip(_WORK_AXES_LPS, best, strict=True))
    return (best[0], best[1], best[2]), (flipped[0], flipped[1], flipped[2])


def coarsen(volume: Volume, *, spacing_mm: float = WORK_SPACING_MM) -> Coarse:
    """Return ``volume`` on the work grid.

    Parameters
    ----------
    volume
        Any orientation; int16 or float32 in HU.
    spacing_mm
        Blocks are as many voxels wide as come closest to this.
    """
    native = volume.grid.spacing_mm
    factors = tuple(max(1, int(spacing_mm / step + 0.5)) for step in native)
    starts = [np.arange(0, size, factor) for size, factor in zip(volume.grid.shape, factors, strict=True)]
    sizes = [np.diff(np.append(start, size)) for start, size in zip(starts, volume.grid.shape, strict=True)]
    shape = tuple(len(start) for start in starts)
    hu = np.empty(shape, dtype=np.int16)
    outside = np.zeros(shape, dtype=np.bool_)
    area = (sizes[1][:, None] * sizes[2][None, :]).astype(np.float32)
    fills: list[float] = []
    total = np.int32 if volume.voxels.dtype == np.int16 else np.float32
    for index, (first, count) in enumerate(zip(starts[0], sizes[0], strict=True)):
        slab = slice(int(first), int(first + count))
        values = volume.voxels[slab]
        plane = _merged(values, factors[0], 0, np.add, total)[0]
        blocks = _merged(_merged(plane, factors[1], 0, np.add), factors[2], 1, np.add)
        means = blocks / (area * np.float32(count))
        hu[index] = np.rint(np.clip(means, -1024.0, 3071.0))
        padded = None if volume.padding is None else np.logical_or.reduce(volume.padding[slab], axis=0)
        fill = _fill_hu(values)
        if fill is not None:
            fills.append(fill)
            outside[index] = _filled(means, fill)
            if fill < _LOWEST_MEASURED_HU:
                unmeasured = (values == fill).any(axis=0)
                padded = unmeasured if padded is None else padded | unmeasured
        if padded is not None:
            outside[index] |= _merged(_merged(padded, factors[1], 0, np.logical_or), factors[2], 1, np.logical_or)
    order, flipped = anatomical_axes(volume.grid)
    flips = tuple(slice(None, None, -1 if flip else 1) for flip in flipped)
    work = [step * factor for step, factor in zip(native, factors, strict=True)]
    return Coarse(
        hu=np.ascontiguousarray(hu.transpose(order)[flips]),
        outside=np.ascontiguousarray(outside.transpose(order)[flips]),
        spacing_mm=(work[order[0]], work[order[1]], work[order[2]]),
        order=order,
        flipped=flipped,
        factors=(factors[0], factors[1], factors[2]),
        fill_hu=min(fills, default=0.0),
    )


def _merged(
    values: npt.NDArray[Any], factor: int, axis: int, merge: np.ufunc, dtype: type[np.generic] | None = None
) -> npt.NDArray[Any]:
    """Return ``values`` with each ``factor`` neighbours along ``axis`` (0 or 1) merged; the last may be fewer."""
    before = (slice(None),) * axis
    merged = values[(*before, slice(0, None, factor))].astype(dtype or values.dtype)
    for offset in range(1, factor):
        further = values[(*before, slice(offset, None, factor))]
        part = merged[(*before, slice(0, further.shape[axis]))]
        merge(part, further, out=part)
    return merged


def _fill_hu(values: npt.NDArray[Any]) -> float | None:
    """Return the value with which a scanner filled the corners of ``values`` (z, y, x), None where they hold air.

    A fill is the same in all corners, the least value there is, and no more than that of air.
    """
    corners = values[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    fill = corners.flat[0]
    if fill > _LARGEST_FILL_HU or np.any(corners != fill) or values.min() < fill:
        return None
    return float(fill)


def _filled(means: npt.NDArray[Any], fill: float) -> Mask:
    """Return the blocks ``(y, x)`` that hold nothing but ``fill`` and hang together with a corner.

    The fill is the least value, so a mean that equals it has no other value in it.
    """
    parts = cc3d.connected_components(means == fill, connectivity=4)
    ends = np.unique(parts[[0, 0, -1, -1], [0, -1, 0, -1]])
    filled: Mask = np.isin(parts, ends[ends > 0])
    return filled


def refine(volume: Volume, coarse: Coarse, codes: Labels, threshold_hu: float) -> Labels:
    """Return native labels ``(z, y, x)`` uint8 from work ``codes`` (s, p, l).

    Codes up to 3 are copied to all native voxels of the block; a higher one gives its label (code - 3) only to native
    voxels below ``threshold_hu``. Padding is never labelled.
    """
    native = coarse.to_native_order(codes)
    _, ny, nx = volume.grid.shape
    fz, fy, fx = coarse.factors
    labels = np.zeros(volume.grid.shape, dtype=np.uint8)
    for index, plane in enumerate(native):
        rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
        if rows.size == 0:
            continue
        top, left = int(rows[0]), int(columns[0])
        part = plane[top : rows[-1] + 1, left : columns[-1] + 1].repeat(fy, axis=0).repeat(fx, axis=1)
        window = (
            slice(index * fz, (index + 1) * fz),
            slice(top * fy, min(ny, top * fy + part.shape[0])),
            slice(left * fx, min(nx, left * fx + part.shape[1])),
        )
        part = part[: window[1].stop - window[1].start, : window[2].stop - window[2].start]
        copied = np.where(part <= BY_THRESHOLD, part, 0).astype(np.uint8)
        decided = np.where(part > BY_THRESHOLD, part - BY_THRESHOLD, copied).astype(np.uint8)
        values = volume.voxels[window]
        chosen = np.where(values < threshold_hu, decided, copied)
        if coarse.fill_hu < _LOWEST_MEASURED_HU:
            chosen[values == coarse.fill_hu] = 0
        labels[window] = chosen
    if volume.padding is not None:
        labels[volume.padding] = 0
    return labels


def box_of(mask: Mask) -> Box:
    """Return the box of ``mask`` (s, p, l), which is not empty, with at least one voxel to spare where there is one.

    It starts at even indices: halves are rounded to the same side in the box as in the whole.
    """
    found = (np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    planes, rows, columns = (slice(max(0, (int(ends[0]) - 1) // 2 * 2), int(ends[-1]) + 2) for ends in found)
    return planes, rows, columns


def grown(mask: Mask, axes: tuple[int, ...] = (0, 1, 2)) -> Mask:
    """Return ``mask`` and its direct neighbours along ``axes``."""
    result = mask.copy()
    for axis in axes:
        low = tuple(slice(None, -1) if other == axis else slice(None) for other in range(3))
        high = tuple(slice(1, None) if other == axis else slice(None) for other in range(3))
        result[low] |= mask[high]
        result[high] |= mask[low]
    return result
