"""The ``deliver`` role: everything that talks outwards; each destination has its own thread and its own patience."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from ctnode.archive import outbox
from ctnode.archive.database import Database
from ctnode.archive.jobs import retry_after_s
from ctnode.archive.layout import Layout
from ctnode.config import Config, Target
from ctnode.flow.asking import Asker
from ctnode.flow.commitment import CommitmentDesk
from ctnode.ops import log
from ctnode.ops.durable import lock
from ctnode.ops.process import identity
from ctnode.ops.role import Role
from ctnode.wire.sender import Destination, Outcome, send
from ctnode.words import DeliveryState

IDLE_S: Final = 0.5
RETRY_S: Final = 1.0
# Spreads the retries of many objects, so that a destination that comes back is not hit by all at once.
JITTER: Final = 0.2

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
        Deliverer(config, layout, database, role, reload).run()
    return 0


class Deliverer:
    """The loop of the ``deliver`` role."""

    def __init__(self, config: Config, layout: Layout, database: Database, role: Role, reload: Reload) -> None:
        self.config = config
        self.layout = layout
        self.database = database
        self.role = role
        self.reload = reload
        self._busy: dict[str, threading.Thread] = {}
        self._stop = threading.Event()
        self._parts = (CommitmentDesk(layout), Asker(layout))
        self._log: structlog.typing.FilteringBoundLogger = log.get()

    def run(self) -> None:
        """Start a thread for each destination that something is due for."""
        with self.database.immediate():
            # The lock says that nobody else sends: what was under way belonged to a process that died.
            self.database.execute("UPDATE deliveries SET lease_until = 0 WHERE state = 'SENDING'")
        for part in self._parts:
            part.begin(self.database)
        self.role.ready()
        while not self.role.stopping:
            if self.role.reload_wanted:
                self.role.reload_wanted = False
                self.config = self.reload()
            try:
                self._start_due()
                for part in self._parts:
                    part.start_due(self.database, self.config)
            except sqlite3.Error as error:
                self._log.error("deliverer cannot work now", error=type(error).__name__)
                self.role.wait(RETRY_S)
            self.role.wait(IDLE_S)
        self.role.draining()
        self._stop.set()
        for part in self._parts:
            part.stop()
        for thread in self._busy.values():
            thread.join(timeout=self.config.delivery.timeout_s)

    def _start_due(self) -> None:
        self._busy = {name: thread for name, thread in self._busy.items() if thread.is_alive()}
        self.role.report(sending_to=sorted(self._busy))
        for name in outbox.targets_due(self.database):
            if name not in self._busy:
                thread = threading.Thread(target=self._serve, args=(name,), name=f"deliver-{name}", daemon=True)
                self._busy[name] = thread
                thread.start()

    def _serve(self, name: str) -> None:
        """Send all that is due for one destination."""
        target = next((target for target in self.config.targets if target.name == name), None)
        try:
            with Database(self.layout.database) as database:
                while not self._stop.is_set():
                    batch = outbox.claim(database, name, identity())
                    if not batch:
                        return
                    if target is None:
                        for delivery in batch:
                            reason = "no target of this name in the configuration"
                            outbox.failed(database, delivery, None, reason, wait_s=None)
                    else:
                        self._send(database, target, batch)
        except (OSError, sqlite3.Error) as error:
            # The lease brings back what this thread held.
            self._log.error("delivery thread ended", target=name, error=type(error).__name__)

    def _send(self, database: Database, target: Target, batch: Sequence[outbox.Delivery]) -> None:
        by_path: dict[Path, outbox.Delivery] = {}
        for delivery in batch:
            path = self.layout.results / delivery.path
            if path.is_file():
                by_path[path] = delivery
            else:
                outbox.failed(database, delivery, None, "the result file is gone", wait_s=None)
        if not by_path:
            return
        destination = Destination.of(target)
        settings = self.config.delivery
        for result in send(destination, self.config.node.ae_title, list(by_path), settings.timeout_s):
            delivery = by_path.pop(result.path)
            bound = self._log.bind(target=target.name, attempt=delivery.attempt, status=result.status)
            if result.outcome is Outcome.SENT:
                outbox.sent(database, delivery, result.status or 0, result.comment)
                bound.info("delivered")
                continue
            wait_s = None
            if result.outcome is Outcome.RETRY:
                base_s = retry_after_s(delivery.attempt, first_s=settings.first_retry_s, longest_s=settings.max_retry_s)
                wait_s = base_s * (1.0 + random.uniform(0.0, JITTER))
            outbox.failed(database, delivery, result.status, result.comment, wait_s=wait_s)
            bound.warning(
                "not delivered", reason=result.comment, state=str(DeliveryState.RETRY if wait_s else DeliveryState.DEAD)
            )
