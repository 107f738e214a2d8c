"""The files are the truth: the index can be made anew from them, or completed after an old backup was put back.

Nothing is queued and nothing is sent: what has results is DONE, the rest is HELD "rebuilt" until somebody requeues it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ctnode.archive import associations, timeline, tombstones
from ctnode.archive.associations import Association, Ending
from ctnode.archive.batch import Batch
from ctnode.archive.database import Database
from ctnode.archive.header import Header, read_header
from ctnode.archive.index import Arrival, Index
from ctnode.archive.layout import Layout, parse_series_name
from ctnode.archive.retention import Kind
from ctnode.archive.revisions import get, keep, newest, supersede_older
from ctnode.archive.tombstones import Tombstone
from ctnode.words import BadInstance, RevisionState

REBUILT: Final = "rebuilt"
NOT_CT: Final = "not CT, or made by ctnode"
BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild found."""

    instances: int
    series: int
    done: int
    held: int
    unreadable: tuple[str, ...]


def set_aside(layout: Layout) -> Path | None:
    """Move the index out of the way and return where it is now."""
    if not layout.database.exists():
        return None
    aside = layout.database.with_name(f"{layout.database.name}.before-rebuild-{time.time_ns()}")
    for suffix in ("", "-wal", "-shm", "-journal"):
        file = layout.database.with_name(layout.database.name + suffix)
        if file.exists():
            file.rename(aside.with_name(aside.name + suffix))
    return aside


def rebuild(database: Database, layout: Layout, note: Callable[[int, int], object] | None = None) -> Rebuilt:
    """Give each file of the store that has no row its row; the caller holds the keeper's lock.

    ``note`` hears how many files of how many were looked at.

    The name of a file decides nothing but its split: UIDs and digest come from the file itself.
    """
    index = Index(database, layout, lambda _arrival, _n: 1.0)
    with database.immediate():
        door = associations.begin(database, f"rebuild-{time.time_ns()}", {"door": REBUILT}, time.time())
    unreadable: list[str] = []
    batch: list[tuple[Path, Header]] = []
    known = {row[0] for row in database.execute("SELECT path FROM instances")}
    touched: set[int] = set()
    count = 0
    # Older files first: of several with one UID the newest becomes current, as when they arrived.
    paths = sorted(_files(layout.store), key=lambda path: (path.stat().st_mtime_ns, str(path)))
    for number, path in enumerate(paths):
        if note is not None:
            note(number, len(paths))
        if str(path.relative_to(layout.store)) in known:
            continue
        try:
            batch.append((path, read_header(path)))
        except (BadInstance, OSError) as error:
            unreadable.append(f"{path.relative_to(layout.store)}: {error}")
        if len(batch) >= BATCH:
            count += _adopt(index, door, batch, touched, unreadable)
            batch = []
    count += _adopt(index, door, batch, touched, unreadable)
    with database.immediate():
        associations.end(database, door, Ending(REBUILT, time.time()))
    for place in sorted(layout.tombstones.glob("*/*.jsonl")):
        with database.immediate():
            _bury(database, layout, list(tombstones.lines_of(place)))
    states = [_settle(database, layout, series_id) for series_id in sorted(touched)]
    done = states.count(RevisionState.DONE)
    held = states.count(RevisionState.COMPLETE)
    return Rebuilt(count, len(touched), done, held, tuple(unreadable))


def _adopt(
    index: Index, door: Association, batch: list[tuple[Path, Header]], touched: set[int], unreadable: list[str]
) -> int:
    """Give rows to files that lie in the store already, each under the split that its folder names; return how many."""
    database, store = index.database, index.layout.store
    count = 0
    with database.immediate():
        sums = Batch(database)
        for path, header in batch:
            at = path.stat().st_mtime
            study_id = _study(database, header.uids.study, at)
            _, split = parse_series_name(path.parent.name)
            series_id = _series(database, study_id, header, split, at)
            relative = str(path.relative_to(store))
            same = _same(database, series_id, header)
            if same:
                unreadable.append(f"{relative}: the same instance as {same}")
                continue
            index.adopt(series_id, Arrival(path, at, door, header), relative, sums)
            touched.add(series_id)
            count += 1
        sums.write()
    return count


def _same(database: Database, series_id: int, header: Header) -> str:
    """Return the path of the row that this very instance has already, else an empty text."""
    row = database.execute(
        "SELECT path FROM instances WHERE series_id = ? AND sop_instance = ? AND digest = ? AND transfer_syntax = ?",
        (series_id, header.uids.sop_instance, header.digest, header.transfer_syntax),
    ).fetchone()
    return str(row[0]) if row is not None else ""


def _study(database: Database, uid: str, at: float) -> int:
    row = database.execute("SELECT id FROM studies WHERE uid = ?", (uid,)).fetchone()
    if row is not None:
        return int(row[0])
    database.count("studies")
    return database.insert(
        "INSERT INTO studies (uid, state, first_at, last_at) VALUES (?, 'COMPLETE', ?, ?)", (uid, at, at)
    )


def _series(database: Database, study_id: int, header: Header, split: int, at: float) -> int:
    row = database.execute(
        "SELECT id FROM series WHERE study_id = ? AND uid = ? AND split = ?", (study_id, header.uids.series, split)
    ).fetchone()
    if row is not None:
        return int(row[0])
    database.count("series")
    return database.insert(
        "INSERT INTO series (study_id, uid, split, modality, patient_key, frame_of_reference, rows, columns, first_at,"
        " last_at, flags) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            study_id, header.uids.series, split, header.modality, header.patient_key, header.frame_of_reference,
            header.rows, header.columns, at, at, json.dumps(["SPLIT"] if split > 1 else []),
        ),
    )  # fmt: skip


def _settle(database: Database, layout: Layout, series_id: int) -> RevisionState:
    """Give a series the revisions that its results name, else one that is held."""
    study, uid, split, ct_instances, own_instances = database.execute(
        "SELECT studies.uid, series.uid, series.split, series.ct_instances, series.own_instances FROM series"
        " JOIN studies ON studies.id = series.study_id WHERE series.id = ?",
        (series_id,),
    ).fetchone()
    place = layout.result_directory(study, uid, split, 1).parent
    published = sorted(_published(place) | _deleted_results(layout.tombstone_file(study, uid, split)))
    with database.immediate():
        ids = [row[0] for row in database.execute("SELECT id FROM instances WHERE series_id = ?", (series_id,))]
        present = {row[0] for row in database.execute("SELECT n FROM revisions WHERE series_id = ?", (series_id,))}
        last = max(present, default=0)
        _end_waiting(database, series_id, published, ids)
        for n in published:
            if n > last:
                state = RevisionState.DONE if n == published[-1] else RevisionState.SUPERSEDED
                _insert_revision(database, series_id, n, state, ids)
                supersede_older(database, series_id, n)
        if not published or published[-1] <= last:
            _open_held(database, series_id, last, ids)
        revision = newest(database, series_id)
        if revision.state is RevisionState.COMPLETE and (own_instances or not ct_instances):
            keep(database, revision, NOT_CT)
        elif revision.state is RevisionState.COMPLETE:
            database.execute("UPDATE series SET hold = ? WHERE id = ?", (REBUILT, series_id))
        return get(database, revision.id).state


def _published(place: Path) -> set[int]:
    """Return the revisions whose results lie in the folder of a series."""
    return {int(path.name[1:]) for path in place.glob("r*") if path.name[1:].isdigit()}


def _deleted_results(place: Path) -> set[int]:
    """Return the revisions of a series whose results were there and deleted by a rule."""
    lines = tombstones.lines_of(place) if place.is_file() else ()
    return {int(line["revision"]) for line in lines if line["what"] == Kind.RESULTS}


def _bury(database: Database, layout: Layout, lines: list[dict[str, Any]]) -> None:
    """Let the index know what retention deleted of a series; what is in the store again is not dead any more."""
    if not lines:
        return
    of = lines[-1]["of"]
    at = float(of["last_at"])
    study_id = _study(database, of["study"], at)
    series_id = _deleted_series(database, study_id, of)
    stones: list[Tombstone] = []
    images = {(image["sop_instance"], image["digest"], image["transfer_syntax"]): image
              for line in lines if line["what"] == Kind.ORIGINALS for image in line["images"]}  # fmt: skip
    (last,) = database.execute(
        "SELECT max(coalesce((SELECT max(id) FROM instances), 0),"
        " coalesce((SELECT max(instance_id) FROM tombstones), 0))"
    ).fetchone()
    for identity, image in images.items():
        row = database.execute(
            "SELECT id, path, bytes FROM instances WHERE series_id = ? AND sop_instance = ? AND digest = ?"
            " AND transfer_syntax = ?",
            (series_id, *identity),
        ).fetchone()
        if row is not None and (layout.store / row[1]).is_file():
            continue
        last += 1
        stones.append(Tombstone(**{**image, "instance_id": last if row is None else row[0]}))
        if row is not None:
            # An old copy of the index, put back, has the row still.
            database.execute("DELETE FROM going WHERE instance_id = ?", (row[0],))
            database.execute("DELETE FROM instances WHERE id = ?", (row[0],))
            database.execute("UPDATE series SET instances = instances - 1, bytes = bytes - ? WHERE id = ?",
                             (row[2], series_id))  # fmt: skip
            database.count("instances", -1)
            database.count("bytes", -row[2])
    known = {(stone.sop_instance, stone.digest, stone.transfer_syntax)
             for stone in tombstones.of_series(database, series_id)}  # fmt: skip
    fresh = [one for one in stones if (one.sop_instance, one.digest, one.transfer_syntax) not in known]
    tombstones.add(database, series_id, fresh)
    if database.execute("SELECT 1 FROM revisions WHERE series_id = ?", (series_id,)).fetchone() is None:
        made = {int(line["revision"]) for line in lines if line["what"] == Kind.RESULTS}
        made |= _published(layout.result_directory(of["study"], of["series"], of["split"], 1).parent)
        _end_deleted(database, series_id, lines, made, [stone.instance_id for stone in fresh])


def _deleted_series(database: Database, study_id: int, of: dict[str, Any]) -> int:
    row = database.execute(
        "SELECT id FROM series WHERE study_id = ? AND uid = ? AND split = ?", (study_id, of["series"], of["split"])
    ).fetchone()
    if row is not None:
        return int(row[0])
    database.count("series")
    names = ("split", "modality", "patient_key", "frame_of_reference", "rows", "columns", "ct_instances",
             "own_instances", "first_at", "last_at")  # fmt: skip
    return database.insert(
        f"INSERT INTO series (study_id, uid, {', '.join(names)}) VALUES (?, ?, {', '.join('?' * len(names))})",
        (study_id, of["series"], *(of[name] for name in names)),
    )


def _end_deleted(
    database: Database, series_id: int, lines: list[dict[str, Any]], made: set[int], ids: list[int]
) -> None:
    """Give a series of which no image is left its last revision, whose frozen list names what may come back."""
    if database.execute("SELECT 1 FROM instances WHERE series_id = ? LIMIT 1", (series_id,)).fetchone():
        return
    seen = [int(image["revision"]) for line in lines for image in line.get("images", ())]
    state = RevisionState.DONE if made else RevisionState.KEPT
    _insert_revision(database, series_id, max([*made, *seen, 1]), state, ids)


def _end_waiting(database: Database, series_id: int, published: list[int], ids: list[int]) -> None:
    """End a revision that an old copy of the index has as waiting, where results say that it came to its end."""
    waiting = database.row("SELECT id, n FROM revisions WHERE series_id = ? AND state = 'RECEIVING'", (series_id,))
    if waiting is None or not published or published[-1] < waiting["n"]:
        return
    database.execute(
        "UPDATE revisions SET state = ?, verdict_at = ?, evidence = ?, instances = ?, reason = ? WHERE id = ?",
        (RevisionState.DONE, time.time(), json.dumps([REBUILT]), json.dumps(ids), REBUILT, waiting["id"]),
    )


def _open_held(database: Database, series_id: int, last: int, ids: list[int]) -> None:
    """Put what no result covers into a revision of its own, unless one is still receiving."""
    if last and newest(database, series_id).state is RevisionState.RECEIVING:
        return
    _insert_revision(database, series_id, last + 1, RevisionState.COMPLETE, ids)
    supersede_older(database, series_id, last + 1)


def _insert_revision(database: Database, series_id: int, n: int, state: RevisionState, ids: list[int]) -> None:
    now = time.time()
    database.insert(
        "INSERT INTO revisions (series_id, n, state, opened_at, last_arrival, quiet_s, deadline, verdict_at,"
        " evidence, instances, reason) VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?)",
        (series_id, n, state, now, now, now, now, json.dumps([REBUILT]), json.dumps(ids), REBUILT),
    )
    timeline.note(database, series_id, n, REBUILT, f"rebuilt from {len(ids)} files as {state}")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*.dcm") if path.is_file())
