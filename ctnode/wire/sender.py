"""Sending: C-ECHO and C-STORE to another node, data sets as they lie on disk (PS3.4 B.2, PS3.7 9.1)."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydicom.dataset import Dataset
from pynetdicom import _config, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from ctnode.archive.header import Meta, read_meta
from ctnode.archive.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from ctnode.config import Target
from ctnode.wire.certificates import ClientContext, client_context
from ctnode.wire.contexts import VERIFICATION_SYNTAXES
from ctnode.words import BadInstance, ConfigError

# PS3.8 9.3.2.2: context IDs are the odd numbers of one byte.
CONTEXTS_LIMIT: Final = 128
NO_ANSWER: Final = "no answer"
_META_BYTES: Final = 1 << 16

_SUCCESS: Final = 0x0000
_WARNING_MASK: Final = 0xF000
_WARNING: Final = 0xB000
_RESOURCES_MASK: Final = 0xFF00
_RESOURCES: Final = 0xA700


class Outcome(StrEnum):
    """What became of one file."""

    SENT = "SENT"
    RETRY = "RETRY"
    DEAD = "DEAD"


@dataclass(frozen=True, slots=True)
class Destination:
    """A node that we call."""

    name: str
    ae_title: str
    host: str
    port: int
    # How it is called with TLS; None is without.
    tls: Target | None = None

    @classmethod
    def of(cls, target: Target) -> Destination:
        """Return the destination of a ``[[targets]]`` entry."""
        return cls(target.name, target.ae_title, target.host, target.port, target if target.tls else None)


@dataclass(frozen=True, slots=True)
class EchoResult:
    """Whether a node answers, and how fast; ``detail`` says why not."""

    ok: bool
    seconds: float
    detail: str


@dataclass(frozen=True, slots=True)
class SendResult:
    """What a node answered for one file; ``status`` is None where it did not answer."""

    path: Path
    outcome: Outcome
    status: int | None
    comment: str


def echo(destination: Destination, calling_ae: str, timeout_s: float) -> EchoResult:
    """Ask a node whether it is there."""
    started_s = time.monotonic()
    with _associated(
        destination, calling_ae, [build_context(Verification, list(VERIFICATION_SYNTAXES))], timeout_s
    ) as association:
        if isinstance(association, str) or not association.is_established:
            return EchoResult(ok=False, seconds=time.monotonic() - started_s, detail=_why_not(association))
        try:
            status = _status_of(association.send_c_echo())
        except (ValueError, RuntimeError) as error:
            return EchoResult(ok=False, seconds=time.monotonic() - started_s, detail=_first_line(error))
        seconds = time.monotonic() - started_s
        if status is None:
            return EchoResult(ok=False, seconds=seconds, detail=NO_ANSWER)
        return EchoResult(ok=status == _SUCCESS, seconds=seconds, detail=f"status {status:04X}")


def send(destination: Destination, calling_ae: str, files: Sequence[Path], timeout_s: float) -> Iterator[SendResult]:
    """Send files over one association, or one for each 128 pairs of SOP class and transfer syntax.

    Nothing is transcoded: what the destination does not take in the syntax of the file is ``DEAD``. Closing the
    iterator releases the association.

    Parameters
    ----------
    destination
        Who is called.
    calling_ae
        Our AE title.
    files
        Part 10 files.
    timeout_s
        Seconds for the connection, the negotiation, and each answer.

    Yields
    ------
    SendResult
        One for each file: ``SENT`` for success and warnings, ``RETRY`` where the association or its resources failed,
        ``DEAD`` where the answer would be the same again.
    """
    # The path given to send_c_store() is then read in pieces and sent as it is, never decoded.
    _config.STORE_SEND_CHUNKED_DATASET = True
    readable: list[tuple[Path, Meta]] = []
    for path in files:
        try:
            readable.append((path, _read_meta(path)))
        except BadInstance as error:
            yield SendResult(path, Outcome.DEAD, None, error.message)
        except OSError as error:
            yield SendResult(path, Outcome.RETRY, None, f"cannot read the file: {error.strerror}")
    for batch in _batches(readable):
        yield from _send_batch(destination, calling_ae, batch, timeout_s)


def _send_batch(
    destination: Destination, calling_ae: str, batch: Sequence[tuple[Path, Meta]], timeout_s: float
) -> Iterator[SendResult]:
    pairs = dict.fromkeys((meta.sop_class, meta.transfer_syntax) for _path, meta in batch)
    contexts = [build_context(sop_class, syntax) for sop_class, syntax in pairs]
    with _associated(destination, calling_ae, contexts, timeout_s) as association:
        if isinstance(association, str) or not association.is_established:
            why = _why_not(association)
            for path, _meta in batch:
                yield SendResult(path, Outcome.RETRY, None, why)
            return
        is_alive = True
        accepted = {(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in association.accepted_contexts}
        for number, (path, meta) in enumerate(batch):
            if (meta.sop_class, meta.transfer_syntax) not in accepted:
                yield SendResult(path, Outcome.DEAD, None, "SOP class or transfer syntax not accepted")
            elif not is_alive:
                yield SendResult(path, Outcome.RETRY, None, "the association ended before")
            else:
                result = _send_one(association, path, message_id=number % 0xFFFF + 1)
                if result.comment == NO_ANSWER:
                    # The state of an association that was cut shows late in pynetdicom: another request would wait
                    # for its whole time-out.
                    is_alive = False
                    association.abort()
                yield result


def _send_one(association: Association, path: Path, *, message_id: int) -> SendResult:
    try:
        answer = association.send_c_store(path, msg_id=message_id)
    except OSError as error:
        return SendResult(path, Outcome.RETRY, None, f"cannot read the file: {error.strerror}")
    except RuntimeError:
        return SendResult(path, Outcome.RETRY, None, "the association ended before")
    except (ValueError, AttributeError, TypeError) as error:
        # pynetdicom cannot put it into a request: a UID that no command set takes, for example.
        return SendResult(path, Outcome.DEAD, None, _first_line(error))
    status = _status_of(answer)
    if status is None:
        return SendResult(path, Outcome.RETRY, None, NO_ANSWER)
    return SendResult(path, outcome_of(status), status, str(answer.get("ErrorComment", "") or ""))


def outcome_of(status: int) -> Outcome:
    """Return what a C-STORE status means for the one who sent (PS3.4 B.2.3, PS3.7 C)."""
    if status == _SUCCESS or status & _WARNING_MASK == _WARNING:
        return Outcome.SENT
    if status & _RESOURCES_MASK == _RESOURCES:
        return Outcome.RETRY
    return Outcome.DEAD


@contextmanager
def _associated(
    destination: Destination, calling_ae: str, contexts: list[PresentationContext], timeout_s: float
) -> Iterator[Association | str]:
    """Open an association that may not be established, and release it in the end; or say why there is none."""
    entity = ApplicationEntity(ae_title=calling_ae)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout_s
    try:
        tls = _tls_arguments(destination)
    except ConfigError as error:
        yield error.message
        return
    try:
        association = entity.associate(
            destination.host,
            destination.port,
            contexts=contexts,
            ae_title=destination.ae_title,
            evt_handlers=[(evt.EVT_CONN_OPEN, _send_at_once)],
            tls_args=tls,
        )
    except OSError:
        # Only the look-up of the host raises; what fails later shows in the association.
        yield "the host is not known"
        return
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _tls_arguments(destination: Destination) -> tuple[ssl.SSLContext, str] | None:
    if destination.tls is None:
        return None
    return client_context(destination.tls), destination.tls.tls_name or destination.host


def _send_at_once(event: evt.Event) -> None:
    """Keep command and data set from waiting for each other's acknowledgement: 44 ms an instance."""
    transport = event.assoc.dul.socket
    if transport is not None and transport.socket is not None:
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _batches(files: Sequence[tuple[Path, Meta]]) -> Iterator[list[tuple[Path, Meta]]]:
    batch: list[tuple[Path, Meta]] = []
    pairs: set[tuple[str, str]] = set()
    for path, meta in files:
        pair = (meta.sop_class, meta.transfer_syntax)
        if pair not in pairs and len(pairs) == CONTEXTS_LIMIT:
            yield batch
            batch, pairs = [], set()
        pairs.add(pair)
        batch.append((path, meta))
    if batch:
        yield batch


def _read_meta(path: Path) -> Meta:
    with path.open("rb") as file:
        meta = read_meta(file.read(_META_BYTES))
    if meta is None or not meta.sop_class or not meta.sop_instance:
        raise BadInstance("no DICOM file with file meta information")
    return meta


def _status_of(answer: Dataset) -> int | None:
    status = answer.get("Status")
    return None if status is None else int(status)


def _why_not(association: Association | str) -> str:
    if isinstance(association, str):
        return association
    answer = association.acceptor.primitive
    if association.is_rejected and isinstance(answer, A_ASSOCIATE):
        return f"association rejected: {answer.result_str}, {answer.reason_str}"
    if association.is_aborted and answer is not None:
        return "association aborted"
    transport = association.dul.socket
    context = transport.tls_args[0] if transport is not None and transport.tls_args else None
    fault = context.fault if isinstance(context, ClientContext) else ""
    return f"no connection: {fault}" if fault else "no association"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
