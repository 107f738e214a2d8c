"""The receive role as a process: limits, children that die, reload, drain."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import socket
from pathlib import Path

import pytest

from tests.wire_peers import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    PATIENCE_S,
    STANDARD,
    RawPeer,
    associate_rq,
    data_set,
    data_set_of,
    uid,
)
from tests.wire_roles import ReceiveRole, receive_role, wait_until

pytestmark = pytest.mark.acceptance


def kept(role: ReceiveRole) -> list[bytes]:
    return [data_set_of(path) for path in sorted((role.root / "incoming").glob("*/*.dcm"))]


def ends(role: ReceiveRole) -> list[str]:
    journals = sorted((role.root / "incoming").glob("*/association.jsonl"))
    return [path.read_text().rpartition('"how": "')[2].partition('"')[0] for path in journals]


def test_the_run_file_tells_port_and_counts(tmp_path: Path) -> None:
    with receive_role(tmp_path) as role, RawPeer(role.wait_ready()) as peer:
        peer.associate()
        assert peer.store(uid(5), data_set(uid(5))).status == 0
        assert peer.store(uid(6), b"").status == 0xC000
        wait_until(lambda: role.counters()["instances"] == {"0000": 1, "C000": 1}, "the counts")
        counters = role.counters()
        assert counters["associations"] == {"open": 1, "total": 1, "refused": 0}
        assert counters["bytes"] == len(data_set(uid(5)))
        assert counters["storage"] == "ok"
        peer.release()
        peer.socket.close()
        wait_until(lambda: role.counters()["associations"]["open"] == 0, "the end")
        assert role.counters()["ended"] == {"released": 1}


def test_exit_codes_of_what_cannot_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = ReceiveRole(tmp_path, **{"node.port": taken.getsockname()[1]})
        assert busy.wait_exit() == 69
    public = ReceiveRole(tmp_path, **{"node.host": "0.0.0.0"})
    assert public.wait_exit() == 78
    with receive_role(tmp_path) as first:
        first.wait_ready()
        assert ReceiveRole(tmp_path).wait_exit() == 69


def test_more_than_the_limit_are_told_so(tmp_path: Path) -> None:
    with receive_role(tmp_path, **{"receiver.max_associations": 2, "receiver.processes": 2}) as role:
        port = role.wait_ready()
        with RawPeer(port) as one, RawPeer(port) as two, RawPeer(port) as three:
            one.associate()
            two.associate()
            three.send(associate_rq(STANDARD))
            assert three.read_pdu() == (ASSOCIATE_RJ, bytes([0, 2, 3, 2]))
            three.socket.close()
            one.release()
            one.socket.close()
            wait_until(lambda: role.counters()["associations"]["open"] == 1, "a free place")
            with RawPeer(port) as four:
                four.associate()
                four.release()
            two.release()


def test_a_child_that_is_killed_is_replaced_and_what_it_acknowledged_is_there(tmp_path: Path) -> None:
    with receive_role(tmp_path) as role:
        port = role.wait_ready()
        with RawPeer(port) as peer:
            peer.associate()
            assert peer.store(uid(5), data_set(uid(5))).status == 0
            (child,) = role.counters()["receivers"]
            with os.fdopen(os.pidfd_open(child)) as life:
                os.kill(child, signal.SIGKILL)
                # Its end of the acceptor's channel closes last.
                assert select.select([life], [], [], PATIENCE_S)[0]
            assert peer.is_closed()
        # The connection waits in the backlog until somebody serves again.
        with RawPeer(port) as peer:
            peer.associate()
            assert peer.store(uid(6), data_set(uid(6))).status == 0
            peer.release()
        assert kept(role) == [data_set(uid(5)), data_set(uid(6))]
        # Counters are of the last second: the end of the child may not have been in them yet.
        wait_until(lambda: role.counters()["receivers"] not in ([child], []), "the new child in the counters")


def drains_since(role: ReceiveRole) -> list[str]:
    """Return when each child that drains last wrote its report."""
    reports = [json.loads(file.read_text()) for file in (role.root / "run").glob("receiver-*.json")]
    return [report["at"] for report in reports if report["state"] == "draining"]


def test_drain_lets_an_association_finish_and_takes_no_new_one(tmp_path: Path) -> None:
    with receive_role(tmp_path) as role:
        port = role.wait_ready()
        with RawPeer(port) as peer:
            peer.associate()
            role.signal(signal.SIGTERM)
            wait_until(lambda: role.report().get("state") == "draining", "the drain")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
            # The child has begun as well, and has gone on for a while.
            seen: set[str] = set()
            wait_until(lambda: seen.update(drains_since(role)) or len(seen) > 1, "the drain of the child")  # type: ignore[func-returns-value]
            assert peer.store(uid(5), data_set(uid(5))).status == 0
            peer.release()
        assert role.wait_exit() == 0
        assert kept(role) == [data_set(uid(5))]
        assert ends(role) == ["released"]


def test_drain_aborts_what_does_not_finish(tmp_path: Path) -> None:
    with receive_role(tmp_path, **{"node.drain_s": 0.1}) as role, RawPeer(role.wait_ready()) as peer:
        peer.associate()
        assert peer.store(uid(5), data_set(uid(5))).status == 0
        role.signal(signal.SIGTERM)
        assert peer.read_pdu()[0] == ABORT
        peer.socket.close()
        assert role.wait_exit() == 0
        assert ends(role) == ["drained"]
        assert not list((role.root / "run").glob("*.json"))


def test_hangup_takes_over_what_can_be_and_keeps_associations(tmp_path: Path) -> None:
    with receive_role(tmp_path) as role:
        port = role.wait_ready()
        before = role.report()["config"]
        with RawPeer(port) as peer:
            peer.associate(called="ANYBODY")
            role.write_settings(**{"node.called_ae_titles": ["CTNODE"]})
            role.signal(signal.SIGHUP)
            wait_until(lambda: role.report()["config"] != before, "the reload")

            def is_refused() -> bool:
                with RawPeer(port) as other:
                    other.send(associate_rq(STANDARD, called="ANYBODY"))
                    return other.read_pdu() == (ASSOCIATE_RJ, bytes([0, 1, 1, 7]))

            wait_until(is_refused, "the children")
            assert peer.store(uid(5), data_set(uid(5))).status == 0
            peer.release()
        role.settings.write_text('{"node.port": "none"}')
        role.signal(signal.SIGHUP)
        wait_until(lambda: "not reloaded" in role.log.read_text(), "the complaint")
        with RawPeer(port) as peer:
            peer.associate(called="CTNODE")


def test_no_room_is_seen_and_goes_away_again(tmp_path: Path) -> None:
    with receive_role(tmp_path) as role:
        port = role.wait_ready()
        with RawPeer(port) as before:
            before.associate()
            role.write_settings(**{"storage.reserve_mb": 1 << 40})
            role.signal(signal.SIGHUP)
            wait_until(lambda: role.counters()["storage"] != "ok", "the fault")
            with RawPeer(port) as peer:
                peer.send(associate_rq(STANDARD))
                assert peer.read_pdu() == (ASSOCIATE_RJ, bytes([0, 2, 3, 1]))
            # The reserve is for those who are at it.
            assert before.store(uid(5), data_set(uid(5))).status == 0
        role.write_settings(**{"storage.reserve_mb": 0})
        role.signal(signal.SIGHUP)
        wait_until(lambda: role.counters()["storage"] == "ok", "room")

        def is_admitted() -> bool:
            with RawPeer(port) as peer:
                peer.send(associate_rq(STANDARD))
                return peer.read_pdu()[0] == ASSOCIATE_AC

        wait_until(is_admitted, "the children")


def test_children_end_when_the_acceptor_is_killed(tmp_path: Path) -> None:
    with receive_role(tmp_path, **{"receiver.processes": 2}) as role:
        role.wait_ready()
        wait_until(lambda: len(role.counters().get("receivers", [])) == 2, "both children")
        children = [os.pidfd_open(pid) for pid in role.counters()["receivers"]]
        role.signal(signal.SIGKILL)
        role.wait_exit()
        for child in children:
            assert select.select([child], [], [], PATIENCE_S)[0], "a child lives on"
            os.close(child)


def test_a_second_processor_hashes_only_for_who_is_alone(tmp_path: Path) -> None:
    numbers = itertools.count(5)

    def threads(child: int) -> int:
        return len(os.listdir(f"/proc/{child}/task"))

    def store(peer: RawPeer) -> None:
        name = uid(next(numbers))
        assert peer.store(name, data_set(name, pixels=bytes(600_000))).status == 0

    with receive_role(tmp_path, **{"receiver.processes": 1}) as role:
        port = role.wait_ready()
        (child,) = wait_until(lambda: role.counters().get("receivers"), "the receiver")
        before = threads(child)
        with RawPeer(port) as peer:
            with RawPeer(port) as idle:
                peer.associate()
                idle.associate()
                with RawPeer(port) as later:
                    # Who comes later is served after the receiver was told that there are two.
                    later.associate()
                    later.release()
                wait_until(lambda: threads(child) == before + 2, "one thread for each")
                store(peer)
                assert threads(child) == before + 2
                idle.release()
            wait_until(lambda: threads(child) == before + 1, "the end of the other")
            wait_until(lambda: store(peer) or threads(child) == before + 2, "the thread that hashes")  # type: ignore[func-returns-value]
            peer.release()
