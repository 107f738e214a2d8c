"""Which lung is which: sides from anatomy, whatever the number of pieces.

Work arrays grow to the left along their last axis (see :mod:`ctnode.ct.coarse`), so the smaller index is the patient's
right whatever the order of the stored slices, rows and columns was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cc3d
import edt
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ctnode.ct.body import Body
from ctnode.ct.coarse import LEFT, RIGHT, Coarse, Labels, Mask
from ctnode.ct.cut import Cut, cut

_SPINE_HU: Final = 200
# A lung is at least this share of the larger one, or of both.
_SMALLEST_SHARE: Final = 0.08
# Largest area of the bridge in cm2 over the volume of the smaller lung in ml to the power of 2/3.
_LARGEST_BRIDGE: Final = 1.5
_APART_MM: Final = 50.0
_NEAR_MM: Final = 10.0


@dataclass(frozen=True, eq=False, slots=True)
class Sides:
    """Both lungs on the work grid.

    Parameters
    ----------
    labels
        ``(s, p, l)`` uint8: 0, 1 right, 2 left.
    cut
        How they were cut apart; None where they did not touch or no cut was plausible.
    unsure
        Whether everything carries the side on which most of it lies, because only one lung was found.
    crossing
        Whether that one lies on both sides of the midline, so that it may be both.
    """

    labels: Labels
    cut: Cut | None
    unsure: bool
    crossing: bool


def midline(coarse: Coarse, body: Body, airway: Mask | None) -> float:
    """Return the index along the last axis of the patient's middle: of trachea, spine and body the one between.

    A mass moves the trachea, contrast and calcium the profile of the bones, an arm or the field of view the body; two
    of them at once are rare.
    """
    bone = ((coarse.hu > _SPINE_HU) & body.tissue).sum(axis=(0, 1)).astype(np.float32)
    columns = np.flatnonzero(body.tissue.any(axis=(0, 1)))
    middles = [float(columns[0] + columns[-1]) / 2.0]
    if bone.sum() > 0:
        middles.append(float(np.argmax(ndimage.gaussian_filter1d(bone, 15.0 / coarse.spacing_mm[2]))))
    if airway is not None:
        planes = np.flatnonzero(airway.any(axis=(1, 2)))
        trachea = airway[planes[len(planes) // 2] :]
        middles.append(float(np.median(np.nonzero(trachea)[2])))
    return float(np.median(middles)) if len(middles) != 2 else middles[1]


def separate(coarse: Coarse, lungs: Mask, middle: float) -> Sides:
    """Return which of ``lungs`` (s, p, l) is right and which is left."""
    parts = cc3d.connected_components(lungs, connectivity=6)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    columns = np.arange(parts.shape[2])
    largest = [int(part) for part in np.argsort(sizes)[::-1] if sizes[part] > 0]
    first = parts == largest[0]
    profile = first.sum(axis=(0, 1))
    right_of, left_of = int(profile[columns < middle].sum()), int(profile[columns >= middle].sum())
    labels = np.zeros(parts.shape, dtype=np.uint8)
    others = [part for part in largest[1:] if sizes[part] >= _SMALLEST_SHARE * sizes[largest[0]]]
    done: Cut | None = None
    if min(right_of, left_of) > _SMALLEST_SHARE * profile.sum() and not others:
        done = cut(coarse, first, middle)
        if not _plausible(coarse, done):
            done = None
    if done is not None:
        labels = done.labels
    else:
        _by_position(coarse, parts, [largest[0], *others], middle, labels)
    unsure = not ((labels == RIGHT).any() and (labels == LEFT).any())
    _adopt(coarse, lungs, labels)
    crossing = min(right_of, left_of) > _SMALLEST_SHARE * profile.sum()
    return Sides(labels, done, unsure=unsure, crossing=unsure and crossing)


def _by_position(coarse: Coarse, parts: npt.NDArray[Any], large: list[int], middle: float, labels: Labels) -> None:
    """Give the ``large`` components of ``parts`` (s, p, l) their sides.

    Two lungs far enough apart lie side by side whatever became of the mediastinum. Further ones, and any that lie one
    upon the other, go by the side of the midline on which their middle lies.
    """
    columns = np.arange(parts.shape[2])
    centers = {part: float(np.average(columns, weights=(parts == part).sum(axis=(0, 1)))) for part in large}
    low, high = min(centers.values()), max(centers.values())
    if len(large) > 1 and (high - low) * coarse.spacing_mm[2] >= _APART_MM and low < middle + _APART_MM / 2.0:
        divide = min(max(middle, low + 0.25 * (high - low)), high - 0.25 * (high - low))
    else:
        divide = middle
    for part, center in centers.items():
        labels[parts == part] = RIGHT if center < divide else LEFT


def _plausible(coarse: Coarse, done: Cut) -> bool:
    """Return whether both sides of a cut are lungs and the bridge between them is one, not a lung cut through."""
    halves = [float((done.labels == side).sum()) * coarse.voxel_ml for side in (RIGHT, LEFT)]
    total = sum(halves)
    if min(halves) < _SMALLEST_SHARE * total:
        return False
    return bool(done.area_cm2 < _LARGEST_BRIDGE * min(halves) ** (2.0 / 3.0))


def _adopt(coarse: Coarse, lungs: Mask, labels: Labels) -> None:
    """Give every piece of ``lungs`` without a label the label of the nearer lung; pieces far from both stay out."""
    pieces = cc3d.connected_components(lungs & (labels == 0), connectivity=6)
    margins = [int(_NEAR_MM / step) + 1 for step in coarse.spacing_mm]
    sides = labels.copy()
    for piece, box in enumerate(ndimage.find_objects(pieces), start=1):
        # No farther than a lung may be from the piece; most pieces are small.
        around = tuple(
            slice(max(0, part.start - margin), part.stop + margin) for part, margin in zip(box, margins, strict=True)
        )
        own, lung = pieces[around] == piece, sides[around]
        nearest = {side: _distance_mm(coarse, own, lung == side) for side in (RIGHT, LEFT)}
        side = RIGHT if nearest[RIGHT] <= nearest[LEFT] else LEFT
        if nearest[side] <= _NEAR_MM:
            labels[around][own] = side


def _distance_mm(coarse: Coarse, own: Mask, lung: Mask) -> float:
    """Return the distance between two masks (s, p, l) of one box, infinite where one is empty."""
    if not lung.any():
        return float("inf")
    return float(edt.edt(~lung, anisotropy=coarse.spacing_mm, black_border=False)[own].min())
