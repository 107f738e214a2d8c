"""What journals say beside their instances: heard once, in the right order, and whatever dies in between."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from ctnode.archive import commitments, evidence
from ctnode.archive.commitments import Failure
from ctnode.archive.ledger import KEPT_S, Ledger
from ctnode.archive.notices import NoticeKind, Reference, journal_fields
from ctnode.archive.spool import JOURNAL_NAME, Journal, Spool
from ctnode.archive.vouching import CLASS_CONFLICT, HELD, NO_SUCH_INSTANCE, PROCESSING_FAILURE, verify
from ctnode.words import DeliveryState
from tests.archive_root import Root, opened, stack
from tests.integration.test_services import commitment, step

pytestmark = pytest.mark.integration

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    made = Root(tmp_path)
    yield made
    made.close()


def encoded(data: Dataset) -> bytes:
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = False, True
    write_dataset(file, data)
    return file.getvalue()


def ask(journal: Journal, transaction: str, *instances: str) -> None:
    data = encoded(commitment(transaction, *instances))
    journal.notice(NoticeKind.COMMITMENT, journal_fields(transaction, "N-ACTION", EXPLICIT, data))


def perform(journal: Journal, uid: str, status: str | None, series: str, *instances: str) -> None:
    data = encoded(step(status, (series, list(instances))))
    journal.notice(NoticeKind.STEP, journal_fields(uid, "N-SET", EXPLICIT, data))


def transactions(root: Root) -> list[str]:
    return [str(row[0]) for row in root.rows("SELECT transaction_uid FROM commitments ORDER BY id")]


def test_a_request_counts_once_all_that_came_before_is_settled(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """The instances lie in another association, and the keeper takes them in more than one batch."""
    from ctnode.archive import settle

    monkeypatch.setattr(settle, "BATCH", 4)
    images = stack(10)
    with root.spool.open_association(opened()) as journal:
        ask(journal, "1.2.3", *(image.sop for image in images))
        root.push(images)
        seen = []
        while not (scan := root.settler.scan()).is_whole:
            seen.append((len(transactions(root)), len(scan.settled)))
    assert seen == [(0, 4), (0, 4)]
    assert transactions(root) == ["1.2.3"]
    (request,) = commitments.listing(root.database)
    assert {verify(root.database, root.layout, one) for one in request.references} == {HELD}
    listed = evidence.of_series(root.database, 1)
    assert [(one.kind, one.count) for one in listed] == [("commitment_request", 10)]


def test_nothing_is_heard_twice_or_lost(root: Root) -> None:
    journal = root.spool.open_association(opened())
    ask(journal, "1.2.1", "1.5")
    root.settler.scan()
    ask(journal, "1.2.2", "1.5")
    root.restart()
    root.settler.scan()
    assert transactions(root) == ["1.2.1", "1.2.2"]
    perform(journal, "1.9", "COMPLETED", "1.7", "1.5", "1.6")
    # Ended before anybody looked: the journal stays until its last line is heard.
    journal.close("released")
    assert root.settler.scan().is_whole
    root.settler.scan()
    (row,) = root.rows("SELECT kind, source, name, instances FROM evidence WHERE series = '1.7'")
    assert row == ("mpps_completed", "SENDER", "1.9", '["1.5", "1.6"]')
    assert not root.files("incoming")


def test_a_line_that_was_cut_is_not_heard_and_what_cannot_be_read_is_passed_over(root: Root) -> None:
    journal = root.spool.open_association(opened())
    journal.note("mpps", {"uid": "1.1", "transfer_syntax": EXPLICIT, "data_set": "not base64!"})
    journal.note("mpps", {"uid": "1.1", "transfer_syntax": EXPLICIT, "data_set": base64.b64encode(b"\1\2\3").decode()})
    ask(journal, "1.2.1", "1.5")
    with (journal.directory / JOURNAL_NAME).open("ab") as file:
        file.write(b'{"what": "commitment", "data_set": "')
    root.settler.scan()
    root.settler.scan()
    assert transactions(root) == ["1.2.1"]
    journal.close("released")


def test_what_is_vouched_for(root: Root) -> None:
    image, damaged = stack(2)
    root.push([image, damaged])
    root.settle()
    (path,) = root.rows("SELECT path FROM instances WHERE sop_instance = ?", damaged.sop)[0]
    place = root.layout.store / str(path)
    place.write_bytes(place.read_bytes()[:-1] + b"\x55")

    def asked(sop_class: str, sop_instance: str) -> int:
        return verify(root.database, root.layout, Reference(sop_class, sop_instance))

    assert asked(CT, image.sop) == HELD
    assert asked("1.2.840.10008.5.1.4.1.1.4", image.sop) == CLASS_CONFLICT
    assert asked(CT, "1.2.999") == NO_SUCH_INSTANCE
    assert asked(CT, damaged.sop) == PROCESSING_FAILURE
    place.write_bytes(b"")
    assert asked(CT, damaged.sop) == PROCESSING_FAILURE


def test_a_transaction_from_its_request_to_its_report(root: Root) -> None:
    with root.spool.open_association(opened()) as journal:
        ask(journal, "1.2.1", "1.5", "1.6")
        ask(journal, "1.2.1", "1.7")
    root.settle()
    database = root.database
    (caller,) = commitments.callers_due(database)
    request = commitments.claim(database, caller)
    assert request is not None
    assert (request.attempt, request.references) == (1, (Reference(CT, "1.5"), Reference(CT, "1.6")))
    assert commitments.claim(database, caller) is None
    commitments.verified(database, request, [Failure(Reference(CT, "1.5"), NO_SUCH_INSTANCE)])
    # Its process dies; what it says later is nobody's any more.
    commitments.release_interrupted(database)
    second = commitments.claim(database, caller)
    assert second is not None
    assert (second.attempt, second.failures) == (2, (Failure(Reference(CT, "1.5"), NO_SUCH_INSTANCE),))
    commitments.reported(database, request, "late")
    assert commitments.get(database, request.id).state is DeliveryState.SENDING
    commitments.again(database, second, "no answer", wait_s=0.0)
    third = commitments.claim(database, caller)
    assert third is not None
    commitments.reported(database, third, "on an association of our own")
    assert commitments.get(database, request.id).state is DeliveryState.SENT
    assert commitments.callers_due(database) == ()


def test_the_ledger_survives_a_cut_line_and_forgets_after_months(tmp_path: Path) -> None:
    (tmp_path / "incoming").mkdir()
    ledger = Ledger(Spool(tmp_path / "incoming"))
    with ledger.entry("mpps", "1.2", must_exist=True) as nothing:
        assert nothing is None
    with ledger.entry("mpps", "1.2") as entry:
        assert entry is not None
        assert entry.record is None
        entry.write({"status": "IN PROGRESS"})
        entry.write({"status": "COMPLETED"})
    (file,) = ledger.folder.iterdir()
    with file.open("ab") as cut:
        cut.write(b'{"status": "DISC')
    with ledger.entry("mpps", "1.2", must_exist=True) as entry:
        assert entry is not None
        assert entry.record == {"status": "COMPLETED"}
        entry.write({"status": "AGAIN"})
    assert [json.loads(line)["status"] for line in file.read_text().splitlines()] == [
        "IN PROGRESS", "COMPLETED", "AGAIN",
    ]  # fmt: skip
    assert ledger.sweep() == 0
    assert ledger.sweep(file.stat().st_mtime + KEPT_S + 1) == 1
