"""One instance on its way into the journal: gathered, hashed and written in pieces, then made durable."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ctnode.archive.elements import Buffer, ShortBuffer
from ctnode.archive.hashing import RunningDigest
from ctnode.archive.header import Uids, read_uids
from ctnode.archive.layout import require_keepable
from ctnode.archive.part10 import DIGEST_BYTES, MetaTemplate
from ctnode.archive.rooms import KEPT_SUFFIX
from ctnode.ops.durable import crash_point, sync, sync_data
from ctnode.words import BadInstance, Mismatch, StorageError

if TYPE_CHECKING:
    from ctnode.archive.spool import Journal

# So far into a data set UIDs are looked for at first.
HEAD_BYTES: Final = 1 << 16
# Hashed and written at once: large enough that neither the lock of the interpreter nor the file system is taken often,
# small enough that most of it happens while the sender still sends.
PIECE_BYTES: Final = 1 << 18
# A fragment of such a size is worth a write of its own.
LARGE_BYTES: Final = 1 << 16
_PAGE_BYTES: Final = 1 << 12


@dataclass(frozen=True, slots=True)
class Kept:
    """A durable instance of the journal."""

    directory: Path
    name: str
    uids: Uids
    digest: str
    size_bytes: int

    @property
    def path(self) -> Path:
        """Return where the instance lies until the keeper settles it."""
        return self.directory / self.name


class Incoming:
    """One instance on its way into the journal.

    ``write()`` takes the encoded data set piece by piece, ``commit()`` makes it durable, ``discard()`` leaves nothing.
    """

    def __init__(
        self,
        journal: Journal,
        stem: str,
        buffers: list[memoryview],
        template: MetaTemplate,
        sop_class: str,
        sop_instance: str,
    ) -> None:
        self._journal = journal
        self._name = f"{stem}{KEPT_SUFFIX}"
        self._transfer_syntax = template.transfer_syntax
        self._sop_class = sop_class
        self._sop_instance = sop_instance
        self._hash = RunningDigest(journal.spool.hashing)
        self._uids: Uids | None = None
        self._fault: BadInstance | None = None
        self.size_bytes = 0
        # The buffer begins with the file meta and is written whenever it is full.
        self._buffers = buffers
        self._buffer = buffers[0]
        meta = template.fill(sop_class, sop_instance)
        self._buffer[: len(meta)] = meta
        self._digest_at = len(meta) - DIGEST_BYTES
        self._dataset_start = self._hashed = self._filled = len(meta)
        self._written = self._begun_to = 0
        self._is_first = True
        self._file = -1
        room = journal.rooms.take()
        self._part = room or journal.rooms.new_name()
        self._is_name_durable = room is not None
        flags = os.O_RDWR | os.O_CLOEXEC | (0 if room else os.O_CREAT | os.O_EXCL)
        try:
            self._file = os.open(self._part, flags, 0o600, dir_fd=journal.folder)
            # Tells it from a name that waits: the first piece may be a long time coming.
            os.pwrite(self._file, b"\0", 0)
        except OSError as error:
            self.discard()
            raise storage_error(error) from error

    def write(self, fragment: bytes | bytearray | memoryview) -> None:
        """Append a piece of the encoded data set.

        Raises
        ------
        StorageError
            If the storage does not take it; the file is gone then.
        """
        start, end = 0, len(fragment)
        self.size_bytes += end
        if end >= LARGE_BYTES and self._hashed == self._filled and not self._hash.is_alone:
            self._write_through(memoryview(fragment))
            return
        while start < end:
            count = min(end - start, PIECE_BYTES - self._filled)
            self._buffer[self._filled : self._filled + count] = fragment[start : start + count]
            self._filled += count
            start += count
            if self._filled == PIECE_BYTES:
                self._look_for_uids(self._buffer[self._hashed : self._filled])
                is_begun = self._hash.begin(self._buffer[self._hashed : self._filled])
                # The disk is at work while the piece is hashed.
                self._write_piece()
                self._start_writing_out()
                if is_begun:
                    self._swap_buffers()
                else:
                    self._hash.update(self._buffer[self._hashed : self._filled])
                self._next_piece()

    def commit(self) -> Kept:
        """Check the UIDs, make the file durable under its name, and return it.

        Raises
        ------
        BadInstance, Mismatch
            If the data set cannot be read, names nothing, or something else than the command did.
        StorageError
            If the storage failed; nothing may be acknowledged and nothing is left behind.
        """
        spool, folder = self._journal.spool, self._journal.folder
        try:
            rest = self._buffer[self._hashed : self._filled]
            self._look_for_uids(rest, is_last=True)
            self._hash.update(rest)
            digest = self._hash.digest()
            crash_point("spool.before-check")
            if self._uids is None and self._fault is None:
                # They do not stand where they were looked for: the whole of the file is searched.
                self._write_piece()
                self._next_piece()
            uids = self._check_uids()
            # Last: a file with its digest is taken for an instance, whatever becomes of this process.
            is_small = self._is_first
            if is_small:
                self._buffer[self._digest_at : self._digest_at + len(digest)] = digest
            self._write_piece()
            if not is_small:
                os.pwrite(self._file, digest, self._digest_at)
            crash_point("spool.before-fsync")
            spool.sync(sync_data, self._file)
            # What fsync took is durable; closing adds nothing to it.
            self._close()
            crash_point("spool.before-rename")
            os.rename(self._part, self._name, src_dir_fd=folder, dst_dir_fd=folder)
        except BadInstance:
            self.discard()
            raise
        except OSError as error:
            self.discard()
            raise storage_error(error) from error
        if not self._is_name_durable:
            self._make_name_durable()
        crash_point("spool.before-acknowledgement")
        self._journal.kept += 1
        return Kept(self._journal.directory, self._name, uids, digest.hex(), self.size_bytes)

    def discard(self) -> None:
        """Remove what was written so far."""
        self._close()
        self._hash.settle()
        _unlink(self._part, self._journal.folder)

    def _make_name_durable(self) -> None:
        """Sync the folder, and with this name those of the next instances."""
        journal = self._journal
        journal.rooms.make(journal.folder)
        crash_point("spool.before-directory-fsync")
        try:
            journal.spool.sync(sync, journal.folder)
        except OSError as error:
            _unlink(self._name, journal.folder)
            raise storage_error(error) from error
        journal.rooms.synced()

    def _close(self) -> None:
        close_quietly(self._file)
        self._file = -1

    def _swap_buffers(self) -> None:
        if len(self._buffers) == 1:
            self._buffers.append(memoryview(bytearray(PIECE_BYTES)))
        self._buffer = self._buffers[self._buffer is self._buffers[0]]

    def _look_for_uids(self, piece: memoryview, *, is_last: bool = False) -> None:
        if self._is_first and self.size_bytes:
            head = piece[:HEAD_BYTES]
            self._read_uids(head, whole=is_last and self.size_bytes == len(head))

    def _write_through(self, fragment: memoryview) -> None:
        """Write a large fragment from where it was received: nothing of the data set waits in the buffer."""
        if self._filled:
            self._look_for_uids(fragment)
            self._write_piece()
            self._next_piece()
        self._write_out(fragment)
        if self._written - self._begun_to >= PIECE_BYTES:
            self._start_writing_out()
        self._hash.update(fragment)

    def _write_piece(self) -> None:
        self._write_out(self._buffer[: self._filled])

    def _write_out(self, rest: memoryview) -> None:
        self._written += len(rest)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            self.discard()
            raise storage_error(error) from error

    def _next_piece(self) -> None:
        self._filled = self._hashed = 0
        self._is_first = False

    def _start_writing_out(self) -> None:
        """Let the disk begin with what it has got, so that the sync at the end finds little left to wait for.

        Advice to forget pages is what Linux starts writing dirty ones on; they stay in memory until that is done.
        """
        # Not the page that the next write ends: it would be written twice.
        end = self._written - self._written % _PAGE_BYTES
        with suppress(OSError):
            os.posix_fadvise(self._file, self._begun_to, end - self._begun_to, os.POSIX_FADV_DONTNEED)
        self._begun_to = end

    def _read_uids(self, data: Buffer, *, whole: bool) -> None:
        try:
            self._uids = read_uids(data, self._transfer_syntax, whole=whole)
        except ShortBuffer:
            return
        except BadInstance as error:
            self._fault = error

    def _check_uids(self) -> Uids:
        if not self.size_bytes:
            raise BadInstance("the data set is empty")
        if self._uids is None and self._fault is None:
            with (
                mmap.mmap(self._file, 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as view,
                # Released even when an exception holds the frame: a mapping with open views cannot be closed.
                view[self._dataset_start :] as dataset,
            ):
                self._uids = read_uids(dataset, self._transfer_syntax, whole=True)
        if self._fault is not None:
            raise self._fault
        uids = self._uids
        assert uids is not None
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


def close_quietly(descriptor: int) -> None:
    """Close a descriptor, if it is one."""
    if descriptor >= 0:
        with suppress(OSError):
            # Linux gives the descriptor back whatever close() says.
            os.close(descriptor)


def _unlink(name: str, folder: int) -> None:
    with suppress(OSError):
        # Gone, read-only or failing: the keeper sweeps .part files of ended associations.
        os.unlink(name, dir_fd=folder)


def storage_error(error: OSError) -> StorageError:
    """Return what a sender may know of a fault of the storage."""
    return StorageError(f"storage failed: {error.strerror or type(error).__name__}", hint="see `ctnode doctor`")
