"""Server-sent events: an open page hears that something changed, and asks for itself again."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import BaseRoute, Route

from ctnode.web.context import WebNode


def event_routes(node: WebNode) -> list[BaseRoute]:
    """Return ``/events``."""

    async def events(request: Request) -> StreamingResponse:
        if node.live.is_full:
            raise HTTPException(503, "too many pages are open at once")

        async def stream() -> AsyncIterator[str]:
            yield "retry: 3000\n\n"
            async for number in node.live.changes():
                if await request.is_disconnected():
                    return
                yield f"event: changed\ndata: {number}\n\n"

        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)

    return [Route("/events", events)]
