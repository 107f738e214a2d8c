"""Surfaces of lungs, airway and bone on the reduced grid, by marching cubes (Lewiner 2003)."""

from __future__ import annotations

from typing import Any, Final

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.measure import marching_cubes

from ctnode.ct.body import find_tissue
from ctnode.ct.coarse import AIRWAY, LEFT, RIGHT, Coarse, coarsen
from ctnode.ct.grid import Volume
from ctnode.results.raster import Floats, Mesh

BONE: Final = 0
REDUCED_MM: Final = 2.4
# Above most contrast in vessels and below all cortical bone after averaging.
BONE_HU: Final = 220.0
# Less than this is calcification, contrast or noise.
_SMALLEST_BONE_ML: Final = 4.0
# Of the fields before marching cubes; the airway is too thin for more.
_SMOOTHING_MM: Final = {RIGHT: 2.6, LEFT: 2.6, AIRWAY: 1.3}
_BONE_SMOOTHING_MM: Final = 1.3
_SMOOTHED_STEPS: Final = 0.7
_PAD: Final = 3


def meshes(volume: Volume, labels: npt.NDArray[np.uint8]) -> dict[int, Mesh]:
    """Return the surfaces of what there is of ``RIGHT``, ``LEFT``, ``AIRWAY`` and ``BONE``, in a common frame.

    Parameters
    ----------
    volume
        In HU.
    labels
        ``(z, y, x)`` on its grid.
    """
    coarse = coarsen(volume, spacing_mm=REDUCED_MM)
    # The middle voxel of each block stands for it; smoothing makes up for that.
    middle = tuple(
        slice(min(factor // 2, size - 1), None, factor)
        for factor, size in zip(coarse.factors, labels.shape, strict=True)
    )
    flips = tuple(slice(None, None, -1 if flip else 1) for flip in coarse.flipped)
    reduced = labels[middle].transpose(coarse.order)[flips]
    found = {}
    for label in (RIGHT, LEFT, AIRWAY):
        field = (reduced == label).astype(np.float32)
        mesh = _surface(field, 0.5, coarse.spacing_mm, outside=0.0, smoothing_mm=_SMOOTHING_MM[label])
        if mesh is not None:
            found[label] = mesh
    bone = _surface(_bone(coarse), BONE_HU, coarse.spacing_mm, outside=-100.0, smoothing_mm=_BONE_SMOOTHING_MM)
    if bone is not None:
        found[BONE] = bone
    return found


def _bone(coarse: Coarse) -> Floats:
    """Return HU with everything but the bones of the body pushed under the threshold."""
    hu = coarse.hu.astype(np.float32)
    body = find_tissue(coarse)
    dense = hu > BONE_HU
    if body is not None:
        dense &= body[0]
    smallest = max(1, round(_SMALLEST_BONE_ML / coarse.voxel_ml))
    kept = cc3d.dust(dense, threshold=smallest, connectivity=26).astype(np.bool_)
    near = ndimage.binary_dilation(kept)
    return np.where(near, hu, np.float32(-100.0)).astype(np.float32)


def _surface(
    field: Floats, level: float, spacing_mm: tuple[float, float, float], *, outside: float, smoothing_mm: float
) -> Mesh | None:
    """Return where ``field`` ``(s, p, l)`` passes ``level``, closed at the border; None if it does nowhere."""
    above = field > level
    if not above.any():
        return None
    box = []
    for axis in range(3):
        here = np.flatnonzero(above.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, int(here[0]) - _PAD), int(here[-1]) + 1 + _PAD))
    start = [(part.start - _PAD) * step for part, step in zip(box, spacing_mm, strict=True)]
    part = np.pad(field[tuple(box)], _PAD, constant_values=outside)
    # Thick slices would show as terraces: planes between them first, then as much smoothing as they are apart.
    between = max(1, round(spacing_mm[0] / REDUCED_MM))
    part = _with_planes_between(part, between)
    steps = (spacing_mm[0] / between, *spacing_mm[1:])
    wanted = (max(smoothing_mm, _SMOOTHED_STEPS * spacing_mm[0]), smoothing_mm, smoothing_mm)
    sigma = [length / step for length, step in zip(wanted, steps, strict=True)]
    smooth = ndimage.gaussian_filter(part, sigma, mode="nearest", truncate=3.0)
    if not smooth.min() < level < smooth.max():
        return None
    extract: Any = marching_cubes
    # Values fall towards the outside, and normals point where they grow.
    points, faces, normals, _ = extract(smooth, level, spacing=steps, gradient_direction="descent")
    placed = (points + np.array(start, dtype=np.float32))[:, ::-1]
    outward = np.ascontiguousarray(normals[:, ::-1], np.float32)
    return Mesh(np.ascontiguousarray(placed, np.float32), faces.astype(np.int32), outward)


def _with_planes_between(field: Floats, count: int) -> Floats:
    """Return ``field`` with each step along axis 0 divided into ``count``, linearly."""
    if count == 1:
        return field
    fine = np.empty(((len(field) - 1) * count + 1, *field.shape[1:]), dtype=np.float32)
    fine[::count] = field
    for part in range(1, count):
        share = np.float32(part / count)
        fine[part::count] = (1 - share) * field[:-1] + share * field[1:]
    return fine
