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
from ctnode.web.connections import PER_ADDRESS, Connection, Door, PatientLoop, watch
from ctnode.web.context import WebNode, make_node
from ctnode.web.rendering import prepare
from ctnode.web.upload import sweep
from ctnode.wire.certificates import page_context
from ctnode.wire.listener import listening_address
from ctnode.words import ConfigError, ExitCode, Unavailable

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
    """The server with the sampler and the look at slow clients beside it, in the same loop."""

    def __init__(self, settings: uvicorn.Config, node: WebNode) -> None:
        super().__init__(settings)
        self._node = node
        self._loop = PatientLoop()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve and sample until told to stop."""
        beside = [asyncio.create_task(part) for part in (self._node.live.run(), watch(self.server_state.connections))]
        try:
            await super().serve(sockets)
        finally:
            for task in beside:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def begin(self, listener: socket.socket) -> None:
        """Run the loop in this thread until told to stop."""
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self.serve([listener]))

    def renew_certificate(self, config: Config) -> None:
        """Show the certificate that the files hold now to whoever comes next; if it cannot be used, the old one."""
        context, web = self.config.ssl, config.web
        if context is None:
            return
        try:
            page_context(web)
        except ConfigError as error:
            self._node.log.warning("certificate not read anew", reason=error.message)
            return
        # Nothing else may use the context meanwhile.
        self._loop.call_soon_threadsafe(context.load_cert_chain, web.certificate, web.key or None)
        self._node.log.info("certificate read anew")


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
        thread = threading.Thread(target=server.begin, args=(listener,), name="page")
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
                server.renew_certificate(config)
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
    settings = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        lifespan="off",
        http=Connection,
        ws="none",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS_LIMIT,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    settings.load()
    if config.web.certificate:
        settings.ssl = page_context(config.web)
    return settings


def bind(config: Config) -> Door:
    """Return the listening socket of the page.

    Raises
    ------
    Unavailable
        If the address cannot be listened on.
    """
    address = listening_address(config.web.host)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it each body waits 40 ms behind its head.
    listener = Door(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, socket.IPPROTO_TCP)
    listener.per_address = 0 if config.web.behind_proxy else PER_ADDRESS
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
