"""The outer ASGI layer: which host a request may name, how large it may be, and the security headers of answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ctnode.web.access import is_our_name

HEADERS_LIMIT: Final = 100
HEADER_BYTES_LIMIT: Final = 32 << 10
BODY_LIMIT_BYTES: Final = 1 << 20
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# An answer that sets one of these itself keeps its own.
SECURITY_HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not "no-referrer": with it browsers send the forms of our own page with "Origin: null".
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), usb=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Shield:
    """Refuses what is too large or names another host, and puts the security headers on every answer.

    Parameters
    ----------
    app
        What is shielded.
    names
        ``web.host`` and ``web.names``.
    body_limit
        Returns the largest body in bytes for a path.
    is_tls
        Whether browsers come by TLS, so that they may be told to stay with it.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], body_limit: Callable[[str], int], *, is_tls: bool) -> None:
        self._app = app
        self._names = names
        self._body_limit = body_limit
        self._extra = {"strict-transport-security": "max-age=31536000"} if is_tls else {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if scope["path"].startswith("/static/"):
                    headers.setdefault("cache-control", "no-cache")
                for name, value in {**SECURITY_HEADERS, **self._extra}.items():
                    headers.setdefault(name, value)
            await send(message)

        limit = self._body_limit(scope["path"])
        refusal = self._refusal(scope, limit)
        if refusal is not None:
            await say(guarded, *refusal)
            return
        await self._app(scope, _Counted(receive, limit), guarded)

    def _refusal(self, scope: Scope, limit: int) -> tuple[int, str] | None:
        raw = scope["headers"]
        if len(raw) > HEADERS_LIMIT or sum(len(name) + len(value) for name, value in raw) > HEADER_BYTES_LIMIT:
            return 431, "the request has too many or too long headers"
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not is_our_name(hosts[0], self._names):
            return 421, "this page is not served under that name; add it to web.names"
        length = headers.get("content-length")
        if length is not None and (not length.isdigit() or int(length) > limit):
            return 413, f"more than {limit >> 20} MB are not taken here"
        return None


class _Counted:
    """Receives a body and breaks off when it becomes larger than allowed, whatever was announced."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._left = limit

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            # For the application the sender is gone; what it had taken it drops.
            return {"type": "http.disconnect"}
        return message


async def say(send: Send, status: int, words: str) -> None:
    """Answer with one line, before any application is asked."""
    body = json.dumps({"error": words}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
