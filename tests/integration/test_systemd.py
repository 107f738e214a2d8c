"""The units hold what they say, and the node speaks the service manager's language.

There is no service manager in the tests: the units are checked offline, and its part of sd_notify(3) and
sd_listen_fds(3) is played by the test.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ctnode.ct.phantom import chest
from ctnode.ct.phantom_dicom import write_series
from ctnode.node import ROLES
from ctnode.wire.sender import Destination, Outcome, echo, send
from tests.harness import CEILING_S, LOOPBACK, REPOSITORY, Node, end, wait_until

pytestmark = pytest.mark.integration

UNITS = REPOSITORY / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
MOST_EXPOSURE = {
    "ctnode.service": 1.5,
    "ctnode-receive.service": 1.5,
    "ctnode-deliver.service": 1.5,
    "ctnode-web.service": 1.5,
    "ctnode-keep.service": 0.6,
    "ctnode-work@.service": 0.6,
}
# Two commands that need no installation stand for the two that the units start.
PROGRAMS = {"/opt/ctnode/bin/ctnode": "/bin/true", "/bin/kill": "/bin/true"}


def systemd_tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Return copies of the units that start programs which exist here."""
    copies = tmp_path / "units"
    copies.mkdir()
    for unit in UNITS.iterdir():
        if unit.suffix in {".service", ".socket", ".target"}:
            text = unit.read_text(encoding="utf-8")
            for program, stand_in in PROGRAMS.items():
                text = text.replace(f"={program} ", f"={stand_in} ")
            (copies / unit.name.replace("@.", "@1.")).write_text(text, encoding="utf-8")
    return copies


def analyze(*arguments: object) -> str:
    done = subprocess.run(
        [systemd_tool("systemd-analyze"), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=CEILING_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def settings(unit: str) -> dict[str, list[str]]:
    """Return the lines of a unit by key; a key may stand several times."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text(encoding="utf-8").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def write_chest(folder: Path) -> list[Path]:
    """Write a small series, 2.25.2."""
    folder.mkdir()
    voxels, _, grid = chest((12, 96, 96), (20.0, 4.0, 4.0))
    return write_series(folder, voxels, grid, study_uid="2.25.1", series_uid="2.25.2")


# --------------------------------------------------------------------------------------------------- units


def test_units_are_valid(units: Path) -> None:
    said = analyze("verify", *sorted(units.iterdir()))
    assert "ctnode" not in said, said


@pytest.mark.parametrize("unit", SERVICES)
def test_exposure_is_small(unit: str, units: Path) -> None:
    said = analyze("security", "--offline=true", "--no-pager", units / unit.replace("@.", "@1."))
    match = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", said)
    assert match is not None, said
    assert float(match[1]) <= MOST_EXPOSURE[unit], said


@pytest.mark.parametrize("unit", SERVICES)
def test_service_is_watched_and_started_again_but_not_with_a_bad_configuration(unit: str) -> None:
    lines = settings(unit)
    # Debian 12 and RHEL 9 have systemd 252, which ignores notify-reload.
    assert lines["Type"] == ["notify"]
    assert lines["WatchdogSec"] == ["60"]
    assert lines["Restart"] == ["on-failure"]
    assert lines["RestartPreventExitStatus"] == ["78"]
    assert lines["KillMode"] == ["mixed"]
    assert lines["ExecReload"] == ["/opt/ctnode/bin/ctnode check-config", "/bin/kill -HUP $MAINPID"]
    assert lines["StateDirectory"] == ["ctnode"]
    assert lines["StateDirectoryMode"] == ["0700"]
    assert lines["Environment"] == ["CTNODE_STORAGE__ROOT=/var/lib/ctnode"]


def test_each_role_has_a_unit() -> None:
    started = {settings(unit)["ExecStart"][0].removeprefix("/opt/ctnode/bin/ctnode ") for unit in SERVICES}
    assert started == {"run", *ROLES}


@pytest.mark.parametrize("unit", ["ctnode-work@.service", "ctnode-keep.service"])
def test_who_reads_foreign_bytes_or_owns_the_index_has_no_network(unit: str) -> None:
    lines = settings(unit)
    assert lines["PrivateNetwork"] == ["yes"]
    assert lines["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert lines["MemoryDenyWriteExecute"] == ["yes"]


def test_user_of_the_services_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    made = subprocess.run(
        [systemd_tool("systemd-sysusers"), f"--root={tmp_path}", UNITS / "ctnode.sysusers"],
        capture_output=True,
        text=True,
        timeout=CEILING_S,
        check=False,
    )
    if made.returncode and os.geteuid():
        pytest.skip("systemd-sysusers needs root to write another root's users")
    assert made.returncode == 0, made.stderr
    assert "ctnode:x:" in (tmp_path / "etc" / "passwd").read_text(encoding="utf-8")


UNDER_MDWE = """
import ctypes, sys
if ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0):
    raise SystemExit(77)
from ctnode.cli import main
sys.argv = ["ctnode", "process", sys.argv[1], "--out", sys.argv[2], "--json"]
main()
"""


def test_science_runs_where_no_memory_is_writable_and_executable(tmp_path: Path) -> None:
    """MemoryDenyWriteExecute= of the worker, by the kernel's own switch (PR_SET_MDWE, Linux 6.3 and later)."""
    write_chest(tmp_path / "in")
    done = subprocess.run(
        [sys.executable, "-c", UNDER_MDWE, tmp_path / "in", tmp_path / "out"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=CEILING_S,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["EXACT"]


# ------------------------------------------------------------------------------------------------ sd_notify


class ServiceManager:
    """The end of NOTIFY_SOCKET that a service manager holds; like one, it always reads."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(self.address)
        self._datagrams: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while datagram := self._socket.recv(4096):
            self._datagrams.put(datagram.decode().splitlines())

    def hear(self, line: str) -> list[str]:
        """Wait for a datagram that holds a line, and return its lines."""
        while True:
            lines = self._datagrams.get(timeout=CEILING_S)
            if line in lines:
                return lines

    def heard(self) -> list[str]:
        """Return all lines that came up to now."""
        found: list[str] = []
        with suppress(queue.Empty):
            while True:
                found += self._datagrams.get_nowait()
        return found

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.address)
        self._reader.join(CEILING_S)
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    playing = ServiceManager(tmp_path)
    yield playing
    playing.close()


def watched(folder: Path, manager: ServiceManager, **sections: object) -> Node:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "60000000"}
    return Node(folder, environment=environment, **sections)


def test_node_tells_its_service_manager_how_it_is(tmp_path: Path, manager: ServiceManager) -> None:
    with watched(tmp_path / "node", manager) as node:
        assert "STATUS=run ready" in manager.hear("READY=1")
        manager.hear("WATCHDOG=1")
        os.kill(node.pid, signal.SIGHUP)
        reloading = manager.hear("RELOADING=1")
        assert any(re.fullmatch(r"MONOTONIC_USEC=\d+", line) for line in reloading)
        manager.hear("READY=1")
        process = node.process
        assert process is not None
        process.terminate()
        manager.hear("STOPPING=1")
        assert process.wait(CEILING_S) == 0


def test_a_role_that_does_not_turn_stops_the_signs_of_life(tmp_path: Path, manager: ServiceManager) -> None:
    with watched(tmp_path / "node", manager) as node:
        manager.hear("READY=1")
        (deliverer,) = node.roles()["deliver"]
        os.kill(deliverer, signal.SIGSTOP)
        silent = node.wait_for(lambda: node.events("role is silent"), "the supervisor notices")
        assert [event["reason"] for event in silent] == ["deliver"]
        manager.heard()
        # The supervisor itself goes on: it reloads, but gives no sign of life.
        os.kill(node.pid, signal.SIGHUP)
        manager.hear("RELOADING=1")
        manager.hear("READY=1")
        assert "WATCHDOG=1" not in manager.heard()
        os.kill(deliverer, signal.SIGCONT)
        manager.hear("WATCHDOG=1")


HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_socket_handed_to_the_node_is_served_by_the_receiver(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0), backlog=16) as listener:
        port = listener.getsockname()[1]
        node = Node(tmp_path / "node", node={"port": 1})
        try:
            node.start(prefix=[sys.executable, "-c", HAND_OVER, str(listener.fileno())], pass_fds=[listener.fileno()])
            assert node.port == port
            assert echo(Destination("node", "CTNODE", LOOPBACK, port), "TEST", CEILING_S).ok
            assert node.terminate() == 0
        finally:
            node.kill()


# ------------------------------------------------------------------------------------------- split operation


@contextmanager
def role(node: Node, name: str, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run one role as a process of its own, as its unit does."""
    with (node.folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ctnode", "--config", str(node.config_file), name],
            cwd=REPOSITORY,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        end(process)


def port_of(node: Node) -> int:
    def told() -> int:
        for file in (node.root / "run").glob("receive-*.json"):
            with suppress(OSError, ValueError):
                return int(json.loads(file.read_text(encoding="utf-8"))["counters"].get("port", 0))
        return 0

    return wait_until(told, "the receiver tells its port")


def test_roles_started_one_by_one_are_a_node(tmp_path: Path, manager: ServiceManager) -> None:
    node = Node(tmp_path / "node")
    environment = {"NOTIFY_SOCKET": manager.address}
    files = write_chest(tmp_path / "sent")
    with (
        role(node, "keep", environment) as keep,
        role(node, "receive", environment) as receive,
        role(node, "work", environment) as work,
        role(node, "work", environment) as second,
        role(node, "deliver", environment) as deliver,
    ):
        processes = {"keep": keep, "receive": receive, "work": work, "second worker": second, "deliver": deliver}
        ready = 0
        while ready < len(processes):
            manager.hear("READY=1")
            ready += 1
        destination = Destination("node", "CTNODE", LOOPBACK, port_of(node))
        assert echo(destination, "TEST", CEILING_S).ok
        assert [result.outcome for result in send(destination, "TEST", files, CEILING_S)] == [Outcome.SENT] * len(files)
        done = node.wait_series("2.25.2", instances=len(files))
        assert (done.instances, done.duplicates) == (len(files), 0)
        assert (node.results("2.25.2") / "ct.nii.gz").is_file()
        for process in (receive, work, second, deliver, keep):
            process.terminate()
        assert {name: process.wait(CEILING_S) for name, process in processes.items()} == dict.fromkeys(processes, 0)
    assert not list((node.root / "run").glob("*-*.json"))


def test_each_role_watches_itself_when_it_stands_alone(tmp_path: Path, manager: ServiceManager) -> None:
    node = Node(tmp_path / "node")
    for name in ROLES:
        with role(node, name, {"NOTIFY_SOCKET": manager.address}) as process:
            assert f"STATUS={name} ready" in manager.hear("READY=1")
            manager.hear("WATCHDOG=1")
            process.send_signal(signal.SIGHUP)
            assert any(line.startswith("MONOTONIC_USEC=") for line in manager.hear("RELOADING=1"))
            manager.hear("READY=1")
            process.terminate()
            manager.hear("STOPPING=1")
            assert process.wait(CEILING_S) == 0


# ------------------------------------------------------------------------------------ what a sandbox hides


IN_TWO_SANDBOXES = """
import ctypes, os, signal, sys
from pathlib import Path
from ctnode.ops.process import exists, identity, is_alive

libc = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_USERS, PRIVATE = 0x20000, 0x10000000, 0x44000
if libc.unshare(NEW_MOUNTS) or libc.mount(b"none", b"/", None, PRIVATE, None):
    raise SystemExit(77)
if libc.mount(b"proc", b"/proc", b"proc", 0, b"hidepid=invisible"):
    raise SystemExit(77)

def in_sandbox(then):
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups([]), os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)
        libc.unshare(NEW_USERS)
        os.write(tell, b".")
        os._exit(then())
    os.read(told, 1)
    return pid

worker = in_sandbox(lambda: signal.pause() or 0)
name = identity(worker)

def look():
    return 10 * Path(f"/proc/{worker}").exists() + (is_alive(name) and exists(worker))

answer = os.waitstatus_to_exitcode(os.waitpid(in_sandbox(look), 0)[1])
os.kill(worker, signal.SIGKILL), os.waitpid(worker, 0)
later = os.waitstatus_to_exitcode(os.waitpid(in_sandbox(look), 0)[1])
print(answer, later)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a /proc that hides processes")
def test_a_worker_in_another_sandbox_counts_as_alive() -> None:
    """ProtectProc=invisible with PrivateUsers=yes hides the other services of the same user in /proc.

    A worker that took the others for dead would give their jobs to the next.
    """
    done = subprocess.run(
        [sys.executable, "-c", IN_TWO_SANDBOXES],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=CEILING_S,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("this machine lets nobody mount")
    assert done.returncode == 0, done.stderr
    # Hidden and alive; hidden and gone.
    assert done.stdout.split() == ["1", "0"]
