"""The same for programs: ``/api/v1`` in JSON, described by ``/api/v1/openapi.json``."""

from __future__ import annotations

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from ctnode.flow.why import as_times
from ctnode.web.context import WebNode
from ctnode.web.overview import overview

ROOT = "/api/v1"


def api_routes(node: WebNode) -> list[BaseRoute]:
    """Return the API."""

    def now(_: Request) -> JSONResponse:
        with node.open_database() as database:
            seen = overview(node.config, node.layout, database)
        return JSONResponse({**as_times(asdict(seen)), "rates": asdict(node.live.rates())})

    return [Route(f"{ROOT}/now", now)]
