"""The web role: one socket, one event loop in a thread, and the life of a role around it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from ctnode.config import Config
from ctnode.ops import log
from ctnode.ops.role import Role
from ctnode.web.access import require_access
from ctnode.web.app import make_app
from ctnode.web.context import WebNode, make_node
from ctnode.web.rendering import prepare
from ctnode.web.upload import sweep
from ctnode.wire.listener import listening_address
from ctnode.words import ExitCode, Unavailable

BACKLOG: Final = 128
CONNECTIONS_LIMIT: Final = 256
KEEP_ALIVE_S: Final = 30
GRACE_S: Final = 2
TURN_S: Final = 1.0


class _Current:
    """The application of the configuration as it stands; a reload puts another in its place."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class _Loop(uvicorn.Server):
    """The server with the sampler beside it, in the same loop."""

    def __init__(self, settings: uvicorn.Config, node: WebNode) -> None:
        super().__init__(settings)
        self._node = node

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve and sample until told to stop."""
        sampler = asyncio.create_task(self._node.live.run())
        try:
            await super().serve(sockets)
        finally:
            sampler.cancel()
            with suppress(asyncio.CancelledError):
                await sampler


def serve(config: Config, role: Role, reload: Callable[[], Config]) -> int:
    """Serve the page until the role is told to stop; returns the exit code.

    Raises
    ------
    ConfigError
        If others could reach the page without a lock (exit 78).
    Unavailable
        If the port cannot be listened on (exit 69).
    """
    require_access(config)
    with bind(config) as listener:
        address, port = listener.getsockname()[:2]
        require_access(config, str(address))
        node = make_node(config)
        sweep(node.layout)
        current = _Current(make_app(node))
        server = _Loop(_settings(config, current), node)
        thread = threading.Thread(target=server.run, args=([listener],), name="page")
        thread.start()
        role.report(address=address, port=port, tls=bool(config.web.certificate))
        role.ready()
        log.get().info("page served", host=address, port=port)
        prepare()
        while thread.is_alive() and not role.stopping:
            if role.reload_wanted:
                role.reload_wanted = False
                node = _renewed(node, reload())
                current.app = make_app(node)
            role.wait(TURN_S)
        role.draining()
        server.should_exit = True
        thread.join()
        node.readers.close()
        return int(ExitCode.OK if role.stopping else ExitCode.UNAVAILABLE)


def _renewed(node: WebNode, config: Config) -> WebNode:
    """Return the node with another configuration; who is logged in stays so."""
    return replace(node, config=config)


def _settings(config: Config, app: ASGIApp) -> uvicorn.Config:
    web = config.web
    return uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        lifespan="off",
        http="h11",
        ws="none",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS_LIMIT,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        ssl_certfile=web.certificate or None,
        ssl_keyfile=web.key or None,
    )


def bind(config: Config) -> socket.socket:
    """Return the listening socket of the page.

    Raises
    ------
    Unavailable
        If the address cannot be listened on.
    """
    address = listening_address(config.web.host)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it each body waits 40 ms behind its head.
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, config.web.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"the page cannot be served at {config.web.host} port {config.web.port}: {error.strerror}",
            hint="another program holds the port? set web.port (0 takes any free one)",
        ) from None
    return listener
