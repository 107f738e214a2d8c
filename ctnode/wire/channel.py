"""The line between the acceptor and a receiver child: one JSON record a message, with descriptors beside it.

Both ends hold a ``SOCK_SEQPACKET`` socket: messages keep their bounds, and the end of one process is the end of the
file for the other. What may be large, the configuration, travels as a memory file.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_MESSAGE_BYTES: Final = 1 << 16
_DESCRIPTORS: Final = 4


@dataclass(frozen=True, slots=True)
class Message:
    """One record; whoever receives it owns its descriptors."""

    what: str
    fields: Mapping[str, Any]
    descriptors: tuple[int, ...] = ()

    def close(self) -> None:
        """Close descriptors that nobody wanted."""
        for descriptor in self.descriptors:
            os.close(descriptor)


def make_channel() -> tuple[socket.socket, socket.socket]:
    """Return the two ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end: socket.socket, what: str, *, descriptors: tuple[int, ...] = (), **fields: object) -> bool:
    """Send a record; False if the other side has gone or does not read."""
    data = json.dumps({"what": what, **fields}).encode()
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    try:
        end.sendmsg([data], beside)
    except OSError:
        return False
    return True


def receive(end: socket.socket) -> Message | None:
    """Return the next record; None if the other side has gone.

    Raises
    ------
    BlockingIOError
        If the end does not block and there is none.
    """
    try:
        data, beside, _flags, _address = end.recvmsg(_MESSAGE_BYTES, socket.CMSG_SPACE(4 * _DESCRIPTORS))
    except ConnectionResetError:
        return None
    if not data:
        return None
    numbers = array.array("i")
    for level, kind, content in beside:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    record = json.loads(data)
    return Message(record.pop("what"), record, tuple(numbers))


def as_memory_file(text: str) -> int:
    """Return the descriptor of a memory file with ``text``."""
    descriptor = os.memfd_create("ctnode-config", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(text.encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def read_memory_file(descriptor: int) -> str:
    """Return the text of a memory file and close it."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(descriptor, "rb") as file:
        return file.read().decode()
