"""Sending: C-ECHO and C-STORE to another node, data sets as they lie on disk (PS3.4 B.2, PS3.7 9.1)."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from ctnode.archive.header import Meta, read_meta
from ctnode.config import Target
from ctnode.wire import dimse
from ctnode.wire.certificates import client_context
from ctnode.wire.proposal import Agreed, Offer
from ctnode.wire.requestor import Association, Called, Fault, Phase
from ctnode.wire.transcode import UNCOMPRESSED, Transcoder, Untranscodable, others
from ctnode.words import BadInstance, ConfigError

# PS3.8 9.3.2.2: context IDs are the odd numbers of one byte.
CONTEXTS_LIMIT: Final = 128
ENDED_BEFORE: Final = "the association ended before"
_META_BYTES: Final = 1 << 16
# A file up to this size is in memory before its turn comes.
_AHEAD_BYTES: Final = 8 << 20

_VERIFICATION: Final = "1.2.840.10008.1.1"
# What `ctnode echo` asks for beside Verification: what we send, in both uncompressed syntaxes.
ECHO_CLASSES: Final[Mapping[str, str]] = {
    "1.2.840.10008.5.1.4.1.1.2": "CT Image",
    "1.2.840.10008.5.1.4.1.1.7": "Secondary Capture",
    "1.2.840.10008.5.1.4.1.1.66.4": "Segmentation",
    "1.2.840.10008.5.1.4.1.1.88.33": "Comprehensive SR",
    "1.2.840.10008.5.1.4.1.1.88.34": "Comprehensive 3D SR",
    "1.2.840.10008.1.20.1": "Storage Commitment",
    "1.2.840.10008.5.1.4.1.2.2.1": "Study Root Find",
}

_CT_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
# In which of these it takes CT images, each asked for by itself.
ECHO_SYNTAXES: Final[Mapping[str, str]] = {
    "1.2.840.10008.1.2": "Implicit VR",
    "1.2.840.10008.1.2.1": "Explicit VR",
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K",
}

_SUCCESS: Final = 0x0000
_WARNING_MASK: Final = 0xF000
_WARNING: Final = 0xB000
_RESOURCES_MASK: Final = 0xFF00
_RESOURCES: Final = 0xA700
# PS3.7 C: processing failure and resource limitation say nothing about the object.
_TRANSIENT: Final = frozenset({0x0110, 0x0213})
# PS3.7 C.1: of the class Warning too.
_WARNINGS: Final = frozenset({0x0001, 0x0107, 0x0116})
# PS3.7 C.5.8: it has an object of this name, which is ours, for nobody else makes one.
_DUPLICATE: Final = 0x0111


class Outcome(StrEnum):
    """What became of one file."""

    SENT = "SENT"
    RETRY = "RETRY"
    DEAD = "DEAD"
    UNTRIED = "UNTRIED"


@dataclass(frozen=True, slots=True)
class Destination:
    """A node that we call."""

    name: str
    ae_title: str
    host: str
    port: int
    # How it is called with TLS; None is without.
    tls: Target | None = None
    # Whether objects may be sent in another transfer syntax where theirs is refused.
    transcode: bool = False

    @classmethod
    def of(cls, target: Target) -> Destination:
        """Return the destination of a ``[[targets]]`` entry."""
        assert target.port is not None
        tls = target if target.tls else None
        return cls(target.name, target.ae_title or "", target.host, target.port, tls, target.transcode)


@dataclass(frozen=True, slots=True)
class EchoResult:
    """Whether a node answers, and how fast; ``detail`` says why not.

    Parameters
    ----------
    accepted
        Which of our SOP classes it takes.
    syntaxes
        In which transfer syntaxes it takes CT images.
    tls
        Version, cipher suite and certificate, where there is TLS.
    """

    ok: bool
    seconds: float
    detail: str
    accepted: tuple[str, ...] = ()
    syntaxes: tuple[str, ...] = ()
    tls: str = ""


@dataclass(frozen=True, slots=True)
class SendResult:
    """What a node answered for one file.

    Parameters
    ----------
    status
        None where it did not answer.
    is_fault
        Whether the association failed, and not the object.
    may_have_arrived
        Whether the whole object had gone out when the answer failed to come.
    """

    path: Path
    outcome: Outcome
    status: int | None
    comment: str
    is_fault: bool = False
    may_have_arrived: bool = False


def call(destination: Destination, calling_ae: str, offers: Sequence[Offer], timeout_s: float) -> Association:
    """Open an association.

    Raises
    ------
    Fault
        If there is none, with the reason in words.
    """
    tls: ssl.SSLContext | None = None
    if destination.tls is not None:
        try:
            tls = client_context(destination.tls)
        except ConfigError as error:
            raise Fault(error.message, Phase.CONNECT) from None
    name = destination.tls.tls_name if destination.tls is not None else ""
    called = Called(destination.host, destination.port, destination.ae_title, calling_ae, timeout_s, tls, name)
    return Association(called, offers)


def echo(destination: Destination, calling_ae: str, timeout_s: float) -> EchoResult:
    """Ask a node whether it is there, and what it would take."""
    offers = [Offer(_VERIFICATION, UNCOMPRESSED)]
    offers += [Offer(sop_class, UNCOMPRESSED) for sop_class in ECHO_CLASSES]
    offers += [Offer(_CT_IMAGE, (syntax,)) for syntax in ECHO_SYNTAXES]
    started_s = time.monotonic()
    try:
        association = call(destination, calling_ae, offers, timeout_s)
    except Fault as fault:
        return EchoResult(ok=False, seconds=time.monotonic() - started_s, detail=fault.why)
    agreed = {context.sop_class: context for context in association.answer.agreed}
    accepted = tuple(words for sop_class, words in ECHO_CLASSES.items() if sop_class in agreed)
    for_images = {one.syntax for one in association.answer.agreed if one.sop_class == _CT_IMAGE}
    syntaxes = tuple(words for syntax, words in ECHO_SYNTAXES.items() if syntax in for_images)
    tls = association.tls
    try:
        if _VERIFICATION not in agreed:
            result = EchoResult(ok=False, seconds=0.0, detail="Verification not accepted")
        else:
            association.send_command(agreed[_VERIFICATION].context_id, dimse.echo_request(1, _VERIFICATION))
            status = association.receive().number(dimse.STATUS)
            detail = "no status" if status is None else f"status {status:04X}"
            result = EchoResult(ok=status == _SUCCESS, seconds=0.0, detail=detail)
    except Fault as fault:
        result = EchoResult(ok=False, seconds=0.0, detail=fault.why)
    seconds = time.monotonic() - started_s
    association.release()
    return replace(result, seconds=seconds, accepted=accepted, syntaxes=syntaxes, tls=tls)


def send(destination: Destination, calling_ae: str, files: Sequence[Path], timeout_s: float) -> Iterator[SendResult]:
    """Send files over one association, or one for each 128 presentation contexts that they need.

    An object that is not taken in its own transfer syntax is sent in another only where nothing is lost: an
    uncompressed one always, a compressed one if the destination says ``transcode``. Closing the iterator releases the
    association.

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
        One for each file: ``SENT`` for success and warnings, ``RETRY`` where the association or the resources of the
        destination failed, ``DEAD`` where the answer would be the same again, ``UNTRIED`` where it was not its turn.
    """
    readable: list[tuple[Path, Meta]] = []
    for one in read_readable(files):
        if isinstance(one, SendResult):
            yield one
        else:
            readable.append(one)
    for batch, offers in _batches(readable, transcode=destination.transcode):
        try:
            association = call(destination, calling_ae, offers, timeout_s)
        except Fault as fault:
            for path, _meta in batch:
                yield SendResult(path, Outcome.UNTRIED, None, fault.why, is_fault=True)
            continue
        with Transcoder(timeout_s) as transcoder:
            yield from _Batch(association, batch, transcoder).results()


def read_readable(files: Sequence[Path]) -> Iterator[tuple[Path, Meta] | SendResult]:
    """Yield each file with its file meta information, or why it cannot be sent."""
    for path in files:
        try:
            yield path, _read_meta(path)
        except BadInstance as error:
            yield SendResult(path, Outcome.DEAD, None, error.message)
        except OSError as error:
            yield SendResult(path, Outcome.RETRY, None, f"cannot read the file: {error.strerror}")


class _Batch:
    """Files over one association, the next one read while the answer for the last is on its way."""

    def __init__(self, association: Association, files: Sequence[tuple[Path, Meta]], transcoder: Transcoder) -> None:
        self._association = association
        self._files = files
        self._transcoder = transcoder
        self._contexts = {(one.sop_class, one.syntax): one for one in association.answer.agreed}
        self._refused = {(sop_class, syntax): why for sop_class, syntax, why in association.answer.refused}

    def results(self) -> Iterator[SendResult]:
        is_alive = True
        try:
            ready = self._prepare(0)
            for number, (path, _meta) in enumerate(self._files):
                if not is_alive:
                    yield SendResult(path, Outcome.UNTRIED, None, ENDED_BEFORE)
                    continue
                if isinstance(ready, SendResult):
                    result = ready
                    ready = self._prepare(number + 1)
                else:
                    result, ready = self._send(ready, number)
                    is_alive = not result.is_fault
                yield result
        finally:
            if is_alive:
                self._association.release()
            else:
                self._association.abort()

    def _prepare(self, number: int) -> _Ready | SendResult | None:
        """Open a file and choose its context, or say why it cannot be sent."""
        if number >= len(self._files):
            return None
        path, meta = self._files[number]
        if not (dimse.can_be_named(meta.sop_class) and dimse.can_be_named(meta.sop_instance)):
            return SendResult(path, Outcome.DEAD, None, "its UIDs fit into no request")
        try:
            context = self._contexts.get((meta.sop_class, meta.transfer_syntax))
            if context is not None:
                return _Ready.of(path, path, meta, context)
            for syntax in others(meta.transfer_syntax):
                context = self._contexts.get((meta.sop_class, syntax))
                if context is not None:
                    recoded = self._transcoder.recode(path, syntax)
                    return _Ready.of(path, recoded, _read_meta(recoded), context)
        except (Untranscodable, BadInstance) as error:
            return SendResult(path, Outcome.DEAD, None, f"cannot be transcoded: {error}")
        except OSError as error:
            return SendResult(path, Outcome.RETRY, None, f"cannot read the file: {error.strerror}")
        why = self._refused.get((meta.sop_class, meta.transfer_syntax), "SOP class not accepted")
        return SendResult(path, Outcome.DEAD, None, why)

    def _send(self, ready: _Ready | None, number: int) -> tuple[SendResult, _Ready | SendResult | None]:
        assert ready is not None
        association, context_id = self._association, ready.context.context_id
        message_id = number % 0xFFFF + 1
        try:
            request = dimse.store_request(message_id, ready.meta.sop_class, ready.meta.sop_instance)
            association.send_command(context_id, request)
            for piece, is_last in ready.pieces():
                association.send_data(context_id, piece, is_last=is_last)
        except Fault as fault:
            return SendResult(ready.path, Outcome.RETRY, None, fault.why, is_fault=True), None
        except OSError as error:
            # The data set is cut off in the middle: nothing but the end of the association can follow.
            why = f"cannot read the file: {error.strerror}"
            return SendResult(ready.path, Outcome.RETRY, None, why, is_fault=True), None
        following = self._prepare(number + 1)
        try:
            answer = association.receive()
        except Fault as fault:
            lost = SendResult(ready.path, Outcome.RETRY, None, fault.why, is_fault=True, may_have_arrived=True)
            return lost, None
        status = answer.number(dimse.STATUS)
        if status is None or answer.number(dimse.RESPONDED) != message_id:
            why = "the answer is of another request"
            return SendResult(ready.path, Outcome.RETRY, None, why, is_fault=True, may_have_arrived=True), None
        comment = answer.text(dimse.COMMENT) or ("it has it already" if status == _DUPLICATE else "")
        return SendResult(ready.path, outcome_of(status), status, comment), following


@dataclass(frozen=True, slots=True)
class _Ready:
    """A file that waits for its turn, its beginning in memory."""

    path: Path
    file: Path
    meta: Meta
    context: Agreed
    size: int
    head: bytes

    @classmethod
    def of(cls, path: Path, file: Path, meta: Meta, context: Agreed) -> _Ready:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            head = os.pread(descriptor, min(size - meta.dataset_start, _AHEAD_BYTES), meta.dataset_start)
        finally:
            os.close(descriptor)
        return cls(path, file, meta, context, size, head)

    def pieces(self) -> Iterator[tuple[memoryview, bool]]:
        position = self.meta.dataset_start + len(self.head)
        yield memoryview(self.head), position >= self.size
        if position >= self.size:
            return
        with self.file.open("rb", buffering=0) as file:
            file.seek(position)
            while position < self.size:
                piece = file.read(min(_AHEAD_BYTES, self.size - position))
                if not piece:
                    raise OSError(0, "it is shorter than it was")
                position += len(piece)
                yield memoryview(piece), position >= self.size


def outcome_of(status: int) -> Outcome:
    """Return what a C-STORE status or a failure reason means for the one who sent (PS3.4 B.2.3, PS3.7 C)."""
    if status in {_SUCCESS, _DUPLICATE, *_WARNINGS} or status & _WARNING_MASK == _WARNING:
        return Outcome.SENT
    if status & _RESOURCES_MASK == _RESOURCES or status in _TRANSIENT:
        return Outcome.RETRY
    return Outcome.DEAD


def _batches(
    files: Sequence[tuple[Path, Meta]], *, transcode: bool
) -> Iterator[tuple[list[tuple[Path, Meta]], list[Offer]]]:
    batch: list[tuple[Path, Meta]] = []
    offers: dict[Offer, None] = {}
    for path, meta in files:
        needed = [Offer(meta.sop_class, (meta.transfer_syntax,))]
        needed += [Offer(meta.sop_class, (one,)) for one in others(meta.transfer_syntax, decompress=transcode)]
        new = [offer for offer in needed if offer not in offers]
        if len(offers) + len(new) > CONTEXTS_LIMIT:
            yield batch, list(offers)
            batch, offers = [], {}
            new = needed
        offers.update(dict.fromkeys(new))
        batch.append((path, meta))
    if batch:
        yield batch, list(offers)


def _read_meta(path: Path) -> Meta:
    with path.open("rb", buffering=0) as file:
        meta = read_meta(file.read(_META_BYTES))
    if meta is None or not meta.sop_class or not meta.sop_instance:
        raise BadInstance("no DICOM file with file meta information")
    return meta
