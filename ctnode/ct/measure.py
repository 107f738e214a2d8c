"""Numbers of the lungs: volume, density, emphysema and mass, for each lung and both together.

Definitions follow the COPDGene practice (PMC4067052, PMC4161463): vessels count, trachea and main bronchi do not, and
"LAA-950" is the share of voxels at or below -950 HU. Density numbers depend strongly on slice thickness, kernel and
breath-hold; nothing here decides whether a scan was made in inspiration, so no number is called air trapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ctnode.ct.coarse import LEFT, RIGHT
from ctnode.ct.grid import Volume
from ctnode.ct.lungs import WITHOUT_MASK, Lungs
from ctnode.words import LungStatus

_LEVELS: Final = 65536
_LOWEST_HU: Final = -32768


@dataclass(frozen=True, slots=True)
class LungNumbers:
    """The numbers of one lung or of both.

    Parameters
    ----------
    volume_ml
        Voxels of the mask times the voxel volume.
    mean_hu, median_hu, sd_hu
        Of all voxels of the mask, vessels included.
    perc10_hu, perc15_hu
        The lowest HU at or below which 10 % (15 %) of the voxels lie.
    laa950_pct, laa910_pct, laa856_pct
        Share of voxels at or below -950, -910, -856 HU.
    haa_pct
        Share of voxels from -600 to -250 HU.
    mass_g
        Sum over the voxels of (HU + 1000) / 1000 g/ml times their volume, never below 0 for a voxel.
    """

    volume_ml: float
    mean_hu: float
    median_hu: float
    sd_hu: float
    perc10_hu: float
    perc15_hu: float
    laa950_pct: float
    laa910_pct: float
    laa856_pct: float
    haa_pct: float
    mass_g: float


@dataclass(frozen=True, slots=True)
class Measurements:
    """What ``measurements.json`` holds; None in place of numbers where there is no lung to measure."""

    status: LungStatus
    reasons: tuple[str, ...]
    quality: Mapping[str, float]
    right: LungNumbers | None = None
    left: LungNumbers | None = None
    both: LungNumbers | None = None

    def as_json(self) -> dict[str, object]:
        """Return the mapping that is written as ``measurements.json``; a lung without numbers is null."""
        numbers = {"right": self.right, "left": self.left, "both": self.both}
        return {
            "status": str(self.status),
            "reasons": list(self.reasons),
            "quality": {name: round(value, 4) for name, value in self.quality.items()},
            **{name: None if found is None else asdict(found) for name, found in numbers.items()},
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
    histograms = {label: np.zeros(_LEVELS, dtype=np.int64) for label in (RIGHT, LEFT)}
    for values, labels in zip(volume.voxels, lungs.labels, strict=True):
        for label, histogram in histograms.items():
            inside = values[labels == label]
            if inside.size:
                levels = np.clip(np.rint(inside), _LOWEST_HU, -_LOWEST_HU - 1).astype(np.int32) - _LOWEST_HU
                counts = np.bincount(levels)
                histogram[: counts.size] += counts
    right, left = histograms[RIGHT], histograms[LEFT]
    voxel_ml = volume.grid.voxel_ml
    return Measurements(
        lungs.status,
        lungs.reasons,
        lungs.quality,
        right=_numbers(right, voxel_ml),
        left=_numbers(left, voxel_ml),
        both=_numbers(right + left, voxel_ml),
    )


def _numbers(histogram: npt.NDArray[np.int64], voxel_ml: float) -> LungNumbers | None:
    """Return the numbers of the voxels counted in ``histogram`` (1 HU wide bins from -32768), or None without any."""
    present = np.flatnonzero(histogram)
    if present.size == 0:
        return None
    counts = histogram[present].astype(np.float64)
    hu = present.astype(np.float64) + _LOWEST_HU
    total, below = float(counts.sum()), np.cumsum(counts)
    mean = float((hu * counts).sum()) / total
    variance = float(((hu - mean) ** 2 * counts).sum()) / total

    def percentile(percent: float) -> float:
        return float(hu[int(np.searchsorted(below, total * percent / 100.0))])

    def share(low: float, high: float) -> float:
        return round(100.0 * float(counts[(hu >= low) & (hu <= high)].sum()) / total, 3)

    return LungNumbers(
        volume_ml=round(total * voxel_ml, 2),
        mean_hu=round(mean, 2),
        median_hu=percentile(50.0),
        sd_hu=round(float(np.sqrt(variance)), 2),
        perc10_hu=percentile(10.0),
        perc15_hu=percentile(15.0),
        laa950_pct=share(-np.inf, -950.0),
        laa910_pct=share(-np.inf, -910.0),
        laa856_pct=share(-np.inf, -856.0),
        haa_pct=share(-600.0, -250.0),
        mass_g=round(float((np.maximum(hu + 1000.0, 0.0) / 1000.0 * counts).sum()) * voxel_ml, 2),
    )
