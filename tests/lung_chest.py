"""The anatomy of a chest and the upper abdomen for ``lung_phantoms``: what each variation of it paints, in order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tests import lung_trunk
from tests.lung_phantoms import (
    AIR,
    AIRWAY,
    FAT,
    LEFT,
    MUSCLE,
    NOWHERE,
    RIGHT,
    WATER,
    Slab,
    around,
    capsule,
    chain,
    ellipsoid,
    rod_box,
    smoothstep,
)
from tests.lung_trunk import INF, SPINE_MM

SIGN = {RIGHT: -1.0, LEFT: 1.0}

CARINA = (0.0, 14.0, 22.0)
TRACHEA = chain((0.0, 0.0, 210.0), (0.0, 2.0, 130.0), CARINA, radius=9.0, end=8.5)
BRONCHI = {
    RIGHT: chain(CARINA, (-19.0, 16.0, 2.0), (-36.0, 15.0, -12.0), radius=7.0, end=5.5),
    LEFT: chain(CARINA, (24.0, 18.0, 5.0), (46.0, 22.0, -9.0), radius=6.5, end=5.0),
}
LOBAR = {
    RIGHT: [
        *chain((-30.0, 15.0, -4.0), (-50.0, 12.0, 14.0), (-62.0, 8.0, 34.0), radius=3.6, end=1.8),
        *chain((-36.0, 15.0, -12.0), (-52.0, 0.0, -32.0), (-66.0, -22.0, -46.0), radius=3.2, end=1.6),
        *chain((-36.0, 15.0, -12.0), (-52.0, 32.0, -42.0), (-64.0, 46.0, -74.0), radius=3.8, end=1.8),
    ],
    LEFT: [
        *chain((46.0, 22.0, -9.0), (60.0, 10.0, 8.0), (68.0, 0.0, 30.0), radius=3.4, end=1.7),
        *chain((46.0, 22.0, -9.0), (58.0, 36.0, -40.0), (66.0, 48.0, -74.0), radius=3.6, end=1.8),
    ],
}
AORTA = [
    *chain((14.0, -16.0, -22.0), (2.0, -20.0, 12.0), (6.0, -10.0, 40.0), (16.0, 12.0, 50.0), radius=15.0, end=13.5),
    *chain((16.0, 12.0, 50.0), (24.0, 34.0, 40.0), (24.0, 46.0, 16.0), (22.0, 48.0, -70.0), radius=13.5, end=12.0),
    *chain((22.0, 48.0, -70.0), (10.0, 46.0, -130.0), (4.0, 44.0, -400.0), radius=12.0, end=9.5),
]
VEINS = [
    *chain((-22.0, -8.0, -24.0), (-23.0, -14.0, 30.0), (-20.0, -16.0, 62.0), radius=9.5, end=9.0),
    *chain((-20.0, -16.0, 62.0), (-28.0, -8.0, 92.0), (-24.0, 0.0, 160.0), radius=8.0, end=6.5),
    *chain((-20.0, -16.0, 62.0), (10.0, -28.0, 70.0), (28.0, -8.0, 92.0), (24.0, 0.0, 160.0), radius=7.0, end=6.5),
    *chain((-18.0, 2.0, -60.0), (-18.0, 12.0, -105.0), (-14.0, 20.0, -400.0), radius=12.0, end=10.0),
]
ARTERIES = [
    *chain((8.0, -8.0, 46.0), (-10.0, -4.0, 84.0), (-22.0, 2.0, 160.0), radius=6.5, end=4.5),
    *chain((20.0, 16.0, 48.0), (22.0, 14.0, 90.0), (22.0, 6.0, 160.0), radius=5.0, end=4.5),
]
PULMONARY = [
    *chain((16.0, -28.0, -18.0), (20.0, -16.0, 4.0), (20.0, 0.0, 14.0), radius=14.0, end=12.5),
    *chain((20.0, 0.0, 14.0), (-8.0, 0.0, 2.0), (-36.0, 6.0, -6.0), radius=10.5, end=8.5),
    *chain((20.0, 0.0, 14.0), (36.0, 14.0, 12.0), (48.0, 22.0, 4.0), radius=10.5, end=8.0),
]
RETURNING = [
    *chain((2.0, -2.0, -34.0), (-26.0, -2.0, -22.0), (-46.0, -6.0, -10.0), radius=9.0, end=6.5),
    *chain((2.0, 2.0, -44.0), (-30.0, 12.0, -42.0), (-48.0, 20.0, -46.0), radius=9.0, end=6.0),
    *chain((16.0, -6.0, -34.0), (40.0, -2.0, -20.0), (54.0, -4.0, -8.0), radius=9.0, end=6.5),
    *chain((16.0, 2.0, -44.0), (38.0, 16.0, -38.0), (52.0, 24.0, -42.0), radius=9.0, end=6.0),
]
OESOPHAGUS = chain((4.0, 24.0, 170.0), (4.0, 34.0, 40.0), (6.0, 40.0, -60.0), (26.0, 22.0, -110.0), radius=7.0)


@dataclass(frozen=True)
class Nodule:
    """A solid ball within a lung."""

    center: tuple[float, float, float]
    radius: float


@dataclass(frozen=True)
class Chest:
    """One variation of the anatomy; all lengths in mm, at the size of an adult (``scale`` makes a child of it)."""

    scale: float = 1.0
    fat: float = 10.0
    down: tuple[float, float, float] = (0.0, 1.0, 0.0)
    table: bool = True
    arms_down: bool = False
    blanket: bool = False
    contrast: bool = False
    junction: float = 3.0
    stomach_gas: float = 0.3
    colon_gas: bool = False
    oesophagus_air: bool = False
    emphysema: bool = False
    consolidation: bool = False
    effusion: float | None = None
    pneumothorax: bool = False
    no_right_lung: bool = False
    pacemaker: bool = False
    nodules: tuple[Nodule, ...] = ()
    parenchyma: float = -860.0

    def __call__(self, slab: Slab) -> None:
        """Paint everything into ``slab``."""
        lung_trunk.outside(self, slab)
        lung_trunk.body(self, slab)
        pleura, mediastinum, dome = _spaces(self, slab)
        lung_trunk.bones(self, slab, pleura)
        lung_trunk.abdomen(self, slab, pleura, dome)
        _mediastinum(self, slab)
        for side in (RIGHT, LEFT):
            if side == RIGHT and self.no_right_lung:
                continue
            _lung(self, slab, side, pleura[side], mediastinum, dome[side])
        _airways(self, slab)


def _cavity(x, y, z, sign):
    """The distance to the inner chest wall of one side: an upright cylinder under a cupola."""
    u = x * np.float32(sign)
    up = np.maximum(z - 0.0, 0.0)
    belly = np.minimum(z, 0.0) * np.float32(-1.0 / 130.0)
    wide = 77.0 + 5.0 * belly
    lean = np.float32(60.0) - up * np.float32(0.10)
    px, py, pz = (
        (u - lean) / wide,
        (y - 8.0 - up * np.float32(0.09)) * np.float32(1.0 / 88.0),
        up * np.float32(1.0 / 113.0),
    )
    square = px * px + py * py
    root = np.sqrt(np.sqrt(square * square + (pz * pz) ** 2 + 1.5 * square * pz * pz))
    return (root - 1.0) * np.float32(80.0)


def _dome(x, y, sign):
    """The height (mm) of the diaphragm of one side."""
    cx, top = (-68.0, -70.0) if sign < 0 else (66.0, -84.0)
    py = y - np.float32(-4.0)
    py = np.where(py > 0.0, py * np.float32(1.0 / 95.0), py * np.float32(1.0 / 118.0))
    px = (x - np.float32(cx)) * np.float32(1.0 / 76.0)
    ratio = px * px + py * py
    ripple = 2.0 * np.sin(x / 17.0) * np.cos(y / 21.0)
    return np.maximum(np.float32(top) - 62.0 * ratio * np.sqrt(np.sqrt(ratio)) + ripple, np.float32(-139.0))


def _spaces(chest: Chest, slab: Slab):
    """Per side the distances to the chest wall and to the diaphragm; the distance to the mediastinum."""
    x, y, z = slab.xyz
    pleura = {side: np.broadcast_to(_cavity(x, y, z, sign), slab.shape) for side, sign in SIGN.items()}
    dome = {side: (_dome(x, y, sign) - z) * np.float32(0.8) for side, sign in SIGN.items()}
    total = np.zeros(slab.shape, dtype=np.float32)
    soft = np.float32(4.0)

    def add(box, surface, margin=3.0, sharp=4.0):
        found = slab.within(tuple((low - 18.0, high + 18.0) for low, high in box))
        if found is not None:
            where, *p = found
            total[where] += np.exp((np.float32(margin) - surface(*p)) * np.float32(1.0 / sharp))

    def septum(x, y, z):
        front = np.where(y < -22.0, np.float32(chest.junction / 2.0), 0.0)
        back = 13.0 * np.exp(-(((y - 14.0) * np.float32(1.0 / 30.0)) ** 2)) + 2.0
        top = 16.0 * smoothstep(z, 42.0, 80.0) * smoothstep(y, -58.0, -20.0) + 20.0 * smoothstep(-z, 78.0, 108.0)
        middle = 3.0 + 6.0 * smoothstep(-z, 0.0, 60.0)
        return np.abs(x - middle) - np.where(front > 0.0, np.float32(chest.junction / 2.0) + top, back + top)

    # The septum alone is as thin as the junction; its blending must not thicken it.
    found = slab.within(((-70.0, 90.0), (-130.0, 150.0), (-200.0, 160.0)))
    wall = np.full(slab.shape, NOWHERE, dtype=np.float32)
    if found is not None:
        where, *p = found
        wall[where] = septum(*p)
    add(around((28.0, -34.0, -46.0), (72.0, 60.0, 54.0)), _heart)
    add(((-30.0, 30.0), (30.0, 150.0), (-400.0, 200.0)), _backbone, margin=4.0)
    rods = [*AORTA, *VEINS, *ARTERIES, *PULMONARY, *RETURNING, *TRACHEA, *BRONCHI[RIGHT], *BRONCHI[LEFT], *OESOPHAGUS]
    if chest.oesophagus_air:
        rods += [(a, b, 14.0, 14.0) for a, b, *_ in OESOPHAGUS[:2]]
    for a, b, radius, end in slab.near(rods, 22.0):
        add(
            rod_box(a, b, max(radius, end)),
            lambda x, y, z, a=a, b=b, r=radius, e=end: capsule(x, y, z, a, b, r, e),
            2.5,
        )
    mediastinum = np.minimum(wall, -soft * np.log(total + np.float32(1e-7)))
    return pleura, mediastinum, dome


def _heart(x, y, z):
    # The long axis points to the left, to the front and down; the lower side lies flat on the diaphragm.
    dx, dy, dz = x - 26.0, y + 34.0, np.maximum(z + 46.0, np.float32(0.35) * (z + 46.0))
    return ellipsoid(
        0.83 * dx - 0.45 * dy - 0.33 * dz,
        0.47 * dx + 0.88 * dy,
        0.29 * dx - 0.16 * dy + 0.94 * dz,
        (0.0, 0.0, 0.0),
        (64.0, 43.0, 46.0),
    )


def _backbone(x, y, z):
    body = ellipsoid(x, y, z, (*SPINE_MM, 0.0), (21.0, 17.0, INF))
    behind = np.maximum(np.abs(x) - 20.0, np.float32(SPINE_MM[1]) - y)
    return np.minimum(body, behind) + 0.0 * z


def _mediastinum(chest: Chest, slab: Slab) -> None:
    slab.paint(
        ((-60.0, 70.0), (-84.0, 62.0), (-95.0, 120.0)),
        lambda x, y, z: np.maximum(ellipsoid(x, y, z, (2.0, -14.0, 0.0), (52.0, 72.0, INF)), np.abs(z - 12.0) - 105.0),
        FAT + 10.0,
    )
    blood = 280.0 if chest.contrast else 42.0
    slab.paint(around((28.0, -34.0, -46.0), (72.0, 60.0, 54.0)), _heart, 120.0 if chest.contrast else 40.0)
    slab.paint(around((28.0, -34.0, -46.0), (72.0, 60.0, 54.0)), lambda *p: _heart(*p) + 13.0, blood - 2.0)
    slab.paint_rods(AORTA, blood)
    slab.paint_rods(VEINS, 900.0 if chest.contrast else 40.0)
    slab.paint_rods(ARTERIES, blood)
    slab.paint_rods(PULMONARY, blood + 20.0)
    slab.paint_rods(RETURNING, blood)
    slab.paint_rods(OESOPHAGUS, 35.0)
    if chest.oesophagus_air:
        wide = [(a, b, 13.0, 13.0) for a, b, *_ in OESOPHAGUS[:2]]
        slab.paint_rods(wide, 35.0)
        slab.paint_rods(wide, AIR + 5.0, grow=-3.0)


@lru_cache(maxsize=2)
def vessels(side: int):
    """Return the vessels of one lung: rods that branch from the hilum to near the pleura, arteries and veins alike."""
    rng = np.random.default_rng(11 + side)
    sign = SIGN[side]
    rods = []

    def grow(start, heading, radius, depth):
        end = start + heading * rng.uniform(0.75, 1.25) * (26.0, 25.0, 23.0, 19.0, 15.0)[depth]
        thin = radius * 0.76
        rods.append((tuple(start), tuple(end), radius, thin))
        if depth == 4:
            return
        for turn in (-1.0, 1.0):
            bend = heading + turn * 0.5 * _unit(rng.normal(size=3)) + 0.12 * np.array([sign, 0.0, 0.0])
            grow(end, _unit(bend), thin * (0.92 if turn > 0 else 0.78), depth + 1)

    # Even in direction over the half space to the side, from roots along the hilum.
    turns = (np.arange(22) + 0.5) / 22.0
    angle = np.pi * (1.0 + 5.0**0.5) * np.arange(22)
    flat = np.sqrt(1.0 - (turns * 0.85) ** 2)
    headings = np.column_stack([sign * (0.85 * turns + 0.1), flat * np.cos(angle), flat * np.sin(angle)])
    for heading in _unit(headings):
        root = np.array([sign * 40.0, 8.0 + 12.0 * heading[1], -12.0 + 24.0 * heading[2]])
        grow(root, heading, rng.uniform(3.0, 4.8), 0)
    return rods


def _unit(vector):
    return vector / np.linalg.norm(vector, axis=-1, keepdims=True)


def _lung(chest: Chest, slab: Slab, side: int, pleura, mediastinum, dome) -> None:
    sign = SIGN[side]
    reach = (-150.0, 28.0) if sign < 0 else (-28.0, 150.0)
    box = (reach, (-92.0, 112.0), (-142.0, 118.0))
    found = slab.within(box)
    if found is None:
        return
    where, x, y, z = found
    midline = (
        np.float32(3.0 + 6.0 * smoothstep(-z, 0.0, 60.0)) if np.ndim(z) == 0 else 3.0 + 6.0 * smoothstep(-z, 0.0, 60.0)
    )
    space = np.maximum(np.maximum(pleura[where], -mediastinum[where]), dome[where])
    space = np.maximum(space, (midline - x) * np.float32(sign))
    hu, truth = slab.hu[where], slab.truth[side][where]
    lung = space
    if chest.effusion is not None and side == RIGHT:
        depth = (x + 70.0) * np.float32(0.0) + y - 0.35 * (z + 100.0)
        fluid = np.float32(chest.effusion) - depth + 0.0 * x
        hu += slab.cover(space) * (np.float32(WATER) - hu)
        lung = np.maximum(space, -fluid)
    if chest.pneumothorax and side == LEFT:
        hu += slab.cover(space) * (np.float32(AIR) - hu)
        lung = np.maximum(space, np.float32(-30.0) - y + 0.25 * (np.abs(x) - 60.0) + 0.2 * z)
        hu += slab.cover(np.maximum(lung - 1.2, space)) * (np.float32(MUSCLE) - hu)
    cover = slab.cover(lung)
    truth[:] = cover
    hu += cover * (_parenchyma(chest, x, y, z) - hu)
    mask = slab.truth[side]
    _fissures(slab, where, x, y, z, sign, cover)
    slab.paint_rods(vessels(side), 250.0 if chest.contrast else 40.0, mask)
    slab.paint_rods(LOBAR[side], 20.0, mask, grow=1.3)
    slab.paint_rods(LOBAR[side], AIR, mask)
    if chest.consolidation and side == RIGHT:

        def lobe(x, y, z):
            return np.maximum(_oblique(y, z) + 0.0 * x, ellipsoid(x, y, z, (-70.0, 60.0, -70.0), (70.0, 60.0, 62.0)))

        slab.paint(box, lobe, 35.0, mask)
        slab.paint_rods(list(LOBAR[side]), AIR, mask)
    for nodule in chest.nodules:
        _nodule(slab, nodule, side)


def _nodule(slab: Slab, nodule: Nodule, side: int) -> None:
    box = around(nodule.center, (nodule.radius,) * 3)
    if (nodule.center[0] > 0) != (side == LEFT):
        return
    axes = (nodule.radius,) * 3
    slab.paint(box, lambda x, y, z: ellipsoid(x, y, z, nodule.center, axes), 45.0, slab.truth[side])
    found = slab.within(box)
    if found is not None:
        where, *p = found
        part = np.minimum(slab.cover(ellipsoid(*p, nodule.center, axes)), slab.truth[side][where])
        slab.nodules[where] = np.maximum(slab.nodules[where], part)


def _oblique(y, z):
    """The side of the oblique fissure: negative in the lower lobe."""
    return (z - 1.0 * (y - 12.0) + 8.0) * np.float32(0.7)


def _fissures(slab: Slab, where, x, y, z, sign, cover) -> None:
    hu = slab.hu[where]
    sheets = [np.abs(_oblique(y, z) + 4.0 * np.sin(x / 25.0))]
    if sign < 0:
        sheets.append(np.maximum(np.abs(z - 2.0 - 3.0 * np.sin(y / 20.0) + 0.0 * x), -_oblique(y, z)))
    for sheet in sheets:
        hu += cover * np.clip(1.0 - sheet * slab.soft, 0.0, 1.0) * slab.soft * 0.7 * (np.float32(-100.0) - hu)


def _parenchyma(chest: Chest, x, y, z):
    """HU of lung tissue: small vessels as texture, denser where gravity pulls the blood."""
    down = chest.down
    depth = sum(value * np.float32(step) for value, step in zip((x, y, z), down, strict=True) if step)
    fine = np.sin(x / 2.9 + 2.0 * np.sin(y / 13.0)) * np.sin(y / 3.3 + 2.0 * np.sin(z / 11.0))
    fine = fine * np.sin(z / 3.7 + 2.0 * np.sin(x / 17.0))
    hu = np.float32(chest.parenchyma) + np.float32(0.35) * depth + 28.0 * fine
    if chest.emphysema:
        holes = np.sin(x / 8.0 + z / 31.0) * np.sin(y / 9.0) * np.sin(z / 7.0 + x / 19.0)
        upper = smoothstep(z, -60.0, 60.0)
        hu = hu + (np.float32(-990.0) - hu) * smoothstep(holes, 0.0, 0.35) * (0.3 + 0.7 * upper)
        for center, radius in (((-85.0, 0.0, 70.0), 24.0), ((80.0, 30.0, 60.0), 28.0), ((-110.0, -20.0, 10.0), 16.0)):
            bulla = np.clip(0.5 - ellipsoid(x, y, z, center, (radius,) * 3) / 3.0, 0.0, 1.0)
            hu = hu + (np.float32(-995.0) - hu) * bulla
    return hu


def _airways(chest: Chest, slab: Slab) -> None:
    bronchi = [*BRONCHI[LEFT]] if chest.no_right_lung else [*BRONCHI[RIGHT], *BRONCHI[LEFT]]
    rods = [*TRACHEA, *bronchi]
    slab.paint_rods(rods, MUSCLE - 10.0, grow=1.7)
    slab.paint_rods(rods, AIR + 8.0)
    for a, b, radius, end in slab.near(rods):
        found = slab.within(rod_box(a, b, max(radius, end) + 4.0))
        if found is None:
            continue
        where, *p = found
        distance = capsule(*p, a, b, radius, end)
        outside = 1.0 - slab.cover(distance - 1.7)
        for side in (RIGHT, LEFT):
            slab.truth[side][where] *= outside
        slab.truth[AIRWAY][where] = np.maximum(slab.truth[AIRWAY][where], slab.cover(distance))
