"""From records to HTML: one Jinja2 environment that escapes everything, and the words for numbers and times."""

from __future__ import annotations

import math
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jinja2
from pydicom.uid import UID
from starlette.requests import Request
from starlette.responses import HTMLResponse

from ctnode import __version__
from ctnode.archive.timeline import iso
from ctnode.flow.why import ranges
from ctnode.web.context import WebNode
from ctnode.web.guard import principal_of

TEMPLATES: Final = Path(__file__).parent / "templates"
_SAID: Final = re.compile(r"(revision|job|delivery) [0-9]+(: revision [0-9]+)? (is [a-z ]+|waits no longer)")
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


class Renderer:
    """Renders the pages of one node."""

    def __init__(self, node: WebNode) -> None:
        self._node = node
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(
            when=when, iso=iso, bytes=in_bytes, number=number, ago=ago, uid_name=uid_name, lasted=lasted, ranges=ranges
        )
        self._templates.globals.update(version=__version__, ae_title=node.config.node.ae_title)

    def page(self, request: Request, template: str, **values: Any) -> HTMLResponse:
        """Return a page; ``who`` is who asks, None on the public ones."""
        who = principal_of(request)
        text = self._templates.get_template(template).render(
            who=who,
            path=request.url.path,
            here=f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path,
            said=_said(request.query_params.get("said", "")),
            is_open=self._node.users.is_open,
            has_viewer=any(getattr(route, "path", "").startswith("/viewer") for route in request.app.routes),
            **values,
        )
        return HTMLResponse(text)


def _said(text: str) -> str:
    """Return what an action answered; nobody else's words are put into the page by a link."""
    return text if _SAID.fullmatch(text) else ""


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
