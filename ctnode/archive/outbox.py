"""What the node owes to others: one row per object and destination, claimed by lease, tried until it arrives."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ctnode.archive import timeline
from ctnode.archive.database import Database
from ctnode.words import DELIVERY_TRANSITIONS, DeliveryEvent, DeliveryState, NotFound, next_state

LEASE_S: Final = 600.0
ORIGINAL: Final = "original"

_OPEN: Final = "state IN ('PENDING', 'SENDING', 'RETRY')"


@dataclass(frozen=True, slots=True)
class Parcel:
    """One object for one destination; ``path`` is below store/ for originals, else below the results folder."""

    target: str
    kind: str
    path: str
    digest: str
    # Higher goes first.
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Delivery:
    """One object on its way to one destination."""

    id: int
    revision_id: int
    target: str
    kind: str
    path: str
    state: DeliveryState
    attempt: int
    due_at: float
    status: int | None
    comment: str


_COLUMNS: Final = "id, revision_id, target, kind, path, state, attempt, due_at, status, comment"


def _record(row: dict[str, object]) -> Delivery:
    return Delivery(**{**row, "state": DeliveryState(str(row["state"]))})  # type: ignore[arg-type]


def post(database: Database, revision_id: int, parcels: Sequence[Parcel], *, again: bool = False) -> None:
    """Owe parcels, inside the current transaction; what was sent with these very bytes only if ``again``."""
    now = time.time()
    for parcel in parcels:
        row = database.execute(
            "SELECT id, state, digest FROM deliveries WHERE revision_id = ? AND target = ? AND path = ?",
            (revision_id, parcel.target, parcel.path),
        ).fetchone()
        if row is None:
            database.insert(
                "INSERT INTO deliveries (revision_id, target, kind, path, digest, state, due_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (revision_id, parcel.target, parcel.kind, parcel.path, parcel.digest, DeliveryState.PENDING, now),
            )
            continue
        delivery_id, state, digest = row
        arrived = state in {DeliveryState.SENT, DeliveryState.CONFIRMED} and digest == parcel.digest
        if state != DeliveryState.SENDING and digest != parcel.digest:
            database.execute("UPDATE deliveries SET digest = ? WHERE id = ?", (parcel.digest, delivery_id))
        if (again or not arrived) and state not in {DeliveryState.PENDING, DeliveryState.SENDING}:
            _move(database, delivery_id, DeliveryEvent.REQUEUE, "attempt = 0, due_at = ?, comment = ''", now)


def targets_due(database: Database) -> tuple[str, ...]:
    """Return the destinations for which something is due."""
    return tuple(
        row[0]
        for row in database.execute(
            f"SELECT DISTINCT target FROM deliveries WHERE {_OPEN}"
            " AND (CASE state WHEN 'SENDING' THEN lease_until ELSE due_at END) <= ?",
            (time.time(),),
        )
    )


def claim(database: Database, target: str, owner: str, *, limit: int = 50) -> tuple[Delivery, ...]:
    """Take what is due for one destination, oldest first."""
    now = time.time()
    with database.immediate():
        for delivery_id, revision_id, attempt in database.execute(
            f"SELECT id, revision_id, attempt FROM deliveries WHERE {_OPEN} AND target = ?"
            " AND state = 'SENDING' AND lease_until <= ?",
            (target, now),
        ).fetchall():
            words = f"attempt {attempt} was cut short"
            event = DeliveryEvent.CANCEL if _is_superseded(database, revision_id) else DeliveryEvent.FAIL
            _move(database, delivery_id, event, "due_at = ?, comment = ?", now, words)
        for (delivery_id,) in database.execute(
            f"SELECT id FROM deliveries WHERE {_OPEN} AND target = ? AND state = 'RETRY' AND due_at <= ?", (target, now)
        ).fetchall():
            _move(database, delivery_id, DeliveryEvent.COME_DUE, "comment = comment")
        ids = [
            row[0]
            for row in database.execute(
                f"SELECT id FROM deliveries WHERE {_OPEN} AND target = ? AND state = 'PENDING' ORDER BY id LIMIT ?",
                (target, limit),
            )
        ]
        for delivery_id in ids:
            assignments = "attempt = attempt + 1, owner = ?, lease_until = ?"
            _move(database, delivery_id, DeliveryEvent.CLAIM, assignments, owner, now + LEASE_S)
    return tuple(get(database, delivery_id) for delivery_id in ids)


def get(database: Database, delivery_id: int) -> Delivery:
    """Return a delivery by id."""
    row = database.row(f"SELECT {_COLUMNS} FROM deliveries WHERE id = ?", (delivery_id,))
    if row is None:
        raise NotFound(f"no delivery {delivery_id}")
    return _record(row)


def sent(database: Database, delivery: Delivery, status: int, comment: str) -> None:
    """Write down that the destination took the object."""
    _end(database, delivery, DeliveryEvent.SEND, status, comment, f"sent to {delivery.target}")


def failed(database: Database, delivery: Delivery, status: int | None, comment: str, *, wait_s: float | None) -> None:
    """Write down a failed attempt; ``wait_s`` None means that trying again is in vain."""
    if wait_s is None:
        _end(database, delivery, DeliveryEvent.DIE, status, comment, f"given up for {delivery.target}: {comment}")
    else:
        words = f"attempt {delivery.attempt} for {delivery.target}: {comment}; again in {wait_s:.0f} s"
        _end(database, delivery, DeliveryEvent.FAIL, status, comment, words, due_at=time.time() + wait_s)


def _end(
    database: Database,
    delivery: Delivery,
    event: DeliveryEvent,
    status: int | None,
    comment: str,
    words: str,
    *,
    due_at: float | None = None,
) -> None:
    with database.immediate():
        now = time.time()
        current = get(database, delivery.id)
        if current.state is not DeliveryState.SENDING or current.attempt != delivery.attempt:
            return
        if event is DeliveryEvent.FAIL and _is_superseded(database, delivery.revision_id):
            event = DeliveryEvent.CANCEL
        _move(
            database, delivery.id, event, "status = ?, comment = ?, due_at = coalesce(?, due_at), ended_at = ?",
            status, comment, due_at, now,
        )  # fmt: skip
        series_id, n = database.execute(
            "SELECT series_id, n FROM revisions WHERE id = ?", (delivery.revision_id,)
        ).fetchone()
        coded = words if status is None else f"{words} (status {status:04X}H)"
        timeline.note(database, series_id, n, "delivery", f"{delivery.path}: {coded}", at=now)


def _is_superseded(database: Database, revision_id: int) -> bool:
    return (
        database.execute("SELECT 1 FROM revisions WHERE id = ? AND state = 'SUPERSEDED'", (revision_id,)).fetchone()
        is not None
    )


def _move(database: Database, delivery_id: int, event: DeliveryEvent, assignments: str, *values: object) -> None:
    (state,) = database.execute("SELECT state FROM deliveries WHERE id = ?", (delivery_id,)).fetchone()
    after = next_state(DELIVERY_TRANSITIONS, DeliveryState(state), event)
    database.execute(f"UPDATE deliveries SET state = ?, {assignments} WHERE id = ?", (after, *values, delivery_id))


def of_series(database: Database, series_id: int) -> tuple[Delivery, ...]:
    """Return the deliveries of a series, oldest first."""
    columns = ", ".join(f"deliveries.{name}" for name in _COLUMNS.split(", "))
    rows = database.rows(
        f"SELECT {columns} FROM deliveries JOIN revisions ON revisions.id = deliveries.revision_id"
        " WHERE revisions.series_id = ? ORDER BY deliveries.id",
        (series_id,),
    )
    return tuple(_record(row) for row in rows)
