"""Scenarios of ``docs/scenarios.md`` with real processes and real associations, all on one node at the same time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pynetdicom import AE, build_context, evt

from ctnode.flow.completion import OPERATOR, PROOF
from ctnode.wire.service_classes import AVAILABILITY, COMMITMENT, PROCEDURE_STEP
from tests.archive_root import Image
from tests.harness import LOOPBACK, Node, small_series, storescu, wait_until
from tests.integration.test_services import ask, change, commitment, create, reference, step
from tests.wire_peers import ABORT, EXPLICIT, RawPeer, pdu, uid

pytestmark = pytest.mark.acceptance

QUIET_S = 2.0
# Over the quiet time, as senders that compute between slices.
PAUSE_S = 2.8
PEER = {
    "name": "ct1", "ae_title": "CT1", "host": LOOPBACK,
    "services": ("echo", "store", "mpps", "commitment", "availability"),
}  # fmt: skip
# Nothing is computed: when it starts is what matters here.
ROUTES = [{"name": "kept", "run": "none"}]
QUIET, LONGEST = "quiet time", "longest wait"

Row = tuple[int, str, str, int]


class Sender:
    """One scanner with a series of its own on the shared node."""

    def __init__(self, node: Node, number: int) -> None:
        self.node = node
        self.study, self.series = uid(740, number), uid(740, number, 1)
        self.step = uid(741, number)

    def image(self, k: int) -> Image:
        return Image(f"{self.series}.{k}", study=self.study, series=self.series, number=str(k), position=2.5 * k)

    def names(self, numbers: Iterable[int]) -> list[str]:
        return [self.image(k).sop for k in numbers]

    @contextmanager
    def association(self) -> Iterator[RawPeer]:
        with RawPeer(self.node.port) as peer:
            peer.associate(calling="CT1")
            yield peer
            peer.release()

    def store(self, peer: RawPeer, numbers: Iterable[int], **changes: object) -> None:
        for k in numbers:
            image = replace(self.image(k), **changes)  # type: ignore[arg-type]
            assert peer.store(image.sop, image.encode()).status == 0

    @contextmanager
    def telling(self, sop_class: str) -> Iterator[Any]:
        """Open an association for one request, as RIS and consoles do; who is asked to vouch reports over it."""
        association = AE("CT1").associate(
            LOOPBACK, self.node.port, contexts=[build_context(sop_class, [EXPLICIT])],
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, lambda _: (0x0000, None))],
        )  # fmt: skip
        assert association.is_established
        yield association
        association.release()

    def begin_step(self) -> None:
        data = step("IN PROGRESS")
        scheduled = Dataset()
        scheduled.StudyInstanceUID = self.study
        data.ScheduledStepAttributesSequence = Sequence([scheduled])
        with self.telling(PROCEDURE_STEP) as association:
            assert create(association, data, self.step).Status == 0

    def end_step(self, numbers: Iterable[int], status: str = "COMPLETED") -> None:
        with self.telling(PROCEDURE_STEP) as association:
            assert change(association, step(status, (self.series, self.names(numbers))), self.step).Status == 0

    def revisions(self) -> list[Row]:
        """Return number, verdict, rule and instances of each revision of the first split."""
        return self.node.query(
            "SELECT n, verdict, rule, json_array_length(r.instances) FROM revisions AS r JOIN series"
            " ON series.id = r.series_id WHERE uid = ? AND split = 1 ORDER BY n",
            self.series,
        )

    def wait(self, revision: int = 1) -> list[Row]:
        """Wait until a revision has its verdict, and return all."""

        def judged() -> list[Row]:
            time.sleep(0.2)
            rows = self.revisions()
            return rows if len(rows) >= revision and rows[revision - 1][1] else []

        return wait_until(judged, f"a verdict of {self.series}")


# ------------------------------------------------------------------------------------------------- scenarios


def slices_over_one_association_by_dcmtk(sender: Sender, place: Path) -> list[Row]:
    sender.series, files = small_series(place, 742, slices=6, side=32)
    assert storescu(sender.node.port, files).returncode == 0
    sender.wait()
    return [(1, "LIKELY", QUIET, 6)]


def one_association_a_slice(sender: Sender, _place: Path) -> list[Row]:
    for k in range(1, 7):
        with sender.association() as peer:
            sender.store(peer, [k])
    sender.wait()
    return [(1, "LIKELY", QUIET, 6)]


def pauses_over_the_quiet_time_in_an_open_association(sender: Sender, _place: Path) -> list[Row]:
    with sender.association() as peer:
        sender.store(peer, [1, 2])
        time.sleep(PAUSE_S)
        sender.store(peer, [3, 4])
        time.sleep(PAUSE_S)
        sender.store(peer, [5, 6])
    sender.wait()
    return [(1, "LIKELY", QUIET, 6)]


def another_series_in_between_over_one_association(sender: Sender, _place: Path) -> list[Row]:
    other = f"{sender.series}.7"
    with sender.association() as peer:
        sender.store(peer, [1, 2])
        for k in range(1, 9):
            sender.store(peer, [k], sop=f"{other}.{k}", series=other)
            time.sleep(PAUSE_S / 7)
        sender.store(peer, [3, 4])
    sender.wait()
    return [(1, "LIKELY", QUIET, 4)]


def mpps_around_the_slices(sender: Sender, _place: Path) -> list[Row]:
    sender.begin_step()
    with sender.association() as peer:
        sender.store(peer, range(1, 5))
        sender.end_step(range(1, 5))
        # Proven while its association is still open.
        sender.wait()
    return [(1, "COMPLETE", PROOF, 4)]


def mpps_before_the_slices(sender: Sender, _place: Path) -> list[Row]:
    sender.begin_step()
    sender.end_step(range(1, 5))
    with sender.association() as peer:
        sender.store(peer, range(1, 4))
    time.sleep(PAUSE_S)
    with sender.association() as peer:
        sender.store(peer, [4])
        sender.wait()
    return [(1, "COMPLETE", PROOF, 4)]


def mpps_names_more_than_comes(sender: Sender, _place: Path) -> list[Row]:
    sender.begin_step()
    with sender.association() as peer:
        sender.store(peer, range(1, 5))
    sender.end_step(range(1, 7), "DISCONTINUED")
    sender.wait()
    return [(1, "SUSPECT", LONGEST, 4)]


def a_sender_that_aborts(sender: Sender, _place: Path) -> list[Row]:
    with RawPeer(sender.node.port) as peer:
        peer.associate(calling="CT1")
        sender.store(peer, range(1, 5))
        peer.send(pdu(ABORT, bytes(4)))
    sender.wait()
    return [(1, "SUSPECT", QUIET, 4)]


def a_connection_that_breaks_in_the_middle_of_a_slice(sender: Sender, _place: Path) -> list[Row]:
    with RawPeer(sender.node.port) as peer:
        peer.associate(calling="CT1")
        sender.store(peer, range(1, 5))
        broken = peer.store_bytes(sender.image(5).sop.encode(), sender.image(5).encode())
        peer.send(broken[: len(broken) // 2])
    sender.wait()
    return [(1, "SUSPECT", QUIET, 4)]


def commitment_is_asked_for_all(sender: Sender, _place: Path) -> list[Row]:
    with sender.association() as peer:
        sender.store(peer, range(1, 5))
        with sender.telling(COMMITMENT) as association:
            assert ask(association, commitment(f"{sender.step}.8", *sender.names(range(1, 5)))) == 0
            sender.wait()
    return [(1, "COMPLETE", PROOF, 4)]


def availability_is_told_before_the_last_slice(sender: Sender, _place: Path) -> list[Row]:
    data, listed = Dataset(), Dataset()
    data.StudyInstanceUID, listed.SeriesInstanceUID = sender.study, sender.series
    items = [reference(name) for name in sender.names(range(1, 5))]
    for item in items:
        item.InstanceAvailability, item.RetrieveAETitle = "ONLINE", "PACS"
    listed.ReferencedSOPSequence = Sequence(items)
    data.ReferencedSeriesSequence = Sequence([listed])
    with sender.association() as peer:
        sender.store(peer, range(1, 4))
        with sender.telling(AVAILABILITY) as association:
            assert create(association, data, f"{sender.step}.7", AVAILABILITY).Status == 0
        sender.store(peer, [4])
        sender.wait()
    return [(1, "COMPLETE", PROOF, 4)]


def a_late_slice_and_all_of_it_again(sender: Sender, _place: Path) -> list[Row]:
    with sender.association() as peer:
        sender.store(peer, range(1, 4))
    sender.wait()
    with sender.association() as peer:
        sender.store(peer, range(1, 4))
        sender.store(peer, [4])
    sender.wait(2)
    return [(1, "LIKELY", QUIET, 3), (2, "LIKELY", QUIET, 4)]


def another_patient_under_the_same_uid(sender: Sender, _place: Path) -> list[Row]:
    with sender.association() as peer:
        sender.store(peer, range(1, 4))
        sender.store(peer, range(11, 13), patient="P2")
    sender.wait()
    other = sender.node.wait_for(lambda: sender.node.series(sender.series, split=2), "the second split")
    assert (other.instances, other.flags) == (2, ("SPLIT",))
    return [(1, "LIKELY", QUIET, 3)]


def the_operator_says_that_it_is_complete(sender: Sender, _place: Path) -> list[Row]:
    sender.begin_step()
    with sender.association() as peer:
        sender.store(peer, range(1, 5))
        sender.node.wait_for(sender.revisions, "the series is known")
        sender.node.command("series", "complete", sender.series)
        sender.wait()
    return [(1, "LIKELY", OPERATOR, 4)]


SCENARIOS: tuple[Callable[[Sender, Path], list[Row]], ...] = (
    slices_over_one_association_by_dcmtk,
    one_association_a_slice,
    pauses_over_the_quiet_time_in_an_open_association,
    another_series_in_between_over_one_association,
    mpps_around_the_slices,
    mpps_before_the_slices,
    mpps_names_more_than_comes,
    a_sender_that_aborts,
    a_connection_that_breaks_in_the_middle_of_a_slice,
    commitment_is_asked_for_all,
    availability_is_told_before_the_last_slice,
    a_late_slice_and_all_of_it_again,
    another_patient_under_the_same_uid,
    the_operator_says_that_it_is_complete,
)


def test_real_senders_get_the_verdicts_of_the_table(tmp_path: Path) -> None:
    """Each sends in a thread of its own; in the middle of it all the keeper is killed."""
    completion = {"quiet_s": QUIET_S, "max_wait_s": 8.0}
    told: dict[str, object] = {}
    with Node(tmp_path / "node", completion=completion, peers=[PEER], routes=ROUTES) as node:
        senders = {scenario: Sender(node, number) for number, scenario in enumerate(SCENARIOS)}

        def run(scenario: Callable[[Sender, Path], list[Row]]) -> tuple[list[Row], list[Row]]:
            expected = scenario(senders[scenario], tmp_path)
            return senders[scenario].revisions(), expected

        (keeper,) = node.roles()["keep"]
        killer = threading.Timer(QUIET_S / 2, os.kill, (keeper, signal.SIGKILL))
        with ThreadPoolExecutor(len(SCENARIOS)) as pool:
            killer.start()
            running = {scenario.__name__: pool.submit(run, scenario) for scenario in SCENARIOS}
        killer.join()
        for name, future in running.items():
            try:
                found, expected = future.result()
            except Exception as error:
                told[name] = error
            else:
                told |= {} if found == expected else {name: (found, expected)}
        assert told == {}
        assert node.roles()["keep"] != [keeper], "the keeper was not killed"
        node.wait_settled()
        node.check_promises()
