"""Numbers of the lungs: volume, density, emphysema and mass, for each lung and both together.

Definitions follow the COPDGene practice (PMC4067052, PMC4161463): vessels count, trachea and main bronchi do not, and
"LAA-950" is the share of voxels at or below -950 HU. Density numbers depend strongly on slice thickness, kernel and
breath-hold; nothing here decides whether a scan was made in inspiration, so no number is called air trapping. Each
formula stands in docs/measurements.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from ctnode.ct.coarse import LEFT, RIGHT
from ctnode.ct.grid import Volume
from ctnode.ct.kernels import is_sharp, kernel_of
from ctnode.ct.lungs import WITHOUT_MASK, Lungs
from ctnode.words import LungStatus

_LEVELS: Final = 65536
_LOWEST_HU: Final = -32768
# The histogram that is written.
HISTOGRAM_HU: Final = (-1024, 200)
# Thicker slices average emphysema away; densitometry is defined on thin ones.
THICKEST_SLICE_MM: Final = 1.5

_Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LungNumbers:
    """The numbers of one lung or of both.

    Parameters
    ----------
    status
        Of the mask they come from, so that no number can be read without it.
    volume_ml
        Voxels of the mask times the voxel volume.
    mean_hu, median_hu, sd_hu
        Of all voxels of the mask, vessels included; the deviation is that of the whole population.
    skewness, kurtosis
        Third and fourth standardised moments of the population; 3 is subtracted from the fourth. 0 without spread.
    perc5_hu to perc95_hu
        The lowest HU at or below which so many percent of the voxels lie.
    laa950_pct, laa910_pct, laa856_pct
        Share of voxels at or below -950, -910, -856 HU.
    haa_pct
        Share of voxels from -600 to -250 HU, both included.
    mass_g
        Sum over the voxels of (HU + 1000) / 1000 g/ml times their volume, never below 0 for a voxel.
    """

    status: LungStatus
    volume_ml: float
    mean_hu: float
    median_hu: float
    sd_hu: float
    skewness: float
    kurtosis: float
    perc5_hu: float
    perc10_hu: float
    perc15_hu: float
    perc50_hu: float
    perc85_hu: float
    perc95_hu: float
    laa950_pct: float
    laa910_pct: float
    laa856_pct: float
    haa_pct: float
    mass_g: float


@dataclass(frozen=True, eq=False, slots=True)
class Histogram:
    """Voxels of each lung by HU, from -1024 to 200 in steps of 1.

    Parameters
    ----------
    status
        Of the mask.
    right, left
        ``(1225,)`` int64.
    below, above
        Voxels of both lungs under the first and over the last step.
    """

    status: LungStatus
    right: _Counts
    left: _Counts
    below: int
    above: int

    def as_json(self) -> dict[str, object]:
        """Return the mapping that is written as ``histogram.json``."""
        return {
            "status": str(self.status),
            "first_hu": HISTOGRAM_HU[0],
            "step_hu": 1,
            "right": self.right.tolist(),
            "left": self.left.tolist(),
            "both": (self.right + self.left).tolist(),
            "below": self.below,
            "above": self.above,
        }

    def as_csv(self) -> str:
        """Return the table that is written as ``histogram.csv``: one line a HU, the status in each."""
        rows = zip(range(HISTOGRAM_HU[0], HISTOGRAM_HU[1] + 1), self.right, self.left, strict=True)
        lines = [f"{hu},{right},{left},{right + left},{self.status}" for hu, right, left in rows]
        return "\n".join(["hu,right,left,both,status", *lines, ""])


@dataclass(frozen=True, slots=True)
class Measurements:
    """What ``measurements.json`` holds; None in place of numbers where there is no lung to measure."""

    status: LungStatus
    reasons: tuple[str, ...]
    quality: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    right: LungNumbers | None = None
    left: LungNumbers | None = None
    both: LungNumbers | None = None
    histogram: Histogram | None = field(default=None, compare=False)

    def as_json(self) -> dict[str, object]:
        """Return the mapping that is written as ``measurements.json``; a lung without numbers is null."""
        numbers = {"right": self.right, "left": self.left, "both": self.both}
        return {
            "status": str(self.status),
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            "quality": {name: None if math.isnan(value) else round(value, 4) for name, value in self.quality.items()},
            **{
                name: None if found is None else {**asdict(found), "status": str(found.status)}
                for name, found in numbers.items()
            },
        }


def measure(volume: Volume, lungs: Lungs) -> Measurements:
    """Return the numbers of ``lungs`` in ``volume``.

    Without lungs, or where the values are not HU, there are no numbers: status and reasons alone. Values of a float32
    volume are rounded to 1 HU.

    Raises
    ------
    ValueError
        If the mask is not on the grid of the volume.
    """
    if lungs.status in WITHOUT_MASK or volume.unit != "HU":
        return Measurements(lungs.status, lungs.reasons, lungs.quality)
    if lungs.labels.shape != volume.voxels.shape:
        raise ValueError(f"the mask {lungs.labels.shape} is not on the grid of the volume {volume.voxels.shape}")
    counts = {label: np.zeros(_LEVELS, dtype=np.int64) for label in (RIGHT, LEFT)}
    for values, labels in zip(volume.voxels, lungs.labels, strict=True):
        for label, histogram in counts.items():
            inside = values[labels == label]
            if inside.size:
                levels = np.clip(np.rint(inside), _LOWEST_HU, -_LOWEST_HU - 1).astype(np.int32) - _LOWEST_HU
                here = np.bincount(levels)
                histogram[: here.size] += here
    right, left = counts[RIGHT], counts[LEFT]
    voxel_ml = volume.grid.voxel_ml
    return Measurements(
        lungs.status,
        lungs.reasons,
        lungs.quality,
        warnings=_warnings(volume),
        right=_numbers(right, voxel_ml, lungs.status),
        left=_numbers(left, voxel_ml, lungs.status),
        both=_numbers(right + left, voxel_ml, lungs.status),
        histogram=_histogram(right, left, lungs.status),
    )


def _warnings(volume: Volume) -> tuple[str, ...]:
    """Return why density numbers of this scan are not those of a thin slice with a soft kernel."""
    slice_mm = volume.grid.spacing_mm[0]
    thickness = volume.technique.get("SliceThickness")
    if isinstance(thickness, (int, float)):
        slice_mm = max(slice_mm, float(thickness))
    warnings = []
    if slice_mm > THICKEST_SLICE_MM:
        warnings.append(
            f"slices of {slice_mm:.2f} mm are thicker than {THICKEST_SLICE_MM} mm: LAA and percentiles are smoothed"
        )
    kernel = kernel_of(volume.technique)
    if is_sharp(kernel):
        warnings.append(f"kernel {kernel} is sharp: LAA and percentiles are widened by noise")
    return tuple(warnings)


def _histogram(right: _Counts, left: _Counts, status: LungStatus) -> Histogram:
    first, last = HISTOGRAM_HU[0] - _LOWEST_HU, HISTOGRAM_HU[1] - _LOWEST_HU
    both = right + left
    return Histogram(
        status,
        right[first : last + 1].copy(),
        left[first : last + 1].copy(),
        below=int(both[:first].sum()),
        above=int(both[last + 1 :].sum()),
    )


def _numbers(histogram: _Counts, voxel_ml: float, status: LungStatus) -> LungNumbers | None:
    """Return the numbers of the voxels counted in ``histogram`` (1 HU wide bins from -32768), or None without any."""
    present = np.flatnonzero(histogram)
    if present.size == 0:
        return None
    counts = histogram[present].astype(np.float64)
    hu = present.astype(np.float64) + _LOWEST_HU
    total, below = float(counts.sum()), np.cumsum(counts)
    mean = float((hu * counts).sum()) / total

    def moment(power: int) -> float:
        return float(((hu - mean) ** power * counts).sum()) / total

    sd = math.sqrt(moment(2))

    def percentile(percent: float) -> float:
        return float(hu[int(np.searchsorted(below, total * percent / 100.0))])

    def share(low: float, high: float) -> float:
        return round(100.0 * float(counts[(hu >= low) & (hu <= high)].sum()) / total, 3)

    return LungNumbers(
        status=status,
        volume_ml=round(total * voxel_ml, 2),
        mean_hu=round(mean, 2),
        median_hu=percentile(50.0),
        sd_hu=round(sd, 2),
        skewness=round(moment(3) / sd**3, 4) if sd > 0.0 else 0.0,
        kurtosis=round(moment(4) / sd**4 - 3.0, 4) if sd > 0.0 else 0.0,
        perc5_hu=percentile(5.0),
        perc10_hu=percentile(10.0),
        perc15_hu=percentile(15.0),
        perc50_hu=percentile(50.0),
        perc85_hu=percentile(85.0),
        perc95_hu=percentile(95.0),
        laa950_pct=share(-np.inf, -950.0),
        laa910_pct=share(-np.inf, -910.0),
        laa856_pct=share(-np.inf, -856.0),
        haa_pct=share(-600.0, -250.0),
        mass_g=round(float((np.maximum(hu + 1000.0, 0.0) / 1000.0 * counts).sum()) * voxel_ml, 2),
    )
