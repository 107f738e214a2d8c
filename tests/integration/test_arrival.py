"""SENT becomes CONFIRMED by storage commitment or a query, and what is not there is sent again."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.dsutils import decode, encode
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from ctnode.archive import proofs
from ctnode.wire.arrival import COMMITMENT, COMMITMENT_INSTANCE, Reference, commitment
from ctnode.wire.requestor import Fault
from ctnode.wire.sender import Destination
from tests.delivery_root import SC, Clock, office, target
from tests.wire_peers import P_DATA, RELEASE_RQ, VERIFICATION, command_set, pdu, pdv, receiver, uid

pytestmark = pytest.mark.integration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.install(monkeypatch)
    return clock


class Keeper:
    """An archive that answers C-FIND from what it has kept."""

    def __init__(self) -> None:
        self.kept: dict[str, None] = {}
        self.transfers = 0
        self.loses: set[str] = set()
        self.port = 0

    def store(self, event: evt.Event) -> int:
        self.transfers += 1
        name = str(event.request.AffectedSOPInstanceUID)
        if name not in self.loses:
            self.kept[name] = None
        return 0

    def find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        assert event.identifier.QueryRetrieveLevel == "IMAGE"
        assert (event.identifier.StudyInstanceUID, event.identifier.SeriesInstanceUID) == (uid(1), uid(1, 1))
        for name in self.kept:
            found = Dataset()
            found.SOPInstanceUID = name
            yield 0xFF00, found


@contextmanager
def keeper() -> Iterator[Keeper]:
    keeper = Keeper()
    entity = AE("THERE")
    entity.supported_contexts = AllStoragePresentationContexts[:]
    for sop_class in (VERIFICATION, StudyRootQueryRetrieveInformationModelFind):
        entity.add_supported_context(sop_class)
    handlers: list[Any] = [(evt.EVT_C_STORE, keeper.store), (evt.EVT_C_FIND, keeper.find)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    keeper.port = server.server_address[1]
    try:
        yield keeper
    finally:
        server.shutdown()


def test_a_query_confirms_and_what_is_missing_is_sent_again(tmp_path: Path, clock: Clock) -> None:
    with keeper() as there, office(tmp_path, target("pacs", there.port, proof="query")) as node:
        made = [uid(7, number) for number in range(1, 4)]
        there.loses = {made[1]}
        node.owe(node.series()[0], made, "pacs")
        node.work()
        assert node.states() == ["SENT"] * 3
        clock.now += 5.1
        node.work()
        assert node.states() == ["CONFIRMED", "SENT", "CONFIRMED"]
        assert node.deliveries()[1].comment == "not found yet by query"
        there.loses = set()
        for _ in range(2):
            clock.now += 5.1
            node.work()
        # It was sent again on the third miss, at once, and waits for its proof.
        assert there.transfers == 4
        assert node.deliveries()[1].transfers == 2
        clock.now += 60.0
        node.work()
        assert node.states() == ["CONFIRMED"] * 3
        assert node.root.one("SELECT count(*) FROM timeline WHERE text LIKE '%confirmed by pacs: query'") == 3


def test_what_is_taken_again_and_again_and_never_there_is_given_up(tmp_path: Path, clock: Clock) -> None:
    with keeper() as there, office(tmp_path, target("pacs", there.port, proof="query")) as node:
        lost = uid(7, 1)
        there.loses = {lost}
        node.owe(node.series()[0], [lost], "pacs")
        began = clock.now
        while node.states() == ["SENT"] or clock.now == began:
            node.work()
            clock.now += 700.0
        (given_up,) = node.deliveries()
        assert (given_up.state, given_up.transfers) == ("DEAD", proofs.TRANSFERS_LIMIT)
        assert given_up.comment == "it was taken 8 times, and the destination does not have it, says query"
        there.loses = set()
        node.retry("pacs")
        node.work()
        assert node.states() == ["SENT"]


class Scripted:
    """A commitment SCP that says what it is told, on the same association; pynetdicom's own cannot."""

    def __init__(self, *, action_status: int = 0, missing: tuple[str, ...] = (), event: bool = True) -> None:
        self.transactions: list[str] = []
        self.event_answers: list[bytes] = []
        self._options = (action_status, missing, event)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._talk(connection)

    def _talk(self, connection: Any) -> None:
        def read() -> tuple[int, bytes]:
            head = connection.recv(6, 0x100)
            kind, _, length = struct.unpack(">BBL", head)
            return kind, connection.recv(length, 0x100)

        action_status, missing, event = self._options
        _, body = read()
        answer = struct.pack(">BBBB", 1, 0, 0, 0) + struct.pack(">BBH", 0x40, 0, 17) + b"1.2.840.10008.1.2"
        items = struct.pack(">BBH", 0x21, 0, len(answer)) + answer
        user = struct.pack(">BBHL", 0x51, 0, 4, 16384)
        items += struct.pack(">BBH", 0x50, 0, len(user)) + user
        connection.sendall(pdu(2, body[:68] + items))
        read()
        _, data = read()
        request = decode(BytesIO(data[6:]), True, True)
        self.transactions.append(str(request.TransactionUID))
        values: dict[int, bytes | int] = {
            0x0002: COMMITMENT.encode(), 0x0100: 0x8130, 0x0120: 1, 0x0800: 0x0101, 0x0900: action_status,
            0x1000: COMMITMENT_INSTANCE.encode(),
        }  # fmt: skip
        connection.sendall(pdu(P_DATA, pdv(1, 3, command_set(values))))
        if event and not action_status:
            report = Dataset()
            report.TransactionUID = request.TransactionUID
            items_ = list(request.ReferencedSOPSequence)
            report.ReferencedSOPSequence = [one for one in items_ if one.ReferencedSOPInstanceUID not in missing]
            report.FailedSOPSequence = [one for one in items_ if one.ReferencedSOPInstanceUID in missing]
            for one in report.FailedSOPSequence:
                one.FailureReason = 0x0112
            command = command_set(
                {
                    0x0002: COMMITMENT.encode(), 0x0100: 0x0100, 0x0110: 9, 0x0800: 1,
                    0x1000: COMMITMENT_INSTANCE.encode(), 0x1002: 2 if missing else 1,
                }
            )  # fmt: skip
            encoded = encode(report, True, True)
            assert encoded is not None
            connection.sendall(pdu(P_DATA, pdv(1, 3, command)) + pdu(P_DATA, pdv(1, 2, encoded)))
            _, answer = read()
            self.event_answers.append(answer)
        kind, _ = read()
        if kind == RELEASE_RQ:
            connection.sendall(pdu(6, bytes(4)))


def there(port: int) -> Destination:
    return Destination("there", "THERE", "127.0.0.1", port)


def test_a_commitment_is_asked_for_and_its_report_is_taken() -> None:
    references = [Reference(SC, uid(7, 1)), Reference(SC, uid(7, 2))]
    with Scripted(missing=(uid(7, 2),)) as archive:
        report = commitment(there(archive.port), "US", "2.25.1", references, 20, 20)
        assert report is not None
        assert (report.transaction_uid, report.committed) == ("2.25.1", {uid(7, 1)})
        assert report.failed == {uid(7, 2): 0x0112}
        assert archive.transactions == ["2.25.1"]
        # Our N-EVENT-REPORT-RSP answers message 9 with success.
        (answered,) = archive.event_answers
        assert struct.pack("<HHLH", 0, 0x0120, 2, 9) in answered
        assert struct.pack("<HHLH", 0, 0x0900, 2, 0) in answered
    with Scripted(event=False) as archive:
        assert commitment(there(archive.port), "US", "2.25.2", references, 20, 0.05) is None
    with Scripted(action_status=0x0110) as archive, pytest.raises(Fault, match="refused with status 0110H"):
        commitment(there(archive.port), "US", "2.25.3", references, 20, 20)


def test_a_commitment_confirms_with_a_new_transaction_for_each_try(tmp_path: Path, clock: Clock) -> None:
    """The object goes to an archive, and the question to one that answers as it is told."""
    with keeper() as archive, office(tmp_path, target("pacs", archive.port, proof="commitment")) as node:
        made = [uid(7, 1), uid(7, 2)]
        node.owe(node.series()[0], made, "pacs")
        node.work()
        clock.now += 5.1
        node.work()
        # This one does not do storage commitment at all; that is said, and asked again later.
        assert node.states() == ["SENT"] * 2
        assert node.deliveries()[0].comment == "not proved: storage commitment is not accepted"
        with Scripted(missing=(uid(7, 2),)) as answering:
            pacs = node.config.targets[0].model_copy(update={"port": answering.port})
            node.deliverer.config = node.config.model_copy(update={"targets": (pacs,)})
            for _ in range(2):
                clock.now += 61.0
                node.work()
            assert node.states() == ["CONFIRMED", "SENT"]
            assert len(set(answering.transactions)) == 2


def test_a_report_may_come_later_and_on_another_way(tmp_path: Path, clock: Clock) -> None:
    with keeper() as archive, office(tmp_path, target("pacs", archive.port, proof="commitment")) as node:
        node.owe(node.series()[0], [uid(7, 1), uid(7, 2)], "pacs")
        node.work()
        database = node.root.database
        proofs.asked(database, {1: uid(7, 1), 2: uid(7, 2)}, 60.0, transaction_uid="2.25.7")
        assert proofs.report(database, "2.25.6", [uid(7, 1)]) == 0
        assert node.states() == ["SENT"] * 2
        assert proofs.report(database, "2.25.7", [uid(7, 1)]) == 1
        assert node.states() == ["CONFIRMED", "SENT"]
        # The other one is asked for anew, and this transaction has nothing more to say.
        assert proofs.report(database, "2.25.7", [uid(7, 2)]) == 0


def test_a_report_comes_to_our_own_port(tmp_path: Path, clock: Clock) -> None:
    """As most archives do it: on an association of their own, on which they propose themselves as SCP."""
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "services": ["echo", "commitment"]}
    with keeper() as archive, office(tmp_path, target("pacs", archive.port, proof="commitment"), peers=[pacs]) as node:
        node.owe(node.series()[0], [uid(7, 1), uid(7, 2)], "pacs")
        node.work()
        proofs.asked(node.root.database, {1: uid(7, 1), 2: uid(7, 2)}, 60.0, transaction_uid="2.25.77")
        report = Dataset()
        report.TransactionUID = "2.25.77"
        for keyword, name in (("ReferencedSOPSequence", uid(7, 1)), ("FailedSOPSequence", uid(7, 2))):
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = SC, name
            if keyword == "FailedSOPSequence":
                item.FailureReason = 0x0112
            setattr(report, keyword, [item])
        with receiver(node.root.layout.root, node.config) as port:
            association = AE("PACS").associate(
                "127.0.0.1", port.port, contexts=[build_context(COMMITMENT)], ae_title="CTNODE",
                ext_neg=[build_role(COMMITMENT, scp_role=True)],
            )  # fmt: skip
            assert association.accepted_contexts[0].as_scp
            status, _ = association.send_n_event_report(report, 2, COMMITMENT, COMMITMENT_INSTANCE)
            assert status.Status == 0
            association.release()
            port.wait_ended(1)
        node.root.settle()
        assert node.states() == ["CONFIRMED", "SENT"]
        assert node.deliveries()[1].comment == "not found yet by storage commitment"
