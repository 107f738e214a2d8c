"""The receiver against pynetdicom and against peers on raw sockets."""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context
from structlog.testing import capture_logs

from ctnode.config import Config, Node, Peer
from ctnode.config import Receiver as ReceiverKeys
from tests.wire_peers import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    ASSOCIATE_RQ,
    CT,
    EXPLICIT,
    IMPLICIT,
    P_DATA,
    PATIENCE_S,
    RELEASE_RP,
    RELEASE_RQ,
    STANDARD,
    VERIFICATION,
    RawPeer,
    Receiver,
    associate_rq,
    command_set,
    data_set,
    pdu,
    pdv,
    receiver,
    store_command,
    uid,
)

pytestmark = pytest.mark.integration

COMMITMENT = "1.2.840.10008.1.20.1"
COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"


OUR_FAULTS = {"association failed", "instance failed"}


@pytest.fixture(autouse=True)
def no_fault_of_ours() -> Iterator[None]:
    """Whatever a peer does, nothing of ours may break over it."""
    with capture_logs() as lines:
        yield
    assert not [line for line in lines if line["event"] in OUR_FAULTS]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Receiver]:
    with receiver(tmp_path) as running:
        yield running


def ends(node: Receiver) -> list[str]:
    return [json.loads(journal.splitlines()[-1]).get("how", "open") for journal in node.journals()]


# ------------------------------------------------------------------------------------------------- kept as sent


@pytest.mark.parametrize("piece_bytes", [1, 1000, 16384, 131066])
@pytest.mark.parametrize("pixel_bytes", [0, 1, 527_000, 3_000_001])
def test_what_is_acknowledged_is_kept_bit_for_bit(node: Receiver, piece_bytes: int, pixel_bytes: int) -> None:
    if piece_bytes == 1:
        pixel_bytes = min(pixel_bytes, 5000)
    content = data_set(uid(5), pixels=os.urandom(pixel_bytes))
    with RawPeer(node.port) as peer:
        peer.associate()
        answer = peer.store(uid(5), content, piece_bytes=piece_bytes)
        assert (answer.field, answer.message_id, answer.status) == (0x8001, 1, 0x0000)
        assert answer.sop_instance == uid(5).encode()
        assert node.kept() == [content]
        peer.release()
    assert ends(node) == ["released"]


def test_a_session_that_comes_byte_by_byte(node: Receiver) -> None:
    with RawPeer(node.port) as peer:
        for byte in associate_rq(STANDARD):
            peer.send(bytes([byte]))
        assert peer.read_pdu()[0] == ASSOCIATE_AC
        for byte in peer.store_bytes(uid(5).encode(), data_set(uid(5)), piece_bytes=50):
            peer.send(bytes([byte]))
        assert peer.answer().status == 0
        peer.release()
    assert node.kept() == [data_set(uid(5))]


def test_command_in_pieces_and_data_in_the_same_pdu(node: Receiver) -> None:
    command, content = store_command(uid(5).encode()), data_set(uid(5))
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.send(pdu(P_DATA, pdv(3, 1, command[:30])))
        peer.send(pdu(P_DATA, pdv(3, 3, command[30:]) + pdv(3, 0, content[:10]) + pdv(3, 2, content[10:])))
        assert peer.answer().status == 0
        peer.send(pdu(P_DATA, pdv(3, 3, command) + pdv(3, 0, content) + pdv(3, 2, b"")))
        assert peer.answer().status == 0
    assert node.kept() == [content, content]


def test_stores_without_waiting_are_answered_in_order(node: Receiver) -> None:
    count = 40
    with RawPeer(node.port) as peer:
        peer.associate()
        contents = [data_set(uid(6, number), pixels=os.urandom(100_000)) for number in range(count)]
        stream = b"".join(
            peer.store_bytes(uid(6, number).encode(), content, message_id=number + 1)
            for number, content in enumerate(contents)
        )
        sending = threading.Thread(target=peer.send, args=(stream,))
        sending.start()
        answers = [peer.answer() for _ in range(count)]
        sending.join()
        assert [answer.message_id for answer in answers] == list(range(1, count + 1))
        assert {answer.status for answer in answers} == {0}
        peer.release()
    assert node.kept() == contents


def test_nothing_is_answered_before_file_and_names_are_synced(node: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []

    def watched(original: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            original(descriptor)
            synced.append(bool(select.select([peer.socket], [], [], 0.05)[0]))

        return sync

    with RawPeer(node.port) as peer:
        peer.associate()
        monkeypatch.setattr(os, "fsync", watched(os.fsync))
        monkeypatch.setattr(os, "fdatasync", watched(os.fdatasync))
        assert peer.store(uid(5), data_set(uid(5))).status == 0
        # The journal's file, its folder with the first name, and incoming/ once for the association; then the instance.
        assert synced == [False] * 4
        # The folder again, with the names of the next two, which need no sync but their own.
        assert peer.store(uid(6), data_set(uid(6))).status == 0
        assert synced == [False] * 6
        for number in (7, 8):
            assert peer.store(uid(number), data_set(uid(number))).status == 0
        assert synced == [False] * 8


def test_pynetdicom_stores_echoes_and_releases(node: Receiver, tmp_path: Path) -> None:
    entity = AE("SCU")
    contexts = [build_context(VERIFICATION), build_context(CT, [IMPLICIT, EXPLICIT])]
    association = entity.associate("127.0.0.1", node.port, contexts=contexts)
    assert association.is_established
    # The node's order decides, not that of the peer.
    assert {str(c.transfer_syntax[0]) for c in association.accepted_contexts} == {EXPLICIT}
    assert association.send_c_echo().Status == 0
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = CT, uid(7)
    image.StudyInstanceUID, image.SeriesInstanceUID = uid(1), uid(1, 1)
    image.ensure_file_meta()
    image.file_meta.TransferSyntaxUID = EXPLICIT
    assert association.send_c_store(image).Status == 0
    association.release()
    assert association.is_released
    assert ends(node) == ["released"]


def test_journal_tells_who_what_and_on_whose_request(node: Receiver) -> None:
    with RawPeer(node.port) as peer:
        peer.associate(((1, CT, (EXPLICIT,)), (3, "1.2.3.4", (EXPLICIT,))), calling="SCANNER", called="ANY")
        for number in (1, 2):
            peer.store(uid(number), data_set(uid(number)), context_id=1, move_originator=b"WORKSTATION")
        peer.release()
    opened, moved, closed = (json.loads(line) for line in node.journals()[0].splitlines())
    assert (opened["calling_ae"], opened["called_ae"], opened["door"]) == ("SCANNER", "ANY", "network")
    assert opened["accepted"] == [[CT, EXPLICIT]]
    assert opened["refused"] == [["1.2.3.4", "SOP class not supported"]]
    assert (moved["what"], moved["originator"], moved["message_id"]) == ("move", "WORKSTATION", 7)
    assert (closed["how"], closed["kept"]) == ("released", 2)


# ---------------------------------------------------------------------------------- one instance, not its association


@pytest.mark.parametrize(
    "name",
    [b"1." + b"2" * 63, b"../x", b"", b"1.2\0.3", b"..", b"a\\b"],
    ids=["65", "path", "empty", "nul", "dots", "backslash"],
)
def test_a_uid_that_cannot_be_kept_costs_one_instance(node: Receiver, name: bytes) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        answer = peer.store(name, data_set(name.decode("latin-1"), pixels=os.urandom(200_000)))
        assert answer.status == 0xC000
        assert 0 < len(answer.comment) <= 64
        assert peer.store(uid(5), data_set(uid(5))).status == 0
        peer.release()
    assert len(node.files()) == 1


@pytest.mark.parametrize("name", ["1.02.3", "a b", "1.2.3."])
def test_other_odd_uids_are_kept(node: Receiver, name: str) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.store(name, data_set(name)).status == 0


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 0xC000),
        (b"GET / HTTP/1.1\r\n\r\n", 0xC000),
        (os.urandom(70_000), 0xC000),
        (data_set(uid(8)), 0xA900),
        (data_set(uid(5), sop_class="1.2.840.10008.5.1.4.1.1.4"), 0xA900),
        (data_set(uid(5), study=""), 0xC000),
        (data_set(uid(5), series="1" * 65), 0xC000),
    ],
    ids=["empty", "http", "noise", "instance", "class", "no study", "long series"],
)
def test_a_bad_data_set_costs_one_instance(node: Receiver, content: bytes, status: int) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        answer = peer.store(uid(5), content)
        assert answer.status == status
        assert answer.comment
        assert peer.store(uid(6), data_set(uid(6))).status == 0
        peer.release()
    assert len(node.files()) == 1


def test_a_command_without_data_set_is_answered(node: Receiver) -> None:
    command = command_set({0x0002: CT.encode(), 0x0100: 1, 0x0110: 9, 0x0800: 0x0101, 0x1000: uid(5).encode()})
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.send(pdu(P_DATA, pdv(3, 3, command)))
        assert (peer.answer().status, node.files()) == (0xC000, [])
        assert peer.store(uid(6), data_set(uid(6))).status == 0


def test_too_large_an_object_costs_one_instance_and_an_endless_one_the_association(tmp_path: Path) -> None:
    with receiver(tmp_path, Config(receiver=ReceiverKeys(max_object_mb=1))) as node, RawPeer(node.port) as peer:
        peer.associate()
        assert peer.store(uid(5), data_set(uid(5), pixels=bytes(1_500_000))).status == 0xC000
        assert peer.store(uid(6), data_set(uid(6))).status == 0
        peer.send(peer.store_bytes(uid(7).encode(), data_set(uid(7), pixels=bytes(2_200_000))))
        assert peer.read_pdu()[0] == ABORT
        peer.socket.close()
        node.wait_ended(1)
        assert len(node.files()) == 1


# ------------------------------------------------------------------------------------------------- storage fails


def test_storage_that_fails_is_answered_with_a700_and_leaves_nothing(
    node: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.store(uid(5), data_set(uid(5))).status == 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fails)
            answer = peer.store(uid(6), data_set(uid(6)))
        assert answer.status == 0xA700
        assert answer.comment
        # Nobody knows what a disk holds whose sync failed: a second try may succeed and lose it all the same.
        again = peer.store(uid(7), data_set(uid(7)))
        assert (again.status, again.comment[:18]) == (0xA700, "storage is suspect")
        peer.release()
    assert len(node.files()) == 1
    with RawPeer(node.port) as peer:
        peer.send(associate_rq(STANDARD))
        assert peer.read_pdu() == (ASSOCIATE_RJ, bytes([0, 2, 3, 1]))


def test_storage_that_goes_away_is_answered_with_a700_after_the_data_set(node: Receiver) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.store(uid(5), data_set(uid(5))).status == 0
        shutil.rmtree(node.layout.incoming)
        assert peer.store(uid(6), data_set(uid(6), pixels=os.urandom(300_000))).status == 0xA700
        peer.release()


def test_no_room_rejects_new_associations_as_transient(node: Receiver) -> None:
    node.shared.spool.reserve_bytes = 1 << 62
    with RawPeer(node.port) as peer:
        peer.send(associate_rq(STANDARD))
        assert peer.read_pdu() == (ASSOCIATE_RJ, bytes([0, 2, 3, 1]))
        assert peer.is_closed()
    node.shared.spool.reserve_bytes = 0
    with RawPeer(node.port) as peer:
        peer.associate()
    assert node.files() == []


def test_a_fault_that_the_acceptor_saw_rejects_too(node: Receiver) -> None:
    node.shared.storage_fault = "free space is below the reserve"
    with RawPeer(node.port) as peer:
        peer.send(associate_rq(STANDARD))
        assert peer.read_pdu() == (ASSOCIATE_RJ, bytes([0, 2, 3, 1]))


# ------------------------------------------------------------------------------------------------------ admission


def test_unknown_callers_and_called_titles_are_rejected(tmp_path: Path) -> None:
    peers = (Peer(name="ct1", ae_title="CT1", host="127.0.0.0/8"), Peer(name="ct2", ae_title="CT2", host="10.0.0.1"))
    config = Config(peers=peers, node=Node(called_ae_titles=("CTNODE",)))
    expected = {
        ("CT1", "CTNODE"): None,
        ("CT1", "OTHER"): (1, 1, 7),
        ("CT2", "CTNODE"): (1, 1, 3),
        ("ct1", "CTNODE"): (1, 1, 3),
    }
    with receiver(tmp_path, config, listening_address="0.0.0.0") as node:
        for (calling, called), rejection in expected.items():
            with RawPeer(node.port) as peer:
                peer.send(associate_rq(STANDARD, calling=calling, called=called))
                kind, body = peer.read_pdu()
                if rejection is None:
                    assert kind == ASSOCIATE_AC
                else:
                    assert (kind, tuple(body[1:])) == (ASSOCIATE_RJ, rejection)
    assert len(list(node.layout.incoming.iterdir())) == 1


def test_too_many_associations_are_told_so(node: Receiver) -> None:
    node.over_limit = True
    with RawPeer(node.port) as peer:
        peer.send(associate_rq(STANDARD))
        assert peer.read_pdu() == (ASSOCIATE_RJ, bytes([0, 2, 3, 2]))


# ------------------------------------------------------------------------------------------------------ how it ends


def test_an_abort_inside_a_data_set_leaves_no_file(node: Receiver) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.store(uid(5), data_set(uid(5))).status == 0
        whole = peer.store_bytes(uid(6).encode(), data_set(uid(6), pixels=bytes(200_000)))
        peer.send(whole[:100_000] + bytes(0))
        peer.send(whole[100_000 : len(whole) - len(whole) % 10])
    node.wait_ended(1)
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.send(pdu(P_DATA, pdv(3, 3, store_command(uid(7).encode())) + pdv(3, 0, bytes(1000))))
        peer.send(pdu(ABORT, bytes(4)))
        assert peer.is_closed()
    node.wait_ended(2)
    assert len(node.files()) == 1
    assert ends(node) == ["lost", "aborted"]


def test_a_release_inside_a_data_set_leaves_no_file(node: Receiver) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.send(pdu(P_DATA, pdv(3, 3, store_command(uid(7).encode())) + pdv(3, 0, data_set(uid(7)))))
        peer.send(pdu(RELEASE_RQ, bytes(4)))
        assert peer.read_pdu()[0] == RELEASE_RP
    assert node.files() == []


LYING_PDV = struct.pack(">LBB", 5000, 3, 3) + bytes(10)


@pytest.mark.parametrize(
    "sent",
    [
        pdu(P_DATA, pdv(7, 3, store_command(uid(5).encode()))),
        pdu(P_DATA, pdv(3, 2, b"data before command")),
        pdu(P_DATA, b""),
        pdu(P_DATA, struct.pack(">L", 0)),
        pdu(P_DATA, LYING_PDV),
        pdu(P_DATA, pdv(3, 3, command_set({0x0100: 1, 0x0110: 1}))),
        pdu(P_DATA, pdv(3, 3, b"\0" * 7)),
        pdu(P_DATA, pdv(3, 3, command_set({0x0100: 0x0FEE, 0x0110: 1, 0x0800: 0x0101}))),
        pdu(P_DATA, pdv(3, 3, store_command(uid(5).encode())) + pdv(5, 2, data_set(uid(5)))),
        struct.pack(">BBL", P_DATA, 0, 131_073),
        struct.pack(">BBL", P_DATA, 0, 0xFFFFFFFF),
        struct.pack(">BBL", RELEASE_RQ, 0, 1 << 20),
        pdu(0x99, bytes(4)),
        associate_rq(STANDARD),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=[
        "unknown context", "data first", "empty pdu", "empty pdv", "lying pdv", "no data set type", "cut command",
        "unknown command", "context changes", "long pdu", "4 GiB", "long release", "unknown pdu", "second request",
        "tls",
    ],
)  # fmt: skip
def test_what_no_association_survives_is_answered_with_an_abort(node: Receiver, sent: bytes) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.send(sent)
        assert peer.read_pdu()[0] == ABORT
    node.wait_ended(1)
    assert node.files() == []
    assert ends(node) == ["aborted"]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        pdu(P_DATA, pdv(3, 3, store_command(b"1.2"))),
        pdu(RELEASE_RQ, bytes(4)),
        struct.pack(">BBL", ASSOCIATE_RQ, 0, (1 << 20) + 1),
        pdu(ASSOCIATE_RQ, bytes(10)),
        pdu(ASSOCIATE_RQ, b"\xff" * 200),
    ],
    ids=["http", "data", "release", "long request", "short request", "noise"],
)
def test_what_is_no_request_is_answered_with_an_abort(node: Receiver, sent: bytes) -> None:
    with RawPeer(node.port) as peer:
        peer.send(sent)
        assert peer.read_pdu()[0] == ABORT
        peer.socket.close()
    node.wait_ended(1)
    assert node.journals() == []


def test_a_large_but_allowed_request_is_read(node: Receiver) -> None:
    syntaxes = (*(f"1.2.{number}.{'3' * 50}" for number in range(60)), EXPLICIT)
    with RawPeer(node.port) as peer:
        request = associate_rq([(number, CT, syntaxes) for number in range(1, 256, 2)])
        assert 1 << 18 < len(request) < 1 << 20
        peer.send(request)
        assert peer.read_pdu()[0] == ASSOCIATE_AC
        assert peer.store(uid(5), data_set(uid(5)), context_id=255).status == 0


def test_silence_is_cut(tmp_path: Path) -> None:
    keys = ReceiverKeys(request_timeout_s=0.2, idle_timeout_s=0.2)
    with receiver(tmp_path, Config(receiver=keys)) as node:
        with RawPeer(node.port) as silent:
            assert silent.is_closed()
        with RawPeer(node.port) as half:
            half.send(associate_rq(STANDARD)[:50])
            assert half.is_closed()
        with RawPeer(node.port) as idle:
            idle.associate()
            idle.send(pdu(P_DATA, pdv(3, 3, store_command(uid(5).encode())) + pdv(3, 0, data_set(uid(5)))))
            assert idle.read_pdu()[0] == ABORT
            assert idle.is_closed()
        node.wait_ended(3)
        assert node.files() == []
        assert ends(node) == ["lost"]


def test_drain_aborts_what_is_open_and_keeps_what_was_acknowledged(node: Receiver) -> None:
    with RawPeer(node.port) as idle, RawPeer(node.port) as busy:
        for peer in (idle, busy):
            peer.associate()
            assert peer.store(uid(5), data_set(uid(5))).status == 0
        busy.send(pdu(P_DATA, pdv(3, 3, store_command(uid(6).encode())) + pdv(3, 0, data_set(uid(6)))))
        draining = threading.Thread(target=node.host.abort_all)
        draining.start()
        for peer in (idle, busy):
            assert peer.read_pdu()[0] == ABORT
            peer.socket.close()
        draining.join()
    assert node.host.associations == ()
    assert ends(node) == ["drained", "drained"]
    assert len(node.files()) == 2


# ------------------------------------------------------------------------------------ the other way on the same line


class Reports:
    """A pynetdicom SCU that takes event reports."""

    def __init__(self, node: Receiver) -> None:
        self.node = node
        self.seen: list[int] = []
        self.arrived = threading.Event()
        contexts = [build_context(COMMITMENT), build_context(CT, [EXPLICIT]), build_context(VERIFICATION)]
        self.association = AE("SCU").associate(
            "127.0.0.1", node.port, contexts=contexts, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._on_report)]
        )
        assert self.association.is_established

    def _on_report(self, event: Any) -> tuple[int, None]:
        self.seen.append(event.request.EventTypeID)
        self.arrived.set()
        return 0x0000, None


@pytest.fixture
def committing(tmp_path: Path) -> Iterator[Receiver]:
    services = ("echo", "store", "commitment")
    peers = tuple(Peer(name=title, ae_title=title, host="127.0.0.1", services=services) for title in ("SCU", "RAW"))
    with receiver(tmp_path, Config(peers=peers)) as running:
        yield running


def event_report(association: Any) -> int:
    information = Dataset()
    information.TransactionUID = uid(77)
    status, _ = association.send_n_event_report(information, 1, COMMITMENT, COMMITMENT_INSTANCE)
    return int(status.Status)


def test_an_event_report_goes_out_on_an_idle_association(committing: Receiver) -> None:
    scu = Reports(committing)
    accepted = committing.wait_started(1)
    statuses = [event_report(accepted) for _ in range(3)]
    assert (statuses, scu.seen) == ([0, 0, 0], [1, 1, 1])
    assert scu.association.send_c_echo().Status == 0
    scu.association.release()
    assert ends(committing) == ["released"]


def test_an_event_report_goes_out_from_a_handler(committing: Receiver) -> None:
    scu = Reports(committing)
    accepted = committing.wait_started(1)
    reported: list[int] = []

    def on_action(event: Any) -> tuple[int, None]:
        reported.append(event_report(event.assoc))
        return 0x0000, None

    accepted.bind(evt.EVT_N_ACTION, on_action)
    request = Dataset()
    request.TransactionUID = uid(77)
    status, _ = scu.association.send_n_action(request, 1, COMMITMENT, COMMITMENT_INSTANCE)
    assert status.Status == 0
    assert (reported, scu.seen) == ([0], [1])
    scu.association.release()


def test_stores_and_event_reports_at_the_same_time(committing: Receiver) -> None:
    with RawPeer(committing.port) as peer:
        peer.associate(((1, COMMITMENT, (EXPLICIT,)), (3, CT, (EXPLICIT,))))
        accepted = committing.wait_started(1)
        echo = command_set({0x0002: VERIFICATION.encode(), 0x0100: 0x0030, 0x0110: 3, 0x0800: 0x0101})
        # Once it answers, the node knows that the association is established; the peer knew it a moment earlier.
        peer.send(pdu(P_DATA, pdv(1, 3, echo)))
        assert peer.answer().field == 0x8030
        statuses: list[int] = []
        reporting = threading.Thread(target=lambda: statuses.append(event_report(accepted)))
        reporting.start()
        kind, body = peer.read_pdu()
        assert kind == P_DATA
        assert struct.pack("<HHLH", 0, 0x0100, 2, 0x0100) in body
        assert peer.read_pdu()[0] == P_DATA
        # The peer has a request of ours to answer, and sends its own first.
        assert peer.store(uid(5), data_set(uid(5))).status == 0
        peer.send(pdu(P_DATA, pdv(1, 3, echo)))
        report = command_set({0x0100: 0x8100, 0x0120: 1, 0x0800: 0x0101, 0x0900: 0, 0x1002: 1})
        peer.send(pdu(P_DATA, pdv(1, 3, report)))
        reporting.join(PATIENCE_S)
        assert statuses == [0]
        assert peer.answer().field == 0x8030
        peer.release()
    assert committing.kept() == [data_set(uid(5))]


def test_an_abort_from_another_thread(committing: Receiver) -> None:
    with RawPeer(committing.port) as peer:
        peer.associate()
        committing.wait_started(1).abort()
        assert peer.read_pdu()[0] == ABORT
        peer.socket.close()
        committing.wait_ended(1)
    assert ends(committing) == ["aborted"]
