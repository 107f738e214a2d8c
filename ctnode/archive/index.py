"""The keeper's half of the index: instances get rows, series get revisions, one transaction a batch.

The row with the final path is committed first; then the file is renamed (``settle``). So no file outside ``incoming/``
is ever without a row, and a crash in between leaves a row whose file still waits in the journal, where the next scan
finds it and finishes the move.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctnode.archive import timeline
from ctnode.archive.associations import Association
from ctnode.archive.database import Database
from ctnode.archive.header import Header, identity
from ctnode.archive.layout import Layout
from ctnode.archive.revisions import supersede_older
from ctnode.words import STUDY_TRANSITIONS, RevisionState, StudyEvent, StudyState, next_state

CT_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
        "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT Image Storage
        "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT Image Storage
    }
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A file of the journal with its header, on its way into the index."""

    path: Path
    arrived_at: float
    association: Association
    header: Header


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an arrival belongs; ``is_new`` is false for an instance that the index had already."""

    source: Path
    final: Path
    series_id: int
    is_new: bool


# Returns the quiet seconds of an association's series in their n-th revision, from AE titles, peer and n.
QuietPolicy = Callable[[Association, int], float]


@dataclass(frozen=True, slots=True)
class _Series:
    id: int
    split: int
    study_id: int


class Index:
    """The writer of studies, series, revisions and instances; one in the node, inside the keeper."""

    def __init__(self, database: Database, layout: Layout, quiet: QuietPolicy) -> None:
        self.database = database
        self.layout = layout
        self.quiet = quiet

    def note_attempts(self, names: Sequence[str]) -> dict[str, int]:
        """Count an attempt at each file before it is touched; return the counts with this one."""
        with self.database.immediate():
            self.database.connection.executemany(
                "INSERT INTO attempts (name, attempts) VALUES (?, 1)"
                " ON CONFLICT (name) DO UPDATE SET attempts = attempts + 1",
                [(name,) for name in names],
            )
        marks = ",".join("?" * len(names))
        return dict(
            self.database.execute(
                f"SELECT name, attempts FROM attempts WHERE name IN ({marks})", list(names)
            ).fetchall()
        )

    def forget_attempts(self, names: Sequence[str]) -> None:
        """Drop the counts of files that are settled, inside the current transaction."""
        self.database.connection.executemany("DELETE FROM attempts WHERE name = ?", [(name,) for name in names])

    def take(self, arrivals: Sequence[Arrival], names: Sequence[str]) -> tuple[Placement, ...]:
        """Give each arrival its row in one transaction and return where the files belong."""
        with self.database.immediate():
            placements = tuple(self._take_one(arrival) for arrival in arrivals)
            self.forget_attempts(names)
        return placements

    def _take_one(self, arrival: Arrival) -> Placement:
        header = arrival.header
        study_id = self._study(header.uids.study, arrival.arrived_at)
        series = self._series(study_id, arrival)
        known = self.database.execute(
            "SELECT path, digest, transfer_syntax, association_id, arrived_at FROM instances"
            " WHERE series_id = ? AND sop_instance = ?",
            (series.id, header.uids.sop_instance),
        ).fetchall()
        for path, digest, transfer_syntax, *arrived in known:
            if digest == header.digest and transfer_syntax == header.transfer_syntax:
                if arrived != [arrival.association.id, arrival.arrived_at]:
                    # Else it is the file of this very row, whose move a crash cut short.
                    self._again(series, arrival)
                return Placement(arrival.path, self.layout.store / path, series.id, is_new=False)
        final = self._free_path(series, header, is_conflict=bool(known))
        if known:
            self._conflict(series, arrival)
        revision = self._revision(series, arrival)
        self._instance(series.id, arrival, str(final), revision)
        return Placement(arrival.path, self.layout.store / final, series.id, is_new=True)

    def _free_path(self, series: _Series, header: Header, *, is_conflict: bool) -> Path:
        """Return a path that no row has: what follows the UID tells apart other bytes, and the same in other encodings.

        Twelve hex digits can be twelve digits, and the result another instance's UID.
        """
        whole = hashlib.sha256(identity(header.digest, header.transfer_syntax).encode()).hexdigest()
        suffixes = ["", f".{header.digest[:12]}", f".{whole[:12]}", f".{whole}"]
        for suffix in suffixes[int(is_conflict) :]:
            final = self.layout.store_path(
                header.uids.study, header.uids.series, series.split, header.uids.sop_instance, suffix=suffix
            )
            taken = self.database.execute("SELECT 1 FROM instances WHERE path = ? LIMIT 1", (str(final),)).fetchone()
            if taken is None:
                break
        return final

    def adopt(self, series_id: int, arrival: Arrival, path: str) -> None:
        """Give a row to a file that lies in the store already, inside the current transaction."""
        if self._retire_older(series_id, arrival.header.uids.sop_instance):
            self._flag(series_id, "CONFLICT")
        self._instance(series_id, arrival, path, revision=1)

    def _study(self, uid: str, at: float) -> int:
        row = self.database.execute("SELECT id, state FROM studies WHERE uid = ?", (uid,)).fetchone()
        if row is None:
            self.database.count("studies")
            return self.database.insert(
                "INSERT INTO studies (uid, state, first_at, last_at) VALUES (?, ?, ?, ?)",
                (uid, StudyState.OPEN, at, at),
            )
        state = next_state(STUDY_TRANSITIONS, StudyState(row[1]), StudyEvent.ARRIVE)
        self.database.execute(
            "UPDATE studies SET last_at = max(last_at, ?), state = ? WHERE id = ?", (at, state, row[0])
        )
        return int(row[0])

    def _series(self, study_id: int, arrival: Arrival) -> _Series:
        header = arrival.header
        uid = header.uids.series
        kind = (header.patient_key, header.frame_of_reference, header.rows, header.columns)
        splits = self.database.execute(
            "SELECT id, split, patient_key, frame_of_reference, rows, columns FROM series"
            " WHERE study_id = ? AND uid = ? ORDER BY split",
            (study_id, uid),
        ).fetchall()
        for series_id, split, *known in splits:
            if tuple(known) == kind:
                return _Series(series_id, split, study_id)
        split = len(splits) + 1
        series_id = self.database.insert(
            "INSERT INTO series (study_id, uid, split, modality, patient_key, frame_of_reference, rows, columns,"
            " first_at, last_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (study_id, uid, split, header.modality, *kind, arrival.arrived_at, arrival.arrived_at),
        )
        self.database.count("series")
        if splits:
            self._flag(series_id, "SPLIT")
            first = dict(zip(("patient", "frame of reference", "rows", "columns"), splits[0][2:], strict=True))
            differing = [name for name, value in zip(first, kind, strict=True) if first[name] != value]
            words = (
                f"the SeriesInstanceUID is in use for another {' and '.join(differing)}; kept apart as split {split}"
            )
            timeline.note(self.database, series_id, 1, "split", words, at=arrival.arrived_at)
        return _Series(series_id, split, study_id)

    def _flag(self, series_id: int, flag: str) -> None:
        (text,) = self.database.execute("SELECT flags FROM series WHERE id = ?", (series_id,)).fetchone()
        flags = sorted({*json.loads(text), flag})
        self.database.execute("UPDATE series SET flags = ? WHERE id = ?", (json.dumps(flags), series_id))

    def _again(self, series: _Series, arrival: Arrival) -> None:
        """Count an identical resend; it prolongs the wait of an open revision and opens none."""
        self.database.execute("UPDATE series SET duplicates = duplicates + 1 WHERE id = ?", (series.id,))
        self.database.execute(
            "UPDATE associations SET duplicates = duplicates + 1 WHERE id = ?", (arrival.association.id,)
        )
        self.database.count("duplicates")
        self._feed(series.id, arrival, instances=0)
        self._prolong(series, arrival)

    def _conflict(self, series: _Series, arrival: Arrival) -> None:
        self._flag(series.id, "CONFLICT")
        self._retire_older(series.id, arrival.header.uids.sop_instance)
        self.database.count("conflicts")

    def _retire_older(self, series_id: int, sop_instance: str) -> int:
        retired = self.database.execute(
            "UPDATE instances SET is_current = 0 WHERE series_id = ? AND sop_instance = ?", (series_id, sop_instance)
        )
        return retired.rowcount

    def _prolong(self, series: _Series, arrival: Arrival) -> None:
        self.database.execute(
            "UPDATE revisions SET last_arrival = max(last_arrival, ?), deadline = max(deadline, ? + quiet_s)"
            " WHERE series_id = ? AND state = 'RECEIVING'",
            (arrival.arrived_at, arrival.arrived_at, series.id),
        )

    def _revision(self, series: _Series, arrival: Arrival) -> int:
        """Return the number of the revision that takes the arrival: the open one, or the next."""
        at = arrival.arrived_at
        row = self.database.execute(
            "SELECT n, state FROM revisions WHERE series_id = ? ORDER BY n DESC LIMIT 1", (series.id,)
        ).fetchone()
        if row is not None and row[1] == RevisionState.RECEIVING:
            quiet_s = self.quiet(arrival.association, row[0])
            self.database.execute(
                "UPDATE revisions SET last_arrival = max(last_arrival, ?), quiet_s = ?,"
                " deadline = max(last_arrival, ?) + ? WHERE series_id = ? AND n = ?",
                (at, quiet_s, at, quiet_s, series.id, row[0]),
            )
            return int(row[0])
        n = 1 if row is None else int(row[0]) + 1
        quiet_s = self.quiet(arrival.association, n)
        self.database.insert(
            "INSERT INTO revisions (series_id, n, state, opened_at, last_arrival, quiet_s, deadline)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (series.id, n, RevisionState.RECEIVING, at, at, quiet_s, at + quiet_s),
        )
        if n > 1:
            was = str(row[1])
            timeline.note(
                self.database, series.id, n, "late", f"an instance came when revision {n - 1} was {was}", at=at
            )
            supersede_older(self.database, series.id, n)
        else:
            words = f"first instance, from {arrival.association.calling_ae or arrival.association.door}"
            timeline.note(self.database, series.id, n, "opened", words, at=at)
        return n

    def _instance(self, series_id: int, arrival: Arrival, path: str, revision: int) -> None:
        header = arrival.header
        self.database.execute(
            "INSERT INTO instances"
            " (series_id, sop_instance, sop_class, transfer_syntax, digest, path, bytes, arrived_at, association_id,"
            " revision, instance_number, position_mm, is_localizer)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                series_id, header.uids.sop_instance, header.uids.sop_class, header.transfer_syntax, header.digest, path,
                header.dataset_bytes, arrival.arrived_at, arrival.association.id, revision, header.instance_number,
                header.position_mm, int(header.is_localizer),
            ),
        )  # fmt: skip
        self.database.execute(
            "UPDATE series SET instances = instances + 1, bytes = bytes + ?, last_at = max(last_at, ?),"
            " ct_instances = ct_instances + ?, own_instances = own_instances + ? WHERE id = ?",
            (
                header.dataset_bytes,
                arrival.arrived_at,
                int(header.uids.sop_class in CT_CLASSES),
                int(header.is_own_result),
                series_id,
            ),
        )
        self._feed(series_id, arrival, instances=1)
        self.database.count("instances")
        self.database.count("bytes", header.dataset_bytes)

    def _feed(self, series_id: int, arrival: Arrival, *, instances: int) -> None:
        self.database.execute(
            "INSERT INTO association_series (association_id, series_id, instances, last_arrival) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (series_id, association_id) DO UPDATE SET instances = instances + excluded.instances,"
            " last_arrival = max(last_arrival, excluded.last_arrival)",
            (arrival.association.id, series_id, instances, arrival.arrived_at),
        )
        if instances:
            self.database.execute(
                "UPDATE associations SET instances = instances + 1 WHERE id = ?", (arrival.association.id,)
            )

    def quarantine(self, path: Path, association: str, reason: str) -> None:
        """Write down that a file could not be settled and lies in quarantine."""
        with self.database.immediate():
            self.database.execute(
                "INSERT INTO quarantine (path, association, reason, at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (path) DO NOTHING",
                (str(path), association, reason, time.time()),
            )
