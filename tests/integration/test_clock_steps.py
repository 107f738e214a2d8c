"""What goes outwards waits for as long as it would have, whatever somebody does to the clock on the wall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctnode.archive import asks, commitments, jobs, lanes, outbox, revisions, steps
from ctnode.archive.associations import Association
from ctnode.archive.notices import ListedSeries, Notice, NoticeKind, Reference
from ctnode.archive.outbox import Parcel
from ctnode.config import Config
from ctnode.flow.delivery import Deliverer
from ctnode.words import DeliveryState
from tests.archive_root import CT, Root, five_seconds, stack
from tests.simulation import STARTED, Clocks, on_clocks

pytestmark = pytest.mark.integration

HOUR_S = 3600.0
LONGEST_S = 4000.0
WAIT_S = 30.0
TO_1970 = 60.0 - STARTED
FROM_1970 = STARTED - 60.0
SETTINGS = pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S, TO_1970, FROM_1970])


class Outward:
    """A root to which something of each kind is owed, in simulated time."""

    def __init__(self, place: Path, clocks: Clocks) -> None:
        self.clocks = clocks
        self.root = Root(place, five_seconds)
        self.watch = steps.StepWatch()
        self.database = self.root.database
        self.root.push(stack(3))
        self.root.settler.scan()
        self.revision = revisions.newest(self.database, 1)
        with self.database.immediate():
            outbox.post(self.database, self.revision.id, [Parcel("pacs", "report", "r1/report.dcm", "d")])

    def keep(self) -> None:
        """Do as the deliverer and the keeper do in each turn."""
        step_s = self.watch.step_s()
        if step_s:
            steps.shift_outward(self.database, step_s, LONGEST_S)
            steps.shift_waiting(self.database, step_s)
            self.watch.made_good(step_s)

    def set_clock(self, step_s: float) -> None:
        self.clocks.set_by_s += step_s
        self.keep()

    def wait(self, seconds: float) -> None:
        self.clocks.passed_s += seconds
        self.keep()


@pytest.fixture
def outward(tmp_path: Path):
    with on_clocks(clocks := Clocks()):
        # A clock that shows 1970 cannot be set back to it.
        outward = Outward(tmp_path / "node", clocks)
        yield outward
        outward.root.close()


def start_in_1970(outward: Outward, step_s: float) -> None:
    """Begin where a step leads somewhere that there is."""
    if step_s == FROM_1970:
        outward.set_clock(TO_1970)


@SETTINGS
def test_a_destination_that_failed_is_tried_again_when_it_would_have_been(outward: Outward, step_s: float) -> None:
    start_in_1970(outward, step_s)
    lanes.failed(outward.database, "pacs", "refused", WAIT_S, give_up_s=86400.0)
    outward.set_clock(step_s)
    outward.wait(WAIT_S - 1.0)
    assert lanes.due(outward.database) == ()
    outward.wait(1.1)
    assert lanes.due(outward.database) == ("pacs",)
    lanes.failed(outward.database, "pacs", "refused", WAIT_S, give_up_s=86400.0)
    assert outbox.get(outward.database, 1).state is DeliveryState.PENDING, "a clock that is set is no day of failing"


@SETTINGS
def test_an_object_that_failed_is_tried_again_when_it_would_have_been(outward: Outward, step_s: float) -> None:
    start_in_1970(outward, step_s)
    (delivery,) = outbox.claim(outward.database, "pacs", "one")
    outbox.failed(outward.database, delivery, 0xA700, "full", wait_s=WAIT_S)
    outward.set_clock(step_s)
    outward.wait(WAIT_S - 1.0)
    assert outbox.claim(outward.database, "pacs", "one") == ()
    outward.wait(1.1)
    (delivery,) = outbox.claim(outward.database, "pacs", "one")
    ending = outbox.Ending(delivery, outbox.DeliveryEvent.FAIL, 0xA700, "full", wait_s=WAIT_S, give_up_s=86400.0)
    outbox.settle(outward.database, [ending])
    assert outbox.get(outward.database, delivery.id).state is DeliveryState.RETRY


@SETTINGS
def test_what_is_under_way_is_not_taken_from_its_sender(outward: Outward, step_s: float) -> None:
    start_in_1970(outward, step_s)
    (delivery,) = outbox.claim(outward.database, "pacs", "one")
    outward.set_clock(step_s)
    assert outbox.claim(outward.database, "pacs", "two") == ()
    outbox.sent(outward.database, delivery, 0, "")
    assert outbox.get(outward.database, delivery.id).state is DeliveryState.SENT


@SETTINGS
def test_a_pause_lasts_as_long_as_it_was_meant_to(outward: Outward, step_s: float) -> None:
    start_in_1970(outward, step_s)
    with outward.database.immediate():
        lanes.pause(outward.database, "pacs", outward.clocks.time() + WAIT_S)
    outward.set_clock(step_s)
    outward.wait(WAIT_S - 1.0)
    assert lanes.due(outward.database) == ()
    outward.wait(1.1)
    assert lanes.due(outward.database) == ("pacs",)


@SETTINGS
def test_a_report_of_commitment_is_neither_late_nor_hasty(outward: Outward, step_s: float) -> None:
    start_in_1970(outward, step_s)
    database, caller = outward.database, Association(1, "a", "network", "CT1", "CTNODE", "10.0.0.1:4711")
    listed = (ListedSeries("", (Reference(CT, "1.2.3.1.1"),)),)
    notice = Notice(NoticeKind.COMMITMENT, "1.9", "", "", listed, outward.clocks.time())
    with database.immediate():
        commitments.take(database, caller, notice)
    commitment = commitments.claim(database, "CT1")
    assert commitment is not None
    commitments.again(database, commitment, "not here yet", wait_s=WAIT_S)
    outward.set_clock(step_s)
    outward.wait(WAIT_S - 1.0)
    assert commitments.callers_due(database) == ()
    outward.wait(1.1)
    assert commitments.callers_due(database) == ("CT1",)
    claimed = commitments.claim(database, "CT1")
    assert claimed is not None
    assert outward.clocks.time() - claimed.asked_at == pytest.approx(WAIT_S + 0.1, abs=1.0), "how long it was patient"


@SETTINGS
def test_a_peer_is_asked_in_time_and_once(outward: Outward, step_s: float) -> None:
    start_in_1970(outward, step_s)
    database = outward.database
    with database.immediate():
        database.execute("UPDATE associations SET peer = 'pacs'")
    outward.set_clock(step_s)
    outward.wait(3.0)
    asks.plan(database, {"pacs"})
    assert asks.peers_due(database) == ("pacs",)
    ask = asks.claim(database, "pacs", "one")
    assert ask is not None
    outward.set_clock(-step_s)
    assert asks.peers_due(database) == (), "it is being asked"
    asks.failed(database, ask, "no answer")
    outward.set_clock(step_s)
    outward.wait(jobs.retry_after_s(1) - 1.0)
    assert asks.peers_due(database) == ()
    outward.wait(1.1)
    assert asks.peers_due(database) == ("pacs",)


@SETTINGS
def test_a_job_is_not_taken_from_a_worker_that_lives_and_soon_from_one_that_died(
    outward: Outward, step_s: float
) -> None:
    start_in_1970(outward, step_s)
    outward.root.complete()
    with outward.database.immediate():
        revisions.queue(outward.database, revisions.newest(outward.database, 1))
    assert jobs.claim(outward.database, "one") is not None
    outward.set_clock(step_s)
    outward.wait(jobs.LEASE_S - 1.0)
    assert jobs.claim(outward.database, "two") is None
    outward.wait(1.1)
    assert jobs.claim(outward.database, "two") is None
    outward.wait(jobs.retry_after_s(1) + 0.1)
    assert jobs.claim(outward.database, "two") is not None


def test_what_was_put_off_by_a_clock_that_went_wrong_while_nobody_ran_waits_no_longer_than_anything(
    outward: Outward,
) -> None:
    lanes.failed(outward.database, "pacs", "refused", WAIT_S)
    outward.clocks.set_by_s -= 24 * HOUR_S
    steps.shift_outward(outward.database, 0.0, LONGEST_S)
    assert lanes.get(outward.database, "pacs").due_at == outward.clocks.time() + LONGEST_S


def test_a_clock_that_drifts_is_not_a_clock_that_was_set(outward: Outward) -> None:
    outward.clocks.set_by_s += 1.0
    assert outward.watch.step_s() == 0.0
    outward.clocks.set_by_s += 1.5
    assert outward.watch.step_s() == pytest.approx(2.5)


def test_the_deliverer_watches_the_clock(outward: Outward) -> None:
    nobody: Any = None
    layout = outward.root.layout
    deliverer = Deliverer(Config(), layout, outward.database, nobody, nobody, nobody)
    lanes.failed(outward.database, "pacs", "refused", WAIT_S)
    before = lanes.get(outward.database, "pacs").due_at
    outward.clocks.set_by_s -= HOUR_S
    deliverer.keep_waits()
    assert lanes.get(outward.database, "pacs").due_at == pytest.approx(before - HOUR_S)
    deliverer.keep_waits()
    assert lanes.get(outward.database, "pacs").due_at == pytest.approx(before - HOUR_S)
