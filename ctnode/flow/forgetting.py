"""Forgetting a series, a study or a patient: chosen by the operator, carried out by whoever is the keeper.

Every step can be done again: after a crash the request is still there and is carried out from its beginning. What it
names are numbers of rows, so that the request itself tells nobody's name.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ctnode.archive import erasure, holdings, verified
from ctnode.archive.database import Database
from ctnode.archive.header import patient_key, read_header
from ctnode.archive.invariants import STEP
from ctnode.archive.layout import Layout, parse_series_name, path_part, series_part
from ctnode.archive.spool import JOURNAL_NAME
from ctnode.archive.values import read_values
from ctnode.config import Config
from ctnode.ops import audit
from ctnode.ops.durable import crash_point, fsync_directory, is_locked
from ctnode.words import BadInstance, NotFound

REQUEST: Final = "forget"
GONE: Final = ".forget-"
_PATIENT_ID: Final = 0x00100020


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is to be forgotten, and how much that is."""

    series_ids: tuple[int, ...]
    studies: int
    images: int
    results: int
    # How many objects each destination has of it, or may have.
    sent: tuple[tuple[str, int], ...]
    # UIDs of the series, and of the studies of which nothing else is there.
    uids: tuple[str, ...]


# --------------------------------------------------------------------------------------------------- choosing


def find_uid(database: Database, uid: str, study: str | None) -> list[int]:
    """Return the series of a UID: all splits of a series, or all series of a study.

    Raises
    ------
    NotFound
        If the index has neither.
    """
    name, split = parse_series_name(uid)
    found = database.execute(
        "SELECT series.id FROM series JOIN studies ON studies.id = study_id WHERE (studies.uid = ?1 OR"
        " (series.uid = ?2 AND (?3 OR split = ?4))) AND (?5 IS NULL OR studies.uid = ?5)",
        (uid, name, name == uid, split, study),
    ).fetchall()
    if not found:
        raise NotFound(f"no series or study {uid}", hint="`ctnode series list` shows what is there")
    return [row[0] for row in found]


def find_patient(database: Database, layout: Layout, patient: str, issuer: str) -> list[int]:
    """Return all series of a Patient ID: by its digest in the index, and by what the first file of each says.

    Raises
    ------
    NotFound
        If there is none.
    """
    key = patient_key(patient, issuer)
    found = []
    for series_id in holdings.pages(database):
        known, path = database.execute(
            "SELECT patient_key, (SELECT path FROM instances WHERE series_id = series.id LIMIT 1) FROM series"
            " WHERE id = ?",
            (series_id,),
        ).fetchone()
        if known == key or (path and not issuer and _patient_of(layout.store / path) == patient):
            found.append(series_id)
    if not found:
        raise NotFound("no series of this patient", hint="the ID has to be written as in the images")
    return found


def _patient_of(file: Path) -> str:
    try:
        values = read_values(file, {_PATIENT_ID: "LO"}).get(_PATIENT_ID, ())
    except (BadInstance, OSError):
        return ""
    return str(values[0]) if values else ""


def survey(database: Database, layout: Layout, series_ids: Sequence[int]) -> Chosen:
    """Return how much would be forgotten."""
    ids = json.dumps(list(series_ids))
    studies, images = database.execute(
        "SELECT count(DISTINCT study_id), coalesce(sum(instances), 0) FROM series"
        " WHERE id IN (SELECT value FROM json_each(?))",
        (ids,),
    ).fetchone()
    sent = database.execute(
        "SELECT target, count(*) FROM deliveries WHERE series_id IN (SELECT value FROM json_each(?))"
        " AND (transfers > 0 OR state IN ('SENT', 'CONFIRMED', 'SENDING')) GROUP BY target ORDER BY target",
        (ids,),
    ).fetchall()
    folders = [folder for place in _places(database, layout, series_ids) for folder in place.results.glob("r*")]
    uids = database.execute(
        "SELECT DISTINCT uid FROM series WHERE id IN (SELECT value FROM json_each(?1)) UNION"
        " SELECT studies.uid FROM studies JOIN series ON study_id = studies.id"
        " WHERE series.id IN (SELECT value FROM json_each(?1)) AND NOT EXISTS (SELECT 1 FROM series AS other"
        " WHERE other.study_id = studies.id AND other.id NOT IN (SELECT value FROM json_each(?1)))",
        (ids,),
    ).fetchall()
    return Chosen(tuple(series_ids), studies, images, len(folders), tuple(sent), tuple(row[0] for row in uids))


def unreached(config: Config, database: Database, layout: Layout, chosen: Chosen) -> Iterator[str]:
    """Yield what forgetting has not reached, so that the operator knows where to go on."""
    if erasure.is_named(database, chosen.uids):
        yield "the index itself: something else in it, or that came since, names a UID of what was forgotten"
    for target, count in chosen.sent:
        yield f"{count} objects that were sent, or may have been, to {target}"
    for copy in sorted(layout.root.glob(f"{layout.database.name}.*")):
        yield f"an older copy of the index: {copy.name}"
    yield "copies of the index that `ctnode backup` made, and backups of the file system"
    yield "logs of the service manager, which hold UIDs"
    open_ones = sum(1 for _ in layout.incoming.glob(f"*/{JOURNAL_NAME}"))
    if open_ones:
        yield f"{open_ones} journals of associations that are open or not settled yet; each goes with its association"
    if config.inbox.path:
        yield "files that wait in the watched folder"
    left = sum(1 for path in layout.quarantine.glob("*") if path.is_file())
    if left:
        yield f"{left} files in quarantine: those of them that cannot be read stay there"


# -------------------------------------------------------------------------------------------------- carrying out


def order(chosen: Chosen, who: str, reason: str) -> str:
    """Return the argument of the request."""
    return json.dumps({"series": list(chosen.series_ids), "who": who, "reason": reason})


def carry_out(database: Database, layout: Layout, request: int) -> bool:
    """Carry a request out and end it; False while something of it is on its way, to be tried again a little later."""
    (argument,) = database.execute("SELECT argument FROM requests WHERE id = ?", (request,)).fetchone()
    wanted = json.loads(argument)
    database.execute("PRAGMA secure_delete = ON").fetchall()
    if "forgotten" not in wanted:
        if not erasure.quiesce(database, wanted["series"]):
            return False
        _forget(database, layout, request, wanted)
    crash_point("forget.before-wipe")
    erasure.wipe_free_pages(database)
    with database.immediate():
        database.execute("UPDATE requests SET ended_at = ? WHERE id = ?", (time.time(), request))
    return True


def _forget(database: Database, layout: Layout, request: int, wanted: dict[str, Any]) -> None:
    ids: list[int] = wanted["series"]
    places = _places(database, layout, ids)
    with database.immediate():
        # From here on no row promises a file.
        for series_id in ids:
            removal_id = database.insert(
                "INSERT INTO removals (series_id, rule, began_at) VALUES (?, 'forget', ?)",
                (series_id, time.time()),
            )
            database.execute(
                "INSERT OR IGNORE INTO going (instance_id, removal_id) SELECT id, ? FROM instances WHERE series_id = ?",
                (removal_id, series_id),
            )
    crash_point("forget.marked")
    results = sum(_remove(place, layout) for place in places)
    crash_point("forget.removed")
    _remove_quarantined(database, layout, places)
    _remove_ledger(database, layout, places)
    audit.blot(layout.root, survey(database, layout, ids).uids)
    verified.forget(layout)
    if not is_locked(layout.run / "deliver.lock"):
        # Imported here: it brings the network with it, which the keeper needs for nothing else.
        from ctnode.flow.outgoing import sweep

        sweep(layout)
    crash_point("forget.before-commit")
    with database.immediate():
        erased = erasure.erase(database, ids, results)
        number = erasure.note_forgotten(database, erased, wanted["who"], wanted["reason"])
        database.execute("UPDATE requests SET argument = ? WHERE id = ?", (json.dumps({"forgotten": number}), request))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where things of one series lie."""

    study: str
    series: str
    patient_key: str
    store: Path
    results: Path
    tombstones: Path


def _places(database: Database, layout: Layout, series_ids: Sequence[int]) -> list[_Place]:
    rows = database.execute(
        "SELECT studies.uid, series.uid, split, patient_key FROM series JOIN studies ON studies.id = study_id"
        " WHERE series.id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(series_ids)),),
    ).fetchall()
    return [
        _Place(
            study, series, key, layout.store / path_part(study) / series_part(series, split),
            layout.result_directory(study, series, split, 1).parent, layout.tombstone_file(study, series, split),
        )
        for study, series, split, key in rows
    ]  # fmt: skip


def _remove(place: _Place, layout: Layout) -> int:
    """Remove the folders of a series; return how many results were in them."""
    results = sum(1 for _ in place.results.glob("r*"))
    for folder, top in ((place.store, layout.store), (place.results, layout.results)):
        # Under another name, so that a job that still writes there finds nothing; left ones are of an earlier try.
        if folder.is_dir():
            aside = top / f"{GONE}{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
            if aside.exists():
                shutil.rmtree(aside)
            folder.rename(aside)
        for left in top.glob(f"{GONE}*"):
            shutil.rmtree(left)
        _remove_empty(folder.parent, top)
    place.tombstones.unlink(missing_ok=True)
    if layout.tombstones.is_dir():
        _remove_empty(place.tombstones.parent, layout.tombstones)
    return results


def _remove_empty(folder: Path, top: Path) -> None:
    if folder.is_dir():
        fsync_directory(folder)
        if not any(folder.iterdir()):
            folder.rmdir()
    fsync_directory(top)


def _remove_quarantined(database: Database, layout: Layout, places: Sequence[_Place]) -> None:
    """Remove what lies in quarantine and says itself that it belongs to what is forgotten."""
    names = {(place.study, place.series) for place in places}
    keys = {place.patient_key for place in places}
    for (path,) in database.execute("SELECT path FROM quarantine LIMIT ?", (STEP * STEP,)).fetchall():
        try:
            header = read_header(Path(path))
        except (BadInstance, OSError):
            continue
        if (header.uids.study, header.uids.series) in names or header.patient_key in keys:
            Path(path).unlink(missing_ok=True)
            with database.immediate():
                database.execute("DELETE FROM quarantine WHERE path = ?", (path,))
    fsync_directory(layout.quarantine)


def _remove_ledger(database: Database, layout: Layout, places: Sequence[_Place]) -> None:
    """Remove what receivers remember of procedure steps and notices that named what is forgotten."""
    folder = layout.root / "ledger"
    if not folder.is_dir():
        return
    studies, series = {place.study for place in places}, {place.series for place in places}
    for name, study, one in database.execute("SELECT name, study, series FROM evidence").fetchall():
        if study in studies or one in series:
            for file in folder.glob(f"*-{hashlib.sha256(name.encode()).hexdigest()[:32]}.jsonl"):
                file.unlink(missing_ok=True)
    fsync_directory(folder)
