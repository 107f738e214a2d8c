"""From records to HTML: one Jinja2 environment that escapes everything."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse

from ctnode import __version__
from ctnode.archive.timeline import iso
from ctnode.flow.why import ranges
from ctnode.web import marks
from ctnode.web.context import WebNode
from ctnode.web.guard import principal_of
from ctnode.web.wording import ago, in_bytes, lasted, number, uid_name, when

TEMPLATES: Final = Path(__file__).parent / "templates"
_SAID: Final = re.compile(r"(revision|job|delivery) [0-9]+(: revision [0-9]+)? (is [a-z ]+|waits no longer)")


@cache
def _environment() -> jinja2.Environment:
    """Return the templates of this process, each compiled once; they do not change while it runs."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters.update(
        when=when, iso=iso, bytes=in_bytes, number=number, ago=ago, uid_name=uid_name, lasted=lasted, ranges=ranges
    )
    made.globals.update(version=__version__, m=marks)
    return made


def prepare() -> None:
    """Compile all templates, so that nobody who looks has to wait for it."""
    for name in _environment().list_templates():
        _environment().get_template(name)


class Renderer:
    """Renders the pages of one node."""

    def __init__(self, node: WebNode) -> None:
        self._node = node

    def page(self, request: Request, template: str, **values: Any) -> HTMLResponse:
        """Return a page; ``who`` is who asks, None on the public ones."""
        who = principal_of(request)
        found = _environment().get_template(template)
        text = found.render(
            ae_title=self._node.config.node.ae_title,
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
