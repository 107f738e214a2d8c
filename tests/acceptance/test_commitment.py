"""Storage commitment with real roles: what was asked is verified on disk and reported, whatever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import StorageCommitmentPushModel

from ctnode.wire.service_classes import PROCEDURE_STEP
from tests.harness import LOOPBACK, Node, free_port, small_series, storescu, wait_until
from tests.integration.test_services import ask, begun, change, commitment, create, step
from tests.wire_peers import CT, EXPLICIT, VERIFICATION, uid

pytestmark = pytest.mark.acceptance

COMMITMENT = str(StorageCommitmentPushModel)
FIVE = ("echo", "store", "mpps", "commitment", "availability")


def peer(name: str, port: int | None = None) -> dict[str, object]:
    table: dict[str, object] = {"name": name, "ae_title": name.upper(), "host": LOOPBACK, "services": FIVE}
    return {**table, "port": port} if port else table


class Listener:
    """The SCU's own SCP, where reports arrive."""

    def __init__(self, *, takes_role: bool = True) -> None:
        self.seen: list[tuple[int, Dataset]] = []
        self.arrived = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()
        self.takes_role = takes_role

    def on_report(self, event: Any) -> tuple[int, None]:
        self.seen.append((event.request.EventTypeID, event.event_information))
        self.arrived.release()
        self.go.wait(60)
        return 0x0000, None

    def wait(self) -> tuple[int, Dataset]:
        assert self.arrived.acquire(timeout=60)
        return self.seen[-1]

    @contextmanager
    def serving(self, port: int) -> Iterator[None]:
        entity = AE("SCU")
        if self.takes_role:
            entity.add_supported_context(COMMITMENT, scu_role=False, scp_role=True)
        else:
            entity.add_supported_context(COMMITMENT)
        server = entity.start_server(
            (LOOPBACK, port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.on_report)]
        )
        try:
            yield
        finally:
            self.go.set()
            server.shutdown()


@contextmanager
def asking(node: Node, title: str, listener: Listener | None = None) -> Iterator[Any]:
    handlers = [(evt.EVT_N_EVENT_REPORT, listener.on_report)] if listener else []
    association = AE(title.upper()).associate(
        LOOPBACK,
        node.port,
        contexts=[build_context(COMMITMENT), build_context(CT, [EXPLICIT]), build_context(VERIFICATION)],
        evt_handlers=handlers,
    )
    assert association.is_established
    yield association
    if association.is_established:
        association.release()


def state(node: Node, transaction: str) -> str:
    rows = node.query("SELECT state FROM commitments WHERE transaction_uid = ?", transaction)
    return str(rows[0][0]) if rows else ""


def sops(files: list[Path]) -> list[str]:
    return [str(dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in files]


def listed(information: Dataset, keyword: str) -> list[str]:
    return [str(item.ReferencedSOPInstanceUID) for item in information.get(keyword, ())]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commitment")


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {name: free_port() for name in ("anew", "refusing", "silent", "away")}


@pytest.fixture(scope="module")
def node(place: Path, ports: dict[str, int]) -> Iterator[Node]:
    peers = [peer("same"), *(peer(name, port) for name, port in ports.items())]
    delivery = {"first_retry_s": 0.3, "max_retry_s": 1.0, "timeout_s": 2.0}
    with Node(place / "node", peers=peers, delivery=delivery, commitment={"patience_s": 0.5}) as running:
        yield running


def test_what_was_just_sent_is_reported_on_the_same_association(node: Node, tmp_path: Path) -> None:
    _, files = small_series(tmp_path, 501)
    listener = Listener()
    with asking(node, "same", listener) as association:
        for file in files:
            assert association.send_c_store(dcmread(file)).Status == 0
        assert ask(association, commitment(uid(501), *sops(files))) == 0
        event, information = listener.wait()
        assert association.send_c_echo().Status == 0
    assert (event, listed(information, "ReferencedSOPSequence")) == (1, sops(files))
    assert information.TransactionUID == uid(501)
    node.wait_for(lambda: state(node, uid(501)) == "SENT", "the report is written down")


def test_a_step_goes_from_one_receiver_process_to_another(node: Node) -> None:
    """The second association is served by the other process: the first one still has its own."""
    contexts = [build_context(PROCEDURE_STEP)]
    first, second = (AE("SAME").associate(LOOPBACK, node.port, contexts=contexts) for _ in range(2))
    assert len(node.roles()["receiver"]) == 2
    assert create(first, begun(), uid(700)).Status == 0
    assert create(second, begun(), uid(700)).Status == 0x0111
    assert change(second, step("COMPLETED", (uid(7, 1), [uid(7, 2), uid(7, 3)])), uid(700)).Status == 0
    assert change(first, step("COMPLETED"), uid(700)).Status == 0x0110
    # Heard while the associations are open.
    node.wait_for(lambda: node.query("SELECT 1 FROM evidence WHERE series = ?", uid(7, 1)), "the list is written down")
    for association in (first, second):
        association.release()
    (row,) = node.query("SELECT kind, source, count, instances FROM evidence WHERE series = ?", uid(7, 1))
    assert row[:3] == ("mpps_completed", "same", 2)
    assert json.loads(row[3]) == [uid(7, 2), uid(7, 3)]


def test_each_instance_is_read_before_it_is_vouched_for(node: Node, tmp_path: Path, ports: dict[str, int]) -> None:
    series, files = small_series(tmp_path, 502)
    names = sops(files)
    assert storescu(node.port, files, calling="ANEW").returncode == 0
    node.wait_series(series)
    (damaged,) = node.query("SELECT path FROM instances WHERE sop_instance = ?", names[0])[0]
    (gone,) = node.query("SELECT path FROM instances WHERE sop_instance = ?", names[1])[0]
    with (node.layout.store / damaged).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    (node.layout.store / gone).rename(tmp_path / "gone")
    request = commitment(uid(502), *names, uid(999))
    request.ReferencedSOPSequence[2].ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    listener = Listener()
    with listener.serving(ports["anew"]):
        with asking(node, "anew") as association:
            assert ask(association, request) == 0
        # The association is over: the node calls, as the SCP.
        event, information = listener.wait()
    (tmp_path / "gone").rename(node.layout.store / gone)
    assert event == 2
    assert listed(information, "ReferencedSOPSequence") == names[3:]
    reasons = {str(item.ReferencedSOPInstanceUID): item.FailureReason for item in information.FailedSOPSequence}
    assert reasons == {names[0]: 0x0110, names[1]: 0x0110, names[2]: 0x0119, uid(999): 0x0112}


def test_a_peer_that_never_answers_keeps_its_association(node: Node, tmp_path: Path, ports: dict[str, int]) -> None:
    """No answer on its association, so the node calls it; stores go on meanwhile."""
    _, files = small_series(tmp_path, 503)
    mute, listener = Listener(), Listener()
    mute.go.clear()
    with listener.serving(ports["silent"]), asking(node, "silent", mute) as association:
        for file in files[:6]:
            assert association.send_c_store(dcmread(file)).Status == 0
        assert ask(association, commitment(uid(503), *sops(files[:6]))) == 0
        mute.wait()
        for file in files[6:]:
            assert association.send_c_store(dcmread(file)).Status == 0
        assert listener.wait()[0] == 1
        assert association.send_c_echo().Status == 0
        # Its late answer would cross the release.
        association.abort()
        mute.go.set()
    node.wait_for(lambda: state(node, uid(503)) == "SENT", "the report is written down")


def test_a_refused_role_is_tried_again(node: Node, tmp_path: Path, ports: dict[str, int]) -> None:
    refusing = Listener(takes_role=False)
    with refusing.serving(ports["refusing"]):
        with asking(node, "refusing") as association:
            assert ask(association, commitment(uid(504), uid(998))) == 0
        node.wait_for(
            lambda: "role" in str(node.query("SELECT comment FROM commitments WHERE transaction_uid = ?", uid(504))),
            "the role is refused",
        )
    assert not refusing.seen
    listener = Listener()
    with listener.serving(ports["refusing"]):
        assert listener.wait()[0] == 2


def test_restart_and_kill_between_request_and_report(node: Node, tmp_path: Path, ports: dict[str, int]) -> None:
    series, files = small_series(tmp_path, 505)
    with asking(node, "away") as association:
        for file in files:
            assert association.send_c_store(dcmread(file)).Status == 0
        assert ask(association, commitment(uid(505), *sops(files))) == 0
    # At once: whatever each role had seen of it by now.
    node.kill()
    node.start()
    listener = Listener()
    listener.go.clear()
    with listener.serving(ports["away"]):
        assert listener.wait()[0] == 1
        # The report has arrived and is not answered yet: its sender dies.
        (deliver,) = node.roles()["deliver"]
        os.kill(deliver, signal.SIGKILL)
        node.wait_for(lambda: node.roles().get("deliver", [deliver]) != [deliver], "another one is there")
        listener.go.set()
        event, information = listener.wait()
        node.wait_for(lambda: state(node, uid(505)) == "SENT", "the report is written down")
    assert (event, listed(information, "ReferencedSOPSequence")) == (1, sops(files))
    with asking(node, "away") as association:
        assert ask(association, commitment(uid(505), *sops(files))) == 0x0131
    wait_until(lambda: node.series(series) is not None, "the series is there")
    told = {one["transaction"]: one["state"] for one in node.json("commitments", "list")}
    assert told[uid(505)] == "SENT"
    node.wait_settled()
    node.check_promises()
