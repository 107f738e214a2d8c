"""Which objects are to be proved to have arrived, and what the destinations say of them."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from ctnode.archive import outbox
from ctnode.archive.database import Database
from ctnode.archive.outbox import Delivery

# A destination may need a while to find what it took: only then is it sent again.
MISSES_LIMIT: Final = 3
# So often is it sent again, each time with twice the wait before the question: some 25 hours with the wait of 60 s.
TRANSFERS_LIMIT: Final = 8
# Until what a report does not commit to is asked for again.
ASK_AGAIN_S: Final = 60.0


def due(database: Database, lane: str, *, limit: int = 500) -> tuple[Delivery, ...]:
    """Return what was sent to a destination and is to be proved now."""
    ids = database.execute(
        "SELECT id FROM deliveries WHERE state = 'SENT' AND proof_at IS NOT NULL AND lane = ? AND proof_at <= ?"
        " ORDER BY proof_at LIMIT ?",
        (lane, time.time(), limit),
    ).fetchall()
    return tuple(outbox.get(database, delivery_id) for (delivery_id,) in ids)


def asked(
    database: Database, instances: Mapping[int, str], wait_s: float, *, transaction_uid: str = "", comment: str = ""
) -> None:
    """Note which objects are asked for, by delivery, and when to ask again where there is no answer until then."""
    until = time.time() + wait_s
    with database.immediate():
        for delivery_id, sop_instance in instances.items():
            database.execute(
                "UPDATE deliveries SET sop_instance = ?, transaction_uid = ?, proof_at = ?, comment = ?"
                " WHERE id = ? AND state = 'SENT'",
                (sop_instance, transaction_uid, until, comment, delivery_id),
            )


def dropped(database: Database, delivery_ids: Collection[int], comment: str) -> None:
    """Ask no more for objects, and say why."""
    if not delivery_ids:
        return
    with database.immediate():
        for delivery_id in delivery_ids:
            database.execute("UPDATE deliveries SET proof_at = NULL, comment = ? WHERE id = ?", (comment, delivery_id))


def answered(
    database: Database, deliveries: Sequence[tuple[int, str]], held: Collection[str], *, how: str, wait_s: float
) -> int:
    """Confirm what the destination has; the rest is asked for again, and sent again after three misses.

    Parameters
    ----------
    deliveries
        Ids and SOP Instance UIDs.
    held
        SOP Instance UIDs that the destination has.
    how
        By which question, for the timeline.
    wait_s
        Seconds until the rest is asked for again.

    Returns
    -------
    int
        How many were confirmed.
    """
    with database.immediate():
        return _answer(database, deliveries, held, how, wait_s)


def _answer(
    database: Database, deliveries: Sequence[tuple[int, str]], held: Collection[str], how: str, wait_s: float
) -> int:
    confirmed = 0
    for delivery_id, sop_instance in deliveries:
        row = database.execute(
            "SELECT proof_tries, transfers FROM deliveries WHERE id = ? AND state = 'SENT'", (delivery_id,)
        ).fetchone()
        if row is None:
            continue
        if sop_instance in held:
            outbox.confirm(database, delivery_id, how)
            confirmed += 1
        elif row[0] + 1 >= MISSES_LIMIT and row[1] >= TRANSFERS_LIMIT:
            words = f"it was taken {row[1]} times, and the destination does not have it, says {how}"
            outbox.disown(database, delivery_id, words)
        elif row[0] + 1 >= MISSES_LIMIT:
            outbox.requeue(database, delivery_id, f"the destination does not have it, says {how}")
        else:
            database.execute(
                "UPDATE deliveries SET proof_tries = proof_tries + 1, proof_at = ?, transaction_uid = '',"
                " comment = ? WHERE id = ?",
                (time.time() + wait_s, f"not found yet by {how}", delivery_id),
            )
    return confirmed


def report(database: Database, transaction_uid: str, committed: Collection[str]) -> int:
    """Take the report of a storage commitment; returns how many were confirmed."""
    with database.immediate():
        return reported(database, transaction_uid, committed)


def reported(database: Database, transaction_uid: str, committed: Collection[str]) -> int:
    """Do the same inside the current transaction, on whatever association the report came.

    A transaction that nobody asked for, or that a later try has replaced, changes nothing.
    """
    rows = database.execute(
        "SELECT id, sop_instance FROM deliveries WHERE transaction_uid <> '' AND transaction_uid = ?",
        (transaction_uid,),
    ).fetchall()
    return _answer(database, rows, committed, "storage commitment", ASK_AGAIN_S)
