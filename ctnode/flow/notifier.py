"""Tells people what needs them: looks for trouble, gathers it, sends each channel a digest in a thread of its own."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from ctnode.archive import alerts, rejections
from ctnode.archive.database import Database
from ctnode.archive.jobs import retry_after_s
from ctnode.archive.layout import Layout
from ctnode.archive.suspect import marked
from ctnode.config import Config, Notify
from ctnode.flow import auditing
from ctnode.flow.perpeer import PerPeer
from ctnode.flow.telling import NotTold, compose, tell
from ctnode.ops import audit, log
from ctnode.wire.certificates import certificate_files, days_left, read_material
from ctnode.words import CtnodeError

# What comes within so long of the first is told with it.
GATHER_S: Final = 2.0
LOOK_S: Final = 10.0
FORGET_S: Final = 3600.0
FIRST_RETRY_S: Final = 10.0
LONGEST_RETRY_S: Final = 1800.0
JITTER: Final = 0.2
# Times the reserve under which the disk counts as low, and above which it no longer does.
LOW: Final = 2.0
WELL: Final = 2.5
# Each is told once on the way to the end of a certificate.
DAYS: Final = (30, 7, 1)
# No channel can have this name.
_LOOK: Final = ".look"
_REJECTIONS_READ: Final = "alerts.rejections_ms"
_MEGABYTE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Condition:
    """A state of the node that needs a person as long as it holds; None: neither holds nor is over."""

    kind: str
    subject: str
    text: str
    holds: bool | None


class Notifier:
    """A part of the ``deliver`` role; nothing here makes another part wait."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._threads = PerPeer("notify")
        self._looked = float("-inf")
        self._forgot = float("-inf")
        self._rejections_seen: tuple[int, int] = (0, 0)
        self._log: structlog.typing.FilteringBoundLogger = log.get()

    def begin(self, database: Database) -> None:
        """Forget what is old."""
        alerts.forget_old(database)

    def start_due(self, database: Database, config: Config) -> None:
        """Start a thread for each channel that has something to hear now, and look around every so often."""
        now = time.time()
        for channel in config.notify:
            if self._is_due(database, channel, now):
                self._threads.start(channel.name, partial(self._tell, config, channel))
        if time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            self._threads.start(_LOOK, partial(self._look, config))

    def stop(self) -> None:
        """Let what is under way end."""
        self._threads.stop()

    def _is_due(self, database: Database, channel: Notify, now: float) -> bool:
        state = alerts.channel(database, channel.name)
        if now < state.due_at or (state.sent_at is not None and 0.0 <= now - state.sent_at < channel.interval_s):
            return False
        digest = alerts.untold(database, state.told, channel.on, shown=0)
        return digest is not None and not 0.0 <= now - digest.oldest_at < GATHER_S

    def _tell(self, config: Config, channel: Notify, _name: str) -> None:
        with Database(self._layout.database) as database:
            state = alerts.channel(database, channel.name)
            digest = alerts.untold(database, state.told, channel.on)
            if digest is None:
                return
            try:
                tell(channel, compose(config.node.ae_title, digest))
            except NotTold as fault:
                wait_s = retry_after_s(state.failures + 1, first_s=FIRST_RETRY_S, longest_s=LONGEST_RETRY_S)
                alerts.not_told(database, channel.name, str(fault), wait_s * (1.0 + random.uniform(0.0, JITTER)))
                self._log.warning(
                    "channel not told", target=channel.name, reason=str(fault), attempt=state.failures + 1
                )
                return
            alerts.told(database, channel.name, digest.last_id)
            self._log.info("channel told", target=channel.name, count=sum(digest.counts.values()))

    def _look(self, config: Config, _name: str) -> None:
        """Look for what no row says; in a thread, since a disk that hangs must not stop the deliveries."""
        with Database(self._layout.database) as database:
            for one in conditions(config, self._layout):
                if one.holds is not None and alerts.condition(
                    database, one.kind, one.subject, one.text, holds=one.holds
                ):
                    self._log.warning("attention", what=one.kind, target=one.subject, reason=one.text)
            self._read_rejections(database, config)
            if time.monotonic() - self._forgot >= FORGET_S:
                self._forgot = time.monotonic()
                alerts.forget_old(database)

    def _read_rejections(self, database: Database, config: Config) -> None:
        """Make alerts of who was turned away since the last look, whichever process of ours looked."""
        try:
            found = os.stat(self._layout.rejections)
        except FileNotFoundError:
            return
        seen = (found.st_mtime_ns, found.st_size)
        if seen == self._rejections_seen:
            return
        row = database.execute("SELECT value FROM counters WHERE name = ?", (_REJECTIONS_READ,)).fetchone()
        since_ms = int(row[0]) if row is not None else 0
        fresh = [one for one in rejections.read(self._layout.rejections) if round(one.at * 1000) > since_ms]
        if fresh:
            with database.immediate():
                for one in fresh:
                    who = f"{one.calling_ae or 'somebody'} at {one.address or 'several addresses'}"
                    alerts.add(database, "refused", who, one.reason, one.count)
                database.count(_REJECTIONS_READ, max(round(one.at * 1000) for one in fresh) - since_ms)
            if config.audit.enabled:
                audit.note(self._layout.root, *map(auditing.of_rejection, fresh))
        self._rejections_seen = seen


def conditions(config: Config, layout: Layout) -> Iterator[Condition]:
    """Yield the conditions of disk and certificate as they are now."""
    for name, place in (("root", layout.root), ("results", layout.results)):
        yield from _room(config, name, place)
    fault = marked(layout.run)
    yield Condition("disk", "storage", "the storage is not to be trusted, nothing is taken", bool(fault))
    for name, days in _ends(config):
        yield Condition("certificate", name, "it cannot be used", days is None)
        for step in DAYS if days is not None else ():
            assert days is not None
            yield Condition("certificate", f"{name} within {step} days", f"it ends in {days:.1f} days", days < step)


def _ends(config: Config) -> Iterator[tuple[str, float | None]]:
    """Yield each file of certificates with the days until its first one ends; None if it cannot be used."""
    if config.tls.certificate:
        try:
            yield "tls.certificate", read_material(config.tls).days_left()
        except (CtnodeError, OSError):
            yield "tls.certificate", None
    for name, file in certificate_files(config):
        try:
            yield name, days_left(file, name)
        except (CtnodeError, OSError):
            yield name, None


def _room(config: Config, name: str, place: os.PathLike[str]) -> Iterator[Condition]:
    try:
        found = os.statvfs(place)
    except OSError:
        yield Condition("disk", name, "it does not answer", holds=True)
        return
    yield Condition("disk", name, "it does not answer", holds=False)
    free, mark = found.f_bavail * found.f_frsize, config.storage.reserve_mb * _MEGABYTE
    words = f"{free // _MEGABYTE} MB are free, under {config.storage.reserve_mb} MB nothing is taken"
    yield Condition("disk", f"{name}, space", words, _is_low(free, mark))
    if found.f_files:
        words = f"{found.f_favail} inodes are free, under {config.storage.reserve_inodes} nothing is taken"
        yield Condition("disk", f"{name}, inodes", words, _is_low(found.f_favail, config.storage.reserve_inodes))


def _is_low(free: int, mark: int) -> bool | None:
    return True if free < LOW * mark else False if free >= WELL * mark else None
