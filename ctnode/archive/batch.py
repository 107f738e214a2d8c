"""What the arrivals of one transaction add up to: written once for each row, however many instances came."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ctnode.archive import timeline
from ctnode.archive.database import Database

# Study, series, and what all instances of a series share: patient key, frame of reference, rows, columns.
PlaceKey = tuple[str, str, str, str, int, int]


@dataclass(frozen=True, slots=True)
class Place:
    """The series that an arrival belongs to."""

    id: int
    split: int
    study_id: int


@dataclass(slots=True)
class OpenRevision:
    """The revision of a series that takes arrivals: when the last one came, and how long its quiet time is."""

    n: int
    last_arrival: float
    quiet_s: float


@dataclass(slots=True)
class _SeriesSum:
    instances: int = 0
    bytes: int = 0
    last_at: float = 0.0
    ct_instances: int = 0
    own_instances: int = 0
    duplicates: int = 0


@dataclass(slots=True)
class _FedSum:
    instances: int = 0
    bytes: int = 0
    duplicates: int = 0
    last_arrival: float = 0.0


@dataclass(slots=True)
class Batch:
    """Sums of one transaction; ``write()`` has to be the last thing in it.

    Parameters
    ----------
    database
        The connection, inside a transaction.
    """

    database: Database
    # Looked up once: the instances of a batch mostly share one.
    places: dict[PlaceKey, Place] = field(default_factory=dict)
    # Open revisions by series, read once; what they become is written at the end.
    revisions: dict[int, OpenRevision] = field(default_factory=dict)
    _studies: dict[int, float] = field(default_factory=dict)
    _series: dict[int, _SeriesSum] = field(default_factory=dict)
    # By association and series.
    _fed: dict[tuple[int, int], _FedSum] = field(default_factory=dict)
    _counters: Counter[str] = field(default_factory=Counter)
    # By series, and whether they are kept.
    _returned: Counter[tuple[int, bool]] = field(default_factory=Counter)

    def touch_study(self, study_id: int, at: float) -> None:
        """Note when something came for a study."""
        self._studies[study_id] = max(at, self._studies.get(study_id, at))

    def add_instance(
        self, series_id: int, association_id: int, at: float, *, size_bytes: int, is_ct: bool, is_own: bool
    ) -> None:
        """Count an instance that has got its row."""
        total = self._series.setdefault(series_id, _SeriesSum())
        total.instances += 1
        total.bytes += size_bytes
        total.last_at = max(total.last_at, at)
        total.ct_instances += is_ct
        total.own_instances += is_own
        fed = self._fed_by(association_id, series_id, at)
        fed.instances += 1
        fed.bytes += size_bytes
        self.count("instances")
        self.count("bytes", size_bytes)

    def add_duplicate(self, series_id: int, association_id: int, at: float) -> None:
        """Count an identical resend."""
        self._series.setdefault(series_id, _SeriesSum()).duplicates += 1
        self._fed_by(association_id, series_id, at).duplicates += 1
        self.count("duplicates")

    def add_returned(self, series_id: int, *, is_kept: bool) -> None:
        """Count an image that retention had deleted and that came again."""
        self._returned[series_id, is_kept] += 1

    def add_restored(self, series_id: int, size_bytes: int) -> None:
        """Count an image that is kept again; who made it, and of what kind it is, the series knows from before."""
        total = self._series.setdefault(series_id, _SeriesSum())
        total.instances += 1
        total.bytes += size_bytes
        self.count("instances")
        self.count("bytes", size_bytes)

    def count(self, name: str, by: int = 1) -> None:
        """Add to a kept counter of the node."""
        self._counters[name] += by

    def settle_revision(self, series_id: int) -> None:
        """Write down an open revision now and forget it: somebody is about to change its row."""
        revision = self.revisions.pop(series_id, None)
        if revision is not None:
            self._write_revision(series_id, revision)

    def write(self) -> None:
        """Write all sums."""
        many = self.database.connection.executemany
        many(
            "UPDATE studies SET last_at = max(last_at, ?) WHERE id = ?",
            [(at, study_id) for study_id, at in self._studies.items()],
        )
        many(
            "UPDATE series SET instances = instances + ?, bytes = bytes + ?, last_at = max(last_at, ?),"
            " ct_instances = ct_instances + ?, own_instances = own_instances + ?, duplicates = duplicates + ?"
            " WHERE id = ?",
            [
                (s.instances, s.bytes, s.last_at, s.ct_instances, s.own_instances, s.duplicates, series_id)
                for series_id, s in self._series.items()
            ],
        )
        many(
            "INSERT INTO association_series (association_id, series_id, instances, last_arrival) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (series_id, association_id) DO UPDATE SET instances = instances + excluded.instances,"
            " last_arrival = max(last_arrival, excluded.last_arrival)",
            [(*key, fed.instances, fed.last_arrival) for key, fed in self._fed.items()],
        )
        many(
            "UPDATE associations SET instances = instances + ?, bytes = bytes + ?, duplicates = duplicates + ?"
            " WHERE id = ?",
            [(fed.instances, fed.bytes, fed.duplicates, who) for (who, _), fed in self._fed.items()],
        )
        for series_id, revision in self.revisions.items():
            self._write_revision(series_id, revision)
        for name, value in self._counters.items():
            self.database.count(name, value)
        for (series_id, is_kept), count in self._returned.items():
            self._tell_returned(series_id, count, is_kept=is_kept)

    def _tell_returned(self, series_id: int, count: int, *, is_kept: bool) -> None:
        (n,) = self.database.execute("SELECT max(n) FROM revisions WHERE series_id = ?", (series_id,)).fetchone()
        what = "are kept again" if is_kept else "were dropped (retention.resent)"
        words = f"{count} images that retention had deleted came again and {what}"
        timeline.note(self.database, series_id, n or 1, "returned", words)

    def _fed_by(self, association_id: int, series_id: int, at: float) -> _FedSum:
        fed = self._fed.setdefault((association_id, series_id), _FedSum())
        fed.last_arrival = max(fed.last_arrival, at)
        return fed

    def _write_revision(self, series_id: int, revision: OpenRevision) -> None:
        last_arrival, quiet_s = revision.last_arrival, revision.quiet_s
        self.database.execute(
            "UPDATE revisions SET last_arrival = ?, renewed_at = ?, quiet_s = ?, deadline = ?"
            " WHERE series_id = ? AND n = ?",
            (last_arrival, last_arrival, quiet_s, last_arrival + quiet_s, series_id, revision.n),
        )
