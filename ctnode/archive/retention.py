"""What goes and what stays: the decision of retention, a pure function of what there is and of the operator's marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

BELOW_MARKS = "no rule asks for it"


class Kind(StrEnum):
    """What a unit consists of."""

    ORIGINALS = "originals"
    RESULTS = "results"


@dataclass(frozen=True, slots=True)
class Unit:
    """What goes or stays as a whole: the originals of a series, or the results of one of its revisions.

    Parameters
    ----------
    kind
        Originals or results.
    series_id, revision_id
        Whose; ``revision_id`` is None for originals.
    name
        How people call it.
    objects, bytes
        How much it is: images and bytes of their data sets, or files and their bytes.
    settled_at
        Seconds since 1970 of the last thing that was done: arrival, verdict, end of a job, delivery.
    is_delivered
        Whether anything of it was owed to a destination; all of that has arrived, or ``blocks`` says what has not.
    blocks
        Why it may not go, whatever its age.
    """

    kind: Kind
    series_id: int
    revision_id: int | None
    name: str
    objects: int
    bytes: int
    settled_at: float
    is_delivered: bool = False
    blocks: tuple[str, ...] = ()

    @property
    def rank(self) -> tuple[bool, float, int, int]:
        """Return the place in the order in which units go: what was delivered first, of that the oldest."""
        return (not self.is_delivered, self.settled_at, self.series_id, self.revision_id or 0)


@dataclass(frozen=True, slots=True)
class Marks:
    """The rules of one kind: an age, a low and a high mark, each 0 where there is none, and the floor over all."""

    age_s: float = 0.0
    low_bytes: float = 0.0
    high_bytes: float = 0.0
    floor_s: float = 0.0

    @property
    def is_on(self) -> bool:
        """Return whether anything may go at all."""
        return self.age_s > 0 or self.high_bytes > 0


@dataclass(frozen=True, slots=True)
class Going:
    """A unit that goes, and by which rule."""

    unit: Unit
    rule: str


@dataclass(frozen=True, slots=True)
class Staying:
    """A unit that stays, and why."""

    unit: Unit
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes, in its order, and what stays."""

    going: tuple[Going, ...]
    staying: tuple[Staying, ...]


def choose(units: Iterable[Unit], marks: Marks, total_bytes: float, now: float) -> Plan:
    """Decide over the units of one kind.

    Parameters
    ----------
    units
        What there is, or the foremost of it in the order of ``rank`` with all that is over its age.
    marks
        The operator's rules.
    total_bytes
        What all units of this kind take, those that are not in ``units`` too.
    now
        Seconds since 1970.

    Returns
    -------
    Plan
        By age goes all that is old enough. If more than the high mark is left then, as much goes as it takes to reach
        the low mark, what was delivered before what was never owed to anybody, and the oldest first. What is blocked or
        newer than the floor never goes.
    """
    free: list[Unit] = []
    staying: list[Staying] = []
    for unit in sorted(units, key=lambda unit: unit.rank):
        why = "; ".join(unit.blocks) or _too_new(unit, marks, now)
        if why:
            staying.append(Staying(unit, why))
        else:
            free.append(unit)
    old = [unit for unit in free if marks.age_s and now - unit.settled_at >= marks.age_s]
    young = [unit for unit in free if not (marks.age_s and now - unit.settled_at >= marks.age_s)]
    going = [Going(unit, f"older than {marks.age_s / 86400:g} days") for unit in old]
    left = total_bytes - sum(unit.bytes for unit in old)
    spared = _over_space(young, marks, left)
    going += [Going(unit, f"over {marks.high_bytes / 1e9:g} GB") for unit in young[:spared]]
    staying += [Staying(unit, BELOW_MARKS) for unit in young[spared:]]
    return Plan(tuple(going), tuple(staying))


def _too_new(unit: Unit, marks: Marks, now: float) -> str:
    age_s = now - unit.settled_at
    return f"newer than the floor of {marks.floor_s / 86400:g} days" if age_s < marks.floor_s else ""


def _over_space(units: Sequence[Unit], marks: Marks, left_bytes: float) -> int:
    """Return how many of ``units`` have to go for space."""
    if not marks.high_bytes or left_bytes <= marks.high_bytes:
        return 0
    count = 0
    while left_bytes > marks.low_bytes and count < len(units):
        left_bytes -= units[count].bytes
        count += 1
    return count
