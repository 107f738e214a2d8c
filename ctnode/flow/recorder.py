"""Writes down how deliveries ended, those of all destinations together, so that none waits for the disk alone."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from ctnode.archive import outbox
from ctnode.archive.database import Database
from ctnode.archive.outbox import Ending
from ctnode.ops import log
from ctnode.ops.durable import crash_point

RETRY_S: Final = 1.0
# A commit costs as much for one as for many: so many are gathered, for so long at most.
GATHERED: Final = 40
GATHER_S: Final = 0.05
# What was answered and is not written down is sent again after a crash. So many wait while as many are written, and a
# web service has up to 20 in hand: together less than outbox.UNCERTAIN.
WAITING_LIMIT: Final = 50

Note = Callable[[Database], None]


class Recorder:
    """One thread with a connection of its own; notes and endings are written in the order in which they came."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[Ending | Note] = []
        self._changed = threading.Condition()
        self._is_writing = False
        self._is_closed = False
        # Who waits for the disk, and lets nobody gather.
        self._waiters = 0
        self._thread = threading.Thread(target=self._run, name="deliver-recorder", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(timeout=2 * RETRY_S)

    def add(self, entry: Ending | Note) -> None:
        """Have something written; waits where too much does."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < WAITING_LIMIT or self._is_closed)
            self._waiting.append(entry)
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until all that was added is written."""
        with self._changed:
            self._waiters += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._waiting or self._is_writing) or self._is_closed)
            self._waiters -= 1

    def _run(self) -> None:
        with Database(self._path) as database:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._is_closed)
                    self._changed.wait_for(self._has_gathered, GATHER_S)
                    if not self._waiting:
                        return
                    batch, self._waiting = self._waiting, []
                    self._is_writing = True
                    self._changed.notify_all()
                while not self._write(database, batch):
                    with self._changed:
                        if self._is_closed:
                            return
                        self._changed.wait_for(lambda: self._is_closed, RETRY_S)
                with self._changed:
                    self._is_writing = False
                    self._changed.notify_all()

    def _has_gathered(self) -> bool:
        return len(self._waiting) >= GATHERED or self._waiters > 0 or self._is_closed

    def _write(self, database: Database, batch: list[Ending | Note]) -> bool:
        """Write what is left of a batch; False where the disk does not take it now."""
        crash_point("deliver.before-commit")
        try:
            while batch:
                endings = []
                for entry in batch:
                    if not isinstance(entry, Ending):
                        break
                    endings.append(entry)
                if endings:
                    outbox.settle(database, endings)
                    del batch[: len(endings)]
                    crash_point("deliver.after-commit")
                    continue
                note = batch[0]
                assert not isinstance(note, Ending)
                note(database)
                del batch[0]
        except sqlite3.Error as error:
            log.get().error("deliveries cannot be written down now", error=type(error).__name__)
            return False
        return True
