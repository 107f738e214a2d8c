"""Resampling along the axes of a grid: own weights, anti-aliased when shrinking, aligned by half pixels.

The target grid comes first and samples are taken where its affine says; the affine is never corrected afterwards.
Work is done slice by slice in float32, so nothing of the size of the volume is held but the result.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from ctnode.ct.grid import FloatArray, Grid

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Method = Literal["linear", "cubic", "area"]

_Voxels = npt.NDArray[np.int16] | npt.NDArray[np.float32]
_Plane = npt.NDArray[np.float32]


def isotropic_grid(grid: Grid, spacing_mm: float) -> Grid:
    """Return the grid of cubes of ``spacing_mm`` whose first voxel begins where the first of ``grid`` begins.

    The edges of the field of view coincide at its start, not the centres of the first voxels (half-pixel
    alignment); at its end they do within half a voxel.
    """
    return spaced_grid(grid, (spacing_mm, spacing_mm, spacing_mm))


def spaced_grid(grid: Grid, spacing_mm: tuple[float, float, float]) -> Grid:
    """Return the grid of voxels of ``spacing_mm`` along ``(z, y, x)`` that begins where ``grid`` begins.

    Raises
    ------
    ValueError
        If a spacing is not a positive number.
    """
    new_mm = np.array(spacing_mm, dtype=np.float64)
    if not (np.isfinite(new_mm).all() and (new_mm > 0).all()):
        raise ValueError(f"{spacing_mm} is no spacing in millimetres")
    old_mm = np.array(grid.spacing_mm)
    shape = np.maximum(1, np.rint(np.array(grid.shape) * old_mm / new_mm)).astype(int)
    return _aligned(grid, (int(shape[0]), int(shape[1]), int(shape[2])), new_mm)


def sized_grid(grid: Grid, shape: tuple[int, int, int]) -> Grid:
    """Return the grid of ``shape`` ``(z, y, x)`` over exactly the field of view of ``grid``.

    Raises
    ------
    ValueError
        If a side is under 1.
    """
    if min(shape) < 1:
        raise ValueError(f"{shape} is no shape")
    return _aligned(grid, shape, np.array(grid.spacing_mm) * grid.shape / np.array(shape))


def _aligned(grid: Grid, shape: tuple[int, int, int], spacing_zyx_mm: FloatArray) -> Grid:
    directions = grid.directions
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing_zyx_mm[::-1]
    shift_mm = (spacing_zyx_mm - np.array(grid.spacing_mm))[::-1] / 2.0
    affine[:3, 3] = grid.affine[:3, 3] + directions @ shift_mm
    return Grid(shape, affine)


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


def _triangle(distance: FloatArray, width: float) -> FloatArray:
    return np.clip(1.0 - np.abs(distance) / width, 0.0, None)


def _keys(distance: FloatArray, width: float) -> FloatArray:
    """Return Keys' cubic convolution kernel (a = -0.5), IEEE TASSP 29 (1981) 1153, stretched to ``width``."""
    x = np.abs(distance) / width
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _covered(distance: FloatArray, width: float) -> FloatArray:
    """Return the share of the target voxel of ``width`` source voxels in the linear interpolation of the source.

    A mean of whole source voxels would let 0.157 of a sine of 0.45 cycles a voxel through where two become one; the
    mean of the line through them lets 0.08 through.
    """

    def below(x: FloatArray) -> FloatArray:
        x = np.clip(x, -1.0, 1.0)
        return np.where(x < 0.0, (x + 1.0) ** 2 / 2.0, 1.0 - (1.0 - x) ** 2 / 2.0)

    return below(distance + width / 2.0) - below(distance - width / 2.0)


# Each with how far it reaches, in multiples of its width, and in voxels besides.
_KERNELS: Final[dict[Method, tuple[Callable[[FloatArray, float], FloatArray], float, float]]] = {
    "linear": (_triangle, 1.0, 0.0),
    "cubic": (_keys, 2.0, 0.0),
    "area": (_covered, 0.5, 1.0),
}


def weights(places: FloatArray, size: int, method: Method = "linear", *, same_voxels: float = 1e-6) -> csr_array:
    """Return the ``(len(places), size)`` float32 matrix that samples an axis of ``size`` voxels at ``places``.

    A kernel as wide as the step (never under one voxel) averages what a coarser grid cannot hold; its first moment
    is then corrected, so that straight lines come out exact also where the kernel is cut by the end of the axis.
    Places outside the axis take its end. ``area`` has a meaning only where the axis shrinks; elsewhere it is linear.
    """
    from scipy.sparse import csr_array

    places = np.clip(places, 0, size - 1)
    width = max(1.0, abs(float(np.median(np.diff(places)))) if len(places) > 1 else 1.0)
    nearest = np.rint(places)
    if width - 1.0 <= same_voxels:
        width = 1.0
        method = "linear" if method == "area" else method
        if np.abs(places - nearest).max() <= same_voxels:
            places = nearest
    kernel, widths, voxels = _KERNELS[method]
    reach = max(widths * width + voxels, width)
    first = np.floor(places - reach).astype(np.int64) + 1
    taps = first[:, None] + np.arange(int(np.ceil(2 * reach)) + 1)
    inside = (taps >= 0) & (taps < size)
    distance = taps - places[:, None]
    share = np.where(inside, kernel(distance, width), 0.0)
    share /= share.sum(axis=1, keepdims=True)
    # The correction is spread by a triangle, which has no negative lobes and so always a width to turn about.
    spread = np.where(inside, _triangle(distance, width), 0.0)
    spread /= spread.sum(axis=1, keepdims=True)
    middle = (spread * distance).sum(axis=1, keepdims=True)
    variance = (spread * (distance - middle) ** 2).sum(axis=1, keepdims=True)
    moment = (share * distance).sum(axis=1, keepdims=True)
    slope = np.divide(moment, variance, out=np.zeros_like(moment), where=variance > 1e-12)
    share -= slope * spread * (distance - middle)
    rows = np.broadcast_to(np.arange(len(places))[:, None], taps.shape)
    used = inside & (np.abs(share) > 1e-9)
    return csr_array(
        (share[used].astype(np.float32), (rows[used], taps[used])), shape=(len(places), size), dtype=np.float32
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis: the weights, and for ``cubic`` the ``(places, taps)`` voxels that bound what may come out."""

    matrix: csr_array
    bounds: npt.NDArray[np.intp] | None

    @classmethod
    def along(cls, places: FloatArray, size: int, method: Method) -> _Axis:
        matrix = weights(places, size, method)
        if method != "cubic":
            return cls(matrix, None)
        counts = np.diff(matrix.indptr)
        # Rows with fewer taps than others repeat their last one.
        taps = matrix.indptr[:-1, None] + np.minimum(np.arange(counts.max()), counts[:, None] - 1)
        return cls(matrix, matrix.indices[taps].astype(np.intp))

    def sample(self, image: _Plane) -> _Plane:
        """Return ``image`` sampled along its first axis, never beyond the values that took part."""
        result: _Plane = self.matrix @ image
        if self.bounds is None:
            return result
        low = image[self.bounds[:, 0]]
        high = low.copy()
        for tap in self.bounds.T[1:]:
            source = image[tap]
            np.minimum(low, source, out=low)
            np.maximum(high, source, out=high)
        return np.clip(result, low, high, out=result)


def resample(voxels: _Voxels, grid: Grid, target: Grid, *, method: Method = "linear", threads: int = 2) -> _Voxels:
    """Return ``voxels`` at the voxels of ``target``.

    Parameters
    ----------
    voxels
        ``(z, y, x)`` int16 or float32 on ``grid``.
    grid, target
        LPS; both along the same axes.
    method
        ``linear``; ``cubic`` (sharper; along each axis never beyond the voxels that take part, so that bone and metal
        make no halo); ``area`` (the mean of the linear interpolation over each new voxel, where that is larger than the
        old ones; else linear). All average what a coarser grid cannot hold.
    threads
        Parts of the target that are made at the same time; the result does not depend on it.

    Returns
    -------
    ndarray
        ``target.shape``, dtype of ``voxels``; integers are rounded half to even and never wrap.

    Raises
    ------
    ValueError
        If the grids do not share their axes.
    """
    along_z, along_y, along_x = (
        _Axis.along(places, size, method) for places, size in zip(axis_maps(grid, target), grid.shape, strict=True)
    )
    result: _Voxels = np.empty_like(voxels, shape=target.shape)
    pointers, sources, shares = along_z.matrix.indptr, along_z.matrix.indices, along_z.matrix.data

    def part(start: int, stop: int) -> None:
        planes: OrderedDict[int, _Plane] = OrderedDict()
        for index in range(start, stop):
            begin, end = pointers[index], pointers[index + 1]
            for source in sources[begin:end]:
                if source not in planes:
                    planes[source] = _in_plane(voxels[source], along_y, along_x)
            _store(_mixed([planes[source] for source in sources[begin:end]], shares[begin:end], method), result[index])
            # Later slices need nothing before the first source of this one.
            while planes and next(iter(planes)) < sources[begin]:
                planes.popitem(last=False)

    cuts = np.linspace(0, target.shape[0], threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, cuts[:-1], cuts[1:]))
    return result


def _mixed(planes: list[_Plane], shares: npt.NDArray[np.float32], method: Method) -> _Plane:
    if len(planes) == 1 and shares[0] == 1.0:
        return planes[0]
    total: _Plane = planes[0] * shares[0]
    for plane, share in zip(planes[1:], shares[1:], strict=True):
        total += plane * share
    if method == "cubic":
        low, high = planes[0].copy(), planes[0].copy()
        for plane in planes[1:]:
            np.minimum(low, plane, out=low)
            np.maximum(high, plane, out=high)
        np.clip(total, low, high, out=total)
    return total


def _in_plane(image: npt.NDArray[np.int16] | _Plane, along_y: _Axis, along_x: _Axis) -> _Plane:
    # A sparse matrix works on rows, so the second axis is turned to the front and back.
    half = along_y.sample(image.astype(np.float32))
    turned: _Plane = along_x.sample(np.ascontiguousarray(half.T)).T
    return turned


def _store(plane: _Plane, out: npt.NDArray[np.int16] | _Plane) -> None:
    if out.dtype == np.float32:
        out[...] = plane
        return
    limits = np.iinfo(np.int16)
    rounded = np.rint(plane)
    np.clip(rounded, limits.min, limits.max, out=rounded)
    out[...] = rounded


def resample_labels(
    labels: npt.NDArray[np.uint8], grid: Grid, target: Grid, *, one_hot: bool = False, threads: int = 2
) -> npt.NDArray[np.uint8]:
    """Return ``labels`` ``(z, y, x)`` at the voxels of ``target``.

    Parameters
    ----------
    labels
        uint8 on ``grid``; 0 is background.
    grid, target
        LPS; both along the same axes.
    one_hot
        False: the label of the nearest voxel, halves upwards. True: each label on its own by linear weights, the
        label with the largest share wins (the smaller one of equals): smoother surfaces, anti-aliased when
        shrinking, slower by the number of labels.
    threads
        As in ``resample``.

    Raises
    ------
    ValueError
        If the grids do not share their axes.
    """
    if one_hot:
        return _by_share(labels, grid, target, threads)
    along_z, along_y, along_x = (
        np.clip(np.floor(places + 0.5), 0, size - 1).astype(np.intp)
        for places, size in zip(axis_maps(grid, target), grid.shape, strict=True)
    )
    result = np.empty(target.shape, dtype=np.uint8)
    for index, source in enumerate(along_z):
        result[index] = labels[source][along_y][:, along_x]
    return result


def _by_share(
    labels: npt.NDArray[np.uint8], grid: Grid, target: Grid, threads: int, *, whole: int = 30000
) -> npt.NDArray[np.uint8]:
    result = np.zeros(target.shape, dtype=np.uint8)
    best = np.full(target.shape, -1, dtype=np.int16)
    for label in np.flatnonzero(np.bincount(labels.ravel(), minlength=256)):
        share = resample((labels == label).astype(np.int16) * np.int16(whole), grid, target, threads=threads)
        wins = share > best
        result[wins] = label
        np.maximum(best, share.astype(np.int16, copy=False), out=best)
    return result
