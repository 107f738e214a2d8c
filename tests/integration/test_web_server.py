"""The socket of the page."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from ctnode.config import Config
from ctnode.web.server import bind

pytestmark = pytest.mark.integration


def test_an_answer_does_not_wait_for_the_browsers_acknowledgement_of_its_head(tmp_path: Path) -> None:
    config = Config.model_validate({"storage": {"root": str(tmp_path)}, "web": {"port": 0}})

    async def accepted() -> int:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[int] = loop.create_future()

        class Asked(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                made = transport.get_extra_info("socket")
                found.set_result(made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        with bind(config) as listener:
            server = await loop.create_server(Asked, sock=listener)
            browser = await loop.create_connection(asyncio.Protocol, *listener.getsockname()[:2])
            async with server:
                no_delay = await asyncio.wait_for(found, 60)
            browser[0].close()
            return no_delay

    assert asyncio.run(accepted()) != 0
