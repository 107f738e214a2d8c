"""What others say a series holds: procedure steps, commitment requests, availability, answers to our own questions."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from ctnode.archive.database import Database


@dataclass(frozen=True, slots=True)
class Listing:
    """One list.

    Parameters
    ----------
    series
        SeriesInstanceUID; empty where only instances are named, as storage commitment does.
    source
        ``mpps``, ``commitment``, ``availability``, ``find`` or ``move``.
    uid
        Of the procedure step, transaction or notification; empty for our own questions.
    status
        Of the procedure step; the status of the last C-MOVE or C-GET response in hex.
    peer
        Who said it: its name, else its AE title.
    at
        Seconds since 1970.
    instances
        SOP Instance UIDs; None where only their number is known.
    count
        How many.
    """

    series: str
    source: str
    uid: str
    status: str
    peer: str
    at: float
    instances: tuple[str, ...] | None
    count: int


_COLUMNS: Final = "series, source, uid, status, peer, at, instances, count"


def add(database: Database, listing: Listing) -> None:
    """Write down a list, inside the current transaction."""
    instances = None if listing.instances is None else json.dumps(listing.instances)
    database.execute(
        f"INSERT INTO listings ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            listing.series, listing.source, listing.uid, listing.status, listing.peer, listing.at, instances,
            listing.count,
        ),
    )  # fmt: skip


def of_series(database: Database, series: str) -> tuple[Listing, ...]:
    """Return what was said of a series, oldest first."""
    rows = database.rows(f"SELECT {_COLUMNS} FROM listings WHERE series = ? ORDER BY id", (series,))
    return tuple(
        Listing(**{**row, "instances": None if row["instances"] is None else tuple(json.loads(row["instances"]))})
        for row in rows
    )


def held(database: Database, series_id: int) -> frozenset[str]:
    """Return the SOP Instance UIDs that the index has of a series."""
    rows = database.execute("SELECT sop_instance FROM instances WHERE series_id = ?", (series_id,))
    return frozenset(row[0] for row in rows)


def series_of_instances(database: Database, instances: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return by SeriesInstanceUID which of the instances the index has; those that it lacks are in none."""
    found: dict[str, list[str]] = {}
    for series, instance in database.execute(
        "SELECT DISTINCT series.uid, wanted.value FROM json_each(?) AS wanted"
        " JOIN instances ON instances.sop_instance = wanted.value JOIN series ON series.id = instances.series_id",
        (json.dumps(list(instances)),),
    ):
        found.setdefault(series, []).append(instance)
    return {series: tuple(those) for series, those in found.items()}
