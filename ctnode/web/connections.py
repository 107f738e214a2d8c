"""The connections of the page: how many one address may hold, and how long a client may take to ask and to read.

Whoever sends a byte now and then, or reads none of what it asked for, holds a connection; without limits one such
client takes them all. A request that is whole may take as long as its answer needs, so streams of events stay open.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import defaultdict
from collections.abc import Awaitable, Iterable
from enum import Enum
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Behind a proxy all connections come from its address: it is the proxy that has to count.
PER_ADDRESS: Final = 64
# TLS has to be agreed on, and a head has to be whole, within so long.
HEAD_S: Final = 15.0
# A body has to bring so much, and an answer that waits to be read has to move, within so long.
PIECE_S: Final = 30.0
PIECE_BYTES: Final = 16 << 10
LOOK_S: Final = 1.0


class Door(socket.socket):
    """A listening socket that turns away an address which holds too many connections.

    Parameters
    ----------
    per_address
        How many one IPv4 address or IPv6 network of 64 bits may hold; 0: any number.
    """

    per_address: int = 0

    def __init__(self, family: int = -1, kind: int = -1, protocol: int = -1) -> None:
        super().__init__(family, kind, protocol)
        self._held: defaultdict[str, list[socket.socket]] = defaultdict(list)

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection.

        Raises
        ------
        ConnectionAbortedError
            If its address holds too many; asyncio then asks again.
        """
        connection, address = super().accept()
        who = network_of(str(address[0]))
        held = self._held[who] = [one for one in self._held[who] if one.fileno() >= 0]
        if self.per_address and len(held) >= self.per_address:
            connection.close()
            raise ConnectionAbortedError(f"{who} holds {len(held)} connections")
        held.append(connection)
        for other in [name for name, kept in self._held.items() if name != who and not _any_open(kept)]:
            del self._held[other]
        return connection, address


def _any_open(connections: Iterable[socket.socket]) -> bool:
    return any(one.fileno() >= 0 for one in connections)


def network_of(address: str) -> str:
    """Return whom an address stands for: itself, or with IPv6 the network of 64 bits that one client may have."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


class PatientLoop(asyncio.SelectorEventLoop):
    """An event loop whose TLS connections have to be agreed on soon."""

    def create_server(self, *arguments: Any, **settings: Any) -> Any:
        """Listen."""
        if settings.get("ssl") is not None:
            settings["ssl_handshake_timeout"] = HEAD_S
        listening: Awaitable[Any] = super().create_server(*arguments, **settings)
        return listening


class _Stage(Enum):
    """What a connection waits for: a head, a body, its client to read, or nothing of its client."""

    HEAD = HEAD_S
    BODY = PIECE_S
    READER = PIECE_S + 1.0
    NOTHING = float("inf")


class Connection(H11Protocol):
    """One connection, which is looked at every so often and cut if its client keeps it waiting."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._received = self._resumed = self._mark = 0
        self._seen: tuple[_Stage, int, int] = (_Stage.HEAD, 0, 0)
        self._since = self.loop.time()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._received += len(data)
        super().data_received(data)

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        self._resumed += 1
        super().resume_writing()

    def look(self, now: float) -> None:
        """Cut the connection if its client has kept it waiting for too long."""
        stage = self._stage()
        # Another request, and an answer of which something was read, are waited for anew.
        seen = (stage, id(self.cycle) if self.cycle is not None else 0, self._resumed)
        has_moved = stage is _Stage.BODY and self._received - self._mark >= PIECE_BYTES
        if seen != self._seen or (has_moved and now - self._since >= stage.value):
            self._seen, self._since, self._mark = seen, now, self._received
        elif now - self._since >= stage.value:
            self.transport.abort()

    def _stage(self) -> _Stage:
        if self.transport.is_closing() or self.flow.write_paused:
            return _Stage.READER
        if self.conn.their_state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            return _Stage.HEAD
        if self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused:
            return _Stage.BODY
        # Between two requests the server has its own time; what is computed is waited for by the client.
        return _Stage.NOTHING


async def watch(connections: Iterable[Any]) -> None:
    """Look at all connections every so often, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(LOOK_S)
        now = loop.time()
        for one in list(connections):
            if isinstance(one, Connection):
                one.look(now)
