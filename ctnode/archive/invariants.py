"""What must always hold between files and rows, checked both ways by ``doctor`` and after each kill test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.archive.removal import GONE
from ctnode.archive.rooms import KEPT_SUFFIX

STEP: Final = 1000


def check_store(database: Database, layout: Layout) -> Iterator[str]:
    """Yield each breach: a file of the store without a row, a row whose file is nowhere.

    A row whose file still waits in the journal is none: it was committed and the move is finished by the next scan.
    """
    for file in _files(layout.store):
        relative = str(file.relative_to(layout.store))
        if database.execute("SELECT 1 FROM instances WHERE path = ? LIMIT 1", (relative,)).fetchone() is None:
            yield f"store/{relative} has no row in the index"
    missing = [path for path in _paths(database) if _is_lost(database, layout, path)]
    waiting = sum(1 for _ in layout.incoming.glob(f"*/*{KEPT_SUFFIX}"))
    # A second look, for those that a running keeper has moved since.
    gone = [path for path in missing if _is_lost(database, layout, path)]
    yield from (f"the index names store/{path}, which is not there" for path in gone[waiting:])


def _is_lost(database: Database, layout: Layout, path: str) -> bool:
    """Return whether a file is nowhere although its row neither says that it is going nor has gone with it."""
    if (layout.store / path).is_file():
        return False
    row = database.execute(
        "SELECT 1 FROM instances WHERE path = ? AND id NOT IN (SELECT instance_id FROM going)", (path,)
    ).fetchone()
    return row is not None


def check_removals(database: Database, layout: Layout) -> Iterator[str]:
    """Yield each breach among what was deleted and what is going."""
    last = 0
    while rows := database.execute(
        "SELECT id, deleted FROM series WHERE id > ? ORDER BY id LIMIT ?", (last, STEP)
    ).fetchall():
        last = rows[-1][0]
        for series_id, deleted in rows:
            # A short statement for each series: see ``_paths``.
            counted, there = database.execute(
                "SELECT count(*), count(instances.id) FROM tombstones LEFT JOIN instances"
                " USING (series_id, sop_instance, digest, transfer_syntax) WHERE tombstones.series_id = ?",
                (series_id,),
            ).fetchone()
            now = database.execute("SELECT deleted FROM series WHERE id = ?", (series_id,)).fetchone()
            if counted != deleted and now == (deleted,):
                yield f"series {series_id} says that {deleted} images were deleted, its tombstones are {counted}"
            if there:
                yield f"{there} instances of series {series_id} are there and have tombstones"
    for folder in layout.results.glob(f"*/*/{GONE}*"):
        identifier = folder.name.rpartition("-")[2]
        is_open = database.execute("SELECT 1 FROM removals WHERE id = ? AND ended_at IS NULL", (identifier,)).fetchone()
        if is_open is None and folder.exists():
            yield f"{folder.name} in {folder.parent} belongs to no removal that goes on"


def _paths(database: Database) -> Iterator[str]:
    """Yield every path in small steps: a reader that stays open would block each commit of a running node."""
    last = 0
    while rows := database.execute(
        "SELECT id, path FROM instances WHERE id > ? ORDER BY id LIMIT ?", (last, STEP)
    ).fetchall():
        last = rows[-1][0]
        yield from (path for _, path in rows)


def check_states(database: Database) -> Iterator[str]:
    """Yield each breach among revisions and jobs."""
    for series_id, count in database.execute(
        "SELECT series_id, count(*) FROM revisions WHERE state IN ('QUEUED', 'PROCESSING') GROUP BY series_id"
    ):
        if count > 1:
            yield f"series {series_id} has {count} revisions queued or running"
    for revision_id, state, job in database.execute(
        "SELECT revisions.id, revisions.state, jobs.state FROM revisions"
        " LEFT JOIN jobs ON jobs.revision_id = revisions.id AND jobs.kind <> 'ask'"
        " WHERE revisions.state IN ('QUEUED', 'PROCESSING', 'FAILED')"
    ):
        expected = {"QUEUED": {"QUEUED", "RETRY"}, "PROCESSING": {"RUNNING"}, "FAILED": {"DEAD"}}[state]
        if job not in expected:
            yield f"revision {revision_id} is {state} but its job is {job}"
    for name, kept in database.execute(
        "SELECT name, value FROM counters WHERE name IN ('instances', 'studies', 'series')"
    ):
        (counted,) = database.execute(f"SELECT count(*) FROM {name}").fetchone()
        if counted != kept:
            yield f"the counter of {name} says {kept}, the rows are {counted}"


def check_integrity(database: Database) -> Iterator[str]:
    """Yield what SQLite finds wrong with the file."""
    for (line,) in database.execute("PRAGMA quick_check"):
        if line != "ok":
            yield f"the index is damaged: {line}"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
