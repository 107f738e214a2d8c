"""What open associations do, on a clock that only runs forward: how long each is silent, and which series it has left.

Which series an association sent last is told by the order of its arrivals and not by their times, for those of one scan
have one time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ctnode.archive.database import Database
from ctnode.archive.settle import Open
from ctnode.flow.completion import Feeder

Clock = Callable[[], float]

_FIRSTS: Final = (
    "SELECT fed.series_id, (SELECT min(arrived_at) FROM instances WHERE instances.series_id = fed.series_id"
    " AND instances.association_id = fed.association_id) FROM association_series AS fed WHERE fed.association_id = ?"
)


@dataclass(frozen=True, slots=True)
class _Heard:
    """When an open association was last heard of: what the journal says, and when that was on our clock."""

    last_arrival: float
    at: float


@dataclass(slots=True)
class _Fed:
    """The place of the last arrival for a series in the order of all, and when the association turned to another."""

    place: int
    left_at: float | None = None


class Listener:
    """The open associations, as the keeper hears of them.

    Parameters
    ----------
    database
        Tells what an association brought before this process began.
    monotonic, wall
        The clock that silence is measured by, and that of the journal.
    """

    def __init__(self, database: Database, monotonic: Clock, wall: Clock) -> None:
        self._database = database
        self._monotonic = monotonic
        self._wall = wall
        self._heard: dict[int, _Heard] = {}
        # By association and series.
        self._fed: dict[tuple[int, int], _Fed] = {}
        # By association: which series it is at, and the place of the first arrival of the one that it began last.
        self._current: dict[int, int] = {}
        self._begun: dict[int, int] = {}
        self._brought: list[tuple[tuple[int, int], float]] = []
        self._place = 0

    def note(self, fed: Iterable[tuple[int, int]]) -> None:
        """Note which association brought something for which series, in the order of arrival."""
        now = self._monotonic()
        self._brought += ((pair, now) for pair in fed)

    def listen(self, opened: Iterable[Open]) -> None:
        """Take in all that was noted since, and what is open now."""
        now, wall = self._monotonic(), self._wall()
        known, self._heard = self._heard, {}
        for association in opened:
            identifier, last_arrival = association.association_id, association.last_arrival
            heard = known.get(identifier)
            if heard is None:
                # Its silence so far can only be read from the wall clock.
                heard = _Heard(last_arrival, now - max(0.0, wall - last_arrival))
                self._restore(association, heard.at)
            elif heard.last_arrival != last_arrival:
                heard = _Heard(last_arrival, now)
            self._heard[identifier] = heard
        for pair, at in self._brought:
            # The index has told of those that are new to us, with all that they have brought.
            if pair[0] in known:
                self._bring(pair, at)
        self._brought = []
        self._fed = {pair: fed for pair, fed in self._fed.items() if pair[0] in self._heard}
        for left in self._current.keys() - self._heard.keys():
            del self._current[left], self._begun[left]

    def _bring(self, pair: tuple[int, int], at: float) -> None:
        identifier, series_id = pair
        self._place += 1
        before = self._current.get(identifier, series_id)
        if before != series_id:
            self._fed[identifier, before].left_at = at
        self._current[identifier] = series_id
        if pair not in self._fed:
            self._begun[identifier] = self._place
        self._fed[pair] = _Fed(self._place)

    def _restore(self, association: Open, heard_at: float) -> None:
        """Take over from the index what an association that is new to us has fed, in the order of arrival."""
        identifier = association.association_id
        lasts = dict(
            self._database.execute(
                "SELECT series_id, last_arrival FROM association_series WHERE association_id = ?", (identifier,)
            ).fetchall()
        )
        # Of one series there is no order to be found out.
        firsts = dict(self._database.execute(_FIRSTS, (identifier,)).fetchall()) if len(lasts) > 1 else {}
        events = [(at, series_id) for times in (firsts, lasts) for series_id, at in times.items() if at is not None]
        for at, series_id in sorted(events):
            self._bring((identifier, series_id), heard_at - max(0.0, association.last_arrival - at))

    def silent_s(self, association_id: int) -> float:
        """Return how long an open association has been silent at the last look."""
        return self._monotonic() - self._heard[association_id].at

    def feeder(self, association: Open, series_id: int) -> Feeder:
        """Return what an open association is to a series that it fed."""
        identifier = association.association_id
        heard_at = self._heard[identifier].at
        fed = self._fed.get((identifier, series_id))
        return Feeder(
            silent_s=self._monotonic() - heard_at,
            is_storing=association.is_storing,
            elsewhere_s=0.0 if fed is None or fed.left_at is None else heard_at - fed.left_at,
            has_gone_on=fed is not None and self._begun[identifier] > fed.place,
        )
