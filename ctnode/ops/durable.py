"""Files that survive a power cut, locks that die with their process, and named points for crash tests."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ctnode.words import Unavailable

_CRASH_VARIABLE = "CTNODE_TEST_CRASH"
# The negative control of the power-cut tests: without syncs they have to lose what was acknowledged.
_NO_SYNC = os.environ.get("CTNODE_TEST_NOSYNC") == "1"


def sync(descriptor: int) -> None:
    """Make a file or a directory durable; an error may not be answered with a second try."""
    if not _NO_SYNC:
        os.fsync(descriptor)


def sync_data(descriptor: int) -> None:
    """Make the content of a file durable, without its times; an error may not be answered with a second try."""
    if not _NO_SYNC:
        os.fdatasync(descriptor)


def fsync_directory(directory: Path | str) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(directory: Path, *, below: Path) -> None:
    """Create ``directory`` and its parents under ``below``, each name durable before the next is made."""
    missing: list[Path] = []
    place = directory
    while place != below and not place.is_dir():
        missing.append(place)
        place = place.parent
    for new in reversed(missing):
        new.mkdir(mode=0o700, exist_ok=True)
        fsync_directory(new.parent)


def write_durable(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace the file at ``path`` in one step; old or new content survives, never a mixture."""
    with replacing(path, mode=mode) as file:
        file.write(content)


@contextmanager
def replacing(path: Path, *, mode: int = 0o600) -> Iterator[IO[bytes]]:
    """Give a file to write to that takes the place of ``path`` in one step, synced, unless an error is raised."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def lock(path: Path, *, owner: str) -> int:
    """Take the lock file at ``path`` for the life of this process and return its descriptor.

    Raises
    ------
    Unavailable
        If another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Unavailable(
            f"another process is the {owner} of this root", hint=f"stop it first; it holds {path.name} in {path.parent}"
        ) from None
    return descriptor


def is_locked(path: Path) -> bool:
    """Return whether a living process holds the lock file at ``path``."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _armed_crash() -> tuple[str, int] | None:
    text = os.environ.get(_CRASH_VARIABLE, "")
    if not text:
        return None
    name, _, count = text.partition(":")
    return name, int(count or 1)


_armed = _armed_crash()
_passed = 0


def crash_point(name: str) -> None:
    """Kill this process the n-th time it passes ``name``, if a test armed ``CTNODE_TEST_CRASH=name:n``."""
    global _passed
    if _armed is None or _armed[0] != name:
        return
    _passed += 1
    if _passed == _armed[1]:
        os.kill(os.getpid(), signal.SIGKILL)
