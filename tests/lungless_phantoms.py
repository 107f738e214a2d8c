"""Things without lungs that a CT node is sent all the same: other regions of the body, test objects, faulty stacks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ctnode.ct.grid import Grid, Volume
from tests.lung_chest import Chest
from tests.lung_phantom_cases import volume_of
from tests.lung_phantoms import AIR, FAT, MUSCLE, Slab, around, ellipsoid, grid_of, scan, with_noise

INF = float("inf")
EVERYWHERE = ((-400.0, 400.0), (-400.0, 400.0), (-900.0, 900.0))
GRID = grid_of(96, 4.0, 4.0, (-140.0, 140.0), center=(0.0, 0.0))
SMALL = grid_of(96, 2.5, 2.5, (-120.0, 120.0), center=(0.0, 0.0))


class Things:
    """Ellipsoids ``(center, axes, HU)`` and rods ``(rods, HU)``, painted one after the other."""

    def __init__(self, *things) -> None:
        self.things = things

    def __call__(self, slab: Slab) -> None:
        for thing in self.things:
            if len(thing) == 2:
                slab.paint_rods(*thing)
                continue
            center, axes, hu = thing
            reach = [axis if np.isfinite(axis) else 900.0 for axis in axes]
            slab.paint(around(center, reach), lambda *p, c=center, a=axes: ellipsoid(*p, c, a), hu)


def of(paint, grid: Grid, noise_hu: float = 15.0) -> Volume:
    return volume_of(with_noise(scan(paint, grid).hu, noise_hu), grid)


def plain(hu, grid: Grid, padding=None) -> Volume:
    return volume_of(np.asarray(hu, dtype=np.int16), grid, padding)


ORIGIN = (0.0, 0.0, 0.0)
HEAD = (
    (ORIGIN, (78.0, 95.0, 105.0), 30.0),
    (ORIGIN, (73.0, 90.0, 100.0), 900.0),
    (ORIGIN, (67.0, 84.0, 94.0), 36.0),
    ((14.0, 0.0, 8.0), (10.0, 32.0, 16.0), 8.0),
    ((-14.0, 0.0, 8.0), (10.0, 32.0, 16.0), 8.0),
    ((0.0, -80.0, -45.0), (40.0, 25.0, 55.0), 60.0),
    ((0.0, -74.0, -50.0), (13.0, 22.0, 24.0), AIR),
    ((28.0, -70.0, -48.0), (15.0, 17.0, 18.0), AIR),
    ((-28.0, -70.0, -48.0), (15.0, 17.0, 18.0), AIR),
    ((12.0, -86.0, 10.0), (12.0, 6.0, 15.0), AIR),
    ((62.0, 30.0, -55.0), (10.0, 14.0, 18.0), -600.0),
    ((-62.0, 30.0, -55.0), (10.0, 14.0, 18.0), -600.0),
    ((0.0, -38.0, -90.0), (14.0, 10.0, 40.0), AIR),
)


def leg(x, wide=70.0):
    return (
        ((x, 0.0, 0.0), (wide, wide, INF), FAT),
        ((x, 0.0, 0.0), (wide - 10.0, wide - 10.0, INF), MUSCLE),
        ((x, -6.0, 0.0), (15.0, 15.0, INF), 1200.0),
        ((x, -6.0, 0.0), (8.0, 8.0, INF), -40.0),
    )


def head() -> Volume:
    return of(Things(*HEAD), SMALL)


def abdomen_with_gas() -> Volume:
    return of(Chest(stomach_gas=0.9, colon_gas=True), grid_of(z=(-340.0, -146.0)))


def legs() -> Volume:
    return of(Things(*leg(-80.0), *leg(80.0)), GRID)


def water_tank() -> Volume:
    return of(Things((ORIGIN, (150.0, 150.0, INF), 120.0), (ORIGIN, (145.0, 145.0, INF), 0.0)), GRID)


def foam_block() -> Volume:
    def paint(slab):
        slab.paint(
            EVERYWHERE,
            lambda x, y, z: np.maximum(np.maximum(np.abs(x) - 130, np.abs(y) - 90), np.abs(z) - 110),
            lambda x, y, z: -860.0 + 25.0 * np.sin(x / 5.0) * np.sin(y / 6.0) * np.sin(z / 5.0),
        )

    return of(paint, GRID)


def air_only() -> Volume:
    return of(Things(), GRID)


def one_slice() -> Volume:
    return of(Chest(), grid_of(256, 1.6, 5.0, (-32.5, -27.5)))


def scout() -> Volume:
    made = scan(
        Chest(), grid_of((100, 128), 3.0, 8.0, (-110.0, 114.0), rows=(1, 0, 0), columns=(0, 0, -1), center=(0.0, -10.0))
    )
    return plain(made.hu.mean(axis=0, keepdims=True), Grid((1, *made.grid.shape[1:]), made.grid.affine))


LUNGLESS: dict[str, Callable[[], Volume]] = {
    made.__name__: made for made in (head, abdomen_with_gas, legs, water_tank, foam_block, air_only, one_slice, scout)
}
