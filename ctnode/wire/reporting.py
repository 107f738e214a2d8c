"""The N-EVENT-REPORT of storage commitment, on an association that is open or on a new one (PS3.4 J.3.3)."""

from __future__ import annotations

import itertools
import json
import queue
import time
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Final, Self

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.presentation import PresentationContext, build_context, build_role

from ctnode.archive.commitments import Commitment, Failure
from ctnode.archive.notices import Reference
from ctnode.wire.calling import Callee, associated, status_of
from ctnode.wire.contexts import SERVICE_SYNTAXES
from ctnode.wire.reactor import SyncAssociation
from ctnode.wire.service_classes import COMMITMENT, COMMITMENT_INSTANCE

NO_ANSWER: Final = "no answer"
ALL_HELD: Final = 1
FAILURES_EXIST: Final = 2

_message_ids = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Report:
    """What a peer is told of its transaction: each instance is in one of the two lists (PS3.4 J.3.3.1.1)."""

    transaction: str
    held: tuple[Reference, ...]
    failures: tuple[Failure, ...]

    @classmethod
    def of(cls, commitment: Commitment) -> Self:
        """Return the report of a verified transaction."""
        failures = commitment.failures or ()
        failed = {failure.reference for failure in failures}
        return cls(commitment.transaction, tuple(one for one in commitment.references if one not in failed), failures)

    @property
    def event_type(self) -> int:
        """Return 1, or 2 if there are failures."""
        return FAILURES_EXIST if self.failures else ALL_HELD

    def information(self) -> Dataset:
        """Return the event information (PS3.4 Table J.3-2)."""
        data = Dataset()
        data.TransactionUID = self.transaction
        if self.held:
            data.ReferencedSOPSequence = _references(self.held)
        if self.failures:
            failed = _references(failure.reference for failure in self.failures)
            for item, failure in zip(failed, self.failures, strict=True):
                item.FailureReason = failure.reason
            data.FailedSOPSequence = failed
        return data

    def as_text(self) -> str:
        """Return the report as JSON, for another process."""
        held = [[one.sop_class, one.sop_instance] for one in self.held]
        failed = [[one.reference.sop_class, one.reference.sop_instance, one.reason] for one in self.failures]
        return json.dumps([self.transaction, held, failed])

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the report that ``as_text`` made the text of."""
        transaction, held, failed = json.loads(text)
        return cls(
            transaction,
            tuple(Reference(*one) for one in held),
            tuple(Failure(Reference(*one[:2]), one[2]) for one in failed),
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a peer said to a report; ``status`` is None where it said nothing, and ``why`` tells."""

    status: int | None
    why: str = ""


def report_here(association: SyncAssociation, report: Report, timeout_s: float) -> Answer:
    """Report on an association that the peer has opened, from any thread but its own.

    A peer that does not answer loses nothing by it: its association goes on.
    """
    context = next(
        (one for one in association.accepted_contexts if one.abstract_syntax == COMMITMENT and one.context_id), None
    )
    if context is None or not association.is_established:
        return Answer(None, "the association is over")
    request = _request(report, context)
    with association.reporting:
        association.dimse.send_msg(request, context.context_id or 0)
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                _, response = association.dimse.msg_queue.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                return Answer(None, NO_ANSWER)
            if response is None:
                # Put there at the end of the association, for those who wait.
                association.dimse.msg_queue.put((None, None))
                return Answer(None, "the association ended before the answer")
            if isinstance(response, N_EVENT_REPORT) and response.MessageIDBeingRespondedTo == request.MessageID:
                return Answer(response.Status)


def report_anew(callee: Callee, calling_ae: str, report: Report, timeout_s: float) -> Answer:
    """Report on an association of our own, as the SCP that calls (PS3.4 J.2.1, J.3.3.1.2)."""
    context = build_context(COMMITMENT, list(SERVICE_SYNTAXES))
    role = build_role(COMMITMENT, scp_role=True)
    with associated(callee, calling_ae, [context], timeout_s, roles=[role]) as association:
        if isinstance(association, str):
            return Answer(None, association)
        if not any(accepted.as_scp for accepted in association.accepted_contexts):
            return Answer(None, "the peer does not take the role of an SCU of storage commitment")
        try:
            answer, _ = association.send_n_event_report(
                report.information(), report.event_type, COMMITMENT, COMMITMENT_INSTANCE
            )
        except (ValueError, RuntimeError) as error:
            return Answer(None, str(error).partition("\n")[0][:200])
        status = status_of(answer)
        return Answer(status, "" if status is not None else NO_ANSWER)


def _request(report: Report, context: PresentationContext) -> N_EVENT_REPORT:
    syntax = context.transfer_syntax[0]
    encoded = encode(report.information(), syntax.is_implicit_VR, syntax.is_little_endian)
    assert encoded is not None
    request = N_EVENT_REPORT()
    request.MessageID = next(_message_ids) % 0xFFFF + 1
    request.AffectedSOPClassUID = COMMITMENT
    request.AffectedSOPInstanceUID = COMMITMENT_INSTANCE
    request.EventTypeID = report.event_type
    request.EventInformation = BytesIO(encoded)
    return request


def _references(references: Iterable[Reference]) -> Sequence:
    items = []
    for reference in references:
        item = Dataset()
        item.ReferencedSOPClassUID = reference.sop_class
        item.ReferencedSOPInstanceUID = reference.sop_instance
        items.append(item)
    return Sequence(items)
