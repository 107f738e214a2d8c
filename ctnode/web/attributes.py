"""Attributes in queries and answers of QIDO-RS: their names, how their values match, how they look in DICOM JSON."""

from __future__ import annotations

import fnmatch
import re
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Final

from pydicom.datadict import dictionary_VR, tag_for_keyword

from ctnode.archive.values import read_values
from ctnode.words import BadInstance

Values = tuple[str | float, ...]

_TAG: Final = re.compile(r"[0-9A-Fa-f]{8}")
_INTEGERS: Final = frozenset({"IS", "US", "SS", "UL", "SL", "UV", "SV"})
_FLOATS: Final = frozenset({"DS", "FL", "FD"})
_RANGES: Final = frozenset({"DA", "TM", "DT"})
# Of what a query can name, only values that the bounded scanner reads: no sequences, no binary ones.
_READABLE: Final = _INTEGERS | _FLOATS | _RANGES | {
    "AE", "AS", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UI", "UR", "UT",
}  # fmt: skip
_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")


def tag_of(name: str) -> int | None:
    """Return the tag of a keyword or of eight hexadecimal digits; None for anything that cannot be asked for."""
    tag = int(name, 16) if _TAG.fullmatch(name) else tag_for_keyword(name) if name else None
    return tag if tag is not None and vr_of(tag) in _READABLE else None


@lru_cache(maxsize=4096)
def vr_of(tag: int) -> str:
    """Return the VR of a tag by the dictionary; '' where it has none."""
    try:
        vr = dictionary_VR(tag)
    except KeyError:
        return ""
    return "US" if vr == "US or SS" else vr


def as_json(tag: int, values: Values) -> dict[str, Any]:
    """Return an attribute as DICOM JSON (PS3.18 F.2)."""
    vr = vr_of(tag)
    made = [one for one in (_value(vr, value) for value in values) if one not in (None, "", {})]
    return {"vr": vr, "Value": made} if made else {"vr": vr}


def _value(vr: str, value: str | float) -> object:
    if vr == "PN":
        groups = zip(_GROUPS, str(value).split("="), strict=False)
        return {group: text for group, text in groups if text}
    if isinstance(value, str) or vr not in _INTEGERS:
        # Numbers that JSON does not know are left out.
        return value if isinstance(value, str) or abs(value) < float("inf") else None
    return int(value) if abs(value) < float("inf") else None


def matches(tag: int, values: Values, wanted: str) -> bool:
    """Return whether one of the values matches (PS3.4 C.2.2.2); an empty text matches everything.

    UIDs and codes match a list, dates and times a range, texts wildcards, names without regard to case.
    """
    if not wanted or set(wanted) == {"*"}:
        return True
    vr = vr_of(tag)
    if vr == "UI":
        return any(str(value) in re.split(r"[,\\]", wanted) for value in values)
    if vr == "CS" and (choices := [one for one in re.split(r"[,\\]", wanted) if one.strip()])[1:]:
        # No code holds a comma; OHIF asks for several modalities in this way.
        return any(matches(tag, values, one.strip()) for one in choices)
    if vr in _RANGES:
        return any(_in_range(str(value), wanted) for value in values)
    if vr in _INTEGERS | _FLOATS:
        return any(_same_number(value, wanted) for value in values)
    if vr == "PN":
        return any(_like(part, wanted) for value in values for part in (str(value), *str(value).split("=")))
    return any(fnmatch.fnmatchcase(str(value), _pattern(wanted)) for value in values)


def _like(name: str, wanted: str) -> bool:
    return fnmatch.fnmatchcase(name.rstrip("^ ").casefold(), _pattern(wanted.rstrip("^ ")).casefold())


def _pattern(wanted: str) -> str:
    # DICOM knows only * and ?.
    return wanted.replace("[", "[[]")


def _same_number(value: str | float, wanted: str) -> bool:
    try:
        return float(value) == float(wanted)
    except ValueError:
        return False


def _in_range(value: str, wanted: str) -> bool:
    low, dash, high = (re.sub(r"[.:]", "", part).strip() for part in wanted.partition("-"))
    plain = re.sub(r"[.:]", "", value)
    if not dash:
        return plain.startswith(low)
    # A shorter limit means all that begins with it: up to 10 o'clock includes 10:59.
    return bool(plain) and (not low or plain >= low) and (not high or plain[: len(high)] <= high)


class Headers:
    """Values out of the headers of stored files, the recently asked ones kept; files of the store never change."""

    def __init__(self, *, kept: int = 20_000) -> None:
        self._most = kept
        self._kept: OrderedDict[tuple[Path, int, frozenset[int]], dict[int, Values]] = OrderedDict()
        self._lock = Lock()

    def read(self, path: Path, tags: frozenset[int]) -> Mapping[int, Values]:
        """Return the values of ``tags`` that a file has; nothing of one that cannot be read."""
        try:
            key = path, path.stat().st_mtime_ns, tags
        except OSError:
            return {}
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        try:
            # An age is shown as it was written, not as a number of years.
            found = read_values(path, {tag: "CS" if vr_of(tag) == "AS" else vr_of(tag) for tag in tags})
        except (BadInstance, OSError):
            found = {}
        with self._lock:
            self._kept[key] = found
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return found
