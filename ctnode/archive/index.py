"""The keeper's half of the index: instances get rows, series get revisions, one transaction a batch.

The row with the final path is committed first; then the file is renamed (``settle``). So no file outside ``incoming/``
is ever without a row, and a crash in between leaves a row whose file still waits in the journal, where the next scan
finds it and finishes the move.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctnode.archive import removal, timeline, tombstones
from ctnode.archive.associations import Association
from ctnode.archive.batch import Batch, OpenRevision, Place
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
    """Where an arrival belongs; ``is_new`` is false for an instance that the index had already, or that had gone.

    One that ``is_dropped`` belongs nowhere: a rule deleted it, and the configuration wants it no more.
    """

    source: Path
    final: Path
    series_id: int
    is_new: bool
    is_dropped: bool = False


# Returns the quiet seconds of an arrival's series in its n-th revision, from AE titles, peer, modality and n.
QuietPolicy = Callable[[Arrival, int], float]


_Kind = tuple[str, str, int, int]


class Index:
    """The writer of studies, series, revisions and instances; one in the node, inside the keeper."""

    def __init__(self, database: Database, layout: Layout, quiet: QuietPolicy) -> None:
        self.database = database
        self.layout = layout
        self.quiet = quiet
        # Whether what retention deleted is kept when it is sent again.
        self.keeps_resent = True

    def note_attempts(self, names: Sequence[str]) -> dict[str, int]:
        """Count an attempt at each file that did not end well; return the counts with this one."""
        with self.database.immediate():
            self.database.connection.executemany(
                "INSERT INTO attempts (name, attempts) VALUES (?, 1)"
                " ON CONFLICT (name) DO UPDATE SET attempts = attempts + 1",
                [(name,) for name in names],
            )
        known = self.attempts()
        return {name: known[name] for name in names}

    def attempts(self) -> dict[str, int]:
        """Return how often each file was tried in vain; few files ever are."""
        return dict(self.database.execute("SELECT name, attempts FROM attempts").fetchall())

    def forget_attempts(self, names: Sequence[str]) -> None:
        """Drop the counts of files that are no longer there."""
        with self.database.immediate():
            self._forget(names)

    def _forget(self, names: Sequence[str]) -> None:
        self.database.connection.executemany("DELETE FROM attempts WHERE name = ?", [(name,) for name in names])

    def take(self, arrivals: Sequence[Arrival], tried: Sequence[str] = ()) -> tuple[Placement, ...]:
        """Give each arrival its row in one transaction and return where the files belong.

        Parameters
        ----------
        arrivals
            In the order of their arrival.
        tried
            Names whose attempts are to be forgotten with it.
        """
        with self.database.immediate():
            batch = Batch(self.database)
            placements = tuple(self._take_one(arrival, batch) for arrival in arrivals)
            batch.write()
            self._forget(tried)
        return placements

    def _take_one(self, arrival: Arrival, batch: Batch) -> Placement:
        header = arrival.header
        series = self._place(arrival, batch)
        known = self.database.execute(
            "SELECT id, path, digest, transfer_syntax, association_id, arrived_at FROM instances"
            " WHERE series_id = ? AND sop_instance = ?",
            (series.id, header.uids.sop_instance),
        ).fetchall()
        for instance_id, path, digest, transfer_syntax, *arrived in known:
            if digest == header.digest and transfer_syntax == header.transfer_syntax:
                # It stays after all, with the file that came now if its own is gone.
                self.database.execute("DELETE FROM going WHERE instance_id = ?", (instance_id,))
                if arrived != [arrival.association.id, arrival.arrived_at]:
                    # Else it is the file of this very row, whose move a crash cut short.
                    self.database.execute(
                        "UPDATE instances SET again_in = ? WHERE id = ?", (arrival.association.id, instance_id)
                    )
                    self._again(series, arrival, batch)
                return Placement(arrival.path, self.layout.store / path, series.id, is_new=False)
        final = self._free_path(series, header, is_conflict=bool(known))
        stone = tombstones.find(
            self.database, series.id, header.uids.sop_instance, header.digest, header.transfer_syntax
        )
        if stone is not None and not known:
            return self._come_back(series, arrival, stone, final, batch)
        if stone is not None:
            tombstones.drop(self.database, series.id, stone)
        if known:
            self._conflict(series, arrival, batch)
        revision = self._revision(series, arrival, batch)
        self._instance(series.id, arrival, str(final), revision, batch)
        return Placement(arrival.path, self.layout.store / final, series.id, is_new=True)

    def _place(self, arrival: Arrival, batch: Batch) -> Place:
        uids = arrival.header.uids
        key = (uids.study, uids.series, *_kind(arrival.header))
        place = batch.places.get(key)
        if place is None:
            study_id = self._study(uids.study, arrival.arrived_at)
            place = batch.places[key] = self._series(study_id, arrival)
            removal.stop(self.database, place.id, "more of it came")
        batch.touch_study(place.study_id, arrival.arrived_at)
        return place

    def _free_path(self, series: Place, header: Header, *, is_conflict: bool) -> Path:
        """Return a path that no row has."""
        for suffix in _suffixes(header, is_conflict=is_conflict):
            final = self.layout.store_path(
                header.uids.study, header.uids.series, series.split, header.uids.sop_instance, suffix=suffix
            )
            taken = self.database.execute("SELECT 1 FROM instances WHERE path = ? LIMIT 1", (str(final),)).fetchone()
            if taken is None:
                break
        return final

    def adopt(self, series_id: int, arrival: Arrival, path: str, batch: Batch) -> None:
        """Give a row to a file that lies in the store already, inside the current transaction."""
        if self._retire_older(series_id, arrival.header.uids.sop_instance):
            self._flag(series_id, "CONFLICT")
        self._instance(series_id, arrival, path, 1, batch)

    def _study(self, uid: str, at: float) -> int:
        row = self.database.execute("SELECT id FROM studies WHERE uid = ?", (uid,)).fetchone()
        if row is None:
            self.database.count("studies")
            return self.database.insert(
                "INSERT INTO studies (uid, state, first_at, last_at) VALUES (?, ?, ?, ?)",
                (uid, StudyState.OPEN, at, at),
            )
        return int(row[0])

    def _reopen(self, study_id: int) -> None:
        """Open a study that something new came for; an identical resend is nothing new."""
        (state,) = self.database.execute("SELECT state FROM studies WHERE id = ?", (study_id,)).fetchone()
        opened = next_state(STUDY_TRANSITIONS, StudyState(state), StudyEvent.ARRIVE)
        self.database.execute("UPDATE studies SET state = ? WHERE id = ?", (opened, study_id))

    def _series(self, study_id: int, arrival: Arrival) -> Place:
        header = arrival.header
        uid = header.uids.series
        kind = _kind(header)
        splits = self.database.execute(
            "SELECT id, split, patient_key, frame_of_reference, rows, columns FROM series"
            " WHERE study_id = ? AND uid = ? ORDER BY split",
            (study_id, uid),
        ).fetchall()
        for series_id, split, *known in splits:
            if tuple(known) == kind:
                return Place(series_id, split, study_id)
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
        return Place(series_id, split, study_id)

    def _flag(self, series_id: int, flag: str) -> None:
        (text,) = self.database.execute("SELECT flags FROM series WHERE id = ?", (series_id,)).fetchone()
        flags = sorted({*json.loads(text), flag})
        self.database.execute("UPDATE series SET flags = ? WHERE id = ?", (json.dumps(flags), series_id))

    def _again(self, series: Place, arrival: Arrival, batch: Batch) -> None:
        """Count an identical resend; it prolongs the wait of an open revision and opens none."""
        at = arrival.arrived_at
        batch.add_duplicate(series.id, arrival.association.id, at)
        batch.settle_revision(series.id)
        self.database.execute(
            "UPDATE revisions SET last_arrival = max(last_arrival, ?), deadline = max(deadline, ? + quiet_s)"
            " WHERE series_id = ? AND state = 'RECEIVING'",
            (at, at, series.id),
        )

    def _come_back(
        self, series: Place, arrival: Arrival, stone: tombstones.Tombstone, final: Path, batch: Batch
    ) -> Placement:
        """Take a deleted image that was sent again: as what it was, in its old revision, or not at all."""
        self._again(series, arrival, batch)
        batch.add_returned(series.id, is_kept=self.keeps_resent)
        if self.keeps_resent:
            tombstones.drop(self.database, series.id, stone)
            self._insert(series.id, arrival, str(final), stone.revision, stone.instance_id)
            batch.add_restored(series.id, arrival.header.dataset_bytes)
        return Placement(
            arrival.path, self.layout.store / final, series.id, is_new=False, is_dropped=not self.keeps_resent
        )

    def _conflict(self, series: Place, arrival: Arrival, batch: Batch) -> None:
        self._flag(series.id, "CONFLICT")
        self._retire_older(series.id, arrival.header.uids.sop_instance)
        batch.count("conflicts")

    def _retire_older(self, series_id: int, sop_instance: str) -> int:
        retired = self.database.execute(
            "UPDATE instances SET is_current = 0 WHERE series_id = ? AND sop_instance = ?", (series_id, sop_instance)
        )
        return retired.rowcount

    def _revision(self, series: Place, arrival: Arrival, batch: Batch) -> int:
        """Return the number of the revision that takes the arrival: the open one, or the next."""
        at = arrival.arrived_at
        current = batch.revisions.get(series.id)
        row = None
        if current is None:
            self._reopen(series.study_id)
            row = self.database.execute(
                "SELECT n, state, last_arrival, quiet_s FROM revisions WHERE series_id = ? ORDER BY n DESC LIMIT 1",
                (series.id,),
            ).fetchone()
            if row is not None and row[1] == RevisionState.RECEIVING:
                current = batch.revisions[series.id] = OpenRevision(int(row[0]), float(row[2]), float(row[3]))
        if current is not None:
            current.last_arrival = max(current.last_arrival, at)
            current.quiet_s = self.quiet(arrival, current.n)
            return current.n
        n = 1 if row is None else int(row[0]) + 1
        quiet_s = self.quiet(arrival, n)
        self.database.insert(
            "INSERT INTO revisions (series_id, n, state, opened_at, last_arrival, quiet_s, deadline)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (series.id, n, RevisionState.RECEIVING, at, at, quiet_s, at + quiet_s),
        )
        if row is not None:
            words = f"an instance came when revision {n - 1} was {row[1]}"
            timeline.note(self.database, series.id, n, "late", words, at=at)
            supersede_older(self.database, series.id, n)
        else:
            words = f"first instance, from {arrival.association.calling_ae or arrival.association.door}"
            timeline.note(self.database, series.id, n, "opened", words, at=at)
        return n

    def _instance(self, series_id: int, arrival: Arrival, path: str, revision: int, batch: Batch) -> None:
        header = arrival.header
        self._insert(series_id, arrival, path, revision)
        batch.add_instance(
            series_id,
            arrival.association.id,
            arrival.arrived_at,
            size_bytes=header.dataset_bytes,
            is_ct=header.uids.sop_class in CT_CLASSES,
            is_own=header.is_own_result,
        )

    def _insert(
        self, series_id: int, arrival: Arrival, path: str, revision: int, identifier: int | None = None
    ) -> None:
        """Insert the row of an instance; no number is given twice, since frozen lists name deleted ones too."""
        header = arrival.header
        self.database.execute(
            "INSERT INTO instances"
            " (id, series_id, sop_instance, sop_class, transfer_syntax, digest, path, bytes, arrived_at,"
            " association_id, revision, instance_number, position_mm, is_localizer, acquisition,"
            " images_in_acquisition, concatenation, in_concatenation, concatenation_total, frames)"
            " VALUES (coalesce(?, 1 + max(coalesce((SELECT max(id) FROM instances), 0),"
            " coalesce((SELECT max(instance_id) FROM tombstones), 0))),"
            " ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                identifier, series_id, header.uids.sop_instance, header.uids.sop_class, header.transfer_syntax,
                header.digest, path, header.dataset_bytes, arrival.arrived_at, arrival.association.id, revision,
                header.instance_number, header.position_mm, int(header.is_localizer), header.acquisition,
                header.images_in_acquisition, header.concatenation or None, header.in_concatenation,
                header.concatenation_total, header.frames,
            ),
        )  # fmt: skip

    def quarantine(self, path: Path, association: str, reason: str) -> None:
        """Write down that a file could not be settled and lies in quarantine."""
        with self.database.immediate():
            self.database.execute(
                "INSERT INTO quarantine (path, association, reason, at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (path) DO NOTHING",
                (str(path), association, reason, time.time()),
            )


def _kind(header: Header) -> _Kind:
    """Return what all instances of a series have in common; another one makes another split."""
    return (header.patient_key, header.frame_of_reference, header.rows, header.columns)


def _suffixes(header: Header, *, is_conflict: bool) -> Iterator[str]:
    """Return what follows the UID in a file name, tried in turn: other bytes under it, or the same in other encodings.

    Twelve hex digits can be twelve digits, and the result another instance's UID.
    """
    if not is_conflict:
        yield ""
    yield f".{header.digest[:12]}"
    whole = hashlib.sha256(identity(header.digest, header.transfer_syntax).encode()).hexdigest()
    yield f".{whole[:12]}"
    yield f".{whole}"
