"""Asking a destination whether it has what was sent: storage commitment (PS3.4 J) or C-FIND (PS3.4 C)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from pydicom.dataset import Dataset
from pynetdicom.dsutils import decode, encode

from ctnode.wire import dimse
from ctnode.wire.proposal import Agreed, Offer
from ctnode.wire.requestor import Association, Fault, Message, Phase
from ctnode.wire.sender import Destination, call
from ctnode.wire.transcode import IMPLICIT_LITTLE, UNCOMPRESSED

COMMITMENT: Final = "1.2.840.10008.1.20.1"
COMMITMENT_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
# PS3.4 C.4.1.1.4: matches go on.
_PENDING: Final = frozenset({0xFF00, 0xFF01})
_NO_REASON: Final = 0x0110
_EVENT_TYPE: Final = 0x1002
_ANSWERS_LIMIT: Final = 100_000


@dataclass(frozen=True, slots=True)
class Reference:
    """One object that was sent."""

    sop_class: str
    sop_instance: str


@dataclass(frozen=True, slots=True)
class CommitmentReport:
    """What a destination commits itself to, and the failure reason of the rest."""

    transaction_uid: str
    committed: frozenset[str]
    failed: Mapping[str, int]


def commitment(
    destination: Destination,
    calling_ae: str,
    transaction_uid: str,
    references: Sequence[Reference],
    timeout_s: float,
    wait_s: float,
) -> CommitmentReport | None:
    """Ask for storage commitment; None where the report does not come on the same association within ``wait_s``.

    Raises
    ------
    Fault
        If the destination cannot be asked, or does not take the request.
    """
    association = call(destination, calling_ae, [Offer(COMMITMENT, UNCOMPRESSED)], timeout_s)
    is_sound = False
    try:
        context = _context(association, "storage commitment is not accepted")
        request = Dataset()
        request.TransactionUID = transaction_uid
        request.ReferencedSOPSequence = [_item(one) for one in references]
        association.send_command(context.context_id, dimse.commitment_request(1, COMMITMENT, COMMITMENT_INSTANCE))
        _send(association, context, request)
        report = _await_report(association, context, transaction_uid, timeout_s, wait_s)
        is_sound = True
        return report
    finally:
        if is_sound:
            association.release()
        else:
            association.abort()


def _await_report(
    association: Association, context: Agreed, transaction_uid: str, timeout_s: float, wait_s: float
) -> CommitmentReport | None:
    is_taken = False
    report: CommitmentReport | None = None
    deadline = time.monotonic() + timeout_s
    while not is_taken or report is None:
        try:
            message = association.receive(max(0.01, deadline - time.monotonic()))
        except Fault:
            if is_taken:
                # It will come on an association of its own.
                return None
            raise
        if message.number(dimse.FIELD) == dimse.N_EVENT_REPORT:
            found = read_report(_decode(message, context))
            _acknowledge(association, context, message)
            report = found if found.transaction_uid == transaction_uid else report
        elif message.number(dimse.STATUS) != 0:
            status = message.number(dimse.STATUS)
            raise Fault(f"storage commitment refused with status {status or 0:04X}H", Phase.ANSWER)
        else:
            is_taken = True
            deadline = time.monotonic() + wait_s
    return report


def _acknowledge(association: Association, context: Agreed, message: Message) -> None:
    number, event = message.number(dimse.MESSAGE) or 0, message.number(_EVENT_TYPE) or 1
    association.send_command(context.context_id, dimse.event_response(number, COMMITMENT, COMMITMENT_INSTANCE, event))


def read_report(event: Dataset) -> CommitmentReport:
    """Read the data set of an N-EVENT-REPORT (PS3.4 J.3.3); an object that it says both of has failed."""
    committed = {str(item.get("ReferencedSOPInstanceUID", "")) for item in event.get("ReferencedSOPSequence") or ()}
    failed = {
        str(item.get("ReferencedSOPInstanceUID", "")): int(item.get("FailureReason") or _NO_REASON)
        for item in event.get("FailedSOPSequence") or ()
    }
    return CommitmentReport(str(event.get("TransactionUID", "")), frozenset(committed - failed.keys()), failed)


def find(
    destination: Destination, calling_ae: str, series: Iterable[tuple[str, str]], timeout_s: float
) -> frozenset[str]:
    """Return the SOP Instance UIDs that a destination has of each study and series, by C-FIND at image level.

    Raises
    ------
    Fault
        If the destination cannot be asked.
    """
    association = call(destination, calling_ae, [Offer(STUDY_ROOT_FIND, UNCOMPRESSED)], timeout_s)
    is_sound = False
    try:
        context = _context(association, "study root C-FIND is not accepted")
        found: set[str] = set()
        for number, (study, uid) in enumerate(series):
            identifier = Dataset()
            identifier.QueryRetrieveLevel = "IMAGE"
            identifier.StudyInstanceUID, identifier.SeriesInstanceUID, identifier.SOPInstanceUID = study, uid, ""
            association.send_command(context.context_id, dimse.find_request(number % 0xFFFF + 1, STUDY_ROOT_FIND))
            _send(association, context, identifier)
            while (message := association.receive()).number(dimse.STATUS) in _PENDING:
                found.add(str(_decode(message, context).get("SOPInstanceUID", "")))
                if len(found) > _ANSWERS_LIMIT:
                    raise Fault("the query has too many answers", Phase.ANSWER)
            if message.number(dimse.STATUS) != 0:
                raise Fault(f"query refused with status {message.number(dimse.STATUS) or 0:04X}H", Phase.ANSWER)
        is_sound = True
        return frozenset(found)
    finally:
        if is_sound:
            association.release()
        else:
            association.abort()


def _context(association: Association, otherwise: str) -> Agreed:
    if not association.answer.agreed:
        raise Fault(otherwise, Phase.NEGOTIATE)
    return association.answer.agreed[0]


def _item(reference: Reference) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = reference.sop_class, reference.sop_instance
    return item


def _send(association: Association, context: Agreed, data_set: Dataset) -> None:
    encoded = encode(data_set, context.syntax == IMPLICIT_LITTLE, True)
    if encoded is None:
        raise Fault("a request cannot be written", Phase.SEND)
    association.send_data(context.context_id, memoryview(encoded), is_last=True)


def _decode(message: Message, context: Agreed) -> Dataset:
    try:
        return decode(BytesIO(message.data_set), context.syntax == IMPLICIT_LITTLE, True)
    except (ValueError, AttributeError, TypeError, KeyError, OSError, NotImplementedError):
        raise Fault("the answer cannot be read", Phase.ANSWER) from None
