"""How retention deletes: in small steps, each of which a crash may cut at any place and the next start ends.

The row of the removal says first that a unit is going. Of originals, each step marks a few rows, writes their
tombstones to the file of the series, removes the files, syncs the folders and turns the rows into tombstones in one
transaction. Results leave their place whole, by a rename, before anything of them is removed.
"""

from __future__ import annotations

import itertools
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ctnode.archive import timeline, tombstones
from ctnode.archive.database import Database
from ctnode.archive.holdings import file_sizes, units_of
from ctnode.archive.layout import Layout
from ctnode.archive.retention import Going, Kind
from ctnode.archive.tombstones import Tombstone
from ctnode.ops.durable import crash_point, fsync_directory

# So many files a step: a few milliseconds of unlink and sync.
STEP_FILES: Final = 50
# What results that are going are called; no reader takes them for published ones.
GONE: Final = ".gone-"
STOPPED: Final = "stopped"
DONE: Final = "done"


@dataclass(frozen=True, slots=True)
class Removal:
    """A unit that is going."""

    id: int
    series_id: int
    revision_id: int | None
    rule: str


def begin(database: Database, layout: Layout, going: Going) -> Removal | None:
    """Write down that a unit goes; None if anything about it has changed since it was chosen."""
    unit = going.unit
    with database.immediate():
        now = [one for one in units_of(database, layout, unit.series_id, frozenset({unit.kind}))
               if one.revision_id == unit.revision_id]  # fmt: skip
        if not now or now[0].blocks or now[0].settled_at != unit.settled_at:
            return None
        identifier = database.insert(
            "INSERT INTO removals (series_id, revision_id, rule, began_at) VALUES (?, ?, ?, ?)",
            (unit.series_id, unit.revision_id, going.rule, time.time()),
        )
        words = f"{unit.kind} go: {unit.objects} files, {unit.bytes / 1e6:.1f} MB, {going.rule}"
        _note(database, unit.series_id, unit.revision_id, words)
    crash_point("retention.begun")
    return Removal(identifier, unit.series_id, unit.revision_id, going.rule)


def open_removal(database: Database) -> Removal | None:
    """Return the oldest removal that has not ended."""
    row = database.row(
        "SELECT id, series_id, revision_id, rule FROM removals WHERE ended_at IS NULL ORDER BY id LIMIT 1"
    )
    return Removal(**row) if row is not None else None


def step(database: Database, layout: Layout, removal: Removal) -> None:
    """Do a small part of a removal; the last one ends it."""
    if removal.revision_id is not None:
        _remove_results(database, layout, removal, removal.revision_id)
        return
    with database.immediate():
        if _is_ended(database, removal):
            return
        database.execute(
            "INSERT OR IGNORE INTO going (instance_id, removal_id) SELECT id, ? FROM instances WHERE series_id = ?"
            " LIMIT ?",
            (removal.id, removal.series_id, STEP_FILES),
        )
    crash_point("retention.marked")
    # Also what an earlier process had marked already.
    finish_marked(database, layout)
    left = database.execute("SELECT 1 FROM instances WHERE series_id = ? LIMIT 1", (removal.series_id,)).fetchone()
    if left is None:
        with database.immediate():
            _end(database, removal, DONE)


def stop(database: Database, series_id: int, why: str) -> None:
    """Let what is left of a series' originals stay, inside the current transaction."""
    for row in database.rows(
        "SELECT id, series_id, revision_id, rule FROM removals"
        " WHERE ended_at IS NULL AND series_id = ? AND revision_id IS NULL",
        (series_id,),
    ):
        _end(database, Removal(**row), f"{STOPPED}: {why}")


def finish_marked(database: Database, layout: Layout) -> bool:
    """Remove the files of all marked rows and turn the rows into tombstones; return whether there were any.

    What an earlier process has done of it already is done again.
    """
    rows = database.rows(
        "SELECT going.removal_id, removals.rule, instances.series_id, instances.id AS instance_id, sop_instance,"
        " digest, transfer_syntax, path, instances.bytes, instances.revision FROM going"
        " JOIN instances ON instances.id = going.instance_id JOIN removals ON removals.id = going.removal_id"
        " ORDER BY going.removal_id, going.instance_id"
    )
    for removal_id, group in itertools.groupby(rows, key=lambda row: row["removal_id"]):
        members = list(group)
        series_id = members[0]["series_id"]
        now = time.time()
        stones = [
            Tombstone(
                row["sop_instance"], row["digest"], row["transfer_syntax"], row["instance_id"], row["revision"],
                row["bytes"], now, row["rule"],
            )
            for row in members
        ]  # fmt: skip
        series = tombstones.series_record(database, series_id)
        place = layout.tombstone_file(series["study"], series["series"], series["split"])
        record = {"what": str(Kind.ORIGINALS), "of": series, "images": [asdict(stone) for stone in stones]}
        tombstones.append(layout, place, record)
        crash_point("retention.before-unlink")
        _unlink(layout, [layout.store / row["path"] for row in members])
        crash_point("retention.before-commit")
        with database.immediate():
            _bury(database, removal_id, series_id, stones)
        crash_point("retention.committed")
    return bool(rows)


def _unlink(layout: Layout, files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
        crash_point("retention.unlinked")
    for folder in sorted({file.parent for file in files}):
        if folder.is_dir():
            fsync_directory(folder)
            _remove_empty(folder, below=layout.store)


def _remove_empty(folder: Path, *, below: Path) -> None:
    """Remove a folder and those over it that nothing is in any more."""
    while folder != below:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
        fsync_directory(folder)


def _bury(database: Database, removal_id: int, series_id: int, stones: list[Tombstone]) -> None:
    size = sum(stone.bytes for stone in stones)
    for stone in stones:
        database.execute("DELETE FROM going WHERE instance_id = ?", (stone.instance_id,))
        database.execute("DELETE FROM instances WHERE id = ?", (stone.instance_id,))
    tombstones.add(database, series_id, stones)
    database.execute(
        "UPDATE series SET instances = instances - ?, bytes = bytes - ? WHERE id = ?", (len(stones), size, series_id)
    )
    database.execute(
        "UPDATE removals SET objects = objects + ?, bytes = bytes + ? WHERE id = ?", (len(stones), size, removal_id)
    )
    database.count("instances", -len(stones))
    database.count("bytes", -size)
    database.count("retention.originals", len(stones))
    database.count("retention.bytes", size)


def _remove_results(database: Database, layout: Layout, removal: Removal, revision_id: int) -> None:
    series = tombstones.series_record(database, removal.series_id)
    (n,) = database.execute("SELECT n FROM revisions WHERE id = ?", (revision_id,)).fetchone()
    final = layout.result_directory(series["study"], series["series"], series["split"], n)
    gone = final.with_name(f"{GONE}{final.name}-{removal.id}")
    if final.is_dir() and not gone.exists():
        final.rename(gone)
        fsync_directory(final.parent)
    crash_point("retention.renamed")
    sizes = file_sizes(gone)
    place = layout.tombstone_file(series["study"], series["series"], series["split"])
    record = {"what": str(Kind.RESULTS), "of": series, "revision": n, "deleted_at": time.time(), "rule": removal.rule}
    tombstones.append(layout, place, record)
    crash_point("retention.before-rmtree")
    if gone.exists():
        shutil.rmtree(gone)
        fsync_directory(gone.parent)
        _remove_empty(gone.parent, below=layout.results)
    crash_point("retention.before-commit")
    with database.immediate():
        database.execute(
            "UPDATE removals SET objects = ?, bytes = ? WHERE id = ?", (len(sizes), sum(sizes), removal.id)
        )
        database.count("retention.results")
        database.count("retention.bytes", sum(sizes))
        _end(database, removal, DONE)


def _is_ended(database: Database, removal: Removal) -> bool:
    (ended_at,) = database.execute("SELECT ended_at FROM removals WHERE id = ?", (removal.id,)).fetchone()
    return ended_at is not None


def _end(database: Database, removal: Removal, outcome: str) -> None:
    database.execute("UPDATE removals SET ended_at = ?, outcome = ? WHERE id = ?", (time.time(), outcome, removal.id))
    objects, size = database.execute("SELECT objects, bytes FROM removals WHERE id = ?", (removal.id,)).fetchone()
    what = Kind.ORIGINALS if removal.revision_id is None else Kind.RESULTS
    verb = "were deleted" if outcome == DONE else f"were deleted, the rest stays ({outcome})"
    words = f"{objects} files of the {what}, {size / 1e6:.1f} MB, {verb}: {removal.rule}"
    _note(database, removal.series_id, removal.revision_id, words)


def _note(database: Database, series_id: int, revision_id: int | None, words: str) -> None:
    (n,) = database.execute(
        "SELECT max(n) FROM revisions WHERE series_id = ? AND id = coalesce(?, id)", (series_id, revision_id)
    ).fetchone()
    timeline.note(database, series_id, n or 1, "retention", words)
