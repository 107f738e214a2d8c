"""The words of the pages for numbers and times."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import Final

from pydicom.uid import UID

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def when(seconds: float | None) -> str:
    """Return a time as people of this host read it: today without its date."""
    if seconds is None:
        return ""
    at = datetime.fromtimestamp(seconds, UTC).astimezone()
    is_today = at.date() == datetime.now(UTC).astimezone().date()
    return at.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M")


def ago(seconds: float | None) -> str:
    """Return how long ago a time is."""
    return "" if seconds is None else lasted(max(0.0, time.time() - seconds))


def lasted(seconds: float) -> str:
    """Return a span in its largest fitting unit."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def in_bytes(count: float) -> str:
    """Return a number of bytes in decimal units."""
    place = min(len(_UNITS) - 1, int(math.log(count, 1000))) if count >= 1 else 0
    value = count / 1000.0**place
    return f"{value:.0f} {_UNITS[place]}" if place == 0 or value >= 100 else f"{value:.1f} {_UNITS[place]}"


def number(value: float) -> str:
    """Return a number with thin spaces between thousands."""
    shown = f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
    return shown.replace(",", "\N{NARROW NO-BREAK SPACE}")


def uid_name(uid: str) -> str:
    """Return the standard's name of a UID, and the UID itself where there is none."""
    return str(UID(uid).name)
