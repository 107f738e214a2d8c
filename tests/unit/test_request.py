"""The look at an A-ASSOCIATE-RQ before pynetdicom reads it, and who knocks without asking."""

from __future__ import annotations

import random

import pytest
from pynetdicom.pdu import A_ASSOCIATE_RQ
from structlog.testing import capture_logs

from ctnode.wire.command import Malformed
from ctnode.wire.knocks import ADDRESS_LIMIT, INTERVAL_S, Knocks
from ctnode.wire.request import ITEM_LIMIT, review
from tests.pdu_writer import CONTEXTS, item, request, user_item

pytestmark = pytest.mark.unit


def test_a_sound_request_stays_as_it_is() -> None:
    sent = request(user=user_item(item(0x55, b"VERSION_1"), item(0x53, b"\0\1\0\1")))
    reviewed = review(memoryview(sent))
    rest = request((), user=user_item(item(0x55, b"VERSION_1"), item(0x53, b"\0\1\0\1")))
    assert (bytes(reviewed.head), reviewed.rejection) == (rest, None)
    assert [
        (
            context.context_id,
            str(context.abstract_syntax).encode(),
            [syntax.encode() for syntax in context.transfer_syntax],
        )
        for context in reviewed.contexts
    ] == [(number, abstract, list(transfer)) for number, abstract, transfer in CONTEXTS]


def test_what_is_unknown_is_left_out_and_all_lengths_are_true() -> None:
    reviewed = review(
        memoryview(request(user=user_item(item(0x5F, bytes(99))), more=item(0x77, b"x"), calling=b"A\0\0", version=5))
    )
    assert (bytes(reviewed.head), reviewed.rejection) == (request((), calling=b"A"), None)
    assert len(reviewed.contexts) == len(CONTEXTS)
    decoded = A_ASSOCIATE_RQ()
    decoded.decode(bytes(reviewed.head))
    assert decoded.calling_ae_title == "A"


def test_as_many_contexts_as_there_are_numbers() -> None:
    syntaxes = tuple(b"1.2.%d" % number for number in range(64))
    sent = request([(number, b"1.2.3", syntaxes) for number in range(1, 256, 2)])
    assert review(memoryview(sent)).rejection is None
    assert ITEM_LIMIT > 128 * 66


@pytest.mark.parametrize("numbers", [(2,), (0,), (1, 3, 1), (255, 254)])
def test_numbers_of_contexts_are_odd_and_distinct(numbers: tuple[int, ...]) -> None:
    with pytest.raises(Malformed):
        review(memoryview(request([(number, b"1.2.3", (b"1.2",)) for number in numbers])))


def test_no_bytes_make_it_raise_anything_else() -> None:
    chance = random.Random(3)
    sound = request(user=user_item(item(0x55, b"VERSION_1")))
    for _ in range(5000):
        damaged = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(6, len(damaged))] = chance.randrange(256)
        try:
            reviewed = review(memoryview(bytes(damaged[: chance.choice((len(damaged), 80, 200))])))
        except Malformed:
            continue
        assert len(reviewed.head) <= len(damaged)


def test_knocks_are_told_by_the_minute_and_within_bounds() -> None:
    now_s = 100.0
    knocks = Knocks(lambda: now_s)
    for number in range(ADDRESS_LIMIT + 50):
        knocks.count(f"10.0.{number // 256}.{number % 256}", "closed")
    with capture_logs() as lines:
        knocks.tell()
        assert lines == []
        now_s += INTERVAL_S
        knocks.count("10.0.0.0", "garbage")
        knocks.tell()
    assert len(lines) == ADDRESS_LIMIT + 1
    assert (lines[0]["address"], lines[0]["count"], lines[0]["reason"]) == ("10.0.0.0", 2, "closed 1, garbage 1")
    assert (lines[-1]["address"], lines[-1]["count"]) == ("others", 50)
    with capture_logs() as lines:
        knocks.tell(all_of_them=True)
    assert lines == []
