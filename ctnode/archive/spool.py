"""The one front door: whatever comes in, by whatever way, becomes a durable file of the journal first.

``incoming/<association>/`` holds the instances of one association and ``association.jsonl``: who sent, what was
offered, each other request, how it ended. The receiver holds a lock on that file while the association lives, so a
free lock without an end record means that it was aborted. What success promises, in order:

1. the data set is streamed to a ``.part``, whose name is durable already for most, and hashed on the way;
2. its UIDs are read and compared with the command, then its digest is written into its file meta;
3. the file is fsynced and renamed to ``<arrival>.dcm``; where its name was not durable yet the directory is fsynced;
4. only then does ``commit()`` return, and the sender read 0000H.

A power cut may undo the rename of step 3: ``ctnode.archive.rooms`` finds the instance under its first name.

A sync that fails is never tried again: the kernel may have dropped the pages and call the next one a success. The
instance is not kept, and the spool takes nothing more until ``ctnode.archive.suspect`` has cleared it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ctnode.archive.hashing import Helper
from ctnode.archive.incoming import PIECE_BYTES, Incoming, close_quietly, storage_error
from ctnode.archive.layout import require_keepable
from ctnode.archive.part10 import MetaTemplate, Opened
from ctnode.archive.rooms import Rooms
from ctnode.ops.durable import crash_point, sync, sync_data
from ctnode.words import StorageError

JOURNAL_NAME: Final = "association.jsonl"
# A disk that is full says so also when it syncs; that is no reason to distrust what it took before.
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Spool:
    """The journal of arrivals below one root.

    Parameters
    ----------
    incoming
        The folder of the journals.
    reserve_bytes, reserve_inodes
        What has to stay free.
    on_suspect
        Called with the reason when a sync failed and nothing more is taken.
    """

    def __init__(
        self,
        incoming: Path,
        *,
        reserve_bytes: int = 0,
        reserve_inodes: int = 0,
        on_suspect: Callable[[str], None] | None = None,
    ) -> None:
        self.incoming = incoming
        self.reserve_bytes = reserve_bytes
        self.reserve_inodes = reserve_inodes
        self.hashing = Helper()
        self.suspect = ""
        self.on_suspect = on_suspect

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

    def check_trust(self) -> None:
        """Check that no sync has failed.

        Raises
        ------
        StorageError
            If one has.
        """
        if self.suspect:
            raise StorageError(self.suspect, hint="see `ctnode doctor`; a restart tries the disk anew")

    def sync(self, how: Callable[[int], None], descriptor: int) -> None:
        """Sync once; what fails makes the spool suspect.

        Raises
        ------
        OSError
            If it failed.
        """
        try:
            how(descriptor)
        except OSError as error:
            if error.errno not in FULL and not self.suspect:
                self.suspect = f"storage is suspect: a sync failed: {error.strerror or type(error).__name__}"
                if self.on_suspect is not None:
                    self.on_suspect(self.suspect)
            raise

    def open_association(self, opened: Opened) -> Journal:
        """Begin the journal of one association.

        Raises
        ------
        StorageError
            If there is no room or the storage does not take it; nothing is left behind.
        """
        self.check_trust()
        self.check_room()
        crash_point("spool.before-journal")
        return Journal(self, opened)


class Journal:
    """The open journal of one association; a context manager that ends as ``aborted`` on an exception."""

    def __init__(self, spool: Spool, opened: Opened) -> None:
        self.opened = opened
        self.name = f"{time.time_ns():019d}-{secrets.token_hex(4)}"
        self.directory = spool.incoming / self.name
        self.kept = 0
        self.spool = spool
        # Kept open: each instance is made, renamed and synced by it, without a walk along the path.
        self.folder = -1
        self.rooms = Rooms()
        self._sequence = 0
        self._durable = False
        self._file = -1
        self._buffers: list[memoryview] = []
        self._templates: dict[str, MetaTemplate] = {}
        try:
            self.directory.mkdir(mode=0o700)
        except OSError as error:
            raise storage_error(error) from error
        try:
            self.folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._file = os.open(
                self.directory / JOURNAL_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._append({"what": "opened", **_fields(opened)})
        except OSError as error:
            self._close_files()
            self._remove_empty()
            raise storage_error(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        self.close("released" if kind is None else "aborted")

    def receive(self, *, transfer_syntax: str, sop_class: str, sop_instance: str) -> Incoming:
        """Begin one instance as its command announced it; one at a time.

        Raises
        ------
        BadInstance
            If the announced UIDs cannot name an object.
        StorageError
            If the storage does not take it.
        """
        require_keepable(sop_instance, "SOP Instance UID")
        require_keepable(sop_class, "SOP Class UID")
        self.spool.check_trust()
        if not self._durable:
            # Durable with the journal itself.
            self.rooms.make(self.folder)
            self._make_durable()
        crash_point("spool.before-part")
        self._sequence += 1
        if not self._buffers:
            self._buffers.append(memoryview(bytearray(PIECE_BYTES)))
        stem = f"{time.time_ns():019d}-{self._sequence:06d}"
        template = self._templates.get(transfer_syntax)
        if template is None:
            template = self._templates[transfer_syntax] = MetaTemplate(self.opened, transfer_syntax)
        return Incoming(self, stem, self._buffers, template, sop_class, sop_instance)

    def notice(self, what: str, fields: Mapping[str, object]) -> None:
        """Write down another request of the association; durable when this returns.

        Raises
        ------
        StorageError
            If the storage does not take it.
        """
        self.spool.check_trust()
        self._make_durable()
        try:
            self._append({"what": what, **fields})
            self.spool.sync(sync_data, self._file)
        except OSError as error:
            raise storage_error(error) from error

    def note(self, what: str, fields: Mapping[str, object]) -> None:
        """Write down what nobody's data rests on; it may be lost in a power cut, or on a disk that is full."""
        with suppress(OSError):
            self._append({"what": what, **fields})

    def close(self, how: str, **more: object) -> None:
        """End the journal: ``released``, ``aborted``, ``lost`` (the peer vanished), ``idle`` or ``drained``."""
        if self._file < 0:
            return
        # The end record is the last that is done here: whoever reads it finds nothing under way.
        self.rooms.clear(self.folder)
        try:
            self._append({"what": "closed", "how": how, "kept": self.kept, **more})
        except OSError:
            # Without an end record the keeper calls the association aborted, which is what a full disk made of it.
            return
        finally:
            self._close_files()

    def _make_durable(self) -> None:
        if self._durable:
            return
        above = -1
        try:
            above = os.open(self.spool.incoming, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for descriptor in (self._file, self.folder, above):
                self.spool.sync(sync, descriptor)
        except OSError as error:
            raise storage_error(error) from error
        finally:
            close_quietly(above)
        self.rooms.synced()
        self._durable = True

    def _append(self, record: Mapping[str, object]) -> None:
        line = json.dumps({"at": datetime.now(UTC).isoformat().replace("+00:00", "Z"), **record}) + "\n"
        data = line.encode()
        if os.write(self._file, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _close_files(self) -> None:
        close_quietly(self._file)
        close_quietly(self.folder)
        self._file = self.folder = -1

    def _remove_empty(self) -> None:
        try:
            (self.directory / JOURNAL_NAME).unlink(missing_ok=True)
            self.directory.rmdir()
        except OSError:
            # A read-only or failing file system; the keeper removes an empty journal once it can.
            return


def _fields(opened: Opened) -> dict[str, object]:
    return {
        "door": opened.door,
        "calling_ae": opened.calling_ae,
        "called_ae": opened.called_ae,
        "peer_address": opened.peer_address,
        "own_address": opened.own_address,
        "accepted": [list(pair) for pair in opened.accepted],
        "refused": [list(pair) for pair in opened.refused],
        "peer": opened.peer,
        "is_tls": opened.is_tls,
    }
