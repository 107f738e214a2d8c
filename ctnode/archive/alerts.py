"""What needs a person, in its order, and how far each channel was told of it."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from ctnode.archive.database import Database

# Older ones and more of them than this are forgotten, told or not.
KEPT_S: Final = 30 * 86400.0
KEPT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that needs a person; ``count`` is of like ones that came together."""

    id: int
    at: float
    kind: str
    subject: str
    text: str
    count: int


@dataclass(frozen=True, slots=True)
class Digest:
    """What a channel has not been told yet: how much of each kind, and the first of them in full."""

    counts: dict[str, int]
    shown: tuple[Alert, ...]
    oldest_at: float
    last_id: int


@dataclass(frozen=True, slots=True)
class Channel:
    """How far somebody was told, and how the last try went."""

    name: str
    told: int
    sent_at: float | None
    due_at: float
    failures: int
    comment: str


_COLUMNS: Final = "id, at, kind, subject, text, count"


def add(database: Database, kind: str, subject: str, text: str, count: int = 1) -> None:
    """Write an alert down, inside the current transaction."""
    database.execute(
        "INSERT INTO alerts (at, kind, subject, text, count) VALUES (?, ?, ?, ?, ?)",
        (time.time(), kind, subject, text, count),
    )


def condition(database: Database, kind: str, subject: str, text: str, *, holds: bool) -> bool:
    """Write down that a condition holds or is over; it alerts once when it begins.

    Returns
    -------
    bool
        Whether it has just begun.
    """
    with database.immediate():
        if not holds:
            database.execute("DELETE FROM conditions WHERE kind = ? AND subject = ?", (kind, subject))
            return False
        began = database.execute(
            "INSERT OR IGNORE INTO conditions (kind, subject, since) VALUES (?, ?, ?)", (kind, subject, time.time())
        )
        if began.rowcount:
            add(database, kind, subject, text)
        return bool(began.rowcount)


def latest(database: Database, limit: int = 100) -> tuple[Alert, ...]:
    """Return the newest alerts, newest first."""
    return tuple(
        Alert(**row) for row in database.rows(f"SELECT {_COLUMNS} FROM alerts ORDER BY id DESC LIMIT ?", (limit,))
    )


def untold(database: Database, told: int, kinds: Collection[str], *, shown: int = 20) -> Digest | None:
    """Return what came after ``told`` of these kinds, if anything did."""
    marks = ", ".join("?" * len(kinds))
    where = f"FROM alerts WHERE id > ? AND kind IN ({marks})"
    counted = database.execute(
        f"SELECT kind, sum(count), min(at), max(id) {where} GROUP BY kind", (told, *kinds)
    ).fetchall()
    if not counted:
        return None
    rows = database.rows(f"SELECT {_COLUMNS} {where} ORDER BY id LIMIT ?", (told, *kinds, shown))
    return Digest(
        {kind: count for kind, count, _, _ in counted},
        tuple(Alert(**row) for row in rows),
        min(row[2] for row in counted),
        max(row[3] for row in counted),
    )


def channel(database: Database, name: str) -> Channel:
    """Return a channel; a new one hears of what comes from now on."""
    row = database.row("SELECT name, told, sent_at, due_at, failures, comment FROM channels WHERE name = ?", (name,))
    if row is None:
        with database.immediate():
            database.execute(
                "INSERT OR IGNORE INTO channels (name, told) VALUES (?, (SELECT coalesce(max(id), 0) FROM alerts))",
                (name,),
            )
        return channel(database, name)
    return Channel(**row)


def channels(database: Database, names: Collection[str]) -> tuple[Channel, ...]:
    """Return the channels of these names that were ever served, by name; reads only."""
    rows = database.rows("SELECT name, told, sent_at, due_at, failures, comment FROM channels ORDER BY name")
    return tuple(Channel(**row) for row in rows if row["name"] in names)


def told(database: Database, name: str, last_id: int) -> None:
    """Write down that a channel was told up to an alert."""
    with database.immediate():
        database.execute(
            "UPDATE channels SET told = ?, sent_at = ?, due_at = 0, failures = 0, comment = '' WHERE name = ?",
            (last_id, time.time(), name),
        )


def not_told(database: Database, name: str, why: str, wait_s: float) -> None:
    """Write down that a channel could not be told, and when it is tried again."""
    with database.immediate():
        database.execute(
            "UPDATE channels SET failures = failures + 1, comment = ?, due_at = ? WHERE name = ?",
            (why, time.time() + wait_s, name),
        )


def forget_old(database: Database) -> None:
    """Forget what is too old or too much."""
    with database.immediate():
        database.execute(
            "DELETE FROM alerts WHERE at < ? OR id <= (SELECT max(id) FROM alerts) - ?", (time.time() - KEPT_S, KEPT)
        )
