"""Chests with an analytic truth, for judging the lungs: every structure is an implicit function in patient millimetres.

The patient frame is LPS with the origin in the middle of the chest (x to the left, y to the back, z to the head). A
structure says at every point how far its surface is (negative inside, near enough to a distance close to the surface);
painting it covers a voxel by the part that lies inside. The same chest can so be put on any grid, oblique or not, and
the truth of a voxel is the structure that fills more than half of it. ``lungless_phantoms`` has what holds no lungs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from ctnode.ct.grid import Grid

RIGHT, LEFT, AIRWAY = 1, 2, 3
AIR, FAT, MUSCLE, WATER = -1000.0, -100.0, 50.0, 5.0
NOWHERE = np.float32(60.0)  # farther than any blending or partial volume reaches

Array = np.ndarray
Surface = Callable[[Array, Array, Array], Array]
Box = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]


# ---- surfaces ------------------------------------------------------------------------------------------------------
def ellipsoid(x, y, z, center, axes):
    """The distance to an ellipsoid; an infinite axis makes it a cylinder."""
    squares, steep = np.float32(0.0), np.float32(0.0)
    for value, middle, axis in zip((x, y, z), center, axes, strict=True):
        if math.isfinite(axis):
            part = (value - np.float32(middle)) * np.float32(1.0 / axis)
            part = part * part
            squares = squares + part
            steep = steep + part * np.float32(1.0 / axis**2)
    root = np.sqrt(squares)
    return root * (root - np.float32(1.0)) / np.sqrt(steep + np.float32(1e-9))


def capsule(x, y, z, a, b, radius, end_radius=None):
    """The distance to a rod from ``a`` to ``b`` with round ends, tapering to ``end_radius``."""
    axis = np.subtract(b, a)
    px, py, pz = (value - np.float32(start) for value, start in zip((x, y, z), a, strict=True))
    along = px * np.float32(axis[0]) + py * np.float32(axis[1]) + pz * np.float32(axis[2])
    along = np.clip(along * np.float32(1.0 / max(float(axis @ axis), 1e-6)), 0.0, 1.0)
    gaps = (p - along * np.float32(step) for p, step in zip((px, py, pz), axis, strict=True))
    taper = 0.0 if end_radius is None else end_radius - radius
    return np.sqrt(sum(gap * gap for gap in gaps)) - (np.float32(radius) + along * np.float32(taper))


def smoothstep(value, low, high):
    """0 below ``low``, 1 above ``high``, smooth between."""
    part = np.clip((value - np.float32(low)) * np.float32(1.0 / (high - low)), 0.0, 1.0)
    return part * part * (3.0 - 2.0 * part)


# ---- sample points and painting ------------------------------------------------------------------------------------
class Slab:
    """The sample points of some slices, each slice sampled ``parts`` times along its thickness, and what they hold."""

    def __init__(self, grid: Grid, first: int, count: int, parts: int) -> None:
        self.affine = grid.affine.copy()
        self.affine[:3, 3] += self.affine[:3, 2] * (first - 0.5 + 0.5 / parts)
        self.affine[:3, 2] /= parts
        self.shape = (count * parts, *grid.shape[1:])
        self.inverse = np.linalg.inv(self.affine)
        self.soft = np.float32(1.0 / np.sqrt(np.prod(np.linalg.norm(self.affine[:3, :2], axis=0))))
        index = [np.arange(n, dtype=np.float32).reshape(shape) for n, shape in self._index_shapes()]
        self.xyz = [self._coordinate(axis, index) for axis in range(3)]
        self.hu = np.full(self.shape, AIR, dtype=np.float32)
        self.truth = {label: np.zeros(self.shape, dtype=np.float32) for label in (RIGHT, LEFT, AIRWAY)}
        self.nodules = np.zeros(self.shape, dtype=np.float32)

    def _index_shapes(self):
        nz, ny, nx = self.shape
        return (nx, (1, 1, nx)), (ny, (1, ny, 1)), (nz, (nz, 1, 1))

    def _coordinate(self, axis, index):
        steps = [(step, ijk) for step, ijk in zip(self.affine[axis, :3], index, strict=True) if abs(step) > 1e-9]
        return sum(ijk * np.float32(step) for step, ijk in steps) + np.float32(self.affine[axis, 3])

    def within(self, box: Box):
        """The slices of the arrays that hold ``box`` (mm) and its x, y, z; None where the box lies elsewhere."""
        corners = np.array(list(product(*box))).T
        places = self.inverse[:3, :3] @ corners + self.inverse[:3, 3:]
        low = np.maximum(np.floor(places.min(axis=1)), 0.0).astype(int)[::-1]
        high = np.minimum(np.ceil(places.max(axis=1)) + 1, self.shape[::-1]).astype(int)[::-1]
        if (high <= low).any():
            return None
        where = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        return where, *(
            value[tuple(cut if size > 1 else slice(None) for cut, size in zip(where, value.shape, strict=True))]
            for value in self.xyz
        )

    def cover(self, distance):
        """The part of each voxel that lies inside a surface at ``distance`` mm."""
        return np.clip(np.float32(0.5) - distance * self.soft, 0.0, 1.0)

    def paint(self, box: Box, surface: Surface, value, mask=None) -> None:
        """Fill ``surface`` with ``value`` (a number, or a function of x, y, z), only in the ``mask`` part if given."""
        found = self.within(box)
        if found is None:
            return
        where, x, y, z = found
        cover = self.cover(surface(x, y, z))
        if mask is not None:
            cover = cover * mask[where]
        hu = self.hu[where]
        hu += cover * ((value(x, y, z) if callable(value) else np.float32(value)) - hu)

    def paint_rods(self, rods, value, mask=None, grow=0.0) -> None:
        """Paint capsules ``(a, b, radius, end radius)``; those thinner than a voxel fill only their share of it."""
        for a, b, radius, end in self.near(rods, grow):
            share = min(1.0, math.pi * (0.5 * (radius + end) + grow) ** 2 * float(self.soft) ** 2)
            if share < 0.1:
                continue
            found = self.within(rod_box(a, b, max(radius, end) + grow + 0.5 / float(self.soft)))
            if found is None:
                continue
            where, x, y, z = found
            cover = self.cover(capsule(x, y, z, a, b, radius + grow, end + grow))
            cover *= np.float32(share) if mask is None else np.float32(share) * mask[where]
            hu = self.hu[where]
            hu += cover * ((value(x, y, z) if callable(value) else np.float32(value)) - hu)

    def near(self, rods, reach=0.0):
        """Those of ``rods`` that may touch this slab."""
        if not len(rods):
            return []
        ends = np.array([(*a, *b) for a, b, *_ in rods])
        radii = np.array([max(radius, end) for *_, radius, end in rods]) + reach
        steps = np.stack([ends[:, i : i + 3] @ self.inverse[2, :3] + self.inverse[2, 3] for i in (0, 3)])
        margin = radii * np.linalg.norm(self.inverse[2, :3]) + 2.0
        hit = (steps.max(axis=0) > -margin) & (steps.min(axis=0) < self.shape[0] + margin)
        return [rod for rod, near in zip(rods, hit, strict=True) if near]


def rod_box(a, b, reach) -> Box:
    return tuple((min(p, q) - reach, max(p, q) + reach) for p, q in zip(a, b, strict=True))


def around(center, axes, reach=4.0) -> Box:
    return tuple((c - a - reach, c + a + reach) for c, a in zip(center, axes, strict=True))


def chain(*points, radius, end=None):
    """Rods along ``points``, tapering from ``radius`` to ``end``."""
    radii = np.linspace(radius, radius if end is None else end, len(points))
    return [(points[n], points[n + 1], float(radii[n]), float(radii[n + 1])) for n in range(len(points) - 1)]


# ---- grids ---------------------------------------------------------------------------------------------------------
def grid_of(
    pixels=128,
    pixel_mm=3.0,
    slice_mm=3.0,
    reach=(-160.0, 140.0),
    *,
    rows=(1, 0, 0),
    columns=(0, 1, 0),
    center=(0.0, 6.0, 0.0),
    tilt_deg=(0.0, 0.0),
) -> Grid:
    """Return a grid whose slices cover ``reach`` (mm) of the axis of the patient that they lie across.

    ``rows`` and ``columns`` are the LPS directions of growing i and j, before the tilt about x and y; ``center`` lies
    in the middle of the grid but for the coordinate that ``reach`` states.
    """
    i, j = np.array(rows, dtype=float), np.array(columns, dtype=float)
    k = np.cross(i, j)
    ny, nx = (pixels, pixels) if np.isscalar(pixels) else pixels
    nz = max(1, round((reach[1] - reach[0]) / slice_mm))
    affine = np.eye(4)
    affine[:3, :3] = rotation(*tilt_deg) @ np.column_stack([i * pixel_mm, j * pixel_mm, k * slice_mm])
    goal = np.where(np.abs(k) > 0.5, (reach[0] + reach[1]) / 2.0, center)
    affine[:3, 3] = goal - affine[:3, :3] @ ((np.array([nx, ny, nz]) - 1) / 2.0)
    return Grid((nz, ny, nx), affine)


def rotation(about_x_deg, about_y_deg):
    a, b = math.radians(about_x_deg), math.radians(about_y_deg)
    about_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    return about_x @ about_y


# ---- the scanner ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Scan:
    """What a scanner made of an anatomy: HU, the truth and the nodules within it."""

    hu: Array
    labels: Array
    nodules: Array
    grid: Grid


def scan(paint: Callable[[Slab], None], grid: Grid, part_mm: float = 3.2) -> Scan:
    """Sample an anatomy without noise; slices thicker than ``part_mm`` are averaged over their thickness."""
    nz, ny, nx = grid.shape
    parts = max(1, math.ceil(grid.spacing_mm[0] / part_mm))
    count = max(1, 400_000 // (ny * nx * parts))
    hu = np.empty(grid.shape, dtype=np.float32)
    labels = np.zeros(grid.shape, dtype=np.uint8)
    nodules = np.zeros(grid.shape, dtype=bool)

    for first in range(0, nz, count):
        number = min(count, nz - first)
        slab = Slab(grid, first, number, parts)
        paint(slab)
        cut = slice(first, first + number)
        hu[cut] = _mean(slab.hu, parts)
        for label, part in slab.truth.items():
            labels[cut][_mean(part, parts) > 0.5] = label
        nodules[cut] = (_mean(slab.nodules, parts) > 0.5) & ((labels[cut] == RIGHT) | (labels[cut] == LEFT))
    return Scan(hu, labels, nodules, grid)


def _mean(values: Array, parts: int) -> Array:
    """Return the mean over the ``parts`` samples of each slice."""
    return values if parts == 1 else values.reshape(-1, parts, *values.shape[1:]).mean(axis=1)


@lru_cache(maxsize=4)
def _noise_bank(ny: int, nx: int, *, sharp: bool) -> Array:
    """Eight noise planes of unit variance with the spectrum of filtered back projection: a ramp times the kernel."""
    rng = np.random.default_rng(5)
    frequency = np.hypot(np.fft.fftfreq(ny)[:, None], np.fft.rfftfreq(nx)[None, :])
    shape = (0.02 + frequency) * np.exp(-((frequency / (0.45 if sharp else 0.22)) ** 2))
    planes = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((8, ny, nx))) * shape, s=(ny, nx))
    return (planes / planes.std()).astype(np.float32)


def with_noise(hu: Array, sigma: float, seed: int = 0, *, sharp: bool = False) -> Array:
    """HU as int16 with correlated noise; the sharp kernel also overshoots at edges."""
    rng = np.random.default_rng(seed)
    bank = _noise_bank(*hu.shape[1:], sharp=sharp)
    noisy = np.empty(hu.shape, dtype=np.int16)
    for plane, out in zip(hu, noisy, strict=True):
        if sharp:
            blurred = sum(np.roll(plane, move, axis) for axis in (0, 1) for move in (-1, 1)) / 4.0
            plane = plane + np.float32(0.35) * (plane - blurred)
        drawn = bank[rng.integers(len(bank))]
        drawn = np.roll(drawn, tuple(rng.integers(side) for side in drawn.shape), (0, 1))
        out[:] = np.clip(np.rint(plane + np.float32(sigma * rng.choice((-1.0, 1.0))) * drawn), -1024, 3071)
    return noisy


def circle(grid: Grid, part: float = 1.0) -> Array:
    """Where (z, y, x) the scanner measured nothing: outside the circle with ``part`` of half the image width."""
    _, ny, nx = grid.shape
    y, x = (np.arange(ny)[:, None] - (ny - 1) / 2), (np.arange(nx)[None, :] - (nx - 1) / 2)
    return np.broadcast_to(np.hypot(y, x) > part * min(ny, nx) / 2, grid.shape).copy()
