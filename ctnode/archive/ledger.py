"""State that an answer needs, shared by all receiver processes: one locked file for each UID, beside the journal.

A file holds one JSON record a line; the last whole one counts. A record is durable before its request is answered, and
who holds the lock is the only one who answers for that UID.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ctnode.archive.incoming import storage_error
from ctnode.archive.spool import Spool
from ctnode.ops.durable import fsync_directory, sync_data

# A procedure step is over after days, a transaction UID is never to be used again.
KEPT_S: Final = 90 * 86400.0


class Entry:
    """What is known of one UID, while its lock is held."""

    def __init__(self, spool: Spool, descriptor: int, path: Path) -> None:
        self._spool = spool
        self._file = descriptor
        self._path = path
        content = _read(descriptor)
        # What a crash cut off was never answered.
        self._end = content.rfind(b"\n") + 1
        lines = content[: self._end].splitlines()
        self.record: Mapping[str, Any] | None = json.loads(lines[-1]) if lines else None

    def write(self, record: Mapping[str, object]) -> None:
        """Make a record durable; it replaces the former.

        Raises
        ------
        StorageError
            If the storage does not take it; the former still counts.
        """
        line = json.dumps(record).encode() + b"\n"
        try:
            os.ftruncate(self._file, self._end)
            rest, at = memoryview(line), self._end
            while rest:
                written = os.pwrite(self._file, rest, at)
                rest, at = rest[written:], at + written
            self._spool.sync(sync_data, self._file)
            if not self._end:
                self._spool.sync(lambda _descriptor: fsync_directory(self._path.parent), self._file)
        except OSError as error:
            raise storage_error(error) from error
        self._end, self.record = at, record


class Ledger:
    """The files of one root.

    Parameters
    ----------
    spool
        Beside whose journal they lie.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.folder = spool.incoming.parent / "ledger"

    @contextmanager
    def entry(self, kind: str, uid: str, *, must_exist: bool = False) -> Iterator[Entry | None]:
        """Hold the entry of a UID; None if there has to be one and there is none.

        Raises
        ------
        StorageError
            If the storage fails.
        """
        self._spool.check_trust()
        path = self.folder / f"{kind}-{hashlib.sha256(uid.encode()).hexdigest()[:32]}.jsonl"
        flags = os.O_RDWR | os.O_CLOEXEC | (0 if must_exist else os.O_CREAT)
        try:
            if not must_exist and not self.folder.is_dir():
                self.folder.mkdir(mode=0o700, exist_ok=True)
                fsync_directory(self.folder.parent)
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            raise storage_error(error) from error
        try:
            # Released with the descriptor, also when this process dies.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Entry(self._spool, descriptor, path)
        finally:
            os.close(descriptor)

    def sweep(self, now: float | None = None) -> int:
        """Remove entries that nobody wrote for ``KEPT_S``; return how many."""
        before = (time.time() if now is None else now) - KEPT_S
        removed = 0
        if not self.folder.is_dir():
            return removed
        for path in self.folder.glob("*.jsonl"):
            if path.stat().st_mtime < before:
                path.unlink(missing_ok=True)
                removed += 1
        return removed


def _read(descriptor: int) -> bytes:
    size, content = os.fstat(descriptor).st_size, b""
    while len(content) < size and (piece := os.pread(descriptor, size, len(content))):
        content += piece
    return content
