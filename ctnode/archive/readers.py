"""Read-only connections that stay open for the next who asks: opening one costs more than most pages read.

A new connection reads and parses the whole schema, and each statement of that takes the lock of the index anew. What
is kept here holds no lock while nobody uses it, whatever became of the statements of who had it before.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Final

from ctnode.archive.database import Database, Parameters
from ctnode.words import Unavailable

KEPT_LIMIT: Final = 8

_Identity = tuple[int, int]


class Reader(Database):
    """A read-only connection that goes from thread to thread, used by one at a time."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, readonly=True, is_shared=True)
        self._cursors: weakref.WeakSet[sqlite3.Cursor] = weakref.WeakSet()
        self._schema = -1

    def execute(self, statement: str, parameters: Parameters = ()) -> sqlite3.Cursor:
        """Run one statement; ``rest`` ends it."""
        cursor = super().execute(statement, parameters)
        self._cursors.add(cursor)
        return cursor

    def require_known(self) -> None:
        """Check the schema as ``require_current`` does, where it has changed since the last time.

        Raises
        ------
        Unavailable
            If it is older than this version.
        """
        (schema,) = self.connection.execute("PRAGMA schema_version").fetchone()
        if schema != self._schema:
            self.require_current()
            self._schema = schema

    def rest(self) -> None:
        """End every statement that was left in its midst: an open one would hold up the keeper's commits."""
        for cursor in list(self._cursors):
            cursor.close()
        self._cursors.clear()
        self.connection.rollback()


class Readers:
    """The connections of one process to one index, as many as are in use at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: list[tuple[_Identity, Reader]] = []
        self._lock = Lock()

    @contextmanager
    def reading(self) -> Iterator[Database]:
        """Lend a connection to the calling thread.

        Raises
        ------
        Unavailable
            If there is no index, or it is of an older ctnode.
        """
        identity = self._identity()
        reader = self._take(identity) or Reader(self._path)
        try:
            reader.require_known()
            yield reader
            reader.rest()
        except BaseException:
            # Whoever holds the trace holds cursors too.
            reader.close()
            raise
        with self._lock:
            is_kept = len(self._idle) < KEPT_LIMIT
            if is_kept:
                self._idle.append((identity, reader))
        if not is_kept:
            reader.close()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, reader in idle:
            reader.close()

    def _identity(self) -> _Identity:
        """Return which file it is: ``rebuild-index`` puts another in its place."""
        try:
            status = self._path.stat()
        except OSError:
            raise Unavailable(f"no index at {self._path}", hint="start the node once with `ctnode run`") from None
        return status.st_dev, status.st_ino

    def _take(self, identity: _Identity) -> Reader | None:
        with self._lock:
            stale = [reader for known, reader in self._idle if known != identity]
            self._idle = [one for one in self._idle if one[0] == identity]
            found = self._idle.pop()[1] if self._idle else None
        for reader in stale:
            reader.close()
        return found
