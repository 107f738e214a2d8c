"""A z-buffer in NumPy: triangles to pixels, all of them at once, without a graphics library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# Triangles at a time: bounds what their pixels take.
_CHUNK: Final = 40000
_DEPTH_STEPS: Final = float(1 << 30)
# Triangles share edges: what lies on one belongs to both, so that no gap shows.
_EDGE: Final = 1e-4


@dataclass(frozen=True, eq=False, slots=True)
class Mesh:
    """A closed surface.

    Parameters
    ----------
    points
        ``(n, 3)`` float32, millimetres along L, P, S.
    faces
        ``(m, 3)`` indices of points.
    normals
        ``(n, 3)`` float32 unit vectors along L, P, S that point out.
    """

    points: Floats
    faces: npt.NDArray[np.int32]
    normals: Floats


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """What is seen of a mesh.

    Parameters
    ----------
    depth_mm
        ``(rows, columns)`` from the viewer; infinite where nothing is.
    light
        ``(rows, columns)`` 0 to 1, how much light a pixel gives back.
    facing
        ``(rows, columns)`` 0 to 1, how much the surface is turned to the viewer.
    """

    depth_mm: Floats
    light: Floats
    facing: Floats


def view_axes(azimuth_deg: float) -> Floats:
    """Return ``(3, 3)`` rows, along L, P, S: to the right of the picture, down, and away from the viewer.

    The head is up; at 0 the viewer stands in front of the patient, at 90 at the patient's left side.
    """
    angle = np.deg2rad(azimuth_deg)
    away = np.array([-np.sin(angle), np.cos(angle), 0.0])
    return np.array([np.cross(away, [0.0, 0.0, 1.0]), [0.0, 0.0, -1.0], away], dtype=np.float32)


def render(
    mesh: Mesh, axes: Floats, corner_mm: tuple[float, float], pixels_per_mm: float, size: tuple[int, int]
) -> Layer:
    """Return the parts of ``mesh`` that are in front, in parallel projection.

    Parameters
    ----------
    mesh
        In millimetres.
    axes
        Of ``view_axes``.
    corner_mm
        Where the left upper corner of the picture lies along the first two axes.
    pixels_per_mm, size
        Scale and ``(rows, columns)``.
    """
    rows, columns = size
    seen = mesh.points @ axes.T
    x = (seen[:, 0] - np.float32(corner_mm[0])) * np.float32(pixels_per_mm) - np.float32(0.5)
    y = (seen[:, 1] - np.float32(corner_mm[1])) * np.float32(pixels_per_mm) - np.float32(0.5)
    turned = mesh.normals @ axes.T
    values = np.stack([seen[:, 2], _light(turned), np.clip(-turned[:, 2], 0.0, 1.0)], axis=1)
    towards = turned[:, 2][mesh.faces].sum(axis=1) < 0.0
    faces = mesh.faces[towards]
    nearest, deepest = (float(seen[:, 2].min()), float(seen[:, 2].max())) if len(seen) else (0.0, 1.0)
    steps = _DEPTH_STEPS / max(deepest - nearest, 1e-3)
    best = np.full(rows * columns, np.iinfo(np.int64).max, dtype=np.int64)
    light, facing = (np.zeros(rows * columns, dtype=np.float32) for _ in range(2))
    for start in range(0, len(faces), _CHUNK):
        part = faces[start : start + _CHUNK]
        pixel, found = _fragments(x[part], y[part], values[part], rows, columns)
        depth = ((found[:, 0] - nearest) * steps).astype(np.int64)
        # Depth first, then the place among the fragments: the smallest key is the one in front, and always the same.
        keys = (np.clip(depth, 0, int(_DEPTH_STEPS)) << 32) | np.arange(len(pixel), dtype=np.int64)
        closer = (depth << 32) <= best[pixel]
        pixel, keys = pixel[closer], keys[closer]
        before = best.copy()
        np.minimum.at(best, pixel, keys)
        changed = np.flatnonzero(best != before)
        index = best[changed] & 0xFFFFFFFF
        light[changed], facing[changed] = found[index, 1], found[index, 2]
        # Whatever comes later has to be nearer than this.
        best[changed] &= ~np.int64(0xFFFFFFFF)
    empty = best == np.iinfo(np.int64).max
    depth_mm = ((best >> 32) / steps + nearest).astype(np.float32)
    depth_mm[empty] = np.inf
    return Layer(depth_mm.reshape(size), light.reshape(size), facing.reshape(size))


def _light(turned: Floats) -> Floats:
    """Return the light that points with these normals (along the axes of the view) give back."""
    lamp = np.array([-0.45, -0.55, -0.70], dtype=np.float32)
    lamp /= np.linalg.norm(lamp)
    diffuse = np.clip(turned @ lamp, 0.0, 1.0)
    fill = np.clip(-turned[:, 2], 0.0, 1.0)
    half = lamp + np.array([0.0, 0.0, -1.0], dtype=np.float32)
    shine = np.clip(turned @ (half / np.linalg.norm(half)), 0.0, 1.0) ** 24
    light: Floats = np.clip(0.18 + 0.50 * diffuse + 0.34 * fill + 0.14 * shine, 0.0, 1.0).astype(np.float32)
    return light


def _fragments(x: Floats, y: Floats, values: Floats, rows: int, columns: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the pixels whose centres lie in triangles ``(m, 3)``, and there the values ``(m, 3, k)``."""
    left = np.clip(np.ceil(x.min(axis=1)), 0, columns).astype(np.int64)
    top = np.clip(np.ceil(y.min(axis=1)), 0, rows).astype(np.int64)
    wide = np.clip(np.floor(x.max(axis=1)), -1, columns - 1).astype(np.int64) - left + 1
    tall = np.clip(np.floor(y.max(axis=1)), -1, rows - 1).astype(np.int64) - top + 1
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    kept = np.flatnonzero((wide > 0) & (tall > 0) & (np.abs(area) > 1e-9))
    x, y, values, area = x[kept], y[kept], values[kept], area[kept]
    left, top, wide, tall = left[kept], top[kept], wide[kept], tall[kept]
    count = wide * tall
    owner = np.repeat(np.arange(len(kept), dtype=np.int32), count)
    place = np.arange(len(owner), dtype=np.int32) - np.repeat((np.cumsum(count) - count).astype(np.int32), count)
    across = np.repeat(wide.astype(np.int32), count)
    down = place // across
    aside = place - down * across
    # Barycentric coordinates as planes over the box of the triangle, where numbers are small enough for float32.
    corner_x, corner_y = left - x[:, 0], top - y[:, 0]
    inside = np.ones(len(owner), dtype=np.bool_)
    shares = []
    for near, sign in ((2, 1.0), (1, -1.0)):
        per_column = sign * (y[:, near] - y[:, 0]) / area
        per_row = -sign * (x[:, near] - x[:, 0]) / area
        start = (per_column * corner_x + per_row * corner_y).astype(np.float32)
        share = np.repeat(start, count)
        share += np.repeat(per_column.astype(np.float32), count) * aside.astype(np.float32)
        share += np.repeat(per_row.astype(np.float32), count) * down.astype(np.float32)
        inside &= share >= -_EDGE
        shares.append(share)
    inside &= shares[0] + shares[1] <= 1.0 + _EDGE
    hit = np.flatnonzero(inside)
    owner = owner[hit]
    found = values[owner, 0]
    found += shares[0][hit, None] * (values[:, 1] - values[:, 0])[owner]
    found += shares[1][hit, None] * (values[:, 2] - values[:, 0])[owner]
    return (top[owner] + down[hit]) * columns + left[owner] + aside[hit], found
