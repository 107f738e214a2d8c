"""What of the air inside the body is lung, and what is gas: stomach and bowel beside the lungs or grown into them.

Gas is -1000 HU throughout. Lung holds blood: even severe emphysema has vessels that are far denser than its median.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.segmentation import watershed

from ctnode.ct.ball import eroded
from ctnode.ct.coarse import Coarse, Int16Array, Mask, grown

# A component is lung if it is this large (an adult's lung; a thin slab is judged by its mean area instead), ...
SMALLEST_LUNG_ML: Final = 100.0
SMALLEST_LUNG_AREA_CM2: Final = 25.0
SMALLEST_PIECE_ML: Final = 5.0
# ... if its mean is that of lung, ...
LUNG_MEAN_HU: Final = (-965.0, -400.0)
# ... and if its core is not gas: air in bowel and stomach is -1000 HU throughout, lung has vessels everywhere.
GAS_MEDIAN_HU: Final = -955.0
GAS_P90_HU: Final = -925.0
GAS_MEAN_HU: Final = -970.0
# No stomach is larger than this; a larger component is judged by the vessels in its core.
LARGEST_STOMACH_ML: Final = 1200.0
VESSEL_P99_HU: Final = -880.0

# Gas that a threshold joined to a lung: thicker than this, ...
_POCKET_RADIUS_MM: Final = 5.0
_POCKET_HU: Final = -960
_SMALLEST_CORE_ML: Final = 1.0
# ... with a wall (stomach, diaphragm) of at least this mean between it and the lung, ...
_WALL_HU: Final = -820.0
# or touching it with less than this share of its surface, ...
_NARROW_SHARE: Final = 0.05
# ... and below the lung, not within it: most of its columns have no lung under them.
_LARGEST_SHARE_OVER_LUNG: Final = 0.25


@dataclass(frozen=True, eq=False, slots=True)
class Found:
    """The air of the lungs.

    Parameters
    ----------
    lungs
        ``(s, p, l)`` bool, trachea and bronchi included; None where no component is a lung.
    candidates
        How many components are lung.
    gas_ml
        What was rejected as gas.
    """

    lungs: Mask | None
    candidates: int
    gas_ml: float


def find_lungs(coarse: Coarse, air: Mask) -> Found:
    """Return which components of ``air`` (s, p, l) are lung."""
    parts = cc3d.connected_components(air, connectivity=6)
    sizes_ml = np.bincount(parts.ravel()) * coarse.voxel_ml
    sizes_ml[0] = 0.0
    covered_mm = air.shape[0] * coarse.spacing_mm[0]
    smallest_ml = min(SMALLEST_LUNG_ML, SMALLEST_LUNG_AREA_CM2 * covered_mm / 10.0)
    candidates = np.flatnonzero(sizes_ml >= min(smallest_ml, SMALLEST_PIECE_ML))
    # Only the core tells gas from lung: the surface of both is a mixture with tissue.
    rim = 1.01 * max(coarse.spacing_mm[1:])
    core = eroded(air, coarse.spacing_mm, rim)
    boxes = ndimage.find_objects(parts)
    chosen = np.zeros(len(sizes_ml), dtype=np.bool_)
    gas_ml, large = 0.0, 0
    for part in candidates:
        box = boxes[part - 1]
        own = parts[box] == part
        hu, inner = coarse.hu[box][own], coarse.hu[box][own & core[box]]
        inner = inner if inner.size >= 20 else hu
        large_lung = sizes_ml[part] > LARGEST_STOMACH_ML and np.percentile(inner, 99.0) > VESSEL_P99_HU
        if _is_gas(inner) and not large_lung:
            gas_ml += float(sizes_ml[part])
        elif LUNG_MEAN_HU[0] < float(hu.mean()) < LUNG_MEAN_HU[1]:
            chosen[part] = True
            large += int(sizes_ml[part] >= smallest_ml)
    lungs: Mask = chosen[parts]
    return Found(lungs if large else None, large, gas_ml)


def _is_gas(core: Int16Array) -> bool:
    """Return whether a core of air, values in HU, is gas without blood; noise widens it and leaves its mean."""
    median, p90 = np.percentile(core, (50.0, 90.0))
    return bool(median < GAS_MEDIAN_HU and (p90 < GAS_P90_HU or float(core.mean()) < GAS_MEAN_HU))


def gas_below(coarse: Coarse, lungs: Mask) -> Mask:
    """Return the gas of stomach and bowel ``(s, p, l)`` that only a thin diaphragm parts from ``lungs`` (s, p, l).

    Thick slices smear the diaphragm until it counts as air. Pockets of plain gas and the lung then grow towards each
    other from the inside (a watershed), and what was a pocket is gas if they meet at a wall and no lung lies under it.
    """
    gas = np.zeros_like(lungs)
    smooth = ndimage.uniform_filter(coarse.hu, 3, mode="nearest")
    plain = lungs & (smooth < _POCKET_HU)
    planes = np.flatnonzero(lungs.any(axis=(1, 2)))
    plain[(planes[0] + planes[-1]) // 2 + 1 :] = False
    cores = eroded(plain, coarse.spacing_mm, min(_POCKET_RADIUS_MM, 1.5 * max(coarse.spacing_mm)))
    smallest = max(2, int(_SMALLEST_CORE_ML / coarse.voxel_ml))
    pockets = cc3d.dust(cores, threshold=smallest, connectivity=26).astype(np.bool_)
    lung_core = eroded(lungs & ~grown(plain), coarse.spacing_mm, _POCKET_RADIUS_MM) & (smooth > -945) & (smooth < -500)
    if not pockets.any() or not lung_core.any():
        return gas
    markers = cc3d.connected_components(pockets, connectivity=26).astype(np.int32)
    markers[pockets] += 1
    markers[lung_core] = 1
    flood: Any = watershed  # scikit-image carries no types here
    areas = flood(smooth, markers, mask=lungs)
    for label, box in enumerate(ndimage.find_objects(areas), start=1):
        if label > 1 and box is not None and _is_below(coarse, areas, label, box):
            gas[box] |= areas[box] == label
    return gas


def _is_below(coarse: Coarse, areas: npt.NDArray[np.int32], label: int, box: tuple[slice, ...]) -> bool:
    """Return whether the pocket ``label`` of ``areas`` (s, p, l) lies under the lung (1) behind a wall."""
    around = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
    own, lung = areas[around] == label, areas[around] == 1
    core = own & ~grown(~own)
    inner = coarse.hu[around][core if core.any() else own]
    if not _is_gas(inner):
        return False
    meeting = (grown(own) & lung) | (grown(lung) & own)
    surface = np.count_nonzero(own) - np.count_nonzero(core)
    broad = np.count_nonzero(meeting) > _NARROW_SHARE * surface
    if broad and float(coarse.hu[around][meeting].mean()) < _WALL_HU:
        return False
    foot = (areas[box] == label).any(axis=0)
    lowest = (areas[box] == label).argmax(axis=0) + box[0].start
    column = areas[: box[0].stop, box[1], box[2]] == 1
    under = (column & (np.arange(len(column))[:, None, None] < lowest)).any(axis=0) & foot
    return float(under.sum()) <= _LARGEST_SHARE_OVER_LUNG * float(foot.sum())
