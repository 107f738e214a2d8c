"""The one wiring function: starts every role of a node, keeps them alive, reloads, drains.

Each role is a process of its own; the supervisor holds one line to each. Its end tells the role that the supervisor is
gone; the bytes that come out of it tell the supervisor that the role turns. It does no work itself.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from ctnode import config as configuration
from ctnode.archive.layout import Layout
from ctnode.config import Config
from ctnode.ops import audit, log
from ctnode.ops.durable import lock
from ctnode.ops.notify import FIRST_HANDED, notify, notify_reloading
from ctnode.ops.role import Role, die_with_parent, read_reports, sweep_reports
from ctnode.web.access import require_access
from ctnode.words import ConfigError, ExitCode

Reload = Callable[[], Config]


_Main = Callable[[Config, Role, Reload], int]
# Module and function of each: it is imported only in its own process, so that a node starts fast. In the order in which
# they start; they stop in the order of STOP_ORDER.
ROLES: Final = {
    "keep": "ctnode.flow.keeper:keep",
    "receive": "ctnode.wire.acceptor:receive",
    "work": "ctnode.flow.worker:work",
    "deliver": "ctnode.flow.delivery:deliver",
    "web": "ctnode.web.server:serve",
}
# How far each gives way to others on a busy machine (nice): senders wait for receivers, nobody waits for a lung.
NICENESS: Final = {"keep": 2, "receive": 0, "work": 10, "deliver": 5, "web": 5}
STOP_ORDER: Final = (("receive",), ("work", "deliver"), ("keep", "web"))
# Without it the node still does its work: it neither keeps it from becoming ready nor takes it down.
OPTIONAL: Final = frozenset({"web"})
FATAL: Final = frozenset({ExitCode.UNAVAILABLE, ExitCode.BAD_CONFIG})
TURN_S: Final = 0.2
FIRST_RESTART_S: Final = 0.5
LONGEST_RESTART_S: Final = 30.0
STEADY_S: Final = 30.0
STOP_S: Final = 20.0
# A role gives a sign of life every second; the keeper may wait longer than that for a slow disk.
SILENCE_S: Final = 20.0


def run_role(name: str, loader: Reload, *, supervisor: tuple[int, int] | None = None) -> int:
    """Run one role in this process until it stops.

    Parameters
    ----------
    name
        A key of ``ROLES``.
    loader
        Reads the configuration; called again at each SIGHUP.
    supervisor
        Process number of the supervisor and descriptor of the line to it, if there is one.
    """
    os.nice(NICENESS[name])
    config = loader()
    log.configure(config.log, role=name)
    if supervisor is not None:
        die_with_parent(supervisor[0])
    layout = Layout(config.root, config.results)
    layout.create()
    if supervisor is None:
        sweep_reports(layout.run)
    control = supervisor[1] if supervisor is not None else None
    with Role(name, layout.run, config.digest(), control=control) as role:
        _audit(config, f"{name} started")
        try:
            return _main_of(name)(config, role, _Reloader(config, loader, role))
        finally:
            _audit(config, f"{name} stopped")


def _main_of(name: str) -> _Main:
    module, _, function = ROLES[name].partition(":")
    main: _Main = getattr(importlib.import_module(module), function)
    return main


def _audit(config: Config, what: str) -> None:
    record = audit.Record(audit.Event.APPLICATION_ACTIVITY, audit.Action.EXECUTE, audit.operator(), what)
    audit.note(config.root, record, enabled=config.audit.enabled)


class _Reloader:
    """Takes over what can be reloaded, and says what cannot."""

    def __init__(self, config: Config, loader: Reload, role: Role) -> None:
        self._config = config
        self._loader = loader
        self._role = role
        self._log: structlog.typing.FilteringBoundLogger = log.get()

    def __call__(self) -> Config:
        # A service manager that still waits for the first READY=1 must not take this one for it.
        is_ready = self._role.state == "ready"
        if is_ready:
            notify_reloading()
        try:
            return self._take()
        finally:
            if is_ready:
                notify("READY=1")

    def _take(self) -> Config:
        try:
            fresh = self._loader()
        except ConfigError as error:
            self._log.error("configuration not reloaded", error=error.message)
            return self._config
        changes = configuration.diff(self._config, fresh)
        taken = [change.key for change in changes if change.reloadable]
        left = [change.key for change in changes if not change.reloadable]
        self._config = configuration.reloaded(self._config, fresh)
        self._role.config_digest = self._config.digest()
        log.configure(self._config.log, role=self._role.name)
        self._log.info("configuration reloaded", keys=taken)
        if left:
            self._log.warning("these keys need a restart", keys=left)
        return self._config


@dataclass(slots=True)
class _Member:
    """One role process under supervision."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    line: socket.socket | None = None
    started: float = 0.0
    heard: float = 0.0
    is_silent: bool = False
    restart_at: float = 0.0
    restarts: int = 0
    has_settled: bool = False


@dataclass(slots=True)
class Node:
    """The supervisor of a node."""

    config: Config
    loader: Reload
    role: Role
    config_file: Path | None
    members: list[_Member] = field(default_factory=list)
    is_ready: bool = False

    def run(self) -> int:
        """Start the roles and stay until told to stop; returns the exit code."""
        logger = log.get()
        reloader = _Reloader(self.config, self.loader, self.role)
        names = ["keep", "receive", *["work"] * self.config.worker.processes, "deliver"]
        names += ["web"] if self.config.web.enabled else []
        self.members = [_Member(name, self._command(name)) for name in names]
        code: int = ExitCode.OK
        while not self.role.stopping:
            for member in self.members:
                self._tend(member)
            fatal = [member for member in self.members if self._is_fatal(member)]
            if fatal:
                process = fatal[0].process
                assert process is not None
                code = process.returncode
                logger.error("role cannot start", reason=fatal[0].name, exit_code=code)
                break
            if not self.is_ready and self._all_ready():
                self.is_ready = True
                self.role.ready()
                logger.info("node ready", path=str(self.config.root))
            if self.role.reload_wanted:
                self.role.reload_wanted = False
                self._reload(reloader)
            self.role.is_sound = not self._listen()
            self.role.wait(TURN_S)
        self.role.draining()
        self._stop()
        return code

    def _command(self, name: str) -> Sequence[str]:
        chosen = ["--config", str(self.config_file)] if self.config_file is not None else []
        return [sys.executable, "-P", "-m", "ctnode", *chosen, name]

    def _tend(self, member: _Member) -> None:
        """Start a role that is down and due; note how one ended."""
        now = time.monotonic()
        if member.process is not None:
            code = member.process.poll()
            if code is None:
                if now - member.started > STEADY_S:
                    member.restarts, member.has_settled = 0, True
                return
            if self._is_fatal(member):
                return
            _hang_up(member)
            member.process = None
            wait_s = min(LONGEST_RESTART_S, FIRST_RESTART_S * 2.0**member.restarts)
            member.restart_at = now + wait_s
            member.restarts += 1
            log.get().error("role ended", reason=member.name, exit_code=code, restart_in_s=wait_s)
        if now >= member.restart_at:
            self._start(member)

    def _start(self, member: _Member) -> None:
        member.line, theirs = socket.socketpair()
        member.line.setblocking(False)
        supervised = ["--supervised", f"{os.getpid()}:{theirs.fileno()}"]
        listening = _handed_sockets() if member.name == "receive" else ()
        with theirs:
            member.process = subprocess.Popen(
                [*member.command, *supervised],
                pass_fds=[theirs.fileno(), *listening],
                stdin=subprocess.DEVNULL,
                env=_environment(keep_sockets=bool(listening)),
            )
        member.started = member.heard = time.monotonic()
        member.is_silent = False

    def _listen(self) -> list[str]:
        """Return the roles that run but do not turn; while there is one, the watchdog gets no sign of life."""
        now = time.monotonic()
        silent = []
        for member in self.members:
            if member.process is None or member.process.poll() is not None:
                continue
            if _has_spoken(member):
                member.heard, member.is_silent = now, False
            elif now - member.heard > SILENCE_S:
                silent += [] if member.name in OPTIONAL else [member.name]
                if not member.is_silent:
                    member.is_silent = True
                    log.get().error("role is silent", reason=member.name, seconds=round(now - member.heard))
        return silent

    def _is_fatal(self, member: _Member) -> bool:
        """Return whether a role said, before it ever ran steadily, that it can never run like this."""
        return (
            member.process is not None
            and member.name not in OPTIONAL
            and not member.has_settled
            and not self.is_ready
            and member.process.poll() in FATAL
        )

    def _all_ready(self) -> bool:
        needed = [member for member in self.members if member.name not in OPTIONAL]
        pids = {member.process.pid for member in needed if member.process is not None}
        ready = {report.pid for report in read_reports(self.config.root / "run") if report.state == "ready"}
        return len(pids) == len(needed) and pids <= ready

    def _reload(self, reloader: _Reloader) -> None:
        self.config = reloader()
        for member in self.members:
            if member.process is not None:
                member.process.send_signal(signal.SIGHUP)

    def _stop(self) -> None:
        """Stop the receivers first, so that the keeper still settles what they took."""
        for names in STOP_ORDER:
            leaving = [member for member in self.members if member.name in names and member.process is not None]
            limit_s = self.config.node.drain_s + STOP_S if "receive" in names else STOP_S
            for member in leaving:
                assert member.process is not None
                if member.process.poll() is None:
                    member.process.terminate()
            self._await(leaving, limit_s)

    def _await(self, leaving: Sequence[_Member], limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        for member in leaving:
            assert member.process is not None
            while member.process.poll() is None and time.monotonic() < deadline:
                self.role.wait(TURN_S / 4)
            if member.process.poll() is None:
                log.get().error("role killed", reason=member.name)
                member.process.kill()
                member.process.wait()
            _hang_up(member)


def run_node(loader: Reload, config_file: Path | None) -> int:
    """Run a whole node until SIGTERM.

    Raises
    ------
    ConfigError
        If the page could be reached by others without a lock.
    Unavailable
        If another node holds the root.
    """
    config = loader()
    require_access(config)
    log.configure(config.log, role="run")
    layout = Layout(config.root, config.results)
    layout.create()
    lock(layout.run / "node.lock", owner="node")
    sweep_reports(layout.run)
    with Role("run", layout.run, config.digest()) as role:
        return Node(config, loader, role, config_file).run()


def _has_spoken(member: _Member) -> bool:
    """Return whether a role gave signs of life since we last asked."""
    assert member.line is not None
    spoken = False
    try:
        while member.line.recv(4096):
            spoken = True
    except OSError:
        # Nothing more for now, or the role has just ended, which its process tells.
        return spoken
    return spoken


def _hang_up(member: _Member) -> None:
    if member.line is not None:
        member.line.close()
        member.line = None


def _handed_sockets() -> Sequence[int]:
    """Return the descriptors of the sockets that the service manager handed to this process."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return ()
    return range(FIRST_HANDED, FIRST_HANDED + int(os.environ.get("LISTEN_FDS", "0")))


def _environment(*, keep_sockets: bool) -> dict[str, str]:
    """Return the environment of a role: the service manager talks to the supervisor, its sockets are the receiver's."""
    dropped = {"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"}
    if not keep_sockets:
        dropped |= {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}
    return {name: value for name, value in os.environ.items() if name not in dropped}
