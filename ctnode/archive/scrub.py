"""Do the files still hold what was acknowledged? Every data set is read and compared with the digest of its row."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ctnode.archive.database import Database
from ctnode.archive.header import read_meta
from ctnode.archive.incoming import HEAD_BYTES
from ctnode.archive.layout import Layout
from ctnode.words import BadInstance

STEP: Final = 200
PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """One file: its path below the root, how many bytes were read, and what is wrong with it (else empty)."""

    path: str
    bytes: int
    fault: str = ""


class Pace:
    """Keeps reading under so many bytes a second, so that the disk stays free for receivers."""

    def __init__(
        self,
        bytes_per_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._began = clock()
        self._read = 0

    def note(self, count: int) -> None:
        """Wait until ``count`` more bytes fit into the rate; a rate of 0 is none."""
        self._read += count
        ahead_s = self._read / self._rate - (self._clock() - self._began) if self._rate else 0.0
        if ahead_s > 0:
            self._sleep(ahead_s)


def scrub(database: Database, layout: Layout, pace: Pace) -> Iterator[Scrubbed]:
    """Yield every instance of the index that lies in the store, in the order of arrival; reads only.

    One that is still on its way from the journal is left out: its file is not there, and nothing is wrong with it.
    """
    last = 0
    while rows := database.execute(
        "SELECT id, path, digest FROM instances WHERE id > ? ORDER BY id LIMIT ?", (last, STEP)
    ).fetchall():
        last = rows[-1][0]
        for _, path, digest in rows:
            file = layout.store / path
            # Retention may take it away in between.
            with suppress(FileNotFoundError):
                yield _scrub_one(file, f"store/{path}", digest, pace)


def _scrub_one(file: Path, name: str, digest: str, pace: Pace) -> Scrubbed:
    count = 0
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
            meta = read_meta(head)
            if meta is None:
                return Scrubbed(name, len(head), "the file has no preamble any more")
            opened.seek(meta.dataset_start)
            found = hashlib.sha256()
            while piece := opened.read(PIECE_BYTES):
                found.update(piece)
                count += len(piece)
                pace.note(len(piece))
    except BadInstance as error:
        return Scrubbed(name, count, str(error))
    except FileNotFoundError:
        raise
    except OSError as error:
        return Scrubbed(name, count, f"cannot be read: {error.strerror}")
    if found.hexdigest() != digest:
        return Scrubbed(name, count, "the data set is not the one that was received")
    return Scrubbed(name, count)
