"""What a user may want of a finished native mask: without its vessels, the vessels alone, grown by a margin."""

from __future__ import annotations

import edt
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ctnode.ct.coarse import LEFT, RIGHT
from ctnode.ct.grid import Volume

Native = npt.NDArray[np.uint8]


def inner_structures(volume: Volume, labels: Native, threshold_hu: float) -> Native:
    """Return what is dense inside the lungs: ``(z, y, x)`` uint8, 1 within the right lung, 2 within the left one.

    It is the difference of the mask with its structures filled and without: every voxel of ``labels`` (z, y, x) at or
    over ``threshold_hu``. Vessels, nodules and the walls of small airways are in it.
    """
    found = np.zeros_like(labels)
    for plane, mask, values in zip(found, labels, volume.voxels, strict=True):
        dense = (values >= threshold_hu) & ((mask == RIGHT) | (mask == LEFT))
        plane[dense] = mask[dense]
    return found


def dilated(volume: Volume, labels: Native, margin_mm: float) -> Native:
    """Return ``labels`` (z, y, x) with each lung grown by ``margin_mm`` into the background.

    The nearer lung takes a voxel, the right one where both are as near. The airway stays as it is, and padding is never
    labelled.
    """
    if margin_mm <= 0.0:
        return labels
    boxes = ndimage.find_objects(((labels == RIGHT) | (labels == LEFT)).astype(np.uint8))
    if not boxes:
        return labels
    margins = [int(margin_mm / step) + 1 for step in volume.grid.spacing_mm]
    window = tuple(
        slice(max(0, box.start - margin), box.stop + margin) for box, margin in zip(boxes[0], margins, strict=True)
    )
    result = labels.copy()
    part, before = result[window], labels[window]
    free = before == 0
    if volume.padding is not None:
        free &= ~volume.padding[window]
    nearest = np.full(part.shape, np.nextafter(np.float32(margin_mm), np.float32(np.inf)))
    for side in (RIGHT, LEFT):
        if not (before == side).any():
            continue
        distance = edt.edt(before != side, anisotropy=volume.grid.spacing_mm, black_border=False, parallel=2)
        reached = free & (distance < nearest)
        part[reached] = side
        nearest[reached] = distance[reached]
    return result
