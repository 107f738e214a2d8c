"""The life of a role: signals, the line to the supervisor, the counters in ``run/``, the watchdog.

A role loops over ``Role.wait()``. It stops when it is told to (SIGTERM, SIGINT) and when its supervisor dies, which it
sees as the end of the control line or, at the latest, as the signal that the kernel sends to orphans.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final

from ctnode.ops.notify import notify
from ctnode.ops.process import exists

REPORT_INTERVAL_S: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1


class Role:
    """One running role.

    Parameters
    ----------
    name
        ``run``, ``receive``, ``keep``, ``work``, ``deliver``, or a child such as ``receiver``.
    run_directory
        Where ``<name>-<pid>.json`` is written every second.
    config_digest
        Shown in that file, so that a stale role is visible.
    control
        Descriptor of the line to the supervisor; its end means that the supervisor is gone, and every second a byte
        into it says that this role turns.
    """

    def __init__(self, name: str, run_directory: Path, config_digest: str, *, control: int | None = None) -> None:
        self.name = name
        self.config_digest = config_digest
        self.stopping = False
        self.orphaned = False
        self.reload_wanted = False
        # False withholds the sign of life from the service manager: what this role answers for does not turn.
        self.is_sound = True
        self.counters: dict[str, object] = {}
        self.state = "starting"
        self._started = _now()
        self._file = run_directory / f"{name}-{os.getpid()}.json"
        self._control = control
        self._next_report = 0.0
        self._poll = select.poll()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)

    def __enter__(self) -> Role:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        self._poll.register(self._wake_read, select.POLLIN)
        if self._control is not None:
            os.set_blocking(self._control, False)
            self._poll.register(self._control, select.POLLIN)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        self._file.unlink(missing_ok=True)
        self._wake_read.close()
        self._wake_write.close()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.reload_wanted = True
        else:
            self.stopping = True

    def watch(self, descriptor: int) -> None:
        """Let ``wait()`` return when ``descriptor`` is readable or closed by the other side."""
        self._poll.register(descriptor, select.POLLIN)

    def unwatch(self, descriptor: int) -> None:
        """Forget a descriptor."""
        self._poll.unregister(descriptor)

    def wake(self) -> None:
        """Make ``wait()`` return from another thread."""
        try:
            self._wake_write.send(b"\0")
        except BlockingIOError:
            # The pipe is full of wake-ups already.
            return

    def wait(self, timeout_s: float) -> tuple[int, ...]:
        """Wait for a signal, the supervisor's end, a watched descriptor or the time-out; report on the way.

        Returns
        -------
        tuple of int
            The watched descriptors that are ready.
        """
        self.report()
        until_report_s = max(0.0, self._next_report - time.monotonic())
        events = self._poll.poll(1000.0 * max(0.0, min(timeout_s, until_report_s)))
        ready = []
        for descriptor, _mask in events:
            if descriptor == self._wake_read.fileno():
                self._drain_wake_ups()
            elif descriptor == self._control:
                self._read_control()
            else:
                ready.append(descriptor)
        return tuple(ready)

    def _drain_wake_ups(self) -> None:
        try:
            while self._wake_read.recv(4096):
                pass
        except BlockingIOError:
            return

    def _read_control(self) -> None:
        assert self._control is not None
        try:
            is_gone = os.read(self._control, 4096) == b""
        except ConnectionError:
            # It left without reading our last signs of life.
            is_gone = True
        if is_gone:
            self._poll.unregister(self._control)
            self._control = None
            self.stopping = self.orphaned = True

    def report(self, **counters: object) -> None:
        """Note counters; once a second write them to ``run/`` and tell the watchdog that the loop turns."""
        self.counters.update(counters)
        if time.monotonic() < self._next_report:
            return
        self._next_report = time.monotonic() + REPORT_INTERVAL_S
        self.write_report()
        self._give_sign_of_life()

    def _give_sign_of_life(self) -> None:
        """Tell service manager and supervisor that the loop turns; not by a file, which a full disk would make old."""
        if self.is_sound:
            notify("WATCHDOG=1", patience_s=0.0)
        if self._control is not None:
            try:
                os.write(self._control, b".")
            except OSError:
                # It does not read at the moment, or it is gone, which its end of the line tells.
                return

    def write_report(self) -> None:
        """Write ``run/<name>-<pid>.json`` now."""
        content = {
            "role": self.name,
            "pid": os.getpid(),
            "state": self.state,
            "started": self._started,
            "at": _now(),
            "config": self.config_digest,
            "counters": self.counters,
        }
        temporary = self._file.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(content, default=str), encoding="utf-8")
            temporary.replace(self._file)
        except OSError:
            # A full disk must not stop a role; the age of the file tells.
            self.counters["report_failures"] = int(str(self.counters.get("report_failures", 0))) + 1

    def ready(self) -> None:
        """Tell the service manager and the run file that the role works."""
        self.state = "ready"
        self.write_report()
        notify("READY=1", f"STATUS={self.name} ready")

    def draining(self) -> None:
        """Tell the service manager and the run file that the role ends."""
        self.state = "draining"
        self.write_report()
        notify("STOPPING=1")


@dataclass(frozen=True, slots=True)
class RoleReport:
    """What a role last wrote about itself."""

    role: str
    pid: int
    state: str
    started: str
    age_s: float
    config: str
    counters: Mapping[str, Any]


def read_reports(run_directory: Path) -> tuple[RoleReport, ...]:
    """Return the reports of the roles that live, oldest role first; files of dead processes are passed over."""
    return tuple(sorted(_living_reports(run_directory), key=lambda report: (report.started, report.role, report.pid)))


def _report_files(run_directory: Path) -> Iterable[tuple[Path, int]]:
    """Yield the report files and the processes they are of; other files in ``run/`` are no reports."""
    for file in run_directory.glob("*-*.json"):
        pid = file.stem.rpartition("-")[2]
        if pid.isdigit():
            yield file, int(pid)


def _living_reports(run_directory: Path) -> Iterable[RoleReport]:
    for file, pid in _report_files(run_directory):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            age_s = time.time() - file.stat().st_mtime
        except (OSError, ValueError):
            # Replaced or removed between listing and reading.
            continue
        if exists(pid):
            yield RoleReport(
                content["role"], pid, content["state"], content["started"], age_s, content["config"],
                content["counters"],
            )  # fmt: skip


def sweep_reports(run_directory: Path) -> None:
    """Remove the report files of processes that died without doing so."""
    for file, pid in _report_files(run_directory):
        if not exists(pid):
            file.unlink(missing_ok=True)


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGTERM when the parent dies; if it is dead already, end at once."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(0)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
