"""``mpr.png``: three orthogonal planes through one point, each with the lines where the others cut it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from ctnode.ct.grid import Volume
from ctnode.results.canvas import (
    INK,
    LETTERS,
    MARGIN,
    Colour,
    Direction,
    Views,
    font,
    head,
    note,
    save,
    scale_bar,
    tile,
)
from ctnode.results.case import Case, Stage
from ctnode.results.png import told_window, view_for

AFTER: Final = Stage.VOLUME

_DIRECTIONS: Final[tuple[Direction, ...]] = ("axial", "coronal", "sagittal")
# Of Okabe and Ito's palette: the frame of a plane has the colour of its line in the other two.
_LINES: Final[dict[Direction, Colour]] = {
    "axial": (213, 94, 0),
    "coronal": (0, 158, 115),
    "sagittal": (86, 180, 233),
}
# Which plane the vertical and the horizontal line of a picture stand for.
_CROSSED: Final[dict[Direction, tuple[Direction, Direction]]] = {
    "axial": ("sagittal", "coronal"),
    "coronal": ("sagittal", "axial"),
    "sagittal": ("coronal", "axial"),
}
_BOX: Final = (560, 1500)
_GAP: Final = 16
_CAPTION: Final = 30
_LEAST: Final = 60
_FREE: Final = 14
_BESIDE: Final = 14
_TISSUE_HU: Final = -500


def available(_case: Case) -> bool:
    """Return True: every volume has its planes."""
    return True


def write(case: Case) -> tuple[Path, ...]:
    """Write ``mpr.png``."""
    path = case.path("mpr.png")
    save(draw(case.volume, choice=case.wanted.window), path)
    return (path,)


def draw(volume: Volume, *, choice: str = "auto") -> Image.Image:
    """Return the page; all three planes have the same scale, pixels of a plane are square millimetres."""
    views = Views.of(volume)
    at = dict(zip(_DIRECTIONS, middle(views), strict=True))
    name, window = view_for(volume, choice)
    sizes = {way: views.size_mm(way) for way in _DIRECTIONS}
    room = _BOX[1] - _GAP * (len(_DIRECTIONS) - 1)
    per_mm = min(_BOX[0] / max(tall for tall, _ in sizes.values()), room / sum(wide for _, wide in sizes.values()))
    boxes = {way: tuple(max(_LEAST, round(length * per_mm)) for length in sizes[way]) for way in _DIRECTIONS}
    height = max(tall for tall, _ in boxes.values())
    taken = sum(wide for _, wide in boxes.values()) + _GAP * (len(_DIRECTIONS) - 1)
    across = max(_BOX[1] // 2, taken)
    page, paint, top = head("Orthogonal planes", across, height + _CAPTION, note=told_window(name, window, volume.unit))
    x = MARGIN + (across - taken) // 2
    for way in _DIRECTIONS:
        tall, wide = boxes[way]
        y = top + (height - tall) // 2
        picture = tile(views, way, at[way], (tall, wide), window, letters=False, per_mm=per_mm)
        _cross(picture, views, way, at, per_mm)
        page.paste(picture, (x, y))
        paint.rectangle((x - 1, y - 1, x + wide, y + tall), outline=_LINES[way])
        words = f"{way}  {at[way] + 1} / {views.count(way)}"
        paint.text((x + wide // 2, y + tall + 8), words, font=font(15), fill=INK, anchor="ma")
        if way == "axial":
            scale_bar(paint, (x + 10, y + tall - 10), per_mm, width=wide - 20)
        x += wide + _GAP
    return page


def middle(views: Views) -> tuple[int, int, int]:
    """Return the indices along S, P, L of the voxel in the middle of what is denser than air."""
    steps = [max(1, size // 64) for size in views.voxels.shape]
    dense = views.voxels[:: steps[0], :: steps[1], :: steps[2]] > _TISSUE_HU
    if not dense.any():
        half = [size // 2 for size in views.voxels.shape]
        return half[0], half[1], half[2]
    found = []
    for axis, (step, size) in enumerate(zip(steps, views.voxels.shape, strict=True)):
        share = dense.sum(axis=tuple(other for other in range(3) if other != axis), dtype=np.int64)
        center = float((share * np.arange(len(share))).sum()) / float(share.sum())
        found.append(min(size - 1, round(center * step)))
    return found[0], found[1], found[2]


def _cross(picture: Image.Image, views: Views, way: Direction, at: dict[Direction, int], per_mm: float) -> None:
    """Draw where the other planes cut this one; the middle stays free, so that what they meet in is seen."""
    paint = ImageDraw.Draw(picture)
    upright, level = _CROSSED[way]
    tall, wide = (max(1, round(length * per_mm)) for length in views.size_mm(way))
    left, top = (picture.width - wide) // 2, (picture.height - tall) // 2
    x = left + min(wide - 1, int((at[upright] + 0.5) / views.count(upright) * wide))
    share = (at[level] + 0.5) / views.count(level)
    # Rows run to the back in an axial picture, and to the feet in the others.
    y = top + min(tall - 1, int((share if way == "axial" else 1.0 - share) * tall))
    # Letters beside the lines, not on them.
    across, down = picture.width // 2, picture.height // 2
    across += _BESIDE if abs(x - across) < _BESIDE else 0
    down += _BESIDE if abs(y - down) < _BESIDE else 0
    to_left, to_right, above, below = LETTERS[way]
    for start, end in ((top, y - _FREE), (y + _FREE, top + tall - 1)):
        if start < end:
            paint.line((x, start, x, end), fill=_LINES[upright])
    for start, end in ((left, x - _FREE), (x + _FREE, left + wide - 1)):
        if start < end:
            paint.line((start, y, end, y), fill=_LINES[level])
    note(paint, (5, down), to_left, anchor="lm")
    note(paint, (picture.width - 5, down), to_right, anchor="rm")
    if picture.height > _LEAST:
        note(paint, (across, 5), above, anchor="ma")
        note(paint, (across, picture.height - 5), below, anchor="md")
