"""Where the slices lie: order, spacing, regularity and the exact LPS affine, as pure functions of header values.

What cannot be placed on a regular grid without resampling is refused with its own code; nothing is guessed from
slice location, instance number, slice thickness or file name (rules R8 to R16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from ctnode.ct.grid import FloatArray, Grid
from ctnode.words import Issue, Refusal, Severity


@dataclass(frozen=True, eq=False, slots=True)
class Placement:
    """The order of the slices and the grid they form.

    Parameters
    ----------
    order
        Index into the given positions for each slice of the grid, ascending along the normal.
    grid
        Its affine is orthogonal, in LPS millimetres.
    issues
        What was noticed and left as it is.
    """

    order: tuple[int, ...]
    grid: Grid
    issues: tuple[Issue, ...]


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
    regularity_mm: float = 0.1,
    regularity_part: float = 0.1,
    tilt_degrees: float = 0.1,
    drift_pixels: float = 0.5,
    rounding_mm: float = 0.05,
    exact_drift_mm: float = 0.01,
    least_slices: int = 3,
) -> Placement:
    """Order the slices and return the grid on which they lie.

    Parameters
    ----------
    orientation
        Six cosines of ImageOrientationPatient.
    positions_mm
        ``(n, 3)`` ImagePositionPatient, LPS, in any order, no two alike.
    pixel_spacing_mm
        PixelSpacing: (distance of rows, distance of columns).
    regularity_mm, regularity_part
        A slice may be this far from its place: the smaller of millimetres and part of the spacing (rule R13).
    tilt_degrees, drift_pixels
        Largest angle between the line of positions and the normal, and largest drift in the plane over the whole
        stack, that is not a tilt (rule R12).
    rounding_mm
        A drift that positions rounded to 0.1 mm can feign; no angle is read from less.
    exact_drift_mm
        Drift that is noted.
    least_slices
        With fewer slices nothing shows whether one is missing between them.

    Raises
    ------
    Refusal
        Codes ``BAD_ORIENTATION``, ``BAD_SPACING``, ``SINGLE_SLICE``, ``TOO_FEW_SLICES``, ``SAME_POSITION``, ``TILT``,
        ``CURVED``, ``MISSING_SLICES``, ``UNEQUAL_SPACING``.
    """
    frame_axes = axes(orientation)
    if min(pixel_spacing_mm) <= 0:
        raise Refusal("PixelSpacing is not positive", code="BAD_SPACING")
    count = len(positions_mm)
    if count == 1:
        raise Refusal("one slice alone has no spacing", code="SINGLE_SLICE")
    if count < least_slices:
        raise Refusal(f"{count} slices do not show whether one is missing between them", code="TOO_FEW_SLICES")
    depths = positions_mm @ frame_axes[2]
    order = np.argsort(depths, kind="stable")
    depths, ordered = depths[order], positions_mm[order]
    gaps = np.diff(depths)
    step_mm = float(depths[-1] - depths[0]) / (count - 1)
    if gaps.min() <= 1e-3 * step_mm or step_mm <= 0:
        raise Refusal("two slices share one position along the normal", code="SAME_POSITION")
    issues = _check_line(
        ordered, depths, frame_axes[2],
        tilt_degrees=tilt_degrees, drift_mm=drift_pixels * min(pixel_spacing_mm), rounding_mm=rounding_mm,
        exact_drift_mm=exact_drift_mm,
    )  # fmt: skip
    offsets = depths - (depths[0] + step_mm * np.arange(count))
    if np.abs(offsets).max() > min(regularity_mm, regularity_part * step_mm):
        _refuse_irregular(gaps)
    affine = np.eye(4)
    affine[:3, 0] = frame_axes[0] * pixel_spacing_mm[1]
    affine[:3, 1] = frame_axes[1] * pixel_spacing_mm[0]
    affine[:3, 2] = frame_axes[2] * step_mm
    affine[:3, 3] = ordered[0]
    return Placement(tuple(int(index) for index in order), Grid((count, rows, columns), affine), issues)


def _check_line(
    positions_mm: FloatArray,
    depths: FloatArray,
    normal: FloatArray,
    *,
    tilt_degrees: float,
    drift_mm: float,
    rounding_mm: float,
    exact_drift_mm: float,
) -> tuple[Issue, ...]:
    """Compare the positions with a line along the normal; GantryDetectorTilt is never asked (rule R12)."""
    in_plane = positions_mm - np.outer(depths, normal)
    centred = depths - depths.mean()
    drift_per_mm = centred @ (in_plane - in_plane.mean(axis=0)) / (centred @ centred)
    line = in_plane.mean(axis=0) + np.outer(centred, drift_per_mm)
    angle = float(np.degrees(np.arctan(np.linalg.norm(drift_per_mm))))
    total_mm = float(np.linalg.norm(drift_per_mm) * (depths[-1] - depths[0]))
    bend_mm = float(np.linalg.norm(in_plane - line, axis=1).max())
    if bend_mm > drift_mm:
        raise Refusal(f"the slices do not lie on a straight line: {bend_mm:.2f} mm beside it", code="CURVED")
    if (angle > tilt_degrees and total_mm > rounding_mm) or total_mm > drift_mm:
        raise Refusal(f"the stack is tilted by {angle:.2f} degrees against its slices", code="TILT")
    worst_mm = float(np.linalg.norm(in_plane - in_plane[0], axis=1).max())
    if worst_mm > exact_drift_mm:
        text = f"slices drift by up to {worst_mm:.3f} mm in their plane, less than half a pixel; left as they are"
        return (Issue("SMALL_DRIFT", Severity.INFO, text),)
    return ()


def _refuse_irregular(gaps_mm: FloatArray, *, integer_part: float = 0.1) -> NoReturn:
    """Tell missing slices (gaps at whole multiples of the usual step, rule R14) from unequal spacing (R15)."""
    usual_mm = float(np.median(gaps_mm))
    multiples = gaps_mm / usual_mm
    whole = np.rint(multiples)
    if (np.abs(multiples - whole) <= integer_part).all() and whole.max() > 1 and (whole == 1).mean() >= 0.5:
        after = np.flatnonzero(whole > 1)
        missing = int((whole[after] - 1).sum())
        raise Refusal(
            f"{missing} of {len(gaps_mm) + 1 + missing} slices are missing, after slice "
            + ", ".join(str(int(index)) for index in after),
            code="MISSING_SLICES",
        )
    raise Refusal(
        f"the spacing of slices varies from {gaps_mm.min():.3f} to {gaps_mm.max():.3f} mm", code="UNEQUAL_SPACING"
    )
