"""Everything that the index knows of some series, erased in one transaction; nothing of it stays in the file.

Whatever refers to a series, directly or through what refers to it, is found by the foreign keys of the schema.
"""

from __future__ import annotations

import json
import mmap
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ctnode.archive.database import Database
from ctnode.words import DELIVERY_TRANSITIONS, DeliveryEvent, DeliveryState, next_state

# Tables whose rows others may still name by number: no number of theirs is given twice.
NUMBERED: Final = ("jobs", "deliveries")


@dataclass(frozen=True, slots=True)
class Erased:
    """How much was erased; nothing here tells of whom."""

    studies: int
    series: int
    instances: int
    results: int
    deliveries: int


def quiesce(database: Database, series_ids: Sequence[int]) -> bool:
    """Cancel what waits to be sent of series; return whether nothing of them is on its way or being asked for."""
    of_series = "series_id IN (SELECT value FROM json_each(?))"
    ids = json.dumps(list(series_ids))
    with database.immediate():
        for delivery_id, state in database.execute(
            f"SELECT id, state FROM deliveries WHERE {of_series} AND state IN ('PENDING', 'RETRY')", (ids,)
        ).fetchall():
            ended = next_state(DELIVERY_TRANSITIONS, DeliveryState(state), DeliveryEvent.CANCEL)
            database.execute(
                "UPDATE deliveries SET state = ?, ended_at = ? WHERE id = ?", (ended, time.time(), delivery_id)
            )
        row = database.execute(
            f"SELECT EXISTS (SELECT 1 FROM deliveries WHERE {of_series} AND state = 'SENDING') OR EXISTS (SELECT 1 FROM"
            f" jobs JOIN revisions ON revisions.id = jobs.revision_id WHERE revisions.{of_series}"
            " AND jobs.kind = 'ask' AND jobs.state = 'RUNNING')",
            (ids, ids),
        ).fetchone()
    return not row[0]


def erase(database: Database, series_ids: Sequence[int], results: int) -> Erased:
    """Erase series inside the current transaction, and the studies that nothing is left of.

    Parameters
    ----------
    series_ids
        Rows of ``series``.
    results
        How many results folders went with them; only counted.
    """
    ids = json.dumps(list(series_ids))
    in_ids = "IN (SELECT value FROM json_each(?))"
    rows = database.execute(
        "SELECT studies.uid, series.uid, studies.id FROM series JOIN studies ON studies.id = study_id"
        f" WHERE series.id {in_ids}",
        (ids,),
    ).fetchall()
    sops = {row[0] for row in database.execute(f"SELECT sop_instance FROM instances WHERE series_id {in_ids}", (ids,))}
    sops |= {
        row[0] for row in database.execute(f"SELECT sop_instance FROM tombstones WHERE series_id {in_ids}", (ids,))
    }
    count, size = database.execute(
        f"SELECT count(*), coalesce(sum(bytes), 0) FROM instances WHERE series_id {in_ids}", (ids,)
    ).fetchone()
    (deliveries,) = database.execute(f"SELECT count(*) FROM deliveries WHERE series_id {in_ids}", (ids,)).fetchone()
    # Who was refused something while he sent this may have been refused a part of it.
    database.execute(
        "UPDATE associations SET refusals = '[]' WHERE id IN"
        f" (SELECT association_id FROM association_series WHERE series_id {in_ids})",
        (ids,),
    )
    for table in NUMBERED:
        (last,) = database.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()
        database.execute(
            "INSERT INTO counters (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET"
            " value = max(value, excluded.value)",
            (f"{table}.numbered", last),
        )
    _delete(database, "series", "id", list(series_ids))
    studies = sorted({row[2] for row in rows})
    emptied = [
        study_id
        for study_id in studies
        if database.execute("SELECT 1 FROM series WHERE study_id = ? LIMIT 1", (study_id,)).fetchone() is None
    ]
    gone_studies = {row[0] for row in rows if row[2] in emptied}
    _erase_evidence(database, {row[1] for row in rows}, gone_studies, sops)
    _erase_commitments(database, sops)
    for _, uid, _ in rows:
        database.execute("DELETE FROM alerts WHERE instr(subject, ?1) OR instr(text, ?1)", (uid,))
    _delete(database, "studies", "id", emptied)
    for name, by in (("instances", count), ("bytes", size), ("series", len(rows)), ("studies", len(emptied))):
        database.count(name, -by)
    return Erased(len(emptied), len(rows), count, results, deliveries)


def _delete(database: Database, table: str, column: str, values: Sequence[object]) -> None:
    """Delete rows, and before them all that refers to them."""
    if not values:
        return
    chosen = f"{column} IN (SELECT value FROM json_each(?))"
    listed = json.dumps(list(values))
    for child, child_column, parent_column in _children(database, table):
        keys = database.execute(f"SELECT {parent_column} FROM {table} WHERE {chosen}", (listed,)).fetchall()
        _delete(database, child, child_column, [key[0] for key in keys])
    database.execute(f"DELETE FROM {table} WHERE {chosen}", (listed,))


def _children(database: Database, table: str) -> list[tuple[str, str, str]]:
    """Return the tables that refer to ``table``, with the column of theirs and of its."""
    names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name <> ?", (table,)).fetchall()
    return [
        (name, row["from"], row["to"] or "id")
        for (name,) in names
        for row in database.rows(f"PRAGMA foreign_key_list({name})")
        if row["table"] == table
    ]


def _erase_evidence(database: Database, series: Collection[str], studies: Collection[str], sops: set[str]) -> None:
    ids = [row[0] for row in database.execute("SELECT id, study, series FROM evidence")
           if row[2] in series or (row[1] in studies)]  # fmt: skip
    _delete(database, "evidence", "id", ids)
    listed = database.execute(
        "SELECT DISTINCT evidence_id FROM evidence_instances WHERE sop_instance IN (SELECT value FROM json_each(?))",
        (json.dumps(sorted(sops)),),
    ).fetchall()
    for (identifier,) in listed:
        (text,) = database.execute("SELECT instances FROM evidence WHERE id = ?", (identifier,)).fetchone()
        left = [uid for uid in json.loads(text) if uid not in sops]
        if not left:
            _delete(database, "evidence", "id", [identifier])
            continue
        # Its digest would tell what the whole list was.
        database.execute(
            "UPDATE evidence SET instances = ?, count = ?, digest = '' WHERE id = ?",
            (json.dumps(left), len(left), identifier),
        )
        database.execute(
            "DELETE FROM evidence_instances WHERE evidence_id = ?1"
            " AND sop_instance IN (SELECT value FROM json_each(?2))",
            (identifier, json.dumps(sorted(sops))),
        )


def _erase_commitments(database: Database, sops: set[str]) -> None:
    for identifier, instances, failures in database.execute(
        "SELECT id, instances, failures FROM commitments"
    ).fetchall():
        whole = json.loads(instances)
        left = [one for one in whole if one[1] not in sops]
        if len(left) == len(whole):
            continue
        if not left:
            database.execute("DELETE FROM commitments WHERE id = ?", (identifier,))
            continue
        failed = None if failures is None else [one for one in json.loads(failures) if one[1] not in sops]
        database.execute(
            "UPDATE commitments SET instances = ?, failures = ? WHERE id = ?",
            (json.dumps(left), None if failed is None else json.dumps(failed), identifier),
        )


def note_forgotten(database: Database, erased: Erased, who: str, reason: str) -> int:
    """Leave the entry that says that something was forgotten, inside the current transaction; return its number."""
    return database.insert(
        "INSERT INTO forgotten (at, who, reason, studies, series, instances, results, deliveries)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            time.time(), who, reason, erased.studies, erased.series, erased.instances, erased.results,
            erased.deliveries,
        ),
    )  # fmt: skip


def entries(database: Database) -> list[dict[str, Any]]:
    """Return what was forgotten, oldest first."""
    return database.rows(
        "SELECT at, who, reason, studies, series, instances, results, deliveries FROM forgotten ORDER BY id"
    )


def wipe_free_pages(database: Database) -> None:
    """Write the file anew, so that nothing that was deleted is left between its rows; takes seconds a gigabyte."""
    # In memory, a copy of the whole index could be more than there is.
    database.execute("PRAGMA temp_store = FILE")
    try:
        database.execute("VACUUM")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        database.execute("PRAGMA temp_store = MEMORY")


def is_named(database: Database, words: Collection[str]) -> bool:
    """Return whether the bytes of the index or of what SQLite keeps beside it hold any of ``words``."""
    for suffix in ("", "-wal", "-journal"):
        file = database.path.with_name(database.path.name + suffix)
        if not file.is_file() or not file.stat().st_size:
            continue
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if any(content.find(word.encode()) >= 0 for word in words):
                return True
    return False
