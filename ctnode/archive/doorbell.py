"""The keeper's doorbell: a datagram that says "look into incoming/", and nothing that anybody depends on.

The keeper looks by itself every so often; the doorbell only makes it look at once. So ringing never waits and never
fails.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Final

SOCKET_NAME: Final = "keep.sock"
# How long the keeper waits from a ring to its look, so that arrivals are settled in few transactions.
GATHER_S: Final = 0.2
RING_S: Final = GATHER_S / 2


class Doorbell:
    """Rings the keeper of one root.

    Parameters
    ----------
    run_directory
        The folder of locks and sockets of the root.
    """

    def __init__(self, run_directory: Path) -> None:
        self._directory = os.open(run_directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # sun_path holds 108 bytes, a root may lie deeper: the name goes through the open directory.
        self._address = f"/proc/self/fd/{self._directory}/{SOCKET_NAME}"
        self._rung_at_s = -RING_S
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def ring(self) -> None:
        """Wake the keeper, if one is there; safe from any thread.

        Who rang a moment ago need not ring again: the keeper gathers for longer than that before it looks.
        """
        now_s = time.monotonic()
        if now_s - self._rung_at_s < RING_S:
            return
        try:
            self._socket.sendto(b"\0", self._address)
        except OSError:
            # No keeper, or one that has enough rings waiting: it will look by itself.
            return
        self._rung_at_s = now_s

    def close(self) -> None:
        """Give the descriptors back."""
        self._socket.close()
        os.close(self._directory)


def open_doorbell(run_directory: Path) -> socket.socket:
    """Bind the keeper's end and return it, non-blocking; the caller holds the keeper's lock.

    Raises
    ------
    OSError
        If the folder does not take a socket.
    """
    return bind_datagrams(run_directory, SOCKET_NAME)


def bind_datagrams(run_directory: Path, name: str) -> socket.socket:
    """Bind a datagram socket below the folder and return it, non-blocking.

    Raises
    ------
    OSError
        If the folder does not take a socket.
    """
    directory = os.open(run_directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # What lies there belonged to a process that died: the lock of the caller says so.
        (run_directory / name).unlink(missing_ok=True)
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            bell.bind(f"/proc/self/fd/{directory}/{name}")
        except OSError:
            bell.close()
            raise
        return bell
    finally:
        os.close(directory)
