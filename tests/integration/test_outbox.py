"""What the node owes to others: each object once to each destination, tried until it arrives or is in vain."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ctnode.archive import lanes, outbox, revisions, timeline
from ctnode.archive.outbox import LEASE_S, UNCERTAIN, Delivery, Parcel
from ctnode.words import DeliveryState, NotFound
from tests.archive_root import Image, Root, stack

pytestmark = pytest.mark.integration

REPORT = Parcel("pacs", "report", "1.2.3/1.2.3.1/r1/report.dcm", "aa")


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(outbox, "time", clock)
    monkeypatch.setattr(lanes, "time", clock)
    monkeypatch.setattr(revisions, "time", clock)
    return clock


@pytest.fixture
def root(tmp_path: Path, clock: Clock):
    node = Root(tmp_path / "node")
    node.queued(*stack(2))
    yield node
    node.close()


def post(root: Root, *parcels: Parcel, again: bool = False) -> None:
    with root.database.immediate():
        outbox.post(root.database, 1, parcels or (REPORT,), again=again)


def taken(root: Root, target: str = "pacs") -> Delivery:
    (delivery,) = outbox.claim(root.database, target, "one")
    return delivery


def states(root: Root) -> list[tuple[object, ...]]:
    return root.rows("SELECT target, state, attempt FROM deliveries ORDER BY id")


def test_a_parcel_is_owed_claimed_and_sent(root: Root) -> None:
    post(root)
    assert lanes.due(root.database) == ("pacs",)
    delivery = taken(root)
    assert (delivery.state, delivery.attempt, delivery.path) == (DeliveryState.SENDING, 1, REPORT.path)
    assert outbox.claim(root.database, "pacs", "two") == ()
    outbox.sent(root.database, delivery, 0x0000, "")
    assert states(root) == [("pacs", "SENT", 1)]
    assert lanes.due(root.database) == ()
    assert timeline.read(root.database, 1)[-1].text == f"{REPORT.path}: sent to pacs (status 0000H)"


def test_each_destination_has_its_own(root: Root, clock: Clock) -> None:
    post(root, REPORT, Parcel("other", "report", REPORT.path, "aa"))
    outbox.failed(root.database, taken(root), 0xA700, "full", wait_s=100.0)
    outbox.sent(root.database, taken(root, "other"), 0, "")
    assert states(root) == [("pacs", "RETRY", 1), ("other", "SENT", 1)]
    assert lanes.due(root.database) == ()
    clock.now += 100.0
    assert lanes.due(root.database) == ("pacs",)
    assert taken(root).attempt == 2


def test_what_is_in_vain_is_given_up_and_can_be_sent_by_hand(root: Root) -> None:
    post(root)
    outbox.failed(root.database, taken(root), 0xA900, "mismatch", wait_s=None)
    assert states(root) == [("pacs", "DEAD", 1)]
    assert root.database.counters()["deliveries.DEAD"] == 1
    assert lanes.due(root.database) == ()
    post(root, again=True)
    assert states(root) == [("pacs", "PENDING", 0)]


def test_the_same_bytes_are_not_sent_twice_unless_asked_for(root: Root) -> None:
    post(root)
    outbox.sent(root.database, taken(root), 0, "")
    post(root)
    assert states(root) == [("pacs", "SENT", 1)]
    post(root, again=True)
    assert states(root) == [("pacs", "PENDING", 0)]


def test_other_bytes_of_a_later_run_are_sent(root: Root) -> None:
    post(root)
    outbox.sent(root.database, taken(root), 0, "")
    post(root, Parcel("pacs", "report", REPORT.path, "bb"))
    assert states(root) == [("pacs", "PENDING", 0)]
    outbox.sent(root.database, taken(root), 0, "")
    post(root, Parcel("pacs", "report", REPORT.path, "bb"))
    assert states(root) == [("pacs", "SENT", 1)]


def test_other_bytes_of_what_still_waits_are_remembered(root: Root) -> None:
    post(root)
    post(root, Parcel("pacs", "report", REPORT.path, "bb"))
    outbox.sent(root.database, taken(root), 0, "")
    post(root, Parcel("pacs", "report", REPORT.path, "bb"))
    assert states(root) == [("pacs", "SENT", 1)]


@pytest.mark.parametrize("state", ["DEAD", "RETRY", "CANCELLED"])
def test_a_later_run_tries_again_what_did_not_arrive(root: Root, state: str) -> None:
    post(root)
    if state == "CANCELLED":
        with root.database.immediate():
            revisions.cancel_deliveries(root.database, 1)
    else:
        outbox.failed(root.database, taken(root), None, "", wait_s=None if state == "DEAD" else 100.0)
    assert states(root)[0][1] == state
    post(root)
    assert states(root) == [("pacs", "PENDING", 0)]


def test_a_lost_lease_is_tried_again(root: Root, clock: Clock) -> None:
    post(root)
    lost = taken(root)
    clock.now += LEASE_S + 1
    assert lanes.due(root.database) == ("pacs",)
    again = taken(root)
    assert again.attempt == 2
    outbox.sent(root.database, lost, 0, "too late")
    assert states(root) == [("pacs", "SENDING", 2)]
    outbox.failed(root.database, lost, 0, "too late", wait_s=None)
    assert states(root) == [("pacs", "SENDING", 2)]
    outbox.sent(root.database, again, 0, "")
    assert states(root) == [("pacs", "SENT", 2)]


def test_what_was_claimed_and_cannot_have_gone_out_goes_back_uncounted(root: Root) -> None:
    post(root, *(Parcel("pacs", "report", f"{k}", "aa") for k in range(UNCERTAIN + 30)))
    claimed = outbox.claim(root.database, "pacs", "gone", limit=UNCERTAIN + 20)
    for delivery in claimed[:5]:
        outbox.sent(root.database, delivery, 0, "")
    assert outbox.take_back(root.database) == UNCERTAIN
    found = [(row[1], row[2]) for row in states(root)]
    assert found == [("SENT", 1)] * 5 + [("RETRY", 1)] * UNCERTAIN + [("PENDING", 0)] * 25


# ------------------------------------------------------------------------------- a newer revision comes


def supersede(root: Root) -> None:
    root.hold(Image("1.2.3.1.99", position=50.0))
    assert root.one("SELECT state FROM revisions WHERE n = 1") == "SUPERSEDED"


@pytest.mark.parametrize("state", ["PENDING", "RETRY"])
def test_what_waits_is_cancelled(root: Root, clock: Clock, state: str) -> None:
    post(root)
    if state == "RETRY":
        outbox.failed(root.database, taken(root), None, "", wait_s=10.0)
    supersede(root)
    assert states(root)[0][1] == "CANCELLED"
    clock.now += 1e6
    assert lanes.due(root.database) == ()


@pytest.mark.parametrize(("end", "state"), [("sent", "SENT"), ("failed", "CANCELLED"), ("lost", "CANCELLED")])
def test_what_is_under_way_ends_as_it_may_but_is_not_tried_again(
    root: Root, clock: Clock, end: str, state: str
) -> None:
    post(root)
    delivery = taken(root)
    supersede(root)
    assert states(root)[0][1] == "SENDING"
    if end == "sent":
        outbox.sent(root.database, delivery, 0, "")
    elif end == "failed":
        outbox.failed(root.database, delivery, None, "", wait_s=1.0)
    else:
        clock.now += LEASE_S + 1
        assert outbox.claim(root.database, "pacs", "two") == ()
    assert states(root)[0][1] == state


def test_a_batch_has_a_limit_and_the_oldest_come_first(root: Root) -> None:
    post(root, *(Parcel("pacs", "report", f"{k}", "aa") for k in range(5)))
    assert [delivery.path for delivery in outbox.claim(root.database, "pacs", "one", limit=2)] == ["0", "1"]
    assert [delivery.path for delivery in outbox.claim(root.database, "pacs", "one")] == ["2", "3", "4"]


def test_an_unknown_delivery_is_not_found(root: Root) -> None:
    with pytest.raises(NotFound):
        outbox.get(root.database, 77)
