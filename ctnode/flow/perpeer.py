"""One thread for each of those whom the node calls, so that one that hangs delays only itself."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Final

from ctnode.ops import log

# What is under way may end within so long when the node stops, and what is cut has so long to notice.
STOP_S: Final = 3.0
CUT_S: Final = 2.0


class PerPeer:
    """Threads by name of a peer.

    Parameters
    ----------
    what
        What they do, for their names.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._busy: dict[str, threading.Thread] = {}
        self.stopping = threading.Event()

    @property
    def busy(self) -> tuple[str, ...]:
        """Return the names that a thread is at work for."""
        return tuple(sorted(name for name, thread in self._busy.items() if thread.is_alive()))

    def start(self, name: str, serve: Callable[[str], None]) -> None:
        """Serve a peer, unless that is being done already."""
        running = self._busy.get(name)
        if running is not None and running.is_alive():
            return
        thread = threading.Thread(target=self._run, args=(name, serve), name=f"{self._what}-{name}", daemon=True)
        self._busy[name] = thread
        thread.start()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Let the threads end what they are at; who takes longer is cut, which the next process makes good."""
        self.stopping.set()
        deadline_s = time.monotonic() + timeout_s
        for thread in self._busy.values():
            thread.join(timeout=max(0.0, deadline_s - time.monotonic()))
        # Imported here: who only reads the trail or the keeper needs no network.
        from ctnode.wire.calling import hang_up

        hang_up()
        for thread in self._busy.values():
            thread.join(timeout=CUT_S)

    def _run(self, name: str, serve: Callable[[str], None]) -> None:
        try:
            serve(name)
        except (OSError, sqlite3.Error) as error:
            # What was claimed comes back with its lease.
            log.get().error("thread ended", what=self._what, peer=name, error=type(error).__name__)
