"""What triggers have summed up, and the oldest of what waits: each answer of one or a few index entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ctnode.archive.database import Database
from ctnode.archive.lanes import Lane, every
from ctnode.archive.outbox import OPEN

# Only with this very condition does the planner take the partial index.
OLDEST_JOB: Final = (
    "SELECT due_at FROM jobs WHERE state IN ('QUEUED', 'RUNNING', 'RETRY') AND state = 'QUEUED' ORDER BY due_at LIMIT 1"
)
OLDEST_DELIVERY: Final = f"SELECT posted_at FROM deliveries WHERE {OPEN} AND lane = ? ORDER BY posted_at LIMIT 1"
ALL: Final = "SELECT name, a, b, c, value FROM tallies"


@dataclass(frozen=True, slots=True)
class Tally:
    """One sum; ``labels`` are as many as its name has, the rest are empty."""

    name: str
    labels: tuple[str, str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Books:
    """All that the index has counted, as one moment saw it.

    Parameters
    ----------
    counters
        Kept counters by name, such as ``jobs.QUEUED``.
    tallies
        Sums by name.
    oldest_job_at
        Seconds since 1970: when the oldest queued job became due; None where none is queued.
    lanes
        The destinations, each with when the oldest of what waits for it was posted.
    """

    counters: Mapping[str, int]
    tallies: Mapping[str, tuple[Tally, ...]]
    oldest_job_at: float | None
    lanes: tuple[tuple[Lane, float | None], ...]

    def sums(self, name: str) -> tuple[Tally, ...]:
        """Return the sums under a name, none where nothing was counted yet."""
        return self.tallies.get(name, ())


def read(database: Database) -> Books:
    """Read everything; no statement looks at more rows than there are sums or destinations."""
    tallies: dict[str, list[Tally]] = {}
    for name, a, b, c, value in database.execute(ALL):
        tallies.setdefault(name, []).append(Tally(name, (a, b, c), value))
    oldest = database.execute(OLDEST_JOB).fetchone()
    lanes = []
    for lane in every(database):
        row = database.execute(OLDEST_DELIVERY, (lane.name,)).fetchone()
        lanes.append((lane, float(row[0]) if row is not None else None))
    return Books(
        database.counters(),
        {name: tuple(several) for name, several in tallies.items()},
        float(oldest[0]) if oldest is not None else None,
        tuple(lanes),
    )
