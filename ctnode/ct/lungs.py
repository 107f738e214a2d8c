"""The lungs of a CT volume, and an honest word about what the mask is worth.

The method is classical (threshold, anatomy, morphology): it needs no weights, explains itself and fails in known ways.
Dense disease (consolidation, effusion) is beyond it, therefore every mask carries named numbers and a status with
reasons. Method and limits follow the literature collected for the project: Hu 2001 (threshold), De Nunzio 2009
(airway), Pu 2008 (vessels and nodules at the wall), van Rikxoort 2009 (automatic detection of failures).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import cc3d
import numpy as np
import numpy.typing as npt

from ctnode.config import LungMask
from ctnode.ct.airway import find_airway
from ctnode.ct.body import air_threshold_hu, find_body
from ctnode.ct.closing import close_and_fill
from ctnode.ct.coarse import (
    AIRWAY,
    BY_THRESHOLD,
    LEFT,
    RIGHT,
    Box,
    Coarse,
    Labels,
    Mask,
    box_of,
    coarsen,
    grown,
    refine,
)
from ctnode.ct.gas import SMALLEST_PIECE_ML, find_lungs, gas_below
from ctnode.ct.grid import Volume
from ctnode.ct.judge import judge
from ctnode.ct.options import dilated, inner_structures
from ctnode.ct.quality import Shape, native_quality, work_quality
from ctnode.ct.sides import midline, separate
from ctnode.ct.wall import wall_of
from ctnode.words import LungStatus

WITHOUT_MASK: Final = (LungStatus.NO_LUNGS, LungStatus.NOT_RUN)

# Less of the patient than this shows no lung, whatever its pixels look like.
LEAST_PLANES: Final = 2
LEAST_COVERED_MM: Final = 10.0


@dataclass(frozen=True, eq=False, slots=True)
class Lungs:
    """A lung mask and its worth.

    Parameters
    ----------
    labels
        ``(z, y, x)`` uint8 on the native grid: 0 background, 1 right lung, 2 left lung, 3 airway. Vessels belong to the
        lungs, trachea and main bronchi do not. All 0 with NO_LUNGS and NOT_RUN.
    status, reasons
        The worst that was found, and everything that was found, in words.
    quality
        Named numbers behind the status; units are in the names; nan: does not apply.
    threshold_hu
        Below it a voxel at the surface counts as lung; nan where there is no mask.
    structures
        ``(z, y, x)`` uint8, what is dense inside the right (1) and the left lung (2), if it was asked for.
    """

    labels: npt.NDArray[np.uint8]
    status: LungStatus
    reasons: tuple[str, ...]
    quality: Mapping[str, float]
    threshold_hu: float
    structures: npt.NDArray[np.uint8] | None = None


def segment(volume: Volume, settings: LungMask | None = None) -> Lungs:
    """Return the lungs of ``volume``.

    Sides come from the affine and from anatomy, never from the order of the array. Nothing is raised for a volume
    without lungs: NO_LUNGS with its reasons is an answer, and so is NOT_RUN where the values are not HU.

    Parameters
    ----------
    volume
        ``(z, y, x)`` int16 or float32 in HU, any orthogonal orientation.
    settings
        The options of ``[lungs]``; None: the defaults.
    """
    settings = settings or LungMask()
    if volume.unit != "HU":
        return _none(volume, f"the values are in {volume.unit}, not HU", status=LungStatus.NOT_RUN)
    coarse = coarsen(volume)
    covered_mm = coarse.spacing_mm[0] * coarse.hu.shape[0]
    if min(volume.voxels.shape) < LEAST_PLANES or covered_mm < LEAST_COVERED_MM:
        return _none(volume, f"{covered_mm:.1f} mm of the patient are too little to tell lungs from other air")
    body = find_body(coarse)
    if body is None:
        return _none(volume, "no body in the volume")
    threshold, clamped = air_threshold_hu(coarse, body)
    if settings.threshold != "auto":
        threshold, clamped = float(settings.threshold), False
    air = body.inside & (coarse.hu < threshold)
    found = find_lungs(coarse, air)
    if found.lungs is None:
        return _none(
            volume,
            "no air-filled component inside the body is large enough and has the density of lung",
            {"inside_air_ml": float(air.sum()) * coarse.voxel_ml, "rejected_gas_ml": found.gas_ml},
        )
    airway = find_airway(coarse, body, air, found.lungs)
    middle = midline(coarse, body, airway if airway.any() else None)
    # From here on nothing happens farther than a voxel from the lungs and the airway.
    box = box_of(found.lungs | airway)
    near, around, center = coarse.part(box), body.part(box), middle - box[2].start
    air, airway = air[box], airway[box]
    lungs = found.lungs[box] & ~airway
    gas = gas_below(near, lungs) if lungs.any() else np.zeros_like(lungs)
    sides = separate(near, _without_crumbs(near, lungs & ~gas), center)
    blocked = airway | (air & (sides.labels == 0))
    closed, added = close_and_fill(near, around, sides.labels, blocked, radius_mm=settings.closing_mm, middle=center)
    labels = refine(volume, coarse, _placed(_codes(closed, added, airway, air), box, coarse), threshold)
    structures = None
    if settings.structures or not settings.fill_structures:
        structures = inner_structures(volume, labels, threshold)
        if not settings.fill_structures:
            labels[structures > 0] = 0
    labels = dilated(volume, labels, settings.dilation_mm)
    shape = Shape(near, around, closed, added, airway, threshold)
    wall = wall_of(coarse, body, _placed(closed, box, coarse), middle)
    quality = {
        "threshold_hu": threshold,
        "threshold_clamped": float(clamped),
        "candidates": float(found.candidates),
        "rejected_gas_ml": found.gas_ml + float(gas.sum()) * coarse.voxel_ml,
        "cut_cm2": 0.0 if sides.cut is None else sides.cut.area_cm2,
        "cut_thickness_mm": 0.0 if sides.cut is None else sides.cut.thickness_mm,
        **work_quality(shape, wall),
        **native_quality(volume, coarse, labels),
    }
    status, reasons = judge(quality, sides, settings)
    shown = structures if settings.structures else None
    return Lungs(labels, status, reasons, MappingProxyType(quality), threshold, shown)


def _none(
    volume: Volume,
    reason: str,
    quality: Mapping[str, float] | None = None,
    *,
    status: LungStatus = LungStatus.NO_LUNGS,
) -> Lungs:
    """Return the answer for a volume without lungs, or without the values to look for them."""
    labels = np.zeros(volume.grid.shape, dtype=np.uint8)
    return Lungs(labels, status, (reason,), MappingProxyType(dict(quality or {})), float("nan"))


def _placed(part: Labels, box: Box, coarse: Coarse) -> Labels:
    """Return ``part``, which fills ``box``, on the whole work grid."""
    whole = np.zeros(coarse.hu.shape, dtype=np.uint8)
    whole[box] = part
    return whole


def _without_crumbs(coarse: Coarse, lungs: Mask) -> Mask:
    """Return ``lungs`` without the crumbs that the removal of the airway left behind."""
    smallest = max(1, int(SMALLEST_PIECE_ML / 2.0 / coarse.voxel_ml))
    kept: Mask = cc3d.dust(lungs, threshold=smallest, connectivity=6).astype(np.bool_)
    return kept if kept.any() else lungs


def _codes(closed: Labels, added: Mask, airway: Mask, air: Mask) -> Labels:
    """Return the codes ``(s, p, l)`` for the refinement: the interior is copied, the native voxels decide in a band.

    The band is one work voxel to both sides of the surface. Where closing or filling added tissue the threshold would
    take it away again, so that part is copied.
    """
    codes = closed.copy()
    codes[airway] = AIRWAY
    whole = codes > 0
    rim = whole & grown(~whole) & ~added
    codes[rim] += BY_THRESHOLD
    # Air of something else (bowel, a rejected pocket) next to the surface is not up for decision.
    free = ~whole & ~air
    for label in (RIGHT, LEFT, AIRWAY):
        own = airway if label == AIRWAY else closed == label
        near = grown(own) & free
        codes[near] = label + BY_THRESHOLD
        free &= ~near
    return codes
