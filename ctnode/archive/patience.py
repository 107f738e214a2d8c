"""How long failing is borne with before what is owed is given up."""

from __future__ import annotations

from typing import Final

from ctnode.archive.database import Database

DAY_S: Final = 86400.0


def is_enough(database: Database, delivery_id: int, give_up_s: float | None, now: float) -> bool:
    """Return whether a delivery has failed for ``give_up_s``, counted from its first failure since it was owed last."""
    if give_up_s is None:
        return False
    (first,) = database.execute(
        "SELECT min(ended_at) FROM delivery_attempts WHERE delivery_id = ?1"
        " AND ended_at >= (SELECT posted_at FROM deliveries WHERE id = ?1)",
        (delivery_id,),
    ).fetchone()
    return first is not None and now - first >= give_up_s


def given_up_words(give_up_s: float | None, comment: str) -> str:
    """Say that something failed for too long."""
    return f"given up after {(give_up_s or 0.0) / DAY_S:g} days of failing: {comment}".rstrip(" :")
