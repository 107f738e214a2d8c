"""What happens now: the roles, who sends, what waits, who computes, how the destinations and the disk fare."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ctnode.archive import lanes
from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.archive.trouble import failures
from ctnode.config import Config
from ctnode.ops.role import RoleReport, read_reports
from ctnode.words import JobState, RevisionState

SHOWN: Final = 50
STALE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class OpenAssociation:
    """An association under way; ``instances`` as far as they are settled, resends among them."""

    name: str
    door: str
    calling_ae: str
    peer: str
    peer_address: str
    opened_at: float
    instances: int


@dataclass(frozen=True, slots=True)
class Running:
    """A job that is being computed."""

    job: int
    series_id: int
    series: str
    attempt: int
    started_at: float


@dataclass(frozen=True, slots=True)
class Destination:
    """How one destination fares."""

    name: str
    kind: str
    waiting: int
    is_more: bool
    late: int
    oldest_at: float | None
    failing_since: float | None
    comment: str
    is_paused: bool

    @property
    def state(self) -> str:
        """Return one word for it."""
        if self.is_paused:
            return "paused"
        if self.failing_since is not None:
            return "failing"
        return "late" if self.late else "well"


@dataclass(frozen=True, slots=True)
class Disk:
    """The room of one file system, and how much of it stays free by configuration."""

    what: str
    free_bytes: int
    total_bytes: int
    reserve_bytes: int
    free_inodes: int
    reserve_inodes: int

    @property
    def is_low(self) -> bool:
        """Return whether new associations are refused."""
        return self.free_bytes <= self.reserve_bytes or 0 <= self.free_inodes < self.reserve_inodes

    @property
    def used_share(self) -> float:
        """Return what is taken, 0 to 1."""
        return 1.0 - self.free_bytes / self.total_bytes if self.total_bytes else 0.0


@dataclass(frozen=True, slots=True)
class Overview:
    """The node at one moment."""

    at: float
    roles: tuple[RoleReport, ...]
    associations: tuple[OpenAssociation, ...]
    running: tuple[Running, ...]
    destinations: tuple[Destination, ...]
    disks: tuple[Disk, ...]
    counters: Mapping[str, int]
    storage: str
    failures: int

    @property
    def queued(self) -> int:
        """Return how many jobs wait."""
        return sum(self.counters.get(f"jobs.{state}", 0) for state in (JobState.QUEUED, JobState.RETRY))

    @property
    def receiving(self) -> int:
        """Return how many series wait for their verdict."""
        return self.counters.get(f"revisions.{RevisionState.RECEIVING}", 0)

    @property
    def needs_somebody(self) -> int:
        """Return how many things will not get better by themselves, as far as counters tell."""
        return self.failures + sum(self.counters.get(name, 0) for name in ("deliveries.DEAD", "quarantine.FAILED"))


def overview(config: Config, layout: Layout, database: Database) -> Overview:
    """Return the node at this moment; each statement reads some rows only."""
    roles = read_reports(layout.run)
    storage = next((str(role.counters.get("storage", "ok")) for role in roles if role.role == "receive"), "")
    return Overview(
        at=time.time(),
        roles=roles,
        associations=_associations(database),
        running=_running(database),
        destinations=_destinations(config, database),
        disks=disks(config, layout),
        counters=database.counters(),
        storage=storage,
        failures=failures(database),
    )


def _associations(database: Database) -> tuple[OpenAssociation, ...]:
    rows = database.rows(
        "SELECT name, door, calling_ae, peer, peer_address, opened_at, instances + duplicates AS instances"
        " FROM associations WHERE how = '' ORDER BY id DESC LIMIT ?",
        (SHOWN,),
    )
    return tuple(OpenAssociation(**row) for row in rows)


def _running(database: Database) -> tuple[Running, ...]:
    rows = database.rows(
        "SELECT jobs.id AS job, series.id AS series_id, series.uid AS series, jobs.attempt, jobs.started_at FROM jobs"
        " JOIN revisions ON revisions.id = jobs.revision_id JOIN series ON series.id = revisions.series_id"
        " WHERE jobs.state IN ('QUEUED', 'RUNNING', 'RETRY') AND jobs.state = 'RUNNING' ORDER BY jobs.id LIMIT ?",
        (SHOWN,),
    )
    return tuple(Running(**row) for row in rows)


def _destinations(config: Config, database: Database) -> tuple[Destination, ...]:
    kinds = {target.name: str(target.kind) for target in config.targets}
    known = {lane.name: lane for lane in lanes.every(database)}
    now = time.time()
    found = []
    for name in [*kinds, *(name for name in known if name not in kinds)][:SHOWN]:
        lane = known.get(name) or lanes.get(database, name)
        backlog = lanes.backlog(database, name, config.delivery.late_s)
        found.append(
            Destination(
                name=name,
                kind=kinds.get(name, ""),
                waiting=backlog.waiting,
                is_more=backlog.waiting == lanes.COUNT_LIMIT,
                late=backlog.late,
                oldest_at=backlog.oldest_at,
                failing_since=lane.failing_since,
                comment=lane.comment,
                is_paused=lane.paused_until is not None and lane.paused_until > now,
            )
        )
    return tuple(found)


def disks(config: Config, layout: Layout) -> tuple[Disk, ...]:
    """Return the file systems of root and results, each once."""
    found, seen = [], set()
    for what, place in (("storage", layout.root), ("results", layout.results)):
        try:
            room, device = os.statvfs(place), os.stat(place).st_dev
        except OSError:
            continue
        if device in seen:
            continue
        seen.add(device)
        found.append(
            Disk(
                what=what,
                free_bytes=room.f_bavail * room.f_frsize,
                total_bytes=room.f_blocks * room.f_frsize,
                reserve_bytes=config.storage.reserve_mb << 20,
                free_inodes=room.f_favail if room.f_files else -1,
                reserve_inodes=config.storage.reserve_inodes,
            )
        )
    return tuple(found)
