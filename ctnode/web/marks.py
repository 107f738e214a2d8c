"""The small marks of the pages: icons, states, shortened UIDs, times; made once for a word, as lists repeat them."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from markupsafe import Markup

from ctnode.archive.timeline import iso
from ctnode.web.wording import when

_SHAPES: Final = {
    "RECEIVING": ("dashed", "busy"), "COMPLETE": ("ring", "busy"), "QUEUED": ("clock", "busy"),
    "PROCESSING": ("half", "busy"), "DONE": ("check", "good"), "FAILED": ("cross", "bad"), "KEPT": ("box", "calm"),
    "SUPERSEDED": ("dash", "calm"), "RUNNING": ("half", "busy"), "RETRY": ("clock", "warn"), "DEAD": ("cross", "bad"),
    "CANCELLED": ("dash", "calm"), "PENDING": ("ring", "busy"), "SENDING": ("half", "busy"), "SENT": ("check", "good"),
    "CONFIRMED": ("check", "good"), "LIKELY": ("ring", "calm"), "SUSPECT": ("alert", "warn"),
    "EXACT": ("check", "good"), "REPAIRED": ("wrench", "good"), "REFUSED": ("cross", "bad"), "OK": ("check", "good"),
    "TRUNCATED": ("alert", "warn"), "NO_LUNGS": ("dash", "calm"), "NOT_RUN": ("dash", "calm"),
    "HELD": ("pause", "warn"), "well": ("check", "good"), "failing": ("cross", "bad"), "late": ("alert", "warn"),
    "paused": ("pause", "warn"), "ready": ("check", "good"), "starting": ("dashed", "busy"),
    "draining": ("dash", "warn"), "refuse": ("cross", "bad"), "warn": ("alert", "warn"), "repair": ("wrench", "calm"),
    "note": ("ring", "calm"), "error": ("cross", "bad"), "warning": ("alert", "warn"), "info": ("ring", "calm"),
}  # fmt: skip
_OTHER: Final = ("ring", "calm")


@lru_cache(maxsize=64)
def icon(shape: str) -> Markup:
    """Return an icon out of the sprite of the page."""
    return Markup('<svg class="i" aria-hidden="true"><use href="#i-{}"/></svg>').format(shape)


@lru_cache(maxsize=256)
def state(word: str, label: str = "") -> Markup:
    """Return a state with its icon, so that no colour is needed to tell it."""
    shape, tone = _SHAPES.get(str(word), _OTHER)
    shown = label or ("OK" if word == "OK" else str(word).replace("_", " ").capitalize())
    return Markup('<span class="state {}">{}{}</span>').format(tone, icon(shape), shown)


def uid(text: object, size: int = 22) -> Markup:
    """Return a UID, shortened in its middle; the whole of it stands in the title."""
    whole = str(text)
    shown = f"{whole[:8]}…{whole[9 - size :]}" if len(whole) > size + 4 else whole
    return Markup('<span class="uid" title="{}">{}</span>').format(whole, shown)


def clock(at: float | None) -> Markup:
    """Return a time as people read it; the exact one stands in the title."""
    exact = iso(at)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(exact, exact, when(at))
