"""Which routes a series takes: a pure decision over its facts, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ctnode.config import Route, Routing
from ctnode.config.when import Answer, Facts, compile_when, evaluate, uses_results

ALWAYS: Final = "true"
NO_ROUTE: Final = "no route"
PRIORITIES: Final = {"low": -1, "normal": 0, "high": 1}


class Outcome(StrEnum):
    """What a route does with a series."""

    FIRES = "fires"
    NOT = "does not fire"
    # A value that it asks for is not there, nor will it come.
    UNKNOWN = "does not fire: a value is missing"
    # It asks for results that are still to be made.
    LATER = "is decided when the results are there"
    # A series that its study has to have is not there, or not complete yet.
    ABSENT = "does not fire: a required series is missing"
    # Another one of the file came first (routing.match = "first").
    BEHIND = "not reached: an earlier route fires"


@dataclass(frozen=True, slots=True)
class Step:
    """One route, what it does, and the parts of its condition that decided."""

    route: Route
    outcome: Outcome
    because: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one series, in the order of the file."""

    steps: tuple[Step, ...]

    @property
    def fired(self) -> tuple[Route, ...]:
        """Return the routes that fire now."""
        return tuple(step.route for step in self.steps if step.outcome is Outcome.FIRES)

    @property
    def open(self) -> tuple[Route, ...]:
        """Return the routes that wait for results."""
        return tuple(step.route for step in self.steps if step.outcome is Outcome.LATER)

    @property
    def runs(self) -> bool:
        """Return whether a route that fires, or may still fire, wants the pipeline."""
        return any(route.run == "pipeline" for route in (*self.fired, *self.open))

    @property
    def priority(self) -> int:
        """Return the highest priority among the routes that fire or may still fire."""
        return max((PRIORITIES[route.priority] for route in (*self.fired, *self.open)), default=0)

    def words(self) -> str:
        """Return the decision for the timeline: names and outcomes, never values."""
        told = [f"{step.route.name} {step.outcome}" for step in self.steps]
        return "; ".join(told) or "no [[routes]]"


def decide(
    routes: Sequence[Route], routing: Routing, facts: Sequence[Facts], *, results_to_come: bool, level: str = "series"
) -> Decision:
    """Decide which routes of one level a series takes.

    Parameters
    ----------
    routes
        All of the configuration, in the order of the file.
    routing
        Whether the first or all that fit fire.
    facts
        What is known of the series; for a study, of each of its series: a route fires if one of them fits.
    results_to_come
        Whether what the pipeline finds out is missing only because it has not run yet.
    level
        ``series`` or ``study``.
    """
    steps: list[Step] = []
    waits = has_fired = False
    listed = [route for route in routes if route.level == level]
    for route in (route for route in listed if not route.is_default):
        if has_fired and routing.match == "first":
            steps.append(Step(route, Outcome.BEHIND))
            continue
        step = _step(route, facts, results_to_come=results_to_come)
        if waits and routing.match == "first" and step.outcome is Outcome.FIRES:
            # An earlier route may still come before it.
            step = Step(route, Outcome.LATER, step.because)
        waits = waits or step.outcome is Outcome.LATER
        has_fired = has_fired or step.outcome is Outcome.FIRES
        steps.append(step)
    for route in (route for route in listed if route.is_default):
        because = ("another route fires",) if has_fired else ("no other route fires",)
        outcome = Outcome.NOT if has_fired else Outcome.LATER if waits else Outcome.FIRES
        steps.append(Step(route, outcome, because))
    order = {route.name: place for place, route in enumerate(listed)}
    return Decision(tuple(sorted(steps, key=lambda step: order[step.route.name])))


def _step(route: Route, facts: Sequence[Facts], *, results_to_come: bool) -> Step:
    if absent := _absent(route, facts):
        return Step(route, Outcome.ABSENT, absent)
    expression = compile_when(route.when or ALWAYS)
    answers = [evaluate(expression, one) for one in facts]
    # True before unknown before false.
    answer = max(answers, key=lambda one: (one.holds is True, one.holds is None), default=Answer(None, ()))
    if answer.holds is None:
        later = results_to_come and uses_results(expression)
        return Step(route, Outcome.LATER if later else Outcome.UNKNOWN, answer.because)
    return Step(route, Outcome.FIRES if answer.holds else Outcome.NOT, answer.because)


def _absent(route: Route, facts: Sequence[Facts]) -> tuple[str, ...]:
    """Return the required conditions that no series is left for, when each takes a series of its own."""
    fitting = [
        [place for place, one in enumerate(facts) if evaluate(compile_when(condition), one).holds is True]
        for condition in route.required
    ]
    taken: dict[int, int] = {}
    return tuple(condition for place, condition in enumerate(route.required) if not _take(place, fitting, taken, set()))


def _take(wanted: int, fitting: Sequence[Sequence[int]], taken: dict[int, int], seen: set[int]) -> bool:
    """Give a condition a series, moving others to another one of theirs where that helps (Kuhn's matching)."""
    for series in fitting[wanted]:
        if series in seen:
            continue
        seen.add(series)
        if series not in taken or _take(taken[series], fitting, taken, seen):
            taken[series] = wanted
            return True
    return False
