"""Names that are durable before an instance needs one, and what a crash left under them.

A name is durable once its folder was synced. A journal makes the names of several instances ahead, empty ``.part``
files, so that one sync of the folder serves them all and most instances cost no more than the sync of their own bytes.
What such a file holds when it is complete is told by the digest in its file meta, which is written last: the rename to
``<arrival>.dcm`` tells the keeper, and may be undone by a power cut. ``recover()`` does it again then.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final

from ctnode.archive.header import read_meta
from ctnode.archive.part10 import DIGEST_BYTES
from ctnode.ops import log
from ctnode.words import BadInstance

PART_SUFFIX: Final = ".part"
KEPT_SUFFIX: Final = ".dcm"
# So many names are made at once in the end; an association that brings one instance makes one.
MOST: Final = 16
# Our file meta lies within this.
_META_BYTES: Final = 1 << 14
_READ_BYTES: Final = 1 << 20
# Faults of this process, not of the file that it wanted to read.
OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})


class Rooms:
    """The names that the journal of one association has made ahead."""

    def __init__(self) -> None:
        self._durable: deque[str] = deque()
        self._made: list[str] = []
        self._serial = 0
        self._next = 1

    def take(self) -> str | None:
        """Return a durable name whose file exists and is empty; None if there is none left."""
        return self._durable.popleft() if self._durable else None

    def new_name(self) -> str:
        """Return a name that no file has."""
        self._serial += 1
        return f"{self._serial:06d}{PART_SUFFIX}"

    def make(self, folder: int) -> None:
        """Make the next names, each time twice as many; they are durable after the next sync of the folder.

        On a disk that does not take them, instances make their own and hear why.
        """
        with suppress(OSError):
            for _ in range(self._next):
                name = self.new_name()
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                descriptor = os.open(name, flags, 0o600, dir_fd=folder)
                self._made.append(name)
                os.close(descriptor)
        self._next = min(2 * self._next, MOST)

    def synced(self) -> None:
        """Take note of a sync of the folder."""
        self._durable.extend(self._made)
        self._made.clear()

    def clear(self, folder: int) -> None:
        """Remove what was not needed."""
        for name in (*self._durable, *self._made):
            with suppress(OSError):
                # Read-only or failing: the keeper sweeps it.
                os.unlink(name, dir_fd=folder)
        self._durable.clear()
        self._made.clear()


def is_begun(directory: Path, name: str) -> bool:
    """Return whether an instance is being received into this ``.part``; one that waits for an instance is empty.

    One that has gone since the folder was listed has just become an instance, which that list does not name.
    """
    try:
        return os.stat(directory / name).st_size > 0
    except FileNotFoundError:
        return True


def recover(directory: Path, parts: list[str]) -> tuple[list[str], list[str]]:
    """Look at each ``.part`` of a journal whose receiver is gone: name what is complete, remove what is not.

    Returns
    -------
    tuple of list of str
        The new names of complete instances, whose success the sender may have read; and what has to be looked at by
        somebody: it says that it is complete, but its bytes do not agree, or cannot be read.

    Raises
    ------
    OSError
        If this process can open no file now; nothing is lost by trying again.
    """
    complete: list[str] = []
    doubtful: list[str] = []
    for part in sorted(parts):
        path = directory / part
        try:
            verdict = _is_complete(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in OURS:
                raise
            verdict = False
        if verdict is None:
            path.unlink(missing_ok=True)
        elif verdict:
            # The time of its last byte stands for that of its first, which went with the name.
            arrival_ns = path.stat().st_mtime_ns
            while (kept := directory / f"{arrival_ns:019d}-{part.removesuffix(PART_SUFFIX)}{KEPT_SUFFIX}").exists():
                arrival_ns += 1
            path.rename(kept)
            log.get().info("instance found under its first name", association=directory.name, path=kept.name)
            complete.append(kept.name)
        else:
            doubtful.append(part)
    return complete, doubtful


def _is_complete(path: Path) -> bool | None:
    """Return whether a file holds what its digest says; None if it has no digest yet."""
    with path.open("rb") as file:
        try:
            meta = read_meta(file.read(_META_BYTES))
        except BadInstance:
            return False
        if meta is None or meta.own_digest == bytes(DIGEST_BYTES):
            return None
        file.seek(meta.dataset_start)
        digest = hashlib.sha256()
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
        return digest.digest() == meta.own_digest
