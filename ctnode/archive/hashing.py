"""Hashing beside an association: its thread receives and writes on while another processor hashes the last piece.

SHA-256 of an instance takes about as long as receiving it. A sender that is alone leaves a processor to spare; beside
others there is none, and handing pieces over would only cost: then each association hashes for itself.
"""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash


class Helper:
    """One thread that hashes for an association that is alone; it begins with the first piece.

    ``is_alone`` is for whoever knows of the others, in this process and in its neighbours.
    """

    def __init__(self) -> None:
        self.is_alone = True
        self._work: SimpleQueue[tuple[_Hash, memoryview, threading.Lock]] = SimpleQueue()
        self._is_started = False
        self._starting = threading.Lock()

    def take(self, digest: _Hash, piece: memoryview, done: threading.Lock) -> bool:
        """Hash a piece and release ``done`` afterwards; False, and nothing is done, while there are several."""
        if not self.is_alone or not (self._is_started or self._start()):
            return False
        self._work.put((digest, piece, done))
        return True

    def _start(self) -> bool:
        # Where no more threads are to be had, each association hashes for itself.
        with self._starting, suppress(RuntimeError):
            if not self._is_started:
                threading.Thread(target=self._run, name="hashing", daemon=True).start()
                self._is_started = True
        return self._is_started

    def _run(self) -> None:
        while True:
            digest, piece, done = self._work.get()
            digest.update(piece)
            # The buffer belongs to its association again.
            del piece
            done.release()


class RunningDigest:
    """The SHA-256 of one instance, piece by piece, in order."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._hash = hashlib.sha256()
        self._done = threading.Lock()

    @property
    def is_alone(self) -> bool:
        """Return whether pieces are hashed beside the caller at present."""
        return self._helper.is_alone

    def begin(self, piece: memoryview) -> bool:
        """Hash a piece, perhaps beside the caller: then True, and it may not be changed until ``settle()``."""
        self.settle()
        self._done.acquire()
        if self._helper.take(self._hash, piece, self._done):
            return True
        self._done.release()
        return False

    def settle(self) -> None:
        """Wait for the piece that was begun."""
        with self._done:
            return

    def update(self, piece: memoryview) -> None:
        """Hash a piece in this thread."""
        self.settle()
        self._hash.update(piece)

    def digest(self) -> bytes:
        """Return the digest of all pieces."""
        self.settle()
        return self._hash.digest()
