"""The receive role in operation: places for each address, sockets of the service manager, senders that wait."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ctnode.archive import rejections
from tests.certificates import Authority
from tests.wire_peers import ASSOCIATE_RJ, STANDARD, RawPeer, associate_rq, data_set, data_set_of, uid
from tests.wire_roles import SCRIPT, ReceiveRole, receive_role, wait_until

pytestmark = pytest.mark.acceptance

TOO_MANY = bytes([0, 2, 3, 2])

# The service manager hands its sockets over as descriptors from 3 on.
HAND_OVER = """
import os, sys
listening, names = sys.argv[1].split(","), sys.argv[2]
spare = [os.dup2(int(descriptor), 100 + place) for place, descriptor in enumerate(listening)]
for place, descriptor in enumerate(spare):
    os.dup2(descriptor, 3 + place)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(spare)), "LISTEN_FDNAMES": names}
sys.argv = ["-c", *sys.argv[3:]]
"""


class ActivatedRole(ReceiveRole):
    """The role as the service manager starts it: the sockets are not its own."""

    def __init__(self, folder: Path, listeners: dict[str, socket.socket], **overrides: object) -> None:
        self.listeners = listeners
        super().__init__(folder, **overrides)

    def start(self) -> None:
        descriptors = [listener.fileno() for listener in self.listeners.values()]
        with self.log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-c", HAND_OVER + SCRIPT, ",".join(map(str, descriptors)),
                    ":".join(self.listeners), str(self.settings),
                ],
                stderr=stderr, start_new_session=True, pass_fds=descriptors,
            )  # fmt: skip


@contextmanager
def activated(folder: Path, listeners: dict[str, socket.socket], **overrides: object) -> Iterator[ActivatedRole]:
    role = ActivatedRole(folder, listeners, **overrides)
    try:
        yield role
        role.signal(signal.SIGTERM)
        assert role.wait_exit() == 0, role.log.read_text()
    finally:
        role.end()


def test_one_address_has_no_more_than_its_places_over_all_processes(tmp_path: Path) -> None:
    with receive_role(tmp_path, **{"receiver.max_per_address": 2, "receiver.processes": 2}) as role:
        port = role.wait_ready()
        with RawPeer(port) as one, RawPeer(port) as two, RawPeer(port) as three:
            one.associate()
            two.associate()
            three.send(associate_rq(STANDARD, calling="THIRD"))
            assert three.read_pdu() == (ASSOCIATE_RJ, TOO_MANY)
            three.socket.close()
            wait_until(lambda: role.counters()["associations"]["open"] == 2, "the third to be gone")
            # Another address of this host has places of its own.
            other = socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0))
            four = RawPeer.__new__(RawPeer)
            four.socket = other
            with four:
                four.associate()
                four.release()
            one.release()
            two.release()
        told = tmp_path / "root" / "run" / "rejections.jsonl"
        (line,) = wait_until(lambda: list(rejections.read(told)), "the entry")
        assert (line.calling_ae, line.address, line.reason) == ("THIRD", "127.0.0.1", "too many associations")


def test_a_peer_has_no_more_than_its_places_over_all_processes(tmp_path: Path) -> None:
    peers = [{"name": "ct1", "ae_title": "CT1", "host": "127.0.0.1", "max_associations": 1}]
    with receive_role(tmp_path, **{"receiver.processes": 2}, peers=peers) as role:
        port = role.wait_ready()
        with RawPeer(port) as one, RawPeer(port) as two:
            one.associate(calling="CT1")
            two.send(associate_rq(STANDARD, calling="CT1"))
            assert two.read_pdu() == (ASSOCIATE_RJ, TOO_MANY)
            # A receiver that dies takes its slots with it.
            killed = set(role.counters()["receivers"])
            for receiver in killed:
                os.kill(receiver, signal.SIGKILL)
            assert one.is_closed()
            # One that is on its way out may still be handed a connection.
            wait_until(lambda: not killed & set(role.counters()["receivers"]), "the end of both")
        with RawPeer(port) as three:
            three.associate(calling="CT1")
            three.release()


def test_a_sender_that_comes_while_the_role_is_dead_is_served_by_the_next(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        port = listener.getsockname()[1]
        with activated(tmp_path, {"ctnode.socket": listener}) as role:
            assert role.wait_ready() == port
            with RawPeer(port) as peer:
                peer.associate()
                assert peer.store(uid(1), data_set(uid(1))).status == 0
                role.signal(signal.SIGKILL)
                role.process.wait()
                assert peer.is_closed()
            waiting = [RawPeer(port) for _ in range(5)]
            for peer in waiting:
                peer.send(associate_rq(STANDARD))
            role.start()
            for number, peer in enumerate(waiting, start=2):
                with peer:
                    peer.read_pdu()
                    assert peer.store(uid(number), data_set(uid(number))).status == 0
                    peer.release()
            kept = sorted(data_set_of(path) for path in (role.root / "incoming").glob("*/*.dcm"))
            assert kept == sorted(data_set(uid(number)) for number in range(1, 7))
            role.wait_ready()


def test_a_restart_loses_no_sender(tmp_path: Path) -> None:
    """Drain, then start again: who connects in between waits in the backlog of the service manager's socket."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        port = listener.getsockname()[1]
        with activated(tmp_path, {"ctnode.socket": listener}) as role:
            role.wait_ready()
            with RawPeer(port) as open_one:
                open_one.associate()
                role.signal(signal.SIGTERM)
                wait_until(lambda: role.report().get("state") == "draining", "the drain")
                late = RawPeer(port)
                late.send(associate_rq(STANDARD))
                assert open_one.store(uid(1), data_set(uid(1))).status == 0
                open_one.release()
            assert role.wait_exit() == 0
            role.start()
            with late:
                late.read_pdu()
                assert late.store(uid(2), data_set(uid(2))).status == 0
                late.release()
            role.wait_ready()


def test_a_socket_with_tls_in_its_name_is_the_tls_port(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("node")
    files = {
        "tls.certificate": str(issued.certificate),
        "tls.key": str(issued.key),
        "tls.ca": str(authority.certificate),
    }
    with socket.create_server(("127.0.0.1", 0)) as plain, socket.create_server(("127.0.0.1", 0)) as secured:
        with activated(tmp_path, {"dicom-tls": secured, "dicom": plain}, **files) as role:
            assert role.wait_ready() == plain.getsockname()[1]
            assert role.counters()["tls_port"] == secured.getsockname()[1]
        without = ActivatedRole(tmp_path, {"dicom-tls": secured})
        assert without.wait_exit() == 78
