"""Whether the numbers look like Hounsfield units: air near -1000 and soft tissue near 0, where both are seen (R22)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_Voxels = npt.NDArray[np.int16] | npt.NDArray[np.float32]


def suspicion(
    voxels: _Voxels,
    padding: npt.NDArray[np.bool_] | None,
    *,
    bin_hu: float = 20.0,
    peak_hu: float = 60.0,
    air_factor: float = 2.0,
    tissue_factor: float = 1.2,
    least_part: float = 0.02,
    contrast_hu: tuple[float, float] = (700.0, 1400.0),
    air_hu: tuple[float, float] = (-1100.0, -900.0),
    tissue_hu: tuple[float, float] = (-150.0, 150.0),
    samples: int = 1 << 20,
) -> str:
    """Return what is odd about the scale of ``voxels``, '' if nothing is, or if nothing can be told.

    A body in air has two peaks about 1000 HU apart, whatever the offset; only where both are found are their places
    judged. A head coil, a phantom of water or a cut-out of an organ gives no verdict.

    Parameters
    ----------
    voxels
        ``(z, y, x)``; about ``samples`` of them are looked at.
    padding
        ``(z, y, x)`` bool or None.
    bin_hu, peak_hu
        Width of the bins, and half width of a peak.
    air_factor, tissue_factor, least_part
        A peak holds this many times its share of a flat histogram, and this part of all voxels.
    contrast_hu
        Least and largest distance of the two peaks that counts as air and soft tissue.
    air_hu, tissue_hu
        Where they belong.
    """
    step = max(1, round((voxels.size / samples) ** (1 / 3)))
    seen = voxels[::step, ::step, ::step]
    values = seen[~padding[::step, ::step, ::step]] if padding is not None else seen.ravel()
    values = values[np.abs(values) < 4096].astype(np.float32)
    if values.size < 1000:
        return ""
    counts, edges = np.histogram(values, bins=np.arange(-4100.0, 4100.0 + bin_hu, bin_hu))
    centres = (edges[:-1] + edges[1:]) / 2
    spread = max(float(np.ptp(np.percentile(values, (0.5, 99.5)))), bin_hu)

    def peak(inside: npt.NDArray[np.bool_], factor: float) -> float | None:
        if not counts[inside].any():
            return None
        place = float(centres[inside][np.argmax(counts[inside])])
        share = float(counts[np.abs(centres - place) <= peak_hu].sum()) / values.size
        flat = min(1.0, (2 * peak_hu + bin_hu) / spread)
        return place if share >= max(least_part, min(0.5, factor * flat)) else None

    low = float(np.percentile(values, 0.5))
    air = peak(centres <= low + 2 * peak_hu, air_factor)
    tissue = None
    if air is not None:
        between = (centres >= air + contrast_hu[0]) & (centres <= air + contrast_hu[1])
        tissue = peak(between, tissue_factor)
    if air is None or tissue is None:
        return ""
    if air_hu[0] <= air <= air_hu[1] and tissue_hu[0] <= tissue <= tissue_hu[1]:
        return ""
    return f"air seems to lie at {air:.0f} and soft tissue at {tissue:.0f}, which is not the scale of Hounsfield units"
