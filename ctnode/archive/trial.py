"""Which files the keeper has in its hands right now, so that its death tells who may have caused it.

The names stand in ``run/settling`` while their batch is settled. Nothing is synced: the note has to survive the end of
the process, which the kernel's memory does, and a power cut accuses nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

FILE_NAME: Final = "settling"


class Trial:
    """The note of one root, written by its one keeper.

    Parameters
    ----------
    run_directory
        The folder of locks, sockets and counters of the root.
    """

    def __init__(self, run_directory: Path) -> None:
        self._file = run_directory / FILE_NAME

    def left_over(self) -> tuple[str, ...]:
        """Return the names that an earlier keeper had in its hands when it died."""
        try:
            return tuple(self._file.read_text(encoding="utf-8").split())
        except FileNotFoundError:
            return ()

    @contextmanager
    def of(self, names: Sequence[str]) -> Iterator[None]:
        """Note ``names`` for the time of a block; what raises leaves the note, so that its files are tried alone."""
        if not names:
            yield
            return
        self.note(names)
        yield
        self.note(())

    def note(self, names: Sequence[str]) -> None:
        """Replace what is noted."""
        # Never cut to nothing: ext4 writes such a file out when it is closed.
        content = "".join(f"{name}\n" for name in names).encode() or b"\n"
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, content, 0)
            os.ftruncate(descriptor, len(content))
        finally:
            os.close(descriptor)
