"""Where the slices lie: order, spacing, regularity and the exact LPS affine, as pure functions of header values.

Nothing is guessed from slice location, instance number, slice thickness, gantry tilt or file name (rules R8 to R16).
A stack that is not regular gets a plan of how its slices make a regular, upright one, and the issues that say so;
``ctnode.ct.repair`` carries it out. What no plan makes true is refused with its own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctnode.ct.grid import FloatArray, Grid
from ctnode.ct.spacing import DEFAULT, Tolerances, even_depths
from ctnode.words import Issue, Refusal, Severity

_Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """How slices in the order of space make the slices of a grid.

    Parameters
    ----------
    lower, upper
        ``(nz,)`` index of the two source slices between which each slice of the grid lies.
    share
        ``(nz,)`` float64, the part of ``upper``; 0: the lower one as it is.
    shifts
        ``(n, 2)`` float64, columns and rows by which each source slice is moved on the grid, never negative.
    """

    lower: _Indices
    upper: _Indices
    share: FloatArray
    shifts: FloatArray

    @property
    def is_tilted(self) -> bool:
        """Return whether slices are moved in their plane."""
        return bool(self.shifts.any())


@dataclass(frozen=True, eq=False, slots=True)
class Placement:
    """The order of the slices and the grid they form.

    Parameters
    ----------
    order
        Index into the given positions for each source slice, ascending along the normal.
    grid
        Its affine is orthogonal, in LPS millimetres.
    issues
        What was noticed, and what the plan repairs.
    plan
        None where the source slices are the slices of the grid.
    """

    order: tuple[int, ...]
    grid: Grid
    issues: tuple[Issue, ...]
    plan: Plan | None = None


def axes(orientation: Sequence[float], *, cosine_tolerance: float = 1e-3) -> FloatArray:
    """Return ``(3, 3)`` unit rows: direction of growing column, of growing row, and their normal, in LPS.

    Raises
    ------
    Refusal
        Code ``BAD_ORIENTATION`` unless both cosines are of length 1 and orthogonal within ``cosine_tolerance``
        (PS3.3 C.7.6.2.1.1, rule R9).
    """
    row, column = np.asarray(orientation, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1.0) for length in lengths) > cosine_tolerance or abs(row @ column) > cosine_tolerance:
        raise Refusal("ImageOrientationPatient is not two orthogonal directions of length 1", code="BAD_ORIENTATION")
    row = row / lengths[0]
    column = column - (column @ row) * row
    column = column / np.linalg.norm(column)
    return np.stack([row, column, np.cross(row, column)])


def depths_mm(orientation: Sequence[float], positions_mm: FloatArray) -> FloatArray:
    """Return ``(n,)`` the distance of each position along the normal (rule R8)."""
    depths: FloatArray = positions_mm @ axes(orientation)[2]
    return depths


def place(
    orientation: Sequence[float],
    positions_mm: FloatArray,
    pixel_spacing_mm: Sequence[float],
    rows: int,
    columns: int,
    *,
    thickness_mm: float | None = None,
    tolerances: Tolerances = DEFAULT,
) -> Placement:
    """Order the slices and return the grid on which they lie, or on which a plan puts them.

    Parameters
    ----------
    orientation
        Six cosines of ImageOrientationPatient.
    positions_mm
        ``(n, 3)`` ImagePositionPatient, LPS, in any order, no two alike.
    pixel_spacing_mm
        PixelSpacing: (distance of rows, distance of columns) (R10).
    thickness_mm
        SliceThickness; used for a slice that is alone, never else (R11).

    Raises
    ------
    Refusal
        Codes ``BAD_ORIENTATION``, ``BAD_SPACING``, ``SINGLE_SLICE`` (without a thickness), ``SAME_POSITION``,
        ``TILT`` (too steep), ``CURVED``, ``MISSING_SLICES`` (more than there are).
    """
    frame_axes = axes(orientation)
    sides_mm = rows * pixel_spacing_mm[0], columns * pixel_spacing_mm[1]
    if min(pixel_spacing_mm) < tolerances.finest_mm or max(sides_mm) > tolerances.widest_mm:
        raise Refusal("PixelSpacing is smaller than any pixel, or larger than any field of view", code="BAD_SPACING")
    if len(positions_mm) == 1:
        return _alone(frame_axes, positions_mm[0], pixel_spacing_mm, (rows, columns), thickness_mm, tolerances)
    depths = positions_mm @ frame_axes[2]
    order = np.argsort(depths, kind="stable")
    depths, ordered = depths[order] - depths[order[0]], positions_mm[order]
    mean_mm = float(depths[-1]) / (len(depths) - 1)
    if np.diff(depths).min() <= 1e-3 * mean_mm or mean_mm <= 0:
        raise Refusal("two slices share one position along the normal", code="SAME_POSITION")
    if depths[-1] > tolerances.longest_mm or mean_mm < tolerances.finest_mm:
        raise Refusal(f"the stack of {len(depths)} slices is {depths[-1]:.3g} mm long", code="BAD_SPACING")
    shifts, line_issues = _line(ordered, depths, frame_axes, pixel_spacing_mm, tolerances)
    places, step_mm, depth_issues = even_depths(depths, tolerances)
    base = shifts.min(axis=0)
    shifts = shifts - base
    enlarged = np.ceil(shifts.max(axis=0) - 1e-6).astype(int)
    sides = columns + int(enlarged[0]), rows + int(enlarged[1])
    if len(places) * sides[0] * sides[1] > tolerances.most_enlarged * len(depths) * rows * columns:
        raise Refusal("an upright grid round the tilted stack would be mostly empty", code="TILT")
    affine = _affine(frame_axes, ordered[0], pixel_spacing_mm, step_mm)
    # Where the stack is not tilted this adds nothing at all, and the affine is that of the first slice to the bit.
    affine[:3, 3] += affine[:3, 0] * base[0] + affine[:3, 1] * base[1]
    is_even = all(issue.code != "UNEQUAL_SPACING" for issue in depth_issues)
    limit_mm = min(tolerances.regularity_mm, tolerances.regularity_part * step_mm)
    plan = _plan(places, depths, shifts, same_mm=limit_mm if is_even else tolerances.exact_drift_mm)
    few = [] if len(depths) > 2 else [_TOO_FEW]
    return Placement(
        order=tuple(int(index) for index in order),
        grid=Grid((len(places), sides[1], sides[0]), affine),
        issues=(*line_issues, *depth_issues, *few),
        plan=plan if plan.is_tilted or depth_issues else None,
    )


_TOO_FEW = Issue(
    "TOO_FEW_SLICES", Severity.WARNING, "two slices do not show whether any is missing between them; not measured"
)


def _affine(
    frame_axes: FloatArray, origin: FloatArray, pixel_spacing_mm: Sequence[float], step_mm: float
) -> FloatArray:
    affine = np.eye(4)
    affine[:3, 0] = frame_axes[0] * pixel_spacing_mm[1]
    affine[:3, 1] = frame_axes[1] * pixel_spacing_mm[0]
    affine[:3, 2] = frame_axes[2] * step_mm
    affine[:3, 3] = origin
    return affine


def _alone(
    frame_axes: FloatArray,
    position_mm: FloatArray,
    pixel_spacing_mm: Sequence[float],
    sides: tuple[int, int],
    thickness_mm: float | None,
    tolerances: Tolerances,
) -> Placement:
    if thickness_mm is None or not tolerances.finest_mm <= thickness_mm <= tolerances.longest_mm:
        raise Refusal("one slice alone, without a SliceThickness, has no extent", code="SINGLE_SLICE")
    text = f"one slice alone: its SliceThickness of {thickness_mm:g} mm stands in for the spacing; not measured"
    return Placement(
        order=(0,),
        grid=Grid((1, *sides), _affine(frame_axes, position_mm, pixel_spacing_mm, thickness_mm)),
        issues=(Issue("SINGLE_SLICE", Severity.WARNING, text),),
    )


def _line(
    positions_mm: FloatArray,
    depths: FloatArray,
    frame_axes: FloatArray,
    pixel_spacing_mm: Sequence[float],
    tolerances: Tolerances,
) -> tuple[FloatArray, list[Issue]]:
    """Return ``(n, 2)`` shifts in columns and rows, zero unless tilted; GantryDetectorTilt is not asked (R12, R16)."""
    offsets = (positions_mm - positions_mm[0]) @ frame_axes[:2].T
    centred = depths - depths.mean()
    drift_per_mm = centred @ (offsets - offsets.mean(axis=0)) / (centred @ centred)
    line = offsets.mean(axis=0) + np.outer(centred, drift_per_mm)
    steepness = float(np.linalg.norm(drift_per_mm))
    angle = float(np.degrees(np.arctan(steepness)))
    total_mm = steepness * float(depths[-1])
    bend_mm = float(np.linalg.norm(offsets - line, axis=1).max())
    drift_mm = tolerances.drift_pixels * min(pixel_spacing_mm)
    none = np.zeros_like(offsets)
    if bend_mm > drift_mm:
        raise Refusal(f"the slices do not lie on a straight line: {bend_mm:.2f} mm beside it", code="CURVED")
    if angle > tolerances.steepest_degrees:
        raise Refusal(f"the stack leans by {angle:.1f} degrees against its slices", code="TILT")
    if (angle > tolerances.tilt_degrees and total_mm > tolerances.rounding_mm) or total_mm > drift_mm:
        text = f"tilted by {angle:.2f} degrees against its slices; moved in their planes to an upright grid, linearly"
        shifts = offsets / (pixel_spacing_mm[1], pixel_spacing_mm[0])
        # An axis along which nothing moves but the last digits is left alone.
        shifts[:, np.ptp(offsets, axis=0) <= tolerances.exact_drift_mm] = 0.0
        return shifts, [Issue("TILT", Severity.WARNING, text)]
    worst_mm = float(np.linalg.norm(offsets, axis=1).max())
    if worst_mm > tolerances.exact_drift_mm:
        text = f"slices drift by up to {worst_mm:.3f} mm in their plane, less than half a pixel; left as they are"
        return none, [Issue("SMALL_DRIFT", Severity.INFO, text)]
    return none, []


def _plan(places: FloatArray, depths: FloatArray, shifts: FloatArray, *, same_mm: float) -> Plan:
    """Return between which slices each place lies; a slice within ``same_mm`` of a place is taken as it is."""
    upper = np.clip(np.searchsorted(depths, places), 1, len(depths) - 1)
    lower = upper - 1
    below_mm, above_mm = places - depths[lower], depths[upper] - places
    share = np.clip(below_mm / (below_mm + above_mm), 0.0, 1.0)
    is_lower = (below_mm <= same_mm) & (below_mm <= above_mm)
    is_upper = (above_mm <= same_mm) & ~is_lower
    return Plan(np.where(is_upper, upper, lower), upper, np.where(is_lower | is_upper, 0.0, share), shifts)
