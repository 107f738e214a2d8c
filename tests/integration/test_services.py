"""Procedure steps, commitment requests and availability: what the receivers answer, and what stays in the journal."""

from __future__ import annotations

import base64
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pynetdicom import AE, build_context

from ctnode.archive.notices import Notice, Reference, from_journal
from ctnode.config import Config, Peer
from ctnode.wire.service_classes import AVAILABILITY, COMMITMENT, COMMITMENT_INSTANCE, PROCEDURE_STEP
from tests.wire_peers import (
    CT,
    EXPLICIT,
    IMPLICIT,
    P_DATA,
    VERIFICATION,
    RawPeer,
    Receiver,
    command_set,
    pdu,
    pdv,
    receiver,
    uid,
)

pytestmark = pytest.mark.integration

ALL = ("echo", "store", "mpps", "commitment", "availability")
STEP = uid(70)


def allowed(*services: str) -> Config:
    return Config(peers=(Peer(name="ct", ae_title="CT1", host="127.0.0.1", services=services),))  # type: ignore[arg-type]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Receiver]:
    with receiver(tmp_path, allowed(*ALL)) as running:
        yield running


@contextmanager
def calling(node: Receiver, *classes: str, syntax: str = EXPLICIT) -> Iterator[Any]:
    association = AE("CT1").associate(
        "127.0.0.1", node.port, contexts=[build_context(name, [syntax]) for name in classes]
    )
    assert association.is_established
    yield association
    association.release()


def reference(sop_instance: str, sop_class: str = CT) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class
    item.ReferencedSOPInstanceUID = sop_instance
    return item


def step(status: str | None, *performed: tuple[str, list[str]]) -> Dataset:
    data = Dataset()
    if status is not None:
        data.PerformedProcedureStepStatus = status
    items = []
    for series, instances in performed:
        item = Dataset()
        item.SeriesInstanceUID = series
        item.ProtocolName = "CHEST"
        item.ReferencedImageSequence = Sequence([reference(name) for name in instances])
        item.ReferencedNonImageCompositeSOPInstanceSequence = Sequence([])
        items.append(item)
    data.PerformedSeriesSequence = Sequence(items)
    return data


def begun() -> Dataset:
    data = step("IN PROGRESS")
    scheduled = Dataset()
    scheduled.StudyInstanceUID = uid(1)
    scheduled.AccessionNumber = "A1"
    data.ScheduledStepAttributesSequence = Sequence([scheduled])
    data.PatientName = "NAME^SECRET"
    return data


def commitment(transaction: str | None, *instances: str) -> Dataset:
    data = Dataset()
    if transaction is not None:
        data.TransactionUID = transaction
    data.ReferencedSOPSequence = Sequence([reference(name) for name in instances])
    return data


def create(association: Any, data: Dataset, instance: str | None = STEP, sop_class: str = PROCEDURE_STEP) -> Dataset:
    return association.send_n_create(data, sop_class, instance)[0]  # type: ignore[no-any-return]


def change(association: Any, data: Dataset, instance: str = STEP) -> Dataset:
    return association.send_n_set(data, PROCEDURE_STEP, instance)[0]  # type: ignore[no-any-return]


def ask(association: Any, data: Dataset, *, action: int = 1, instance: str = COMMITMENT_INSTANCE) -> int:
    return int(association.send_n_action(data, action, COMMITMENT, instance)[0].Status)


def records(node: Receiver, what: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for journal in node.journals() for line in journal.splitlines())
    return [line for line in lines if line["what"] == what]


def notices(node: Receiver, what: str) -> list[Notice]:
    found = [from_journal(record) for record in records(node, what)]
    assert None not in found
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_procedure_step_from_its_begin_to_its_end(node: Receiver, syntax: str) -> None:
    with calling(node, PROCEDURE_STEP, syntax=syntax) as association:
        assert create(association, begun()).Status == 0
        assert change(association, step(None, (uid(1, 1), [uid(5)]))).Status == 0
        whole = step("COMPLETED", (uid(1, 1), [uid(5), uid(6)]), (uid(1, 2), [uid(7)]))
        assert change(association, whole).Status == 0
    kept = notices(node, "mpps")
    assert [(one.uid, one.status) for one in kept] == [(STEP, "IN PROGRESS"), (STEP, ""), (STEP, "COMPLETED")]
    assert (kept[0].study, kept[0].listed) == (uid(1), ())
    assert [(one.series, [r.sop_instance for r in one.references]) for one in kept[2].listed] == [
        (uid(1, 1), [uid(5), uid(6)]), (uid(1, 2), [uid(7)]),
    ]  # fmt: skip
    # The data set lies there as it came.
    assert b"SECRET" in base64.b64decode(records(node, "mpps")[0]["data_set"])


def test_what_a_step_may_not_be(node: Receiver) -> None:
    with calling(node, PROCEDURE_STEP) as association:
        assert change(association, step("COMPLETED")).Status == 0x0112
        assert create(association, step(None)).Status == 0x0120
        assert create(association, step("")).Status == 0x0121
        assert create(association, step("COMPLETED")).Status == 0x0106
        assert create(association, begun()).Status == 0
        assert create(association, begun()).Status == 0x0111
        assert change(association, step("FINISHED")).Status == 0x0106
        assert change(association, step("DISCONTINUED", (uid(1, 1), [uid(5)]))).Status == 0
        late = change(association, step("COMPLETED"))
        assert (late.Status, late.ErrorID) == (0x0110, 0xA710)
        assert late.ErrorComment == "the procedure step may no longer be updated"
    assert [one.status for one in notices(node, "mpps")] == ["IN PROGRESS", "DISCONTINUED"]
    assert [record["status"] for record in records(node, "refused")] == [
        0x0112, 0x0120, 0x0121, 0x0106, 0x0111, 0x0106, 0x0110,
    ]  # fmt: skip


def test_a_step_without_a_uid_is_told_the_one_it_got(node: Receiver) -> None:
    with calling(node, PROCEDURE_STEP) as association:
        responses = []
        association.dimse.send_msg, send = (lambda *a: responses.append(a) or send(*a)), association.dimse.send_msg
        status, _ = association.send_n_create(begun(), PROCEDURE_STEP, None)
        assert status.Status == 0
    (given,) = [one.uid for one in notices(node, "mpps")]
    assert given.startswith("2.25.")


def test_every_receiver_knows_every_step(tmp_path: Path) -> None:
    """Two processes would share the root as these two receivers do: what they know of steps lies on disk."""
    with receiver(tmp_path, allowed(*ALL)) as first, receiver(tmp_path, allowed(*ALL)) as second:
        with calling(first, PROCEDURE_STEP) as association:
            assert create(association, begun()).Status == 0
        with calling(second, PROCEDURE_STEP) as association:
            assert create(association, begun()).Status == 0x0111
            assert change(association, step("COMPLETED", (uid(1, 1), [uid(5)]))).Status == 0
        with calling(first, PROCEDURE_STEP) as association:
            assert change(association, step("COMPLETED")).Status == 0x0110


def test_one_of_two_that_begin_the_same_step_at_once(tmp_path: Path) -> None:
    with receiver(tmp_path, allowed(*ALL)) as node:
        statuses: list[int] = []
        together = threading.Barrier(4)

        def begin() -> None:
            with calling(node, PROCEDURE_STEP) as association:
                together.wait()
                statuses.append(create(association, begun()).Status)

        threads = [threading.Thread(target=begin) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [0, 0x0111, 0x0111, 0x0111]


def test_a_commitment_request(node: Receiver) -> None:
    with calling(node, COMMITMENT) as association:
        assert ask(association, commitment(None, uid(5))) == 0x0115
        assert ask(association, commitment(uid(77))) == 0x0115
        assert ask(association, commitment(uid(77), uid(5)), action=2) == 0x0123
        assert ask(association, commitment(uid(77), uid(5)), instance=uid(1)) == 0x0112
        assert ask(association, commitment(uid(77), uid(5), uid(6), uid(5))) == 0
        assert ask(association, commitment(uid(77), uid(5))) == 0x0131
    (kept,) = notices(node, "commitment")
    assert (kept.uid, kept.references) == (uid(77), (Reference(CT, uid(5)), Reference(CT, uid(6))))


def test_an_availability_notification(node: Receiver) -> None:
    data = Dataset()
    data.StudyInstanceUID = uid(1)
    series = Dataset()
    series.SeriesInstanceUID = uid(1, 1)
    instance = reference(uid(5))
    instance.InstanceAvailability = "ONLINE"
    instance.RetrieveAETitle = "PACS"
    series.ReferencedSOPSequence = Sequence([instance])
    with calling(node, AVAILABILITY) as association:
        assert create(association, data, uid(80), AVAILABILITY).Status == 0x0120
        data.ReferencedSeriesSequence = Sequence([series])
        assert create(association, data, uid(80), AVAILABILITY).Status == 0
        assert create(association, data, uid(80), AVAILABILITY).Status == 0x0111
    (kept,) = notices(node, "availability")
    assert (kept.study, kept.listed[0].series, kept.references) == (uid(1), uid(1, 1), (Reference(CT, uid(5)),))


def test_only_what_a_peer_may_do_is_negotiated(tmp_path: Path) -> None:
    with receiver(tmp_path, allowed("echo", "store")) as node:
        association = AE("CT1").associate(
            "127.0.0.1",
            node.port,
            contexts=[build_context(name) for name in (VERIFICATION, PROCEDURE_STEP, COMMITMENT, AVAILABILITY)],
        )
        assert [context.abstract_syntax for context in association.accepted_contexts] == [VERIFICATION]
        association.release()


def test_a_class_that_its_context_does_not_allow(tmp_path: Path) -> None:
    """A peer that may only echo names another class in its request: nothing comes into the journal."""
    with receiver(tmp_path, allowed("echo", "mpps")) as node, RawPeer(node.port) as peer:
        peer.associate(((1, VERIFICATION, (IMPLICIT,)), (3, PROCEDURE_STEP, (IMPLICIT,))), calling="CT1")
        action = {0x0003: COMMITMENT.encode(), 0x0100: 0x0130, 0x0110: 1, 0x0800: 0x0101, 0x1001: b"1.2", 0x1008: 1}
        peer.send(pdu(P_DATA, pdv(1, 3, command_set(action))))
        assert peer.answer().status == 0x0118
        get = {0x0003: PROCEDURE_STEP.encode(), 0x0100: 0x0110, 0x0110: 2, 0x0800: 0x0101, 0x1001: b"1.2"}
        peer.send(pdu(P_DATA, pdv(3, 3, command_set(get))))
        assert peer.answer().status == 0x0211
        broken = {0x0003: PROCEDURE_STEP.encode(), 0x0100: 0x0120, 0x0110: 3, 0x0800: 0x0101}
        peer.send(pdu(P_DATA, pdv(3, 3, command_set(broken))))
        assert peer.answer().status == 0x0212
        peer.release()
        assert not records(node, "commitment")


def test_a_hostile_list_costs_one_request(node: Receiver) -> None:
    """Nested a thousand times, undefined lengths without an end: answered, and the association goes on."""
    deep = struct.pack("<HHL", 0x0040, 0x0340, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with RawPeer(node.port) as peer:
        peer.associate(((1, PROCEDURE_STEP, (IMPLICIT,)),), calling="CT1")
        request = {0x0002: PROCEDURE_STEP.encode(), 0x0100: 0x0140, 0x0110: 1, 0x0800: 0, 0x1000: STEP.encode()}
        for content in (deep * 1000, deep, b"\x08\0\x05", deep[:8] + deep[:8]):
            peer.send(pdu(P_DATA, pdv(1, 3, command_set(request))) + pdu(P_DATA, pdv(1, 2, content)))
            assert peer.answer().status == 0x0106
        peer.release()
    assert not records(node, "mpps")


def test_a_disk_that_takes_nothing(node: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    with calling(node, PROCEDURE_STEP) as association:

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            assert create(association, begun()).Status == 0x0213
        # What was not answered with success may come again.
        assert create(association, begun()).Status == 0
