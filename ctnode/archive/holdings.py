"""What retention looks at: the units of a series with all that keeps them, read in statements that are short."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ctnode.archive.database import Database
from ctnode.archive.layout import Layout, series_name
from ctnode.archive.outbox import ORIGINAL
from ctnode.archive.retention import Kind, Unit

PAGE: Final = 100
_SETTLED: Final = frozenset({"DONE", "KEPT", "SUPERSEDED"})


def pages(database: Database, after: int = 0) -> Iterator[int]:
    """Yield the id of each series that is older than this call, a page at a time."""
    while rows := database.execute("SELECT id FROM series WHERE id > ? ORDER BY id LIMIT ?", (after, PAGE)).fetchall():
        after = rows[-1][0]
        yield from (row[0] for row in rows)


def units_of(database: Database, layout: Layout, series_id: int, kinds: frozenset[Kind]) -> tuple[Unit, ...]:
    """Return what there is of a series: its originals if any are left, and each revision's published results."""
    series = database.row(
        "SELECT studies.uid AS study, studies.state AS study_state, studies.is_routed, series.uid, series.split,"
        " series.hold, series.instances, series.bytes, max(series.last_at, coalesce((SELECT max(last_arrival)"
        " FROM association_series WHERE association_series.series_id = series.id), 0)) AS last_at"
        " FROM series JOIN studies ON studies.id = series.study_id WHERE series.id = ?",
        (series_id,),
    )
    if series is None:
        return ()
    revisions = database.rows(
        "SELECT revisions.id, revisions.n, revisions.state, revisions.last_arrival, revisions.verdict_at,"
        " (SELECT max(ended_at) FROM jobs WHERE jobs.revision_id = revisions.id) AS job_ended_at"
        " FROM revisions WHERE revisions.series_id = ? ORDER BY revisions.n",
        (series_id,),
    )
    owed = database.rows(
        "SELECT kind, revision_id, state, count(*) AS count, sum(proof_at IS NOT NULL) AS unproved,"
        " max(ended_at) AS ended_at FROM deliveries WHERE series_id = ? GROUP BY kind, revision_id, state",
        (series_id,),
    )
    times = [series["last_at"]]
    times += [row[key] or 0.0 for row in revisions for key in ("last_arrival", "verdict_at", "job_ended_at")]
    settled_at = max([*times, *(row["ended_at"] or 0.0 for row in owed)])
    blocks = (*_blocks(database, series_id, series, revisions), *_undelivered(owed))
    name = series_name(series["uid"], series["split"])
    found: list[Unit] = []
    if Kind.ORIGINALS in kinds and series["instances"]:
        is_delivered = any(row["kind"] == ORIGINAL for row in owed)
        found.append(
            Unit(
                Kind.ORIGINALS, series_id, None, name, series["instances"], series["bytes"], settled_at, is_delivered,
                blocks,
            )
        )  # fmt: skip
    for revision in revisions if Kind.RESULTS in kinds else ():
        folder = layout.result_directory(series["study"], series["uid"], series["split"], revision["n"])
        sizes = file_sizes(folder)
        if sizes:
            is_delivered = any(row["kind"] != ORIGINAL and row["revision_id"] == revision["id"] for row in owed)
            found.append(
                Unit(
                    Kind.RESULTS, series_id, revision["id"], f"{name} r{revision['n']}", len(sizes), sum(sizes),
                    settled_at, is_delivered, blocks,
                )
            )  # fmt: skip
    return tuple(found)


def _blocks(
    database: Database, series_id: int, series: dict[str, Any], revisions: list[dict[str, Any]]
) -> Iterator[str]:
    if series["hold"]:
        yield f"held: {series['hold']}"
    for revision in revisions:
        if revision["state"] not in _SETTLED:
            yield f"revision {revision['n']} is {revision['state']}"
    # The state of a study also opens by a resend that changes nothing; what is still to come decides.
    receiving = database.execute(
        "SELECT 1 FROM series AS own JOIN series AS other ON other.study_id = own.study_id"
        " JOIN revisions ON revisions.series_id = other.id"
        " WHERE own.id = ? AND revisions.state IN ('RECEIVING', 'COMPLETE') LIMIT 1",
        (series_id,),
    ).fetchone()
    if receiving is not None or (series["study_state"] == "COMPLETE" and not series["is_routed"]):
        yield "its study is not complete yet"
    busy = database.execute(
        "SELECT 1 FROM revisions JOIN jobs ON jobs.revision_id = revisions.id"
        " WHERE revisions.series_id = ? AND jobs.state IN ('QUEUED', 'RUNNING', 'RETRY') LIMIT 1",
        (series_id,),
    ).fetchone()
    if busy is not None:
        yield "a job of it is queued or runs"
    if database.execute("SELECT 1 FROM removals WHERE ended_at IS NULL AND series_id = ?", (series_id,)).fetchone():
        yield "a part of it is going already"


def _undelivered(owed: list[dict[str, Any]]) -> Iterator[str]:
    open_ones = sum(row["count"] for row in owed if row["state"] in {"PENDING", "SENDING", "RETRY"})
    if open_ones:
        yield f"{open_ones} objects are not delivered yet"
    dead = sum(row["count"] for row in owed if row["state"] == "DEAD")
    if dead:
        yield f"{dead} deliveries were given up: retry or cancel them"
    unproved = sum(row["unproved"] for row in owed if row["state"] == "SENT")
    if unproved:
        yield f"the arrival of {unproved} objects is not proved yet"


def file_sizes(folder: Path) -> list[int]:
    """Return the sizes of the files of a folder in bytes; none where it is not there."""
    try:
        with os.scandir(folder) as entries:
            return [entry.stat().st_size for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []
