"""One row for each destination: whether it fails as a whole and until when it is left alone, and whether it is paused.

What a destination does to all objects alike (down, full, rejecting) is noted here and not at each of ten thousand
objects: so they keep their order and their turn, and after its return nothing waits for a time of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from ctnode.archive import outbox
from ctnode.archive.database import Database
from ctnode.archive.outbox import OPEN
from ctnode.archive.patience import given_up_words

# The first second of the year 9999: what ISO 8601 can still write.
FOR_EVER: Final = 253370764800.0
# Between the name of a target of kind "sender" and that of the peer; no name holds it.
AT: Final = "@"
# Counting stops here: a list of late objects is long enough then.
COUNT_LIMIT: Final = 1000
_WAITING: Final = "state IN ('SENDING', 'RETRY')"


@dataclass(frozen=True, slots=True)
class Lane:
    """How one destination fares."""

    name: str
    failures: int
    due_at: float
    failing_since: float | None
    comment: str
    paused_until: float | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits for one destination; counted up to ``COUNT_LIMIT``."""

    waiting: int
    late: int
    oldest_at: float | None


_COLUMNS: Final = "name, failures, due_at, failing_since, comment, paused_until"


def get(database: Database, name: str) -> Lane:
    """Return a destination; one that nothing was ever owed to is well."""
    row = database.row(f"SELECT {_COLUMNS} FROM lanes WHERE name = ?", (name,))
    return Lane(**row) if row is not None else Lane(name, 0, 0.0, None, "", None)


def every(database: Database) -> tuple[Lane, ...]:
    """Return all destinations that something was ever owed to, by name."""
    return tuple(Lane(**row) for row in database.rows(f"SELECT {_COLUMNS} FROM lanes ORDER BY name"))


def due(database: Database) -> tuple[str, ...]:
    """Return the destinations for which something is due, neither paused nor left alone."""
    now = time.time()
    ready = [
        name
        for name, due_at, paused_until in database.execute("SELECT name, due_at, paused_until FROM lanes ORDER BY name")
        if due_at <= now and (paused_until is None or paused_until <= now)
    ]
    return tuple(name for name in ready if _anything_due(database, name, now))


def _anything_due(database: Database, name: str, now: float) -> bool:
    (found,) = database.execute(
        "SELECT EXISTS (SELECT 1 FROM deliveries WHERE state = 'PENDING' AND lane = ?1)"
        f" OR EXISTS (SELECT 1 FROM deliveries WHERE {_WAITING} AND lane = ?1 AND state = 'RETRY' AND due_at <= ?2)"
        f" OR EXISTS (SELECT 1 FROM deliveries WHERE {_WAITING} AND lane = ?1 AND state = 'SENDING'"
        " AND lease_until <= ?2)"
        " OR EXISTS (SELECT 1 FROM deliveries WHERE state = 'SENT' AND proof_at IS NOT NULL AND lane = ?1"
        " AND proof_at <= ?2)",
        (name, now),
    ).fetchone()
    return bool(found)


def failed(database: Database, name: str, comment: str, wait_s: float, give_up_s: float | None = None) -> None:
    """Write down that a destination failed as a whole, and leave it alone for ``wait_s``.

    What has waited for ``give_up_s`` while it failed for as long is given up; a pause is no failing.
    """
    now = time.time()
    with database.immediate():
        database.execute("INSERT OR IGNORE INTO lanes (name) VALUES (?)", (name,))
        database.execute(
            "UPDATE lanes SET failures = failures + 1, due_at = ?1, comment = ?2, failing_since = coalesce(max("
            "failing_since, CASE WHEN paused_until <= ?3 THEN paused_until ELSE 0 END), ?3) WHERE name = ?4",
            (now + wait_s, comment, now, name),
        )
    since = get(database, name).failing_since
    if give_up_s is None or since is None or now - since < give_up_s:
        return
    words = given_up_words(give_up_s, comment)
    has_more = True
    while has_more:
        with database.immediate():
            has_more = outbox.give_up(database, name, now - give_up_s, words) > 0


def well(database: Database, name: str) -> None:
    """Write down that a destination answers."""
    with database.immediate():
        database.execute(
            "UPDATE lanes SET failures = 0, due_at = 0, failing_since = NULL, comment = '' WHERE name = ?", (name,)
        )


def hurry(database: Database, name: str) -> None:
    """Let the next try be now, at a sender as at all of its lanes, inside the current transaction."""
    database.execute(
        "UPDATE lanes SET due_at = 0 WHERE name = ?1 OR substr(name, 1, length(?1) + 1) = ?1 || ?2", (name, AT)
    )


def pause(database: Database, name: str, until: float | None) -> None:
    """Send nothing to a destination until a time, or resume with None, inside the current transaction.

    A destination that is the sender has a lane for each peer: all of them.
    """
    database.execute("INSERT OR IGNORE INTO lanes (name) VALUES (?)", (name,))
    database.execute(
        "UPDATE lanes SET paused_until = ?1, failing_since = iif(?1 IS NULL, NULL, failing_since)"
        " WHERE name = ?2 OR substr(name, 1, length(?2) + 1) = ?2 || ?3",
        (until, name, AT),
    )


def backlog(database: Database, name: str, late_s: float) -> Backlog:
    """Return what waits for a destination, and how much of it for longer than ``late_s``."""
    waiting, late, oldest = database.execute(
        f"SELECT (SELECT count(*) FROM (SELECT 1 FROM deliveries WHERE {OPEN} AND lane = ?1 LIMIT {COUNT_LIMIT})),"
        f" (SELECT count(*) FROM (SELECT 1 FROM deliveries WHERE {OPEN} AND lane = ?1 AND posted_at < ?2"
        f" LIMIT {COUNT_LIMIT})),"
        f" (SELECT posted_at FROM deliveries WHERE {OPEN} AND lane = ?1 ORDER BY posted_at LIMIT 1)",
        (name, time.time() - late_s),
    ).fetchone()
    return Backlog(waiting, late, oldest)


def readdress(database: Database, name: str, series_id: int, lane: str) -> None:
    """Give what waits for a destination of a series another lane, inside the current transaction."""
    database.execute("INSERT OR IGNORE INTO lanes (name) VALUES (?)", (lane,))
    database.execute(
        "UPDATE deliveries SET lane = ? WHERE state = 'PENDING' AND lane = ? AND series_id = ?", (lane, name, series_id)
    )


def waiting_series(database: Database, name: str) -> tuple[int, ...]:
    """Return the series that something waits of for a destination."""
    return tuple(
        row[0]
        for row in database.execute(
            "SELECT DISTINCT series_id FROM deliveries WHERE state = 'PENDING' AND lane = ?", (name,)
        )
    )


def senders(database: Database, series_id: int) -> tuple[tuple[str, str], ...]:
    """Return name in ``[[peers]]`` and AE title of who sent a series over the network, the latest first."""
    return tuple(
        database.execute(
            "SELECT a.peer, a.calling_ae FROM association_series AS fed JOIN associations AS a"
            " ON a.id = fed.association_id WHERE fed.series_id = ? AND a.door = 'network' ORDER BY a.id DESC",
            (series_id,),
        ).fetchall()
    )
