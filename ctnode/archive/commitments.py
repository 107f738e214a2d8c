"""What peers asked the node to vouch for: one row for each transaction, kept until its report has arrived."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ctnode.archive.associations import Association
from ctnode.archive.database import Database
from ctnode.archive.notices import Notice, Reference
from ctnode.words import DELIVERY_TRANSITIONS, DeliveryEvent, DeliveryState, next_state

LEASE_S: Final = 3600.0

_OPEN: Final = "state IN ('PENDING', 'SENDING', 'RETRY')"


@dataclass(frozen=True, slots=True)
class Failure:
    """An instance that is not vouched for, and why (PS3.3 C.14.1.1)."""

    reference: Reference
    reason: int


@dataclass(frozen=True, slots=True)
class Commitment:
    """A transaction; ``failures`` is None until its instances were verified."""

    id: int
    transaction: str
    calling_ae: str
    called_ae: str
    peer: str
    peer_address: str
    association: str
    asked_at: float
    state: DeliveryState
    attempt: int
    due_at: float
    references: tuple[Reference, ...]
    failures: tuple[Failure, ...] | None
    comment: str


_COLUMNS: Final = (
    'id, transaction_uid AS "transaction", calling_ae, called_ae, peer, peer_address, association, asked_at, state,'
    " attempt, due_at, instances, failures, comment"
)


def take(database: Database, association: Association, notice: Notice) -> None:
    """Give a request its row, inside the current transaction; one that is known stays as it is."""
    database.execute(
        "INSERT INTO commitments (transaction_uid, calling_ae, called_ae, peer, peer_address, association, asked_at,"
        " state, due_at, instances) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (transaction_uid) DO NOTHING",
        (
            notice.uid, association.calling_ae, association.called_ae, association.peer, association.peer_address,
            association.name, notice.at, DeliveryState.PENDING, notice.at,
            json.dumps([[one.sop_class, one.sop_instance] for one in notice.references]),
        ),
    )  # fmt: skip


def callers_due(database: Database) -> tuple[str, ...]:
    """Return the AE titles that are owed a report now."""
    return tuple(
        row[0]
        for row in database.execute(
            f"SELECT DISTINCT calling_ae FROM commitments WHERE {_OPEN} AND due_at <= ?", (time.time(),)
        )
    )


def claim(database: Database, calling_ae: str) -> Commitment | None:
    """Take the oldest transaction of a caller that is due."""
    now = time.time()
    with database.immediate():
        row = database.execute(
            f"SELECT id, state FROM commitments WHERE {_OPEN} AND calling_ae = ? AND due_at <= ?"
            " ORDER BY due_at, id LIMIT 1",
            (calling_ae, now),
        ).fetchone()
        if row is None:
            return None
        identifier, state = row
        if state == DeliveryState.SENDING:
            _move(database, identifier, DeliveryEvent.FAIL, "comment = 'the report was cut short'")
            state = DeliveryState.RETRY
        if state == DeliveryState.RETRY:
            _move(database, identifier, DeliveryEvent.COME_DUE, "comment = comment")
        _move(database, identifier, DeliveryEvent.CLAIM, "attempt = attempt + 1, due_at = ?", now + LEASE_S)
    return get(database, identifier)


def release_interrupted(database: Database) -> None:
    """Let what a dead process was reporting be reported anew at once; the caller is the only one that reports."""
    with database.immediate():
        database.execute("UPDATE commitments SET due_at = 0 WHERE state = 'SENDING'")


def get(database: Database, identifier: int) -> Commitment:
    """Return a transaction by id."""
    row = database.row(f"SELECT {_COLUMNS} FROM commitments WHERE id = ?", (identifier,))
    assert row is not None
    return _record(row)


def listing(database: Database, *, limit: int = 100) -> tuple[Commitment, ...]:
    """Return transactions, newest first."""
    rows = database.rows(f"SELECT {_COLUMNS} FROM commitments ORDER BY id DESC LIMIT ?", (limit,))
    return tuple(map(_record, rows))


def verified(database: Database, commitment: Commitment, failures: Sequence[Failure]) -> None:
    """Write down what was found, before anybody is told."""
    found = [[one.reference.sop_class, one.reference.sop_instance, one.reason] for one in failures]
    with database.immediate():
        database.execute("UPDATE commitments SET failures = ? WHERE id = ?", (json.dumps(found), commitment.id))


def reported(database: Database, commitment: Commitment, comment: str) -> None:
    """Write down that the peer has the report."""
    _end(database, commitment, DeliveryEvent.SEND, comment, None)


def again(database: Database, commitment: Commitment, comment: str, *, wait_s: float, counts: bool = True) -> None:
    """Write down that the report has to be tried again; ``counts`` is whether it was tried at all."""
    _end(database, commitment, DeliveryEvent.FAIL, comment, time.time() + wait_s, counts=counts)


def given_up(database: Database, commitment: Commitment, comment: str) -> None:
    """Write down that the peer will not hear of it."""
    _end(database, commitment, DeliveryEvent.DIE, comment, None)


def _end(
    database: Database,
    commitment: Commitment,
    event: DeliveryEvent,
    comment: str,
    due_at: float | None,
    *,
    counts: bool = True,
) -> None:
    with database.immediate():
        current = get(database, commitment.id)
        if current.state is not DeliveryState.SENDING or current.attempt != commitment.attempt:
            return
        _move(
            database, commitment.id, event, "comment = ?, due_at = coalesce(?, due_at), ended_at = ?, attempt = ?",
            comment, due_at, time.time(), commitment.attempt - (not counts),
        )  # fmt: skip


def _move(database: Database, identifier: int, event: DeliveryEvent, assignments: str, *values: object) -> None:
    (state,) = database.execute("SELECT state FROM commitments WHERE id = ?", (identifier,)).fetchone()
    after = next_state(DELIVERY_TRANSITIONS, DeliveryState(state), event)
    database.execute(f"UPDATE commitments SET state = ?, {assignments} WHERE id = ?", (after, *values, identifier))


def _record(row: dict[str, Any]) -> Commitment:
    instances, failures = json.loads(row.pop("instances")), row.pop("failures")
    return Commitment(
        **{**row, "state": DeliveryState(row["state"])},
        references=tuple(Reference(*one) for one in instances),
        failures=None
        if failures is None
        else tuple(Failure(Reference(*one[:2]), one[2]) for one in json.loads(failures)),
    )
