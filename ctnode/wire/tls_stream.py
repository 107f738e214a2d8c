"""A connection with TLS that looks like one without: records in, bytes out, each with a deadline.

The handshake is done by the thread of the association, so that a peer that never ends it holds up nobody else.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ctnode.wire.certificates import peer_names
from ctnode.wire.stream import Filled, Stream

# OpenSSL hands out one record at a time.
_RECORD_BYTES: Final = 1 << 14


class TlsStream(Stream):
    """Reads and writes an accepted connection through OpenSSL.

    Parameters
    ----------
    connection
        The accepted socket; the stream owns it from now on.
    capacity_bytes
        Room for the largest PDU that the peer was told it may send, header included.
    context
        The server's side of TLS.
    """

    def __init__(self, connection: socket.socket, capacity_bytes: int, context: ssl.SSLContext) -> None:
        super().__init__(connection, capacity_bytes)
        try:
            # The descriptor stays the same, so what polls it goes on polling it.
            self._tls = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError):
            self.close()
            raise
        self.connection = self._tls

    def establish(self, deadline_s: float, is_wanted: Callable[[], bool]) -> frozenset[str]:
        """Do the handshake, as long as ``is_wanted`` when the stream is woken.

        Returns
        -------
        frozenset of str
            The names in the peer's certificate; empty without one.

        Raises
        ------
        OSError
            If the peer and we do not agree, it is gone, the deadline passed, or nobody wants it any more.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, deadline_s, is_wanted)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT, deadline_s, is_wanted)
            except OSError:
                raise
            except ValueError as error:
                # Raised for a socket that was reset in the middle.
                raise ConnectionResetError("the peer has gone") from error
            else:
                return peer_names(self._tls)

    def _wait(self, event: int, deadline_s: float, is_wanted: Callable[[], bool]) -> None:
        waiting = select.poll()
        waiting.register(self.connection, event)
        waiting.register(self._event, select.POLLIN)
        remaining_s = deadline_s - time.monotonic()
        ready = waiting.poll(remaining_s * 1000.0) if remaining_s > 0 else []
        if not ready:
            raise TimeoutError("the peer does not end the handshake")
        if any(descriptor == self._event for descriptor, _mask in ready):
            os.eventfd_read(self._event)
            if not is_wanted():
                raise ConnectionAbortedError("the node ends")

    def fill(self, deadline_s: float, *, wanted_bytes: int = 1) -> Filled:  # noqa: ARG002 - records end as they like
        """Read what has come; wait for it, for ``wake()`` or for the deadline on the monotonic clock."""
        while True:
            event = select.POLLIN
            try:
                if count := self._receive():
                    self.end += count
                    return Filled.DATA
                return Filled.CLOSED
            except (ssl.SSLWantReadError, BlockingIOError):
                pass
            except ssl.SSLWantWriteError:
                event |= select.POLLOUT
            except (OSError, ValueError):
                return Filled.CLOSED
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                return Filled.EXPIRED
            self._poll.modify(self.connection, event)
            for descriptor, _mask in self._poll.poll(remaining_s * 1000.0):
                if descriptor == self._event:
                    os.eventfd_read(self._event)
                    return Filled.WOKEN

    def _receive(self) -> int:
        """Read at least one record, and what else is decrypted already or comes at once."""
        total = self._tls.recv_into(self.view[self.end :])
        while total and len(self.view) - self.end - total >= _RECORD_BYTES:
            try:
                count = self._tls.recv_into(self.view[self.end + total :])
            except (ssl.SSLError, OSError):
                # What came before is delivered first; the next call sees the fault again.
                break
            if not count:
                break
            total += count
        return total

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
                rest = rest[self._tls.send(rest) :]
                continue
            except ssl.SSLWantReadError:
                event = select.POLLIN
            except (ssl.SSLWantWriteError, BlockingIOError):
                event = select.POLLOUT
            ready = select.poll()
            ready.register(self.connection, event)
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0 or not ready.poll(remaining_s * 1000.0):
                raise TimeoutError("the peer does not read")

    def linger(self, deadline_s: float) -> None:
        """Say by a close_notify that no more will come, then as without TLS (RFC 8446 6.1)."""
        # The peer has not answered the close_notify yet, or is gone; what it still sends is thrown away unread.
        with suppress(OSError, ValueError):
            self._tls.unwrap()
        super().linger(deadline_s)
