"""An association that we open: blocking, each step with a deadline, every fault with its phase (PS3.8 9.2, PS3.7 9)."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ctnode.wire.certificates import tls_fault, tls_words
from ctnode.wire.command import NO_DATA_SET, Malformed, command_pdus
from ctnode.wire.proposal import MAX_PDU_BYTES, PDU_HEADER, Answer, Offer, associate_rq, read_answer, read_rejection

_AC: Final = 0x02
_RJ: Final = 0x03
_P_DATA: Final = 0x04
_RELEASE_RQ: Final = 0x05
_RELEASE_RP: Final = 0x06
_ABORT: Final = 0x07
_PDV: Final = struct.Struct(">BBLLBB")
_PDV_HEADER: Final = struct.Struct(">LBB")
_ELEMENT: Final = struct.Struct("<HHL")
# The limit of an announced PDU counts the PDV header too.
_PDV_OVERHEAD: Final = 6
_WRITE_BYTES: Final = 1 << 20
# Longer answers than this are no answers to what we ask.
_MESSAGE_LIMIT_BYTES: Final = 16 << 20
_RELEASE_S: Final = 5.0
# Under Linux's IOV_MAX of 1024, for two pieces a PDU.
_PDUS_A_WRITE: Final = 500


class Phase(StrEnum):
    """What an association was doing when it failed."""

    CONNECT = "connect"
    NEGOTIATE = "negotiate"
    SEND = "send"
    ANSWER = "answer"


class Fault(Exception):
    """The association cannot go on.

    Parameters
    ----------
    why
        In words, without anything of the other side's text.
    phase
        When: only after ``ANSWER`` may the other side have what was sent.
    """

    def __init__(self, why: str, phase: Phase) -> None:
        super().__init__(why)
        self.why = why
        self.phase = phase


@dataclass(frozen=True, slots=True)
class Called:
    """Who is called, and how."""

    host: str
    port: int
    called_ae: str
    calling_ae: str
    timeout_s: float
    tls: ssl.SSLContext | None = None
    tls_name: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """A DIMSE message of the other side: the elements of its command set by number, and its data set."""

    context_id: int
    command: Mapping[int, bytes]
    data_set: bytes

    def number(self, element: int) -> int | None:
        """Return a US element of the command set."""
        value = self.command.get(element, b"")
        return int.from_bytes(value, "little") if len(value) == 2 else None

    def text(self, element: int) -> str:
        """Return a text element of the command set; what no log may hold becomes ``?``."""
        raw = self.command.get(element, b"").decode("ascii", "replace").strip(" \0")
        return "".join(letter if letter.isprintable() and letter.isascii() else "?" for letter in raw)


class Association:
    """One established association, for one thread.

    Raises
    ------
    Fault
        By every method but ``abort`` and ``release``; nothing more can be done with the association then.
    """

    def __init__(self, called: Called, offers: Sequence[Offer]) -> None:
        self._timeout_s = called.timeout_s
        self._buffer = bytearray()
        self._socket = _connect(called)
        try:
            self.answer: Answer = self._negotiate(called, offers)
        except BaseException:
            self.abort()
            raise
        limit = self.answer.max_pdu or MAX_PDU_BYTES
        self._room = max(1, min(limit, MAX_PDU_BYTES) - _PDV_OVERHEAD)
        self._context_ids = {agreed.context_id for agreed in self.answer.agreed}

    @property
    def tls(self) -> str:
        """Return version, cipher suite and certificate in words, where there is TLS."""
        return tls_words(self._socket) if isinstance(self._socket, ssl.SSLSocket) else ""

    def send_command(self, context_id: int, command: bytes) -> None:
        """Send a command set."""
        with self._faults(Phase.SEND):
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(command_pdus(context_id, command, self.answer.max_pdu))

    def send_data(self, context_id: int, data: memoryview, *, is_last: bool) -> None:
        """Send a piece of a data set; no piece of one message but the last may be empty."""
        with self._faults(Phase.SEND):
            self._socket.settimeout(self._timeout_s)
            pieces: list[bytes | memoryview] = []
            size = len(data)
            for start in range(0, max(size, 1), self._room):
                piece = data[start : start + self._room]
                control = 2 if is_last and start + self._room >= size else 0
                pieces += (_PDV.pack(4, 0, len(piece) + 6, len(piece) + 2, context_id, control), piece)
                if len(pieces) >= 2 * _PDUS_A_WRITE or len(pieces) // 2 * self._room >= _WRITE_BYTES:
                    self._write(pieces)
                    pieces = []
            if pieces:
                self._write(pieces)

    def _write(self, pieces: Sequence[bytes | memoryview]) -> None:
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.sendall(b"".join(pieces))
            return
        sent = self._socket.sendmsg(pieces)
        for piece in pieces:
            if sent >= len(piece):
                sent -= len(piece)
                continue
            self._socket.sendall(memoryview(piece)[sent:])
            sent = 0

    def receive(self, timeout_s: float | None = None) -> Message:
        """Return the next message of the other side."""
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        command, data = bytearray(), bytearray()
        found: dict[int, bytes] | None = None
        context_id = 0
        while True:
            kind, body = self._read_pdu(deadline, Phase.ANSWER)
            if kind != _P_DATA:
                raise Fault(_ended_by(kind), Phase.ANSWER)
            for context_id, control, piece in _values(body):
                if context_id not in self._context_ids or len(data) + len(command) > _MESSAGE_LIMIT_BYTES:
                    raise Fault("the answer cannot be", Phase.ANSWER)
                (command if control & 1 else data).extend(piece)
                if control == 3:
                    found = _elements(command)
                    if int.from_bytes(found.get(0x0800, b"\1\1"), "little") == NO_DATA_SET:
                        return Message(context_id, found, b"")
                elif control == 2 and found is not None:
                    return Message(context_id, found, bytes(data))

    def release(self) -> None:
        """Say good-bye and wait a moment for the answer; a peer that does not care is left."""
        try:
            self._socket.settimeout(min(_RELEASE_S, self._timeout_s))
            self._socket.sendall(PDU_HEADER.pack(_RELEASE_RQ, 0, 4) + bytes(4))
            deadline = time.monotonic() + min(_RELEASE_S, self._timeout_s)
            while self._read_pdu(deadline, Phase.ANSWER)[0] == _P_DATA:
                pass
        except (OSError, Fault):
            return
        finally:
            self._socket.close()

    def abort(self) -> None:
        """End the association without a word of the other side."""
        try:
            self._socket.settimeout(0.1)
            self._socket.sendall(PDU_HEADER.pack(_ABORT, 0, 4) + bytes(4))
        except OSError:
            return
        finally:
            self._socket.close()

    # ------------------------------------------------------------------------------------------ inside

    def _negotiate(self, called: Called, offers: Sequence[Offer]) -> Answer:
        with self._faults(Phase.NEGOTIATE):
            self._socket.settimeout(called.timeout_s)
            self._socket.sendall(associate_rq(called.called_ae, called.calling_ae, offers))
            kind, body = self._read_pdu(time.monotonic() + called.timeout_s, Phase.NEGOTIATE)
            if kind == _AC:
                try:
                    return read_answer(body, offers)
                except Malformed as error:
                    raise Fault(error.why, Phase.NEGOTIATE) from None
            raise Fault(read_rejection(body) if kind == _RJ else _ended_by(kind), Phase.NEGOTIATE)

    def _read_pdu(self, deadline: float, phase: Phase) -> tuple[int, memoryview]:
        with self._faults(phase):
            self._fill(PDU_HEADER.size, deadline)
            kind, _, length = PDU_HEADER.unpack_from(self._buffer)
            if length > MAX_PDU_BYTES + _PDV_OVERHEAD:
                raise Fault("the answer is longer than it may be", phase)
            self._fill(PDU_HEADER.size + length, deadline)
            body = memoryview(bytes(self._buffer[PDU_HEADER.size : PDU_HEADER.size + length]))
            del self._buffer[: PDU_HEADER.size + length]
            return kind, body

    def _fill(self, count: int, deadline: float) -> None:
        while len(self._buffer) < count:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            piece = self._socket.recv(65536)
            if not piece:
                raise ConnectionResetError
            self._buffer += piece
            if time.monotonic() > deadline:
                raise TimeoutError

    def _faults(self, phase: Phase) -> _Faults:
        return _Faults(phase)


class _Faults:
    """Turns what a socket raises into faults of a phase."""

    def __init__(self, phase: Phase) -> None:
        self._phase = phase

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, TimeoutError):
            words = {Phase.NEGOTIATE: "no answer to the association request", Phase.SEND: "the data is not taken"}
            raise Fault(words.get(self._phase, "no answer"), self._phase) from None
        if isinstance(error, OSError):
            raise Fault("the connection ended", self._phase) from None


def _connect(called: Called) -> socket.socket:
    try:
        connection = socket.create_connection((called.host, called.port), timeout=called.timeout_s)
    except socket.gaierror:
        raise Fault("the host is not known", Phase.CONNECT) from None
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else (error.strerror or type(error).__name__).lower()
        raise Fault(f"no connection: {why}", Phase.CONNECT) from None
    # Command and data set would wait for each other's acknowledgement: 44 ms an instance.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if called.tls is None:
        return connection
    try:
        return called.tls.wrap_socket(connection, server_hostname=called.tls_name or called.host)
    except OSError as error:
        connection.close()
        why = "no answer" if isinstance(error, TimeoutError) else tls_fault(error)
        raise Fault(f"no connection: {why}", Phase.CONNECT) from None


def _ended_by(kind: int) -> str:
    return {
        _ABORT: "association aborted",
        _RELEASE_RQ: "association released by the other side",
        _RELEASE_RP: "association released",
    }.get(kind, "the answer cannot be")


def _values(body: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yield context, control byte and content of the values of a P-DATA-TF (PS3.8 9.3.5.1)."""
    position, end = 0, len(body)
    while position < end:
        if end - position < _PDV_HEADER.size:
            raise Fault("the answer cannot be", Phase.ANSWER)
        length, context_id, control = _PDV_HEADER.unpack_from(body, position)
        if length < 2 or length > end - position - 4:
            raise Fault("the answer cannot be", Phase.ANSWER)
        yield context_id, control & 3, body[position + _PDV_HEADER.size : position + 4 + length]
        position += 4 + length


def _elements(command: bytearray) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    position, end = 0, len(command)
    while position < end:
        if end - position < _ELEMENT.size:
            raise Fault("the answer cannot be", Phase.ANSWER)
        group, element, length = _ELEMENT.unpack_from(command, position)
        position += _ELEMENT.size
        if group or length > end - position:
            raise Fault("the answer cannot be", Phase.ANSWER)
        found[element] = bytes(command[position : position + length])
        position += length
    return found
