"""The trunk round the lungs for ``lung_chest``: couch and blanket, skin, bones, and the organs below the diaphragm."""

from __future__ import annotations

import numpy as np

from tests.lung_phantoms import (
    AIR,
    FAT,
    LEFT,
    MUSCLE,
    RIGHT,
    Slab,
    around,
    capsule,
    chain,
    ellipsoid,
    rod_box,
    smoothstep,
)

INF = float("inf")
EVERYWHERE = ((-400.0, 400.0), (-400.0, 400.0), (-900.0, 900.0))
TRUNK = ((-175.0, 175.0), (-130.0, 150.0), (-900.0, 200.0))
SPINE_MM = (0.0, 70.0)


def outside(chest, slab: Slab) -> None:
    down = np.array(chest.down)
    level = 122.0 if abs(down[1]) > 0.5 else 172.0
    side = np.array([1.0, 0.0, 0.0]) if abs(down[1]) > 0.5 else np.array([0.0, 1.0, 0.0])

    def couch(x, y, z, inset=0.0):
        depth = (x * np.float32(down[0]) + y * np.float32(down[1])) - np.float32(level + chest.fat + down[1] * 4.0)
        across = (x - 0.0) * np.float32(side[0]) + y * np.float32(side[1])
        depth = depth + (across * np.float32(1.0 / 70.0)) ** 2
        return np.maximum(np.abs(depth - 20.0) - (18.0 - inset), np.abs(across) - (215.0 - inset)) + 0.0 * z

    if chest.table:
        slab.paint(EVERYWHERE, couch, -60.0)
        slab.paint(EVERYWHERE, lambda *p: couch(*p, inset=2.5), -945.0)
    if chest.blanket:

        def sheet(x, y, z):
            gap = 7.0 + 6.0 * np.sin(x / 23.0) * np.sin(z / 31.0) + 4.0 * np.sin(x / 9.0)
            distance = _outline(chest, x, y, z) - gap
            return np.maximum(np.abs(distance) - 2.0, y - 60.0)

        slab.paint(EVERYWHERE, sheet, -180.0)


def _outline(chest, x, y, z):
    """The distance to the skin of the trunk."""
    narrow = smoothstep(z, 118.0, 188.0)
    wide = np.float32(158.0 + chest.fat) - np.float32(98.0 + 0.8 * chest.fat) * narrow
    deep = np.float32(106.0 + chest.fat) - np.float32(48.0 + 0.8 * chest.fat) * narrow
    px, py = x / wide, (y - np.float32(8.0)) / deep
    root = np.sqrt(np.sqrt(px**4 + 0.9 * px * px * py * py + py**4))
    return (root - 1.0) * np.minimum(wide, deep) * np.float32(1.05)


def body(chest, slab: Slab) -> None:
    skin = 2.0
    slab.paint(EVERYWHERE, lambda x, y, z: _outline(chest, x, y, z), 20.0)
    slab.paint(EVERYWHERE, lambda x, y, z: _outline(chest, x, y, z) + skin, FAT)

    def muscle(x, y, z):
        return _outline(chest, x, y, z) + np.float32(chest.fat) + 3.0 * np.cos(np.float32(0.03) * x)

    def marbled(x, y, z):
        # Thin sheets of fat part the muscles.
        depth = -_outline(chest, x, y, z) - np.float32(chest.fat)
        sheets = np.sin(depth / 4.5 + 1.5 * np.sin(x / 31.0) + np.sin(z / 37.0))
        return np.float32(MUSCLE) - 110.0 * smoothstep(sheets, 0.8, 1.0) * (depth < 34.0)

    slab.paint(EVERYWHERE, muscle, marbled)
    arms = []
    if chest.arms_down:
        for sign in (-1.0, 1.0):
            out = sign * (206.0 + chest.fat)
            arms += chain(
                (sign * 150.0, 30.0, 112.0), (out, 34.0, 70.0), (out + sign * 6.0, 30.0, -260.0), radius=47.0, end=38.0
            )
    slab.paint_rods(arms, FAT)
    slab.paint_rods(arms, MUSCLE, grow=-7.0)
    slab.paint_rods(arms, 900.0, grow=-30.0)
    slab.paint_rods(arms, 60.0, grow=-34.0)
    if chest.pacemaker:
        center = (95.0, -84.0, 80.0)
        slab.paint(
            around(center, (22.0, 6.0, 22.0)), lambda x, y, z: ellipsoid(x, y, z, center, (22.0, 6.0, 22.0)), 3000.0
        )


def bones(chest, slab: Slab, pleura) -> None:
    box = ((-160.0, 160.0), (-110.0, 130.0), (-230.0, 124.0))
    found = slab.within(box)
    if found is not None:
        where, x, y, z = found
        wall = np.minimum(pleura[RIGHT][where], pleura[LEFT][where])
        # Ribs run downwards from back to front.
        turn = ((z - np.float32(0.55) * (y - 90.0)) * np.float32(1.0 / 25.0)) % 1.0
        rib = np.maximum(np.abs(wall - 8.0) - 3.8, np.abs(turn - 0.5) * 21.0 - 5.0)
        rib = np.maximum(np.maximum(rib, np.float32(17.0) - np.abs(x)), z - np.float32(106.0) + 0.15 * y)
        cover, marrow = slab.cover(rib), slab.cover(rib + 1.8)
        cartilage = y < -70.0
        hu = slab.hu[where]
        hu += cover * (np.where(cartilage, np.float32(130.0), np.float32(650.0)) - hu)
        hu += marrow * (np.float32(170.0) - hu)

    def vertebra(x, y, z):
        disc = np.abs((z * np.float32(1.0 / 27.0)) % 1.0 - 0.5) * 27.0
        return np.maximum(ellipsoid(x, y, z, (*SPINE_MM, 0.0), (19.0, 15.0, INF)), disc - 11.0)

    spine = ((-45.0, 45.0), (50.0, 130.0), (-900.0, 200.0))
    slab.paint(spine, vertebra, 500.0)
    slab.paint(spine, lambda *p: vertebra(*p) + 1.5, 190.0)
    arch = (0.0, 92.0, 0.0)
    slab.paint(spine, lambda x, y, z: ellipsoid(x, y, z, arch, (14.0, 12.0, INF)), 420.0)
    slab.paint(spine, lambda x, y, z: ellipsoid(x, y, z, arch, (10.0, 8.5, INF)), 30.0)
    slab.paint(
        spine,
        lambda x, y, z: np.maximum(
            ellipsoid(x, y, z, (0.0, 106.0, 0.0), (3.5, 9.0, INF)), np.abs((z / 27.0) % 1.0 - 0.5) * 27.0 - 8.0
        ),
        400.0,
    )
    slab.paint(
        ((-24.0, 24.0), (-112.0, -76.0), (-60.0, 90.0)),
        lambda x, y, z: np.maximum(
            ellipsoid(x, y, z, (0.0, -90.0 + 0.0, 0.0), (19.0, 5.5, INF)), np.abs(z - 15.0) - 70.0
        ),
        260.0,
    )
    for sign in (-1.0, 1.0):
        slab.paint_rods(
            chain((sign * 14.0, -78.0, 96.0), (sign * 70.0, -58.0, 112.0), (sign * 120.0, -20.0, 116.0), radius=6.0),
            620.0,
        )
        slab.paint_rods(
            chain(
                (sign * 92.0, 100.0, 90.0), (sign * 112.0, 90.0, 60.0), (sign * 106.0, 96.0, 10.0), radius=4.5, end=3.0
            ),
            560.0,
        )


def abdomen(chest, slab: Slab, pleura, dome) -> None:
    found = slab.within(((-160.0, 160.0), (-130.0, 110.0), (-900.0, -60.0)))
    if found is None:
        return
    where, x, y, z = found
    # Below the diaphragm and inside the abdominal wall, which goes on downwards from the chest wall.
    wall = np.minimum(pleura[RIGHT][where], pleura[LEFT][where])
    wall = np.minimum(wall, ellipsoid(x, y, z, (0.0, -8.0, 0.0), (90.0, 78.0, INF)))
    under = np.where(x < 9.0, dome[RIGHT][where], dome[LEFT][where])
    belly = np.maximum(wall + 6.0, np.float32(4.2) - under)
    belly = np.maximum(belly, -(ellipsoid(x, y, z, (0.0, 84.0, 0.0), (52.0, 36.0, INF))))
    inside = np.zeros(slab.shape, dtype=np.float32)
    inside[where] = slab.cover(belly)
    slab.paint(TRUNK, lambda x, y, z: np.minimum(x * 0.0 - 9.0, 0.0 * y + 0.0 * z), -95.0, inside)

    def bowel(x, y, z):
        return (0.12 - np.sin(x / 13.0 + np.sin(z / 29.0)) * np.sin(y / 15.0) * np.sin(z / 16.0 + y / 40.0)) * 20.0

    slab.paint(((-130.0, 130.0), (-110.0, 60.0), (-900.0, -190.0)), bowel, 35.0, inside)

    def organ(center, axes, value):
        slab.paint(around(center, axes), lambda x, y, z: ellipsoid(x, y, z, center, axes), value, inside)

    organ((-62.0, -4.0, -140.0), (98.0, 92.0, 88.0), 110.0 if chest.contrast else 58.0)
    organ((112.0, 48.0, -135.0), (36.0, 48.0, 55.0), 120.0 if chest.contrast else 48.0)
    organ((62.0, 58.0, -190.0), (27.0, 25.0, 52.0), 180.0 if chest.contrast else 32.0)
    organ((-62.0, 58.0, -205.0), (27.0, 25.0, 52.0), 180.0 if chest.contrast else 32.0)
    _gas(chest, slab, inside)


def _gas(chest, slab: Slab, inside) -> None:
    center, axes = (60.0, -26.0, -118.0), (50.0, 48.0, 44.0)
    slab.paint(around(center, axes), lambda x, y, z: ellipsoid(x, y, z, center, axes), 40.0, inside)

    def lumen(x, y, z):
        return ellipsoid(x, y, z, center, axes) + 3.0

    down = np.array(chest.down)
    height = float(np.abs(down) @ np.array(axes))
    level = float(down @ np.array(center)) + height * (2.0 * chest.stomach_gas - 1.0)

    def bubble(x, y, z):
        depth = x * np.float32(down[0]) + y * np.float32(down[1]) + z * np.float32(down[2])
        return np.maximum(lumen(x, y, z), depth - np.float32(level))

    slab.paint(around(center, axes), lumen, 15.0, inside)
    slab.paint(around(center, axes), bubble, AIR + 5.0, inside)
    if chest.colon_gas:
        rods = [
            *chain(
                (118.0, 0.0, -280.0),
                (120.0, -6.0, -190.0),
                (112.0, -38.0, -128.0),
                (84.0, -64.0, -124.0),
                (0.0, -78.0, -180.0),
                (-70.0, -76.0, -176.0),
                (-112.0, -40.0, -200.0),
                radius=25.0,
            ),
        ]
        slab.paint_rods(rods, 40.0, inside)
        for a, b, radius, _end in slab.near(rods):
            slab.paint(
                rod_box(a, b, radius),
                lambda x, y, z, a=a, b=b, r=radius: (
                    capsule(x, y, z, a, b, r - 3.0) + 3.0 * np.maximum(np.sin(x / 5.0 + y / 7.0 + z / 6.0), 0.0)
                ),
                AIR + 8.0,
                inside,
            )
