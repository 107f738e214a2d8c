"""One C-STORE, and at each of its system calls the end of the process or a fault of the disk.

strace injects both. The oracle stands outside: what the sender has read 0000H for is there byte for byte after a
restart, and nothing is half done.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ctnode.archive.suspect import MARK_NAME
from tests.archive_root import Root
from tests.wire_peers import (
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    P_DATA,
    STANDARD,
    RawPeer,
    associate_rq,
    data_set,
    data_set_of,
    uid,
)
from tests.wire_roles import ReceiveRole, receive_role, wait_until

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (Debian package strace)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="strace attaches to processes of others as root only"),
]

# Larger than one piece, so that the data set is written before its digest is known.
PIXELS = bytes(range(256)) * 1200
KILLED_AT = (
    "mkdir", "openat", "flock", "recvfrom", "write", "fadvise64", "pwrite64", "fsync", "fdatasync", "renameat", "close",
    "sendto",
)  # fmt: skip
FAILING = ("mkdir", "openat", "write", "pwrite64", "fsync", "fdatasync", "renameat")
# What a C-STORE calls besides: nothing that another process, the disk or the peer could see half done. A kill behind
# these is one before the next of the others; the report of the role in run/ is written by rename.
UNSEEN = {
    "brk", "clone", "clone3", "eventfd2", "exit", "fcntl", "fstat", "futex", "getpeername", "getpid", "getrandom",
    "getsockname", "getsockopt", "gettid", "ioctl", "lseek", "madvise", "mmap", "mprotect", "mremap", "munmap",
    "newfstatat", "poll", "read", "recvmsg", "rename", "restart_syscall", "rseq", "rt_sigprocmask", "rt_sigreturn",
    "sched_yield", "sendmsg", "set_robust_list", "setsockopt", "shutdown", "statfs", "fstatfs",
}  # fmt: skip
# No call is made more often than this by one association with one instance.
MANY = 40


@contextlib.contextmanager
def injected(pid: int, what: str, log: Path) -> Iterator[None]:
    """Attach strace to a process and its threads to come; each thread counts its calls by itself."""
    command = ["strace", "-f", "-qq", "-e", f"trace={what.partition(':')[0]}", "-e", f"inject={what}", "-p", str(pid)]
    tracer = subprocess.Popen([*command, "-o", str(log)], stderr=subprocess.DEVNULL)
    try:

        def attached() -> bool:
            if tracer.poll() is not None:
                pytest.skip("strace may not attach here")
            try:
                return f"TracerPid:\t{tracer.pid}\n" in Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                # Killed already, at a call of its main thread.
                return True

        wait_until(attached, "strace")
        yield
    finally:
        tracer.send_signal(signal.SIGTERM)
        try:
            tracer.wait(2.0)
        except subprocess.TimeoutExpired:
            # It waits for threads that a kill has left half gone; without it they end.
            tracer.kill()
            tracer.wait()


def try_store(port: int, number: int) -> int | str:
    """Send one instance; return its status, or how the association ended instead."""
    name = uid(7, number)
    try:
        with RawPeer(port) as peer:
            peer.send(associate_rq(STANDARD))
            kind, _ = peer.read_pdu()
            if kind != ASSOCIATE_AC:
                return "rejected" if kind == ASSOCIATE_RJ else "cut"
            peer.send(peer.store_bytes(name.encode(), data_set(name, pixels=PIXELS), piece_bytes=60_000))
            kind, body = peer.read_pdu()
            if kind != P_DATA:
                return "cut"
            (status,) = struct.unpack_from("<H", body, body.index(struct.pack("<HHL", 0, 0x0900, 2)) + 8)
            # What the process may still do is not the sender's affair: 0000H was read.
            with contextlib.suppress(EOFError, ConnectionError, AssertionError):
                peer.release()
            return int(status)
    except (EOFError, ConnectionError):
        return "cut"


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def has_gone(pid: int) -> bool:
    return not is_alive(pid)


def receiver_pid(role: ReceiveRole) -> int:
    """Return the child that serves; the one before it may not be buried yet."""

    def there() -> list[int]:
        found = []
        for file in (role.root / "run").glob("receiver-*.json"):
            with contextlib.suppress(FileNotFoundError):
                report = json.loads(file.read_text())
                if report["state"] == "ready" and is_alive(report["pid"]):
                    found.append(int(report["pid"]))
        return found

    return int(wait_until(there, "a receiver")[0])


def require_whole(root: Path, acknowledged: set[int]) -> None:
    """Let a keeper finish what is there: all that was acknowledged, and nothing that was not sent whole."""
    held = Root(root)
    try:
        held.settle()
        assert held.breaches() == []
        assert held.files("quarantine") == []
        kept = {path.stem: data_set_of(path) for path in (root / "store").rglob("*.dcm")}
        assert kept.keys() >= {uid(7, number) for number in acknowledged}
        for name, content in kept.items():
            assert content == data_set(name, pixels=PIXELS)
        assert not list((root / "incoming").rglob("*.part"))
    finally:
        held.close()


def test_the_calls_that_are_killed_at_are_all_that_a_store_makes(tmp_path: Path) -> None:
    with receive_role(tmp_path, **{"log.level": "error"}) as role:
        port = role.wait_ready()
        assert try_store(port, 0) == 0
        with injected(receiver_pid(role), "all:delay_enter=1:when=1", tmp_path / "strace"):
            assert try_store(port, 1) == 0
    seen = set(re.findall(r"^\d+ +(?:<\.\.\. )?(\w+)[ (]", (tmp_path / "strace").read_text(), re.MULTILINE))
    assert {"write", "fdatasync", "renameat", "fsync", "sendto"} <= seen
    assert seen - UNSEEN <= set(KILLED_AT)
    assert set(FAILING) <= set(KILLED_AT)


def test_a_kill_at_any_call_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    acknowledged: set[int] = set()
    kills = number = 0
    with receive_role(tmp_path, **{"log.level": "error"}) as role:
        port = role.wait_ready()
        assert try_store(port, number) == 0
        acknowledged.add(number)
        for call in KILLED_AT:
            for n in range(1, MANY):
                number += 1
                pid = receiver_pid(role)
                with injected(pid, f"{call}:signal=SIGKILL:when={n}", tmp_path / "strace"):
                    outcome = try_store(port, number)
                assert outcome in (0, "cut"), (call, n)
                if outcome == 0:
                    acknowledged.add(number)
                if outcome == 0 and "+++ killed by SIGKILL" not in (tmp_path / "strace").read_text():
                    break
                # A connection that was cut without a kill is a fault of the receiver: its child would still be there.
                wait_until(partial(has_gone, pid), f"the end of the child that was killed at {call} {n}")
                kills += 1
            assert n < MANY - 1, f"{call} never passed clean"
        number += 1
        assert try_store(port, number) == 0
        acknowledged.add(number)
    assert kills > len(KILLED_AT)
    require_whole(role.root, acknowledged)


@pytest.mark.parametrize("code", ["ENOSPC", "EIO", "EROFS"])
def test_a_fault_at_any_call_is_never_success_and_leaves_nothing(tmp_path: Path, code: str) -> None:
    acknowledged: set[int] = set()
    faults = number = restarts = 0
    with contextlib.ExitStack() as roles:
        role = roles.enter_context(receive_role(tmp_path, **{"log.level": "error"}))
        port = role.wait_ready()
        for call in FAILING:
            for n in range(1, MANY):
                number += 1
                pid = receiver_pid(role)
                with injected(pid, f"{call}:error={code}:when={n}", tmp_path / "strace"):
                    outcome = try_store(port, number)
                assert outcome in (0, 0xA700, "rejected", "cut"), (call, n)
                if outcome == 0:
                    acknowledged.add(number)
                    break
                faults += 1
                assert not [path.name for path in role.root.glob("incoming/*/*.part")], (call, n)
                number += 1
                if "sync" in call and code != "ENOSPC":
                    # Nothing is tried again, and nobody is told to try; only a restart and its probe help.
                    assert (role.root / "run" / MARK_NAME).is_file(), (call, n)
                    assert try_store(port, number) == "rejected", (call, n)
                    role.signal(signal.SIGTERM)
                    assert role.wait_exit() == 0
                    role = roles.enter_context(receive_role(tmp_path, **{"log.level": "error"}))
                    port = role.wait_ready()
                    assert not (role.root / "run" / MARK_NAME).exists()
                    number += 1
                    restarts += 1
                assert try_store(port, number) == 0, (call, n)
                acknowledged.add(number)
            assert n < MANY - 1, f"{call} never passed clean"
    assert faults > len(FAILING)
    assert bool(restarts) == (code != "ENOSPC")
    assert len(list((role.root / "incoming").rglob("*.dcm"))) == len(acknowledged)
    require_whole(role.root, acknowledged)
