"""Lets viewers of other origins read DICOMweb, and nothing else: those of ``web.origins``, with a token in a header.

Credentials are never allowed, so the session of a browser is worth nothing to another site; a preflight, which browsers
send without any, is answered before anybody has to say who they are (Fetch Standard, 3.2 CORS protocol).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DICOMWEB: Final = "/dicom-web"
_METHODS: Final = "GET, HEAD, OPTIONS"
_ASKED_HEADERS: Final = "accept, authorization, content-type"
_TOLD_HEADERS: Final = "content-length, content-location, warning"
_KEPT_S: Final = "600"


class Cors:
    """Answers preflights below ``/dicom-web`` and marks what allowed origins may read.

    Parameters
    ----------
    app
        What is behind it.
    origins
        ``web.origins``: scheme, host and port as browsers send them.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not f"{scope['path']}/".startswith(f"{DICOMWEB}/"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        if origin.lower() not in self._origins:
            await self._app(scope, receive, send)
            return
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            answer = Response(status_code=204)
            self._mark(answer.headers, origin)
            answer.headers["access-control-allow-methods"] = _METHODS
            answer.headers["access-control-allow-headers"] = _ASKED_HEADERS
            answer.headers["access-control-max-age"] = _KEPT_S
            await answer(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._mark(MutableHeaders(scope=message), origin)
            await send(message)

        await self._app(scope, receive, marked)

    @staticmethod
    def _mark(headers: MutableHeaders, origin: str) -> None:
        headers["access-control-allow-origin"] = origin
        headers["access-control-expose-headers"] = _TOLD_HEADERS
        # Overrides what the shield says of everything else.
        headers["cross-origin-resource-policy"] = "cross-origin"
        headers.add_vary_header("origin")
