"""What an operator looks at: now, series, one series, deliveries, associations, what needs somebody."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ctnode.web.context import WebNode
from ctnode.web.overview import overview
from ctnode.web.rendering import Renderer


def page_routes(node: WebNode, renderer: Renderer) -> list[BaseRoute]:
    """Return the pages."""

    def now(request: Request) -> Response:
        with node.open_database() as database:
            seen = overview(node.config, node.layout, database)
        return renderer.page(request, "now.html", now=seen, rates=node.live.rates())

    return [Route("/", now)]
