"""Peers that harm: each is cut in its time with the right PDU, and harms nobody but itself."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ctnode.config import Config
from ctnode.config import Receiver as ReceiverKeys
from ctnode.wire import stream
from ctnode.wire.knocks import INTERVAL_S
from tests.pdu_writer import (
    APPLICATION,
    CONTEXTS,
    HTTP,
    PROXY,
    TLS_HELLO,
    header,
    item,
    request,
    user_item,
)
from tests.wire_peers import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    ASSOCIATE_RQ,
    CT,
    EXPLICIT,
    P_DATA,
    RELEASE_RP,
    RELEASE_RQ,
    VERIFICATION,
    RawPeer,
    Receiver,
    command_set,
    data_set,
    pdu,
    pdv,
    receiver,
    store_command,
    uid,
)
from tests.wire_roles import wait_until

pytestmark = pytest.mark.integration

MR = "1.2.840.10008.5.1.4.1.1.4"
# Time-outs small enough to wait for and large enough that a peer in good faith keeps them on a busy machine.
TINY = ReceiverKeys(request_timeout_s=0.4, idle_timeout_s=0.4, pdu_timeout_s=0.4, max_object_mb=1)
OUR_FAULTS = {"association failed", "instance failed"}

UNEXPECTED = bytes([0, 0, 2, 2])
INVALID = bytes([0, 0, 2, 6])
UNRECOGNIZED = bytes([0, 0, 2, 1])
UNSPECIFIED = bytes([0, 0, 2, 0])
# AA-1: before there is an association the node is no service provider to the peer yet (PS3.8 9.2.3).
BEFORE_REQUEST = bytes(4)


class Legitimate(threading.Thread):
    """A sender in good faith that stores one instance after the other until it is told to stop."""

    def __init__(self, port: int) -> None:
        super().__init__(name="legitimate")
        self._peer = RawPeer(port)
        self._peer.associate(calling="LEGITIMATE")
        self._stop_wanted = threading.Event()
        self.progress = threading.Semaphore(0)
        self.sent: list[bytes] = []
        self.statuses: list[int] = []
        self.start()

    def run(self) -> None:
        with self._peer as peer:
            while not self._stop_wanted.is_set():
                name = uid(99, len(self.sent))
                content = data_set(name, pixels=os.urandom(20_000))
                self.sent.append(content)
                self.statuses.append(peer.store(name, content).status)
                self.progress.release()
            peer.release()

    def goes_on(self) -> None:
        """Wait until two more instances are acknowledged: one may have been on its way already."""
        for _ in range(2):
            assert self.progress.acquire(timeout=20)

    def end(self) -> None:
        self._stop_wanted.set()
        self.join()


class Watched(Receiver):
    """A receiver, a sender in good faith beside the peer under test, and what was logged."""

    lines: list[MutableMapping[str, Any]]
    legitimate: Legitimate

    def cuts(self) -> dict[str, int]:
        return dict(self.shared.tally.cut)

    def hostile_lines(self) -> list[MutableMapping[str, Any]]:
        return [line for line in self.lines if line.get("calling_ae") == "HOSTILE"]


@contextmanager
def watched(root: Path, keys: ReceiverKeys) -> Iterator[Watched]:
    """Run the receiver, and see that it is left as it was found."""
    with capture_logs() as lines, receiver(root) as running:
        assert isinstance(running, Receiver)
        running.__class__ = Watched
        node: Watched = running  # type: ignore[assignment]
        node.lines = lines
        node.legitimate = Legitimate(node.port)
        try:
            node.legitimate.goes_on()
            # What earlier tests let go of must not be closed while this one counts.
            gc.collect()
            open_before = descriptors()
            # Associations take over the time-outs when they begin: the one in good faith has begun.
            node.shared.apply(Config(receiver=keys))
            yield node
            node.legitimate.goes_on()
            for association in node.started[1:]:
                association.join(20)
                assert not association.is_alive()
            # The sender in good faith may have its part open or not; who ends a moment later is waited for.
            wait_until(lambda: descriptors() - open_before <= 1, "no descriptor more than before")
        finally:
            node.legitimate.end()
        assert set(node.legitimate.statuses) == {0}
        assert set(node.legitimate.sent) <= set(node.kept())
        assert not list(node.layout.incoming.glob("*/*.part"))
        assert not [line for line in lines if line["event"] in OUR_FAULTS]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Watched]:
    with watched(tmp_path, ReceiverKeys(max_object_mb=1)) as running:
        yield running


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Watched]:
    with watched(tmp_path, TINY) as running:
        yield running


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def associated(node: Receiver) -> RawPeer:
    peer = RawPeer(node.port)
    peer.associate(calling="HOSTILE")
    return peer


def drip(
    peer: RawPeer, data: bytes, *, every_s: float = 0.05, wrapped: Callable[[bytes], bytes] = lambda byte: byte
) -> int:
    """Send byte by byte until the node has something to say; return how many went out."""
    for number, byte in enumerate(data):
        try:
            peer.send(wrapped(bytes([byte])))
        except (BrokenPipeError, ConnectionResetError):
            return number
        if select.select([peer.socket], [], [], every_s)[0]:
            return number + 1
    raise AssertionError("it was never cut")


def only_line(node: Watched) -> MutableMapping[str, Any]:
    (line,) = node.hostile_lines()
    return line


# ------------------------------------------------------------------------------------------- before an association


def test_a_silent_peer_is_closed_and_counted(hasty: Watched) -> None:
    with RawPeer(hasty.port) as peer:
        assert peer.is_closed()
    hasty.wait_ended(1)
    assert (dict(hasty.shared.tally.ended), hasty.cuts()) == ({"unnegotiated": 1}, {"silent": 1})
    assert len(hasty.journals()) == 1


@pytest.mark.parametrize("sent", [1, 6, 50], ids=["one byte", "header", "half"])
def test_a_request_that_does_not_come_to_its_end_is_closed(hasty: Watched, sent: int) -> None:
    with RawPeer(hasty.port) as peer:
        peer.send(request()[:sent])
        assert peer.is_closed()
    hasty.wait_ended(1)
    assert hasty.cuts() == {"slow": 1}
    assert len(hasty.journals()) == 1


def test_a_request_byte_by_byte_has_no_more_time_than_another(hasty: Watched) -> None:
    with RawPeer(hasty.port) as peer:
        assert drip(peer, request()) < 30
        assert peer.is_closed()
    hasty.wait_ended(1)
    assert sum(hasty.cuts().values()) == 1


GARBAGE = {
    "http": HTTP,
    "tls": TLS_HELLO,
    "proxy": PROXY,
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zeros": bytes(500),
    "ones": b"\xff" * 500,
    "4 GiB": header(ASSOCIATE_RQ, 0xFFFFFFFF),
    "1 MiB": header(ASSOCIATE_RQ, (1 << 20) + 1),
    "data": pdu(P_DATA, pdv(3, 3, store_command(b"1.2"))),
    "release": pdu(RELEASE_RQ, bytes(4)),
    "release response": pdu(RELEASE_RP, bytes(4)),
    "acceptance": pdu(ASSOCIATE_AC, bytes(100)),
    "empty": pdu(ASSOCIATE_RQ, b""),
    "short": pdu(ASSOCIATE_RQ, bytes(67)),
    "no items": request((), application=b"", user=b""),
    "no contexts": request(()),
    "no application": request(application=b""),
    "two applications": request(application=item(0x10, APPLICATION) * 2),
    "no user": request(user=b""),
    "two users": request(user=user_item() * 2),
    "even": request(((2, CT.encode(), (EXPLICIT.encode(),)),)),
    "zero": request(((0, CT.encode(), (EXPLICIT.encode(),)),)),
    "twice": request((CONTEXTS[0], CONTEXTS[0])),
    "4,000": request([(number % 256, VERIFICATION.encode(), (EXPLICIT.encode(),)) for number in range(4000)]),
    "4,000 of one": request([(1, VERIFICATION.encode(), (EXPLICIT.encode(),))] * 4000),
    "no syntax": request(((1, CT.encode(), ()),)),
    "long name": request(((1, b"1" * 65, (EXPLICIT.encode(),)),)),
    "name of umlauts": request(((1, CT.encode(), (b"1.2.\xc4",)),)),
    "cut context": request(more=item(0x20, b"\1")),
    "long calling": request(calling=b"A" * 65),
    "long called": request(called=b"A" * 65),
    "item lies": request(more=item(0x20, bytes(10), length=11)),
    "item lies less": request(application=item(0x10, APPLICATION, length=5)),
    "inner lies": request(user=user_item(item(0x52, b"1.2", length=60000))),
    "many items": request(user=user_item(item(0x5F, b"") * 16_000), more=item(0x77, b"") * 4000),
}


@pytest.mark.parametrize("sent", GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_request_is_aborted_and_leaves_no_journal(node: Watched, sent: bytes) -> None:
    with RawPeer(node.port) as peer:
        peer.send(sent)
        assert peer.read_pdu() == (ABORT, BEFORE_REQUEST)
        peer.socket.close()
    node.wait_ended(1)
    assert dict(node.shared.tally.ended) == {"unnegotiated": 1}
    assert sum(node.cuts().values()) == 1
    assert len(node.journals()) == 1
    assert node.hostile_lines() == []


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (request(calling=b"ABC\xc4\xd6"), (1, 1, 3)),
        (request(calling=b""), (1, 1, 3)),
        (request(calling=b"A\\B"), (1, 1, 3)),
        (request(calling=b"A\nB"), (1, 1, 3)),
        (request(called=b"\xff" * 16), (1, 1, 7)),
        (request(called=b"CT\0NODE"), (1, 1, 7)),
        (request(application=item(0x10, b"1.2.3")), (1, 1, 2)),
        (request(version=2), (1, 2, 2)),
    ],
    ids=["calling", "blank", "backslash", "control", "called", "nul", "application", "version"],
)
def test_a_head_that_cannot_be_served_is_rejected(node: Watched, sent: bytes, answer: tuple[int, int, int]) -> None:
    with RawPeer(node.port) as peer:
        peer.send(sent)
        assert peer.read_pdu() == (ASSOCIATE_RJ, bytes([0, *answer]))
        assert peer.is_closed()
    node.wait_ended(1)
    assert len(node.journals()) == 1


@pytest.mark.parametrize(
    "sent",
    [
        request(version=0x8001),
        request(calling=b"HOSTILE\0\0", called=b"CTNODE\0\0\0\0\0\0\0\0\0\0"),
        request(more=item(0x77, b"from a later edition")),
        request(user=user_item(item(0x5F, b"from a later edition"))),
        request(user=user_item(limit=None)),
        request(user=user_item(limit=0)),
        request(user=user_item(limit=1)),
        request(user=user_item(limit=6)),
        request(user=user_item(limit=7)),
        request(user=user_item(limit=0xFFFFFFFF)),
    ],
    ids=["version", "nul padding", "item", "user item", "no limit", "0", "1", "6", "7", "max"],
)
def test_what_the_standard_lets_pass_is_served(node: Watched, sent: bytes) -> None:
    echo = command_set({0x0002: VERIFICATION.encode(), 0x0100: 0x0030, 0x0110: 3, 0x0800: 0x0101})
    with RawPeer(node.port) as peer:
        peer.send(sent)
        assert peer.read_pdu()[0] == ASSOCIATE_AC
        if b"\x00\x00\x00\x07" not in sent:
            peer.send(pdu(P_DATA, pdv(1, 3, echo)))
            assert peer.answer().status == 0
        else:
            # One byte in each PDU.
            peer.send(pdu(P_DATA, pdv(1, 3, echo)))
            assert [peer.read_pdu() for _ in range(3)] == [(P_DATA, pdv(1, 1, piece)) for piece in (b"\0",) * 3]
        peer.socket.close()


# ---------------------------------------------------------------------------------------------- in an association


# A small data set of sequences in sequences, each of undefined length.
NESTED = struct.pack("<HH2sHLHHL", 0x0008, 0x1115, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF) * 1000
LYING = struct.pack(">LBB", 5000, 3, 3) + bytes(10)
CUT: dict[str, tuple[bytes, bytes, str]] = {
    "unknown pdu": (pdu(0x99, bytes(4)), UNRECOGNIZED, "malformed"),
    "tls": (TLS_HELLO, UNRECOGNIZED, "malformed"),
    "second request": (request(), UNEXPECTED, "unexpected"),
    "acceptance": (pdu(ASSOCIATE_AC, bytes(100)), UNEXPECTED, "unexpected"),
    "rejection": (pdu(ASSOCIATE_RJ, bytes([0, 1, 1, 1])), UNEXPECTED, "unexpected"),
    "release response": (pdu(RELEASE_RP, bytes(4)), UNEXPECTED, "unexpected"),
    "longer than announced": (header(P_DATA, ReceiverKeys().max_pdu + 1), INVALID, "oversized"),
    "4 GiB": (header(P_DATA, 0xFFFFFFFF), INVALID, "oversized"),
    "long release": (header(RELEASE_RQ, 1 << 20), INVALID, "oversized"),
    "empty pdu": (pdu(P_DATA, b""), INVALID, "malformed"),
    "empty pdv": (pdu(P_DATA, struct.pack(">L", 0)), INVALID, "malformed"),
    "pdv of 1": (pdu(P_DATA, struct.pack(">LB", 1, 3)), INVALID, "malformed"),
    "cut pdv": (pdu(P_DATA, b"\0\0\0"), INVALID, "malformed"),
    "lying pdv": (pdu(P_DATA, LYING), INVALID, "malformed"),
    "pdv of 4 GiB": (pdu(P_DATA, b"\xff" * 4 + LYING[4:]), INVALID, "malformed"),
    "unknown context": (pdu(P_DATA, pdv(7, 3, store_command(b"1.2"))), INVALID, "malformed"),
    "context zero": (pdu(P_DATA, pdv(0, 3, store_command(b"1.2"))), INVALID, "malformed"),
    "refused context": (pdu(P_DATA, pdv(9, 3, store_command(b"1.2"))), INVALID, "malformed"),
    "data first": (pdu(P_DATA, pdv(3, 2, b"data")), UNEXPECTED, "malformed"),
    "two commands": (pdu(P_DATA, pdv(3, 3, store_command(b"1.2")) * 2), UNEXPECTED, "malformed"),
    "no data set type": (pdu(P_DATA, pdv(3, 3, command_set({0x0100: 1, 0x0110: 1}))), INVALID, "malformed"),
    "no message id": (pdu(P_DATA, pdv(3, 3, command_set({0x0100: 1, 0x0800: 0}))), INVALID, "malformed"),
    "empty command": (pdu(P_DATA, pdv(3, 3, b"")), INVALID, "malformed"),
    "endless command": (pdu(P_DATA, pdv(3, 1, bytes(60_000))) * 2, INVALID, "malformed"),
    "cut command": (pdu(P_DATA, pdv(3, 3, b"\0" * 7)), INVALID, "malformed"),
    "unknown command": (
        pdu(P_DATA, pdv(3, 3, command_set({0x0100: 0x0FEE, 0x0110: 1, 0x0800: 0x0101}))), INVALID, "malformed",
    ),
    "endless data set": (b"", UNSPECIFIED, "too much"),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "reason", "cause"), CUT.values(), ids=CUT)
def test_what_no_association_survives_is_aborted(node: Watched, sent: bytes, reason: bytes, cause: str) -> None:
    with associated(node) as peer:
        if not sent:
            sent = peer.store_bytes(uid(7).encode(), bytes(2_200_000))
        peer.send(sent)
        assert peer.read_pdu() == (ABORT, reason)
        assert peer.is_closed()
    node.wait_ended(1)
    assert node.cuts() == {cause: 1}
    line = only_line(node)
    assert (line["state"], bool(line["reason"])) == ("aborted", True)


@pytest.mark.parametrize("kind", ["idle", "in a data set", "in a pdu", "drip", "small pieces"])
def test_a_peer_that_does_not_get_on_is_aborted(hasty: Watched, kind: str) -> None:
    with associated(hasty) as peer:
        begun = pdu(P_DATA, pdv(3, 3, store_command(uid(5).encode())) + pdv(3, 0, data_set(uid(5))))
        if kind in {"in a data set", "small pieces"}:
            peer.send(begun)
        elif kind == "in a pdu":
            peer.send(begun[:100])
        if kind == "drip":
            assert drip(peer, begun) < 30
        elif kind == "small pieces":
            # Whole PDUs, each in time; but it would go on for days.
            assert drip(peer, bytes(40), every_s=0.3, wrapped=lambda byte: pdu(P_DATA, pdv(3, 0, byte))) < 30
        assert peer.read_pdu()[0] == ABORT
    hasty.wait_ended(1)
    assert hasty.cuts() == {"idle" if kind == "idle" else "slow": 1}
    assert only_line(hasty)["state"] == ("idle" if kind == "idle" else "lost")


def test_a_pdu_has_a_deadline_of_its_own(tmp_path: Path) -> None:
    with watched(tmp_path, ReceiverKeys(pdu_timeout_s=0.4)) as node:
        with associated(node) as peer:
            assert drip(peer, pdu(P_DATA, pdv(3, 3, store_command(uid(5).encode())))) < 30
            assert peer.read_pdu()[0] == ABORT
        node.wait_ended(1)
        assert node.cuts() == {"slow": 1}


def test_half_open_connections_are_noticed_by_the_kernel(node: Watched) -> None:
    with associated(node):
        connection = node.wait_started(2).stream.connection
        tcp = socket.IPPROTO_TCP
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        probing_s = connection.getsockopt(tcp, socket.TCP_KEEPIDLE)
        probing_s += connection.getsockopt(tcp, socket.TCP_KEEPINTVL) * connection.getsockopt(tcp, socket.TCP_KEEPCNT)
        assert 0 < probing_s <= 90
        assert 0 < connection.getsockopt(tcp, socket.TCP_USER_TIMEOUT) <= 90_000


SO_ATTACH_FILTER = 26


def vanish(peer: RawPeer) -> None:
    """Make the peer's kernel deaf to the connection, without a word to the other side: a cable that is pulled."""
    accept_nothing = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(accept_nothing))
    peer.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


@pytest.mark.parametrize("has_data_under_way", [False, True], ids=["keep-alive", "user time-out"])
def test_a_half_open_connection_ends_long_before_its_idle_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_data_under_way: bool
) -> None:
    for name, value in {"KEEPALIVE_IDLE_S": 1, "KEEPALIVE_INTERVAL_S": 1, "KEEPALIVE_PROBES": 2}.items():
        monkeypatch.setattr(stream, name, value)
    monkeypatch.setattr(stream, "USER_TIMEOUT_MS", 2000)
    with watched(tmp_path, ReceiverKeys(idle_timeout_s=600.0, pdu_timeout_s=600.0)) as node, associated(node) as peer:
        begun = pdu(P_DATA, pdv(3, 3, store_command(uid(5).encode())) + pdv(3, 0, data_set(uid(5))))
        if has_data_under_way:
            # An answer that nobody confirms.
            vanish(peer)
            peer.send(peer.store_bytes(uid(5).encode(), data_set(uid(5))))
        else:
            peer.send(begun)
            wait_until(lambda: node.wait_started(2).dul.assembler.in_message, "the data set to have begun")  # type: ignore[union-attr]
            vanish(peer)
        node.wait_ended(1)
        assert only_line(node)["state"] == "lost"


def reset(peer: RawPeer) -> None:
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.socket.close()


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (lambda peer: peer.send(pdu(ABORT, bytes(4))), "aborted"),
        (reset, "lost"),
        (lambda peer: peer.socket.close(), "lost"),
        (lambda peer: peer.socket.shutdown(socket.SHUT_WR), "lost"),
    ],
    ids=["abort", "reset", "close", "half close"],
)
def test_an_end_in_the_middle_of_a_data_set(node: Watched, end: Callable[[RawPeer], None], state: str) -> None:
    with associated(node) as peer:
        peer.send(pdu(P_DATA, pdv(3, 3, store_command(uid(5).encode())) + pdv(3, 0, data_set(uid(5)))))
        node.wait_started(2)
        end(peer)
        node.wait_ended(1)
    assert only_line(node)["state"] == state
    assert node.cuts() == {}


def test_stores_without_waiting_are_held_back(node: Watched) -> None:
    """A sender that never reads its answers fills the buffers of the kernel, none of ours, and is cut."""
    node.shared.apply(Config(receiver=ReceiverKeys(idle_timeout_s=1.0)))
    with associated(node) as peer:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one = pdu(P_DATA, pdv(3, 3, store_command(b"..")) + pdv(3, 2, b"x"))
        sent = 0
        try:
            while sent < 1 << 30:
                peer.send(one * 1000)
                sent += 1000 * len(one)
                stream = node.wait_started(2).stream
                assert len(stream.view) <= 1 << 19
        except OSError:
            pass
        assert sent < 1 << 28
    node.wait_ended(1)
    assert only_line(node)["state"] == "lost"


class Vanishing(socket.socket):
    """A connection whose peer resets it before the call of a certain number."""

    calls_left = 0

    def _count(self) -> None:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    def getpeername(self) -> Any:
        self._count()
        return super().getpeername()

    def getsockname(self) -> Any:
        self._count()
        return super().getsockname()

    def setsockopt(self, *arguments: Any) -> None:
        self._count()
        super().setsockopt(*arguments)


def test_a_peer_that_vanishes_while_it_is_let_in(node: Watched) -> None:
    served = None
    for calls in range(20):
        ours, theirs = socket.socket(), socket.create_server(("127.0.0.1", 0))
        with theirs:
            ours.connect(theirs.getsockname())
            accepted, _ = theirs.accept()
        connection = Vanishing(fileno=accepted.detach())
        connection.calls_left = calls
        open_before = len(node.host.associations)
        served = node.host.serve(connection)
        ours.close()
        if served is not None:
            assert calls > 5
            served.join(20)
            break
        assert len(node.host.associations) == open_before
        assert connection.fileno() == -1
    assert served is not None


# ------------------------------------------------------------------------------------------------ one instance only


def test_an_object_over_the_limit_costs_itself(node: Watched) -> None:
    with associated(node) as peer:
        assert peer.store(uid(5), data_set(uid(5), pixels=bytes(1_500_000))).status == 0xC000
        assert peer.store(uid(6), data_set(uid(6))).status == 0
        peer.release()


def test_an_object_of_a_class_that_its_context_was_not_negotiated_for(node: Watched) -> None:
    content = data_set(uid(5), sop_class=MR)
    with associated(node) as peer:
        assert peer.store(uid(5), content, sop_class=MR.encode()).status == 0x0122
        assert peer.store(uid(5), content, sop_class=CT.encode()).status == 0xA900
        assert peer.store(uid(5), content, context_id=1, sop_class=MR.encode()).status == 0x0122
        assert peer.store(uid(6), data_set(uid(6))).status == 0
        peer.release()


def test_thousands_of_bad_instances_are_few_lines(node: Watched) -> None:
    with associated(node) as peer:
        for name in (b"..", b"../x", b"", b"1" * 65, b"1.2\0.3", b"/etc/passwd", b"a/b", b"1.2\\3") * 10:
            assert peer.store(name, data_set("1.2.3")).status == 0xC000
        peer.release()
    node.wait_ended(1)
    refused = [line for line in node.lines if line["event"] == "instance refused"]
    assert len(refused) <= 3
    assert only_line(node)["instances"] == {"C000": 80}


# ------------------------------------------------------------------------------------------------------- the crowd


def test_connections_that_ask_for_nothing_are_one_line(node: Watched) -> None:
    def come_and_go(sent: Sequence[bytes]) -> None:
        for content in sent:
            with RawPeer(node.port) as peer:
                if content:
                    peer.send(content)
                    peer.is_closed()

    count = 200
    come_and_go([b""] * (count - 20) + [HTTP] * 20)
    node.wait_ended(count)
    assert dict(node.shared.tally.ended) == {"unnegotiated": count}
    assert len(node.journals()) == 1
    knocks = node.shared.knocks
    knocks.tell()
    assert [line for line in node.lines if "address" in line] == []
    knocks._clock = lambda: time.monotonic() + INTERVAL_S
    knocks.tell()
    (line,) = [line for line in node.lines if "address" in line]
    assert (line["address"], line["count"]) == ("127.0.0.1", count)
    assert line["reason"] == "closed 180, garbage 20"
    knocks.tell(all_of_them=True)
    assert len([line for line in node.lines if "address" in line]) == 1


def test_a_crowd_of_silent_peers_goes_and_the_sender_stays(hasty: Watched) -> None:
    crowd = [socket.create_connection(("127.0.0.1", hasty.port)) for _ in range(100)]
    hasty.wait_ended(100)
    for connection in crowd:
        connection.close()
    assert sum(hasty.cuts().values()) == 100


COMMITMENT = "1.2.840.10008.1.20.1"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
REQUESTS = (0x0010, 0x0020, 0x0021, 0x0030, 0x0100, 0x0110, 0x0120, 0x0130, 0x0140, 0x0150, 0x0FFF)


@pytest.mark.parametrize("sop_class", [VERIFICATION, CT, COMMITMENT, FIND, "1.2.3.4", ""])
@pytest.mark.parametrize("context_id", [1, 3])
@pytest.mark.parametrize("with_data", [False, True])
def test_services_that_nobody_negotiated(node: Watched, sop_class: str, context_id: int, *, with_data: bool) -> None:
    for field in REQUESTS + tuple(0x8000 | number for number in (*REQUESTS[:-1], 0x0001)):
        with associated(node) as peer:
            values: dict[int, bytes | int] = {
                0x0002: sop_class.encode(), 0x0003: sop_class.encode(), 0x0100: field, 0x0110: 1, 0x0120: 1, 0x0700: 0,
                0x0800: 0 if with_data else 0x0101, 0x0900: 0, 0x1000: b"1.2.3", 0x1001: b"1.2.3", 0x1002: 1, 0x1008: 1,
            }  # fmt: skip
            peer.send(pdu(P_DATA, pdv(context_id, 3, command_set(values))))
            if with_data:
                peer.send(pdu(P_DATA, pdv(context_id, 2, NESTED)))
            peer.socket.shutdown(socket.SHUT_WR)
            assert peer.is_closed()
