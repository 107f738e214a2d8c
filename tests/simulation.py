"""A node in simulated time: the real keeper, index and journal, on clocks that a test moves.

Every module of ``ctnode`` that has been imported reads the time from here while a world exists, so an hour costs
nothing and a clock can be set to whatever a broken one shows.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any, Final
from unittest import mock

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from ctnode.archive import asks, invariants, jobs, revisions
from ctnode.archive.database import Database
from ctnode.archive.jobs import Lease
from ctnode.archive.layout import Layout
from ctnode.archive.notices import NoticeKind, journal_fields
from ctnode.archive.spool import Journal, Spool
from ctnode.config import Completion, CompletionRule, Config, Peer, Storage
from ctnode.flow.asking import Asker
from ctnode.flow.keeper import Keeper
from ctnode.flow.studies import StudyRoom
from ctnode.flow.waiting import WaitingRoom
from ctnode.wire.query import Found
from tests.archive_root import CT, STUDY, Image, opened, put

# Ten seconds before summer time begins in Europe.
STARTED: Final = datetime(2026, 3, 29, 0, 59, 50, tzinfo=UTC).timestamp()
MONOTONIC: Final = 5000.0
EXPLICIT: Final = "1.2.840.10008.1.2.1"
# How many looks with nothing new are taken before only deadlines matter.
IDLE_LOOKS: Final = 2
ENOUGH_S: Final = 5000.0


class Clocks:
    """A clock that only runs forward, and one on the wall that somebody may set; stands in for the module ``time``."""

    def __init__(self) -> None:
        self.passed_s = 0.0
        self.set_by_s = 0.0
        self._reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        return MONOTONIC + self.passed_s

    def time(self) -> float:
        return STARTED + self.passed_s + self.set_by_s

    def time_ns(self) -> int:
        # Two readings are never the same, as on a real machine.
        self._reads += 1
        return round(self.time() * 1e6) * 1000 + self._reads % 1000

    def sleep(self, _seconds: float) -> None:
        return

    def now(self, zone: tzinfo | None = None) -> datetime:
        """Return the time as ``datetime.now`` does."""
        return datetime.fromtimestamp(self.time(), zone)


@contextmanager
def on_clocks(clocks: Clocks) -> Iterator[None]:
    """Let the modules of the node read these clocks; no sync reaches the disk, for nobody pulls a plug here."""
    with mock.patch.object(os, "fsync"), mock.patch.object(os, "fdatasync"):
        patched = [
            mock.patch.object(module, "time", clocks)
            for name, module in list(sys.modules.items())
            if name.startswith(("ctnode.archive.", "ctnode.flow.")) and getattr(module, "time", None) is time
        ]
        patched.append(mock.patch("ctnode.archive.spool.datetime", clocks))
        for patch in patched:
            patch.start()
        try:
            yield
        finally:
            for patch in reversed(patched):
                patch.stop()


class _Role:
    """What the keeper wants of its process."""

    def __init__(self) -> None:
        self.reload_wanted = False
        self.stopping = False
        self.counters: dict[str, object] = {}

    def wake(self) -> None:
        return

    def report(self, **counters: object) -> None:
        self.counters.update(counters)

    def wait(self, _seconds: float) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """One verdict as it was given; ``at_s`` is simulated time since the beginning."""

    series: str
    split: int
    revision: int
    verdict: str
    instances: int
    at_s: float
    rule: str


class World:
    """One node in simulated time: a keeper, and a second connection for everybody else."""

    def __init__(self, place: Path, clocks: Clocks, rules: Iterable[CompletionRule] = (), **completion: object) -> None:
        self.clocks = clocks
        self.layout = Layout(place, place / "results")
        self.layout.create()
        peer = Peer(name="pacs", ae_title="PACS", host="10.0.0.9", port=104, active_check="image")
        self.config = Config(
            completion=Completion(**completion),  # type: ignore[arg-type]
            completion_rules=tuple(rules),
            peers=(peer,),
            storage=Storage(root=str(place), reserve_mb=0, reserve_inodes=0),
        )
        self.spool = Spool(self.layout.incoming)
        self.role = _Role()
        self.verdicts: list[Verdict] = []
        self.leases: list[Lease] = []
        self.keeper: Keeper | None = None
        with Database(self.layout.database) as database:
            database.migrate()
        self.others = _unsynced(self.layout.database)
        self._known: set[int] = set()
        self._idle = 0
        self._next_turn_s = 0.0
        self._hangs_until_s = 0.0
        self.start()

    # ------------------------------------------------------------------------------------------------ the keeper

    def start(self) -> None:
        """Start a keeper that knows nothing but what lies on the disk."""
        assert self.keeper is None
        database = _unsynced(self.layout.database)
        role: Any = self.role
        self.keeper = Keeper(self.config, self.layout, database, role, lambda: self.config)
        self.keeper.waiting = WaitingRoom(database, monotonic=self.clocks.monotonic, wall=self.clocks.time)
        self.keeper.waiting.restore()
        self.keeper.studies = StudyRoom(database, monotonic=self.clocks.monotonic, wall=self.clocks.time)
        self.keeper.studies.restore()
        self.stir()

    def stop(self) -> None:
        """End the keeper as a kill would."""
        assert self.keeper is not None
        self.keeper.database.close()
        self.keeper = None

    def close(self) -> None:
        if self.keeper is not None:
            self.stop()
        self.others.close()

    def stir(self) -> None:
        """Ring the bell: the keeper looks now."""
        self._idle = 0
        self._next_turn_s = max(self.clocks.passed_s, self._hangs_until_s)

    def hang(self, seconds: float) -> None:
        """Let the keeper do nothing for a while, as under load or behind a slow disk."""
        self._hangs_until_s = self.clocks.passed_s + seconds

    def turn(self) -> None:
        """Let the keeper do all that is to do now."""
        if self.keeper is None:
            return
        self.keeper._turn()
        assert "errors" not in self.role.counters, "the keeper met an error"
        for revision_id, uid, split, n, verdict, count, rule in self.others.execute(
            "SELECT r.id, series.uid, series.split, r.n, r.verdict, json_array_length(r.instances), r.rule"
            " FROM revisions AS r JOIN series ON series.id = r.series_id WHERE r.verdict <> '' ORDER BY r.id"
        ).fetchall():
            if revision_id not in self._known:
                self._known.add(revision_id)
                self._idle = 0
                self.verdicts.append(Verdict(uid, split, n, verdict, count, self.clocks.passed_s, rule))
        self._idle += 1
        looks_s = (self.keeper.waiting.next_look_s(), self.keeper.studies.next_look_s())
        pause_s = min([ENOUGH_S, *(look_s + 0.001 for look_s in looks_s if look_s is not None)])
        if self._idle <= IDLE_LOOKS:
            pause_s = self.keeper._pause_s()
        self._next_turn_s = self.clocks.passed_s + min(pause_s, ENOUGH_S)

    def go(self, until_s: float) -> None:
        """Let time pass up to a point; the keeper turns whenever it would."""
        while self.keeper is not None and self._next_turn_s <= until_s:
            self.clocks.passed_s = max(self.clocks.passed_s, self._next_turn_s)
            self.turn()
        self.clocks.passed_s = until_s

    def settle(self) -> None:
        """Let time pass until nothing waits any more, or as long as anything may take."""
        until_s = self.clocks.passed_s + ENOUGH_S
        assert self.keeper is not None
        while self._idle <= IDLE_LOOKS or len(self.keeper.waiting):
            self.go(min(until_s, max(self._next_turn_s, self.clocks.passed_s)))
            if self.clocks.passed_s >= until_s:
                break

    # ---------------------------------------------------------------------------------------------- who sends

    def open(self, calling: str = "SENDER") -> Journal:
        """Open an association of a scanner, or of the archive that can be asked."""
        begun = opened(calling, "10.0.0.9:4711" if calling == "PACS" else "10.0.0.1:4711")
        if calling == "PACS":
            begun = replace(begun, peer="pacs")
        return self.spool.open_association(begun)

    def put(self, journal: Journal, *images: Image) -> None:
        """Send instances."""
        for image in images:
            put(journal, image)

    def tell(self, kind: NoticeKind, uid: str, data: Dataset, operation: str = "N-CREATE") -> None:
        """Bring a request that is no C-STORE, over an association of its own."""
        with self.spool.open_association(opened()) as journal:
            journal.notice(kind, journal_fields(uid, operation, EXPLICIT, encoded(data)))

    def step(self, uid: str, status: str, series: str, instances: Iterable[str]) -> None:
        """Tell of a performed procedure step: begun, or ended with a list of a series."""
        data = Dataset()
        data.PerformedProcedureStepStatus = status
        scheduled = Dataset()
        scheduled.StudyInstanceUID = STUDY
        data.ScheduledStepAttributesSequence = Sequence([scheduled])
        performed = Dataset()
        performed.SeriesInstanceUID = series
        performed.ReferencedImageSequence = _references(instances)
        data.PerformedSeriesSequence = Sequence([performed] if status != "IN PROGRESS" else [])
        self.tell(NoticeKind.STEP, uid, data)

    def ask_commitment(self, uid: str, instances: Iterable[str]) -> None:
        """Ask the node to vouch for instances."""
        data = Dataset()
        data.TransactionUID = uid
        data.ReferencedSOPSequence = _references(instances)
        self.tell(NoticeKind.COMMITMENT, uid, data, "N-ACTION")

    def notify(self, uid: str, series: str, instances: Iterable[str]) -> None:
        """Tell that instances are available."""
        data = Dataset()
        data.StudyInstanceUID = STUDY
        listed = Dataset()
        listed.SeriesInstanceUID = series
        listed.ReferencedSOPSequence = _references(instances)
        for item in listed.ReferencedSOPSequence:
            item.InstanceAvailability = "ONLINE"
        data.ReferencedSeriesSequence = Sequence([listed])
        self.tell(NoticeKind.AVAILABILITY, uid, data)

    def answer(self, instances: Iterable[str]) -> bool:
        """Let the archive answer the question that is due; False where the node asks nothing."""
        asks.plan(self.others, {"pacs"})
        ask = asks.claim(self.others, "pacs", "asker")
        if ask is None:
            return False
        names = frozenset(instances)
        with mock.patch("ctnode.flow.asking.find", return_value=Found(len(names), names, frozenset({CT}))):
            Asker(self.layout)._ask(self.others, self.config, self.config.peers[0], ask)
        return True

    # ------------------------------------------------------------------------------------------ who processes

    def claim(self) -> Lease | None:
        """Let a worker take a job."""
        lease = jobs.claim(self.others, "worker")
        if lease is not None:
            self.leases.append(lease)
        return lease

    def finish(self) -> bool:
        """Let the worker finish the oldest job that it holds; return whether its revision was still the newest."""
        return jobs.finish(self.others, self.leases.pop(0), [], "done", lambda _: None)

    def revision(self, lease: Lease) -> revisions.Revision:
        """Return the revision of a job."""
        return revisions.get(self.others, lease.revision_id)

    def breaches(self) -> list[str]:
        """Return what must never be."""
        return [
            *invariants.check_store(self.others, self.layout),
            *invariants.check_states(self.others),
            *invariants.check_integrity(self.others),
        ]


def _unsynced(path: Path) -> Database:
    database = Database(path)
    database.execute("PRAGMA synchronous = OFF")
    return database


def _references(instances: Iterable[str]) -> Sequence:
    items = []
    for uid in instances:
        item = Dataset()
        item.ReferencedSOPClassUID = CT
        item.ReferencedSOPInstanceUID = uid
        items.append(item)
    return Sequence(items)


def encoded(data: Dataset) -> bytes:
    """Return a data set in explicit little endian."""
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = False, True
    write_dataset(file, data)
    return file.getvalue()
