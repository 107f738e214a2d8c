"""How well the lungs fill the rib cage: what lies between lung and rib that is too thick to be a chest wall.

A lung touches the chest wall everywhere above the diaphragm. Rays from the middle of the chest measure in every axial
plane how far it is from the outermost lung to the first rib. A gap with lung at the wall above it and below it is a
mass, a consolidation or loculated fluid; a back that ends far above the front and the flank is a dependent effusion or
a consolidated lower lobe, because the recess behind is the lowest part of a lung.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ctnode.ct.body import Body
from ctnode.ct.coarse import LEFT, RIGHT, Coarse, Labels

_BONE_HU: Final = 170
_RAYS: Final = 72
_STEP_MM: Final = 2.0
_LONGEST_MM: Final = 230.0
# Rays this near to the sagittal plane meet spine and breastbone, not the side walls.
_LEAST_SIDEWAYS: Final = 0.35
# Ribs are this far apart; a ray between two of them takes the nearer of its neighbours.
_RIB_WINDOW_MM: Final = 30.0
# Pleura, fat and muscle between lung and rib are thinner than this.
_THICKEST_WALL_MM: Final = 18.0
_AT_WALL_MM: Final = 14.0

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Wall:
    """What is missing at the wall of the chest.

    Parameters
    ----------
    gap_ml
        Between lung and ribs, where lung is at the wall above and below.
    base_difference_mm
        How much higher the base of one lung lies than that of the other (3 % of each lie lower); 0 with one lung.
    back_missing_mm
        How much higher the back of a lung ends than its flank, the worse of both lungs.
    """

    gap_ml: float
    base_difference_mm: float
    back_missing_mm: float


def wall_of(coarse: Coarse, body: Body, lungs: Labels, middle: float) -> Wall:
    """Return how well ``lungs`` (s, p, l) fill the cage round the index ``middle`` along the last axis."""
    step_mm, row_mm, column_mm = coarse.spacing_mm
    mask = lungs > 0
    planes, rows = (np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    center = float(rows[0] + rows[-1]) / 2.0
    angles = 2.0 * np.pi * np.arange(_RAYS) / _RAYS
    reach = np.arange(_STEP_MM, _LONGEST_MM, _STEP_MM)
    row = np.rint(center + np.sin(angles)[:, None] * reach / row_mm).astype(np.intp)
    column = np.rint(middle + np.cos(angles)[:, None] * reach / column_mm).astype(np.intp)
    seen = (row >= 0) & (row < mask.shape[1]) & (column >= 0) & (column < mask.shape[2])
    row, column = np.where(seen, row, 0), np.where(seen, column, 0)
    window = slice(int(planes[0]), int(planes[-1]) + 1)
    air = mask[window][:, row, column] & seen
    bone = ((coarse.hu[window] > _BONE_HU) & body.tissue[window])[:, row, column] & seen
    last = np.where(air.any(axis=2), reach[-1] - air[:, :, ::-1].argmax(axis=2) * _STEP_MM, 0.0)
    beyond = bone & (reach[None, None] > last[:, :, None])
    rib = np.where(beyond.any(axis=2), reach[beyond.argmax(axis=2)], np.inf)
    high = 2 * int(_RIB_WINDOW_MM / 2.0 / step_mm) + 1
    cage = ndimage.minimum_filter(rib, (high, 5), mode=("nearest", "wrap"))
    cage = np.maximum(cage, np.minimum(rib, last + _AT_WALL_MM))
    sideways = np.abs(np.cos(angles)) > _LEAST_SIDEWAYS
    gaps = np.where(np.isfinite(cage) & sideways & (last > 0.0), cage - last, 0.0)
    return Wall(
        gap_ml=_between_ml(gaps, last, cage, step_mm),
        base_difference_mm=_base_difference_mm(lungs, step_mm),
        back_missing_mm=max(_back_missing_mm(last, angles, side, step_mm) for side in (RIGHT, LEFT)),
    )


def _between_ml(gaps: _Floats, last: _Floats, cage: _Floats, step_mm: float) -> float:
    """Return the volume of the gaps (s, angle) that have lung at the wall above and below."""
    at_wall = (last > 0.0) & (gaps <= _AT_WALL_MM)
    below = np.maximum.accumulate(at_wall, axis=0)
    above = np.maximum.accumulate(at_wall[::-1], axis=0)[::-1]
    open_mm = (gaps > _THICKEST_WALL_MM) & below & above
    inner, outer = last[open_mm], cage[open_mm] - _AT_WALL_MM / 2.0
    return float(((outer**2 - inner**2) / 2.0).sum() * (2.0 * np.pi / _RAYS) * step_mm / 1000.0)


def _base_difference_mm(lungs: Labels, step_mm: float, *, tip_share: float = 0.03) -> float:
    """Return the distance of the heights under which ``tip_share`` of each lung lies."""
    bases = []
    for side in (RIGHT, LEFT):
        below = np.cumsum((lungs == side).sum(axis=(1, 2)))
        if below[-1] == 0:
            return 0.0
        bases.append(int(np.searchsorted(below, tip_share * below[-1])))
    return abs(bases[0] - bases[1]) * step_mm


def _back_missing_mm(last: _Floats, angles: _Floats, side: int, step_mm: float) -> float:
    """Return how much higher the lung of ``side`` ends at the back than at the flank, never below 0."""
    sign = -1.0 if side == RIGHT else 1.0
    across, back = sign * np.cos(angles), np.sin(angles)
    lowest = []
    for sector in ((across > 0.4) & (back > 0.6), (across > 0.6) & (np.abs(back) < 0.5)):
        planes = np.flatnonzero((last[:, sector] > 0.0).any(axis=1))
        if planes.size == 0:
            return 0.0
        lowest.append(int(planes[0]))
    return max(0, lowest[0] - lowest[1]) * step_mm
