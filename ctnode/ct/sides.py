"""Which lung is which: separation of lungs that touch, sides from anatomy, and the closing of each lung.

Work arrays grow to the left along their last axis (see :mod:`ctnode.ct.coarse`), so the smaller index is the patient's
right whatever the order of the stored slices, rows and columns was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cc3d
import edt
import fill_voids
import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from ctnode.ct.body import Body
from ctnode.ct.coarse import Coarse, Labels, Mask

RIGHT: Final = 1
LEFT: Final = 2
AIRWAY: Final = 3

CLOSING_MM: Final = 10.0
# What closing may add to a lung: vessels, nodules and pleural thickening, never bone or fat-free air elsewhere.
_ADDED_HU: Final = (-600, 250)
_SPINE_HU: Final = 200
_SMALLEST_SHARE: Final = 0.15
_APART_MM: Final = 50.0
_NEAR_MM: Final = 10.0


@dataclass(frozen=True, eq=False, slots=True)
class Sides:
    """Both lungs on the work grid.

    Parameters
    ----------
    labels
        ``(s, p, l)`` uint8: 0, 1 right, 2 left.
    merged
        Whether the lungs touched, so that they had to be cut apart.
    cut_share
        Share of the lung voxels that border the cut.
    unsure
        Whether everything carries the side on which most of it lies: a single lung, or a cut that failed.
    """

    labels: Labels
    merged: bool
    cut_share: float
    unsure: bool


def midline(coarse: Coarse, body: Body, airway: Mask | None) -> float:
    """Return the index along the last axis of the patient's middle: trachea, else spine, else body."""
    if airway is not None:
        planes = np.flatnonzero(airway.any(axis=(1, 2)))
        trachea = airway[planes[len(planes) // 2] :]
        return float(np.median(np.nonzero(trachea)[2]))
    bone = ((coarse.hu > _SPINE_HU) & body.tissue).sum(axis=(0, 1)).astype(np.float32)
    if bone.sum() > 0:
        return float(np.argmax(ndimage.gaussian_filter1d(bone, 15.0 / coarse.spacing_mm[2])))
    return float(np.median(np.nonzero(body.tissue.any(axis=(0, 1)))[0]))


def separate(coarse: Coarse, lungs: Mask, middle: float) -> Sides:
    """Return which of ``lungs`` (s, p, l) is right and which is left."""
    parts = cc3d.connected_components(lungs, connectivity=6)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    columns = np.arange(parts.shape[2])
    largest = [int(part) for part in np.argsort(sizes)[::-1][:2] if sizes[part] > 0]
    first = parts == largest[0]
    profile = first.sum(axis=(0, 1))
    smaller = min(profile[columns < middle].sum(), profile[columns >= middle].sum())
    alone = len(largest) < 2 or sizes[largest[1]] < _SMALLEST_SHARE * sizes[largest[0]]
    merged, cut_share, labels = False, 0.0, np.zeros(parts.shape, dtype=np.uint8)
    if alone and smaller > _SMALLEST_SHARE * profile.sum():
        merged = True
        halves = _cut(coarse, first)
        if halves is not None:
            labels = halves
            touching = (labels == RIGHT) & ndimage.binary_dilation(labels == LEFT)
            cut_share = float(touching.sum()) / float(profile.sum())
    elif not alone:
        second = parts == largest[1]
        centers = [float(np.average(columns, weights=part.sum(axis=(0, 1)))) for part in (first, second)]
        right, left = (first, second) if centers[0] < centers[1] else (second, first)
        if abs(centers[0] - centers[1]) * coarse.spacing_mm[2] >= _APART_MM:
            labels[right], labels[left] = RIGHT, LEFT
    unsure = not labels.any()
    if unsure:
        center = float(np.average(columns, weights=profile))
        labels[first] = RIGHT if center < middle else LEFT
    _adopt(coarse, lungs, labels)
    return Sides(labels=labels, merged=merged, cut_share=cut_share, unsure=unsure)


def _cut(coarse: Coarse, mask: Mask) -> Labels | None:
    """Return the two lungs of a merged ``mask``, or None where no neck between two large parts exists.

    The mask is eroded until it falls into two large parts side by side. A watershed from these then puts the border
    where the densest voxels are: on the junction line.
    """
    spacing = coarse.spacing_mm
    window = ndimage.find_objects(mask.astype(np.uint8))[0]
    inner, total = mask[window], int(mask.sum())
    depth = edt.edt(inner, anisotropy=spacing, black_border=False, parallel=2)
    columns = np.arange(inner.shape[2])
    for radius in np.arange(1.0, 8.0) * min(spacing[1:]):
        cores = cc3d.connected_components(depth > radius, connectivity=6)
        sizes = np.bincount(cores.ravel())
        sizes[0] = 0
        if len(sizes) < 3:
            continue
        pair = [int(part) for part in np.argsort(sizes)[::-1][:2]]
        if sizes[pair[1]] < _SMALLEST_SHARE * total:
            continue
        centers = [float(np.average(columns, weights=(cores == part).sum(axis=(0, 1)))) for part in pair]
        if abs(centers[0] - centers[1]) * spacing[2] < _APART_MM:
            continue
        right, left = pair if centers[0] < centers[1] else pair[::-1]
        markers = np.where(cores == right, RIGHT, np.where(cores == left, LEFT, 0)).astype(np.int32)
        labels = np.zeros(mask.shape, dtype=np.uint8)
        flood: Any = watershed  # scikit-image carries no types here
        labels[window] = flood(coarse.hu[window], markers, mask=inner)
        return labels
    return None


def _adopt(coarse: Coarse, lungs: Mask, labels: Labels) -> None:
    """Give every piece of ``lungs`` without a label the label of the nearer lung; pieces far from both stay out."""
    pieces = cc3d.connected_components(lungs & (labels == 0), connectivity=6)
    count = int(pieces.max())
    if count == 0:
        return
    nearest = np.zeros((2, count + 1))
    index = np.arange(1, count + 1)
    for row, side in enumerate((RIGHT, LEFT)):
        if (labels == side).any():
            distance = edt.edt(labels != side, anisotropy=coarse.spacing_mm, black_border=False, parallel=2)
            nearest[row, 1:] = ndimage.minimum(distance, pieces, index)
        else:
            nearest[row, 1:] = np.inf
    given = np.where(nearest[0] <= nearest[1], RIGHT, LEFT).astype(np.uint8)
    given[nearest.min(axis=0) > _NEAR_MM] = 0
    given[0] = 0
    np.copyto(labels, given[pieces], where=pieces > 0)


def close_and_fill(
    coarse: Coarse, body: Body, labels: Labels, blocked: Mask, *, radius_mm: float = CLOSING_MM
) -> tuple[Labels, Mask]:
    """Return ``labels`` (s, p, l) with vessels, nodules at the wall and voids inside, and where they were added.

    A closing by a ball adds what is thinner than its diameter. It is limited to soft tissue, to the body, and to voxels
    outside the other lung and ``blocked`` (airway, gas of something else), so that it cannot bridge the mediastinum.
    """
    closed = labels.copy()
    margin = [int(radius_mm / step) + 2 for step in coarse.spacing_mm]
    low, high = _ADDED_HU
    for side in (RIGHT, LEFT):
        boxes = ndimage.find_objects((labels == side).astype(np.uint8))
        if not boxes:
            continue
        window = boxes[0]
        lung = labels[window] == side
        # Room for the ball on all sides: cut short by the border of the volume it would swell the lung there.
        padded = np.pad(lung, [(pad, pad) for pad in margin])
        near = edt.edt(~padded, anisotropy=coarse.spacing_mm, black_border=False, parallel=2) <= radius_mm
        ball = edt.edt(near, anisotropy=coarse.spacing_mm, black_border=False, parallel=2) > radius_mm
        ball = ball[tuple(slice(pad, -pad) for pad in margin)]
        hu = coarse.hu[window]
        ball &= (hu > low) & (hu < high) & ~blocked[window] & (body.tissue | body.inside)[window]
        filled = fill_voids.fill(lung | ball)
        filled &= (closed[window] == 0) & ~blocked[window] & ~coarse.outside[window]
        closed[window][filled] = side
    return closed, (closed > 0) & (labels == 0)
