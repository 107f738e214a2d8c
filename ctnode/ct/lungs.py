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
import edt
import numpy as np
import numpy.typing as npt

from ctnode.ct.airway import find_airway
from ctnode.ct.body import Body, air_threshold_hu, find_body
from ctnode.ct.coarse import BY_THRESHOLD, Coarse, Labels, Mask, coarsen, grown, refine
from ctnode.ct.grid import Volume
from ctnode.ct.sides import AIRWAY, LEFT, RIGHT, Sides, close_and_fill, midline, separate
from ctnode.words import LungStatus

WITHOUT_MASK: Final = (LungStatus.NO_LUNGS, LungStatus.NOT_RUN)

# A component is lung if it is this large (an adult's lung; a thin slab is judged by its mean area instead), ...
SMALLEST_LUNG_ML: Final = 100.0
SMALLEST_LUNG_AREA_CM2: Final = 25.0
SMALLEST_PIECE_ML: Final = 5.0
# ... if its mean is that of lung, ...
LUNG_MEAN_HU: Final = (-950.0, -400.0)
# ... and if its core is not gas: air in bowel and stomach is -1000 HU throughout, lung has vessels everywhere.
GAS_MEDIAN_HU: Final = -955.0
GAS_P90_HU: Final = -925.0

# Outside these limits a mask is SUSPECT.
USUAL_RATIO: Final = (0.75, 1.9)
USUAL_TOTAL_ML: Final = (1500.0, 10000.0)
USUAL_MEAN_HU: Final = (-920.0, -600.0)
LARGEST_CUT_SHARE: Final = 0.03
LARGEST_DENSE_SHARE: Final = 0.12
LARGEST_GAS_ML: Final = 150.0
# A lung is cut off if the first or the last plane, or the edge of the field of view, shows more of it than this.
LARGEST_EDGE_CM2: Final = 1.0


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
        Named numbers behind the status; units are in the names.
    threshold_hu
        Below it a voxel at the surface counts as lung; nan where there is no mask.
    """

    labels: npt.NDArray[np.uint8]
    status: LungStatus
    reasons: tuple[str, ...]
    quality: Mapping[str, float]
    threshold_hu: float


def segment(volume: Volume) -> Lungs:
    """Return the lungs of ``volume``.

    Sides come from the affine and from anatomy, never from the order of the array. Nothing is raised for a volume
    without lungs: NO_LUNGS with its reasons is an answer, and so is NOT_RUN where the values are not HU.

    Parameters
    ----------
    volume
        ``(z, y, x)`` int16 or float32 in HU, any orthogonal orientation.
    """
    if volume.unit != "HU":
        return _none(volume, f"the values are in {volume.unit}, not HU", status=LungStatus.NOT_RUN)
    coarse = coarsen(volume)
    body = find_body(coarse)
    if body is None:
        return _none(volume, "no body in the volume")
    threshold, clamped = air_threshold_hu(coarse, body)
    air = body.inside & (coarse.hu < threshold)
    lungs, gas_ml = _lung_components(coarse, air)
    if lungs is None:
        return _none(
            volume,
            "no air-filled component inside the body is large enough and has the density of lung",
            {"inside_air_ml": float(air.sum()) * coarse.voxel_ml, "rejected_gas_ml": gas_ml},
        )
    found = find_airway(coarse, body, air, int(np.median(np.nonzero(lungs)[0])))
    airway = np.zeros_like(lungs) if found is None else found
    sides = separate(coarse, _without_crumbs(coarse, lungs & ~airway), midline(coarse, body, found))
    blocked = airway | (air & (sides.labels == 0))
    closed, added = close_and_fill(coarse, body, sides.labels, blocked)
    codes = _codes(closed, added, airway, air)
    labels = refine(volume, coarse, codes, threshold)
    quality = {
        "rejected_gas_ml": gas_ml,
        "cut_share": sides.cut_share,
        "dense_share": float((added & (coarse.hu > threshold)).sum()) / max(1.0, float((closed > 0).sum())),
        "gas_pocket_ml": _gas_pocket_ml(coarse, closed > 0),
        "fov_cut_cm2": _fov_cut_cm2(coarse, body, closed > 0),
        "height_mm": float((closed > 0).any(axis=(1, 2)).sum()) * coarse.spacing_mm[0],
    }
    quality |= _native_quality(volume, coarse, labels)
    status, reasons = _judge(quality, sides, clamped=clamped, airway=found is not None)
    return Lungs(labels, status, reasons, MappingProxyType(quality), threshold)


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


def _lung_components(coarse: Coarse, air: Mask) -> tuple[Mask | None, float]:
    """Return the components of ``air`` (s, p, l) that are lung (None: there is none) and the gas rejected in ml."""
    parts = cc3d.connected_components(air, connectivity=6)
    sizes_ml = np.bincount(parts.ravel()) * coarse.voxel_ml
    sizes_ml[0] = 0.0
    covered_mm = air.shape[0] * coarse.spacing_mm[0]
    smallest_ml = min(SMALLEST_LUNG_ML, SMALLEST_LUNG_AREA_CM2 * covered_mm / 10.0)
    candidates = np.flatnonzero(sizes_ml >= min(smallest_ml, SMALLEST_PIECE_ML))
    # Only the core tells gas from lung: the surface of both is a mixture with tissue.
    rim = 1.01 * max(coarse.spacing_mm[1:])
    core = edt.edt(air, anisotropy=coarse.spacing_mm, black_border=False, parallel=2) > rim
    order = np.argsort(parts[air], kind="stable")
    members, values, deep = parts[air][order], coarse.hu[air][order], core[air][order]
    chosen = np.zeros(len(sizes_ml), dtype=np.bool_)
    gas_ml, large = 0.0, False
    for part in candidates:
        span = slice(*np.searchsorted(members, (part, part + 1)))
        hu, inner = values[span], values[span][deep[span]]
        inner = inner if inner.size >= 20 else hu
        median, p90 = np.median(inner), np.percentile(inner, 90.0)
        if median < GAS_MEDIAN_HU and p90 < GAS_P90_HU:
            gas_ml += float(sizes_ml[part])
        elif LUNG_MEAN_HU[0] < float(hu.mean()) < LUNG_MEAN_HU[1]:
            chosen[part] = True
            large |= bool(sizes_ml[part] >= smallest_ml)
    lungs: Mask = chosen[parts]
    return (lungs if large else None), gas_ml


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


def _gas_pocket_ml(coarse: Coarse, lungs: Mask, *, depth_mm: float = 6.0) -> float:
    """Return how much of the lungs is plain gas and thick: bulla, pneumothorax, or bowel that leaked in."""
    gas = lungs & (coarse.hu < -980)
    depth = edt.edt(gas, anisotropy=coarse.spacing_mm, black_border=False, parallel=2)
    cores = depth > depth_mm
    return float(cores.sum()) * coarse.voxel_ml


def _fov_cut_cm2(coarse: Coarse, body: Body, lungs: Mask) -> float:
    """Return the area of lung surface without a chest wall: at the edge of the field of view, or open to the room.

    The second kind appears where some planes of a lung that the field of view cuts could not be told from room air.
    """
    room = ~(body.tissue | body.inside)
    voxels = np.count_nonzero(body.cut & lungs) + np.count_nonzero(grown(lungs) & room)
    return float(voxels * np.cbrt(np.prod(coarse.spacing_mm)) ** 2 / 100.0)


def _native_quality(volume: Volume, coarse: Coarse, labels: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Return the numbers that are read off the native mask."""
    counts = np.zeros(4, dtype=np.int64)
    total = 0.0
    for plane, values in zip(labels, volume.voxels, strict=True):
        here = np.bincount(plane.ravel(), minlength=4)
        counts += here
        if here[RIGHT] + here[LEFT]:
            total += float(values[(plane == RIGHT) | (plane == LEFT)].sum(dtype=np.float64))
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
        "lowest_plane_cm2": lowest,
        "highest_plane_cm2": highest,
    }


def _judge(
    quality: Mapping[str, float], sides: Sides, *, clamped: bool, airway: bool
) -> tuple[LungStatus, tuple[str, ...]]:
    """Return the status and all reasons."""
    truncated = [
        f"the lungs are cut off at the {where}: {quality[key]:.1f} cm2 in the outermost plane"
        for key, where in (("lowest_plane_cm2", "lower end"), ("highest_plane_cm2", "upper end"))
        if quality[key] > LARGEST_EDGE_CM2
    ]
    if quality["fov_cut_cm2"] > LARGEST_EDGE_CM2:
        truncated.append(f"the field of view cuts the lungs: {quality['fov_cut_cm2']:.1f} cm2 at its edge")
    total, ratio = quality["right_ml"] + quality["left_ml"], quality["right_left_ratio"]
    alone = min(quality["right_ml"], quality["left_ml"]) < SMALLEST_PIECE_ML
    checks = (
        (alone, "only one lung was found"),
        (
            not alone and not USUAL_RATIO[0] <= ratio <= USUAL_RATIO[1],
            f"right to left volume is {ratio:.2f}, usual is {USUAL_RATIO[0]} to {USUAL_RATIO[1]}",
        ),
        (sides.unsure and not sides.merged, "its side is the side of the midline on which most of it lies"),
        (sides.unsure and sides.merged, "it may be both: it crosses the midline and could not be cut apart"),
        # A cut lung is small for a reason that was already given.
        (
            not truncated and not USUAL_TOTAL_ML[0] <= total <= USUAL_TOTAL_ML[1],
            f"the total volume of {total:.0f} ml is unusual",
        ),
        (
            not USUAL_MEAN_HU[0] <= quality["mean_hu"] <= USUAL_MEAN_HU[1],
            f"the mean of {quality['mean_hu']:.0f} HU is unusual for lungs",
        ),
        (
            quality["cut_share"] > LARGEST_CUT_SHARE,
            "the lungs touch over a wide area; the cut between them is uncertain",
        ),
        (
            quality["dense_share"] > LARGEST_DENSE_SHARE,
            f"{100.0 * quality['dense_share']:.0f} % of the mask is dense tissue",
        ),
        (
            quality["gas_pocket_ml"] > LARGEST_GAS_ML,
            f"{quality['gas_pocket_ml']:.0f} ml of plain gas: bulla, pneumothorax or bowel",
        ),
        (clamped, "the threshold of this scan is outside the usual range"),
        (not airway, "no trachea was found"),
    )
    suspect = [reason for holds, reason in checks if holds]
    if truncated:
        return LungStatus.TRUNCATED, (*truncated, *suspect)
    return (LungStatus.SUSPECT, tuple(suspect)) if suspect else (LungStatus.OK, ())
