"""The receive role among health checks, scanners and the silent, as a process."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ctnode.wire.pacing import KNOCKS
from tests.fuzz_sessions import Figures
from tests.pdu_writer import HTTP, TLS_HELLO, header
from tests.wire_peers import (
    ABORT,
    ASSOCIATE_RQ,
    P_DATA,
    PATIENCE_S,
    RawPeer,
    data_set,
    data_set_of,
    pdu,
    pdv,
    store_command,
    uid,
)
from tests.wire_roles import ReceiveRole, receive_role, wait_until

pytestmark = pytest.mark.acceptance

CONNECTS = int(os.environ.get("CTNODE_TEST_CONNECTS", "2000"))
GROWTH_MB = 24
# The kernel may drop a connection that was reset before it was accepted.
LEAST_SEEN = 0.5
FAULTS = ("association failed", "instance failed", "receiver died", "Traceback")


@contextlib.contextmanager
def sender_beside(role: ReceiveRole, port: int) -> Iterator[None]:
    """Store instances in good faith all the time; each has to be acknowledged and kept."""
    contents: list[bytes] = []
    statuses: list[int] = []
    has_begun, stop_wanted = threading.Event(), threading.Event()

    def send() -> None:
        with RawPeer(port) as peer:
            peer.associate()
            has_begun.set()
            while not stop_wanted.is_set() or len(contents) < 10:
                contents.append(data_set(uid(5, len(contents)), pixels=os.urandom(20_000)))
                statuses.append(peer.store(uid(5, len(contents) - 1), contents[-1]).status)
            peer.release()

    sending = threading.Thread(target=send)
    sending.start()
    try:
        # Afterwards there may be no place from this address any more.
        assert has_begun.wait(PATIENCE_S)
        yield
    finally:
        stop_wanted.set()
        sending.join()
    assert statuses == [0] * len(contents)
    kept = {data_set_of(path) for path in (role.root / "incoming").glob("*/*.dcm")}
    assert set(contents) <= kept


@contextlib.contextmanager
def left_as_found(role: ReceiveRole) -> Iterator[int]:
    """Yield the process id of the receiver; afterwards it holds no more than before."""
    (child,) = wait_until(lambda: role.counters().get("receivers"), "the receiver")
    # The first associations load what is loaded once, and as many threads as these give the allocator its arenas.
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(RawPeer(int(role.counters()["port"]))) for _ in range(16)]
        for peer in peers:
            peer.associate()
        for peer in peers:
            assert peer.store(uid(1), data_set(uid(1))).status == 0
            peer.release()
    before = settled(role, child)
    yield child
    # A thread that has told of its end is not gone yet.
    after = wait_until(lambda: no_more_than(before, settled(role, child)), "what was taken to be given back")
    assert role.counters()["receivers"] == [child]
    assert after.resident_mb - before.resident_mb < GROWTH_MB
    assert not list((role.root / "incoming").glob("*/*.part"))
    assert not [line for line in role.log.read_text().splitlines() if any(fault in line for fault in FAULTS)]


def no_more_than(before: Figures, now: Figures) -> Figures | None:
    return now if now.threads <= before.threads and now.descriptors <= before.descriptors else None


def settled(role: ReceiveRole, child: int) -> Figures:
    wait_until(lambda: role.counters()["associations"]["open"] == 0, "the end of all associations")
    return Figures.of(child)


def lines(role: ReceiveRole, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, role.log.read_text().splitlines()) if line["event"] == event]


def test_a_health_check_leaves_nothing(tmp_path: Path) -> None:
    with receive_role(tmp_path) as role:
        port = role.wait_ready()
        with left_as_found(role):
            before = role.counters()["ended"].get("unnegotiated", 0)
            with sender_beside(role, port):
                for number in range(CONNECTS):
                    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                        if number % 4 == 1:
                            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        elif number % 4 == 3:
                            connection.sendall((HTTP, TLS_HELLO)[number % 8 // 4])

            def all_ended() -> dict[str, Any] | None:
                now = role.counters()
                seen = now["ended"].get("unnegotiated", 0) - before + now["associations"]["refused"]
                return now if now["associations"]["open"] == 0 and seen >= LEAST_SEEN * CONNECTS else None

            turned_away = wait_until(all_ended, "the end of all")["associations"]["refused"]
            assert len(list((role.root / "incoming").iterdir())) == 17
    told = lines(role, "connections without an association")
    # One for each minute that it took.
    assert 0 < len(told) <= 2 + CONNECTS // 1000
    assert LEAST_SEEN * CONNECTS <= sum(line["count"] for line in told) + turned_away <= CONNECTS
    assert len(role.log.read_text().splitlines()) < 20 + len(told)


def test_who_is_made_to_wait_is_answered_all_the_same(tmp_path: Path) -> None:
    """More garbage from one address than is let in at once: each gets its abort, and nothing is left behind."""
    with receive_role(tmp_path) as role:
        port = role.wait_ready()
        with left_as_found(role), sender_beside(role, port):
            for _ in range(2):
                with contextlib.ExitStack() as stack:
                    scanners = [stack.enter_context(RawPeer(port)) for _ in range(KNOCKS + 5)]
                    for scanner in scanners:
                        scanner.send(HTTP)
                    assert [scanner.read_pdu()[0] for scanner in scanners] == [ABORT] * len(scanners)
        wait_until(lambda: role.counters()["cut"].get("garbage") == 2 * (KNOCKS + 5), "the counts")


def announce(kind: int) -> Callable[[RawPeer], None]:
    def send(peer: RawPeer) -> None:
        peer.send(header(kind, 0xFFFFFFFF))
        flood(peer, bytes(1 << 20), 300)

    return send


def flood(peer: RawPeer, data: bytes, count: int) -> None:
    """Send until the node has had enough."""
    try:
        for _ in range(count):
            peer.send(data)
    except (ConnectionError, TimeoutError):
        return


def endless_data_set(peer: RawPeer) -> None:
    peer.send(pdu(P_DATA, pdv(3, 3, store_command(uid(9).encode()))))
    flood(peer, pdu(P_DATA, pdv(3, 0, bytes(100_000))), 3000)


def pipelined(peer: RawPeer) -> None:
    peer.socket.settimeout(2.0)
    flood(peer, peer.store_bytes(b"..", bytes(100_000)) * 10, 300)
    peer.socket.settimeout(PATIENCE_S)


@pytest.mark.parametrize(
    ("attack", "is_associated"),
    [(announce(ASSOCIATE_RQ), False), (announce(P_DATA), True), (endless_data_set, True), (pipelined, True)],
    ids=["4 GiB request", "4 GiB data", "endless data set", "pipelined"],
)
def test_what_does_not_end_takes_no_memory(
    tmp_path: Path, attack: Callable[[RawPeer], None], is_associated: bool
) -> None:
    keys = {"receiver.max_object_mb": 20, "receiver.idle_timeout_s": 2.0, "receiver.request_timeout_s": 2.0}
    with receive_role(tmp_path, **keys) as role:
        port = role.wait_ready()
        with left_as_found(role), sender_beside(role, port), RawPeer(port) as peer:
            if is_associated:
                peer.associate()
            attack(peer)
            peer.is_closed()


def test_the_run_file_tells_what_peers_were_cut_for(tmp_path: Path) -> None:
    with receive_role(tmp_path, **{"receiver.request_timeout_s": 1.0}) as role:
        port = role.wait_ready()
        with left_as_found(role), sender_beside(role, port):
            with RawPeer(port) as silent:
                assert silent.is_closed()
            with RawPeer(port) as web:
                web.send(HTTP)
                assert web.read_pdu()[0] == ABORT
            with RawPeer(port) as liar:
                liar.associate()
                liar.send(header(P_DATA, 0xFFFFFFFF))
                assert liar.read_pdu() == (ABORT, bytes([0, 0, 2, 6]))
        wait_until(
            lambda: role.counters()["cut"] == {"garbage": 1, "oversized": 1, "silent": 1}, "the counts of all three"
        )
        assert {"aborted": 1, "unnegotiated": 2}.items() <= role.counters()["ended"].items()
    (cut,) = [line for line in lines(role, "association ended") if line["state"] == "aborted"]
    assert cut["reason"] == "a PDU is longer than it may be"
