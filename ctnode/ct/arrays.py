"""Hounsfield units as networks want them; for training in the same way as ``ctnode process`` writes them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

CLIP_HU: Final = (-1000.0, 400.0)
MEAN: Final = 0.25


def normalise(
    voxels: npt.ArrayLike,
    *,
    clip_hu: tuple[float, float] = CLIP_HU,
    mean: float = MEAN,
    dtype: npt.DTypeLike = np.float32,
) -> npt.NDArray[Any]:
    """Return ``voxels`` cut to ``clip_hu``, scaled to [0, 1], less ``mean``.

    The result is never to be stored in place of HU: what was cut is lost.

    Parameters
    ----------
    voxels
        HU of any shape and numeric dtype; not changed. NaN stays NaN.
    clip_hu
        The HU that become 0 and 1.
    mean
        Subtracted at the end; 0.25 is about the mean of chest CT after the scaling.
    dtype
        float16, float32 or float64; the arithmetic is float32, or float64 for that dtype.

    Returns
    -------
    ndarray
        A new array of the shape of ``voxels``.

    Raises
    ------
    ValueError
        If the second of ``clip_hu`` is not above the first, or ``dtype`` is no floating type.

    Examples
    --------
    >>> from ctnode.ct import normalise
    >>> normalise([-2000, -1000, -300, 400, 3000]).tolist()
    [-0.25, -0.25, 0.25, 0.75, 0.75]
    """
    low, high = clip_hu
    wanted = np.dtype(dtype)
    if wanted.kind != "f":
        raise ValueError(f"{wanted} is no floating type")
    if not low < high:
        raise ValueError(f"{clip_hu}: the second has to be above the first")
    work: npt.NDArray[np.floating[Any]] = np.array(voxels, dtype=np.float64 if wanted.itemsize > 4 else np.float32)
    np.clip(work, low, high, out=work)
    work -= low
    work /= high - low
    work -= mean
    return work.astype(wanted, copy=False)
