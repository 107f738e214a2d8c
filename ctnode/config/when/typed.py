"""Names and types of an expression, checked before anything is received."""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache
from typing import Final

from ctnode.config.when.names import Kind, Named, WhenError, look_up
from ctnode.config.when.syntax import Chain, Compare, Expression, Has, Literal, Name, Not, names_of, parse

_ORDER: Final = frozenset({"<", "<=", ">", ">="})
_DATE: Final = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})")
_TIME: Final = re.compile(r"([01]\d|2[0-3]):?([0-5]\d)(?::?([0-5]\d|60))?")


@lru_cache(maxsize=256)
def compile_when(source: str) -> Expression:
    """Return the checked tree of an expression.

    Raises
    ------
    WhenError
        At the first name that does not exist, or comparison that no value could ever satisfy.
    """
    expression = parse(source)
    _check(expression, source)
    return expression


def uses_results(expression: Expression) -> bool:
    """Return whether an expression asks for what only the pipeline finds out."""
    return any(named.is_result for named in map(_known, names_of(expression)))


def _known(name: Name) -> Named:
    found = look_up(name.word)
    assert not isinstance(found, str), name.word
    return found


def _check(expression: Expression, source: str) -> None:
    match expression:
        case Has(name):
            _named(name, source)
        case Not(part):
            _check(part, source)
        case Chain(_, parts):
            for part in parts:
                _check(part, source)
        case Compare(_, _, _):
            _check_comparison(expression, source)
        case _:
            return


def _named(name: Name, source: str) -> Named:
    found = look_up(name.word)
    if isinstance(found, str):
        raise WhenError(found, source, name.at)
    if name.index is not None and not found.is_list:
        raise WhenError(f"{name.word} has one value: leave out [{name.index}]", source, name.at)
    return found


def _check_comparison(comparison: Compare, source: str) -> None:
    name, sign = comparison.name, comparison.sign
    named = _named(name, source)
    several = named.is_list and name.index is None
    if several and sign not in {"contains", "like"}:
        raise WhenError(
            f"{name.word} may have several values: write contains, or pick one as {name.word}[0]", source, comparison.at
        )
    if sign == "like" and named.kind is not Kind.TEXT:
        raise WhenError(f"like is for texts, {name.word} is a {named.kind}", source, comparison.at)
    if sign == "contains" and not several and named.kind is not Kind.TEXT:
        raise WhenError(f"contains is for texts and lists, {name.word} is a {named.kind}", source, comparison.at)
    if sign in _ORDER and named.kind is Kind.TEXT:
        raise WhenError(f"{sign} is for numbers, dates and times, {name.word} is a text", source, comparison.at)
    for literal in comparison.literals:
        _check_literal(literal, name, named, sign, source)


def _check_literal(literal: Literal, name: Name, named: Named, sign: str, source: str) -> None:
    value = literal.value
    if (named.kind is Kind.NUMBER) == isinstance(value, str):
        wanted = 'a "text"' if named.kind is Kind.TEXT else f"a {named.kind}"
        raise WhenError(f"{name.word} is compared with {wanted}", source, literal.at)
    if named.kind is Kind.DATE and date_of(str(value)) is None:
        raise WhenError('a date is written "2026-01-31"', source, literal.at)
    if named.kind is Kind.TIME and seconds_of(str(value)) is None:
        raise WhenError('a time is written "08:30" or "08:30:00"', source, literal.at)
    if named.choices and sign in {"==", "!=", "in"} and str(value).upper() not in named.choices:
        raise WhenError(f"{name.word} is one of {', '.join(named.choices)}", source, literal.at)


def date_of(text: str) -> float | None:
    """Return a date as days, None if it is none."""
    found = _DATE.fullmatch(text.strip())
    try:
        return float(date(*map(int, found.groups())).toordinal()) if found else None
    except ValueError:
        return None


def seconds_of(text: str) -> float | None:
    """Return a time of day in seconds, None if it is none; parts of a second are dropped."""
    found = _TIME.fullmatch(text.strip().partition(".")[0])
    if not found:
        return None
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(3600 * hours + 60 * minutes + seconds)
