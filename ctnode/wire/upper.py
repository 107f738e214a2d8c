"""The upper layer of pynetdicom without a thread and without polling (PS3.8 9.2).

Whoever owns the association calls ``step()``: it reads what has come, hands whole PDUs to the state machine or to the
messages, and waits for no longer than a deadline.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Final, cast

from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket

from ctnode.wire.command import NOT_SPECIFIED, UNEXPECTED_PDU, UNRECOGNIZED_PDU, Malformed
from ctnode.wire.messages import Assembler
from ctnode.wire.negotiation import ResultItems
from ctnode.wire.peers import Reject
from ctnode.wire.request import review
from ctnode.wire.stream import Filled, Stream

ASSOCIATE_LIMIT_BYTES: Final = 1 << 20
CONTROL_LIMIT_BYTES: Final = 1 << 10
# A message that comes slower than this, over idle_timeout_s, only holds a place.
SLOWEST_BYTES_S: Final = 64
CLOSING: Final = "Sta13"
TRANSPORT_CLOSED: Final = "Evt17"
ARTIM_EXPIRED: Final = "Evt18"
INVALID_PDU: Final = "Evt19"

_PDU_HEADER: Final = struct.Struct(">BBL")
_A_ASSOCIATE_RQ: Final = 0x01
_P_DATA_TF: Final = 0x04
_KNOWN_PDUS: Final = range(0x01, 0x08)
# The longest PDU of each kind that is read; of data it is what the peer was told.
_LIMITS_BYTES: Final = dict.fromkeys(_KNOWN_PDUS, CONTROL_LIMIT_BYTES) | {_A_ASSOCIATE_RQ: ASSOCIATE_LIMIT_BYTES}
_BY_PROVIDER: Final = 2
_IDLE: Final = "Sta1"
_AWAITING_REQUEST: Final = "Sta2"
_ESTABLISHED: Final = "Sta6"
_RELEASE_RQ: Final = 0x05
_ABORT: Final = 0x07
# What a peer may send where the node has asked for nothing.
_EXPECTED: Final = {
    _AWAITING_REQUEST: (_A_ASSOCIATE_RQ, _ABORT),
    _ESTABLISHED: (_P_DATA_TF, _RELEASE_RQ, _ABORT),
}


class SyncSocket(AssociationSocket):
    """The transport of pynetdicom over a stream."""

    def __init__(self, assoc: Association, stream: Stream, timeout_s: float) -> None:
        super().__init__(assoc, client_socket=stream.connection)
        self._stream = stream
        self._timeout_s = timeout_s

    def send(self, bytestream: bytes) -> None:
        """Send, or tell the state machine that the connection is gone."""
        try:
            self._stream.send(bytestream, time.monotonic() + self._timeout_s)
        except OSError:
            cast(SyncDul, self.assoc.dul).is_lost = True
            self.event_queue.put(TRANSPORT_CLOSED)


class SyncDul(DULServiceProvider):
    """The upper layer without a thread of its own.

    Parameters
    ----------
    assoc
        The association.
    stream
        Its connection.
    max_pdu_bytes
        What the peer is told it may send in one PDU.
    idle_timeout_s
        Seconds from one whole PDU to the next.
    pdu_timeout_s
        Seconds from the first byte of a PDU to its last.
    """

    def __init__(
        self, assoc: Association, stream: Stream, max_pdu_bytes: int, idle_timeout_s: float, pdu_timeout_s: float
    ) -> None:
        super().__init__(assoc)
        self.stream = stream
        # The insides of the queues, looked at before these are asked: an exception for each that is empty would cost
        # more than the rest of a PDU.
        self._events = self.event_queue.queue
        self._primitives = self.to_provider_queue.queue
        self._requests = self.to_user_queue.queue
        self.assembler: Assembler | None = None
        self.is_lost = False
        # Why the node ended what the peer did not end itself: a word to count under, and a sentence for the log.
        self.cause = ""
        self.why = ""
        # An A-ASSOCIATE-RQ that can be read and not be accepted; the contexts it proposes, and the results of ours.
        self.rejection: Reject | None = None
        self.proposed: tuple[PresentationContext, ...] = ()
        self.results: tuple[PresentationContext, ...] = ()
        self._abort_reason = NOT_SPECIFIED
        self._limits_bytes = {**_LIMITS_BYTES, _P_DATA_TF: max_pdu_bytes}
        self._idle_timeout_s = idle_timeout_s
        self._pdu_timeout_s = pdu_timeout_s
        self._active_at_s = time.monotonic()
        # When the PDU at the start of the buffer was first seen to be cut off; 0 while there is none.
        self._partial_at_s = 0.0
        # From when on, and after how many bytes, the pace of a message is judged.
        self._paced_at_s = 0.0
        self._paced_bytes = 0
        self._received_bytes = 0
        # How much has to be in the buffer before there is anything to do.
        self._wanted_bytes = 1
        self._own_thread = 0

    @property
    def is_own_thread(self) -> bool:
        """Return whether the caller is the thread that drives this association."""
        return threading.get_ident() == self._own_thread

    @property
    def is_over(self) -> bool:
        """Return whether the state machine is idle again, or on its way there."""
        return self._kill_thread or self.state_machine.current_state in (_IDLE, CLOSING)

    def agree(self, max_pdu_bytes: int, idle_timeout_s: float, pdu_timeout_s: float) -> None:
        """Take over the limits of the peer, once it is known who it is."""
        self._limits_bytes[_P_DATA_TF] = max_pdu_bytes
        self._idle_timeout_s = idle_timeout_s
        self._pdu_timeout_s = pdu_timeout_s

    def adopt_thread(self) -> None:
        """Make the calling thread the one that drives."""
        self._own_thread = threading.get_ident()

    def touch(self) -> None:
        """Begin the silence that ``idle_timeout_s`` limits anew: the node itself was busy."""
        self._active_at_s = time.monotonic()

    def is_alive(self) -> bool:
        """Return False: there is no thread that pynetdicom would have to wait for."""
        return False

    def send_pdu(self, primitive: Any) -> None:
        """Queue a primitive; the association's own thread sends it at once, others wake that thread."""
        super().send_pdu(primitive)
        if self.is_own_thread:
            self.flush()
        else:
            self.stream.wake()

    def send_bytes(self, data: bytes) -> None:
        """Send encoded PDUs as they are."""
        if self.socket is not None and not self.is_over:
            self.socket.send(data)
            self.flush()

    def receive_pdu(self, wait: bool = False, timeout: float | None = None) -> Any:
        """Return what the peer asks of the association; the own thread drives the connection while waiting."""
        if wait and self.is_own_thread:
            self.pump_until(lambda: not self.to_user_queue.empty(), timeout)
            wait = False
        return super().receive_pdu(wait, timeout)

    def pump_until(self, condition: Callable[[], bool], timeout_s: float | None) -> None:
        """Drive the connection until the condition holds, the time is over, or the association is."""
        deadline_s = time.monotonic() + (self._idle_timeout_s if timeout_s is None else timeout_s)
        self.flush()
        while not condition() and not self.is_over:
            if not self.step(deadline_s):
                return

    def flush(self) -> None:
        """Let the state machine act on everything that waits."""
        while not self._kill_thread:
            if self._events:
                self._act(self.event_queue.get_nowait())
            elif not self._primitives or not self._process_recv_primitive():
                return

    def _act(self, event: str) -> None:
        try:
            self.state_machine.do_action(event)
        except InvalidEventError:
            # A primitive that came too late, such as an answer to a peer that has gone; the peer's own events fit all
            # states in which there is a connection.
            if not self.to_provider_queue.empty():
                self.to_provider_queue.get_nowait()
        except Exception as error:  # noqa: BLE001 - pynetdicom raises whatever hostile bytes make it raise
            self.blame("malformed", f"what the peer sent cannot be read: {type(error).__name__} at {event}")
            if event == INVALID_PDU:
                self._kill_thread = True
            else:
                self._kill_thread = False
                self.event_queue.put(INVALID_PDU)

    def step(self, deadline_s: float | None = None) -> bool:
        """Handle what has come, or wait for more bytes.

        Parameters
        ----------
        deadline_s
            On the monotonic clock; never later than the idle time-out.

        Returns
        -------
        bool
            False if the deadline passed.
        """
        self.flush()
        if self._kill_thread or self._take_pdus():
            return True
        had_bytes = self.stream.available_bytes
        patience_s = self._patience_s()
        until_s = patience_s if deadline_s is None else min(deadline_s, patience_s)
        outcome = self.stream.fill(until_s, wanted_bytes=self._wanted_bytes)
        self._received_bytes += self.stream.available_bytes - had_bytes
        if outcome is Filled.DATA:
            self._take_pdus()
        elif outcome is Filled.CLOSED:
            self.is_lost = True
            self.cut(TRANSPORT_CLOSED)
        elif outcome is Filled.EXPIRED and (deadline_s is None or patience_s <= deadline_s):
            self.blame_silence()
        return outcome is not Filled.EXPIRED

    def _patience_s(self) -> float:
        """Return until when there must be more from the peer."""
        patience_s = self._active_at_s + self._idle_timeout_s
        if self._partial_at_s:
            patience_s = min(patience_s, self._partial_at_s + self._pdu_timeout_s)
        if not self._is_in_message:
            self._paced_at_s = 0.0
            return patience_s
        if not self._paced_at_s or self._received_bytes - self._paced_bytes >= SLOWEST_BYTES_S * self._idle_timeout_s:
            self._paced_at_s, self._paced_bytes = time.monotonic(), self._received_bytes
        return min(patience_s, self._paced_at_s + self._idle_timeout_s)

    @property
    def _is_in_message(self) -> bool:
        return self.assembler is not None and self.assembler.in_message

    def blame_silence(self) -> None:
        """Tell by what the peer left undone why its time was over."""
        if self._partial_at_s:
            self.blame("slow", "a PDU does not come to its end")
        elif self.state_machine.current_state == _AWAITING_REQUEST:
            self.blame("silent", "no request came in time")
        elif self._is_in_message:
            self.blame("slow", "a message does not get on")
        else:
            self.blame("idle", "the peer is silent")

    def blame(self, cause: str, why: str) -> None:
        """Remember why the association is to end; what came first counts."""
        if not self.cause:
            self.cause, self.why = cause, why

    def refuse(self, fault: Malformed) -> None:
        """Tell the state machine that the peer sent what cannot be (PS3.8 Table 9-10, Evt19)."""
        self.blame(fault.cause, fault.why)
        self._abort_reason = fault.reason
        self._wanted_bytes = 1
        self.stream.consume(self.stream.available_bytes)
        self.cut(INVALID_PDU)

    def _send(self, pdu: Any) -> None:
        # pynetdicom gives no reason with an A-ABORT of the provider (PS3.8 Table 9-26).
        if isinstance(pdu, A_ABORT_RQ) and pdu.source == _BY_PROVIDER:
            pdu.reason_diagnostic = self._abort_reason
        if isinstance(pdu, A_ASSOCIATE_AC):
            # Behind the application context (PS3.8 Table 9-17).
            pdu.variable_items.insert(1, ResultItems(self.results))  # type: ignore[arg-type]
        super()._send(pdu)

    def _take_pdus(self) -> bool:
        """Handle the whole PDUs at the start of the buffer until somebody has to act on one; False if there is none."""
        stream = self.stream
        if stream.end - stream.start < self._wanted_bytes or not self._take_pdu():
            return False
        # Data of an instance concerns nobody else: the next PDU may follow at once.
        while stream.end - stream.start >= self._wanted_bytes and self._is_undisturbed() and self._take_pdu():
            pass
        self.flush()
        return True

    def _is_undisturbed(self) -> bool:
        """Return whether the data of an instance go on and nobody else has anything to do."""
        return self._is_in_message and not (self._events or self._primitives or self._requests or self._kill_thread)

    def _take_pdu(self) -> bool:
        """Handle the PDU at the start of the buffer if it is whole; nothing is buffered beyond the limits."""
        stream = self.stream
        available = stream.end - stream.start
        if available < _PDU_HEADER.size:
            return self._lacks(_PDU_HEADER.size if available else 1)
        kind, _reserved, length = _PDU_HEADER.unpack_from(stream.view, stream.start)
        if length > self._limits_bytes.get(kind, -1):
            self.refuse(self._header_fault(kind))
            return True
        whole = _PDU_HEADER.size + length
        if available < whole:
            return self._lacks(whole)
        self._partial_at_s = 0.0
        self._wanted_bytes = 1
        pdu = stream.view[stream.start : stream.start + whole]
        try:
            if kind == _P_DATA_TF and self.assembler is not None and self.state_machine.current_state == _ESTABLISHED:
                self.assembler.take(pdu[_PDU_HEADER.size :])
            else:
                self._decode(pdu)
        except Malformed as fault:
            self.refuse(fault)
            return True
        self._active_at_s = time.monotonic()
        stream.consume(whole)
        return True

    def _lacks(self, wanted_bytes: int) -> bool:
        """Make room for what is missing and note since when it is."""
        self._wanted_bytes = wanted_bytes
        self.stream.require(max(wanted_bytes, _PDU_HEADER.size))
        if wanted_bytes > 1:
            self._partial_at_s = self._partial_at_s or time.monotonic()
        return False

    def _header_fault(self, kind: int) -> Malformed:
        if kind in _KNOWN_PDUS:
            return Malformed("a PDU is longer than it may be", cause="oversized")
        # Before a request it is some other protocol, or a scanner, rather than a sender with a fault.
        is_first = self.state_machine.current_state == _AWAITING_REQUEST
        return Malformed("what came is no PDU", reason=UNRECOGNIZED_PDU, cause="garbage" if is_first else "malformed")

    def _decode(self, pdu: memoryview) -> None:
        whole = bytearray(pdu)
        state = self.state_machine.current_state
        if pdu[0] not in _EXPECTED.get(state, _KNOWN_PDUS):
            # The state machine would refuse it too, but could not tell why.
            raise Malformed("a PDU of a kind that is not due", reason=UNEXPECTED_PDU, cause="unexpected")
        if state == _AWAITING_REQUEST and pdu[0] == _A_ASSOCIATE_RQ:
            reviewed = review(pdu)
            whole, self.proposed, self.rejection = reviewed.head, reviewed.contexts, reviewed.rejection
        try:
            decoded, event = self._decode_pdu(whole)
        except Exception as error:
            # The decoder of pynetdicom raises whatever hostile bytes make it raise.
            raise Malformed("the PDU cannot be decoded") from error
        self._recv_pdu.put(decoded)
        self.event_queue.put(event)

    def cut(self, event: str) -> None:
        """Let the state machine know of a time-out or a lost connection."""
        self.event_queue.put(event)
        self.flush()
