"""Values to grey by the VOI transforms of PS3.3 C.11.2, to 8 bit through a table of all int16 inputs.

What a data set says about its display is read by ``views_of``: a viewer offers each window and each VOI LUT, and
applies exactly one of them; MONOCHROME1 inverts at the very end and never touches a value in HU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from ctnode.ct.dataset import readable

Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
_FUNCTIONS: Final[tuple[Function, ...]] = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
# Beyond it e^-x is 0 or 1 in every digit that counts, and NumPy would warn.
_LARGEST_EXPONENT: Final = 700.0


@dataclass(frozen=True, slots=True)
class Window:
    """A grey-scale window (PS3.3 C.11.2.1.2); ``inverted`` shows low values bright, as MONOCHROME1 asks for."""

    center_hu: float
    width_hu: float
    function: Function = "LINEAR"
    inverted: bool = False
    name: str = ""

    def grey(self, values: _Floats) -> npt.NDArray[np.float64]:
        """Return float64 grey values in 0 to 255 for ``values``, by the formula of the standard."""
        return grey(values, self)


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A VOI LUT (PS3.3 C.11.2.1.1).

    Parameters
    ----------
    first
        The value that takes the first entry; lower values take it too, higher ones than the last take the last.
    entries
        Unsigned values of ``bits`` bits.
    inverted, name
        As in ``Window``.
    """

    first: int
    entries: tuple[int, ...]
    bits: int
    inverted: bool = False
    name: str = ""

    def grey(self, values: _Floats) -> npt.NDArray[np.float64]:
        """Return float64 grey values in 0 to 255; fractions of a value take the entry of the nearest whole one."""
        last = len(self.entries) - 1
        index = np.clip(np.floor(np.asarray(values, np.float64) + 0.5) - self.first, 0, last).astype(np.intp)
        whole: npt.NDArray[np.float64] = np.array(self.entries, dtype=np.float64)
        shades = whole[index] * (255.0 / ((1 << self.bits) - 1))
        shown: npt.NDArray[np.float64] = 255.0 - shades if self.inverted else shades
        return shown


View = Window | LookupTable

LUNG: Final = Window(-600.0, 1500.0, name="lung")
MEDIASTINUM: Final = Window(40.0, 400.0, name="mediastinum")
BONE: Final = Window(400.0, 1800.0, name="bone")
BRAIN: Final = Window(40.0, 80.0, name="brain")
SOFT_TISSUE: Final = Window(50.0, 350.0, name="soft tissue")
PRESETS: Final = MappingProxyType({window.name: window for window in (LUNG, MEDIASTINUM, BONE, BRAIN, SOFT_TISSUE)})


def grey(values: _Floats, window: Window) -> npt.NDArray[np.float64]:
    """Return float64 grey values in 0 to 255 for ``values`` in the unit of the window, by PS3.3 C.11.2.1.2 and .3.

    Raises
    ------
    ValueError
        If the width is under 1 (LINEAR) or not positive (LINEAR_EXACT, SIGMOID), which the standard forbids, or a
        number is not finite.
    """
    _check(window)
    x = np.asarray(values, dtype=np.float64)
    shades: npt.NDArray[np.float64]
    if window.function == "SIGMOID":
        exponent = -4.0 * (x - window.center_hu) / window.width_hu
        shades = 255.0 / (1.0 + np.exp(np.clip(exponent, -_LARGEST_EXPONENT, _LARGEST_EXPONENT)))
    else:
        if window.function == "LINEAR_EXACT":
            middle, span = window.center_hu, window.width_hu
        else:
            middle, span = window.center_hu - 0.5, window.width_hu - 1
        low, high = middle - span / 2, middle + span / 2
        # A LINEAR width of 1 is a pure step: every x lies on one side of it, so the ramp is never used.
        ramp = ((x - middle) / (span or 1.0) + 0.5) * 255.0
        shades = np.where(x <= low, 0.0, np.where(x > high, 255.0, ramp))
    return 255.0 - shades if window.inverted else shades


def _check(window: Window) -> None:
    if not (math.isfinite(window.center_hu) and math.isfinite(window.width_hu)):
        raise ValueError("a window needs finite center and width")
    if window.function == "LINEAR" and window.width_hu < 1:
        raise ValueError("a LINEAR window needs a width of at least 1")
    if window.width_hu <= 0:
        raise ValueError(f"a {window.function} window needs a width over 0")


@lru_cache(maxsize=16)
def table(view: View) -> npt.NDArray[np.uint8]:
    """Return ``(65536,)`` uint8, indexed by int16 HU seen as uint16.

    Halves round up, which the standard leaves open.
    """
    inputs = np.arange(65536, dtype=np.uint16).view(np.int16)
    entries = np.floor(view.grey(inputs.astype(np.float64)) + 0.5).astype(np.uint8)
    entries.flags.writeable = False
    return entries


def apply(values: npt.NDArray[np.int16] | npt.NDArray[np.float32], view: View) -> npt.NDArray[np.uint8]:
    """Return uint8 of the shape of ``values`` (HU); float32 values go through the formula, int16 through the table."""
    if values.dtype == np.int16:
        return table(view)[values.view(np.uint16)]
    return np.floor(view.grey(values.astype(np.float32, copy=False)) + 0.5).astype(np.uint8)


def views_of(dataset: Dataset) -> tuple[View, ...]:
    """Return what ``dataset`` offers for its display: its windows in their order, then its VOI LUTs.

    A window without a width that the standard allows, or a table that is not whole, is left out. MONOCHROME1 makes
    each of them inverted. Multi-frame objects keep theirs in the item of Frame VOI LUT Sequence (PS3.3 C.7.6.16.2.10).
    """
    inverted = _text(dataset, "PhotometricInterpretation") == "MONOCHROME1"
    named = _text(dataset, "VOILUTFunction") or "LINEAR"
    function = next((known for known in _FUNCTIONS if known == named), None)
    views: list[View] = []
    if function is not None:
        names = _texts(dataset, "WindowCenterWidthExplanation")
        pairs = zip(_numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth"), strict=False)
        for place, (center, width) in enumerate(pairs):
            window = Window(center, width, function, inverted, names[place] if place < len(names) else "")
            try:
                _check(window)
            except ValueError:
                continue
            views.append(window)
    tables = readable(dataset, "VOILUTSequence")
    if isinstance(tables, Sequence):
        views.extend(found for item in tables if (found := _lookup_table(item, inverted)) is not None)
    return tuple(views)


def _lookup_table(item: Dataset, inverted: bool) -> LookupTable | None:
    descriptor = [int(value) for value in _numbers(item, "LUTDescriptor") if math.isfinite(value)]
    if len(descriptor) != 3:
        return None
    count, first, bits = descriptor[0] or 1 << 16, descriptor[1], descriptor[2]
    # Written as US by senders whose PixelRepresentation is 0, also where the values in HU begin below 0.
    first -= 1 << 16 if first >= 1 << 15 else 0
    raw = readable(item, "LUTData")
    if isinstance(raw, (bytes, bytearray)):
        # Entries of 8 bits may come packed two to a word (PS3.3 C.11.2.1.1).
        kind = np.dtype(np.uint8) if len(raw) in (count, count + count % 2) else np.dtype("<u2")
        entries = np.frombuffer(raw[: len(raw) // kind.itemsize * kind.itemsize], dtype=kind).tolist()
    else:
        entries = [int(value) for value in _numbers(item, "LUTData")]
    if not 8 <= bits <= 16 or len(entries) < count or not 0 < count <= 1 << 16:
        return None
    entries = [value & 0xFFFF for value in entries[:count]]
    if max(entries) >= 1 << bits:
        return None
    return LookupTable(first, tuple(entries), bits, inverted, _text(item, "LUTExplanation"))


def _values(dataset: Dataset, keyword: str) -> list[object]:
    value = readable(dataset, keyword)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]


def _numbers(dataset: Dataset, keyword: str) -> list[float]:
    numbers = []
    for value in _values(dataset, keyword):
        try:
            numbers.append(float(value))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            numbers.append(math.nan)
    return numbers


def _texts(dataset: Dataset, keyword: str) -> list[str]:
    return [str(value).strip() for value in _values(dataset, keyword)]


def _text(dataset: Dataset, keyword: str) -> str:
    return "\\".join(_texts(dataset, keyword))
