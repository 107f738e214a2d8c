"""The node at a glance: what comes in, is computed and goes out, what is left of the disk, what needs somebody."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.archive.tallies import Books, read
from ctnode.config import Config
from ctnode.ops.role import RoleReport, read_reports
from ctnode.words import DeliveryState, JobState

SILENT_S: Final = 20.0
WARN_DAYS: Final = 30.0
NEEDED: Final = ("keep", "receive", "work", "deliver")
_WAITING: Final = (DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.RETRY)
_MEGABYTE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker; ``job`` is None where it waits for one."""

    pid: int
    job: int | None
    running_s: float


@dataclass(frozen=True, slots=True)
class Destination:
    """One destination: what waits, what was given up, since when it fails and whether it is paused."""

    name: str
    waiting: int
    dead: int
    oldest_s: float
    failing_s: float
    is_paused: bool


@dataclass(frozen=True, slots=True)
class Disk:
    """What is left of a place, and the mark under which nothing is taken."""

    place: str
    free_mb: int
    reserve_mb: int


@dataclass(frozen=True, slots=True)
class Problem:
    """What needs somebody, and the command that tells more."""

    what: str
    command: str


@dataclass(frozen=True, slots=True)
class Glance:
    """The node as one moment saw it.

    Parameters
    ----------
    at
        Seconds since 1970.
    roles
        Processes by role.
    associations
        How many are open.
    instances, received_bytes
        What the port has kept since its start; two glances give a rate.
    waiting
        Series that wait for their verdict.
    queued, running, oldest_s
        Jobs, and for how long the oldest queued one is due.
    """

    at: float
    roles: Mapping[str, int]
    associations: int
    instances: int
    received_bytes: int
    waiting: int
    queued: int
    running: int
    oldest_s: float
    workers: tuple[Worker, ...]
    destinations: tuple[Destination, ...]
    disks: tuple[Disk, ...]
    problems: tuple[Problem, ...]

    def rates(self, before: Glance | None) -> tuple[float, float]:
        """Return instances and megabytes in a second since an earlier glance; zero where the port started anew."""
        if before is None or self.at <= before.at or self.received_bytes < before.received_bytes:
            return 0.0, 0.0
        seconds = self.at - before.at
        return (
            max(0.0, (self.instances - before.instances) / seconds),
            (self.received_bytes - before.received_bytes) / 1e6 / seconds,
        )


def look(config: Config, database: Database, *, now: float | None = None) -> Glance:
    """Look once; no statement takes longer than the metrics' do."""
    layout = Layout(config.root, config.results)
    at = time.time() if now is None else now
    reports, books = read_reports(layout.run), read(database)
    port = next((report.counters for report in reports if report.role == "receive"), {})
    roles: dict[str, int] = {}
    for report in reports:
        roles[report.role] = roles.get(report.role, 0) + 1
    destinations = tuple(_destinations(books, at))
    disks = tuple(_disks(config, layout))
    return Glance(
        at=at,
        roles=roles,
        associations=int(port.get("associations", {}).get("open", 0)),
        instances=int(port.get("instances", {}).get("0000", 0)),
        received_bytes=int(port.get("bytes", 0)),
        waiting=books.counters.get("revisions.RECEIVING", 0),
        queued=books.counters.get(f"jobs.{JobState.QUEUED}", 0) + books.counters.get(f"jobs.{JobState.RETRY}", 0),
        running=books.counters.get(f"jobs.{JobState.RUNNING}", 0),
        oldest_s=0.0 if books.oldest_job_at is None else max(0.0, at - books.oldest_job_at),
        workers=tuple(_workers(reports)),
        destinations=destinations,
        disks=disks,
        problems=tuple(_problems(reports, port, books, destinations, disks)),
    )


def _workers(reports: Sequence[RoleReport]) -> Iterator[Worker]:
    for report in reports:
        if report.role == "work":
            job = report.counters.get("job")
            running_s = float(report.counters.get("running_s", 0.0)) if job is not None else 0.0
            yield Worker(report.pid, job, running_s)


def _destinations(books: Books, at: float) -> Iterator[Destination]:
    counted = {tally.labels[:2]: int(tally.value) for tally in books.sums("deliveries")}
    # Before the @ stands the target; behind it whom it means.
    names = dict.fromkeys(lane.name.partition("@")[0] for lane, _ in books.lanes)
    for name in names:
        lanes = [(lane, posted_at) for lane, posted_at in books.lanes if lane.name.partition("@")[0] == name]
        yield Destination(
            name,
            sum(counted.get((name, state), 0) for state in _WAITING),
            counted.get((name, DeliveryState.DEAD), 0),
            max((at - posted_at for _, posted_at in lanes if posted_at is not None), default=0.0),
            max((at - lane.failing_since for lane, _ in lanes if lane.failing_since is not None), default=0.0),
            any((lane.paused_until or 0.0) > at for lane, _ in lanes),
        )


def _disks(config: Config, layout: Layout) -> Iterator[Disk]:
    seen: set[int] = set()
    for name, place in (("root", layout.root), ("results", layout.results)):
        try:
            device, room = place.stat().st_dev, os.statvfs(place)
        except OSError:
            continue
        if device not in seen:
            seen.add(device)
            yield Disk(name, room.f_bavail * room.f_frsize // _MEGABYTE, config.storage.reserve_mb)


def _problems(
    reports: Sequence[RoleReport],
    port: Mapping[str, Any],
    books: Books,
    destinations: Sequence[Destination],
    disks: Sequence[Disk],
) -> Iterator[Problem]:
    there = {report.role for report in reports}
    yield from (Problem(f"no {role} runs", "ctnode status") for role in NEEDED if role not in there)
    for report in reports:
        if report.age_s > SILENT_S:
            yield Problem(f"{report.role} is silent for {report.age_s:.0f} s", "ctnode status")
    if (storage := port.get("storage", "ok")) != "ok":
        yield Problem(f"nothing is taken: {storage}", "ctnode doctor")
    if (days := port.get("certificate_days")) is not None and days < WARN_DAYS:
        yield Problem(f"the certificate ends in {days:.0f} days", "ctnode doctor")
    for disk in disks:
        if disk.free_mb < 2 * disk.reserve_mb:
            yield Problem(f"{disk.free_mb} MB are free for {disk.place}", "ctnode doctor")
    yield from _unfinished(books, destinations)


def _unfinished(books: Books, destinations: Sequence[Destination]) -> Iterator[Problem]:
    for key, words, command in (
        ("revisions.FAILED", "series FAILED", "ctnode series list --state FAILED"),
        ("quarantine.FAILED", "files in quarantine", "ctnode doctor"),
    ):
        if count := books.counters.get(key, 0):
            yield Problem(f"{count} {words}", command)
    for one in destinations:
        if one.dead:
            yield Problem(f"{one.dead} DEAD for {one.name}", "ctnode deliveries list --state DEAD")
        if one.failing_s:
            yield Problem(f"{one.name} fails for {one.failing_s:.0f} s", f"ctnode echo {one.name}")
