"""The life of a series in rows: one per association, decision, attempt and delivery; never one per instance."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from ctnode.archive.database import Database


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a timeline."""

    at: float
    revision: int
    kind: str
    text: str


def note(database: Database, series_id: int, revision: int, kind: str, text: str, *, at: float | None = None) -> None:
    """Add a row inside the current transaction."""
    database.execute(
        "INSERT INTO timeline (series_id, revision, at, kind, text) VALUES (?, ?, ?, ?, ?)",
        (series_id, revision, time.time() if at is None else at, kind, text),
    )


def read(database: Database, series_id: int) -> tuple[Entry, ...]:
    """Return the rows of a series, oldest first."""
    rows = database.rows("SELECT at, revision, kind, text FROM timeline WHERE series_id = ? ORDER BY id", (series_id,))
    return tuple(Entry(**row) for row in rows)


def seconds(text: str) -> float:
    """Return a time of the journal as seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


def iso(seconds: float | None) -> str:
    """Return a time as ISO 8601 in UTC, or an empty text."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
