"""Who has to wait a moment before it is let in."""

from __future__ import annotations

import socket

import pytest

from ctnode.wire.pacing import ADDRESS_LIMIT, DELAY_S, KNOCKS, WITHIN_S, Pacing
from ctnode.wire.places import Place

pytestmark = pytest.mark.unit

SCANNER, MODALITY = "10.0.0.66", "10.0.0.1"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_who_knocks_again_and_again_has_to_wait_and_nobody_else(clock: Clock) -> None:
    pacing = Pacing(clock)
    for number in range(KNOCKS):
        assert not pacing.is_knocking(SCANNER), number
        pacing.count(SCANNER)
    assert pacing.is_knocking(SCANNER)
    assert not pacing.is_knocking(MODALITY)


def test_a_health_check_never_waits(clock: Clock) -> None:
    pacing = Pacing(clock)
    for _ in range(1000):
        pacing.count(SCANNER)
        clock.now_s += 2.0
        assert not pacing.is_knocking(SCANNER)


def test_it_is_forgiven_after_a_while(clock: Clock) -> None:
    pacing = Pacing(clock)
    for _ in range(KNOCKS):
        pacing.count(SCANNER)
    clock.now_s += WITHIN_S + 0.1
    assert not pacing.is_knocking(SCANNER)


def test_held_connections_come_back_in_order_when_they_are_due(clock: Clock) -> None:
    pacing = Pacing(clock)
    ends = [socket.socket() for _ in range(3)]
    assert pacing.until_due_s(5.0) == 5.0
    for number, end in enumerate(ends):
        pacing.hold(end, Place(number, SCANNER, over_limit=False), is_tls=number == 1)
        clock.now_s += 0.1
    assert list(pacing.due()) == []
    assert pacing.until_due_s(5.0) == pytest.approx(DELAY_S - 0.3)
    clock.now_s += DELAY_S - 0.15
    assert [(held.connection, held.is_tls) for held in pacing.due()] == [(ends[0], False), (ends[1], True)]
    assert [held.place.number for held in pacing.due(all_of_them=True)] == [2]
    assert pacing.until_due_s(5.0) == 5.0
    for end in ends:
        end.close()


def test_addresses_are_bounded(clock: Clock) -> None:
    pacing = Pacing(clock)
    for _ in range(KNOCKS):
        pacing.count(SCANNER)
    for number in range(ADDRESS_LIMIT):
        pacing.count(f"2001:db8::{number:x}")
    assert not pacing.is_knocking(SCANNER)
    assert len(pacing._knocks) == ADDRESS_LIMIT
