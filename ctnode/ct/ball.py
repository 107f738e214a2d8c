"""Dilation and erosion by a ball in millimetres, on eight voxels at a time.

A distance map answers the same question, but computes the distance of every voxel to know whether it is at most one
radius. Here each row is widened by each half-width of the ball once, packed to bits, and the rows are joined.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import numpy as np

from ctnode.ct.coarse import Mask

# A voxel exactly on the sphere is within it, however its distance was rounded.
_ROUNDING: Final = 1e-6


def dilated(mask: Mask, spacing_mm: tuple[float, float, float], radius_mm: float) -> Mask:
    """Return the voxels whose centre is at most ``radius_mm`` from one of ``mask`` (s, p, l); beyond it is nothing."""
    planes, rows, columns = mask.shape
    radius_mm *= 1.0 + _ROUNDING
    up, back = min(int(radius_mm / spacing_mm[0]), planes), min(int(radius_mm / spacing_mm[1]), rows)
    packed = np.zeros((planes + 2 * up, rows + 2 * back, (columns + 7) // 8), dtype=np.uint8)
    result = np.zeros((planes, rows, packed.shape[2]), dtype=np.uint8)
    wide, reached = mask.copy(), 0
    for width, shifts in sorted(_rows_of_ball(spacing_mm, radius_mm, up, back).items()):
        for step in range(reached + 1, min(width, columns - 1) + 1):
            wide[:, :, step:] |= mask[:, :, :-step]
            wide[:, :, :-step] |= mask[:, :, step:]
        reached = width
        packed[up : up + planes, back : back + rows] = np.packbits(wide, axis=2)
        for plane, row in shifts:
            result |= packed[up + plane : up + plane + planes, back + row : back + row + rows]
    found: Mask = np.unpackbits(result, axis=2, count=columns).view(np.bool_)
    return found


def eroded(mask: Mask, spacing_mm: tuple[float, float, float], radius_mm: float) -> Mask:
    """Return the voxels of ``mask`` (s, p, l) that lie deeper in it than ``radius_mm``; its border is no surface."""
    deep: Mask = ~dilated(~mask, spacing_mm, radius_mm)
    return deep


def opened(mask: Mask, spacing_mm: tuple[float, float, float], radius_mm: float) -> Mask:
    """Return the part of ``mask`` (s, p, l) in which a ball of ``radius_mm`` finds room."""
    cores = eroded(mask, spacing_mm, radius_mm)
    return dilated(cores, spacing_mm, radius_mm) & mask if cores.any() else cores


def _rows_of_ball(
    spacing_mm: tuple[float, float, float], radius_mm: float, up: int, back: int
) -> dict[int, list[tuple[int, int]]]:
    """Return the rows ``(plane, row)`` of a ball by their half-width in voxels."""
    rows = defaultdict(list)
    for plane in range(-up, up + 1):
        for row in range(-back, back + 1):
            rest = radius_mm**2 - (plane * spacing_mm[0]) ** 2 - (row * spacing_mm[1]) ** 2
            if rest >= 0.0:
                rows[int(np.sqrt(rest) / spacing_mm[2])].append((plane, row))
    return rows
