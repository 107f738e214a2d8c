"""Resampling along the axes of a grid: own weights, anti-aliased when shrinking, aligned by half pixels.

The target grid comes first and samples are taken where its affine says; the affine is never corrected afterwards.
Work is done slice by slice in float32, so nothing of the size of the volume is held but the result.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from ctnode.ct.grid import FloatArray, Grid

_Voxels = npt.NDArray[np.int16] | npt.NDArray[np.float32]
_Plane = npt.NDArray[np.float32]


def isotropic_grid(grid: Grid, spacing_mm: float) -> Grid:
    """Return the grid of cubes of ``spacing_mm`` whose first voxel begins where the first of ``grid`` begins.

    The edges of the field of view coincide at its start, not the centres of the first voxels (half-pixel
    alignment); at its end they do within half a voxel.
    """
    old_mm = np.array(grid.spacing_mm)
    shape = np.maximum(1, np.rint(np.array(grid.shape) * old_mm / spacing_mm)).astype(int)
    directions = grid.directions
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing_mm
    shift_mm = (spacing_mm - old_mm[::-1]) / 2.0
    affine[:3, 3] = grid.affine[:3, 3] + directions @ shift_mm
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def axis_maps(grid: Grid, target: Grid, *, tolerance_voxels: float = 1e-6) -> list[FloatArray]:
    """Return for each axis (z, y, x) the places of the target's voxels in voxels of ``grid``, float64.

    Raises
    ------
    ValueError
        If the axes of the two grids differ by more than ``tolerance_voxels`` over the target.
    """
    matrix = np.linalg.solve(grid.affine, target.affine)
    sides = np.array(target.shape[::-1])
    off_axis = (matrix[:3, :3] - np.diag(np.diag(matrix[:3, :3]))) * sides
    if np.abs(off_axis).max() > tolerance_voxels:
        raise ValueError("the grids do not share their axes")
    places = [matrix[axis, axis] * np.arange(sides[axis]) + matrix[axis, 3] for axis in range(3)]
    return places[::-1]


def weights(places: FloatArray, size: int, *, same_voxels: float = 1e-6) -> csr_array:
    """Return the ``(len(places), size)`` float32 matrix that samples an axis of ``size`` voxels at ``places``.

    A triangle as wide as the step (never under one voxel) averages what a coarser grid cannot hold; its first moment
    is then corrected, so that straight lines come out exact also where the triangle is cut by the end of the axis.
    Places outside the axis take its end.
    """
    places = np.clip(places, 0, size - 1)
    step = abs(float(np.median(np.diff(places)))) if len(places) > 1 else 1.0
    width = max(1.0, step)
    nearest = np.rint(places)
    if width - 1.0 <= same_voxels and np.abs(places - nearest).max() <= same_voxels:
        places, width = nearest, 1.0
    first = np.floor(places - width).astype(np.int64) + 1
    taps = first[:, None] + np.arange(int(np.ceil(2 * width)) + 1)
    inside = (taps >= 0) & (taps < size)
    distance = taps - places[:, None]
    triangle = np.where(inside, np.clip(1.0 - np.abs(distance) / width, 0.0, None), 0.0)
    triangle /= triangle.sum(axis=1, keepdims=True)
    mean = (triangle * distance).sum(axis=1, keepdims=True)
    variance = (triangle * (distance - mean) ** 2).sum(axis=1, keepdims=True)
    slope = np.divide(mean, variance, out=np.zeros_like(mean), where=variance > 1e-12)
    triangle *= 1.0 - slope * (distance - mean)
    rows = np.broadcast_to(np.arange(len(places))[:, None], taps.shape)
    used = inside & (np.abs(triangle) > 1e-9)
    return csr_array(
        (triangle[used].astype(np.float32), (rows[used], taps[used])), shape=(len(places), size), dtype=np.float32
    )


def resample(voxels: _Voxels, grid: Grid, target: Grid, *, threads: int = 2) -> _Voxels:
    """Return ``voxels`` at the voxels of ``target``.

    Parameters
    ----------
    voxels
        ``(z, y, x)`` int16 or float32 on ``grid``.
    grid, target
        LPS; both along the same axes.

    Returns
    -------
    ndarray
        ``target.shape``, dtype of ``voxels``; integers are rounded half to even and never wrap.
    """
    along_z, along_y, along_x = (
        weights(places, size) for places, size in zip(axis_maps(grid, target), grid.shape, strict=True)
    )
    result: _Voxels = np.empty_like(voxels, shape=target.shape)

    def part(start: int, stop: int) -> None:
        planes: OrderedDict[int, _Plane] = OrderedDict()
        for index in range(start, stop):
            begin, end = along_z.indptr[index], along_z.indptr[index + 1]
            total: _Plane | None = None
            for source, weight in zip(along_z.indices[begin:end], along_z.data[begin:end], strict=True):
                plane = planes.get(source)
                if plane is None:
                    plane = planes[source] = _in_plane(voxels[source], along_y, along_x)
                share = plane if weight == 1.0 else plane * weight
                total = share if total is None else total + share
            assert total is not None
            _store(total, result[index])
            # Later slices need nothing before the first source of this one.
            while planes and next(iter(planes)) < along_z.indices[begin]:
                planes.popitem(last=False)

    cuts = np.linspace(0, target.shape[0], threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, cuts[:-1], cuts[1:]))
    return result


def _in_plane(image: npt.NDArray[np.int16] | _Plane, along_y: csr_array, along_x: csr_array) -> _Plane:
    # A sparse matrix works on rows, so the second axis is turned to the front and back.
    half = along_y @ image.astype(np.float32)
    turned: _Plane = along_x @ np.ascontiguousarray(half.T)
    return turned.T


def _store(plane: _Plane, out: npt.NDArray[np.int16] | _Plane) -> None:
    if out.dtype == np.float32:
        out[...] = plane
        return
    limits = np.iinfo(np.int16)
    rounded = np.rint(plane)
    np.clip(rounded, limits.min, limits.max, out=rounded)
    out[...] = rounded


def resample_labels(labels: npt.NDArray[np.uint8], grid: Grid, target: Grid) -> npt.NDArray[np.uint8]:
    """Return ``labels`` ``(z, y, x)`` at the voxels of ``target``: the label of the nearest voxel, halves upwards."""
    along_z, along_y, along_x = (
        np.clip(np.floor(places + 0.5), 0, size - 1).astype(np.intp)
        for places, size in zip(axis_maps(grid, target), grid.shape, strict=True)
    )
    result = np.empty(target.shape, dtype=np.uint8)
    for index, source in enumerate(along_z):
        result[index] = labels[source][along_y][:, along_x]
    return result
