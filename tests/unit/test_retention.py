"""What goes and what stays: laws of the decision, whatever there is and whatever the operator's marks are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctnode.archive.retention import BELOW_MARKS, Kind, Marks, Plan, Unit, choose

pytestmark = pytest.mark.unit

NOW = 1_000_000.0
DAY_S = 86400.0


def unit(series: int, age_s: float, size: int = 10, *, delivered: bool = False, blocks: tuple[str, ...] = ()) -> Unit:
    return Unit(Kind.ORIGINALS, series, None, f"1.2.{series}", 1, size, NOW - age_s, delivered, blocks)


@st.composite
def many_units(draw: st.DrawFn) -> list[Unit]:
    kinds = st.tuples(
        st.floats(0, 100 * DAY_S), st.integers(0, 1000), st.booleans(), st.sampled_from([(), ("held: by me",)])
    )
    return [
        unit(number, age_s, size, delivered=delivered, blocks=blocks)
        for number, (age_s, size, delivered, blocks) in enumerate(draw(st.lists(kinds, max_size=30)))
    ]


@st.composite
def any_marks(draw: st.DrawFn) -> Marks:
    low = draw(st.sampled_from([0.0, 1.0, 500.0, 5000.0]))
    return Marks(
        draw(st.sampled_from([0.0, 1.0, 10 * DAY_S, 60 * DAY_S])),
        low,
        low + draw(st.floats(1, 1000)) if low else 0.0,
        draw(st.sampled_from([0.0, DAY_S, 30 * DAY_S])),
    )


def decide(units: list[Unit], marks: Marks) -> Plan:
    return choose(units, marks, sum(one.bytes for one in units), NOW)


@given(many_units(), any_marks())
def test_each_unit_goes_or_stays_once(units: list[Unit], marks: Marks) -> None:
    plan = decide(units, marks)
    told = [one.unit for one in plan.going] + [one.unit for one in plan.staying]
    assert sorted(told, key=lambda one: one.series_id) == units
    assert all(one.rule for one in plan.going)
    assert all(one.why for one in plan.staying)


@given(many_units(), any_marks())
def test_nothing_goes_that_is_blocked_or_newer_than_the_floor(units: list[Unit], marks: Marks) -> None:
    for one in decide(units, marks).going:
        assert not one.unit.blocks
        assert NOW - one.unit.settled_at >= marks.floor_s


@given(many_units(), any_marks())
def test_after_the_high_mark_it_goes_down_to_the_low_one_and_no_further(units: list[Unit], marks: Marks) -> None:
    plan = decide(units, marks)
    total = sum(one.bytes for one in units)
    by_space = [one.unit for one in plan.going if one.rule.startswith("over")]
    by_age = [one.unit for one in plan.going if one.rule.startswith("older")]
    left = total - sum(one.bytes for one in by_age)
    if not marks.high_bytes or left <= marks.high_bytes:
        assert by_space == []
        return
    after = left - sum(one.bytes for one in by_space)
    free = [one for one in plan.staying if one.why == BELOW_MARKS]
    assert after <= marks.low_bytes or not free
    assert not by_space or after + by_space[-1].bytes > marks.low_bytes


@given(many_units(), any_marks())
def test_what_goes_for_space_was_delivered_first_and_is_the_oldest(units: list[Unit], marks: Marks) -> None:
    plan = decide(units, marks)
    gone = [one.unit for one in plan.going if one.rule.startswith("over")]
    free = [one.unit for one in plan.staying if one.why == BELOW_MARKS]
    if gone and free:
        assert max(one.rank for one in gone) < min(one.rank for one in free)
    assert gone == sorted(gone, key=lambda one: one.rank)


@given(many_units(), any_marks(), any_marks())
def test_a_higher_floor_never_lets_more_go_by_age(units: list[Unit], marks: Marks, other: Marks) -> None:
    by_age = Marks(age_s=marks.age_s, floor_s=marks.floor_s)
    stricter = Marks(age_s=marks.age_s, floor_s=max(marks.floor_s, other.floor_s))
    fewer = {one.unit.series_id for one in decide(units, stricter).going}
    assert fewer <= {one.unit.series_id for one in decide(units, by_age).going}


@given(many_units())
def test_without_rules_nothing_goes(units: list[Unit]) -> None:
    assert decide(units, Marks()).going == ()
    assert not Marks(floor_s=DAY_S).is_on


def test_age_counts_what_is_blocked_as_staying_and_says_why() -> None:
    plan = decide([unit(1, 40 * DAY_S), unit(2, 40 * DAY_S, blocks=("held: x",)), unit(3, DAY_S)], Marks(30 * DAY_S))
    assert [(one.unit.series_id, one.rule) for one in plan.going] == [(1, "older than 30 days")]
    assert {one.unit.series_id: one.why for one in plan.staying} == {2: "held: x", 3: BELOW_MARKS}
