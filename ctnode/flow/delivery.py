"""The ``deliver`` role: everything that talks outwards; each destination has its own threads and its own patience."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from ctnode.archive import lanes, outbox, steps
from ctnode.archive.database import Database
from ctnode.archive.jobs import MAX_RETRY_S
from ctnode.archive.lanes import AT
from ctnode.archive.layout import Layout
from ctnode.config import Config, Peer, Target
from ctnode.flow.asking import Asker
from ctnode.flow.auditing import AuditSender
from ctnode.flow.carrier import is_callable
from ctnode.flow.commitment import CommitmentDesk
from ctnode.flow.courier import Courier, Line
from ctnode.flow.notifier import Notifier
from ctnode.flow.outgoing import sweep
from ctnode.flow.recorder import Recorder
from ctnode.ops import log
from ctnode.ops.durable import lock
from ctnode.ops.role import Role

IDLE_S: Final = 0.5
RETRY_S: Final = 1.0
# Until a destination is served again after an error that is not its own.
REST_S: Final = 5.0
# Between two looks at what is late.
LOOK_S: Final = 10.0

Reload = Callable[[], Config]


def deliver(config: Config, role: Role, reload: Reload) -> int:
    """Send what is owed until the role stops.

    Raises
    ------
    Unavailable
        If another process delivers for this root.
    """
    layout = Layout(config.root, config.results)
    lock(layout.run / "deliver.lock", owner="deliverer")
    with Database(layout.database) as database:
        database.migrate()
        with Recorder(layout.database) as recorder:
            Deliverer(config, layout, database, recorder, role, reload).run()
    return 0


class Deliverer:
    """The loop of the ``deliver`` role."""

    def __init__(
        self, config: Config, layout: Layout, database: Database, recorder: Recorder, role: Role, reload: Reload
    ) -> None:
        self.config = config
        self.layout = layout
        self.database = database
        self.recorder = recorder
        self.role = role
        self.reload = reload
        self._lines: dict[str, Line] = {}
        self._threads: dict[str, list[threading.Thread]] = {}
        # By destination: after an error of our own, such as a full disk.
        self._rest_until: dict[str, float] = {}
        self._stop = threading.Event()
        self._looked = float("-inf")
        self._clock = steps.StepWatch()
        self._parts = (CommitmentDesk(layout), Asker(layout), Notifier(layout), AuditSender(layout))
        self._log: structlog.typing.FilteringBoundLogger = log.get()

    def run(self) -> None:
        """Start threads for each destination that something is due for."""
        # The lock says that nobody else sends: what was under way belonged to a process that died.
        taken_back = outbox.take_back(self.database)
        if taken_back:
            self._log.warning("deliveries cut short are tried again", instances=taken_back)
        steps.shift_outward(self.database, 0.0, self._longest_s())
        sweep(self.layout)
        for part in self._parts:
            part.begin(self.database)
        self.role.ready()
        while not self.role.stopping:
            if self.role.reload_wanted:
                self.role.reload_wanted = False
                self.config = self.reload()
            try:
                self.keep_waits()
                self.start_due()
                for part in self._parts:
                    part.start_due(self.database, self.config)
                self._look()
            except sqlite3.Error as error:
                self._log.error("deliverer cannot work now", error=type(error).__name__)
                self.role.wait(RETRY_S)
            self.role.wait(IDLE_S)
        self.role.draining()
        self._stop.set()
        deadline = time.monotonic() + self.config.delivery.timeout_s
        for part in self._parts:
            part.stop()
        for thread in [thread for threads in self._threads.values() for thread in threads]:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def keep_waits(self) -> None:
        """Let nothing be sent earlier or later because somebody has set the clock."""
        if step_s := self._clock.step_s():
            steps.shift_outward(self.database, step_s, self._longest_s())
            self._clock.made_good(step_s)
            self._log.warning("the clock was set", seconds=round(step_s, 1))

    def _longest_s(self) -> float:
        """Return more than anything is ever put off by; retries are spread by up to a fifth."""
        delivery = self.config.delivery
        return 1.2 * max(delivery.max_retry_s, delivery.proof_wait_s, self.config.completion.max_wait_s, MAX_RETRY_S)

    def start_due(self) -> None:
        """Start what is due and does not run yet, and stop what was paused."""
        self._threads = {
            name: alive
            for name, threads in self._threads.items()
            if (alive := [thread for thread in threads if thread.is_alive()])
        }
        self.role.report(sending_to=sorted(self._threads))
        now = time.time()
        for lane in lanes.every(self.database):
            line = self._lines.setdefault(lane.name, Line(lane.name))
            line.is_paused = lane.paused_until is not None and lane.paused_until > now
        for name in lanes.due(self.database):
            if self._rest_until.get(name, 0.0) > time.monotonic():
                continue
            self._address(name)
            target = self._target_of(name)
            threads = self._threads.setdefault(name, [])
            line = self._lines.setdefault(name, Line(name))
            for _ in range(len(threads), target.associations if target is not None else 1):
                thread = threading.Thread(target=self.serve, args=(line,), name=f"deliver-{name}", daemon=True)
                threads.append(thread)
                thread.start()

    def serve(self, line: Line) -> None:
        """Serve one destination in this thread until nothing is due."""
        config = self.config

        def has_to_end() -> bool:
            # A destination that is external from now on gets not one object more as it was.
            return self._stop.is_set() or self.config is not config

        try:
            with Database(self.layout.database) as database:
                Courier(config, self.layout, database, self.recorder, line, has_to_end).serve()
        except Exception as error:  # noqa: BLE001 - whatever it was, it is later than the others' turn
            self._rest_until[line.name] = time.monotonic() + REST_S
            self._log.error("delivery thread ended", target=line.name, error=type(error).__name__)

    def _target_of(self, lane: str) -> Target | None:
        name = lane.partition(AT)[0]
        return next((target for target in self.config.targets if target.name == name), None)

    def _address(self, name: str) -> None:
        """Put what is for the sender of its series into the lane of that peer; without one it stays, and dies there."""
        target = self._target_of(name)
        if target is None or target.kind != "sender" or AT in name:
            return
        for series_id in lanes.waiting_series(self.database, name):
            peer = self._sender_of(series_id)
            if peer is not None:
                with self.database.immediate():
                    lanes.readdress(self.database, name, series_id, f"{name}{AT}{peer.name}")

    def _sender_of(self, series_id: int) -> Peer | None:
        """Return the peer that sent a series last and can be called: by its name, else by its AE title alone."""
        for name, calling_ae in lanes.senders(self.database, series_id):
            for peer in self.config.peers:
                is_it = peer.name == name if name else peer.ae_title == calling_ae
                if is_it and is_callable(peer):
                    return peer
        return None

    def _look(self) -> None:
        """Report what waits for each destination: what is late warns before anybody misses it."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        found = {
            lane.name: lanes.backlog(self.database, lane.name, self.config.delivery.late_s)
            for lane in lanes.every(self.database)
        }
        self.role.report(
            waiting={name: backlog.waiting for name, backlog in found.items() if backlog.waiting},
            late={name: backlog.late for name, backlog in found.items() if backlog.late},
        )
