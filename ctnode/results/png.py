"""PNG pictures: the whole stack at a glance, and the lungs with their contours. No text about a patient."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from ctnode.ct.coarse import LEFT, RIGHT
from ctnode.ct.grid import Volume
from ctnode.ct.lungs import Lungs
from ctnode.ct.window import LUNG, PRESETS, SOFT_TISSUE, View, Window, views_of
from ctnode.results.canvas import (
    COLOURS,
    MARGIN,
    Direction,
    Views,
    foot,
    head,
    note,
    save,
    scale_bar,
    spread,
    tile,
)

_TILE: Final = 240
_GAP: Final = 4
_LEAST_WIDTH: Final = 640
_LEAST_HEIGHT: Final = 70
_L: Final = 2
_COLUMNS: Final = 6
_ROWS: Final = 4
_LUNG_LIKE_HU: Final = (-930, -700)
_TISSUE_HU: Final = -200
_LUNG_LIKE_SHARE: Final = 0.15


def chosen_window(volume: Volume) -> tuple[str, Window]:
    """Return name and window that show most of ``volume``: lung where there is much of its density beside tissue.

    Only the middle of the planes counts: couch, cushions and clothes have the density of lung too.
    """
    _, rows, columns = volume.voxels.shape
    step = max(1, volume.voxels.shape[0] // 40)
    sample = volume.voxels[::step, rows // 5 : rows - rows // 5 : 2, columns // 6 : columns - columns // 6 : 2]
    lung = np.count_nonzero((sample > _LUNG_LIKE_HU[0]) & (sample < _LUNG_LIKE_HU[1]))
    tissue = np.count_nonzero(sample > _TISSUE_HU)
    return ("lung", LUNG) if lung > _LUNG_LIKE_SHARE * tissue else ("soft tissue", SOFT_TISSUE)


def view_for(volume: Volume, choice: str) -> tuple[str, View]:
    """Return name and view of ``volume`` for a ``choice`` of ``outputs.window``; ``auto`` where the header has none."""
    if choice in PRESETS:
        return choice, PRESETS[choice]
    offered = views_of(volume.header) if choice == "header" else ()
    return ("header", offered[0]) if offered else chosen_window(volume)


def told_window(name: str, view: View, unit: str) -> str:
    """Return the words for a window: its name, center and width."""
    if not isinstance(view, Window):
        return f"{name} table"
    return f"{name} window {view.center_hu:.0f} / {view.width_hu:.0f} {unit}"


def write_preview(path: Path, volume: Volume, *, choice: str = "auto") -> None:
    """Write a montage of axial planes from feet to head over the whole of ``volume``, in true proportions.

    ``choice`` is ``auto``, ``header`` or the name of one of the presets.
    """
    views = Views.of(volume)
    indices = spread(0, views.count("axial") - 1, _COLUMNS * _ROWS)
    columns = min(_COLUMNS, len(indices))
    rows = -(-len(indices) // columns)
    height, width = views.fitted("axial", _TILE, _TILE)
    name, window = view_for(volume, choice)
    across = columns * width + (columns - 1) * _GAP
    planes = "plane" if views.count("axial") == 1 else f"planes, {views.spacing_mm[0]:.2f} mm apart, feet to head"
    page, draw, top = head(
        f"{views.count('axial')} axial {planes}",
        max(across, _LEAST_WIDTH),
        rows * (height + _GAP) - _GAP,
        note=told_window(name, window, volume.unit),
    )
    for position, index in enumerate(indices):
        x = MARGIN + position % columns * (width + _GAP)
        y = top + position // columns * (height + _GAP)
        page.paste(tile(views, "axial", index, (height, width), window, letters=position == 0), (x, y))
        note(draw, (x + 5, y + 4), f"{index + 1}")
    scale_bar(draw, (MARGIN + 8, top + height - 8), height / views.size_mm("axial")[0], width=width - 16)
    save(page, path)


def write_lungs(path: Path, volume: Volume, lungs: Lungs) -> None:
    """Write the contours of ``lungs`` in axial, coronal and sagittal planes, with status and reasons when not OK."""
    views = Views.of(volume, lungs.labels).around_lungs()
    box = (330, 400)
    picture_rows = lung_planes(views)
    width = 4 * box[1] + 3 * _GAP
    scales = [
        min(min(box[0] / views.size_mm(way)[0], box[1] / views.size_mm(way)[1]) for way, _ in planes)
        for planes in picture_rows
    ]
    # As high as the planes are, so that a slab of few slices leaves no empty boxes.
    heights = [
        min(box[0], max(_LEAST_HEIGHT, *(round(views.size_mm(way)[0] * per_mm) for way, _ in planes)))
        for planes, per_mm in zip(picture_rows, scales, strict=True)
    ]
    page, draw, y = head(
        "Lung mask",
        width,
        sum(heights) + _GAP * (len(heights) - 1),
        foot(lungs.status, lungs.reasons, width),
        colours=COLOURS,
        note=told_window("lung", LUNG, volume.unit),
    )
    for row, (planes, per_mm, height) in enumerate(zip(picture_rows, scales, heights, strict=True)):
        for column, (direction, index) in enumerate(planes):
            x = MARGIN + column * (box[1] + _GAP)
            page.paste(tile(views, direction, index, (height, box[1]), LUNG, per_mm=per_mm), (x, y))
            note(draw, (x + 5, y + 4), direction)
            # One bar for all rows of the same scale.
            if column == 0 and per_mm not in scales[:row]:
                scale_bar(draw, (x + 8, y + height - 8), per_mm, width=box[1] - 16)
        y += height + _GAP
    save(page, path)


def lung_planes(views: Views) -> list[list[tuple[Direction, int]]]:
    """Return rows of planes that show the lungs: four axial ones; two coronal ones and one sagittal one of each lung.

    Without a mask the planes are spread over the whole volume.
    """
    lungs = (RIGHT, LEFT)
    spans = [views.span(axis, lungs) or (0, size - 1) for axis, size in enumerate(views.voxels.shape)]
    sides = [views.count("sagittal") // 3, 2 * views.count("sagittal") // 3]
    for place, label in enumerate(lungs):
        span = views.span(_L, (label,))
        if span is not None:
            sides[place] = sum(span) // 2

    def at(axis: int, share: float) -> int:
        low, high = spans[axis]
        return low + round(share * (high - low))

    axial: list[tuple[Direction, int]] = [("axial", at(0, share)) for share in (0.15, 0.4, 0.6, 0.85)]
    upright: list[tuple[Direction, int]] = [("coronal", at(1, share)) for share in (0.4, 0.6)]
    upright += [("sagittal", side) for side in sides]
    return [axial, upright]
