"""The deliverer against destinations that fail in every way, with a clock that is turned by hand."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from pydicom.dataset import Dataset

from ctnode.archive import lanes, outbox
from ctnode.flow.carrier import Carrier
from ctnode.flow.dispatch import Dispatcher
from ctnode.words import DeliveryState
from tests.archive_root import stack
from tests.delivery_root import Archive, Clock, office, target
from tests.harness import free_port
from tests.wire_peers import uid

pytestmark = pytest.mark.integration

DAY_S = 86400.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.install(monkeypatch)
    return clock


def names(count: int, start: int = 0) -> list[str]:
    return [uid(7, number + 1) for number in range(start, start + count)]


def test_a_batch_goes_over_one_association_in_its_order(tmp_path: Path, clock: Clock) -> None:
    with Archive() as archive, office(tmp_path, target("pacs", archive.port)) as node:
        for number, revision in enumerate(node.series(3)):
            node.owe(revision, names(5, 5 * number), "pacs")
        node.work()
        assert archive.taken == names(15)
        assert archive.associations == 1
        assert set(node.states()) == {"SENT"}
        (attempt,) = outbox.attempts(node.root.database, 1)
        assert (attempt.attempt, attempt.state, attempt.status) == (1, DeliveryState.SENT, 0)


def test_a_destination_that_is_down_for_seven_days_gets_everything_once_and_in_order(
    tmp_path: Path, clock: Clock
) -> None:
    # .ci/long has the full count of a busy node; bench/delivery.py has the rates.
    count = int(os.environ.get("CTNODE_TEST_WEEK", "100"))
    port = free_port()
    with Archive() as other, office(tmp_path, target("pacs", port), target("other", other.port)) as node:
        began = clock.now
        revisions = node.series(10)
        made = names(count)
        tries = 0
        for day in range(7):
            # Results come every day; the other destination has them at once.
            for revision in revisions[day::7]:
                node.owe(revision, made[count // 10 * (revision - 1) : count // 10 * revision], "pacs", "other")
            while clock.now < began + (day + 1) * DAY_S:
                node.work()
                tries += 1
                assert set(node.states("other")) == {"SENT"}
                lane = node.lane("pacs")
                assert lane.failing_since == began
                assert lane.due_at - clock.now <= 3600.0 * 1.2 + 1
                clock.now = max(lane.due_at, clock.now + 1)
        assert tries > 7 * 20
        # Nobody but the first was tried: the others neither wait for times of their own nor lost their turn.
        waiting = node.deliveries("pacs")
        assert [one.state for one in waiting[1:]] == [DeliveryState.PENDING] * (count - 1)
        assert waiting[0].attempt == tries
        assert waiting[0].comment == "no connection: connection refused"
        shown = min(count, lanes.COUNT_LIMIT)
        late = lanes.backlog(node.root.database, "pacs", 3600.0)
        assert (late.waiting, late.late, late.oldest_at) == (shown, shown, began)
        with Archive(port) as archive:
            node.work()
            assert set(node.states()) == {"SENT"}
            owed = [Path(one.path).stem for one in node.deliveries("pacs")]
            assert archive.taken == owed
            assert sorted(archive.taken) == sorted(made)
        assert other.taken == owed
        # Within each series the order is that of the first, and nothing went out twice anywhere.
        for revision in revisions:
            own = made[count // 10 * (revision - 1) : count // 10 * revision]
            assert [name for name in archive.taken if name in set(own)] == own
        assert node.root.database.counters().get("deliveries.repeated", 0) == 0
        assert node.lane("pacs").failures == 0


def test_only_what_failed_is_sent_again(tmp_path: Path, clock: Clock) -> None:
    refused = set(names(100)[10::40])
    with (
        Archive(answer=lambda name: 0xC001 if name in refused else 0) as archive,
        office(tmp_path, target("pacs", archive.port)) as node,
    ):
        node.owe(node.series()[0], names(100), "pacs")
        node.work()
        assert node.states().count("SENT") == 97
        dead = [one for one in node.deliveries() if one.state is DeliveryState.DEAD]
        assert {Path(one.path).stem for one in dead} == refused
        assert {(one.status, one.attempt) for one in dead} == {(0xC001, 1)}
        archive.answer = lambda name: 0
        archive.taken.clear()
        with node.root.database.immediate():
            for one in dead:
                outbox.requeue(node.root.database, one.id)
        node.work()
        assert set(archive.taken) == refused
        assert set(node.states()) == {"SENT"}


def test_a_full_destination_is_left_alone_and_loses_nothing(tmp_path: Path, clock: Clock) -> None:
    with Archive(answer=lambda name: 0xA700) as archive, office(tmp_path, target("pacs", archive.port)) as node:
        node.owe(node.series()[0], names(20), "pacs")
        began = clock.now
        while clock.now < began + 3600.0:
            node.work()
            assert "DEAD" not in node.states()
            clock.now = max(node.lane("pacs").due_at, clock.now + 1)
        assert node.lane("pacs").comment == "it takes nothing now"
        assert max(one.attempt for one in node.deliveries()) < 12
        archive.answer = lambda name: 0
        while "RETRY" in node.states() or "PENDING" in node.states():
            node.work()
            clock.now += 600.0
        assert sorted(archive.taken) == sorted(names(20))
        assert set(node.states()) == {"SENT"}


def test_a_destination_that_never_returns_is_given_up_after_the_days_of_the_configuration(
    tmp_path: Path, clock: Clock
) -> None:
    settings = {"give_up_days": 2.0}
    with office(tmp_path, target("pacs", free_port()), delivery=settings) as node:
        node.owe(node.series()[0], names(5), "pacs")
        began = clock.now
        while set(node.states()) != {"DEAD"}:
            node.work()
            clock.now = max(node.lane("pacs").due_at, clock.now + 1)
            assert clock.now < began + 3 * DAY_S
        assert 2 * DAY_S <= clock.now - began < 2 * DAY_S + 2 * 3600.0 * 1.2
        assert {one.comment for one in node.deliveries()} == {
            "given up after 2 days of failing: no connection: connection refused"
        }
        # A new result is tried all the same, for as long.
        node.owe(node.series()[0], names(1, 5), "pacs")
        clock.now += 3600.0 * 1.2
        node.work()
        assert node.states()[-1] == "RETRY"


def test_waits_double_from_seconds_to_hours_and_are_spread(tmp_path: Path, clock: Clock) -> None:
    with office(tmp_path, target("pacs", free_port())) as node:
        node.owe(node.series()[0], names(1), "pacs")
        for number in range(14):
            node.work()
            wait_s = node.lane("pacs").due_at - clock.now
            base_s = min(3600.0, 10.0 * 2.0**number)
            assert base_s <= wait_s <= 1.2 * base_s
            assert wait_s != base_s
            clock.now = max(node.lane("pacs").due_at, node.deliveries()[0].due_at)


def test_what_a_destination_says_stands_in_the_index_and_not_in_the_log(tmp_path: Path, clock: Clock) -> None:
    canary = "DOE^JANE is locked"

    def answer(name: str) -> Dataset:
        said = Dataset()
        said.Status = 0xC123 if name == names(1)[0] else 0xA700
        said.ErrorComment = canary
        return said

    with (
        structlog.testing.capture_logs() as logged,
        Archive(answer=answer) as archive,
        office(tmp_path, target("pacs", archive.port)) as node,
    ):
        node.owe(node.series()[0], names(5), "pacs")
        node.work()
        assert {one.comment for one in node.deliveries() if one.status is not None} == {canary}
        assert canary in node.lane("pacs").comment
        assert {line["event"] for line in logged} >= {"not delivered", "destination fails"}
        assert "DOE" not in repr(logged)


def test_an_error_of_our_own_strands_nothing_and_stops_no_other(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise ValueError("a mistake of ours")

    with (
        Archive() as archive,
        office(tmp_path, target("pacs", archive.port), target("other", archive.port)) as node,
        structlog.testing.capture_logs() as logged,
    ):
        node.owe(node.series()[0], names(2), "pacs", "other")
        with monkeypatch.context() as broken:
            original = Carrier.send
            broken.setattr(
                Carrier,
                "send",
                lambda self, files: break_down() if self.target.name == "pacs" else original(self, files),
            )
            node.deliverer.start_due()
            node.join()
        assert (node.states("pacs"), node.states("other")) == (["PENDING"] * 2, ["SENT"] * 2)
        assert [line["error"] for line in logged if line["event"] == "delivery thread ended"] == ["ValueError"]
        # Not at once: a mistake that stays would fill the log.
        node.deliverer.start_due()
        assert "pacs" not in node.deliverer._threads or not node.deliverer._threads["pacs"]
        node.deliverer._rest_until.clear()
        node.work()
        assert set(node.states()) == {"SENT"}


def test_a_late_image_brings_itself_and_not_the_series_again(tmp_path: Path, clock: Clock) -> None:
    routes = [{"name": "all", "run": "none", "send": ["originals"], "to": ["pacs"]}]
    with Archive() as archive, office(tmp_path, target("pacs", archive.port), routes=routes) as node:
        dispatcher = Dispatcher(node.root.database, node.root.layout)
        images = stack(4)
        for part in (images[:3], images[3:]):
            node.root.hold(*part)
            node.root.complete()
            dispatcher.start_complete(node.config)
            node.work()
        assert archive.taken == [image.sop for image in images]
        assert set(node.states()) == {"SENT"}


def test_one_object_that_kills_the_association_holds_up_nobody(tmp_path: Path, clock: Clock) -> None:
    poison = names(10)[3]
    with (
        Archive(answer=lambda name: "abort" if name == poison else 0) as archive,
        office(tmp_path, target("pacs", archive.port)) as node,
    ):
        node.owe(node.series()[0], names(10), "pacs")
        node.work()
        assert archive.taken == [name for name in names(10) if name != poison]
        assert node.states().count("SENT") == 9
        assert {one.attempt for one in node.deliveries()} == {1}
        (left,) = [one for one in node.deliveries() if one.state is DeliveryState.RETRY]
        assert (Path(left.path).stem, left.attempt, left.transfers) == (poison, 1, 1)


def test_a_lost_answer_makes_a_second_transfer_that_is_told(tmp_path: Path, clock: Clock) -> None:
    with (
        Archive(answer=lambda name: "lose" if name == names(3)[1] else 0) as archive,
        office(tmp_path, target("pacs", archive.port)) as node,
    ):
        node.owe(node.series()[0], names(3), "pacs")
        node.work()
        assert node.states() == ["SENT", "RETRY", "SENT"]
        archive.answer = lambda name: 0
        clock.now += 60.0
        node.work()
        assert node.states() == ["SENT"] * 3
        assert [one.transfers for one in node.deliveries()] == [1, 2, 1]
        assert node.deliveries()[1].comment.startswith("sent again")
        assert node.root.database.counters()["deliveries.repeated"] == 1
        assert archive.taken.count(names(3)[1]) == 2


def test_a_destination_that_hangs_takes_no_turn_of_another(tmp_path: Path, clock: Clock) -> None:
    # A port that is bound and listened to, and never served.
    silent = socket.create_server(("127.0.0.1", 0))
    with Archive() as archive:
        targets = [target("silent", silent.getsockname()[1]), target("pacs", archive.port)]
        with office(tmp_path, *targets, delivery={"timeout_s": 600.0}) as node:
            node.owe(node.series()[0], names(5), "silent", "pacs")
            node.deliverer.start_due()
            node.join("pacs")
            assert node.states("pacs") == ["SENT"] * 5
            assert node.states("silent") == ["SENDING"] * 5
            silent.close()
            node.work()
            assert node.states("silent") == ["RETRY"] + ["PENDING"] * 4
            assert node.lane("silent").comment == "the connection ended"


def test_several_associations_keep_the_order_of_each_series(tmp_path: Path, clock: Clock) -> None:
    meeting = threading.Barrier(3)
    met = threading.Event()

    def meet(_event: object, _name: str) -> None:
        # The first object of each association waits for those of the others: they are there at the same time.
        if not met.is_set():
            meeting.wait(30)
            met.set()

    with Archive() as archive, office(tmp_path, target("pacs", archive.port, associations=3)) as node:
        archive.on_store = meet  # type: ignore[assignment]
        for number, revision in enumerate(node.series(3)):
            node.owe(revision, names(70, 70 * number), "pacs")
        node.work()
        assert archive.most_at_once == 3
        assert sorted(archive.taken) == sorted(names(210))
        for number in range(3):
            own = set(names(70, 70 * number))
            assert [name for name in archive.taken if name in own] == names(70, 70 * number)


def test_a_pause_holds_what_waits_and_what_runs(tmp_path: Path, clock: Clock) -> None:
    with Archive() as archive, office(tmp_path, target("pacs", archive.port)) as node:
        with node.root.database.immediate():
            lanes.pause(node.root.database, "pacs", clock.now + 3600.0)
        node.owe(node.series()[0], names(3), "pacs")
        node.work()
        assert node.states() == ["PENDING"] * 3
        clock.now += 3601.0
        node.work()
        assert node.states() == ["SENT"] * 3

        def pause(_event: object, name: str) -> None:
            if name == names(8)[4]:
                node.deliverer._lines["pacs"].is_paused = True

        archive.on_store = pause  # type: ignore[assignment]
        node.owe(node.series()[0], names(5, 3), "pacs")
        node.deliverer.start_due()
        node.join("pacs")
        assert node.states() == ["SENT"] * 5 + ["PENDING"] * 3
        assert [one.attempt for one in node.deliveries()] == [1] * 5 + [0] * 3


def test_a_new_configuration_counts_from_the_next_object_on(tmp_path: Path, clock: Clock) -> None:
    with Archive() as before, Archive() as after, office(tmp_path, target("pacs", before.port)) as node:

        def reload(_event: object, name: str) -> None:
            if name == names(8)[2]:
                node.reconfigure([target("pacs", after.port)])
                node.deliverer.config = node.config

        before.on_store = reload  # type: ignore[assignment]
        node.owe(node.series()[0], names(8), "pacs")
        node.work()
        assert (before.taken, after.taken) == (names(8)[:3], names(8)[3:])
        assert {one.attempt for one in node.deliveries()} == {1}


def test_what_a_process_that_died_had_under_way_is_sent_again_and_told(tmp_path: Path, clock: Clock) -> None:
    with Archive() as archive, office(tmp_path, target("pacs", archive.port)) as node:
        node.owe(node.series()[0], names(2), "pacs")
        assert len(outbox.claim(node.root.database, "pacs", "gone")) == 2
        assert outbox.take_back(node.root.database) == 2
        assert node.states() == ["RETRY"] * 2
        node.work()
        assert node.states() == ["SENT"] * 2
        assert {one.comment for one in node.deliveries()} == {"sent again: an earlier transfer arrived or may have"}


def test_an_unknown_target_and_a_file_that_is_gone_are_given_up(tmp_path: Path, clock: Clock) -> None:
    with Archive() as archive, office(tmp_path, target("pacs", archive.port)) as node:
        node.owe(node.series()[0], names(2), "pacs", "nobody")
        (node.root.layout.results / node.deliveries("pacs")[0].path).unlink()
        node.work()
        assert node.states("pacs") == ["DEAD", "SENT"]
        assert {one.comment for one in node.deliveries("nobody")} == {"no target of this name in the configuration"}


def test_results_go_back_to_whoever_sent_the_series(tmp_path: Path, clock: Clock) -> None:
    back = {"name": "back", "kind": "sender"}
    with Archive() as archive:
        peers = [{"name": "ct1", "ae_title": "CT1", "host": "127.0.0.1", "port": archive.port}]
        with office(tmp_path, back, peers=peers) as node:
            node.root.hold(*_images("1.2.3.70"), calling="CT1")
            node.root.hold(*_images("1.2.3.71"), calling="STRANGER")
            for number in (1, 2):
                revision = node.root.complete(number)
                node.owe(revision.id, [uid(8, number)], "back")
            node.work()
            assert archive.taken == [uid(8, 1)]
            assert [(one.lane, str(one.state)) for one in node.deliveries()] == [("back@ct1", "SENT"), ("back", "DEAD")]
            assert "[[peers]]" in node.deliveries()[1].comment


def _images(series: str) -> Iterator[object]:
    return stack(2, series=series)  # type: ignore[return-value]
