"""Named numbers that tell what a lung mask is worth, measured on the work grid and on the native mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from ctnode.ct.ball import eroded, opened
from ctnode.ct.body import Body
from ctnode.ct.coarse import AIRWAY, LEFT, RIGHT, Coarse, Labels, Mask, grown
from ctnode.ct.grid import Volume
from ctnode.ct.wall import Wall

_PLAIN_GAS_HU: Final = -975.0
_POCKET_DEPTH_MM: Final = 5.0
_MASS_RADIUS_MM: Final = 12.0
# Nearer to its wall than this the air of the trachea is mixed with it.
_TRACHEA_DEPTH_MM: Final = 4.5
_SOFT_HU: Final = (-300, 200)
_HULL_STEP_MM: Final = 6.0


@dataclass(frozen=True, eq=False, slots=True)
class Shape:
    """The lungs on the work grid, as the judges see them.

    Parameters
    ----------
    coarse, body
        The work volume and its body.
    lungs
        ``(s, p, l)`` uint8, 1 right, 2 left, closed and filled.
    added
        ``(s, p, l)`` bool, what closing and filling added.
    airway
        ``(s, p, l)`` bool, empty where none was found.
    threshold_hu
        Between air and tissue.
    """

    coarse: Coarse
    body: Body
    lungs: Labels
    added: Mask
    airway: Mask
    threshold_hu: float


def work_quality(shape: Shape, wall: Wall) -> dict[str, float]:
    """Return what is read off the work grid; ``wall`` was measured there."""
    coarse, lungs = shape.coarse, shape.lungs > 0
    trachea_hu = _trachea_mean_hu(shape)
    right, left = (_hull(coarse, shape.lungs == side, shape.lungs > 0, shape.airway) for side in (RIGHT, LEFT))
    return {
        "height_mm": float(lungs.any(axis=(1, 2)).sum()) * coarse.spacing_mm[0],
        "right_solidity": right[0],
        "left_solidity": left[0],
        "right_hull_dense_share": right[1],
        "left_hull_dense_share": left[1],
        "added_dense_share": float((shape.added & (coarse.hu > shape.threshold_hu)).sum()) / max(1.0, lungs.sum()),
        "wall_gap_ml": wall.gap_ml,
        "enclosed_mass_ml": _enclosed_mass_ml(shape),
        "base_difference_mm": wall.base_difference_mm,
        "back_missing_mm": wall.back_missing_mm,
        "gas_pocket_ml": _gas_pocket_ml(coarse, lungs, trachea_hu),
        "fov_cut_cm2": _fov_cut_cm2(coarse, shape.body, lungs),
        "trachea_found": float(shape.airway.any()),
        "trachea_mean_hu": trachea_hu,
    }


def _trachea_mean_hu(shape: Shape) -> float:
    """Return the mean of the core of the upper half of the airway, nan without one or where it has no core."""
    if not shape.airway.any():
        return float("nan")
    planes = np.flatnonzero(shape.airway.any(axis=(1, 2)))
    upper = slice(int(planes[len(planes) // 2]), int(planes[-1]) + 1)
    depth_mm = max(_TRACHEA_DEPTH_MM, 1.25 * max(shape.coarse.spacing_mm[1:]))
    core = eroded(shape.airway[upper], shape.coarse.spacing_mm, depth_mm)
    return float(shape.coarse.hu[upper][core].mean()) if core.any() else float("nan")


def _hull(coarse: Coarse, lung: Mask, lungs: Mask, airway: Mask) -> tuple[float, float]:
    """Return how much of the convex hull of ``lung`` (s, p, l) is lung, and how much is soft tissue."""
    boxes = ndimage.find_objects(lung.astype(np.uint8))
    if not boxes:
        return 0.0, 0.0
    steps = [max(1, round(_HULL_STEP_MM / step)) for step in coarse.spacing_mm]
    window = tuple(slice(box.start, box.stop, step) for box, step in zip(boxes[0], steps, strict=True))
    inner = lung[window]
    spacing = np.multiply(steps, coarse.spacing_mm).astype(np.float32)
    try:
        hull = ConvexHull(np.argwhere(inner & grown(~np.pad(inner, 1))[1:-1, 1:-1, 1:-1]) * spacing)
    except (QhullError, ValueError):
        return 1.0, 0.0
    faces = hull.equations.astype(np.float32)
    plane = np.stack(np.meshgrid(*(np.arange(size) for size in inner.shape[1:]), indexing="ij"), axis=-1)
    flat = plane.reshape(-1, 2) * spacing[1:]
    across = flat @ faces[:, 1:3].T + faces[:, 3]
    within = np.stack([(across + faces[:, 0] * (z * spacing[0]) <= 1e-3).all(axis=1) for z in range(len(inner))])
    within = within.reshape(inner.shape)
    hu = coarse.hu[window]
    soft = within & (hu > _SOFT_HU[0]) & (hu < _SOFT_HU[1]) & ~(lungs | airway)[window]
    total = max(1.0, float(within.sum()))
    return float((within & inner).sum()) / total, float(soft.sum()) / total


def _enclosed_mass_ml(shape: Shape) -> float:
    """Return the soft tissue, thicker than a ball of 12 mm radius, that has the same lung above and below it.

    Heart, diaphragm and hilum have little of it; a mass and a collapsed segment are what has. The larger of both sides.
    """
    coarse, largest = shape.coarse, 0.0
    soft = (coarse.hu > _SOFT_HU[0]) & (shape.lungs == 0) & ~shape.airway
    for side, box in zip((RIGHT, LEFT), ndimage.find_objects(shape.lungs, max_label=LEFT), strict=True):
        if box is None:
            continue
        lung = shape.lungs[box] == side
        over = np.logical_or.accumulate(lung, axis=0)
        under = np.flip(np.logical_or.accumulate(np.flip(lung, 0), axis=0), 0)
        mass = opened(over & under & soft[box], coarse.spacing_mm, _MASS_RADIUS_MM)
        largest = max(largest, float(mass.sum()) * coarse.voxel_ml)
    return largest


def _gas_pocket_ml(coarse: Coarse, lungs: Mask, trachea_hu: float) -> float:
    """Return how much of the lungs is plain gas and thick: bulla, pneumothorax, or bowel that leaked in."""
    level = _PLAIN_GAS_HU if np.isnan(trachea_hu) else float(np.clip(trachea_hu + 15.0, -985.0, -960.0))
    gas = lungs & (ndimage.uniform_filter(coarse.hu, 3, mode="nearest") < level)
    return float(opened(gas, coarse.spacing_mm, _POCKET_DEPTH_MM).sum()) * coarse.voxel_ml


def _fov_cut_cm2(coarse: Coarse, body: Body, lungs: Mask) -> float:
    """Return the area of lung surface without a chest wall: at the edge of the field of view, or open to the room.

    The second kind appears where some planes of a lung that the field of view cuts could not be told from room air.
    """
    room = ~(body.tissue | body.inside)
    voxels = np.count_nonzero(body.cut & lungs) + np.count_nonzero(grown(lungs) & room)
    return float(voxels * np.cbrt(np.prod(coarse.spacing_mm)) ** 2 / 100.0)


def native_quality(volume: Volume, coarse: Coarse, labels: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Return the numbers that are read off the native mask."""
    counts = np.zeros(4, dtype=np.int64)
    total = 0.0
    for plane, values in zip(labels, volume.voxels, strict=True):
        own = {label: plane == label for label in (RIGHT, LEFT, AIRWAY)}
        for label, mask in own.items():
            counts[label] += np.count_nonzero(mask)
        total += float(values[own[RIGHT] | own[LEFT]].sum(dtype=np.float64))
    axis = coarse.order[0]
    planes = [np.isin(np.take(labels, end, axis=axis), (RIGHT, LEFT)) for end in (0, -1)]
    others = [step for other, step in enumerate(volume.grid.spacing_mm) if other != axis]
    areas = [float(plane.sum()) * others[0] * others[1] / 100.0 for plane in planes]
    lowest, highest = areas[::-1] if coarse.flipped[0] else areas
    both = int(counts[RIGHT] + counts[LEFT])
    right, left, air = (float(counts[label]) * volume.grid.voxel_ml for label in (RIGHT, LEFT, AIRWAY))
    return {
        "right_ml": right,
        "left_ml": left,
        "airway_ml": air,
        "right_left_ratio": right / left if left else 0.0,
        "mean_hu": total / both if both else 0.0,
        "mask_share_pct": 100.0 * both / labels.size,
        "lowest_plane_cm2": lowest,
        "highest_plane_cm2": highest,
    }
