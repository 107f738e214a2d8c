"""What is left of a deleted image: its UID, its identity, when it went and by which rule.

The same stands in one file for each series below ``tombstones/``, so that an index that is made anew knows it too.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.ops.durable import fsync_directory, make_directories, sync
from ctnode.words import WrongState


@dataclass(frozen=True, slots=True)
class Tombstone:
    """One image that is gone; ``instance_id`` was its row's, and becomes so again when it comes back."""

    sop_instance: str
    digest: str
    transfer_syntax: str
    instance_id: int
    revision: int
    bytes: int
    deleted_at: float
    rule: str


_COLUMNS = "sop_instance, digest, transfer_syntax, instance_id, revision, bytes, deleted_at, rule"


def find(database: Database, series_id: int, sop_instance: str, digest: str, transfer_syntax: str) -> Tombstone | None:
    """Return the tombstone of an identity, if a rule deleted it."""
    row = database.row(
        f"SELECT {_COLUMNS} FROM tombstones WHERE series_id = ? AND sop_instance = ? AND digest = ?"
        " AND transfer_syntax = ?",
        (series_id, sop_instance, digest, transfer_syntax),
    )
    return Tombstone(**row) if row is not None else None


def of_series(database: Database, series_id: int, *, limit: int = -1) -> tuple[Tombstone, ...]:
    """Return the tombstones of a series by SOP Instance UID."""
    rows = database.rows(f"SELECT {_COLUMNS} FROM tombstones WHERE series_id = ? LIMIT ?", (series_id, limit))
    return tuple(Tombstone(**row) for row in rows)


def add(database: Database, series_id: int, stones: Sequence[Tombstone]) -> None:
    """Put tombstones into the index, inside the current transaction."""
    database.connection.executemany(
        f"INSERT INTO tombstones (series_id, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(series_id, *asdict(stone).values()) for stone in stones],
    )
    database.execute("UPDATE series SET deleted = deleted + ? WHERE id = ?", (len(stones), series_id))


def drop(database: Database, series_id: int, stone: Tombstone) -> None:
    """Take the tombstone of an image away that came again, inside the current transaction."""
    database.execute(
        "DELETE FROM tombstones WHERE series_id = ? AND sop_instance = ? AND digest = ? AND transfer_syntax = ?",
        (series_id, stone.sop_instance, stone.digest, stone.transfer_syntax),
    )
    database.execute("UPDATE series SET deleted = deleted - 1 WHERE id = ?", (series_id,))


def require_unmoved(database: Database, series_id: int) -> None:
    """Check that nothing of a series is going just now, inside a transaction.

    Raises
    ------
    WrongState
        If a rule is deleting a part of it.
    """
    going = database.execute("SELECT 1 FROM removals WHERE ended_at IS NULL AND series_id = ?", (series_id,)).fetchone()
    if going is not None:
        raise WrongState("retention is deleting a part of this series just now", hint="try again in a minute")


def require_originals(database: Database, series_id: int) -> None:
    """Check that the originals of a series are there and stay, inside a transaction.

    Raises
    ------
    WrongState
        If some of them were deleted or are going, so that nothing can be made of the rest.
    """
    require_unmoved(database, series_id)
    (deleted, left) = database.execute("SELECT deleted, instances FROM series WHERE id = ?", (series_id,)).fetchone()
    if deleted:
        raise WrongState(
            f"{deleted} of the {deleted + left} images of this series were deleted by a rule of retention",
            hint="send the series again; what comes back is taken as what it was",
        )


# ---------------------------------------------------------------------------------------------------- files


def series_record(database: Database, series_id: int) -> dict[str, Any]:
    """Return what a new index has to know of a series none of whose images is left."""
    row = database.row(
        "SELECT studies.uid AS study, series.uid AS series, split, modality, patient_key, frame_of_reference, rows,"
        " columns, ct_instances, own_instances, series.first_at, series.last_at FROM series"
        " JOIN studies ON studies.id = series.study_id WHERE series.id = ?",
        (series_id,),
    )
    assert row is not None
    return row


def append(layout: Layout, place: Path, record: dict[str, Any]) -> None:
    """Add a line to the file of a series; it is durable when this returns."""
    if not layout.tombstones.is_dir():
        layout.tombstones.mkdir(mode=0o700, exist_ok=True)
        fsync_directory(layout.root)
    make_directories(place.parent, below=layout.tombstones)
    is_new = not place.exists()
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        # A line that a crash cut short must not swallow the one behind it.
        lead = b"" if is_new else b"\n"
        line = lead + json.dumps(record, separators=(",", ":")).encode() + b"\n"
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        fsync_directory(place.parent)


def lines_of(place: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a series' file."""
    for line in place.read_bytes().splitlines():
        try:
            record = json.loads(line) if line else None
        except ValueError:
            # Cut by a crash; it was written again before anything was deleted.
            continue
        if isinstance(record, dict):
            yield record
