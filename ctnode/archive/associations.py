"""One row for each association: who, when, how many of which series, what was offered and refused, how it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ctnode.archive import timeline
from ctnode.archive.database import Database
from ctnode.archive.layout import series_name
from ctnode.words import NotFound

# What a row keeps of refused instances; the counts by status are of all.
REFUSALS_KEPT: Final = 100


@dataclass(frozen=True, slots=True)
class Association:
    """An association as the index knows it."""

    id: int
    name: str
    door: str
    calling_ae: str
    called_ae: str
    peer_address: str
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an association ended, as its journal tells it."""

    how: str
    at: float
    statuses: Mapping[str, int] = field(default_factory=dict)
    refusals: Sequence[Mapping[str, Any]] = ()
    reason: str = ""


def begin(database: Database, name: str, opened: Mapping[str, object], opened_at: float) -> Association:
    """Return the row of a journal, new or known, inside the current transaction."""
    database.execute(
        "INSERT INTO associations (name, door, calling_ae, called_ae, peer_address, opened_at, accepted, refused,"
        " peer, is_tls) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO NOTHING",
        (
            name, str(opened.get("door", "network")), str(opened.get("calling_ae", "")),
            str(opened.get("called_ae", "")), str(opened.get("peer_address", "")), opened_at,
            json.dumps(opened.get("accepted", [])), json.dumps(opened.get("refused", [])),
            str(opened.get("peer", "")), int(bool(opened.get("is_tls"))),
        ),
    )  # fmt: skip
    row = database.row(
        "SELECT id, name, door, calling_ae, called_ae, peer_address, peer FROM associations WHERE name = ?", (name,)
    )
    assert row is not None
    return Association(**row)


def last_arrival(database: Database, association_id: int, opened_at: float) -> float:
    """Return when an association brought its last settled instance, or began."""
    (last,) = database.execute(
        "SELECT max(last_arrival) FROM association_series WHERE association_id = ?", (association_id,)
    ).fetchone()
    return opened_at if last is None else max(opened_at, float(last))


# How an association ends that may have had more to bring.
BROKEN: Final = ("aborted", "lost")
# How the node ends those that are open when it stops: their senders come back to where they were.
DRAINED: Final = "drained"


def restart_quiet(database: Database, association_id: int) -> tuple[int, ...]:
    """Begin the quiet time of all that waits and was fed by an association anew, and return those series."""
    with database.immediate():
        return tuple(
            row[0]
            for row in database.execute(
                # Both conditions: the first is that of the index.
                "UPDATE revisions SET deadline = max(deadline, ? + quiet_s)"
                " WHERE state IN ('RECEIVING', 'COMPLETE') AND state = 'RECEIVING'"
                " AND series_id IN (SELECT series_id FROM association_series WHERE association_id = ?)"
                " RETURNING series_id",
                (time.time(), association_id),
            ).fetchall()
        )


def is_mended(database: Database, series_id: int) -> bool:
    """Return whether all of a series came, or came again, over released associations that began after each broken one.

    Then whoever was cut off has begun anew and has come to the end.
    """
    row = database.execute(
        "SELECT 1 FROM instances JOIN associations AS a ON a.id = coalesce(again_in, association_id)"
        " WHERE series_id = ?1 AND is_current AND (a.how <> 'released' OR a.opened_at < (SELECT max(b.ended_at)"
        " FROM association_series AS fed JOIN associations AS b ON b.id = fed.association_id"
        " WHERE fed.series_id = ?1 AND b.how IN (?2, ?3))) LIMIT 1",
        (series_id, *BROKEN),
    ).fetchone()
    return row is None


def end(database: Database, association: Association, ending: Ending) -> None:
    """Write down once how an association ended, also in the timeline of each series that it fed; in a transaction."""
    changed = database.execute(
        "UPDATE associations SET how = ?, ended_at = ?, statuses = ?, refusals = ?, reason = ?"
        " WHERE id = ? AND how = ''",
        (
            ending.how, ending.at, json.dumps(ending.statuses), json.dumps(ending.refusals[:REFUSALS_KEPT]),
            ending.reason, association.id,
        ),
    )  # fmt: skip
    if not changed.rowcount:
        return
    for series_id, instances, revision in database.execute(
        "SELECT fed.series_id, fed.instances, max(revisions.n) FROM association_series AS fed"
        " JOIN revisions USING (series_id) WHERE fed.association_id = ? GROUP BY fed.series_id",
        (association.id,),
    ).fetchall():
        sender = association.calling_ae or association.door
        words = f"{sender} at {association.peer_address}: {instances} instances, {ending.how}"
        timeline.note(database, series_id, revision, "association", words, at=ending.at)


def ending_of(records: Sequence[Mapping[str, Any]]) -> Ending:
    """Return how a journal ended; one without an end record was aborted, by its process or by its storage."""
    refusals = [
        {key: record.get(key, "") for key in ("status", "comment", "sop_instance")}
        for record in records
        if record.get("what") == "refused"
    ]
    if not records or records[-1].get("what") != "closed":
        return Ending("aborted", 0.0, refusals=refusals)
    last = records[-1]
    return Ending(
        str(last["how"]), timeline.seconds(str(last["at"])), last.get("statuses", {}), refusals, last.get("reason", "")
    )


# ------------------------------------------------------------------------------------------------------------ reading

_COLUMNS: Final = (
    "id, name AS association, door, peer, calling_ae, called_ae, peer_address, is_tls, opened_at, ended_at, how,"
    " reason, instances, duplicates, statuses, accepted, refused, refusals"
)
_JSON: Final = ("statuses", "accepted", "refused", "refusals")


def listing(database: Database, *, calling_ae: str | None, since: float, limit: int) -> tuple[dict[str, Any], ...]:
    """Return associations that began at ``since`` or later, newest first, each with the series that it fed."""
    where = "calling_ae = ? AND opened_at >= ?" if calling_ae is not None else "opened_at >= ?"
    values = (calling_ae, since) if calling_ae is not None else (since,)
    rows = database.rows(
        f"SELECT {_COLUMNS} FROM associations WHERE {where} ORDER BY opened_at DESC LIMIT ?", (*values, limit)
    )
    return tuple(_whole(database, row) for row in rows)


def show(database: Database, name: str) -> dict[str, Any]:
    """Return everything about one association.

    Raises
    ------
    NotFound
        If there is none of this name.
    """
    row = database.row(f"SELECT {_COLUMNS} FROM associations WHERE name = ?", (name,))
    if row is None:
        raise NotFound(f"no association {name}", hint="`ctnode associations list` shows those of the last day")
    return _whole(database, row)


def _whole(database: Database, row: dict[str, Any]) -> dict[str, Any]:
    fed = database.execute(
        "SELECT studies.uid, series.uid, series.split, fed.instances FROM association_series AS fed"
        " JOIN series ON series.id = fed.series_id JOIN studies ON studies.id = series.study_id"
        " WHERE fed.association_id = ? ORDER BY series.id",
        (row["id"],),
    ).fetchall()
    whole = {key: json.loads(value) if key in _JSON else value for key, value in row.items() if key != "id"}
    whole["is_tls"] = bool(whole["is_tls"])
    whole["series"] = [
        {"study": study, "series": series_name(uid, split), "instances": instances}
        for study, uid, split, instances in fed
    ]
    return whole
