"""The one front door: whatever comes in, by whatever way, becomes a durable file of the journal first.

``incoming/<association>/`` holds the instances of one association and ``association.jsonl``: who sent, what was
offered, each other request, how it ended. The receiver holds a lock on that file while the association lives, so a
free lock without an end record means that it was aborted. What success promises, in order:

1. the data set is streamed to ``<arrival>.part`` and hashed on the way;
2. its UIDs are read and compared with the command;
3. the file is fsynced, renamed to ``<arrival>.dcm``, and the directory is fsynced;
4. only then does ``commit()`` return, and the sender read 0000H.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ctnode.archive.elements import ShortBuffer
from ctnode.archive.header import Uids, read_uids
from ctnode.archive.layout import require_keepable
from ctnode.archive.part10 import Opened, file_meta
from ctnode.ops.durable import crash_point, fsync_directory
from ctnode.words import BadInstance, Mismatch, StorageError

JOURNAL_NAME: Final = "association.jsonl"
PART_SUFFIX: Final = ".part"
KEPT_SUFFIX: Final = ".dcm"
HEAD_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Kept:
    """A durable instance of the journal."""

    path: Path
    uids: Uids
    digest: str
    size_bytes: int


class Spool:
    """The journal of arrivals below one root."""

    def __init__(self, incoming: Path, *, reserve_bytes: int = 0, reserve_inodes: int = 0) -> None:
        self.incoming = incoming
        self.reserve_bytes = reserve_bytes
        self.reserve_inodes = reserve_inodes

    def check_room(self) -> None:
        """Check that free bytes and inodes are above the reserve.

        Raises
        ------
        StorageError
            If they are not, or the file system does not answer.
        """
        try:
            room = os.statvfs(self.incoming)
        except OSError as error:
            raise StorageError(f"storage does not answer: {error.strerror}") from error
        if room.f_bavail * room.f_frsize < self.reserve_bytes:
            raise StorageError("free space is below the reserve", hint="free space or lower storage.reserve_mb")
        if room.f_files and room.f_favail < self.reserve_inodes:
            raise StorageError("free inodes are below the reserve", hint="free inodes or lower storage.reserve_inodes")

    def open_association(self, opened: Opened) -> Journal:
        """Begin the journal of one association.

        Raises
        ------
        StorageError
            If there is no room or the storage does not take it; nothing is left behind.
        """
        self.check_room()
        return Journal(self, opened)


class Journal:
    """The open journal of one association; a context manager that ends as ``aborted`` on an exception."""

    def __init__(self, spool: Spool, opened: Opened) -> None:
        self.opened = opened
        self.name = f"{time.time_ns():019d}-{secrets.token_hex(4)}"
        self.directory = spool.incoming / self.name
        self.kept = 0
        self._sequence = 0
        self._incoming = spool.incoming
        self._durable = False
        self._file = -1
        try:
            self.directory.mkdir(mode=0o700)
        except OSError as error:
            raise _storage_error(error) from error
        try:
            self._file = os.open(
                self.directory / JOURNAL_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._append({"what": "opened", **_fields(opened)})
        except OSError as error:
            if self._file >= 0:
                _close(self._file)
                self._file = -1
            self._remove_empty()
            raise _storage_error(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        self.close("released" if kind is None else "aborted")

    def receive(self, *, transfer_syntax: str, sop_class: str, sop_instance: str) -> Incoming:
        """Begin one instance as its command announced it.

        Raises
        ------
        BadInstance
            If the announced UIDs cannot name an object.
        StorageError
            If the storage does not take it.
        """
        require_keepable(sop_instance, "SOP Instance UID")
        require_keepable(sop_class, "SOP Class UID")
        self._make_durable()
        self._sequence += 1
        stem = f"{time.time_ns():019d}-{self._sequence:06d}"
        return Incoming(self, self.directory / stem, transfer_syntax, sop_class, sop_instance)

    def notice(self, what: str, fields: Mapping[str, object]) -> None:
        """Write down another request of the association; durable when this returns.

        Raises
        ------
        StorageError
            If the storage does not take it.
        """
        self._make_durable()
        try:
            self._append({"what": what, **fields})
            os.fdatasync(self._file)
        except OSError as error:
            raise _storage_error(error) from error

    def close(self, how: str) -> None:
        """End the journal: ``released``, ``aborted``, ``lost`` (the peer vanished) or ``drained``."""
        if self._file < 0:
            return
        try:
            self._append({"what": "closed", "how": how, "kept": self.kept})
        except OSError:
            # Without an end record the keeper calls the association aborted, which is what a full disk made of it.
            return
        finally:
            _close(self._file)
            self._file = -1

    def _make_durable(self) -> None:
        if self._durable:
            return
        try:
            os.fsync(self._file)
            fsync_directory(self.directory)
            fsync_directory(self._incoming)
        except OSError as error:
            raise _storage_error(error) from error
        self._durable = True

    def _append(self, record: Mapping[str, object]) -> None:
        line = json.dumps({"at": datetime.now(UTC).isoformat().replace("+00:00", "Z"), **record}) + "\n"
        data = line.encode()
        if os.write(self._file, data) != len(data):
            raise OSError(28, "No space left on device")

    def _remove_empty(self) -> None:
        try:
            (self.directory / JOURNAL_NAME).unlink(missing_ok=True)
            self.directory.rmdir()
        except OSError:
            # A read-only or failing file system; the keeper removes an empty journal once it can.
            return


class Incoming:
    """One instance on its way into the journal.

    ``write()`` takes the encoded data set piece by piece, ``commit()`` makes it durable, ``discard()`` leaves nothing.
    """

    def __init__(self, journal: Journal, stem: Path, transfer_syntax: str, sop_class: str, sop_instance: str) -> None:
        self._journal = journal
        self._stem = stem
        self._part = Path(f"{stem}{PART_SUFFIX}")
        self._transfer_syntax = transfer_syntax
        self._sop_class = sop_class
        self._sop_instance = sop_instance
        self._hash = hashlib.sha256()
        self._head = bytearray()
        self.size_bytes = 0
        meta, self._digest_at = file_meta(journal.opened, transfer_syntax, sop_class, sop_instance)
        self._dataset_start = len(meta)
        try:
            self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _storage_error(error) from error
        self._put(meta)

    def write(self, fragment: bytes | bytearray | memoryview) -> None:
        """Append a piece of the encoded data set.

        Raises
        ------
        StorageError
            If the storage does not take it; the file is gone then.
        """
        if len(self._head) < HEAD_BYTES:
            self._head += fragment[: HEAD_BYTES - len(self._head)]
        self._hash.update(fragment)
        self.size_bytes += len(fragment)
        self._put(fragment)

    def commit(self) -> Kept:
        """Check the UIDs, make the file durable under its name, and return it.

        Raises
        ------
        BadInstance, Mismatch
            If the data set cannot be read, names nothing, or something else than the command did.
        StorageError
            If the storage failed; nothing may be acknowledged and nothing is left behind.
        """
        try:
            uids = self._check_uids()
            digest = self._hash.digest()
            os.pwrite(self._file, digest, self._digest_at)
            crash_point("spool.before-fsync")
            os.fdatasync(self._file)
            # What fsync took is durable; closing adds nothing to it.
            self._close()
            crash_point("spool.before-rename")
            kept = Path(f"{self._stem}{KEPT_SUFFIX}")
            self._part.rename(kept)
        except BadInstance:
            self.discard()
            raise
        except OSError as error:
            self.discard()
            raise _storage_error(error) from error
        crash_point("spool.before-directory-fsync")
        try:
            fsync_directory(self._journal.directory)
        except OSError as error:
            _unlink(kept)
            raise _storage_error(error) from error
        crash_point("spool.before-acknowledgement")
        self._journal.kept += 1
        return Kept(kept, uids, digest.hex(), self.size_bytes)

    def discard(self) -> None:
        """Remove what was written so far."""
        self._close()
        _unlink(self._part)

    def _close(self) -> None:
        if self._file >= 0:
            _close(self._file)
            self._file = -1

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            self.discard()
            raise _storage_error(error) from error

    def _check_uids(self) -> Uids:
        if not self.size_bytes:
            raise BadInstance("the data set is empty")
        try:
            uids = read_uids(self._head, self._transfer_syntax, whole=self.size_bytes == len(self._head))
        except ShortBuffer:
            with (
                mmap.mmap(self._file, 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as view,
                # Released even when an exception holds the frame: a mapping with open views cannot be closed.
                view[self._dataset_start :] as dataset,
            ):
                uids = read_uids(dataset, self._transfer_syntax, whole=True)
        if not uids.sop_instance:
            raise BadInstance("no SOP Instance UID in the data set")
        if not uids.sop_class:
            raise BadInstance("no SOP Class UID in the data set")
        if uids.sop_instance != self._sop_instance:
            raise Mismatch("command and data set differ in SOP Instance UID")
        if uids.sop_class != self._sop_class:
            raise Mismatch("command and data set differ in SOP Class UID")
        require_keepable(uids.study, "Study Instance UID")
        require_keepable(uids.series, "Series Instance UID")
        return uids


def _close(descriptor: int) -> None:
    with suppress(OSError):
        # Linux gives the descriptor back whatever close() says.
        os.close(descriptor)


def _unlink(path: Path) -> None:
    with suppress(OSError):
        # Read-only or failing: the keeper sweeps .part files of ended associations.
        path.unlink(missing_ok=True)


def _fields(opened: Opened) -> dict[str, object]:
    return {
        "door": opened.door,
        "calling_ae": opened.calling_ae,
        "called_ae": opened.called_ae,
        "peer_address": opened.peer_address,
        "own_address": opened.own_address,
        "accepted": [list(pair) for pair in opened.accepted],
        "refused": [list(pair) for pair in opened.refused],
    }


def _storage_error(error: OSError) -> StorageError:
    return StorageError(f"storage failed: {error.strerror or type(error).__name__}", hint="see `ctnode doctor`")
