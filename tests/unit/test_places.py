"""Who gets a place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ctnode.wire.places import REJECTED_AT_ONCE, REJECTED_AT_ONCE_PER_ADDRESS, Places, Slots

pytestmark = pytest.mark.unit


def test_one_address_cannot_take_all_places() -> None:
    places = Places()
    greedy = [places.take("10.0.0.1", limit=10, per_address=6) for _ in range(40)]
    assert [place.over_limit for place in greedy[:6] if place] == [False] * 6
    assert [place.over_limit for place in greedy[6 : 6 + REJECTED_AT_ONCE_PER_ADDRESS] if place] == (
        [True] * REJECTED_AT_ONCE_PER_ADDRESS
    )
    assert greedy[6 + REJECTED_AT_ONCE_PER_ADDRESS :] == [None] * (34 - REJECTED_AT_ONCE_PER_ADDRESS)
    others = [places.take("10.0.0.2", limit=10, per_address=6) for _ in range(5)]
    assert [place.over_limit for place in others if place] == [False] * 4 + [True]


def test_rejections_at_the_same_time_are_bounded_over_all_addresses() -> None:
    places = Places()
    assert places.take("10.0.0.1", limit=1, per_address=1) is not None
    taken = [places.take(f"10.0.1.{number}", limit=1, per_address=1) for number in range(REJECTED_AT_ONCE + 5)]
    assert [place is not None for place in taken] == [True] * REJECTED_AT_ONCE + [False] * 5


def test_a_place_is_given_back_once() -> None:
    places = Places()
    first = places.take("10.0.0.1", limit=1, per_address=1)
    second = places.take("10.0.0.1", limit=1, per_address=1)
    assert first is not None
    assert second is not None
    assert len(places) == 2
    for _ in range(2):
        places.give_back(first.number)
    assert len(places) == 1
    third = places.take("10.0.0.1", limit=1, per_address=1)
    assert third is not None
    assert not third.over_limit


def test_slots_are_counted_for_each_peer_and_come_back_when_they_are_closed(tmp_path: Path) -> None:
    slots, of_another_process = Slots(tmp_path), Slots(tmp_path)
    first, second = slots.take("ct1", 2), of_another_process.take("ct1", 2)
    assert first is not None
    assert second is not None
    assert slots.take("ct1", 2) is None
    other = slots.take("ct2", 1)
    assert other is not None
    os.close(second)
    third = slots.take("ct1", 2)
    assert third is not None
    for descriptor in (first, third, other):
        os.close(descriptor)
