"""One connection: a non-blocking socket, one reused buffer, and a descriptor that other threads wake it by."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from enum import Enum
from typing import Final

MINIMUM_BYTES: Final = 1 << 17
# Room beyond the largest PDU: so little of the next one comes along that moving it to the front costs nothing.
SPARE_BYTES: Final = 1 << 10
KEEPALIVE_IDLE_S: Final = 30
KEEPALIVE_INTERVAL_S: Final = 10
KEEPALIVE_PROBES: Final = 3
# What was sent and not confirmed for so long will not be: the other side is gone without a word (RFC 5482).
USER_TIMEOUT_MS: Final = 60_000


class Filled(Enum):
    """Why ``Stream.fill()`` returned."""

    DATA = "data"
    CLOSED = "closed"
    WOKEN = "woken"
    EXPIRED = "expired"


class Stream:
    """Reads a connection into one buffer and writes to it, each with a deadline.

    Parameters
    ----------
    connection
        The accepted socket; the stream owns it from now on.
    capacity_bytes
        Room for the largest PDU that the peer was told it may send, header included.
    """

    def __init__(self, connection: socket.socket, capacity_bytes: int) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        self.connection = connection
        self.start = 0
        self.end = 0
        # Zeroed memory is only taken when it is first written: an idle connection costs next to nothing.
        self.view = memoryview(bytearray(max(capacity_bytes + SPARE_BYTES, MINIMUM_BYTES)))
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # A number that was closed may belong to another file a moment later: waking checks under the lock.
        self._lock = threading.Lock()
        self._is_closed = False
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._event, select.POLLIN)

    @property
    def available_bytes(self) -> int:
        """Return how much of the buffer waits to be used."""
        return self.end - self.start

    def consume(self, count: int) -> None:
        """Give ``count`` bytes of the buffer back."""
        self.start += count
        if self.start == self.end:
            self.start = self.end = 0

    def require(self, count: int) -> None:
        """Make sure that ``count`` bytes from ``start`` on can be in the buffer at once."""
        if count > len(self.view):
            grown = memoryview(bytearray(count))
            grown[: self.available_bytes] = self.view[self.start : self.end]
            self.view = grown
        elif self.start + count > len(self.view):
            # Overlapping slices of one buffer: assignment between memoryviews copies as memmove does.
            self.view[: self.available_bytes] = self.view[self.start : self.end]
        else:
            return
        self.start, self.end = 0, self.available_bytes

    def fill(self, deadline_s: float, *, wanted_bytes: int = 1) -> Filled:
        """Read what has come; wait for it, for ``wake()`` or for the deadline on the monotonic clock.

        Parameters
        ----------
        deadline_s
            On the monotonic clock.
        wanted_bytes
            A hint: how many bytes there have to be in the buffer before there is anything to do with them. There has
            to be room for them.
        """
        receive, view = self.connection.recv_into, self.view
        has_read = False
        while True:
            try:
                count = receive(view[self.end :])
            except BlockingIOError:
                count = -1
            except OSError:
                return Filled.CLOSED
            if count > 0:
                self.end += count
                if self.end - self.start >= wanted_bytes:
                    return Filled.DATA
                has_read = True
                continue
            if count == 0:
                return Filled.CLOSED
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                return Filled.DATA if has_read else Filled.EXPIRED
            for descriptor, _mask in self._poll.poll(remaining_s * 1000.0):
                if descriptor == self._event:
                    os.eventfd_read(self._event)
                    return Filled.WOKEN

    def send(self, data: bytes, deadline_s: float) -> None:
        """Write all of ``data``.

        Raises
        ------
        OSError
            If the connection is gone or the peer does not read in time.
        """
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self.connection.send(rest) :]
            except BlockingIOError:
                writable = select.poll()
                writable.register(self.connection, select.POLLOUT)
                remaining_s = deadline_s - time.monotonic()
                if remaining_s <= 0 or not writable.poll(remaining_s * 1000.0):
                    raise TimeoutError("the peer does not read") from None

    def wake(self) -> None:
        """Make ``fill()`` return in the thread that waits there; safe from any thread."""
        with self._lock:
            if not self._is_closed:
                os.eventfd_write(self._event, 1)

    def linger(self, deadline_s: float) -> None:
        """Say that no more will come, and throw away what the peer still sends until it closes.

        Closing with unread bytes makes the kernel send a reset, which may overtake the last PDU.
        """
        try:
            self.connection.shutdown(socket.SHUT_WR)
        except OSError:
            return
        outcome = Filled.DATA
        while outcome in (Filled.DATA, Filled.WOKEN):
            self.start = self.end = 0
            if time.monotonic() >= deadline_s:
                return
            outcome = self.fill(deadline_s)

    def close(self) -> None:
        """Close the connection and the descriptor; twice does no harm."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._event)
                self.connection.close()
