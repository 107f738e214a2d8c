"""Along the normal: regular, with missing slices, or of unequal spacing, and what grid repairs it (R13 to R15)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ctnode.ct.grid import FloatArray
from ctnode.words import Issue, Refusal, Severity

_Indices = npt.NDArray[np.intp]
Even = tuple[FloatArray, float, list[Issue]]


@dataclass(frozen=True, slots=True)
class Tolerances:
    """What still counts as regular, and how much may be repaired.

    Parameters
    ----------
    regularity_mm, regularity_part
        A slice may be this far from its place: the smaller of millimetres and part of the spacing (R13).
    tilt_degrees, drift_pixels
        Largest angle between the line of positions and the normal, and largest drift in the plane over the whole
        stack, that is not a tilt (R12).
    rounding_mm
        A drift that positions rounded to 0.1 mm can feign; no angle is read from less.
    exact_drift_mm
        Drift that is noted.
    steepest_degrees, most_enlarged
        Largest tilt, and largest growth of the number of voxels, that is repaired.
    missing_slices, missing_mm, missing_part
        Largest hole in slices and in millimetres between the slices beside it, and largest part of the stack, that can
        be interpolated and still be measured (R14).
    whole_part
        How far from a whole number a gap may be, in steps, to count as missing slices.
    growth
        A repaired stack has at most this many times the slices of its source (R15).
    common_percent
        Unequal gaps are made as small as this percentile of them (R15).
    widest_mm, longest_mm, finest_mm
        No scanner has a larger field of view, a longer table, or smaller voxels: such spacings are not believed.
    """

    regularity_mm: float = 0.1
    regularity_part: float = 0.1
    tilt_degrees: float = 0.1
    drift_pixels: float = 0.5
    rounding_mm: float = 0.05
    exact_drift_mm: float = 0.01
    steepest_degrees: float = 45.0
    most_enlarged: float = 4.0
    missing_slices: int = 3
    missing_mm: float = 10.0
    missing_part: float = 0.05
    whole_part: float = 0.1
    growth: float = 2.0
    common_percent: float = 10.0
    widest_mm: float = 2000.0
    longest_mm: float = 5000.0
    finest_mm: float = 1e-4


DEFAULT: Final = Tolerances()


def even_depths(depths: FloatArray, tolerances: Tolerances) -> Even:
    """Return the depths at which the slices of a grid lie, and what it repairs to have slices there.

    Parameters
    ----------
    depths
        ``(n,)`` float64, ascending from 0: where the source slices lie along the normal, in millimetres.

    Returns
    -------
    places
        ``(nz,)`` float64 millimetres from the first slice, of one step.
    step_mm
        That step.
    issues
        Empty for a regular stack; else ``MISSING_SLICES`` or ``UNEQUAL_SPACING``, and ``INCOMPLETE`` where a hole is
        too large to be measured across.

    Raises
    ------
    Refusal
        Code ``MISSING_SLICES`` if more slices are missing than there are.
    """
    count = len(depths)
    step_mm = float(depths[-1]) / (count - 1)
    regular: FloatArray = step_mm * np.arange(count, dtype=np.float64)
    if _is_regular(depths, regular, step_mm, tolerances):
        return regular, step_mm, []
    gaps = np.diff(depths)
    usual_mm = float(np.median(gaps))
    steps = np.rint(gaps / usual_mm)
    if (np.abs(gaps / usual_mm - steps) <= tolerances.whole_part).all() and (steps == 1).mean() >= 0.5:
        found: FloatArray = np.concatenate([[0.0], np.cumsum(steps)])
        step_mm = float(depths[-1] / found[-1])
        if _is_regular(depths, found * step_mm, step_mm, tolerances):
            return _with_missing(found.astype(int), gaps, step_mm, tolerances)
    return _evened(depths, gaps, tolerances)


def _is_regular(depths: FloatArray, places: FloatArray, step_mm: float, tolerances: Tolerances) -> bool:
    limit_mm = min(tolerances.regularity_mm, tolerances.regularity_part * step_mm)
    return bool(np.abs(depths - places).max() <= limit_mm)


def _with_missing(found: _Indices, gaps: FloatArray, step_mm: float, tolerances: Tolerances) -> Even:
    total = int(found[-1]) + 1
    missing = tuple(sorted(set(range(total)) - set(found.tolist())))
    text = f"{len(missing)} of {total} slices are missing"
    if total > tolerances.growth * len(found):
        raise Refusal(f"{text}, more than there are", code="MISSING_SLICES")
    issues = [Issue("MISSING_SLICES", Severity.WARNING, f"{text}; interpolated between their neighbours", missing)]
    hole = int(np.diff(found).max()) - 1
    is_large = (
        hole > tolerances.missing_slices
        or gaps.max() > tolerances.missing_mm + tolerances.regularity_mm
        or len(missing) > tolerances.missing_part * total
    )
    if is_large:
        text = f"{len(missing)} of {total} slices, {hole} in a row, {gaps.max():.1f} mm wide: too much to be measured"
        issues.append(Issue("INCOMPLETE", Severity.WARNING, text, missing))
    places: FloatArray = step_mm * np.arange(total, dtype=np.float64)
    return places, step_mm, issues


def _evened(depths: FloatArray, gaps: FloatArray, tolerances: Tolerances) -> Even:
    most = int(tolerances.growth * len(depths))
    # The step that the closest slices have in common: where two sequences meet, one gap can be tiny.
    intervals = depths[-1] / np.percentile(gaps, tolerances.common_percent, method="lower")
    count = min(most, int(np.ceil(intervals - tolerances.whole_part)) + 1)
    step_mm = float(depths[-1]) / (count - 1)
    places: FloatArray = step_mm * np.arange(count, dtype=np.float64)
    text = f"the spacing of slices varies from {gaps.min():.3f} to {gaps.max():.3f} mm; made {step_mm:.3f} mm, linearly"
    issues = [Issue("UNEQUAL_SPACING", Severity.WARNING, text)]
    holes = [
        (depths[index], depths[index + 1])
        for index in np.flatnonzero((gaps > tolerances.missing_mm) & (gaps > 1.5 * np.median(gaps)))
    ]
    if holes:
        inside = tuple(
            int(index) for index, depth in enumerate(places) if any(low < depth < high for low, high in holes)
        )
        text = f"the largest hole is {gaps.max():.1f} mm wide, too much to be measured"
        issues.append(Issue("INCOMPLETE", Severity.WARNING, text, inside))
    return places, step_mm, issues
