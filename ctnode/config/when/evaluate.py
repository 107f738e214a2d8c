"""Does an expression hold? True, false, or unknown where a value is missing, with the parts that decided.

A comparison with a value that is not there is neither true nor false (Kleene's logic): a missing SliceThickness makes
``SliceThickness > 3`` unknown, and ``not SliceThickness > 3`` as well. A route fires only on what is true.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ctnode.config.when.names import Kind, Named, look_up
from ctnode.config.when.syntax import Chain, Compare, Expression, Has, Literal, Name, Not, Truth, show
from ctnode.config.when.typed import date_of, seconds_of

Value = str | float
_ORDER: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a series: the values by name; one that is not there is unknown.

    Texts as they were sent, without padding; numbers as float, ages in years; dates and times as texts.
    """

    values: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came out: ``holds`` is None for unknown; ``because`` are the parts that decided, as text."""

    holds: bool | None
    because: tuple[str, ...]


def evaluate(expression: Expression, facts: Facts) -> Answer:
    """Evaluate a checked expression."""
    match expression:
        case Truth(value):
            return Answer(value, (show(expression),))
        case Has(name):
            return Answer(bool(_values(name, facts)), (show(expression),))
        case Not(part):
            inner = evaluate(part, facts)
            return Answer(None if inner.holds is None else not inner.holds, inner.because)
        case Chain(word, parts):
            return _chain(word, [evaluate(part, facts) for part in parts])
        case Compare(_, _, _):
            return Answer(_compare(expression, facts), (show(expression),))


def _chain(word: str, answers: list[Answer]) -> Answer:
    # One false decides "and", one true decides "or"; failing that, what is unknown does.
    deciding = word == "or"
    first = next((answer for answer in answers if answer.holds is deciding), None)
    if first is not None:
        return first
    unknown = [answer for answer in answers if answer.holds is None]
    because = tuple(part for answer in (unknown or answers) for part in answer.because)
    return Answer(None if unknown else not deciding, because)


def _values(name: Name, facts: Facts) -> tuple[Value, ...]:
    values = tuple(value for value in facts.values.get(name.word, ()) if value != "")
    if name.index is None:
        return values
    whole = facts.values.get(name.word, ())
    return tuple(value for value in whole[name.index : name.index + 1] if value != "")


def _compare(comparison: Compare, facts: Facts) -> bool | None:
    name, sign = comparison.name, comparison.sign
    named = look_up(name.word)
    assert isinstance(named, Named)
    values = [_comparable(value, named.kind) for value in _values(name, facts)]
    known = [value for value in values if value is not None]
    wanted = [_comparable(literal.value, named.kind) for literal in comparison.literals]
    if not known:
        return None
    if named.is_list and name.index is None:
        return any(_one(value, "like" if sign == "like" else "==", wanted, comparison.literals) for value in known)
    return _one(known[0], sign, wanted, comparison.literals)


def _one(value: Value, sign: str, wanted: list[Value | None], literals: tuple[Literal, ...]) -> bool:
    first = wanted[0]
    if sign in _ORDER:
        assert isinstance(value, float)
        assert isinstance(first, float)
        return _ORDER[sign](value, first)
    if sign == "contains":
        return str(first) in str(value)
    if sign == "like":
        return is_like(str(value), str(literals[0].value).casefold())
    return (value in wanted) is (sign != "!=")


def _comparable(value: Value, kind: Kind) -> Value | None:
    """Return a value in a form that compares: texts without regard to case, dates in days, times in seconds."""
    if kind is Kind.NUMBER:
        return value if isinstance(value, float) else None
    text = str(value).strip()
    if kind is Kind.DATE:
        return date_of(text)
    return seconds_of(text) if kind is Kind.TIME else text.casefold()


def is_like(text: str, pattern: str) -> bool:
    """Return whether ``text`` fits a pattern of ``*`` (anything) and ``?`` (one character).

    Greedy with one step back, so no pattern takes longer than their lengths multiplied.
    """
    at = place = 0
    star, resume = -1, 0
    while at < len(text):
        if place < len(pattern) and pattern[place] == "*":
            star, resume = place, at
            place += 1
        elif place < len(pattern) and pattern[place] in ("?", text[at]):
            place, at = place + 1, at + 1
        elif star >= 0:
            resume += 1
            place, at = star + 1, resume
        else:
            return False
    return not pattern[place:].strip("*")
