"""``histogram.png``: how often each HU is in the volume and in the lungs, with the thresholds that were used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ctnode.ct.coarse import LEFT, RIGHT
from ctnode.ct.grid import Volume
from ctnode.ct.lungs import Lungs
from ctnode.ct.measure import HISTOGRAM_HU, Histogram
from ctnode.results.canvas import COLOURS, FAINT, INK, MARGIN, PAPER, Colour, font, foot, head, save
from ctnode.results.case import Case, Stage

AFTER: Final = Stage.LUNGS

_VOLUME: Final = 0
_VOLUME_COLOUR: Final[Colour] = (120, 126, 136)
_PANEL: Final[Colour] = (8, 9, 11)
_GRID: Final[Colour] = (44, 48, 55)
_SIZE: Final = (430, 1040)
_BIN_HU: Final = 8
_RANGE_HU: Final = (-1024, 1000)
_LEFT: Final = 64
_BOTTOM: Final = 52
_TOP: Final = 58
_TICKS_HU: Final = range(-1000, 1001, 200)
_SUPERSAMPLED: Final = 2
# A part of the planes of a long scan gives the same curve.
_MOST_PLANES: Final = 100

_Curve = npt.NDArray[np.float64]


def available(case: Case) -> bool:
    """Return whether lungs were found and counted."""
    return case.mask is not None and case.measurements is not None and case.measurements.histogram is not None


def write(case: Case) -> tuple[Path, ...]:
    """Write ``histogram.png``."""
    assert case.mask is not None
    assert case.measurements is not None
    assert case.measurements.histogram is not None
    path = case.path("histogram.png")
    save(draw(case.volume, case.mask, case.measurements.histogram), path)
    return (path,)


def draw(volume: Volume, lungs: Lungs, histogram: Histogram) -> Image.Image:
    """Return the page: volume per HU of the whole scan and of each lung; both lungs share a scale."""
    height, width = _SIZE
    page, paint, y = head(
        "HU histogram", width, height, foot(lungs.status, lungs.reasons, width),
        colours={_VOLUME: _VOLUME_COLOUR, RIGHT: COLOURS[RIGHT], LEFT: COLOURS[LEFT]}, names={_VOLUME: "whole volume"},
        note=f"bins of {_BIN_HU} HU; one scale for both lungs, one for the volume",
    )  # fmt: skip
    box = (MARGIN + _LEFT, y + _TOP, MARGIN + width - 8, y + height - _BOTTOM)
    curves = {_VOLUME: counted(volume), RIGHT: _binned(histogram.right), LEFT: _binned(histogram.left)}
    # Air round the patient and fill of the scanner would flatten everything else.
    air = (-1024 - _RANGE_HU[0]) // _BIN_HU, (-900 - _RANGE_HU[0]) // _BIN_HU
    tissue = np.delete(curves[_VOLUME], slice(*air))
    top = float(tissue.max()) if tissue.size and tissue.max() > 0 else 1.0
    # The first bin holds what a scanner cut off at its lowest value.
    lung_top = max(1.0, float(curves[RIGHT][1:].max()), float(curves[LEFT][1:].max()))
    page.paste(_plot(curves, {_VOLUME: top, RIGHT: lung_top, LEFT: lung_top}, box), box[:2])
    _axes(paint, box)
    marks = [(-950.0, "LAA -950"), (-600.0, "HAA -600"), (-250.0, "to -250")]
    if math.isfinite(lungs.threshold_hu):
        marks.append((lungs.threshold_hu, f"threshold {round(lungs.threshold_hu)}"))
    _marks(paint, sorted(marks), box)
    return page


def counted(volume: Volume) -> _Curve:
    """Return voxels of ``volume`` that were measured, per bin of the picture."""
    total = np.zeros(_RANGE_HU[1] - _RANGE_HU[0], dtype=np.int64)
    step = max(1, len(volume.voxels) // _MOST_PLANES)
    for index in range(0, len(volume.voxels), step):
        plane = volume.voxels[index]
        values = plane if volume.padding is None else plane[~volume.padding[index]]
        whole = values if values.dtype == np.int16 else np.rint(values)
        inside = whole[(whole >= _RANGE_HU[0]) & (whole < _RANGE_HU[1])].astype(np.int32) - _RANGE_HU[0]
        total += np.bincount(inside.ravel(), minlength=total.size)
    return _per_bin(total)


def _binned(counts: npt.NDArray[np.int64]) -> _Curve:
    """Return counts of 1 HU from ``HISTOGRAM_HU[0]`` in the bins of the picture."""
    whole = np.zeros(_RANGE_HU[1] - _RANGE_HU[0], dtype=np.int64)
    first = HISTOGRAM_HU[0] - _RANGE_HU[0]
    whole[first : first + counts.size] = counts
    return _per_bin(whole)


def _per_bin(counts: npt.NDArray[np.int64]) -> _Curve:
    bins: _Curve = counts.reshape(-1, _BIN_HU).sum(axis=1).astype(np.float64)
    return bins


def _x(hu: float, left: float, right: float) -> float:
    return left + (hu - _RANGE_HU[0]) / (_RANGE_HU[1] - _RANGE_HU[0]) * (right - left)


def _plot(curves: dict[int, _Curve], tops: dict[int, float], box: tuple[int, int, int, int]) -> Image.Image:
    """Return filled curves on a panel, smooth by supersampling."""
    width, height = (box[2] - box[0]) * _SUPERSAMPLED, (box[3] - box[1]) * _SUPERSAMPLED
    panel = Image.new("RGB", (width, height), _PANEL)
    paint = ImageDraw.Draw(panel)
    for hu in _TICKS_HU:
        x = round(_x(hu, 0, width))
        paint.line((x, 0, x, height), fill=_GRID, width=_SUPERSAMPLED)
    for share in (0.25, 0.5, 0.75):
        paint.line((0, round(height * share), width, round(height * share)), fill=_GRID, width=_SUPERSAMPLED)
    colours = {**COLOURS, _VOLUME: _VOLUME_COLOUR}
    for label, curve in curves.items():
        if not curve.any():
            continue
        across = [_x(_RANGE_HU[0] + (place + 0.5) * _BIN_HU, 0, width) for place in range(len(curve))]
        # 4 % of room above the highest bin; what is higher is cut off at the edge.
        up = np.clip(height * (1.0 - curve / tops[label] * 0.96), -10.0, height)
        line = list(zip(across, up.tolist(), strict=True))
        fill = Image.new("L", panel.size, 0)
        ImageDraw.Draw(fill).polygon([(across[0], height), *line, (across[-1], height)], fill=70)
        panel.paste(Image.new("RGB", panel.size, colours[label]), (0, 0), fill)
        paint.line(line, fill=colours[label], width=2 * _SUPERSAMPLED, joint="curve")
    return panel.resize((width // _SUPERSAMPLED, height // _SUPERSAMPLED), Image.Resampling.BOX)


def _axes(paint: ImageDraw.ImageDraw, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    paint.rectangle((left - 1, top - 1, right, bottom), outline=FAINT)
    for hu in _TICKS_HU:
        x = round(_x(hu, left, right))
        if left <= x <= right:
            paint.line((x, bottom, x, bottom + 5), fill=FAINT)
            anchor = "ra" if hu == _TICKS_HU[-1] else "ma"
            paint.text((min(x, right), bottom + 9), str(hu), font=font(13), fill=INK, anchor=anchor)
    paint.text(((left + right) // 2, bottom + 28), "attenuation (HU)", font=font(14), fill=INK, anchor="ma")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = round(bottom + (top - bottom) * share * 0.96)
        paint.line((left - 6, y, left - 2, y), fill=FAINT)
        paint.text((left - 10, y), f"{share:.2g}", font=font(13), fill=INK, anchor="rm")


def _marks(paint: ImageDraw.ImageDraw, marks: list[tuple[float, str]], box: tuple[int, int, int, int]) -> None:
    """Draw a dashed line for each threshold; words that would touch go to the row above."""
    left, top, right, bottom = box
    ends = [-1.0, -1.0, -1.0]
    for hu, words in marks:
        x = round(_x(hu, left, right))
        for y in range(top, bottom, 8):
            paint.line((x, y, x, min(y + 4, bottom)), fill=INK)
        half = font(13).getlength(words) / 2
        row = next((row for row, end in enumerate(ends) if x - half > end + 8), len(ends) - 1)
        ends[row] = x + half
        paint.line((x, top - 4 - 17 * row, x, top), fill=FAINT)
        paint.text(
            (x, top - 5 - 17 * row), words, font=font(13), fill=INK, anchor="mb", stroke_width=2, stroke_fill=PAPER
        )
