"""The associations of one process: started on accepted connections, ended together."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

from pynetdicom.ae import ApplicationEntity

from ctnode.ops import log
from ctnode.wire.certificates import tls_fault
from ctnode.wire.contexts import Supported, supported_contexts
from ctnode.wire.reactor import SyncAssociation
from ctnode.wire.services import NodeSession
from ctnode.wire.shared import Shared
from ctnode.wire.stream import Stream
from ctnode.wire.tls_stream import TlsStream

_PDU_HEADER_BYTES: Final = 6
# Connections are counted where they are accepted; pynetdicom's own count is not to interfere.
_NO_LIMIT: Final = 1 << 30
# An abort is answered by the peer's close; who does not answer is cut after the reactor's own time to linger.
_PATIENCE_S: Final = 8.0


class _HostedAssociation(SyncAssociation):
    """An association that tells its host when its thread is done."""

    on_done: Callable[[SyncAssociation], None]
    session: NodeSession

    def run(self) -> None:
        """Run to the end, whatever happens on the way."""
        try:
            if self._establish():
                self.run_reactor()
        except Exception as error:  # noqa: BLE001 - nobody is above this frame: it is logged, and the place is given back
            log.get().error("association failed", exception=log.place(error))
        finally:
            self.on_done(self)

    def _establish(self) -> bool:
        """Do the handshake, where there is one, in this thread; a peer that does not do it has no association."""
        try:
            if isinstance(self.stream, TlsStream):
                self.session.certificate = self.stream.establish(
                    time.monotonic() + self._request_timeout_s, lambda: not self._drain_wanted
                )
        except OSError as error:
            self.session.close("lost", f"tls: {tls_fault(error)}")
            self.stream.close()
            return False
        return True


@dataclass(frozen=True, slots=True)
class Ended:
    """A connection that is over: the number of its place, who was rejected, whether an association was asked for."""

    place: int
    rejected: Mapping[str, str] | None = None
    has_asked: bool = False


class Host:
    """Runs associations, each in a thread of its own.

    Parameters
    ----------
    shared
        What the associations share.
    on_ended
        Called in the thread of an association when its connection is over.
    supported
        Presentation contexts by abstract syntax (default: all that the node serves).
    """

    def __init__(
        self, shared: Shared, *, on_ended: Callable[[Ended], None] | None = None, supported: Supported | None = None
    ) -> None:
        self.shared = shared
        self._on_ended = on_ended
        self._supported = supported_contexts() if supported is None else supported
        self._ae = ApplicationEntity(ae_title=shared.config.node.ae_title)
        self._ae.maximum_associations = _NO_LIMIT
        self._open: set[SyncAssociation] = set()
        self._changed = threading.Condition()

    @property
    def associations(self) -> tuple[SyncAssociation, ...]:
        """Return the associations that are open."""
        with self._changed:
            return tuple(self._open)

    def serve(
        self, connection: socket.socket, *, over_limit: bool = False, is_tls: bool = False, place: int = 0
    ) -> SyncAssociation | None:
        """Start an association on an accepted connection; None if the peer has gone already.

        Parameters
        ----------
        connection
            The accepted socket.
        over_limit
            Whether it is to be rejected.
        is_tls
            Whether it came to the TLS port.
        place
            What the acceptor calls it.
        """
        receiver = self.shared.config.receiver
        capacity_bytes = receiver.max_pdu + _PDU_HEADER_BYTES
        try:
            # Asked once: a peer may reset the connection at any moment, and then it has no name any more.
            peer_name, own_name = connection.getpeername(), connection.getsockname()
            session = NodeSession(self.shared, peer_name, own_name, over_limit=over_limit, is_tls=is_tls)
            stream = self._secure(connection, capacity_bytes) if is_tls else Stream(connection, capacity_bytes)
        except OSError:
            connection.close()
            self._tell(Ended(place))
            return None
        association = _HostedAssociation(
            self._ae,
            stream,
            session,
            self._supported,
            peer_name=peer_name,
            own_name=own_name,
            max_pdu_bytes=receiver.max_pdu,
            request_timeout_s=receiver.request_timeout_s,
            idle_timeout_s=receiver.idle_timeout_s,
            pdu_timeout_s=receiver.pdu_timeout_s,
        )
        association.on_done = partial(self._done, place)
        association.name = f"association-{connection.fileno()}"
        with self._changed:
            self._open.add(association)
        association.start()
        return association

    def abort_all(self) -> None:
        """Abort what is open, and wait until it is written down."""
        for association in self.associations:
            association.drain()
        self.wait_until_idle(_PATIENCE_S)

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until no association is open; False if the time is over first."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, seconds)

    def _secure(self, connection: socket.socket, capacity_bytes: int) -> Stream:
        context = self.shared.tls_context
        if context is None:
            raise ConnectionAbortedError("there is no certificate")
        return TlsStream(connection, capacity_bytes, context)

    def _done(self, place: int, association: SyncAssociation) -> None:
        with self._changed:
            self._open.discard(association)
            self._changed.notify_all()
        session = cast(NodeSession, association.session)
        self._tell(Ended(place, session.rejected_as(), session.has_asked))

    def _tell(self, ended: Ended) -> None:
        if self._on_ended is not None:
            self._on_ended(ended)
