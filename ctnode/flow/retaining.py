"""Retention as a part of the keeper's loop: looks, decides and deletes in steps that are short and far between.

A pass reads the series a few at a time and keeps of them only what would go first. What was chosen is looked at once
more when its turn comes; then it goes, some files a step. No step takes longer than some milliseconds.
"""

from __future__ import annotations

import errno
import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import structlog

from ctnode.archive import holdings, removal
from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.archive.retention import Going, Kind, Marks, Plan, Unit, choose
from ctnode.config import Retention
from ctnode.ops import log

# Between two steps, so that what arrives comes first.
STEP_EVERY_S: Final = 0.1
# Between two passes; over the high mark of originals, which the index knows at any time, one begins sooner.
PASS_EVERY_S: Final = 600.0
LOOK_EVERY_S: Final = 10.0
# Reading within one step.
READ_S: Final = 0.005
# Of more that could go, the first of the order; the next pass finds the others.
KEPT: Final = 2000
# After a fault of a folder or file, which is not the keeper's affair alone.
REST_S: Final = 60.0

Clock = Callable[[], float]


def marks_of(settings: Retention, kind: Kind) -> Marks:
    """Return the rules of one kind."""
    is_original = kind is Kind.ORIGINALS
    days = settings.originals_days if is_original else settings.results_days
    low, high = (settings.originals_gb if is_original else settings.results_gb) or (0.0, 0.0)
    return Marks(days * 86400.0, low * 1e9, high * 1e9, settings.floor_days * 86400.0)


def kinds_of(settings: Retention) -> frozenset[Kind]:
    """Return the kinds that a rule is about."""
    return frozenset(kind for kind in Kind if marks_of(settings, kind).is_on)


def plan_all(database: Database, layout: Layout, settings: Retention, now: float) -> tuple[Plan, ...]:
    """Return what would go and what would stay of everything: what the dry run shows; reads only."""
    units = [
        unit
        for series_id in holdings.pages(database)
        for unit in holdings.units_of(database, layout, series_id, frozenset(Kind))
    ]
    plans = []
    for kind in Kind:
        members = [unit for unit in units if unit.kind is kind]
        plans.append(choose(members, marks_of(settings, kind), sum(unit.bytes for unit in members), now))
    return tuple(plans)


class _Pass:
    """One reading of all series, a few at a time."""

    def __init__(self, database: Database, layout: Layout, settings: Retention) -> None:
        self._database = database
        self._layout = layout
        self._settings = settings
        self._kinds = kinds_of(settings)
        self._ids: Iterator[int] = holdings.pages(database)
        self._total: dict[Kind, int] = dict.fromkeys(Kind, 0)
        # The worst rank at the top, to be thrown out first.
        self._found: dict[Kind, list[tuple[tuple[float, ...], Unit]]] = {kind: [] for kind in Kind}

    def read(self) -> bool:
        """Read for some milliseconds; return whether all is read."""
        until = time.monotonic() + READ_S
        for series_id in self._ids:
            for unit in holdings.units_of(self._database, self._layout, series_id, self._kinds):
                self._total[unit.kind] += unit.bytes
                if not unit.blocks:
                    self._keep(unit)
            if time.monotonic() > until:
                return False
        return True

    def _keep(self, unit: Unit) -> None:
        found = self._found[unit.kind]
        heapq.heappush(found, (tuple(-float(part) for part in unit.rank), unit))
        if len(found) > KEPT:
            heapq.heappop(found)

    def chosen(self, now: float) -> list[Going]:
        """Return what goes, in its order."""
        going: list[Going] = []
        for kind in sorted(self._kinds):
            units = [unit for _, unit in self._found[kind]]
            going += choose(units, marks_of(self._settings, kind), self._total[kind], now).going
        return going


class Retainer:
    """Deletes what the configuration wants deleted; used by the keeper alone, which is the only one that may."""

    def __init__(
        self, database: Database, layout: Layout, *, monotonic: Clock = time.monotonic, wall: Clock = time.time
    ) -> None:
        self._database = database
        self._layout = layout
        self._monotonic = monotonic
        self._wall = wall
        self._queue: deque[Going] = deque()
        self._pass: _Pass | None = None
        self._settings: Retention | None = None
        self._next_step = self._next_pass = self._next_look = float("-inf")
        self._is_busy = True
        self._log: structlog.typing.FilteringBoundLogger = log.get()

    def pause_s(self) -> float | None:
        """Return the seconds until there is something to do; None while nothing is under way."""
        return max(0.0, self._next_step - self._monotonic()) if self._is_busy else None

    def step(self, settings: Retention) -> None:
        """Do one small part of what is to do, if it is time for it.

        Raises
        ------
        OSError, sqlite3.Error
            If the disk or the index fails; a folder that cannot be written to is only noted, and left alone a while.
        """
        now = self._monotonic()
        if now < self._next_step:
            return
        if settings != self._settings:
            self._settings, self._queue, self._pass, self._next_pass = settings, deque(), None, now
        self._next_step = now + STEP_EVERY_S
        try:
            self._is_busy = self._do(settings, now)
        except OSError as error:
            self._database.connection.rollback()
            if error.errno == errno.EIO:
                raise
            self._next_step = now + REST_S
            self._log.error("retention cannot delete", reason=error.strerror or type(error).__name__)

    def _do(self, settings: Retention, now: float) -> bool:
        """Return whether there is more to do at once."""
        if self._go_on(settings):
            return True
        if not settings.is_on:
            return False
        if self._queue:
            going = self._queue.popleft()
            begun = removal.begin(self._database, self._layout, going)
            if begun is not None:
                self._log.info("retention begins", series=going.unit.name, kind=str(going.unit.kind), rule=going.rule)
            return True
        if self._pass is None and not self._is_due(settings, now):
            return False
        if self._pass is None:
            self._pass = _Pass(self._database, self._layout, settings)
        if self._pass.read():
            chosen = self._pass.chosen(self._wall())
            self._queue.extend(chosen)
            self._pass = None
            self._next_pass = self._monotonic() + (0.0 if len(chosen) >= KEPT else PASS_EVERY_S)
        return True

    def _go_on(self, settings: Retention) -> bool:
        """Go on with what is going; return whether anything was."""
        open_one = removal.open_removal(self._database)
        if open_one is None:
            return removal.finish_marked(self._database, self._layout)
        kind = Kind.ORIGINALS if open_one.revision_id is None else Kind.RESULTS
        if kind is Kind.ORIGINALS and not marks_of(settings, kind).is_on:
            removal.finish_marked(self._database, self._layout)
            with self._database.immediate():
                removal.stop(self._database, open_one.series_id, "retention of originals was switched off")
            return True
        removal.step(self._database, self._layout, open_one)
        return True

    def _is_due(self, settings: Retention, now: float) -> bool:
        if now >= self._next_pass:
            return True
        high = marks_of(settings, Kind.ORIGINALS).high_bytes
        if not high or now < self._next_look:
            return False
        self._next_look = now + LOOK_EVERY_S
        row = self._database.execute("SELECT value FROM counters WHERE name = 'bytes'").fetchone()
        return row is not None and row[0] > high
