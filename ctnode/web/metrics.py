"""``/metrics``: what ``ctnode metrics`` prints, for a Prometheus that scrapes."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ctnode.flow.metrics import exposition
from ctnode.web.context import WebNode


def metrics_routes(node: WebNode) -> list[BaseRoute]:
    """Return ``/metrics``, which asks for a login or a token as everything else does."""

    def metrics(_: Request) -> Response:
        with node.open_database() as database:
            body = exposition(node.config, database)
        return Response(body, media_type=CONTENT_TYPE_LATEST)

    return [Route("/metrics", metrics)]
