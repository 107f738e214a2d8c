"""Things without lungs that a CT node is sent all the same: other regions of the body, test objects, faulty stacks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ctnode.ct.grid import Grid, Volume
from tests.lung_chest import Chest
from tests.lung_phantom_cases import volume_of
from tests.lung_phantoms import AIR, FAT, MUSCLE, Slab, around, chain, ellipsoid, grid_of, scan, with_noise

INF = float("inf")
ORIGIN = (0.0, 0.0, 0.0)
GRID = grid_of(96, 4.0, 4.0, (-140.0, 140.0), center=ORIGIN)
SMALL = grid_of(96, 2.5, 2.5, (-120.0, 120.0), center=ORIGIN)


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


def leg(x, wide=70.0, long=INF):
    return (
        ((x, 0.0, 0.0), (wide, wide, long), FAT),
        ((x, 0.0, 0.0), (wide - 10.0, wide - 10.0, long), MUSCLE),
        ((x, -6.0, 0.0), (15.0, 15.0, long), 1200.0),
        ((x, -6.0, 0.0), (8.0, 8.0, long), -40.0),
    )


def block(half, hu, middle=(0.0, 0.0, 0.0)):
    """Return a painter of a box with half lengths ``half`` (mm)."""

    def paint(slab):
        slab.paint(
            around(middle, half),
            lambda *p: np.maximum.reduce(
                np.broadcast_arrays(*(np.abs(v - c) - h for v, c, h in zip(p, middle, half, strict=True)))
            ),
            hu,
        )

    return paint


def both(*painters):
    def paint(slab):
        for painter in painters:
            painter(slab)

    return paint


def grains(base, spread, size):
    """Return HU of a granular stuff."""
    return lambda x, y, z: base + spread * np.sin(x / size + y / 40.0) * np.sin(y / size) * np.sin(z / size + x / 30.0)


def couch(slab):
    block((215.0, 20.0, 900.0), -60.0, (0.0, 150.0, 0.0))(slab)
    block((212.0, 17.0, 900.0), -945.0, (0.0, 150.0, 0.0))(slab)


def head() -> Volume:
    return of(Things(*HEAD), SMALL)


def head_and_neck() -> Volume:
    throat = (chain((0.0, -30.0, -90.0), (0.0, -14.0, -400.0), radius=9.0), AIR)
    soft = ((0.0, 12.0, -190.0), (58.0, 60.0, 150.0), 45.0)
    bone = ((0.0, 22.0, -190.0), (13.0, 12.0, 140.0), 400.0)
    return of(Things(soft, *HEAD, bone, throat), grid_of(96, 2.6, 3.0, (-240.0, 115.0), center=ORIGIN))


def neck() -> Volume:
    soft = ((ORIGIN, (62.0, 64.0, INF), FAT), (ORIGIN, (58.0, 60.0, INF), 45.0))
    bone = ((0.0, 18.0, 0.0), (14.0, 13.0, INF), 420.0)
    throat = (chain((0.0, -28.0, -200.0), (0.0, -28.0, 200.0), radius=10.0), AIR)
    return of(Things(*soft, bone, throat), grid_of(96, 2.0, 3.0, (-75.0, 75.0), center=ORIGIN))


def abdomen_with_gas() -> Volume:
    return of(Chest(stomach_gas=0.9, colon_gas=True), grid_of(reach=(-340.0, -146.0)))


def abdomen_prone_with_gas() -> Volume:
    return of(Chest(stomach_gas=0.6, colon_gas=True, down=(0.0, -1.0, 0.0)), grid_of(reach=(-340.0, -146.0)))


COLON = chain(
    (-100.0, -20.0, -120.0),
    (-105.0, -25.0, 70.0),
    (-40.0, -55.0, 60.0),
    (40.0, -60.0, 75.0),
    (105.0, -10.0, 90.0),
    (102.0, 10.0, -90.0),
    (30.0, 0.0, -125.0),
    radius=33.0,
)
BELLY = (
    (ORIGIN, (175.0, 120.0, INF), FAT),
    (ORIGIN, (158.0, 104.0, INF), MUSCLE),
    (ORIGIN, (146.0, 94.0, INF), -95.0),
    ((0.0, 62.0, 0.0), (45.0, 38.0, INF), MUSCLE),
    ((0.0, 60.0, 0.0), (22.0, 18.0, INF), 300.0),
)


def colon_full_of_gas() -> Volume:
    return of(Things(*BELLY, (COLON, 40.0), ([(a, b, 30.0, 30.0) for a, b, *_ in COLON], AIR)), GRID)


def colon_with_faeces() -> Volume:
    stuff = grains(-250.0, 320.0, 3.1)
    return of(Things(*BELLY, (COLON, 40.0), ([(a, b, 30.0, 30.0) for a, b, *_ in COLON], stuff)), GRID)


def pelvis() -> Volume:
    bones = [((s * 95.0, 10.0, 40.0), (18.0, 48.0, 70.0), 350.0) for s in (-1, 1)]
    heads = [((s * 92.0, 5.0, -45.0), (25.0, 25.0, 25.0), 450.0) for s in (-1, 1)]
    soft = [((0.0, -20.0, -30.0), (42.0, 38.0, 40.0), 8.0), ((0.0, 50.0, -30.0), (24.0, 22.0, 55.0), -1000.0)]
    return of(Things(*BELLY[:3], *bones, *heads, ((0.0, 80.0, 20.0), (40.0, 15.0, 60.0), 300.0), *soft), GRID)


def legs() -> Volume:
    return of(Things(*leg(-80.0), *leg(80.0)), GRID)


def legs_that_touch() -> Volume:
    """Thighs that meet in front and behind keep a long pocket of air between them."""
    bridges = [((0.0, side * 58.0, 0.0), (40.0, 14.0, INF), FAT) for side in (-1, 1)]
    return of(Things(*leg(-88.0, 82.0), *leg(88.0, 82.0), *bridges), GRID)


def knee() -> Volume:
    bones = [((0.0, 0.0, 62.0), (38.0, 30.0, 55.0), 350.0), ((0.0, 0.0, -62.0), (36.0, 28.0, 55.0), 350.0)]
    return of(Things((ORIGIN, (62.0, 64.0, INF), FAT), (ORIGIN, (52.0, 54.0, INF), MUSCLE), *bones), SMALL)


def arm() -> Volume:
    return of(Things(*leg(0.0, 42.0)), SMALL)


def breasts() -> Volume:
    domes = [((s * 75.0, -10.0, 0.0), (62.0, 85.0, 62.0), FAT) for s in (-1, 1)]
    glands = [((s * 75.0, -30.0, 0.0), (36.0, 45.0, 36.0), 40.0) for s in (-1, 1)]
    return of(Things(*domes, *glands), SMALL)


def water_tank() -> Volume:
    return of(Things((ORIGIN, (150.0, 150.0, INF), 120.0), (ORIGIN, (145.0, 145.0, INF), 0.0)), GRID)


def water_tank_with_bubbles() -> Volume:
    rng = np.random.default_rng(3)
    bubbles = [(tuple(rng.uniform(-85.0, 85.0, 3)), (radius,) * 3, AIR) for radius in rng.uniform(4.0, 28.0, 24)]
    return of(Things((ORIGIN, (150.0, 150.0, INF), 120.0), (ORIGIN, (145.0, 145.0, INF), 0.0), *bubbles), GRID)


def half_filled_tank() -> Volume:
    wall = (ORIGIN, (150.0, 110.0, 130.0), 120.0)
    filling = (ORIGIN, (145.0, 105.0, 125.0), lambda x, y, z: np.where(y < 0.0, np.float32(AIR), 0.0) + 0.0 * (x + z))
    return of(Things(wall, filling), GRID)


def image_quality_phantom() -> Volume:
    inserts = (-1000.0, -190.0, -95.0, -35.0, 120.0, 340.0, 990.0, -850.0)
    angles = np.linspace(0.0, 2.0 * np.pi, len(inserts), endpoint=False)
    rods = [
        (chain((60 * np.cos(a), 60 * np.sin(a), -60.0), (60 * np.cos(a), 60 * np.sin(a), 60.0), radius=8.0), hu)
        for a, hu in zip(angles, inserts, strict=True)
    ]
    return of(Things((ORIGIN, (100.0, 100.0, INF), 110.0), (ORIGIN, (95.0, 95.0, INF), 60.0), *rods), SMALL)


def foam_block() -> Volume:
    return of(block((130.0, 90.0, 110.0), grains(-860.0, 30.0, 5.0)), GRID)


def foam_on_couch() -> Volume:
    return of(both(couch, block((150.0, 60.0, 900.0), grains(-900.0, 20.0, 6.0), (0.0, 65.0, 0.0))), GRID)


def sponge_in_a_bag() -> Volume:
    return of(both(block((122.0, 82.0, 102.0), -300.0), block((120.0, 80.0, 100.0), grains(-820.0, 90.0, 4.0))), GRID)


def bag_of_rice() -> Volume:
    return of(both(couch, block((120.0, 50.0, 90.0), grains(-330.0, 260.0, 2.6), (0.0, 78.0, 0.0))), GRID)


def loaf_of_bread() -> Volume:
    loaf = ((ORIGIN, (120.0, 65.0, 110.0), -450.0), (ORIGIN, (115.0, 60.0, 105.0), grains(-780.0, 80.0, 4.0)))
    return of(both(couch, Things(*loaf)), GRID)


def empty_couch() -> Volume:
    return of(couch, GRID)


def couch_with_blanket() -> Volume:
    def blanket(slab):
        def sheet(x, y, z):
            return np.abs(y - 95.0 + 22.0 * np.sin(x / 31.0) * np.sin(z / 43.0) - 12.0 * np.cos(x / 60.0)) - 4.0

        slab.paint(((-180.0, 180.0), (40.0, 135.0), (-120.0, 120.0)), sheet, -150.0)

    return of(both(couch, blanket), GRID)


def dense_sphere() -> Volume:
    return of(Things((ORIGIN, (80.0, 80.0, 80.0), 2500.0)), SMALL)


def air_only() -> Volume:
    return of(Things(), GRID)


def random_noise() -> Volume:
    return plain(np.random.default_rng(1).integers(-1000, 1000, GRID.shape), GRID)


def noise_round_lung_density() -> Volume:
    return plain(np.random.default_rng(2).normal(-800.0, 120.0, GRID.shape), GRID)


def constant_water() -> Volume:
    return plain(np.zeros(GRID.shape), GRID)


def constant_lung_density() -> Volume:
    return plain(np.full(GRID.shape, -850), GRID)


def padding_only() -> Volume:
    return plain(np.full(GRID.shape, -1024), GRID, np.ones(GRID.shape, dtype=bool))


def one_slice() -> Volume:
    return of(Chest(), grid_of(256, 1.6, 5.0, (-32.5, -27.5)))


def scout() -> Volume:
    """A localizer: one plane of sums along the patient, in whatever unit."""
    coronal = {"rows": (1, 0, 0), "columns": (0, 0, -1), "center": (0.0, 0.0, -10.0)}
    made = scan(Chest(), grid_of((100, 128), 3.0, 8.0, (-110.0, 114.0), **coronal))
    return plain(made.hu.mean(axis=0, keepdims=True), Grid((1, *made.grid.shape[1:]), made.grid.affine))


LUNGLESS: dict[str, Callable[[], Volume]] = {
    made.__name__: made
    for made in (
        head,
        head_and_neck,
        neck,
        abdomen_with_gas,
        abdomen_prone_with_gas,
        colon_full_of_gas,
        colon_with_faeces,
        pelvis,
        legs,
        legs_that_touch,
        knee,
        arm,
        breasts,
        water_tank,
        water_tank_with_bubbles,
        half_filled_tank,
        image_quality_phantom,
        foam_block,
        foam_on_couch,
        sponge_in_a_bag,
        bag_of_rice,
        loaf_of_bread,
        empty_couch,
        couch_with_blanket,
        dense_sphere,
        air_only,
        random_noise,
        noise_round_lung_density,
        constant_water,
        constant_lung_density,
        padding_only,
        one_slice,
        scout,
    )
}
