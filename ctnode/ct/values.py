"""Stored values to the values of a volume, one frame at a time: bits, padding, modality transform (R19 to R23)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from ctnode.ct.dataset import first_item, numbers, readable
from ctnode.ct.decode import Stored, stored_values
from ctnode.ct.source import Frame, attributes, read_header
from ctnode.words import Refusal

PADDING_HU: Final = -1024

Mask = npt.NDArray[np.bool_]
_Table = npt.NDArray[np.int32]


class DoesNotFit(Exception):
    """A value of this frame does not fit int16; the whole volume becomes float32."""


def check_modality(frame: Frame) -> None:
    """Raise a refusal with code ``NO_RESCALE`` unless the header says what a stored value means."""
    if not frame.has_lut and (frame.slope is None or frame.intercept is None or frame.slope == 0):
        raise Refusal(f"{frame.name} has no RescaleSlope and RescaleIntercept that make sense", code="NO_RESCALE")


def is_whole(frame: Frame) -> bool:
    """Return whether the modality transform gives whole numbers."""
    return frame.has_lut or (float(frame.slope or 0).is_integer() and float(frame.intercept or 0).is_integer())


def significant_bits(raw: Stored, frame: Frame) -> Stored:
    """Return the values of BitsStored bits under HighBit, sign-extended; the other bits mean nothing (PS3.5 8.1.1)."""
    above = 15 - frame.high_bit if raw.dtype.itemsize == 2 else 0
    below = frame.high_bit + 1 - frame.bits_stored
    if above == 0 and below == 0:
        return raw
    # Up to the top and down again: an arithmetic shift of int16 brings its sign along, one of uint16 zeros.
    return (raw << above) >> (above + below)


def read_values(
    frame: Frame,
    out: npt.NDArray[np.int16] | npt.NDArray[np.float32],
    decode: Callable[[Frame], Stored] = stored_values,
) -> tuple[Mask | None, frozenset[str]]:
    """Decode ``frame`` into ``out`` and return where it is padding, and codes of what was noticed.

    Parameters
    ----------
    out
        ``(rows, columns)`` int16 or float32; padding becomes -1024.
    decode
        Gives the stored values; ``stored_values`` or what ``parallel.decoder`` gives.

    Returns
    -------
    mask
        ``(rows, columns)`` bool, None where there is no padding at all.
    notes
        Of ``PADDING_ASSUMED``, ``PADDING_INSIDE``.

    Raises
    ------
    DoesNotFit
        If ``out`` is int16 and a value is beyond it.
    Refusal
        Codes of ``decode.stored_values``, and ``MODALITY_LUT``.
    """
    raw = decode(frame)
    stored = significant_bits(raw, frame)
    mask = declared_padding(raw, stored, frame)
    notes: set[str] = set()
    if mask is not None and mask.any() and could_be_measured(frame):
        outside = connected_to_border(mask)
        if not np.array_equal(outside, mask):
            notes.add("PADDING_INSIDE")
        mask = outside
    guess = assumed_padding(stored, frame)
    if guess is not None:
        notes.add("PADDING_ASSUMED")
        mask = guess if mask is None else mask | guess
    if mask is not None and not mask.any():
        mask = None
    if out.dtype == np.int16:
        _as_int16(stored, frame, mask, out.view(np.int16))
    else:
        _as_float32(stored, frame, mask, out.view(np.float32))
    if mask is not None:
        out[mask] = PADDING_HU
    return mask, frozenset(notes)


def declared_padding(raw: Stored, stored: Stored, frame: Frame) -> Mask | None:
    """Return ``(y, x)`` bool where a pixel is padding by its header, compared before any rescale (PS3.3 C.7.5.1.1.2).

    Senders write the value with the wrong sign (63536 for -2000), so it is read modulo 2^16; one that does not fit
    BitsStored is compared with all bits of the pixel.
    """
    if frame.padding is None:
        return None
    value = _wrapped(frame.padding, frame.signed)
    pixels = stored if _is_storable(value, frame) else raw
    mask: Mask
    if frame.padding_limit is None:
        mask = pixels == value
        return mask
    limit = _wrapped(frame.padding_limit, frame.signed)
    mask = (pixels >= min(value, limit)) & (pixels <= max(value, limit))
    return mask


def _wrapped(value: int, signed: bool) -> int:
    value &= 0xFFFF
    return value - 0x10000 if signed and value >= 0x8000 else value


def _is_storable(value: int, frame: Frame) -> bool:
    bits = frame.bits_stored
    return -(1 << bits - 1) <= value < 1 << bits - 1 if frame.signed else 0 <= value < 1 << bits


def could_be_measured(frame: Frame) -> bool:
    """Return whether the declared padding is also a value that the scanner measures, at or over -1024 HU.

    Some scanners declare the value to which they clamp air: what lies inside the patient with it is air (R21).
    """
    assert frame.padding is not None
    ends = [_wrapped(end, frame.signed) for end in (frame.padding, frame.padding_limit) if end is not None]
    if frame.has_lut:
        return True
    hu = [end * float(frame.slope or 0) + float(frame.intercept or 0) for end in ends if _is_storable(end, frame)]
    return any(value >= PADDING_HU for value in hu)


def connected_to_border(mask: Mask) -> Mask:
    """Return the part of ``(y, x)`` ``mask`` that hangs together with the border of the image."""
    # Seldom needed, and slow to import.
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    border = np.zeros(int(labels.max()) + 1, dtype=np.bool_)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        border[edge] = True
    border[0] = False
    outside: Mask = border[labels]
    return outside


def assumed_padding(stored: Stored, frame: Frame) -> Mask | None:
    """Return ``(y, x)`` bool where GE and others fill the outside of the reconstruction circle without saying so.

    The rule (R21): all four corners hold one value, and it is under -1024 HU, which nothing that was measured is.
    """
    if frame.has_lut:
        return None
    assert frame.slope is not None
    assert frame.intercept is not None
    corner = int(stored[0, 0])
    if not (corner == int(stored[0, -1]) == int(stored[-1, 0]) == int(stored[-1, -1])):
        return None
    if corner * frame.slope + frame.intercept >= PADDING_HU or _is_padding(corner, frame):
        return None
    mask: Mask = stored == corner
    return mask


def _is_padding(value: int, frame: Frame) -> bool:
    if frame.padding is None:
        return False
    first = _wrapped(frame.padding, frame.signed)
    last = first if frame.padding_limit is None else _wrapped(frame.padding_limit, frame.signed)
    return min(first, last) <= value <= max(first, last)


def _as_int16(stored: Stored, frame: Frame, mask: Mask | None, out: npt.NDArray[np.int16]) -> None:
    if mask is not None:
        # The first pixel that counts stands in for padding, so that padding cannot decide what fits.
        counted = np.flatnonzero(~mask)
        neutral = stored.flat[counted[0]] if counted.size else stored.dtype.type(0)
        stored = np.where(mask, neutral, stored)
    if frame.has_lut:
        looked_up = _looked_up(stored, frame)
        if looked_up.min() < -32768 or looked_up.max() > 32767:
            raise DoesNotFit
        out[...] = looked_up
        return
    slope, intercept = int(frame.slope or 0), int(frame.intercept or 0)
    ends = int(stored.min()) * slope + intercept, int(stored.max()) * slope + intercept
    if min(ends) < -32768 or max(ends) > 32767:
        raise DoesNotFit
    # Arithmetic modulo 2^16 is exact here: every result was just shown to fit.
    np.multiply(stored.view(np.int16), np.array(slope & 0xFFFF, np.uint16).view(np.int16), out=out)
    np.add(out, np.array(intercept & 0xFFFF, np.uint16).view(np.int16), out=out)


def _as_float32(stored: Stored, frame: Frame, mask: Mask | None, out: npt.NDArray[np.float32]) -> None:
    if frame.has_lut:
        out[...] = _looked_up(stored, frame)
        return
    # One frame at a time in float64: 16-bit values times a decimal slope round once, on the way to float32.
    with np.errstate(over="ignore"):
        out[...] = stored * float(frame.slope or 0) + float(frame.intercept or 0)
    counted = out if mask is None else out[~mask]
    if not np.isfinite(counted).all():
        raise Refusal(f"the rescale of {frame.name} gives values beyond float32", code="NO_RESCALE")


def _looked_up(stored: Stored, frame: Frame) -> _Table:
    """Apply the Modality LUT Sequence, which stands instead of slope and intercept (PS3.3 C.11.1, rule R20)."""
    first, table = _modality_table(frame)
    places = np.clip(stored.astype(np.int32) - first, 0, len(table) - 1)
    return table[places]


def _modality_table(frame: Frame) -> tuple[int, _Table]:
    """Return the first stored value and the entries.

    Entries are unsigned; a count of 0 stands for 65536; 8-bit entries may lie in bytes or in words.
    """
    item = first_item(attributes(read_header(frame), frame.index), "ModalityLUTSequence")
    descriptor = None if item is None else numbers(item, "LUTDescriptor", 3)
    if item is None or descriptor is None or descriptor[2] not in (8, 16):
        raise Refusal(f"the Modality LUT of {frame.name} has no descriptor that makes sense", code="MODALITY_LUT")
    count = int(descriptor[0]) % 65536 or 65536
    data = readable(item, "LUTData")
    if isinstance(data, bytes):
        order = "<" if frame.little_endian else ">"
        is_words = len(data) >= 2 * count
        table = np.frombuffer(data[: 2 * count] if is_words else data[:count], dtype=f"{order}u2" if is_words else "u1")
    else:
        words = numbers(item, "LUTData", count)
        table = np.array([] if words is None else words, dtype=np.float64)
    if len(table) != count:
        raise Refusal(f"the Modality LUT of {frame.name} has not the entries that it promises", code="MODALITY_LUT")
    return _wrapped(int(descriptor[1]), frame.signed), table.astype(np.int64).astype(np.int32) & 0xFFFF
