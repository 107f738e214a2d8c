"""What the node owes to others: each object once to each destination, tried until it arrives or is in vain."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ctnode.archive import lanes, outbox, revisions, timeline
from ctnode.archive.outbox import LEASE_S, UNCERTAIN, Delivery, Parcel
from ctnode.words import DeliveryEvent, DeliveryState, NotFound
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


# ------------------------------------------------------------------------------- images of a series that grows


IMAGES = tuple(Parcel("pacs", outbox.ORIGINAL, f"1.2.3/1.2.3.1/{k}.dcm", f"d{k}") for k in range(3))


def grow(root: Root) -> int:
    """Let one more image come, and return the new revision."""
    supersede(root)
    return root.complete().id


def post_images(root: Root, revision: int, *, again: bool = False) -> None:
    with root.database.immediate():
        outbox.post(root.database, revision, IMAGES, again=again)


def test_a_new_revision_owes_only_the_images_that_did_not_arrive(root: Root) -> None:
    with root.database.immediate():
        outbox.post(root.database, 1, IMAGES[:2])
    first, second = outbox.claim(root.database, "pacs", "one")
    outbox.sent(root.database, first, 0, "")
    outbox.failed(root.database, second, 0xA700, "full", wait_s=10.0)
    newer = grow(root)
    assert [row[1] for row in states(root)] == ["SENT", "CANCELLED"]
    post_images(root, newer)
    assert root.rows("SELECT path, revision_id, state FROM deliveries ORDER BY id") == [
        (IMAGES[0].path, 1, "SENT"), (IMAGES[1].path, newer, "PENDING"), (IMAGES[2].path, newer, "PENDING"),
    ]  # fmt: skip
    assert root.breaches() == []


def test_an_image_under_way_is_taken_over_by_the_new_revision(root: Root, clock: Clock) -> None:
    with root.database.immediate():
        outbox.post(root.database, 1, IMAGES[:1])
    under_way = taken(root)
    post_images(root, grow(root))
    # It is owed by a revision that lives: a failure is no end of it.
    outbox.failed(root.database, under_way, None, "", wait_s=10.0)
    assert [row[1] for row in states(root)] == ["RETRY", "PENDING", "PENDING"]
    clock.now += 10.0
    for delivery in outbox.claim(root.database, "pacs", "one"):
        outbox.sent(root.database, delivery, 0, "")
    assert [row[1:] for row in states(root)] == [("SENT", 2), ("SENT", 1), ("SENT", 1)]


def test_images_are_sent_again_where_somebody_asks_for_it(root: Root) -> None:
    post_images(root, 1)
    for delivery in outbox.claim(root.database, "pacs", "one"):
        outbox.sent(root.database, delivery, 0, "")
    newer = grow(root)
    post_images(root, newer, again=True)
    assert root.rows("SELECT DISTINCT revision_id, state FROM deliveries") == [(newer, "PENDING")]


def test_other_bytes_under_the_path_of_an_image_are_sent(root: Root) -> None:
    post_images(root, 1)
    for delivery in outbox.claim(root.database, "pacs", "one"):
        outbox.sent(root.database, delivery, 0, "")
    newer = grow(root)
    with root.database.immediate():
        outbox.post(root.database, newer, [Parcel("pacs", outbox.ORIGINAL, IMAGES[0].path, "other")])
    assert [row[1] for row in states(root)] == ["PENDING", "SENT", "SENT"]


# ------------------------------------------------------------------------------- the end of patience


def fail(root: Root, give_up_s: float | None) -> None:
    ending = outbox.Ending(taken(root), DeliveryEvent.FAIL, 0xA700, "full", wait_s=1.0, give_up_s=give_up_s)
    outbox.settle(root.database, [ending])


def test_what_fails_for_too_long_is_given_up_and_begins_anew_by_hand(root: Root, clock: Clock) -> None:
    post(root)
    clock.now += 1e6  # it waited for its turn: that is no failing
    for _ in range(3):
        fail(root, 100.0)
        assert states(root)[0][1] == "RETRY"
        clock.now += 40.0
    fail(root, 100.0)
    assert states(root)[0][1] == "DEAD"
    comment = str(root.one("SELECT comment FROM deliveries"))
    assert comment == "given up after 0.00115741 days of failing: full"
    clock.now += 1.0
    with root.database.immediate():
        outbox.requeue(root.database, 1)
    clock.now += 1e6
    fail(root, 100.0)
    assert states(root)[0][1] == "RETRY"


def test_without_an_end_of_patience_nothing_is_given_up(root: Root, clock: Clock) -> None:
    post(root)
    for _ in range(3):
        fail(root, None)
        clock.now += 1e9
    assert states(root)[0][1] == "RETRY"


def test_a_destination_that_fails_for_too_long_gives_up_what_waited_as_long(root: Root, clock: Clock) -> None:
    post(root, *(Parcel("pacs", "report", f"{k}", "aa") for k in range(600)))
    post(root, REPORT, Parcel("other", "report", "1", "aa"))
    lanes.failed(root.database, "pacs", "down", 10.0, 1000.0)
    clock.now += 900.0
    post(root, Parcel("pacs", "report", "young", "aa"))
    clock.now += 100.0
    lanes.failed(root.database, "pacs", "down", 10.0, 1000.0)
    left = root.rows("SELECT target, path, state FROM deliveries WHERE state <> 'DEAD'")
    assert left == [("other", "1", "PENDING"), ("pacs", "young", "PENDING")]
    (attempt,) = outbox.attempts(root.database, 1)
    assert (attempt.attempt, attempt.state) == (0, "DEAD")
    assert attempt.comment == "given up after 0.0115741 days of failing: down"


@pytest.mark.parametrize("how", ["resumed", "ended by itself"])
def test_a_pause_is_no_failing(root: Root, clock: Clock, how: str) -> None:
    post(root)
    lanes.failed(root.database, "pacs", "down", 10.0, 1000.0)
    with root.database.immediate():
        lanes.pause(root.database, "pacs", clock.now + 5000.0)
    clock.now += 5001.0
    if how == "resumed":
        with root.database.immediate():
            lanes.pause(root.database, "pacs", None)
    lanes.failed(root.database, "pacs", "down", 10.0, 1000.0)
    assert states(root)[0][1] == "PENDING"
    clock.now += 1000.0
    lanes.failed(root.database, "pacs", "down", 10.0, 1000.0)
    assert states(root)[0][1] == "DEAD"


def test_what_was_erased_while_it_was_under_way_is_let_go(root: Root) -> None:
    post(root, *(Parcel("pacs", "report", f"{k}", "aa") for k in range(2)))
    gone, other = outbox.claim(root.database, "pacs", "one")
    with root.database.immediate():
        root.database.execute("DELETE FROM deliveries WHERE id = ?", (gone.id,))
    outbox.settle(root.database, [outbox.Ending(one, DeliveryEvent.SEND, 0) for one in (gone, other)])
    assert [row[1] for row in states(root)] == ["SENT"]


def test_a_pause_of_the_sender_is_one_of_all_its_lanes(root: Root, clock: Clock) -> None:
    for name in ("back", "back@ct1", "back2"):
        post(root, Parcel(name, "report", name, "aa"))
    with root.database.immediate():
        lanes.pause(root.database, "back", lanes.FOR_EVER)
    assert lanes.due(root.database) == ("back2",)


def test_a_batch_has_a_limit_and_the_oldest_come_first(root: Root) -> None:
    post(root, *(Parcel("pacs", "report", f"{k}", "aa") for k in range(5)))
    assert [delivery.path for delivery in outbox.claim(root.database, "pacs", "one", limit=2)] == ["0", "1"]
    assert [delivery.path for delivery in outbox.claim(root.database, "pacs", "one")] == ["2", "3", "4"]


def test_an_unknown_delivery_is_not_found(root: Root) -> None:
    with pytest.raises(NotFound):
        outbox.get(root.database, 77)
