"""Connections that begin at the same moment, timed by one thread that does nothing else.

A thread for each of them would measure how long Python takes to let two hundred threads run in turn.
"""

from __future__ import annotations

import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass

from tests.wire_peers import ASSOCIATE_AC, RELEASE_RQ, STANDARD, associate_rq, pdu

_HEADER_BYTES = 6
_PATIENCE_S = 60.0
_RELEASE_S = 5.0


@dataclass(frozen=True)
class Burst:
    """Milliseconds of each connection from its own begin: until it stood, and until its association was accepted."""

    connected_ms: list[float]
    accepted_ms: list[float]


class _Caller:
    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.began_s = time.perf_counter()
        self.is_connected = False
        self._answer = b""
        self.socket.connect_ex(("127.0.0.1", port))

    def take(self) -> bool:
        """Read what came of the answer; True once it is whole."""
        piece = self.socket.recv(1 << 16)
        self._answer += piece
        whole = _HEADER_BYTES + int.from_bytes(self._answer[2:_HEADER_BYTES], "big")
        if not piece or self._answer[0] != ASSOCIATE_AC:
            raise RuntimeError(f"not accepted: {self._answer[:10]!r}")
        return len(self._answer) >= max(whole, _HEADER_BYTES)


def burst(port: int, count: int) -> Burst:
    """Connect ``count`` times at once, ask each time for an association, and release all when the last has one."""
    question = associate_rq(STANDARD, called="ANY")
    done = Burst([], [])
    waiting = select.epoll()
    callers = {}
    for _ in range(count):
        caller = _Caller(port)
        callers[caller.socket.fileno()] = caller
        waiting.register(caller.socket, select.EPOLLOUT)
    while len(done.accepted_ms) < count:
        ready = waiting.poll(_PATIENCE_S)
        if not ready:
            raise RuntimeError(f"{count - len(done.accepted_ms)} of {count} were not answered")
        for descriptor, _ in ready:
            caller = callers[descriptor]
            taken_ms = 1e3 * (time.perf_counter() - caller.began_s)
            if not caller.is_connected:
                caller.is_connected = True
                done.connected_ms.append(taken_ms)
                # Raises what became of the connection, where that is nothing.
                caller.socket.sendall(question)
                waiting.modify(descriptor, select.EPOLLIN)
            elif caller.take():
                done.accepted_ms.append(taken_ms)
                waiting.unregister(descriptor)
    waiting.close()
    for caller in callers.values():
        caller.socket.settimeout(_RELEASE_S)
        caller.socket.sendall(pdu(RELEASE_RQ, bytes(4)))
    # Who serves fewer at a time than it accepts answers them one after the other, or never.
    deadline_s = time.monotonic() + _RELEASE_S
    for caller in callers.values():
        with suppress(TimeoutError):
            caller.socket.settimeout(max(0.001, deadline_s - time.monotonic()))
            caller.socket.recv(1 << 10)
        caller.socket.close()
    return done
