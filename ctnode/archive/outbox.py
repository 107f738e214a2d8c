"""What the node owes to others: one row per object and destination, claimed by lease, tried until it arrives."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from ctnode.archive import timeline
from ctnode.archive.database import Database
from ctnode.archive.patience import given_up_words, is_enough
from ctnode.words import DELIVERY_TRANSITIONS, DeliveryEvent, DeliveryState, NotFound, next_state

# Only one process delivers for a root, and it takes back at its start what another left under way.
LEASE_S: Final = 6 * 3600.0
# How many objects of a claim may be answered and not yet written down; no sender may run further ahead.
UNCERTAIN: Final = 128
# A kind whose files lie below store/ and not below results/, and of which a series has many.
ORIGINAL: Final = "original"
OPEN: Final = "state IN ('PENDING', 'SENDING', 'RETRY')"
# Only with this very condition does the planner take the partial index.
_WAITING: Final = "state IN ('SENDING', 'RETRY')"
_HELD: Final = "SELECT 1 FROM deliveries WHERE id = ? AND attempt = ? AND state = 'SENDING'"
_ARRIVED: Final = frozenset({DeliveryState.SENT, DeliveryState.CONFIRMED})
_ATTEMPT: Final = (
    "INSERT INTO delivery_attempts (delivery_id, attempt, ended_at, state, status, comment) VALUES (?, ?, ?, ?, ?, ?)"
)


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
    """One object on its way to one destination.

    Parameters
    ----------
    lane
        The destination that ``target`` means for this object: another only where the target is the sender.
    transfers
        How often the object went out whole, as far as is known; from the second one on it is a repetition.
    """

    id: int
    revision_id: int
    series_id: int
    target: str
    lane: str
    kind: str
    path: str
    state: DeliveryState
    attempt: int
    transfers: int
    due_at: float
    status: int | None
    comment: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one attempt ended."""

    attempt: int
    ended_at: float
    state: DeliveryState
    status: int | None
    comment: str


@dataclass(frozen=True, slots=True)
class Ending:
    """How the attempt of a claimed delivery ended.

    Parameters
    ----------
    event
        ``SEND``, ``FAIL``, ``DIE`` or ``RELEASE``; what is released was not tried, and is not counted.
    wait_s
        Seconds until the next try after ``FAIL``.
    went_out
        Whether the whole object went out, with or without an answer.
    proof_s
        Seconds until the arrival is to be proved after ``SEND``; None: never.
    give_up_s
        Seconds since the first failure after which a ``FAIL`` is the last one; None: never.
    """

    delivery: Delivery
    event: DeliveryEvent
    status: int | None = None
    comment: str = ""
    wait_s: float = 0.0
    went_out: bool = False
    proof_s: float | None = None
    give_up_s: float | None = None


_COLUMNS: Final = (
    "id, revision_id, series_id, target, lane, kind, path, state, attempt, transfers, due_at, status, comment"
)


def _record(row: dict[str, object]) -> Delivery:
    return Delivery(**{**row, "state": DeliveryState(str(row["state"]))})  # type: ignore[arg-type]


def post(database: Database, revision_id: int, parcels: Sequence[Parcel], *, again: bool = False) -> None:
    """Owe parcels, inside the current transaction; what was sent with these very bytes only if ``again``.

    An image belongs to every later revision of its series too and has one row a destination: a late one brings itself.
    """
    now = time.time()
    images = _images(database, revision_id) if any(parcel.kind == ORIGINAL for parcel in parcels) else {}
    for parcel in parcels:
        database.execute("INSERT OR IGNORE INTO lanes (name) VALUES (?)", (parcel.target,))
        if parcel.kind == ORIGINAL:
            row = images.get((parcel.target, parcel.path))
        else:
            row = database.execute(
                "SELECT id, state, digest FROM deliveries WHERE revision_id = ? AND target = ? AND path = ?",
                (revision_id, parcel.target, parcel.path),
            ).fetchone()
        if row is None:
            database.insert(
                "INSERT INTO deliveries (id, revision_id, series_id, target, lane, kind, path, digest, state, due_at,"
                " posted_at, priority) VALUES (?9, ?1, (SELECT series_id FROM revisions WHERE id = ?1), ?2, ?2, ?3, ?4,"
                " ?5, ?6, ?7, ?7, ?8)",
                (
                    revision_id, parcel.target, parcel.kind, parcel.path, parcel.digest, DeliveryState.PENDING, now,
                    parcel.priority, database.fresh_id("deliveries"),
                ),
            )  # fmt: skip
            continue
        delivery_id, state, digest = row
        database.execute(
            "UPDATE deliveries SET priority = max(priority, ?) WHERE id = ?", (parcel.priority, delivery_id)
        )
        arrived = state in _ARRIVED and digest == parcel.digest
        if again or not arrived:
            database.execute("UPDATE deliveries SET revision_id = ? WHERE id = ?", (revision_id, delivery_id))
        if state != DeliveryState.SENDING and digest != parcel.digest:
            database.execute(
                "UPDATE deliveries SET digest = ?, transfers = 0 WHERE id = ?", (parcel.digest, delivery_id)
            )
        if (again or not arrived) and state not in {DeliveryState.PENDING, DeliveryState.SENDING}:
            requeue(database, delivery_id)


def _images(database: Database, revision_id: int) -> dict[tuple[str, str], tuple[int, str, str]]:
    """Return the rows of the images of a series by destination and path: where there are several, what to go by."""
    rows = database.execute(
        "SELECT id, state, digest, target, path FROM deliveries WHERE kind = ?2"
        " AND series_id = (SELECT series_id FROM revisions WHERE id = ?1) ORDER BY revision_id = ?1, id",
        (revision_id, ORIGINAL),
    )
    return {(target, path): (delivery_id, state, digest) for delivery_id, state, digest, target, path in rows}


def requeue(database: Database, delivery_id: int, comment: str = "") -> None:
    """Start anew with a delivery, inside the current transaction."""
    now = time.time()
    _move(
        database, delivery_id, DeliveryEvent.REQUEUE,
        "attempt = 0, due_at = ?, posted_at = ?, proof_at = NULL, proof_tries = 0, transaction_uid = '', comment = ?",
        now, now, comment,
    )  # fmt: skip


def cancel(database: Database, delivery_id: int, comment: str) -> None:
    """Give up what waits, or let be what is DEAD, inside the current transaction.

    Raises
    ------
    WrongState
        If it is under way, arrived, or cancelled already.
    """
    _move(database, delivery_id, DeliveryEvent.CANCEL, "comment = ?, ended_at = ?", comment, time.time())


def take_back(database: Database) -> int:
    """Give back what a process that died had under way; returns how many of it may have arrived.

    Objects go out in the order of their claim, and what was answered is written down soon after: only the first
    ``UNCERTAIN`` of what is left of a claim can have gone out. The others were not tried.
    """
    claims: dict[tuple[str, float], list[int]] = {}
    for delivery_id, lane, lease_until in database.execute(
        "SELECT id, lane, lease_until FROM deliveries WHERE state = 'SENDING' ORDER BY priority DESC, id"
    ):
        claims.setdefault((lane, lease_until), []).append(delivery_id)
    now = time.time()
    with database.immediate():
        for delivery_ids in claims.values():
            for delivery_id in delivery_ids[:UNCERTAIN]:
                _cut_short(database, get(database, delivery_id), now)
            for delivery_id in delivery_ids[UNCERTAIN:]:
                _settle(database, Ending(get(database, delivery_id), DeliveryEvent.RELEASE), now)
    return sum(min(UNCERTAIN, len(delivery_ids)) for delivery_ids in claims.values())


def _cut_short(database: Database, delivery: Delivery, now: float) -> None:
    words = f"attempt {delivery.attempt} was cut short; it may have arrived"
    _settle(database, Ending(delivery, DeliveryEvent.FAIL, comment=words, went_out=True), now)


def claim(
    database: Database, lane: str, owner: str, *, limit: int = 50, not_series: Collection[int] = ()
) -> tuple[Delivery, ...]:
    """Take what is due for one destination, the most urgent and oldest first.

    Parameters
    ----------
    database, lane, owner
        The index, the destination, and who takes it.
    limit
        The most that is taken.
    not_series
        Series of which another association has objects: one series goes over one at a time, so that it keeps its order.
    """
    now = time.time()
    busy = list(not_series)
    with database.immediate():
        for (delivery_id,) in database.execute(
            f"SELECT id FROM deliveries WHERE {_WAITING} AND lane = ? AND state = 'SENDING' AND lease_until <= ?",
            (lane, now),
        ).fetchall():
            _cut_short(database, get(database, delivery_id), now)
        for (delivery_id,) in database.execute(
            f"SELECT id FROM deliveries WHERE {_WAITING} AND lane = ? AND state = 'RETRY' AND due_at <= ? LIMIT ?",
            (lane, now, limit),
        ).fetchall():
            _move(database, delivery_id, DeliveryEvent.COME_DUE, "comment = comment")
        marks = ", ".join("?" * len(busy))
        ids = [
            row[0]
            for row in database.execute(
                f"SELECT id FROM deliveries WHERE state = 'PENDING' AND lane = ? AND series_id NOT IN ({marks})"
                " ORDER BY priority DESC, id LIMIT ?",
                (lane, *busy, limit),
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
        raise NotFound(f"no delivery {delivery_id}", hint="`ctnode deliveries list` shows them")
    return _record(row)


def sent(database: Database, delivery: Delivery, status: int, comment: str) -> None:
    """Write down that the destination took the object."""
    settle(database, [Ending(delivery, DeliveryEvent.SEND, status, comment, went_out=True)])


def failed(database: Database, delivery: Delivery, status: int | None, comment: str, *, wait_s: float | None) -> None:
    """Write down a failed attempt; ``wait_s`` None means that trying again is in vain."""
    event = DeliveryEvent.DIE if wait_s is None else DeliveryEvent.FAIL
    settle(database, [Ending(delivery, event, status, comment, wait_s=wait_s or 0.0)])


def settle(database: Database, endings: Sequence[Ending]) -> None:
    """Write down how attempts ended, all in one transaction; what is held no longer or erased is left alone."""
    now = time.time()
    with database.immediate():
        for ending in endings:
            if database.execute(_HELD, (ending.delivery.id, ending.delivery.attempt)).fetchone():
                _settle(database, ending, now)


def _settle(database: Database, ending: Ending, now: float) -> None:
    delivery, event, comment = ending.delivery, ending.event, ending.comment
    is_superseded = _is_superseded(database, delivery.id)
    if event is DeliveryEvent.RELEASE and not is_superseded:
        _move(database, delivery.id, event, "attempt = attempt - 1")
        return
    if event in {DeliveryEvent.FAIL, DeliveryEvent.RELEASE} and is_superseded:
        event = DeliveryEvent.CANCEL
    if event is DeliveryEvent.FAIL and is_enough(database, delivery.id, ending.give_up_s, now):
        event, comment = DeliveryEvent.DIE, given_up_words(ending.give_up_s, comment)
    if event is DeliveryEvent.SEND and delivery.transfers:
        comment = f"sent again: an earlier transfer arrived or may have{f'; {comment}' if comment else ''}"
        database.count("deliveries.repeated")
    proof_at = None if ending.proof_s is None else now + ending.proof_s
    state = _move(
        database, delivery.id, event,
        "status = ?, comment = ?, due_at = ?, ended_at = ?, transfers = transfers + ?, proof_at = ?,"
        " proof_tries = 0, transaction_uid = ''",
        ending.status, comment, now + ending.wait_s, now, ending.went_out, proof_at,
    )  # fmt: skip
    database.insert(_ATTEMPT, (delivery.id, delivery.attempt, now, state, ending.status, comment))
    if delivery.kind != ORIGINAL or event is DeliveryEvent.DIE:
        _note(database, delivery, _words(ending, event, comment), ending.status, now)


def _words(ending: Ending, event: DeliveryEvent, comment: str) -> str:
    delivery = ending.delivery
    if event is DeliveryEvent.SEND:
        return f"sent to {delivery.target}" + (f": {comment}" if delivery.transfers else "")
    if event is DeliveryEvent.DIE:
        return f"given up for {delivery.target}: {comment}"
    return f"attempt {delivery.attempt} for {delivery.target}: {comment}; again in {ending.wait_s:.0f} s"


def _note(database: Database, delivery: Delivery, words: str, status: int | None, now: float) -> None:
    (n,) = database.execute("SELECT n FROM revisions WHERE id = ?", (delivery.revision_id,)).fetchone()
    coded = words if status is None else f"{words} (status {status:04X}H)"
    timeline.note(database, delivery.series_id, n, "delivery", f"{delivery.path}: {coded}", at=now)


def _is_superseded(database: Database, delivery_id: int) -> bool:
    # By its row, not by what was claimed: a later revision may have taken it over meanwhile.
    found = database.execute(
        "SELECT 1 FROM revisions WHERE id = (SELECT revision_id FROM deliveries WHERE id = ?) AND state = 'SUPERSEDED'",
        (delivery_id,),
    ).fetchone()
    return found is not None


def _move(database: Database, delivery_id: int, event: DeliveryEvent, assignments: str, *values: object) -> str:
    (state,) = database.execute("SELECT state FROM deliveries WHERE id = ?", (delivery_id,)).fetchone()
    after = next_state(DELIVERY_TRANSITIONS, DeliveryState(state), event)
    database.execute(f"UPDATE deliveries SET state = ?, {assignments} WHERE id = ?", (after, *values, delivery_id))
    return str(after)


def give_up(database: Database, lane: str, before: float, comment: str, *, limit: int = 500) -> int:
    """Give up what is owed to a destination since before a time, inside the current transaction; returns how many."""
    ids = database.execute(
        f"SELECT id FROM deliveries WHERE {OPEN} AND lane = ? AND posted_at <= ? AND state <> 'SENDING' LIMIT ?",
        (lane, before, limit),
    ).fetchall()
    for (delivery_id,) in ids:
        disown(database, delivery_id, comment)
    return len(ids)


def disown(database: Database, delivery_id: int, comment: str) -> None:
    """Give up what is not under way, with the reason, inside the current transaction."""
    now = time.time()
    _move(database, delivery_id, DeliveryEvent.DIE, "comment = ?, ended_at = ?, proof_at = NULL", comment, now)
    delivery = get(database, delivery_id)
    database.insert(_ATTEMPT, (delivery_id, delivery.attempt, now, delivery.state, None, comment))
    _note(database, delivery, f"given up for {delivery.target}: {comment}", None, now)


def confirm(database: Database, delivery_id: int, comment: str) -> None:
    """Write down that the destination has the object, inside the current transaction."""
    assignments = "comment = ?, proof_at = NULL, transaction_uid = ''"
    _move(database, delivery_id, DeliveryEvent.CONFIRM, assignments, comment)
    delivery = get(database, delivery_id)
    if delivery.kind != ORIGINAL:
        _note(database, delivery, f"confirmed by {delivery.target}: {comment}", None, time.time())


def of_series(database: Database, series_id: int) -> tuple[Delivery, ...]:
    """Return the deliveries of a series, oldest first."""
    rows = database.rows(f"SELECT {_COLUMNS} FROM deliveries WHERE series_id = ? ORDER BY id", (series_id,))
    return tuple(_record(row) for row in rows)


def listed(
    database: Database, *, target: str | None = None, state: str | None = None, after: int = 0, limit: int = 100
) -> tuple[Delivery, ...]:
    """Return deliveries by id, for one page of a list."""
    conditions, values = ["id > ?"], [after]
    for column, value in (("target", target), ("state", state)):
        if value is not None:
            conditions.append(f"{column} = ?")
            values.append(value)  # type: ignore[arg-type]
    rows = database.rows(
        f"SELECT {_COLUMNS} FROM deliveries WHERE {' AND '.join(conditions)} ORDER BY id LIMIT ?", (*values, limit)
    )
    return tuple(_record(row) for row in rows)


def attempts(database: Database, delivery_id: int) -> tuple[Attempt, ...]:
    """Return the attempts of a delivery, oldest first."""
    rows = database.rows(
        "SELECT attempt, ended_at, state, status, comment FROM delivery_attempts WHERE delivery_id = ?"
        " ORDER BY ended_at, attempt",
        (delivery_id,),
    )
    return tuple(Attempt(**{**row, "state": DeliveryState(row["state"])}) for row in rows)
