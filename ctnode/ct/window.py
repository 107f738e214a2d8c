"""Hounsfield units to 8 bit by the window of PS3.3 C.11.2.1.2, through a table of all int16 inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Window:
    """A grey-scale window; ``exact`` chooses LINEAR_EXACT in place of LINEAR."""

    center_hu: float
    width_hu: float
    exact: bool = False


LUNG: Final = Window(-600.0, 1500.0)
MEDIASTINUM: Final = Window(40.0, 400.0)
BONE: Final = Window(400.0, 1800.0)
PRESETS: Final = MappingProxyType({"lung": LUNG, "mediastinum": MEDIASTINUM, "bone": BONE})


def grey(values: npt.NDArray[np.float32] | npt.NDArray[np.float64], window: Window) -> npt.NDArray[np.float64]:
    """Return float64 grey values in 0 to 255 for ``values`` in HU, by the formula of the standard.

    Raises
    ------
    ValueError
        If the width is under 1 (LINEAR) or not positive (LINEAR_EXACT), which PS3.3 C.11.2.1.2 forbids.
    """
    x = np.asarray(values, dtype=np.float64)
    if window.exact:
        if window.width_hu <= 0:
            raise ValueError("a LINEAR_EXACT window needs a width over 0")
        low, high = window.center_hu - window.width_hu / 2, window.center_hu + window.width_hu / 2
        ramp = ((x - window.center_hu) / window.width_hu + 0.5) * 255.0
    else:
        if window.width_hu < 1:
            raise ValueError("a LINEAR window needs a width of at least 1")
        middle, span = window.center_hu - 0.5, window.width_hu - 1
        low, high = middle - span / 2, middle + span / 2
        # A width of 1 is a pure step: every x lies on one side of it, so the ramp is never used.
        ramp = ((x - middle) / (span or 1.0) + 0.5) * 255.0
    grey_values: npt.NDArray[np.float64] = np.where(x <= low, 0.0, np.where(x > high, 255.0, ramp))
    return grey_values


@lru_cache(maxsize=16)
def table(window: Window) -> npt.NDArray[np.uint8]:
    """Return ``(65536,)`` uint8, indexed by int16 HU seen as uint16.

    Halves round up, which the standard leaves open.
    """
    inputs = np.arange(65536, dtype=np.uint16).view(np.int16)
    entries = np.floor(grey(inputs.astype(np.float64), window) + 0.5).astype(np.uint8)
    entries.flags.writeable = False
    return entries


def apply(values: npt.NDArray[np.int16] | npt.NDArray[np.float32], window: Window) -> npt.NDArray[np.uint8]:
    """Return uint8 of the shape of ``values`` (HU); float32 values go through the formula, int16 through the table."""
    if values.dtype == np.int16:
        return table(window)[values.view(np.uint16)]
    return np.floor(grey(values.astype(np.float32, copy=False), window) + 0.5).astype(np.uint8)
