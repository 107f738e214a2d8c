"""Values of any top-level attribute of a file of the store, read with the bounded scanner and never a full parser."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

from ctnode.archive import elements
from ctnode.archive.header import read_meta
from ctnode.words import BadInstance

_CHARACTER_SET: Final = 0x00080005
_BINARY: Final[Mapping[str, str]] = {
    "US": "H", "SS": "h", "UL": "L", "SL": "l", "UV": "Q", "SV": "q", "FL": "f", "FD": "d",
}  # fmt: skip
# Texts that may hold other characters than those of the default repertoire (PS3.5 6.1.2.3).
_EXTENDED: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_SINGLE: Final = frozenset({"LT", "ST", "UT", "UR"})
_DELIMITERS: Final = {ord(one) for one in "\\^="}
_FIRST_LOOK_BYTES: Final = 1 << 18
_YEARS: Final = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


def read_values(path: Path, wanted: Mapping[int, str]) -> dict[int, tuple[str | float, ...]]:
    """Return the values of the wanted attributes that the file has.

    Parameters
    ----------
    path
        A Part 10 file.
    wanted
        VR by tag (``group << 16 | element``).

    Returns
    -------
    dict
        Texts without padding, numbers as float, ages in years; what cannot be read is left out.

    Raises
    ------
    BadInstance
        If the file cannot be scanned.
    OSError
        If it cannot be read.
    """
    with path.open("rb") as file:
        try:
            found, order = _scanned(file.read(_FIRST_LOOK_BYTES), {_CHARACTER_SET, *wanted}, whole=False)
        except elements.ShortBuffer:
            file.seek(0)
            found, order = _scanned(file.read(), {_CHARACTER_SET, *wanted}, whole=True)
    encodings = found.get(_CHARACTER_SET, b"").decode("latin-1")
    return {tag: _decoded(found[tag], vr, order, encodings) for tag, vr in wanted.items() if tag in found}


def _scanned(data: bytes, wanted: AbstractSet[int], *, whole: bool) -> tuple[dict[int, bytes], str]:
    """Return raw values by tag, and their byte order."""
    meta = read_meta(data)
    if meta is None:
        raise BadInstance("the file has no preamble")
    start = meta.dataset_start
    if meta.transfer_syntax == elements.DEFLATED_LITTLE:
        if not whole:
            raise elements.ShortBuffer("what is deflated is read whole")
        data, start = elements.inflate(data[start:]), 0
    found = elements.scan(data, meta.transfer_syntax, wanted, start=start, whole=whole)
    return found, ">" if meta.transfer_syntax == elements.EXPLICIT_BIG else "<"


def _decoded(raw: bytes, vr: str, order: str, encodings: str) -> tuple[str | float, ...]:
    if vr in _BINARY:
        size = struct.calcsize("<" + _BINARY[vr])
        count = len(raw) // size
        return tuple(float(one) for one in struct.unpack_from(f"{order}{count}{_BINARY[vr]}", raw))
    text = _text(raw, encodings if vr in _EXTENDED else "")
    parts = [text] if vr in _SINGLE else text.split("\\")
    parts = [part.strip(" \0") for part in parts]
    if vr in {"DS", "IS", "AS"}:
        numbers = [_years(part) if vr == "AS" else _number(part) for part in parts]
        return tuple(number if number is not None else "" for number in numbers)
    return tuple(parts)


def _text(raw: bytes, encodings: str) -> str:
    if not encodings.strip(" \0"):
        return raw.decode("latin-1")
    from pydicom.charset import convert_encodings, decode_bytes

    names = [part.strip(" \0") for part in encodings.split("\\")]
    with warnings.catch_warnings():
        # What pydicom tells of odd character sets is the sender's affair; it quotes values.
        warnings.simplefilter("ignore")
        try:
            return decode_bytes(raw, convert_encodings(names), _DELIMITERS)
        except (LookupError, ValueError):
            return raw.decode("latin-1")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _years(text: str) -> float | None:
    number = _number(text[:-1]) if text[-1:] in _YEARS else None
    return None if number is None else number * _YEARS[text[-1]]
