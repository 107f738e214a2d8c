"""What belongs to a lung but is no air: vessels, nodules at the wall, voids inside."""

from __future__ import annotations

from typing import Final

import fill_voids
import numpy as np
from scipy import ndimage

from ctnode.ct.ball import dilated, eroded
from ctnode.ct.body import Body
from ctnode.ct.coarse import LEFT, RIGHT, Coarse, Labels, Mask, grown

# What closing may add to a lung: vessels, nodules and pleural thickening, never bone or fat-free air elsewhere.
_ADDED_HU: Final = (-600, 250)
# Pulmonary vessels are thick up to this far from the midline.
_HILUM_MM: Final = 55.0


def close_and_fill(
    coarse: Coarse, body: Body, labels: Labels, blocked: Mask, *, radius_mm: float, middle: float
) -> tuple[Labels, Mask]:
    """Return ``labels`` (s, p, l) with vessels, nodules at the wall and voids inside, and where they were added.

    A closing by a ball adds what is thinner than its diameter. It is limited to soft tissue, to the body, and to voxels
    outside the other lung and ``blocked`` (airway, gas of something else), so that it cannot bridge the mediastinum.
    ``middle`` is the index of the midline along the last axis.
    """
    closed = labels.copy()
    margin = [int(radius_mm / step) + 2 for step in coarse.spacing_mm]
    low, high = _ADDED_HU
    far_mm = np.abs(np.arange(labels.shape[2]) - middle) * coarse.spacing_mm[2]
    for side, window in zip((RIGHT, LEFT), ndimage.find_objects(labels, max_label=LEFT), strict=True):
        if window is None:
            continue
        lung = labels[window] == side
        # Room for the ball on all sides: cut short by the border of the volume it would swell the lung there.
        padded = np.pad(lung, [(pad, pad) for pad in margin])
        near = dilated(padded, coarse.spacing_mm, radius_mm)
        inner = tuple(slice(pad, -pad) for pad in margin)
        ball = eroded(near, coarse.spacing_mm, radius_mm)[inner]
        shallow = eroded(near, coarse.spacing_mm, max(0.0, radius_mm - 0.5 * min(coarse.spacing_mm)))[inner]
        # The surface of a lung runs half a voxel beyond its outermost centres; that of a nodule at the chest wall too.
        # At the hilum the same would take in the trunks of the vessels.
        rim = grown(ball & ~lung) & shallow
        ball |= rim & (far_mm[window[2]] > _HILUM_MM)
        hu = coarse.hu[window]
        ball &= (hu > low) & (hu < high) & ~blocked[window] & (body.tissue | body.inside)[window]
        filled = fill_voids.fill(lung | ball)
        filled &= (closed[window] == 0) & ~blocked[window] & ~coarse.outside[window]
        closed[window][filled] = side
    return closed, (closed > 0) & (labels == 0)
