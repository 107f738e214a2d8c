"""What the node answers: every instance with a status of its own, and 0000H only for what is kept (PS3.4 B.2.3)."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from ctnode.archive.header import uid
from ctnode.archive.incoming import Incoming
from ctnode.archive.part10 import Opened
from ctnode.archive.spool import Journal
from ctnode.ops import log
from ctnode.wire.command import COMMENT_LIMIT, Command, TooMuch
from ctnode.wire.contexts import refusals
from ctnode.wire.normalized import Normalized
from ctnode.wire.peers import (
    CONGESTED,
    TOO_MANY,
    TOO_MANY_OF_PEER,
    Admit,
    Reject,
    Terms,
    decide,
    parse_address,
    terms_of,
)
from ctnode.wire.shared import Shared
from ctnode.words import UNKNOWN_PEER, BadInstance, CtnodeError, DimseStatus, StorageError, WrongContext

if TYPE_CHECKING:
    from ctnode.wire.reactor import SyncAssociation

# What is refused is read to its end, so that the association lives; but not without end.
_DRAIN_FACTOR: Final = 2
# Refused instances that the journal of an association names; its end counts them all.
REFUSALS_KEPT: Final = 100
# Refused instances of one status that an association logs; the line of its end counts them all.
REFUSALS_TOLD: Final = 3
# How a connection ended that never asked for an association.
UNNEGOTIATED: Final = "unnegotiated"


class NodeSession:
    """One association: who it is, its journal, and the instance that is on its way.

    Parameters
    ----------
    shared
        What the process shares.
    peer_name, own_name
        ``getpeername()`` and ``getsockname()`` of the connection.
    over_limit
        Whether there are too many associations already: it is rejected properly.
    is_tls
        Whether it came to the TLS port.
    """

    def __init__(
        self,
        shared: Shared,
        peer_name: tuple[str, int],
        own_name: tuple[str, int],
        *,
        over_limit: bool,
        is_tls: bool = False,
    ) -> None:
        self.how = ""
        self.peer: str | None = None
        # The names in the certificate that the peer proved to have.
        self.certificate: frozenset[str] = frozenset()
        self.terms: Terms = terms_of(None, shared.config)
        self._slot: int | None = None
        self._listening_address = shared.tls_listening_address if is_tls else shared.listening_address
        self._is_tls = is_tls
        self.calling_ae = ""
        self.called_ae = ""
        self._shared = shared
        self._peer_host = str(parse_address(peer_name[0]))
        self._peer_address = _join(peer_name)
        self._own_address = _join(own_name)
        self._over_limit = over_limit
        # Whether there was a request for an association.
        self.has_asked = False
        self._journal: Journal | None = None
        self._syntaxes: dict[int, str] = {}
        self._classes: dict[int, str] = {}
        self._instances: Counter[str] = Counter()
        self._reason = ""
        self._why = ""
        self._originators: set[str] = set()
        self._started_s = time.monotonic()
        self._incoming: Incoming | None = None
        self._fault: CtnodeError | None = None
        self._announced = ""
        self._taken_bytes = 0
        self._began_s = 0.0
        self._limit_bytes = 0

    # ------------------------------------------------------------------------------------------ association

    def admit(self, calling_ae: str, called_ae: str) -> Reject | None:
        """Decide on the association and remember why not."""
        self.has_asked = True
        self.calling_ae, self.called_ae = calling_ae.strip(), called_ae.strip()
        shared = self._shared
        decision = decide(
            calling_ae=calling_ae,
            called_ae=called_ae,
            peer_address=self._peer_host,
            listening_address=self._listening_address,
            config=shared.config,
            resolve=shared.resolver,
            certificate=self.certificate,
        )
        if isinstance(decision, Admit):
            self.peer = decision.peer
            self.terms = terms_of(self.peer, shared.config)
            if self._over_limit:
                decision = TOO_MANY
            elif not self._has_slot():
                decision = TOO_MANY_OF_PEER
            elif shared.storage_fault:
                decision = CONGESTED
                self._reason = shared.storage_fault
        if isinstance(decision, Reject):
            self._reason = self._reason or decision.why
            return decision
        return None

    def _has_slot(self) -> bool:
        """Take one of the peer's places, where it has a number of its own."""
        limit = self.terms.max_associations
        if limit is None or self.peer is None or self._shared.slots is None:
            return True
        try:
            self._slot = self._shared.slots.take(self.peer, limit)
        except OSError as error:
            log.get().error("associations of a peer cannot be counted", peer=self.peer, error=error.strerror)
            return False
        return self._slot is not None

    def open(self, association: SyncAssociation) -> None:
        """Open the journal with what was negotiated.

        Raises
        ------
        StorageError
            If there is no room or the storage does not take it.
        """
        self._syntaxes = {
            int(context.context_id or 0): str(context.transfer_syntax[0]) for context in association.accepted_contexts
        }
        self._classes = {
            int(context.context_id or 0): str(context.abstract_syntax) for context in association.accepted_contexts
        }
        opened = Opened(
            door="network",
            calling_ae=self.calling_ae,
            called_ae=self.called_ae,
            peer_address=self._peer_address,
            own_address=self._own_address,
            accepted=tuple((str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in association.accepted_contexts),
            refused=refusals(
                association.supported, association.requestor.requested_contexts, association.rejected_contexts
            ),
            peer=self.peer or "",
            is_tls=self._is_tls,
        )
        try:
            self._journal = self._shared.spool.open_association(opened)
        except StorageError as error:
            self._reason = error.message
            raise
        # This thread is the association's own.
        log.bind(association=self._journal.name)
        Normalized(self._journal, self._shared.ledger, self.calling_ae, self._shared.doorbell.ring).serve(association)

    @property
    def journal_name(self) -> str:
        """Return the name of the association; empty before it is open."""
        return self._journal.name if self._journal is not None else ""

    def close(self, how: str, cause: str = "", why: str = "") -> None:
        """Discard what has not ended, end the journal, and say so once."""
        if self.how:
            return
        self.how = how if self.has_asked else UNNEGOTIATED
        self._why = self._reason or why
        self._discard()
        if self._slot is not None:
            os.close(self._slot)
        if not self.has_asked:
            self._shared.tally.count_end(self.how, cause)
            self._shared.knocks.count(self._peer_host, cause or "closed")
            return
        if self._journal is not None:
            self._journal.close(how, statuses=dict(self._instances), reason=self._why)
            self._shared.doorbell.ring()
        self._shared.tally.count_end(how, cause)
        log.get().info(
            "association ended",
            state=how,
            reason=self._why or None,
            peer=self.peer,
            address=self._peer_address,
            calling_ae=self.calling_ae,
            called_ae=self.called_ae,
            association=self._journal.name if self._journal else None,
            instances=dict(self._instances),
            seconds=round(time.monotonic() - self._started_s, 3),
        )

    def rejected_as(self) -> dict[str, str] | None:
        """Return who was rejected and why, if this association was."""
        if self.how != "rejected":
            return None
        return {
            "address": self._peer_host,
            "calling_ae": self.calling_ae,
            "called_ae": self.called_ae,
            "reason": self._why,
        }

    # ---------------------------------------------------------------------------------------------- C-STORE

    def begin(self, command: Command, context_id: int) -> None:
        """Begin one instance; what cannot be kept is remembered and answered at its end."""
        self._fault = None
        self._began_s = time.monotonic()
        self._taken_bytes = 0
        self._limit_bytes = self.terms.max_object_bytes
        sop_class, sop_instance = uid(command.sop_class), uid(command.sop_instance)
        self._announced = sop_instance[:COMMENT_LIMIT]
        assert self._journal is not None
        try:
            if sop_class != self._classes[context_id]:
                raise WrongContext("the SOP class is not that of the presentation context")
            if command.move_originator:
                self._note_originator(command)
            self._incoming = self._journal.receive(
                transfer_syntax=self._syntaxes[context_id], sop_class=sop_class, sop_instance=sop_instance
            )
        except CtnodeError as error:
            self._fault = error

    def write(self, fragment: memoryview) -> None:
        """Take a piece of the data set, or throw it away after a fault.

        Raises
        ------
        TooMuch
            If the peer goes on far beyond the largest object that is taken.
        """
        self._taken_bytes += len(fragment)
        if self._taken_bytes > self._limit_bytes:
            if self._taken_bytes > _DRAIN_FACTOR * self._limit_bytes:
                raise TooMuch("the data set does not end")
            if self._fault is None:
                self._fail(BadInstance("the data set is larger than max_object_mb"))
        if self._incoming is None:
            return
        try:
            self._incoming.write(fragment)
        except StorageError as error:
            self._fail(error)

    def finish(self) -> tuple[int, str]:
        """End the instance: success only after ``Incoming.commit()`` returned."""
        kept_bytes = 0
        if self._incoming is not None:
            try:
                kept_bytes = self._incoming.commit().size_bytes
            except CtnodeError as error:
                self._fail(error)
            except Exception as error:  # noqa: BLE001 - one instance that breaks our own scanner costs itself only
                log.get().error("instance failed", exception=type(error).__name__, address=self._peer_address)
                self._fail(CtnodeError("the node failed on this instance"))
        self._incoming = None
        fault = self._fault
        status = int(fault.dimse_status) if fault else int(DimseStatus.SUCCESS)
        self._instances[f"{status:04X}"] += 1
        self._shared.tally.count_instance(
            status, kept_bytes, self.peer or UNKNOWN_PEER, time.monotonic() - self._began_s
        )
        if fault is None:
            self._shared.doorbell.ring()
            return status, ""
        if self._instances.total() - self._instances["0000"] <= REFUSALS_KEPT and self._journal is not None:
            self._journal.note("refused", {"status": status, "comment": fault.message, "sop_instance": self._announced})
        if self._instances[f"{status:04X}"] <= REFUSALS_TOLD:
            log.get().warning(
                "instance refused", status=f"{status:04X}", error=fault.message, address=self._peer_address
            )
        return status, fault.message[:COMMENT_LIMIT]

    def _note_originator(self, command: Command) -> None:
        """Write down who asked the sender by C-MOVE (PS3.7 9.1.1.1.6); once for each of its requests."""
        key = f"{command.move_originator}\0{command.move_message_id}"
        if key in self._originators:
            return
        assert self._journal is not None
        self._journal.notice("move", {"originator": command.move_originator, "message_id": command.move_message_id})
        self._originators.add(key)

    def _fail(self, error: CtnodeError) -> None:
        self._fault = error
        self._discard()

    def _discard(self) -> None:
        if self._incoming is not None:
            self._incoming.discard()
            self._incoming = None


def _join(name: tuple[str, int]) -> str:
    host = str(parse_address(name[0]))
    return f"[{host}]:{name[1]}" if ":" in host else f"{host}:{name[1]}"
