"""The services besides C-STORE and C-ECHO: procedure steps, commitment requests, availability (PS3.4 F, J, R).

A receiver parses what the answer needs, writes the request into the journal, notes the state of its UID where every
receiver finds it, and answers. What follows from a request is the affair of other roles.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, cast

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.dimse_primitives import N_ACTION, N_CREATE, N_DELETE, N_EVENT_REPORT, N_GET, N_SET

from ctnode.archive.layout import require_keepable
from ctnode.archive.ledger import Ledger
from ctnode.archive.notices import STEP_STATUS, TRANSACTION, NoticeKind, journal_fields, listed_in, parse
from ctnode.archive.spool import Journal
from ctnode.archive.tree import Item
from ctnode.ops import log
from ctnode.wire.service_classes import AVAILABILITY, COMMITMENT, COMMITMENT_INSTANCE, PROCEDURE_STEP
from ctnode.words import BadInstance, StorageError

if TYPE_CHECKING:
    from ctnode.wire.reactor import SyncAssociation

# PS3.7 C.
SUCCESS: Final = 0x0000
INVALID_VALUE: Final = 0x0106
PROCESSING_FAILURE: Final = 0x0110
DUPLICATE_INSTANCE: Final = 0x0111
NO_SUCH_INSTANCE: Final = 0x0112
INVALID_ARGUMENT: Final = 0x0115
NO_SUCH_CLASS: Final = 0x0118
MISSING_ATTRIBUTE: Final = 0x0120
MISSING_VALUE: Final = 0x0121
NO_SUCH_ACTION: Final = 0x0123
DUPLICATE_TRANSACTION: Final = 0x0131
UNRECOGNIZED_OPERATION: Final = 0x0211
MISTYPED_ARGUMENT: Final = 0x0212
RESOURCE_LIMITATION: Final = 0x0213
# PS3.4 Table F.7.2-2: the performed procedure step may no longer be updated.
NO_LONGER_UPDATED: Final = 0xA710

IN_PROGRESS: Final = "IN PROGRESS"
FINAL_STATES: Final = frozenset({"COMPLETED", "DISCONTINUED"})
_REQUEST_COMMITMENT: Final = 1

_NORMALIZED: Final = (N_ACTION, N_CREATE, N_DELETE, N_EVENT_REPORT, N_GET, N_SET)
_SERVED: Final[Mapping[str, tuple[type, ...]]] = {
    PROCEDURE_STEP: (N_CREATE, N_SET),
    COMMITMENT: (N_ACTION, N_EVENT_REPORT),
    AVAILABILITY: (N_CREATE,),
}


class Refused(Exception):
    """A request that is answered with a failure."""

    def __init__(self, status: int, why: str, *, error_id: int | None = None) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.error_id = error_id


def refusal(request: Any, abstract_syntax: str) -> Any:
    """Return the response to a DIMSE-N request that its presentation context does not allow, or None.

    pynetdicom would choose the service by the class that the request names, whatever was negotiated.
    """
    if not isinstance(request, _NORMALIZED):
        return None
    named = getattr(request, "RequestedSOPClassUID", None) or getattr(request, "AffectedSOPClassUID", None)
    if named != abstract_syntax:
        status = NO_SUCH_CLASS
    elif not isinstance(request, _SERVED.get(abstract_syntax, ())):
        status = UNRECOGNIZED_OPERATION
    elif not request.is_valid_request:
        status = MISTYPED_ARGUMENT
    else:
        return None
    response = type(request)()
    response.MessageIDBeingRespondedTo = request.MessageID
    response.Status = status
    return response


class Normalized:
    """Answers the DIMSE-N requests of one association.

    Parameters
    ----------
    journal
        Of the association.
    ledger
        Of the node.
    calling_ae
        Who asks.
    on_kept
        Called after each request that was kept.
    """

    def __init__(self, journal: Journal, ledger: Ledger, calling_ae: str, on_kept: Callable[[], None]) -> None:
        self._journal = journal
        self._on_kept = on_kept
        self._ledger = ledger
        self._calling_ae = calling_ae

    def serve(self, association: SyncAssociation) -> None:
        """Take the requests of an association."""
        association.bind(evt.EVT_N_CREATE, self._on_create)
        association.bind(evt.EVT_N_SET, self._on_set)
        association.bind(evt.EVT_N_ACTION, self._on_action)
        association.bind(evt.EVT_N_EVENT_REPORT, self._on_report)

    def _on_create(self, event: evt.Event) -> tuple[int | Dataset, Dataset | None]:
        request = cast(N_CREATE, event.request)
        uid = str(request.AffectedSOPInstanceUID or "")
        reply = None
        if not uid:
            # PS3.7 10.1.5.1.4: who creates without a UID is told the one that it got.
            uid = f"2.25.{uuid.uuid4().int}"
            reply = Dataset()
            reply.AffectedSOPInstanceUID = uid
        kind = NoticeKind.STEP if request.AffectedSOPClassUID == PROCEDURE_STEP else NoticeKind.AVAILABILITY
        make = self._create_step if kind is NoticeKind.STEP else self._create_availability
        return self._answer(kind, uid, lambda: make(uid, *_data_set(event, request.AttributeList))), reply

    def _on_set(self, event: evt.Event) -> tuple[int | Dataset, None]:
        request = cast(N_SET, event.request)
        uid = str(request.RequestedSOPInstanceUID)
        data, syntax = _data_set(event, request.ModificationList)
        return self._answer(NoticeKind.STEP, uid, lambda: self._set_step(uid, data, syntax)), None

    def _on_action(self, event: evt.Event) -> tuple[int | Dataset, None]:
        request = cast(N_ACTION, event.request)
        data, syntax = _data_set(event, request.ActionInformation)

        def act() -> None:
            if request.RequestedSOPInstanceUID != COMMITMENT_INSTANCE:
                raise Refused(NO_SUCH_INSTANCE, "not the instance of storage commitment")
            if request.ActionTypeID != _REQUEST_COMMITMENT:
                raise Refused(NO_SUCH_ACTION, "storage commitment has one action, 1")
            self._request_commitment(data, syntax)

        return self._answer(NoticeKind.COMMITMENT, "", act), None

    def _on_report(self, event: evt.Event) -> tuple[int | Dataset, None]:
        """Take what a peer answers to a commitment request of ours, on an association of its own (PS3.4 J.3.3)."""
        request = cast(N_EVENT_REPORT, event.request)
        data, syntax = _data_set(event, request.EventInformation)

        def act() -> None:
            transaction = parse(data, syntax).text(TRANSACTION)
            if not transaction:
                raise Refused(INVALID_ARGUMENT, "no Transaction UID")
            require_keepable(transaction, "Transaction UID")
            # One that nobody asked for changes nothing, and one that comes twice says the same twice.
            self._journal.notice(NoticeKind.REPORT, journal_fields(transaction, "N-EVENT-REPORT", syntax, data))

        return self._answer(NoticeKind.REPORT, "", act), None

    def _answer(self, kind: NoticeKind, uid: str, act: Callable[[], None]) -> int | Dataset:
        """Do what was asked and return the status; nothing that a peer sends ends in an exception."""
        try:
            if uid:
                require_keepable(uid, "SOP Instance UID")
            act()
        except Refused as refused:
            fault = refused
        except StorageError as error:
            fault = Refused(RESOURCE_LIMITATION, error.message)
        except BadInstance as error:
            fault = Refused(INVALID_VALUE, error.message)
        except Exception as error:  # noqa: BLE001 - one request that breaks our own code costs itself only
            log.get().error("request failed", exception=type(error).__name__, calling_ae=self._calling_ae)
            fault = Refused(PROCESSING_FAILURE, "the node failed on this request")
        else:
            log.get().info("request kept", what=str(kind), calling_ae=self._calling_ae)
            self._on_kept()
            return SUCCESS
        log.get().warning(
            "request refused",
            what=str(kind),
            status=f"{fault.status:04X}",
            error=fault.why,
            calling_ae=self._calling_ae,
        )
        self._journal.note("refused", {"status": fault.status, "comment": fault.why, "sop_instance": uid})
        answer = Dataset()
        answer.Status = fault.status
        answer.ErrorComment = fault.why[:64]
        if fault.error_id is not None:
            answer.ErrorID = fault.error_id
        return answer

    # ------------------------------------------------------------------------------------------------- services

    def _create_step(self, uid: str, data: bytes, syntax: str) -> None:
        """Begin a performed procedure step (PS3.4 F.7.2.1)."""
        item = parse(data, syntax)
        if STEP_STATUS not in item.values:
            raise Refused(MISSING_ATTRIBUTE, "no Performed Procedure Step Status")
        status = item.text(STEP_STATUS)
        if not status:
            raise Refused(MISSING_VALUE, "the Performed Procedure Step Status is empty")
        if status != IN_PROGRESS:
            raise Refused(INVALID_VALUE, "a procedure step begins IN PROGRESS")
        self._begin(NoticeKind.STEP, uid, "N-CREATE", data, syntax, status, DUPLICATE_INSTANCE)

    def _set_step(self, uid: str, data: bytes, syntax: str) -> None:
        """Go on with a procedure step, or end it (PS3.4 F.7.2.2)."""
        item = parse(data, syntax)
        status = item.text(STEP_STATUS) or IN_PROGRESS
        if status != IN_PROGRESS and status not in FINAL_STATES:
            raise Refused(INVALID_VALUE, "no status of a procedure step")
        with self._ledger.entry(NoticeKind.STEP, uid, must_exist=True) as entry:
            if entry is None or entry.record is None:
                raise Refused(NO_SUCH_INSTANCE, "no procedure step of this UID")
            if entry.record.get("status") in FINAL_STATES:
                raise Refused(
                    PROCESSING_FAILURE, "the procedure step may no longer be updated", error_id=NO_LONGER_UPDATED
                )
            self._journal.notice(NoticeKind.STEP, journal_fields(uid, "N-SET", syntax, data))
            entry.write(self._record(uid, status))

    def _create_availability(self, uid: str, data: bytes, syntax: str) -> None:
        """Take an instance availability notification (PS3.4 R.3.2)."""
        item = parse(data, syntax)
        _require_list(item, NoticeKind.AVAILABILITY, MISSING_ATTRIBUTE)
        self._begin(NoticeKind.AVAILABILITY, uid, "N-CREATE", data, syntax, "", DUPLICATE_INSTANCE)

    def _request_commitment(self, data: bytes, syntax: str) -> None:
        """Take a request to vouch for instances (PS3.4 J.3.2)."""
        item = parse(data, syntax)
        transaction = item.text(TRANSACTION)
        if not transaction:
            raise Refused(INVALID_ARGUMENT, "no Transaction UID")
        require_keepable(transaction, "Transaction UID")
        _require_list(item, NoticeKind.COMMITMENT, INVALID_ARGUMENT)
        self._begin(NoticeKind.COMMITMENT, transaction, "N-ACTION", data, syntax, "", DUPLICATE_TRANSACTION)

    def _begin(
        self, kind: NoticeKind, uid: str, operation: str, data: bytes, syntax: str, status: str, duplicate: int
    ) -> None:
        """Keep a request whose UID must be new.

        The journal comes first: a request that is in it twice says the same twice, one that is only in the ledger would
        be refused when it comes again, and be lost.
        """
        with self._ledger.entry(kind, uid) as entry:
            assert entry is not None
            if entry.record is not None:
                raise Refused(duplicate, "this UID is in use already")
            self._journal.notice(kind, journal_fields(uid, operation, syntax, data))
            entry.write(self._record(uid, status))

    def _record(self, uid: str, status: str) -> dict[str, object]:
        return {"uid": uid, "status": status, "calling_ae": self._calling_ae, "at": time.time()}


def _require_list(item: Item, kind: NoticeKind, status: int) -> None:
    if not any(series.references for series in listed_in(item, kind)):
        raise Refused(status, "the request names no instance")


def _data_set(event: evt.Event, data: BytesIO | None) -> tuple[bytes, str]:
    return data.getvalue() if data is not None else b"", str(event.context.transfer_syntax)
