"""The cut between lungs that touch: the cheapest sheet from the breastbone to the spine, one path in each axial plane.

Between touching lungs lies the junction line, two pleural layers that are denser than lung even where the voxels are
thicker than they are. Dynamic programming finds the path through each plane that crosses as little air as it can, and
where it must cross, as dense air as it can (Hu 2001, Guo 2016); planes hold their neighbours' paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import edt
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ctnode.ct.coarse import LEFT, RIGHT, Coarse, Labels, Mask, grown

# How far the junction may lie beside the midline.
_CORRIDOR_MM: Final = 65.0
_AIR_HU: Final = -900.0
_TISSUE_HU: Final = -300.0
# Against the cost 1 of a voxel of air: of being 100 mm off the middle, and of one voxel beside the neighbouring path.
_OFF_MIDDLE: Final = 0.12
_OFF_NEIGHBOUR: Final = 0.06
_SMOOTH_MM: Final = 5.0

_F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class Cut:
    """Both sides of a cut.

    Parameters
    ----------
    labels
        ``(s, p, l)`` uint8: 0, 1 right of the cut, 2 left of it.
    area_cm2
        Lung surface at the cut.
    thickness_mm
        Of the bridge between the lungs: twice the largest distance from the cut to what is not lung.
    """

    labels: Labels
    area_cm2: float
    thickness_mm: float


def cut(coarse: Coarse, lungs: Mask, middle: float) -> Cut:
    """Return ``lungs`` (s, p, l) cut in two near the index ``middle`` along the last axis."""
    reach = max(4, round(_CORRIDOR_MM / coarse.spacing_mm[2]))
    first = max(0, round(middle) - reach)
    corridor = slice(first, min(lungs.shape[2], round(middle) + reach + 1))
    planes, rows = (np.flatnonzero(lungs.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    window = (slice(int(planes[0]), int(planes[-1]) + 1), slice(int(rows[0]), int(rows[-1]) + 1), corridor)
    path = _paths(coarse, lungs[window], coarse.hu[window], middle - first) + first
    labels = np.zeros(lungs.shape, dtype=np.uint8)
    columns = np.arange(lungs.shape[2])
    inner = lungs[window[:2]]
    labels[window[:2]] = np.where(inner, np.where(columns < path[:, :, None], RIGHT, LEFT), 0)
    labels = _tidied(labels)
    right, left = labels == RIGHT, labels == LEFT
    meeting = grown(right) & left
    if not meeting.any():
        return Cut(labels, 0.0, 0.0)
    step_s, step_p, _ = coarse.spacing_mm
    depth = edt.edt(lungs, anisotropy=coarse.spacing_mm, black_border=False, parallel=2)
    return Cut(
        labels,
        area_cm2=float(meeting.sum()) * step_s * step_p / 100.0,
        thickness_mm=2.0 * float(depth[meeting].max()),
    )


def _paths(coarse: Coarse, lungs: Mask, hu: npt.NDArray[np.int16], middle: float) -> npt.NDArray[np.int64]:
    """Return for every plane and row the first column left of the cut, ``(s, p)``."""
    _, row_mm, column_mm = coarse.spacing_mm
    dense = np.clip((hu - _AIR_HU) / (_TISSUE_HU - _AIR_HU), 0.0, 1.0).astype(np.float32)
    cost = np.where(lungs, 1.05 - dense, 0.0).astype(np.float32)
    off_mm = np.abs(np.arange(hu.shape[2], dtype=np.float32) - np.float32(middle)) * np.float32(column_mm)
    cost += np.float32(_OFF_MIDDLE / 100.0) * off_mm
    paths = _cheapest(cost)
    # A second round holds each path near the smoothed one of its neighbours, so that the sheet has no steps.
    sigma = (_SMOOTH_MM / coarse.spacing_mm[0], _SMOOTH_MM / row_mm)
    smooth = ndimage.gaussian_filter(ndimage.median_filter(paths, (5, 3)).astype(np.float32), sigma, mode="nearest")
    cost += np.float32(_OFF_NEIGHBOUR) * np.abs(np.arange(hu.shape[2], dtype=np.float32) - smooth[:, :, None])
    return _cheapest(cost)


def _cheapest(cost: _F32) -> npt.NDArray[np.int64]:
    """Return the cheapest path through each plane of ``cost`` (s, p, l) along p, one column a row at most aside."""
    planes, rows, columns = cost.shape
    came = np.zeros(cost.shape, dtype=np.int8)
    total = cost[:, 0].copy()
    aside = np.float32(1e-4)
    for row in range(1, rows):
        wide = np.pad(total, ((0, 0), (1, 1)), constant_values=np.inf)
        choices = np.stack([wide[:, 1:-1], wide[:, :-2] + aside, wide[:, 2:] + aside])
        best = choices.argmin(axis=0)
        came[:, row] = np.array([0, -1, 1], dtype=np.int8)[best]
        total = np.take_along_axis(choices, best[None], axis=0)[0] + cost[:, row]
    paths = np.empty((planes, rows), dtype=np.int64)
    paths[:, -1] = total.argmin(axis=1)
    every = np.arange(planes)
    for row in range(rows - 1, 0, -1):
        paths[:, row - 1] = paths[:, row] + came[every, row, paths[:, row]]
    np.clip(paths, 0, columns - 1, out=paths)
    return paths


def _tidied(labels: Labels) -> Labels:
    """Return ``labels`` (s, p, l) with every piece that the cut left beyond it given back to the lung it hangs on."""
    result = labels.copy()
    for side, other in ((RIGHT, LEFT), (LEFT, RIGHT)):
        parts, count = ndimage.label(labels == side)
        if count < 2:
            continue
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        largest = int(sizes.argmax())
        touching = np.unique(parts[grown(labels == other) & (parts > 0)])
        moved = np.zeros(count + 1, dtype=np.bool_)
        moved[touching] = True
        moved[[0, largest]] = False
        result[moved[parts]] = other
    return result
