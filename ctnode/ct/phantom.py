"""A synthetic chest with a known truth, for the demonstration, the tests and the benchmark.

The anatomy is given by formulas in patient millimetres, so the same chest can be put on any grid and the truth of every
voxel is known without drawing. It tests mechanisms (table, texture, partial volume, sides, truncation); it is no
evidence for what a method does on patients.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from ctnode.ct.grid import Grid

RIGHT: Final = 1
LEFT: Final = 2
AIRWAY: Final = 3

_F32 = npt.NDArray[np.float32]
_Mask = npt.NDArray[np.bool_]

# All lengths are millimetres in a frame whose origin is the middle of the chest: x to the left, y to the back, z to
# the head. The lungs reach from the costophrenic recess at LUNG_BASE_MM to the apex at LUNG_APEX_MM.
LUNG_BASE_MM: Final = -120.0
LUNG_APEX_MM: Final = 105.0
_CARINA_MM: Final = 25.0
_TRACHEA_TOP_MM: Final = 400.0
_BODY_AXES_MM: Final = (165.0, 112.0)
_SUB_SLICE_MM: Final = 2.5

_AIR_HU: Final = -1000.0
_FAT_HU: Final = -100.0
_MUSCLE_HU: Final = 50.0
_LUNG_HU: Final = -850.0
_VESSEL_HU: Final = 40.0


def _ellipse(x: _F32, y: _F32, center: tuple[float, float], axes: tuple[float, float]) -> _F32:
    """Return the squared elliptic radius (1 on the outline) of every ``(y, x)`` pixel."""
    radius: _F32 = ((x - np.float32(center[0])) / np.float32(axes[0])) ** 2 + (
        (y - np.float32(center[1])) / np.float32(axes[1])
    ) ** 2
    return radius


def _lung(x: _F32, y: _F32, z: float, side: int) -> _Mask:
    """Return where the lung of ``side`` lies in the plane at ``z`` mm."""
    sign, height, width = (-1.0, 1.0, 1.0) if side == RIGHT else (1.0, 0.97, 0.92)
    apex = LUNG_APEX_MM * height
    if not LUNG_BASE_MM < z < apex:
        return np.zeros((y.shape[0], x.shape[1]), dtype=np.bool_)
    # The cupola narrows towards the apex like a quarter ellipse, the lower two thirds have upright walls.
    rise = max(0.0, (z - 10.0) / (apex - 10.0))
    narrow = math.sqrt(max(0.0, 1.0 - rise**2))
    center = (sign * (72.0 - 22.0 * rise), 2.0 + 12.0 * rise)
    inside: _Mask = _ellipse(x, y, center, (60.0 * width * narrow, 88.0 * narrow)) < 1.0
    inside &= sign * x > 14.0 + 6.0 * (1.0 - rise)
    # The dome of the diaphragm: highest below the middle of the lung, low in the recess round it.
    dome = LUNG_BASE_MM + 62.0 * np.exp(-_ellipse(x, y, (sign * 66.0, -18.0), (46.0, 62.0)))
    inside &= z > dome
    heart = 1.0 - ((z + 45.0) / 58.0) ** 2
    if heart > 0.0:
        inside &= _ellipse(x, y, (22.0, -32.0), (56.0 * math.sqrt(heart), 48.0 * math.sqrt(heart))) > 1.0
    return inside


def _branches(rng: np.random.Generator, side: int, count: int) -> _F32:
    """Return balls ``(n, 4)`` (x, y, z, radius in mm) that string together to tapering vessels of one lung."""
    sign = -1.0 if side == RIGHT else 1.0
    steps = np.linspace(0.0, 1.0, 70)[:, None]
    strings = []
    for _ in range(count):
        tip = np.array([sign * rng.uniform(35.0, 125.0), rng.uniform(-75.0, 80.0), rng.uniform(-105.0, 90.0)])
        hilum = np.array([sign * 34.0, rng.uniform(-10.0, 22.0), rng.uniform(-30.0, 20.0)])
        bend = (hilum + tip) / 2.0 + rng.normal(0.0, 12.0, 3)
        line = (1.0 - steps) ** 2 * hilum + 2.0 * steps * (1.0 - steps) * bend + steps**2 * tip
        radius = rng.uniform(2.2, 4.2) * (1.0 - steps) + rng.uniform(0.5, 0.9) * steps
        strings.append(np.hstack([line, radius]))
    return np.concatenate(strings).astype(np.float32)


def _airway_balls() -> _F32:
    """Return balls ``(n, 4)`` (x, y, z, radius in mm) of the lumen of the trachea and the main bronchi."""
    height = np.arange(_CARINA_MM, _TRACHEA_TOP_MM, 1.0)
    trachea = np.column_stack([0.0 * height, 8.0 + 0.0 * height, height, 8.5 + 0.0 * height])
    steps = np.linspace(0.0, 1.0, 60)
    bronchi = [
        np.column_stack([sign * reach * steps, 8.0 + 6.0 * steps, _CARINA_MM - drop * steps, 6.5 - 2.0 * steps])
        for sign, reach, drop in ((-1.0, 42.0, 30.0), (1.0, 48.0, 26.0))
    ]
    return np.concatenate([trachea, *bronchi]).astype(np.float32)


def _stamp(mask: _Mask, balls: _F32, z: float, x: _F32, y: _F32) -> None:
    """Set ``mask`` (y, x) where the plane at ``z`` mm cuts one of ``balls``; small windows keep this cheap."""
    cut = balls[:, 3] ** 2 - (balls[:, 2] - z) ** 2
    columns, rows = x[0], y[:, 0]
    for (bx, by, _, _), square in zip(balls[cut > 0.0], cut[cut > 0.0], strict=True):
        reach = math.sqrt(float(square))
        left, right = np.searchsorted(columns, (bx - reach, bx + reach))
        top, bottom = np.searchsorted(rows, (by - reach, by + reach))
        if left < right and top < bottom:
            window = (columns[left:right] - bx) ** 2 + (rows[top:bottom, None] - by) ** 2 <= square
            mask[top:bottom, left:right] |= window


def _skeleton(hu: _F32, x: _F32, y: _F32, z: float) -> None:
    """Paint spine, ribs and sternum into ``hu`` (y, x)."""
    vertebra = _ellipse(x, y, (0.0, 66.0), (20.0, 16.0))
    disc = (z % 26.0) < 5.0
    hu[vertebra < 1.0] = 90.0 if disc else 600.0
    hu[vertebra < 0.7] = 80.0 if disc else 190.0
    canal = _ellipse(x, y, (0.0, 90.0), (9.0, 8.0))
    hu[(canal < 2.2) & (canal >= 1.0)] = 500.0
    hu[canal < 1.0] = 30.0
    cage = _ellipse(x, y, (0.0, 2.0), (147.0, 97.0))
    # Ribs run downwards from back to front, so an axial plane cuts each of them obliquely.
    oblique = ((z - 0.45 * y) % 25.0) < 10.0
    hu[(cage > 0.93) & (cage < 1.07) & oblique & (np.abs(x) > 16.0)] = 450.0
    if -60.0 < z < 90.0:
        hu[(np.abs(x) < 16.0) & (y > -101.0) & (y < -90.0)] = 350.0


def _table(hu: _F32, x: _F32, y: _F32) -> None:
    """Paint a couch (thin shell round foam) below the back into ``hu`` (y, x)."""
    curve = _BODY_AXES_MM[1] + 4.0 - (x / 60.0) ** 2
    depth = y - curve
    width = np.abs(x)
    hu[(depth > 0.0) & (depth < 32.0) & (width < 205.0)] = -150.0
    hu[(depth > 2.0) & (depth < 30.0) & (width < 203.0)] = -940.0


def _smooth(plane: _F32) -> _F32:
    """Return ``plane`` after the point spread of the scanner: a (1, 2, 1)/4 kernel along both axes."""
    padded = np.pad(plane, 1, mode="edge")
    rows = padded[:-2] + 2.0 * padded[1:-1] + padded[2:]
    smoothed: _F32 = (rows[:, :-2] + 2.0 * rows[:, 1:-1] + rows[:, 2:]) * np.float32(1.0 / 16.0)
    return smoothed


class _Chest:
    """The anatomy on one in-plane grid: everything that does not depend on z is made once."""

    def __init__(self, x: _F32, y: _F32, rng: np.random.Generator, *, table: bool) -> None:
        self.x, self.y, self.table = x, y, table
        self.vessels = {RIGHT: _branches(rng, RIGHT, 80), LEFT: _branches(rng, LEFT, 70)}
        self.airway = _airway_balls()
        self.wall = self.airway + np.array([0.0, 0.0, 0.0, 1.8], dtype=np.float32)
        outline = _ellipse(x, y, (0.0, 0.0), _BODY_AXES_MM)
        self.background = np.full((y.shape[0], x.shape[1]), _AIR_HU, dtype=np.float32)
        if table:
            _table(self.background, x, y)
        self.background[outline < 1.0] = _FAT_HU
        self.background[_ellipse(x, y, (0.0, 1.0), (154.0, 102.0)) < 1.0] = _MUSCLE_HU
        # Blood and gravity make the dependent lung denser: 0.25 HU per millimetre towards the back.
        waves = 18.0 * np.sin(x / 9.0 + 2.0 * np.sin(y / 23.0)) * np.sin(y / 11.0)
        self.parenchyma = (_LUNG_HU + 0.25 * y + waves).astype(np.float32)

    def plane(self, z: float) -> tuple[_F32, npt.NDArray[np.uint8]]:
        """Return HU and truth ``(y, x)`` in the plane at ``z`` mm."""
        hu = self.background.copy()
        truth = np.zeros(hu.shape, dtype=np.uint8)
        _skeleton(hu, self.x, self.y, z)
        for side in (RIGHT, LEFT):
            lung = _lung(self.x, self.y, z, side)
            if not lung.any():
                continue
            truth[lung] = side
            hu[lung] = self.parenchyma[lung]
            vessels = np.zeros_like(lung)
            _stamp(vessels, self.vessels[side], z, self.x, self.y)
            hu[vessels & lung] = _VESSEL_HU
        lumen = np.zeros(hu.shape, dtype=np.bool_)
        wall = np.zeros(hu.shape, dtype=np.bool_)
        _stamp(wall, self.wall, z, self.x, self.y)
        _stamp(lumen, self.airway, z, self.x, self.y)
        hu[wall] = _MUSCLE_HU
        truth[wall] = 0
        hu[lumen] = _AIR_HU
        truth[lumen] = AIRWAY
        return hu, truth


def chest(
    shape: tuple[int, int, int] = (120, 256, 256),
    spacing_mm: tuple[float, float, float] = (2.5, 1.5, 1.5),
    seed: int = 0,
    *,
    noise_hu: float = 20.0,
    table: bool = True,
    center_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], Grid]:
    """Return a synthetic chest, its truth and its grid.

    The patient lies supine, head towards growing slices. The anatomy has a fixed size (an adult of 330 x 224 mm with
    lungs 225 mm high), so a grid that is too small cuts it, as a scanner would.

    Parameters
    ----------
    shape
        ``(nz, ny, nx)``.
    spacing_mm
        Distances of neighbouring voxels along ``(z, y, x)``.
    seed
        The same seed gives the same bytes.
    noise_hu
        Standard deviation of the noise.
    table
        Whether the couch is there.
    center_mm
        ``(z, y, x)`` of the point of the anatomy that lies in the middle of the grid.

    Returns
    -------
    hu, labels, grid
        ``hu`` int16 ``(z, y, x)``; ``labels`` uint8 (0 background, 1 right lung, 2 left lung, 3 airway; vessels belong
        to the lung, airway walls do not); the grid in LPS millimetres, anatomy centred at the origin.
    """
    nz, ny, nx = shape
    dz, dy, dx = spacing_mm
    first = np.array([-(nx - 1) / 2 * dx + center_mm[2], -(ny - 1) / 2 * dy + center_mm[1], 0.0])
    first[2] = -(nz - 1) / 2 * dz + center_mm[0]
    affine = np.diag([dx, dy, dz, 1.0])
    affine[:3, 3] = first
    rng = np.random.default_rng(seed)
    x = (first[0] + dx * np.arange(nx)).astype(np.float32)[None, :]
    y = (first[1] + dy * np.arange(ny)).astype(np.float32)[:, None]
    anatomy = _Chest(x, y, rng, table=table)
    hu = np.empty(shape, dtype=np.int16)
    labels = np.empty(shape, dtype=np.uint8)
    # A thick slice averages what it covers; the truth of its voxels is what fills most of them.
    parts = max(1, math.ceil(dz / _SUB_SLICE_MM))
    offsets = (np.arange(parts) - (parts - 1) / 2) * (dz / parts)
    for index in range(nz):
        z = float(first[2] + dz * index)
        planes = [anatomy.plane(z + float(offset)) for offset in offsets]
        labels[index] = planes[0][1] if parts == 1 else _majority(np.stack([truth for _, truth in planes]))
        mean = _smooth(np.mean([plane for plane, _ in planes], axis=0, dtype=np.float32))
        mean += np.float32(noise_hu) * rng.standard_normal((ny, nx), dtype=np.float32)
        hu[index] = np.rint(np.clip(mean, -1024.0, 3071.0)).astype(np.int16)
    return hu, labels, Grid(shape=shape, affine=affine)


def _majority(truths: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return per pixel ``(y, x)`` the label that holds more than half of ``truths`` (part, y, x), else background."""
    winner = np.zeros(truths.shape[1:], dtype=np.uint8)
    for label in (RIGHT, LEFT, AIRWAY):
        winner[(truths == label).sum(axis=0, dtype=np.uint8) * 2 > truths.shape[0]] = label
    return winner
