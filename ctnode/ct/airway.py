"""The trachea and the main bronchi on the work grid: found as a long round tube, grown with a leak check.

The airway touches the lungs through walls thinner than a voxel. Growing from the trachea with a rising threshold stops
before the first step that floods the lung (the explosion control of De Nunzio 2009 and the Chest Imaging Platform).
"""

from __future__ import annotations

from typing import Any, Final

import cc3d
import numpy as np
from scipy import ndimage

from ctnode.ct.body import Body
from ctnode.ct.coarse import Coarse, Mask, grown

# Lumen and least area of the trachea: of an adult, then of a child or of one narrowed to a few work voxels.
_TUBES: Final = ((-850, 0.4), (-700, 0.12))
_LARGEST_CM2: Final = 8.0
_MIDLINE_MM: Final = 40.0
_SHORTEST_MM: Final = 20.0
_STEPS_HU: Final = tuple(range(-960, -740, 20))
_LARGEST_GROWTH_ML: Final = 45.0
_LEAK_ML: Final = 12.0
_REACH_MM: Final = (110.0, 60.0, 90.0)


def find_airway(coarse: Coarse, body: Body, air: Mask, lungs: Mask) -> Mask:
    """Return trachea and main bronchi ``(s, p, l)``, empty where no trachea is in the volume.

    Parameters
    ----------
    coarse, body
        The work volume and its body.
    air
        ``(s, p, l)`` bool, all air inside the body.
    lungs
        ``(s, p, l)`` bool, the part of ``air`` that is lung; the airway may be part of it.
    """
    for lumen_hu, least_cm2 in _TUBES:
        seed = _tube(coarse, body, lungs, lumen_hu, least_cm2)
        if seed is not None:
            # The rim is a mixture of air and wall; it belongs to neither lung.
            airway: Mask = grown(_grow(coarse, body, seed)) & air
            return airway
    return np.zeros_like(air)


def _tube(coarse: Coarse, body: Body, lungs: Mask, lumen_hu: int, least_cm2: float) -> Mask | None:
    """Return the longest chain of round dark regions near the midline in successive planes, ``(s, p, l)``."""
    structure = np.zeros((3, 3, 3), dtype=bool)
    structure[1] = True
    # The trachea ends above the lower half of the lungs.
    lowest = int(np.median(np.nonzero(lungs.any(axis=(1, 2)))[0]))
    dark = body.inside & (coarse.hu < lumen_hu)
    dark[:lowest] = False
    regions, count = ndimage.label(dark, structure=structure)
    if count == 0:
        return None
    step_mm, row_mm, column_mm = coarse.spacing_mm
    pixel_cm2 = row_mm * column_mm / 100.0
    boxes = ndimage.find_objects(regions)
    areas = np.bincount(regions.ravel(), minlength=count + 1) * pixel_cm2
    middles = [_middle(plane) for plane in body.tissue | body.inside]
    # An arm or the field of view moves the middle of the body, a collapsed lung that of the lungs.
    between = _middle(lungs.any(axis=0))
    length = np.zeros(count + 1)
    above = np.zeros(count + 1, dtype=np.int64)
    # Regions are numbered plane by plane from the feet upwards; chains are built from the head downwards.
    for label in range(count, 0, -1):
        plane, rows, columns = boxes[label - 1]
        index = plane.start
        height_mm, width_mm = (rows.stop - rows.start) * row_mm, (columns.stop - columns.start) * column_mm
        column = (columns.start + columns.stop - 1) / 2.0
        off_mm = min(abs(column - middles[index]), abs(column - between)) * column_mm
        box_cm2 = height_mm * width_mm / 100.0
        if (
            not least_cm2 <= areas[label] <= _LARGEST_CM2
            or off_mm > _MIDLINE_MM
            or max(height_mm, width_mm) > 2.5 * min(height_mm, width_mm)
            or areas[label] < 0.5 * box_cm2
        ):
            continue
        length[label] = step_mm
        if index + 1 < regions.shape[0]:
            here = regions[index, rows, columns] == label
            for upper in np.unique(regions[index + 1, rows, columns][here]):
                if upper and 0.4 < areas[label] / areas[upper] < 2.5 and length[upper] + step_mm > length[label]:
                    length[label], above[label] = length[upper] + step_mm, upper
    label = int(np.argmax(length))
    # A slab shows less of the trachea than a chest, so the least length follows what there is to see.
    if length[label] < min(_SHORTEST_MM, 0.4 * step_mm * regions.shape[0]):
        return None
    chain = np.zeros(count + 1, dtype=np.bool_)
    while label:
        chain[label] = True
        label = int(above[label])
    tube: Mask = chain[regions]
    return tube


def _middle(plane: Any) -> float:
    """Return the column in the middle of the body in one axial plane."""
    columns = np.flatnonzero(plane.any(axis=0))
    return float(columns[0] + columns[-1]) / 2.0 if columns.size else plane.shape[1] / 2.0


def _grow(coarse: Coarse, body: Body, seed: Mask) -> Mask:
    """Return ``seed`` and the dark air connected with it, as far as it does not leak into the lungs."""
    planes, rows, columns = (np.flatnonzero(seed.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    reach = [int(reach / step) for reach, step in zip(_REACH_MM, coarse.spacing_mm, strict=True)]
    window = (
        slice(max(0, int(planes[0]) - reach[0]), int(planes[-1]) + 1),
        slice(max(0, int(rows[0]) - reach[1]), int(rows[-1]) + reach[1] + 1),
        slice(max(0, int(columns[0]) - reach[2]), int(columns[-1]) + reach[2] + 1),
    )
    inside, hu, start = body.inside[window], coarse.hu[window], seed[window]
    chosen, added_ml = start, 0.0
    for step in _STEPS_HU:
        parts = cc3d.connected_components(inside & ((hu < step) | start), connectivity=6)
        wanted = np.zeros(int(parts.max()) + 1, dtype=np.bool_)
        wanted[parts[start]] = True
        candidate = wanted[parts]
        growth_ml = (int(candidate.sum()) - int(start.sum())) * coarse.voxel_ml
        if growth_ml > _LARGEST_GROWTH_ML or growth_ml - added_ml > _LEAK_ML:
            break
        chosen, added_ml = candidate, growth_ml
    lumen = seed.copy()
    lumen[window] |= chosen
    return lumen
