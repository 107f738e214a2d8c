"""Destinations that no program can play: one that rejects for now, and a wire that loses what an archive answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_P_DATA = 0x04


def read_pdu(connection: socket.socket) -> bytes:
    """Return one whole PDU; nothing where the other side is gone."""
    head = _exactly(connection, 6)
    return head + _exactly(connection, int.from_bytes(head[2:6], "big")) if len(head) == 6 else b""


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = connection.recv(count - len(found))
        if not piece:
            return b""
        found += piece
    return found


@contextmanager
def served(play: Callable[[socket.socket], None]) -> Iterator[int]:
    """Play the same part on every connection, each in a thread, and yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=_one, args=(connection,), daemon=True).start()

        def _one(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                connection.settimeout(30)
                play(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def rejects_for_now(connection: socket.socket) -> None:
    """Answer as a node does whose associations are all taken (PS3.8 9.3.4: transient, local limit exceeded)."""
    read_pdu(connection)
    connection.sendall(bytes([3, 0, 0, 0, 0, 4, 0, 2, 3, 2]))
    connection.recv(1)


def loses_answers_of(port: int) -> Callable[[socket.socket], None]:
    """Return the part of a wire to an archive that carries all there and cuts at the first answer to a request."""

    def play(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as archive:

            def there() -> None:
                with suppress(OSError):
                    while piece := connection.recv(1 << 16):
                        archive.sendall(piece)

            thread = threading.Thread(target=there, daemon=True)
            thread.start()
            while (pdu := read_pdu(archive)) and pdu[0] != _P_DATA:
                connection.sendall(pdu)
            connection.shutdown(socket.SHUT_RDWR)
            thread.join(10)

    return play
