"""The body on the work grid: what is patient, what is air inside the patient, and the threshold between the two.

Table, clothes and blankets are thin or apart: an opening and the largest 3-D component drop them. Air is inside when an
axial plane of the body encloses it; where the field of view cuts the chest, what touches the cut counts as inside only
if it looks like lung, because padding and room air are never part of a patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ctnode.ct.ball import dilated, eroded
from ctnode.ct.coarse import Box, Coarse, Mask, grown

TISSUE_HU: Final = -500
OPENING_MM: Final = 3.0
RECOVERY_MM: Final = 9.0
# Room air measures -1000 +- 20 HU on a calibrated scanner; even emphysema with its vessels is mostly denser than this.
ROOM_AIR_HU: Final = -970
THRESHOLD_LIMITS_HU: Final = (-600.0, -300.0)
_SOFT_HU: Final = (0, 100)
_LARGEST_EDGE_FRACTION: Final = 0.7
_LEAST_OVERLAP: Final = 0.5
_PLANE_AXES: Final = (1, 2)
_IN_PLANE: Final = np.array([[[0, 0, 0]] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0, 0, 0]] * 3], dtype=bool)


@dataclass(frozen=True, eq=False, slots=True)
class Body:
    """What belongs to the patient.

    Parameters
    ----------
    tissue
        ``(s, p, l)`` bool, everything denser than lung.
    inside
        ``(s, p, l)`` bool, air that the tissue encloses.
    cut
        ``(s, p, l)`` bool, the part of ``inside`` that touches padding or the edge of the field of view.
    """

    tissue: Mask
    inside: Mask
    cut: Mask

    def part(self, box: Box) -> Self:
        """Return what lies in ``box``."""
        return type(self)(*(np.ascontiguousarray(mask[box]) for mask in (self.tissue, self.inside, self.cut)))


def find_body(coarse: Coarse) -> Body | None:
    """Return the body, or None where no tissue survives the opening (air, a single wire phantom)."""
    found = find_tissue(coarse)
    if found is None:
        return None
    tissue, core = found
    inside, cut = _enclosed(coarse, tissue, core)
    return Body(tissue=tissue, inside=inside, cut=cut)


def find_tissue(coarse: Coarse) -> tuple[Mask, Mask] | None:
    """Return what of the body is denser than lung, and its part that survives the opening; None where nothing does."""
    tissue = (coarse.hu > TISSUE_HU) & ~coarse.outside
    spacing = coarse.spacing_mm
    # Voxels larger than the ball are not opened: they show no couch shell either, but walls of two or three voxels.
    core = eroded(tissue, spacing, OPENING_MM)
    if not core.any():
        return None
    core = cc3d.largest_k(core, k=1, connectivity=6, binary_image=True).astype(bool)
    # What the opening took from the body's own surface comes back: walls may be thinner than the ball.
    tissue &= dilated(core, spacing, RECOVERY_MM)
    return tissue, core


def _enclosed(
    coarse: Coarse,
    tissue: Mask,
    core: Mask,
    *,
    lung_fraction: float = 0.4,
    largest_edge_fraction: float = 0.35,
    smallest_cut_cm2: float = 5.0,
) -> tuple[Mask, Mask]:
    """Return the air that ``tissue`` encloses in axial planes and where the field of view cuts it, ``(s, p, l)``.

    ``core`` is the tissue without anything thin: what a couch or a blanket encloses has it on one side only.
    """
    air = ~tissue & ~coarse.outside
    regions, count = ndimage.label(air, structure=_IN_PLANE)
    # The edge of the field of view: the border of the image, and all that is next to padding within the plane.
    edge = grown(coarse.outside, _PLANE_AXES)
    edge[:, [0, -1], :] = True
    edge[:, :, [0, -1]] = True
    edge &= air

    of_air = regions[air]

    def voxels(mask: Mask) -> npt.NDArray[np.int64]:
        return np.bincount(of_air[mask[air]], minlength=count + 1)

    # A chest cut by the field of view: a large region, mostly lung, with a wall of tissue round most of it and patient
    # on three sides at least. The foam of a couch has the density of emphysema, but no such wall.
    sizes, at_edge = np.bincount(of_air, minlength=count + 1), voxels(edge)
    wall = voxels(grown(tissue, _PLANE_AXES))
    sides = _sides_with_patient(core)
    lung_like = voxels(coarse.hu > ROOM_AIR_HU) > lung_fraction * sizes
    large = sizes * (coarse.spacing_mm[1] * coarse.spacing_mm[2] / 100.0) >= smallest_cut_cm2
    between = 2 * voxels(sides >= 2) > sizes
    lung_like &= large & between
    cut_lung = lung_like & (2 * voxels(sides >= 3) > sizes)
    cut_lung &= at_edge <= largest_edge_fraction * (at_edge + wall)
    # Where the circle of reconstruction takes away most of the wall, the planes above and below still tell a lung.
    possible = lung_like & (at_edge <= _LARGEST_EDGE_FRACTION * (at_edge + wall))
    possible[0] = False
    if np.any(possible & ~cut_lung) and cut_lung.any():
        last = len(regions) - 1
        upwards = [(plane, plane - 1) for plane in range(1, last + 1)]
        downwards = [(plane, plane + 1) for plane in range(last - 1, -1, -1)]
        for plane, neighbour in upwards + downwards:
            shared = np.bincount(regions[plane][cut_lung[regions[neighbour]]], minlength=count + 1)
            cut_lung |= possible & (shared > _LEAST_OVERLAP * sizes)
    enclosed = (at_edge == 0) & (~large | between)
    enclosed |= cut_lung
    enclosed[0] = False
    inside: Mask = enclosed[regions]
    return inside, inside & edge


def _sides_with_patient(core: Mask) -> npt.NDArray[np.uint8]:
    """Return from how many of the four directions in its plane each voxel sees ``core`` (s, p, l), uint8."""
    seen = np.zeros(core.shape, dtype=np.uint8)
    for axis in _PLANE_AXES:
        size = core.shape[axis]
        index = np.arange(size, dtype=np.int16).reshape((-1, 1) if axis == 1 else (1, -1))
        any_core = core.any(axis=axis, keepdims=True)
        first = np.where(any_core, core.argmax(axis=axis, keepdims=True), size).astype(np.int16)
        last = np.where(any_core, size - 1 - np.flip(core, axis).argmax(axis=axis, keepdims=True), -1).astype(np.int16)
        seen += index >= first
        seen += index <= last
    return seen


def air_threshold_hu(coarse: Coarse, body: Body) -> tuple[float, bool]:
    """Return the threshold between air and tissue of this scan, and whether it had to be clamped.

    Iterates to the middle between the means of both sides (Hu, Hoffman, Reinhardt, IEEE TMI 20:490, 2001), then takes
    the middle between the mean of the air and that of muscle.
    """
    values = np.clip(coarse.hu[body.tissue | body.inside], -1024, 200)
    histogram = np.bincount(values.astype(np.int32) + 1024, minlength=1225).astype(np.float64)
    levels = np.arange(-1024.0, 201.0)
    weights, sums = np.cumsum(histogram), np.cumsum(histogram * levels)
    threshold = float(TISSUE_HU)
    for _ in range(50):
        index = int(np.clip(threshold + 1024.0, 0, len(levels) - 2))
        below, above = weights[index], weights[-1] - weights[index]
        if below == 0.0 or above == 0.0:
            break
        middle = (sums[index] / below + (sums[-1] - sums[index]) / above) / 2.0
        if abs(middle - threshold) < 0.5:
            break
        threshold = middle
    # The wall that lungs touch is muscle and pleura, while fat and bone are part of the mean of all that is dense.
    soft = slice(_SOFT_HU[0] + 1024, _SOFT_HU[1] + 1024)
    index = int(np.clip(threshold + 1024.0, 0, len(levels) - 2))
    if weights[index] > 0.0 and histogram[soft].sum() > 0.0:
        mean_air = sums[index] / weights[index]
        threshold = float(mean_air + np.average(levels[soft], weights=histogram[soft])) / 2.0
    low, high = THRESHOLD_LIMITS_HU
    return float(min(max(threshold, low), high)), not low <= threshold <= high
