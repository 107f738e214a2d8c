"""The associations of one process: started on accepted connections, ended together."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Final

from pynetdicom.ae import ApplicationEntity

from ctnode.ops import log
from ctnode.wire.contexts import Supported, supported_contexts
from ctnode.wire.reactor import SyncAssociation
from ctnode.wire.services import NodeSession, Shared
from ctnode.wire.stream import Stream

_PDU_HEADER_BYTES: Final = 6
# Connections are counted where they are accepted; pynetdicom's own count is not to interfere.
_NO_LIMIT: Final = 1 << 30
# An abort is answered by the peer's close; who does not answer is cut after the reactor's own time to linger.
_PATIENCE_S: Final = 8.0


class _HostedAssociation(SyncAssociation):
    """An association that tells its host when its thread is done."""

    on_done: Callable[[SyncAssociation], None]

    def run(self) -> None:
        """Run to the end, whatever happens on the way."""
        try:
            self.run_reactor()
        except Exception as error:  # noqa: BLE001 - nobody is above this frame: it is logged, and the place is given back
            log.get().error("association failed", exception=type(error).__name__, error=str(error)[:200])
        finally:
            self.on_done(self)


class Host:
    """Runs associations, each in a thread of its own.

    Parameters
    ----------
    shared
        What the associations share.
    on_ended
        Called in the thread of an association when its connection is closed.
    supported
        Presentation contexts by abstract syntax (default: all that the node serves).
    """

    def __init__(
        self, shared: Shared, *, on_ended: Callable[[], None] | None = None, supported: Supported | None = None
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

    def serve(self, connection: socket.socket, *, over_limit: bool = False) -> SyncAssociation | None:
        """Start an association on an accepted connection; None if the peer has gone already."""
        receiver = self.shared.config.receiver
        try:
            session = NodeSession(
                self.shared, connection.getpeername(), connection.getsockname(), over_limit=over_limit
            )
            stream = Stream(connection, receiver.max_pdu + _PDU_HEADER_BYTES)
        except OSError:
            connection.close()
            self._tell()
            return None
        association = _HostedAssociation(
            self._ae,
            stream,
            session,
            self._supported,
            max_pdu_bytes=receiver.max_pdu,
            request_timeout_s=receiver.request_timeout_s,
            idle_timeout_s=receiver.idle_timeout_s,
            pdu_timeout_s=receiver.pdu_timeout_s,
        )
        association.on_done = self._done
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

    def _done(self, association: SyncAssociation) -> None:
        with self._changed:
            self._open.discard(association)
            self._changed.notify_all()
        self._tell()

    def _tell(self) -> None:
        if self._on_ended is not None:
            self._on_ended()
