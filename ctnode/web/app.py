"""The ASGI application of one node: the routes of each room, and around all of them the guard and the shield."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from ctnode.web.actions import action_routes
from ctnode.web.api import api_routes
from ctnode.web.context import WebNode
from ctnode.web.cors import DICOMWEB, Cors
from ctnode.web.dicomweb import dicomweb_routes
from ctnode.web.events import event_routes
from ctnode.web.guard import PROGRAMS, Guard, cookie_secure
from ctnode.web.health import health_routes
from ctnode.web.metrics import metrics_routes
from ctnode.web.pages import page_routes
from ctnode.web.rendering import Renderer
from ctnode.web.shield import BODY_LIMIT_BYTES, Shield
from ctnode.web.upload import FORM_PATH, UPLOAD_PATH
from ctnode.web.viewer import viewer_routes
from ctnode.words import ConfigError, CtnodeError, NotFound, StorageError, Unavailable, WrongState

STATIC: Final = Path(__file__).parent / "static"
_STATUSES: Final[dict[type[CtnodeError], int]] = {
    NotFound: 404, WrongState: 409, StorageError: 507, Unavailable: 503, ConfigError: 500,
}  # fmt: skip


def routes(node: WebNode) -> list[BaseRoute]:
    """Return all routes, one module for each room."""
    renderer = Renderer(node)
    return [
        *health_routes(node),
        *metrics_routes(node),
        *page_routes(node, renderer),
        *event_routes(node),
        *action_routes(node, renderer),
        *api_routes(node),
        Mount(DICOMWEB, routes=dicomweb_routes(node)),
        Mount("/viewer", routes=viewer_routes(node)),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]


def make_app(node: WebNode) -> ASGIApp:
    """Return the application, shielded and guarded."""
    inner = Starlette(
        routes=routes(node),
        middleware=[Middleware(Cors, origins=node.config.web.origins), Middleware(Guard, node=node)],
        exception_handlers={
            HTTPException: _answer(node),
            CtnodeError: _answer(node),
            sqlite3.Error: _answer(node),
            OverflowError: _answer(node),
            ClientDisconnect: _answer(node),
            Exception: _answer(node),
        },
    )
    web = node.config.web

    def body_limit(path: str) -> int:
        return web.max_upload_mb << 20 if path in {UPLOAD_PATH, FORM_PATH} else BODY_LIMIT_BYTES

    return Shield(inner, (web.host, *web.names), body_limit, is_tls=cookie_secure(node))


def _answer(node: WebNode) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return the handler that makes one answer of any error: never a trace, never what was asked for."""
    renderer = Renderer(node)

    async def handle(request: Request, error: Exception) -> Response:
        status, words, hint = _told(error)
        if status == 500:
            node.log.error("request failed", error=type(error).__name__, code=request.method)
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        if request.url.path.startswith(PROGRAMS):
            return JSONResponse({"error": words, "hint": hint}, status, headers)
        answer = renderer.page(request, "error.html", status=status, words=words, hint=hint)
        answer.status_code = status
        answer.headers.update(headers)
        return answer

    return handle


def _told(error: Exception) -> tuple[int, str, str]:
    if isinstance(error, CtnodeError):
        status = next((code for kind, code in _STATUSES.items() if isinstance(error, kind)), 500)
        return status, error.message, error.hint
    if isinstance(error, HTTPException):
        hints = {404: "it may have been removed, or the index was rebuilt", 405: ""}
        return error.status_code, str(error.detail), hints.get(error.status_code, "")
    if isinstance(error, ClientDisconnect):
        # Who is still there to read it was cut off by the shield.
        return 413, "the body is larger than it may be here", ""
    if isinstance(error, OverflowError):
        return 404, "no such number", ""
    if isinstance(error, sqlite3.Error):
        return 503, "the index cannot be read at the moment", "try again; `ctnode doctor` looks into it"
    return 500, "something went wrong in the page", "the log of the web role names it"
