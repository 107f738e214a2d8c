"""An association that the node opens by pynetdicom, for a question or a report: released, whatever happens."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE, SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext

from ctnode.archive.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION

_lock = threading.Lock()
_open: set[Association] = set()


@dataclass(frozen=True, slots=True)
class Callee:
    """Who is called."""

    ae_title: str
    host: str
    port: int


@contextmanager
def associated(
    callee: Callee,
    calling_ae: str,
    contexts: Sequence[PresentationContext],
    timeout_s: float,
    *,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[evt.EventHandlerType] = (),
) -> Iterator[Association | str]:
    """Open an association and yield it, or in words why there is none.

    Parameters
    ----------
    callee
        Who is called.
    calling_ae
        Our AE title.
    contexts
        What is proposed.
    timeout_s
        Seconds for the connection, the negotiation and each answer.
    roles
        The roles that are proposed (PS3.7 D.3.3.4).
    handlers
        What the other side asks of us meanwhile.
    """
    entity = ApplicationEntity(ae_title=calling_ae)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout_s
    try:
        association = entity.associate(
            callee.host,
            callee.port,
            contexts=list(contexts),
            ae_title=callee.ae_title,
            evt_handlers=[(evt.EVT_CONN_OPEN, _note), (evt.EVT_CONN_CLOSE, _forget), *handlers],
            ext_neg=list(roles),
        )
    except OSError:
        # Only the look-up of the host raises; what fails later shows in the association.
        yield "the host is not known"
        return
    try:
        yield association if association.is_established else _why_not(association)
    finally:
        if association.is_established:
            association.release()
        with _lock:
            _open.discard(association)


def hang_up() -> None:
    """Close every connection, so that who waits for an answer goes on at once: the process is to end."""
    with _lock:
        sockets = [association.dul.socket for association in _open]
    for transport in sockets:
        with suppress(OSError):
            if transport is not None and transport.socket is not None:
                transport.socket.shutdown(socket.SHUT_RDWR)


def _note(event: evt.Event) -> None:
    with _lock:
        _open.add(event.assoc)


def _forget(event: evt.Event) -> None:
    with _lock:
        _open.discard(event.assoc)


def status_of(answer: Dataset) -> int | None:
    """Return the status of a response; None where there was none."""
    status = answer.get("Status")
    return None if status is None else int(status)


def _why_not(association: Association) -> str:
    answer = association.acceptor.primitive
    if association.is_rejected and isinstance(answer, A_ASSOCIATE):
        return f"association rejected: {answer.result_str}, {answer.reason_str}"
    return "association aborted" if association.is_aborted and answer is not None else "no association"
