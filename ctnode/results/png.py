"""PNG pictures: the whole stack at a glance, and the lungs with their contours. No text about a patient."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from ctnode.ct.grid import Volume
from ctnode.ct.lungs import Lungs
from ctnode.ct.window import LUNG, PRESETS, SOFT_TISSUE, View, Window, views_of
from ctnode.ops.durable import write_durable
from ctnode.results.canvas import (
    FAINT,
    INK,
    PAPER,
    WARNING,
    Direction,
    Views,
    font,
    legend,
    note,
    scale_bar,
    spread,
    tile,
    wrapped,
)
from ctnode.words import LungStatus

_TILE: Final = 240
_GAP: Final = 4
_MARGIN: Final = 12
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
    numbers = f" {window.center_hu:.0f} / {window.width_hu:.0f} {volume.unit}" if isinstance(window, Window) else ""
    head = 40
    size = (
        2 * _MARGIN + columns * width + (columns - 1) * _GAP,
        head + rows * (height + _GAP) + _MARGIN,
    )
    page = Image.new("RGB", (max(size[0], 560), size[1]), PAPER)
    draw = ImageDraw.Draw(page)
    step = views.spacing_mm[0]
    caption = f"{views.count('axial')} axial planes, {step:.2f} mm apart, feet to head   |   {name} window{numbers}"
    draw.text((_MARGIN, 12), caption, font=font(16), fill=INK)
    for position, index in enumerate(indices):
        x = _MARGIN + position % columns * (width + _GAP)
        y = head + position // columns * (height + _GAP)
        page.paste(tile(views, "axial", index, (height, width), window, letters=position == 0), (x, y))
        note(draw, (x + 5, y + 4), f"{index + 1}")
    per_mm = height / views.size_mm("axial")[0]
    scale_bar(draw, (_MARGIN + 8, head + height - 8), per_mm)
    _save(page, path)


def write_lungs(path: Path, volume: Volume, lungs: Lungs) -> None:
    """Write the contours of ``lungs`` in axial, coronal and sagittal planes, with status and reasons when not OK."""
    views = Views.of(volume, lungs.labels).around_lungs()
    box = (330, 400)
    picture_rows = lung_planes(views)
    head, line = 44, 22
    reasons = [text for reason in lungs.reasons for text in wrapped(reason, 15, 4 * box[1] - 40)]
    foot = 0 if lungs.status is LungStatus.OK else 16 + line * (1 + len(reasons))
    width = 2 * _MARGIN + 4 * box[1] + 3 * _GAP
    page = Image.new("RGB", (width, head + len(picture_rows) * (box[0] + _GAP) + foot + _MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, 12), "Lung mask", font=font(18), fill=INK)
    legend(draw, (_MARGIN + 120, 14))
    window = f"lung window {LUNG.center_hu:.0f} / {LUNG.width_hu:.0f} HU"
    draw.text((width - _MARGIN, 14), window, font=font(15), fill=FAINT, anchor="ra")
    for row, planes in enumerate(picture_rows):
        y = head + row * (box[0] + _GAP)
        for column, (direction, index) in enumerate(planes):
            x = _MARGIN + column * (box[1] + _GAP)
            page.paste(tile(views, direction, index, box, LUNG), (x, y))
            note(draw, (x + 5, y + 4), direction)
            if column == 0:
                tall, _ = views.fitted(direction, *box)
                scale_bar(draw, (x + 8, y + box[0] - 8), tall / views.size_mm(direction)[0])
    if foot:
        y = head + len(picture_rows) * (box[0] + _GAP) + 10
        draw.text((_MARGIN, y), str(lungs.status), font=font(17), fill=WARNING)
        for number, text in enumerate(reasons):
            draw.text((_MARGIN, y + line * (number + 1)), text, font=font(15), fill=INK)
    _save(page, path)


def lung_planes(views: Views) -> list[list[tuple[Direction, int]]]:
    """Return rows of planes that show the lungs: four axial ones; two coronal ones and one sagittal one of each lung.

    Without a mask the planes are spread over the whole volume.
    """
    labels = views.labels
    spans: list[tuple[int, int]] = []
    sides = [views.count("sagittal") // 3, 2 * views.count("sagittal") // 3]
    for axis in range(3):
        size = views.voxels.shape[axis]
        span = (0, size - 1)
        if labels is not None:
            others = tuple(other for other in range(3) if other != axis)
            found = np.flatnonzero((labels == 1).any(axis=others) | (labels == 2).any(axis=others))
            if found.size:
                span = (int(found[0]), int(found[-1]))
        spans.append(span)
    if labels is not None:
        for place, label in enumerate((1, 2)):
            columns = np.flatnonzero((labels == label).any(axis=(0, 1)))
            if columns.size:
                sides[place] = int(columns[0] + columns[-1]) // 2

    def at(axis: int, share: float) -> int:
        low, high = spans[axis]
        return low + round(share * (high - low))

    axial: list[tuple[Direction, int]] = [("axial", at(0, share)) for share in (0.15, 0.4, 0.6, 0.85)]
    upright: list[tuple[Direction, int]] = [("coronal", at(1, share)) for share in (0.4, 0.6)]
    upright += [("sagittal", side) for side in sides]
    return [axial, upright]


def _save(page: Image.Image, path: Path) -> None:
    """Write ``page`` as PNG, fsynced."""
    content = io.BytesIO()
    page.save(content, format="PNG", compress_level=6)
    write_durable(path, content.getvalue(), mode=0o644)
