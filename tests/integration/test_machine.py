"""Settler, index, waiting room and jobs under any order of events: nothing is lost, every series gets its verdict."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ctnode.archive import jobs, revisions
from ctnode.archive import settle as settle_module
from ctnode.archive.settle import Settler
from ctnode.config import Completion
from ctnode.flow.waiting import WaitingRoom
from ctnode.words import JobState, LostLease, WrongState
from tests.archive_root import Image, Root, opened, put, stack

pytestmark = pytest.mark.integration

QUIET_S = 5.0
SETTINGS = Completion(quiet_s=QUIET_S, max_wait_s=60.0)
SERIES = ("1.2.3.1", "1.2.3.2")
SLICES = st.integers(1, 4)


class Crash(Exception):
    """The keeper was killed here."""


class Clock:
    """One clock for all; a process that restarts goes on with it."""

    def __init__(self) -> None:
        self.started = time.time()
        self.passed = 0.0

    def monotonic(self) -> float:
        return self.passed

    def time(self) -> float:
        return self.started + self.passed


class Machine(RuleBasedStateMachine):
    """A node without its processes."""

    @initialize(start=st.sampled_from(["empty", "queued", "claimed"]))
    def begin(self, start: str) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="ctnode-machine-"))
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        for module in (jobs, revisions):
            self.patch.setattr(module, "time", self.clock)
        self.root = Root(self.place, lambda _association, n: QUIET_S * 2 ** (n - 1))
        self.acknowledged: dict[str, bytes] = {}
        self.leases: list[jobs.Lease] = []
        self.deaths = 0
        self.fresh = itertools.count(1000)
        self._wake()
        if start != "empty":
            self._send(*stack(3))
            self.time_passes(2 * QUIET_S)
            self.time_passes(QUIET_S)
        if start == "claimed":
            self.a_worker_claims()

    def _wake(self) -> None:
        self.root.settler = Settler(self.root.index)
        self.room = WaitingRoom(self.root.database, monotonic=self.clock.monotonic, wall=self.clock.time)
        self.room.restore()

    def teardown(self) -> None:
        if hasattr(self, "root"):
            self._come_to_rest()
            self.root.close()
            self.patch.undo()
            shutil.rmtree(self.place)

    # ------------------------------------------------------------------------------------------- arrivals

    def _send(self, *images: Image, how: str = "released") -> None:
        journal = self.root.spool.open_association(opened())
        for image in images:
            kept = put(journal, image)
            self.acknowledged[kept.digest] = image.encode()
        journal.close(how)

    @rule(series=st.sampled_from(SERIES), k=SLICES, how=st.sampled_from(["released", "aborted"]))
    def a_slice_arrives_or_comes_again(self, series: str, k: int, how: str) -> None:
        self._send(Image(f"{series}.{k}", series=series, position=2.5 * k), how=how)

    @rule(series=st.sampled_from(SERIES), k=SLICES)
    def other_bytes_arrive(self, series: str, k: int) -> None:
        pixels = next(self.fresh).to_bytes(4, "little")
        self._send(Image(f"{series}.{k}", series=series, position=2.5 * k, pixels=pixels))

    @rule(series=st.sampled_from(SERIES), k=SLICES)
    def the_series_uid_is_used_for_somebody_else(self, series: str, k: int) -> None:
        self._send(Image(f"{series}.9.{k}", series=series, patient="P2", position=2.5 * k))

    @precondition(lambda self: getattr(self, "leases", []))
    @rule(data=st.data())
    def a_late_slice_becomes_complete_while_its_series_is_processed(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        ((series_id, series, patient),) = self.root.rows(
            "SELECT series.id, uid, split FROM series JOIN revisions ON series_id = series.id WHERE revisions.id = ?",
            lease.revision_id,
        )
        self._send(Image(f"{series}.{next(self.fresh)}", series=str(series), patient=f"P{patient}", position=50.0))
        self._turn()
        self.clock.passed += 61.0
        self._turn()
        if data.draw(st.booleans()):
            with suppress(WrongState):
                revisions.requeue(self.root.database, int(str(series_id)))

    @rule()
    def the_same_twice_over_one_association(self) -> None:
        image = Image(f"{SERIES[0]}.1", series=SERIES[0], position=2.5)
        self._send(image, image)

    # ------------------------------------------------------------------------------------------ the keeper

    def _turn(self) -> None:
        began = self.clock.monotonic()
        scan = self.root.settler.scan()
        touched = {placement.series_id for placement in scan.settled}
        self.room.touch(touched)
        for ripe in self.room.ripe(began, scan.open_associations, SETTINGS) if scan.is_whole else []:
            with self.root.database.immediate():
                revisions.complete(self.root.database, ripe.revision, ripe.decision.verdict, ripe.decision.evidence)
            self.room.leave(ripe.revision.id)
        for revision in revisions.startable(self.root.database):
            with self.root.database.immediate():
                revisions.queue(self.root.database, revision)

    @rule()
    def the_keeper_looks(self) -> None:
        self._turn()

    @rule(seconds=st.sampled_from([0.5, 3.0, QUIET_S, 2 * QUIET_S, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.passed += seconds
        self._turn()

    @rule(point=st.sampled_from(["keeper.between-commit-and-rename", "keeper.after-rename"]))
    def the_keeper_is_killed(self, point: str) -> None:
        def die(name: str) -> None:
            if name == point:
                raise Crash

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(settle_module, "crash_point", die)
            try:
                self._turn()
            except Crash:
                self.root.restart()
                self._wake()

    @precondition(lambda self: getattr(self, "deaths", 0) < 2)
    @rule()
    def the_keeper_is_killed_before_its_commit(self) -> None:
        """Twice at most: what ends its keeper alone twice is given up, and that is another test."""
        self.deaths += 1

        def die(*_: object) -> None:
            raise Crash

        take = self.root.index.take
        self.root.index.take = die  # type: ignore[assignment,method-assign]
        try:
            self._turn()
        except Crash:
            self.root.restart()
            self._wake()
        else:
            self.root.index.take = take  # type: ignore[method-assign]

    @rule()
    def the_node_restarts(self) -> None:
        self.root.restart()
        self._wake()

    # ------------------------------------------------------------------------------------------ the workers

    @rule()
    def a_worker_claims(self) -> None:
        self.clock.passed += jobs.FIRST_RETRY_S
        lease = jobs.claim(self.root.database, "worker")
        if lease is not None:
            self.leases.append(lease)

    @precondition(lambda self: getattr(self, "leases", []))
    @rule(data=st.data(), how=st.sampled_from(["finishes", "fails", "stops", "finishes late"]))
    def a_worker_ends(self, data: st.DataObject, how: str) -> None:
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        if how == "finishes late":
            self.clock.passed += jobs.LEASE_S + 1
            jobs.claim(self.root.database, "janitor")
        try:
            if how == "fails":
                jobs.fail(self.root.database, lease, "fault")
            elif how == "stops":
                jobs.give_back(self.root.database, lease, "stop")
            else:
                jobs.finish(self.root.database, lease, [], "done", lambda _newest: None)
                assert how != "finishes late", "a lost lease publishes nothing"
        except LostLease:
            pass

    @precondition(lambda self: hasattr(self, "root") and self.root.rows("SELECT 1 FROM jobs LIMIT 1"))
    @rule(data=st.data(), what=st.sampled_from(["requeue", "cancel"]))
    def the_operator_interferes(self, data: st.DataObject, what: str) -> None:
        shown = "SELECT DISTINCT series_id FROM jobs JOIN revisions ON revisions.id = revision_id ORDER BY series_id"
        series_id = data.draw(st.sampled_from([int(str(row[0])) for row in self.root.rows(shown)]))
        found = jobs.of_series(self.root.database, series_id)
        try:
            if what == "requeue":
                revisions.requeue(self.root.database, series_id)
            else:
                jobs.cancel(self.root.database, found[-1].id)
        except WrongState:
            pass

    # ------------------------------------------------------------------------------------------- what holds

    @invariant()
    def files_and_rows_agree(self) -> None:
        if hasattr(self, "root"):
            assert self.root.breaches() == []

    @invariant()
    def nothing_acknowledged_is_gone(self) -> None:
        if not hasattr(self, "root"):
            return
        held = set()
        for folder in (self.root.layout.incoming, self.root.layout.store, self.root.layout.quarantine):
            for path in folder.rglob("*.dcm"):
                content = path.read_bytes()
                held.add(hashlib.sha256(content[144 + int.from_bytes(content[140:144], "little") :]).hexdigest())
        assert held == set(self.acknowledged)

    @invariant()
    def one_revision_at_a_time_and_the_newest_is_open_or_decided(self) -> None:
        if not hasattr(self, "root"):
            return
        for series_id, newest in self.root.rows("SELECT series_id, max(n) FROM revisions GROUP BY series_id"):
            states = dict(self.root.rows("SELECT n, state FROM revisions WHERE series_id = ?", series_id))
            assert sum(state in {"QUEUED", "PROCESSING"} for state in states.values()) <= 1
            assert "RECEIVING" not in [state for n, state in states.items() if n != newest]
            assert {state for n, state in states.items() if n != newest} <= {"SUPERSEDED", "PROCESSING", "KEPT"}
            assert states[newest] != "SUPERSEDED"

    def _come_to_rest(self) -> None:
        """Let everything end as it would by itself, and look at what became of it."""
        for _ in range(60):
            self.clock.passed += 61.0
            self._turn()
            lease = jobs.claim(self.root.database, "last")
            if lease is not None:
                jobs.finish(self.root.database, lease, [], "done", lambda _newest: None)
        self.files_and_rows_agree()
        self.nothing_acknowledged_is_gone()
        assert self.root.files("incoming") == []
        assert self.root.files("quarantine") == []
        open_states = "('RECEIVING', 'COMPLETE', 'QUEUED', 'PROCESSING')"
        assert self.root.rows(f"SELECT series_id, n, state FROM revisions WHERE state IN {open_states}") == []
        assert self.root.rows("SELECT n FROM revisions WHERE verdict = ''") == []
        for (_, count), (_, frozen) in zip(
            self.root.rows("SELECT series_id, count(*) FROM instances GROUP BY series_id ORDER BY series_id"),
            self.root.rows(
                "SELECT series_id, json_array_length(instances) FROM revisions AS r WHERE n ="
                " (SELECT max(n) FROM revisions WHERE series_id = r.series_id) ORDER BY series_id"
            ),
            strict=True,
        ):
            assert count == frozen, "the newest revision names every instance"
        assert jobs.pending(self.root.database) == 0
        assert not any(job.state is JobState.RUNNING for job in jobs.listing(self.root.database))


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=80, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
