"""Whether the storage can be trusted: a mark in ``run/`` when a sync failed, and the probe that takes it away.

After a failed sync nobody knows what the disk holds: the kernel reports the error once, marks the pages clean and calls
the next sync a success. So nothing is tried again. The mark stays, whatever happens, until the receiver starts anew and
a probe file that was written, synced and read back from the disk is as it was.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ctnode.archive.incoming import close_quietly
from ctnode.archive.layout import Layout
from ctnode.archive.spool import FULL
from ctnode.ops.durable import fsync_directory, sync, write_durable

MARK_NAME: Final = "storage-suspect.json"
# Nothing that the keeper takes for a journal.
PROBE_NAME: Final = ".probe"
PROBE_BYTES: Final = 1 << 16


def mark(run_directory: Path, reason: str) -> None:
    """Write down that the storage is suspect; on a disk that takes nothing, what the receivers remember has to do."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    try:
        write_durable(run_directory / MARK_NAME, json.dumps({"at": at, "reason": reason}).encode())
    except OSError:
        return


def marked(run_directory: Path) -> str:
    """Return why the storage is suspect, or an empty text."""
    try:
        content = json.loads((run_directory / MARK_NAME).read_bytes())
    except FileNotFoundError:
        return ""
    except (OSError, ValueError):
        return "storage is suspect: its mark cannot be read"
    return f"{content.get('reason', 'storage is suspect')} (since {content.get('at', 'an unknown time')})"


def clear_by_probe(layout: Layout) -> str:
    """Try the disk at the start of the receiver: return why it stays suspect, or take the mark away."""
    fault = _probe(layout.incoming)
    if fault:
        mark(layout.run, fault)
        return fault
    try:
        (layout.run / MARK_NAME).unlink()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"storage is suspect: its mark cannot be removed: {error.strerror}"
    return ""


def _probe(folder: Path) -> str:
    """Write, sync and read back a file; return what went wrong.

    A disk that is full is no fault: the reserve is looked at every second, this only once.
    """
    content = os.urandom(PROBE_BYTES)
    file, path = -1, folder / PROBE_NAME
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        if os.write(file, content) != len(content):
            return ""
        sync(file)
        fsync_directory(folder)
        # What is read below comes from the disk, not from memory.
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        found = os.pread(file, PROBE_BYTES, 0)
    except OSError as error:
        if error.errno in FULL:
            return ""
        return f"storage is suspect: its probe failed: {error.strerror or type(error).__name__}"
    finally:
        close_quietly(file)
        with suppress(OSError):
            path.unlink(missing_ok=True)
    return "" if found == content else "storage is suspect: its probe came back changed"
