"""What changes from second to second: rates out of the counters of the roles, and a pulse for the open pages.

One thread samples once a second for all pages together; the pages hear that something changed, and ask for it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from ctnode.archive.layout import Layout
from ctnode.archive.readers import Readers
from ctnode.ops.role import read_reports
from ctnode.words import CtnodeError

INTERVAL_S: Final = 1.0
HISTORY: Final = 120
LISTENERS_LIMIT: Final = 64
# Over so many samples a rate is averaged.
RATE_SAMPLES: Final = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters of the node at one moment; times are monotonic seconds."""

    at: float
    instances: int
    bytes: int
    version: int
    by_association: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Rates:
    """What comes in per second, and how it was in the last minutes, oldest first."""

    instances_per_s: float
    bytes_per_s: float
    by_association: Mapping[str, float]
    history: tuple[float, ...]


class Live:
    """Samples the node, tells rates, and wakes who listens."""

    def __init__(self, layout: Layout, readers: Readers) -> None:
        self._layout = layout
        self._readers = readers
        self._samples: deque[Sample] = deque(maxlen=HISTORY + 1)
        self._changed = asyncio.Condition()
        self._number = 0
        self._listeners = 0
        self.ticked_at = time.monotonic()

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            sample = await asyncio.to_thread(self._sample)
            await self._take(sample)
            await asyncio.sleep(INTERVAL_S)

    async def _take(self, sample: Sample) -> None:
        before = self._samples[-1] if self._samples else None
        self._samples.append(sample)
        self.ticked_at = time.monotonic()
        same = before is not None and (before.version, before.instances) == (sample.version, sample.instances)
        async with self._changed:
            self._number += not same
            self._changed.notify_all()

    def _sample(self) -> Sample:
        reports = read_reports(self._layout.run)
        counters = next((report.counters for report in reports if report.role == "receive"), {})
        answered = counters.get("instances", {})
        instances = sum(answered.values()) if isinstance(answered, Mapping) else 0
        version, by_association = self._look()
        return Sample(time.monotonic(), instances, int(counters.get("bytes", 0)), version, by_association)

    def _look(self) -> tuple[int, Mapping[str, int]]:
        """Return the version of the index, and what each open association has brought."""
        try:
            with self._readers.reading() as database:
                rows = database.execute(
                    "SELECT name, instances + duplicates FROM associations WHERE how = '' LIMIT 200"
                ).fetchall()
                return _version(self._layout), dict(rows)
        except (sqlite3.Error, CtnodeError):
            return 0, {}

    def rates(self) -> Rates:
        """Return what comes in now."""
        samples = list(self._samples)
        if len(samples) < 2:
            return Rates(0.0, 0.0, {}, ())
        last, first = samples[-1], samples[-min(len(samples), RATE_SAMPLES + 1)]
        span_s = max(last.at - first.at, 1e-3)
        recent = samples[-min(len(samples), RATE_SAMPLES + 1) :]
        by_association = {name: _rate_of(name, recent) for name in last.by_association}
        history = tuple(
            max(0.0, (after.instances - before.instances) / max(after.at - before.at, 1e-3))
            for before, after in pairwise(samples)
        )
        return Rates(
            max(0.0, (last.instances - first.instances) / span_s),
            max(0.0, (last.bytes - first.bytes) / span_s),
            by_association,
            history,
        )

    @property
    def is_full(self) -> bool:
        """Return whether no more pages may listen."""
        return self._listeners >= LISTENERS_LIMIT

    async def changes(self) -> AsyncIterator[int]:
        """Yield a number at once and whenever something has changed, at most once a second."""
        self._listeners += 1
        try:
            told = -1
            while True:
                if told != self._number:
                    told = self._number
                    yield told
                async with self._changed:
                    await self._changed.wait()
        finally:
            self._listeners -= 1


def _rate_of(name: str, samples: Sequence[Sample]) -> float:
    """Return what an association brings per second: over the samples that know it, not over the time before it."""
    known = [number for number, sample in enumerate(samples) if name in sample.by_association]
    # It began between the first sample that knows it and the one before: there it had brought nothing.
    start = samples[max(0, known[0] - 1)]
    last = samples[-1]
    brought = last.by_association[name] - start.by_association.get(name, 0)
    return max(0.0, brought / max(last.at - start.at, 1e-3))


def _version(layout: Layout) -> int:
    """Return a number that changes with the index: time and size of the file and of its journals."""
    marks = []
    for suffix in ("", "-wal"):
        try:
            status = (layout.database.with_name(layout.database.name + suffix)).stat()
            marks.append((status.st_mtime_ns, status.st_size))
        except OSError:
            marks.append((0, 0))
    return hash(tuple(marks))
