"""pynetdicom made event-driven: the thread of an association drives its state machine itself.

Stock pynetdicom runs two threads for each association, and both poll. Here one thread waits for the socket and for a
wake-up descriptor, and calls the state machine of pynetdicom for all that concerns the association (PS3.8 9.2):
negotiation, release, abort, and every service but C-STORE. P-DATA of an established association goes to
``ctnode.wire.messages`` straight from the buffer.

``send_*`` works on an accepted association from any thread and from a handler: another thread queues its primitives and
wakes this one; a handler that waits for a response pumps the connection meanwhile. Responses and requests of the peer
are kept apart, so that neither is taken for the other.

What this relies on in pynetdicom 3.0 is written down in ``tests/unit/test_pynetdicom_private.py``.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol, cast

from pynetdicom import evt
from pynetdicom.acse import ACSE
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL
from pynetdicom.pdu_primitives import A_ASSOCIATE, P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation

from ctnode.archive.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from ctnode.wire.command import Command, Malformed, TooMuch, command_pdus, store_response
from ctnode.wire.contexts import Supported, needed_contexts
from ctnode.wire.messages import Assembler, Store
from ctnode.wire.negotiation import negotiate
from ctnode.wire.normalized import refusal
from ctnode.wire.peers import CONGESTED, Reject, Terms
from ctnode.wire.stream import Stream
from ctnode.wire.upper import ARTIM_EXPIRED, CLOSING, TRANSPORT_CLOSED, SyncDul, SyncSocket
from ctnode.words import StorageError

WAITING_REQUESTS: Final = 32
LINGER_S: Final = 5.0
# Length, context and control of a PDV: a peer that takes no more than these cannot be obeyed.
PDV_OVERHEAD_BYTES: Final = 6


class Session(Store, Protocol):
    """What the services of the node do for one association."""

    @property
    def terms(self) -> Terms:
        """Return what an admitted association may do."""

    def admit(self, calling_ae: str, called_ae: str) -> Reject | None:
        """Decide on the association; None is a yes."""

    def open(self, association: SyncAssociation) -> None:
        """Write down what was negotiated, before it is answered; raises StorageError if that cannot be kept."""

    def close(self, how: str, cause: str = "", why: str = "") -> None:
        """Write down how it ended, and what the peer was cut for; the first call counts."""


class SyncDimse(DIMSEServiceProvider):
    """Messages of an association; responses wait in pynetdicom's queue, requests of the peer beside it."""

    def __init__(self, assoc: SyncAssociation) -> None:
        super().__init__(assoc)
        self.requests: deque[tuple[int, Any]] = deque()
        self._sending = threading.Lock()

    @property
    def maximum_pdu_size(self) -> int:
        """Return what the peer takes in one PDU; 0, no limit, where it names none or less than any PDV needs."""
        limit = self.assoc.requestor.maximum_length or 0
        return limit if limit > PDV_OVERHEAD_BYTES else 0

    def take_fragment(self, context_id: int, data: bytes) -> None:
        """Take a fragment of a message that is no C-STORE request."""
        primitive = P_DATA()
        primitive.presentation_data_value_list = [[context_id, data]]  # type: ignore[list-item]
        self.receive_primitive(primitive)

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Decode what is complete; whatever pynetdicom cannot decode ends the association."""
        if self.message is None:
            self.message = DIMSEMessage()
        try:
            if not self.message.decode_msg(primitive, self.assoc):
                return
            message = self.message.message_to_primitive()
        except Exception as error:
            # The decoder of pynetdicom raises whatever hostile bytes make it raise.
            raise Malformed("the message cannot be decoded") from error
        context_id = cast(int, self.message.context_id)
        self.message = None
        if isinstance(message, C_CANCEL):
            if len(self.cancel_req) < WAITING_REQUESTS:
                self.cancel_req[cast(int, message.MessageIDBeingRespondedTo)] = message
        elif message.MessageIDBeingRespondedTo is not None:
            self.msg_queue.put((context_id, message))
        elif len(self.requests) >= WAITING_REQUESTS:
            raise TooMuch("too many requests wait for an answer")
        else:
            self.requests.append((context_id, message))

    def get_msg(self, block: bool = False) -> Any:
        """Return the next response; in the association's own thread the connection is driven while waiting."""
        dul = cast(SyncDul, self.dul)
        if block and dul.is_own_thread:
            dul.pump_until(lambda: not self.msg_queue.empty(), self.dimse_timeout)
            return super().get_msg(block=False)
        return super().get_msg(block)

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Queue all PDUs of a message together, whichever threads send."""
        with self._sending:
            super().send_msg(primitive, context_id)

    def answer_store(self, context_id: int, command: Command, status: int, comment: str) -> None:
        """Send a C-STORE-RSP without the detour over primitives."""
        with self._sending:
            dul = cast(SyncDul, self.dul)
            dul.flush()
            dul.send_bytes(command_pdus(context_id, store_response(command, status, comment), self.maximum_pdu_size))


class SyncAcse(ACSE):
    """Negotiation that writes down its result before the peer learns it."""

    def accept(self, request: A_ASSOCIATE, allowed: Sequence[PresentationContext]) -> None:
        """Negotiate, open the journal, then accept; an error of the journal leaves the request unanswered yet.

        User identities, operations in advance and extended negotiation are passed over, as PS3.7 D.3.3 allows.
        """
        association = cast(SyncAssociation, self.assoc)
        self.requestor.ae_title = request.calling_ae_title
        roles = {uid: (item.scu_role, item.scp_role) for uid, item in self.requestor.role_selection.items()}
        results, answers = negotiate(association.dul.proposed, allowed, roles)
        association.take_results(results)
        for answer in answers:
            self.acceptor.add_negotiation_item(answer)
        association.session.open(association)
        answer = A_ASSOCIATE()
        answer.application_context_name = request.application_context_name
        answer.calling_ae_title, answer.called_ae_title = request.calling_ae_title, request.called_ae_title
        answer.result, answer.result_source = 0x00, 0x01
        answer.user_information = self.acceptor.user_information
        self.acceptor.primitive = answer
        self.dul.send_pdu(answer)
        association.is_established = True


class _Checkpoint(threading.Event):
    """pynetdicom's pause button; letting go of it wakes the thread that has requests waiting."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream

    def set(self) -> None:
        super().set()
        self._stream.wake()


_DEFAULT_HANDLERS: Final = {event: (evt.get_default_handler(event), None) for event in evt._INTERVENTION_EVENTS}  # noqa: SLF001


class SyncAssociation(Association):
    """One accepted association; ``start()`` runs it in its own thread until it is over.

    Parameters
    ----------
    ae
        The local application entity.
    stream
        The accepted connection.
    session
        What the node does with it.
    supported
        Presentation contexts by abstract syntax.
    peer_name, own_name
        The addresses of its two ends.
    max_pdu_bytes, request_timeout_s, idle_timeout_s, pdu_timeout_s
        As configured for the receiver.
    """

    def __init__(
        self,
        ae: ApplicationEntity,
        stream: Stream,
        session: Session,
        supported: Supported,
        *,
        peer_name: Any,
        own_name: Any,
        max_pdu_bytes: int,
        request_timeout_s: float,
        idle_timeout_s: float,
        pdu_timeout_s: float,
    ) -> None:
        super().__init__(ae, "acceptor")
        self.session = session
        self.stream = stream
        self.supported = supported
        self._request_timeout_s = request_timeout_s
        self._drain_wanted = False
        # Held by who reports on this association: one request of ours at a time.
        self.reporting = threading.Lock()
        self.acse: SyncAcse = SyncAcse(self)
        self.dul: SyncDul = SyncDul(self, stream, max_pdu_bytes, idle_timeout_s, pdu_timeout_s)
        self.dimse: SyncDimse = SyncDimse(self)
        self.dul.assembler = Assembler(
            session, lambda number: number in self._accepted_cx, self.dimse.answer_store, self.dimse.take_fragment
        )
        self.dul.artim_timer.timeout = request_timeout_s
        self.dul.socket = SyncSocket(self, stream, idle_timeout_s)
        self._reactor_checkpoint = _Checkpoint(stream)
        self._reactor_checkpoint.set()
        # The reactor never takes what a sending thread waits for, so there is nothing to pause.
        self._is_paused = True
        self.acceptor.maximum_length = max_pdu_bytes
        self.acceptor.ae_title = ae.ae_title
        self.acceptor.implementation_class_uid = IMPLEMENTATION_CLASS_UID  # type: ignore[assignment]
        self.acceptor.implementation_version_name = IMPLEMENTATION_VERSION
        self.acceptor.address_info = _address(own_name)
        self.requestor.address_info = _address(peer_name)

    def _bind_defaults(self) -> None:
        self._handlers.update(_DEFAULT_HANDLERS)

    def drain(self) -> None:
        """Abort the association soon; safe from any thread."""
        self._drain_wanted = True
        self.stream.wake()

    def run_reactor(self) -> None:
        """Negotiate, serve, end, and leave nothing open."""
        self.dul.adopt_thread()
        try:
            self._negotiate()
            if self.is_established:
                self._run_reactor()
        finally:
            # What has begun and not ended is discarded before the end is written down.
            self.session.close("lost", self.dul.cause, self.dul.why)
            # Who waits for an answer of the peer need not wait for his whole time.
            self.is_established = False
            self.dimse.msg_queue.put((None, None))
            if self.dul.state_machine.current_state == CLOSING:
                self.stream.linger(time.monotonic() + LINGER_S)
                self.dul.cut(TRANSPORT_CLOSED)
            self.stream.close()

    def _negotiate(self) -> None:
        request = self.dul.receive_pdu(wait=True, timeout=self._request_timeout_s)
        if not isinstance(request, A_ASSOCIATE):
            if not self.dul.is_over:
                self.dul.blame_silence()
                self.dul.cut(ARTIM_EXPIRED)
            return
        self.requestor.primitive = request
        rejection = self.session.admit(str(request.calling_ae_title), str(request.called_ae_title))
        # What the head of the request asks for is judged whoever sends it.
        rejection = self.dul.rejection or rejection
        if rejection is None:
            proposed = self.dul.proposed
            request.presentation_context_definition_list = list(proposed)
            terms = self.session.terms
            self.acceptor.maximum_length = terms.max_pdu_bytes
            self.dul.agree(terms.max_pdu_bytes, terms.idle_timeout_s, terms.pdu_timeout_s)
            try:
                self.acse.accept(request, needed_contexts(self.supported, proposed, terms.allow))
            except StorageError:
                rejection = CONGESTED
        if rejection is not None:
            self.session.close("rejected", why=rejection.why)
            self.acse.send_reject(rejection.result, rejection.source, rejection.reason)

    def take_results(self, results: Iterable[PresentationContext]) -> None:
        """Know which contexts were accepted; the answer carries the results."""
        self.dul.results = tuple(results)
        self._accepted_cx = {context.context_id or 0: context for context in self.dul.results if context.result == 0}
        self._rejected_cx = [context for context in self.dul.results if context.result != 0]

    def _run_reactor(self) -> None:
        while True:
            if self._drain_wanted:
                self._end("drained")
                self.acse.send_abort(0x00)
                return
            if not self.dul.step():
                # Between two messages it is the node that ends it, and nothing of the peer's is broken off.
                self._end("idle" if self.dul.cause == "idle" else "lost")
                self.acse.send_abort(0x02)
                return
            if self._reactor_checkpoint.is_set() and self._serve_waiting():
                return
            if self._kill or self.is_aborted or self.dul.is_over:
                # Whatever was sent last, such as the A-ABORT of abort(), is on its way.
                self.dul.flush()
                self._end("lost" if self.dul.is_lost else "aborted")
                return

    def _serve_waiting(self) -> bool:
        """Serve what the peer asked; True if it was released."""
        while self.dimse.requests and not self.dul.is_over:
            context_id, request = self.dimse.requests.popleft()
            refused = refusal(request, str(self._accepted_cx[context_id].abstract_syntax))
            if refused is not None:
                self.dimse.send_msg(refused, context_id)
            else:
                self._serve_request(request, context_id)
            self._is_paused = True
            self.dul.touch()
        # Looked at before it is asked, which would raise and catch on each turn.
        if self.dul.to_user_queue.queue and self.acse.is_release_requested():
            # The end is in the journal before the peer knows that it may go.
            self._end("released")
            self.acse.send_release(is_response=True)
            self.is_released = True
            return True
        return False

    def _end(self, how: str) -> None:
        self.is_established = False
        self.session.close(how, self.dul.cause, self.dul.why)


def _address(name: Any) -> AddressInformation:
    # An address needs no look-up, so the setter of AddressInformation, which makes one, is passed by.
    information = AddressInformation.__new__(AddressInformation)
    information._addr = str(name[0])  # noqa: SLF001
    information.port = int(name[1])
    information.flowinfo, information.scope_id = (name[2], name[3]) if len(name) == 4 else (0, 0)
    return information
