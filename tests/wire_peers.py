"""Both ends of the wire for tests: a receiver in this process, and a peer that says exactly what it is told to."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pynetdicom.presentation import PresentationContext

from ctnode.archive.doorbell import Doorbell
from ctnode.archive.header import read_meta
from ctnode.archive.layout import Layout
from ctnode.archive.spool import JOURNAL_NAME, Spool
from ctnode.config import Config
from ctnode.wire.host import Ended, Host
from ctnode.wire.places import Slots
from ctnode.wire.reactor import SyncAssociation
from ctnode.wire.shared import Shared

VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
PATIENCE_S = 20.0

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)


def uid(*parts: object) -> str:
    return ".".join(["1.2.826.0.1.3680043.8.498", *map(str, parts)])


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    value += (b"\0" if vr in {b"UI", b"OW"} else b" ") * (len(value) % 2)
    if vr == b"OW":
        return struct.pack("<HH2sHL", group, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def data_set(
    sop_instance: str, *, sop_class: str = CT, study: str = uid(1), series: str = uid(1, 1), pixels: bytes = b"\1\2"
) -> bytes:
    return b"".join(
        (
            element(0x0008, 0x0016, b"UI", sop_class.encode("latin-1")),
            element(0x0008, 0x0018, b"UI", sop_instance.encode("latin-1")),
            element(0x0020, 0x000D, b"UI", study.encode("latin-1")),
            element(0x0020, 0x000E, b"UI", series.encode("latin-1")),
            element(0x7FE0, 0x0010, b"OW", pixels),
        )
    )


def command_set(values: Mapping[int, bytes | int]) -> bytes:
    body = b""
    for number, value in sorted(values.items()):
        raw = struct.pack("<H", value) if isinstance(value, int) else value + b"\0" * (len(value) % 2)
        body += struct.pack("<HHL", 0, number, len(raw)) + raw
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def store_command(sop_instance: bytes, *, sop_class: bytes = CT.encode(), message_id: int = 1, **more: bytes) -> bytes:
    values: dict[int, bytes | int] = {
        0x0002: sop_class,
        0x0100: 0x0001,
        0x0110: message_id,
        0x0700: 0,
        0x0800: 0x0000,
        0x1000: sop_instance,
    }
    if "move_originator" in more:
        values |= {0x1030: more["move_originator"], 0x1031: 7}
    return command_set(values)


def pdv(context_id: int, control: int, fragment: bytes) -> bytes:
    return struct.pack(">LBB", len(fragment) + 2, context_id, control) + fragment


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBL", kind, 0, len(body)) + body


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def associate_rq(
    contexts: Sequence[tuple[int, str, Sequence[str]]], *, calling: str = "RAW", called: str = "CTNODE"
) -> bytes:
    items = _item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, abstract, syntaxes in contexts:
        inner = _item(0x30, abstract.encode()) + b"".join(_item(0x40, syntax.encode()) for syntax in syntaxes)
        items += _item(0x20, struct.pack(">BBBB", number, 0, 0, 0) + inner)
    items += _item(0x50, _item(0x51, struct.pack(">L", 16384)) + _item(0x52, uid(9).encode()))
    head = struct.pack(">HH", 1, 0) + called.ljust(16).encode() + calling.ljust(16).encode() + bytes(32)
    return pdu(ASSOCIATE_RQ, head + items)


STANDARD = ((1, VERIFICATION, (IMPLICIT,)), (3, CT, (EXPLICIT,)), (5, CT, (IMPLICIT,)))


@dataclass(frozen=True)
class Answer:
    field: int
    message_id: int
    status: int
    comment: str
    sop_instance: bytes


class RawPeer:
    """A peer on a raw socket."""

    def __init__(self, port: int, *, source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S, source_address=(source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise EOFError(f"closed after {len(data)} of {count} bytes")
            data += piece
        return data

    def read_pdu(self) -> tuple[int, bytes]:
        kind, _, length = struct.unpack(">BBL", self.read(6))
        return kind, self.read(length)

    def is_closed(self) -> bool:
        """Read until the end; what comes before it is thrown away."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            return True
        return True

    def associate(self, contexts: Sequence[tuple[int, str, Sequence[str]]] = STANDARD, **titles: str) -> bytes:
        self.send(associate_rq(contexts, **titles))
        kind, body = self.read_pdu()
        assert kind == ASSOCIATE_AC, (kind, body)
        return body

    def store_bytes(
        self, sop_instance: bytes, content: bytes, *, piece_bytes: int = 16000, context_id: int = 3, **command: object
    ) -> bytes:
        pdus = [pdu(P_DATA, pdv(context_id, 3, store_command(sop_instance, **command)))]  # type: ignore[arg-type]
        starts = range(0, max(len(content), 1), piece_bytes)
        for start in starts:
            is_last = start + piece_bytes >= len(content)
            pdus.append(pdu(P_DATA, pdv(context_id, 2 if is_last else 0, content[start : start + piece_bytes])))
        return b"".join(pdus)

    def store(self, sop_instance: bytes | str, content: bytes, **options: object) -> Answer:
        name = sop_instance if isinstance(sop_instance, bytes) else sop_instance.encode()
        self.send(self.store_bytes(name, content, **options))  # type: ignore[arg-type]
        return self.answer()

    def answer(self) -> Answer:
        kind, body = self.read_pdu()
        assert kind == P_DATA, (kind, body)
        (length,) = struct.unpack_from(">L", body)
        assert body[5] == 3
        found: dict[int, bytes] = {}
        data = body[6 : 4 + length]
        while data:
            _group, number, size = struct.unpack_from("<HHL", data)
            found[number] = data[8 : 8 + size]
            data = data[8 + size :]
        short = {number: struct.unpack("<H", found[number])[0] for number in (0x0100, 0x0120, 0x0900)}
        return Answer(
            short[0x0100], short[0x0120], short[0x0900], found.get(0x0902, b"").decode().strip(),
            found.get(0x1000, b"").rstrip(b"\0"),
        )  # fmt: skip

    def release(self) -> None:
        self.send(pdu(RELEASE_RQ, bytes(4)))
        kind, _ = self.read_pdu()
        assert kind == RELEASE_RP


class Receiver:
    """The receiving half of a node on loopback, in this process."""

    def __init__(
        self,
        root: Path,
        config: Config,
        *,
        listening_address: str,
        supported: Mapping[str, PresentationContext] | None,
    ) -> None:
        self.layout = Layout(root, root / "results")
        self.layout.create()
        self.over_limit = False
        self.shared = Shared(
            config,
            listening_address,
            Spool(self.layout.incoming),
            Doorbell(self.layout.run),
            slots=Slots(self.layout.run),
        )
        self.host = Host(self.shared, on_ended=self._on_ended, supported=supported)
        self.ended = 0
        self.started: list[SyncAssociation] = []
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="accept")
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            association = self.host.serve(connection, over_limit=self.over_limit)
            with self._changed:
                if association is not None:
                    self.started.append(association)
                self._changed.notify_all()

    def _on_ended(self, _ended: Ended) -> None:
        with self._changed:
            self.ended += 1
            self._changed.notify_all()

    def wait_ended(self, count: int) -> None:
        """Wait until ``count`` connections have come and gone."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.ended >= count, PATIENCE_S)

    def wait_started(self, count: int) -> SyncAssociation:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.started) >= count, PATIENCE_S)
            return self.started[count - 1]

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.host.abort_all()
        self.shared.doorbell.close()

    def kept(self) -> list[bytes]:
        """Return the data sets of the journal in their order of arrival."""
        return [data_set_of(path) for path in sorted(self.layout.incoming.glob("*/*.dcm"))]

    def files(self) -> list[str]:
        return sorted(path.name for path in self.layout.incoming.glob("*/*") if path.name != JOURNAL_NAME)

    def journals(self) -> list[str]:
        return [path.read_text() for path in sorted(self.layout.incoming.glob(f"*/{JOURNAL_NAME}"))]


def data_set_of(path: Path) -> bytes:
    content = path.read_bytes()
    meta = read_meta(content)
    assert meta is not None
    return content[meta.dataset_start :]


@contextmanager
def receiver(
    root: Path,
    config: Config | None = None,
    *,
    listening_address: str = "127.0.0.1",
    supported: Mapping[str, PresentationContext] | None = None,
) -> Iterator[Receiver]:
    running = Receiver(root, config or Config(), listening_address=listening_address, supported=supported)
    try:
        yield running
    finally:
        running.close()
