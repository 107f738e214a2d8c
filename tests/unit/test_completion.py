"""When a series counts as complete, how surely, and why: a table in plain words."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctnode.config import Completion, Config, Peer
from ctnode.flow.completion import (
    Claim,
    Decision,
    Feeder,
    Situation,
    Wait,
    decide,
    describe_gap,
    describe_number_gaps,
    quiet_seconds,
)
from ctnode.words import Acquisition, Verdict

pytestmark = pytest.mark.unit

EVEN = tuple(2.5 * k for k in range(20))
GAPPED = EVEN[:7] + EVEN[9:]
QUIET_S, MAX_WAIT_S, HOLD_S = 10.0, 900.0, 60.0


def situation(**changes: object) -> Situation:
    plain: dict[str, object] = {
        "silent_s": QUIET_S, "waited_s": 30.0, "quiet_s": QUIET_S, "feeders": (), "aborted": 0, "positions_mm": EVEN,
    }  # fmt: skip
    return Situation(**{**plain, **changes})  # type: ignore[arg-type]


def decided(**changes: object) -> Wait | Decision:
    return decide(situation(**changes), max_wait_s=MAX_WAIT_S, association_hold_s=HOLD_S)


OPEN = Feeder(1, "CT1 to CTNODE (association 1-a)", silent_s=30.0)
STORING = Feeder(2, "CT2 to CTNODE (association 2-b)", silent_s=0.0)
ALMOST = Feeder(3, "door import (association 3-c)", silent_s=59.9)
OVER = Feeder(4, "ROUTER to CTNODE (association 4-d)", silent_s=60.0)
WHOLE = Claim("mpps completed from CT1 with 20 instances", 0, covers=True)
SHORT = Claim("commitment request from CT1 with 22 instances", 2, covers=True)
PARTIAL = Claim("mpps discontinued from CT1 with 5 instances", 0, covers=False)
EARLY = Claim("query result from PACS with 20 instances", 0, covers=True, is_early=True)
IN_ORDER = tuple(range(1, 21))
HOLED = tuple(k for k in range(1, 101) if k != 57)
SHORT_SCAN = Acquisition(3, 24, 20, 20)
SHARED_SCAN = Acquisition(3, 40, 20, 40)
PART_MISSING = Claim("a concatenation of 4 parts", 1, covers=False)
PARTS_THERE = Claim("a concatenation of 4 parts", 0, covers=False)


@pytest.mark.parametrize(
    ("words", "changes", "verdict"),
    [
        ("quiet and evenly spaced", {}, Verdict.LIKELY),
        ("quiet, one slice", {"positions_mm": (0.0,)}, Verdict.LIKELY),
        ("quiet, no positions at all", {"positions_mm": ()}, Verdict.LIKELY),
        ("quiet, but a slice is missing", {"positions_mm": GAPPED}, None),
        (
            "the slices are uneven, and no number is missing",
            {"positions_mm": GAPPED, "numbers": IN_ORDER},
            Verdict.SUSPECT,
        ),
        ("a slice is missing, and so is its number", {"positions_mm": GAPPED, "numbers": HOLED}, None),
        ("imported, a slice is missing", {"positions_mm": GAPPED, "is_all_there": True}, Verdict.SUSPECT),
        ("quiet, but a number is missing", {"numbers": HOLED}, None),
        ("a number is missing for the longest wait", {"numbers": HOLED, "waited_s": 900.0}, Verdict.SUSPECT),
        ("quiet, numbers begin with 5", {"numbers": tuple(range(5, 25))}, Verdict.LIKELY),
        ("quiet, two blocks of numbers", {"numbers": (*range(1, 11), *range(101, 111))}, Verdict.LIKELY),
        ("quiet, numbers without any order", {"numbers": (1, 7, 11, 40, 42, 90)}, Verdict.LIKELY),
        ("quiet, less images than the acquisition has", {"acquisitions": (SHORT_SCAN,)}, None),
        ("less for the longest wait", {"acquisitions": (SHORT_SCAN,), "waited_s": 900.0}, Verdict.SUSPECT),
        ("less, but a list is whole", {"acquisitions": (SHORT_SCAN,), "claims": (WHOLE,)}, Verdict.COMPLETE),
        ("less, but the acquisition goes over two series", {"acquisitions": (SHARED_SCAN,)}, Verdict.LIKELY),
        ("as many as the acquisition has, just arrived", {"silent_s": 0.0, "acquisitions": (SHARED_SCAN,)}, None),
        ("a part of a cut image is missing", {"claims": (PART_MISSING,)}, None),
        ("a part of a cut image is missing, a list is whole", {"claims": (PART_MISSING, WHOLE)}, None),
        ("all parts of a cut image are there, just arrived", {"silent_s": 0.0, "claims": (PARTS_THERE,)}, None),
        ("all parts of a cut image are there", {"claims": (PARTS_THERE,)}, Verdict.LIKELY),
        ("quiet, the peer has not answered yet", {"asked": "PACS"}, None),
        ("the peer has not answered for the longest wait", {"asked": "PACS", "waited_s": 900.0}, Verdict.LIKELY),
        ("the peer has not answered, but a list is whole", {"asked": "PACS", "claims": (WHOLE,)}, Verdict.COMPLETE),
        ("quiet, its step was broken off", {"discontinued": "the step of CT1 was broken off"}, Verdict.SUSPECT),
        ("quiet, but a sender broke off", {"aborted": 1}, Verdict.SUSPECT),
        ("a little less than quiet", {"silent_s": 9.99}, None),
        ("just arrived", {"silent_s": 0.0}, None),
        ("quiet, but its association is open", {"feeders": (OPEN,)}, None),
        ("quiet, but its association is in a C-STORE for minutes", {"feeders": (STORING,), "waited_s": 500.0}, None),
        ("quiet, its association is open for nearly the hold", {"feeders": (ALMOST,), "waited_s": 59.9}, None),
        ("quiet, its association is open for the hold", {"feeders": (OVER,), "waited_s": 60.0}, Verdict.LIKELY),
        ("its association is open for the longest wait", {"feeders": (OPEN,), "waited_s": 900.0}, Verdict.LIKELY),
        ("quiet, one of two associations still holds", {"feeders": (OVER, STORING), "waited_s": 60.0}, None),
        ("never quiet, but the longest wait is over", {"silent_s": 0.0, "waited_s": 900.0}, Verdict.LIKELY),
        ("held, but the longest wait is over", {"feeders": (STORING,), "waited_s": 900.0}, Verdict.LIKELY),
        (
            "the longest wait, a slice is missing",
            {"waited_s": 900.0, "positions_mm": GAPPED},
            Verdict.SUSPECT,
        ),
        ("the longest wait, a list is not whole", {"waited_s": 900.0, "claims": (SHORT,)}, Verdict.SUSPECT),
        ("a whole list, just arrived", {"silent_s": 0.0, "claims": (WHOLE,)}, Verdict.COMPLETE),
        ("a whole list, its association still open", {"feeders": (OPEN,), "claims": (WHOLE,)}, Verdict.COMPLETE),
        ("a whole list, a step in progress", {"in_progress": "CT1", "claims": (WHOLE,)}, Verdict.COMPLETE),
        ("a whole list, another not whole, quiet", {"claims": (WHOLE, SHORT)}, None),
        ("a list that is not whole, quiet", {"claims": (SHORT,)}, None),
        ("a list of less than came, just arrived", {"silent_s": 0.0, "claims": (PARTIAL,)}, None),
        ("a list of less than came, quiet", {"claims": (PARTIAL,)}, Verdict.LIKELY),
        ("a PACS that may be receiving itself, just arrived", {"silent_s": 0.0, "claims": (EARLY,)}, None),
        ("a PACS that may be receiving itself, quiet", {"claims": (EARLY,)}, Verdict.LIKELY),
        ("a step in progress, quiet", {"in_progress": "CT1"}, None),
        ("a step in progress for the longest wait", {"in_progress": "CT1", "waited_s": 900.0}, Verdict.LIKELY),
        ("the operator says so, just arrived", {"silent_s": 0.0, "is_told": True}, Verdict.LIKELY),
        ("the operator says so, a list is not whole", {"is_told": True, "claims": (SHORT,)}, Verdict.SUSPECT),
        ("a whole list of a series with a gap", {"positions_mm": GAPPED, "claims": (WHOLE,)}, Verdict.COMPLETE),
        ("quiet longer than the longest wait", {"quiet_s": 2000.0, "waited_s": 900.0}, Verdict.LIKELY),
    ],
)
def test_verdicts(words: str, changes: dict[str, object], verdict: Verdict | None) -> None:
    decision = decided(**changes)
    if verdict is None:
        assert isinstance(decision, Wait), words
        assert decision.seconds > 0
        assert decision.reason
    else:
        assert isinstance(decision, Decision), words
        assert decision.verdict is verdict
        assert decision.evidence
        assert all(decision.evidence)


def test_a_verdict_says_why() -> None:
    decision = decided(positions_mm=GAPPED, numbers=IN_ORDER, aborted=2)
    assert isinstance(decision, Decision)
    assert decision.evidence == (
        "quiet for 10 s, no open association feeds it",
        "1 gap(s) in the slice positions, median step 2.500 mm",
        "2 association(s) that fed it were aborted",
    )


def test_without_a_list_of_the_sender_nothing_is_proven() -> None:
    """COMPLETE is kept for a proof; quiet alone is LIKELY at best."""
    decision = decided()
    assert isinstance(decision, Decision)
    assert decision.verdict is not Verdict.COMPLETE
    assert decision.rule == "quiet time"
    assert decision.otherwise


@given(
    silent_s=st.floats(0, 2000),
    waited_s=st.floats(0, 2000),
    quiet_s=st.floats(0.1, 2000),
    feeders=st.lists(
        st.builds(Feeder, st.integers(1, 9), st.just("CT1 to CTNODE"), st.floats(0, 1e5)),
        max_size=3,
    ),
)
def test_it_never_waits_beyond_the_longest_wait(
    silent_s: float, waited_s: float, quiet_s: float, feeders: list[Feeder]
) -> None:
    answer = decided(silent_s=silent_s, waited_s=waited_s, quiet_s=quiet_s, feeders=tuple(feeders))
    if isinstance(answer, Wait):
        assert waited_s < MAX_WAIT_S
        assert 0 < answer.seconds <= MAX_WAIT_S - waited_s + 1e-9
    else:
        assert waited_s >= MAX_WAIT_S or silent_s >= quiet_s


@given(
    silent_s=st.floats(QUIET_S, MAX_WAIT_S, exclude_max=True),
    max_wait_s=st.floats(QUIET_S, 30 * 86400),
    share=st.floats(0, 1, exclude_max=True),
)
def test_by_default_an_open_association_holds_until_the_longest_wait(
    silent_s: float, max_wait_s: float, share: float
) -> None:
    """Whatever longest wait the configuration allows."""
    completion = Completion(max_wait_s=max_wait_s)
    waited_s = max_wait_s * share
    feeder = Feeder(1, "CT1 to CTNODE", waited_s)
    held = situation(silent_s=max(silent_s, waited_s), waited_s=waited_s, feeders=(feeder,))
    answer = decide(held, max_wait_s=max_wait_s, association_hold_s=completion.association_hold_s)
    assert isinstance(answer, Wait)
    assert answer.held_by == {1}
    assert answer.seconds == pytest.approx(max_wait_s - waited_s)


def test_of_many_that_hold_a_series_few_are_named_and_all_are_waited_for() -> None:
    many = tuple(Feeder(number, f"CT{number}", silent_s=30.0) for number in range(1, 401))
    answer = decided(feeders=many)
    assert isinstance(answer, Wait)
    assert answer.reason.endswith("feeds it: CT1, CT2, CT3 and 397 more")
    assert len(answer.held_by) == 400


def test_what_is_held_says_by_whom_and_is_looked_at_when_the_hold_ends() -> None:
    answer = decided(feeders=(OPEN, OVER, ALMOST))
    assert isinstance(answer, Wait)
    assert answer.reason == f"an association that is still open feeds it: {OPEN.words}, {ALMOST.words}"
    assert answer.held_by == {1, 3}
    assert answer.seconds == HOLD_S - 30.0


def test_the_end_of_a_c_store_that_holds_beyond_the_hold_is_looked_for_each_second() -> None:
    answer = decided(feeders=(STORING,), waited_s=500.0)
    assert isinstance(answer, Wait)
    assert answer.seconds == 1.0


def test_what_waits_for_something_else_waits_for_the_end_of_no_association() -> None:
    for changes in ({"silent_s": 0.0}, {"claims": (SHORT,)}, {"numbers": HOLED}, {"in_progress": "CT1"}):
        answer = decided(feeders=(OVER,), waited_s=100.0, **changes)
        assert isinstance(answer, Wait)
        assert answer.held_by == frozenset()


@pytest.mark.parametrize(
    ("words", "positions", "gaps"),
    [
        ("even", EVEN, 0),
        ("in any order", EVEN[::-1], 0),
        ("one slice missing", GAPPED, 1),
        ("two slices missing", (*EVEN[:3], *EVEN[4:8], *EVEN[9:]), 2),
        ("three slices, the second far from the third", (0.0, 1.0, 3.0), 1),
        ("every position twice", EVEN + EVEN, 0),
        ("almost the same positions", (0.0, 0.001, 0.002, 2.5, 5.0), 0),
        ("slightly uneven", (0.0, 2.5, 5.1, 7.5, 10.2), 0),
        ("nothing", (), 0),
        ("one", (1.0,), 0),
        ("two", (1.0, 100.0), 0),
    ],
)
def test_gaps(words: str, positions: tuple[float, ...], gaps: int) -> None:
    described = describe_gap(positions)
    assert described.startswith(f"{gaps} gap(s)") if gaps else described == "", words


@given(st.integers(2, 40), st.integers(1, 38), st.floats(0.1, 10), st.floats(-1000, 1000))
def test_any_missing_inner_slice_is_a_gap(count: int, missing: int, step_mm: float, start_mm: float) -> None:
    positions = [start_mm + k * step_mm for k in range(count + 2)]
    without = [position for k, position in enumerate(positions) if k != 1 + missing % count]
    assert describe_gap(positions) == ""
    steps = [after - before for before, after in pairwise(without)]
    assert (describe_gap(without) != "") is (len(steps) > 1)


@pytest.mark.parametrize(
    ("words", "numbers", "described"),
    [
        ("one of a hundred", HOLED, "1 instance number(s) missing between 1 and 100: 57"),
        ("in any order, some twice", (5, 2, 1, 1, 3), "1 instance number(s) missing between 1 and 5: 4"),
        ("several in a row", (1, 2, 3, 6, 7, 8), "2 instance number(s) missing between 1 and 8: 4-5"),
        ("every other number", (1, 3, 5, 7), ""),
        (
            "every other number, one of them missing",
            (1, 3, 5, 9, 11),
            "1 instance number(s) missing between 1 and 11: 7",
        ),
        ("from the back", (9, 8, 6, 5), "1 instance number(s) missing between 5 and 9: 7"),
        ("all of them", IN_ORDER, ""),
        ("two", (1, 9), ""),
        ("none", (), ""),
        ("beyond what could be counted", (1, 2, 3, 2_000_000_000), ""),
    ],
)
def test_gaps_in_the_numbers(words: str, numbers: tuple[int, ...], described: str) -> None:
    assert describe_number_gaps(numbers) == described, words


@given(st.integers(3, 200), st.data(), st.integers(-1000, 1000), st.integers(1, 7))
def test_any_number_missing_in_between_is_named(count: int, data: st.DataObject, first: int, step: int) -> None:
    numbers = [first + k * step for k in range(count + 2)]
    assert describe_number_gaps(numbers) == ""
    lost = data.draw(st.integers(1, count))
    named = describe_number_gaps(numbers[:lost] + numbers[lost + 1 :])
    assert named.endswith(f": {numbers[lost]}")


# -------------------------------------------------------------------------------------------- quiet time


def peer(quiet_s: float | None) -> Peer:
    return Peer(name="ct1", ae_title="CT1", host="10.0.0.1", quiet_s=quiet_s)


@pytest.mark.parametrize(
    ("sender", "called_ae", "seconds"),
    [
        (peer(3.0), "FAST", 3.0), (peer(None), "FAST", 2.0), (None, "FAST", 2.0), (None, "SLOW", 10.0),
        (peer(None), "SLOW", 10.0),
    ],
)  # fmt: skip
def test_the_peer_comes_before_the_called_ae_and_that_before_the_default(
    sender: Peer | None, called_ae: str, seconds: float
) -> None:
    config = Config(completion=Completion(called_ae_quiet_s={"FAST": 2.0}))
    assert quiet_seconds(config, sender, called_ae, 1) == seconds


def test_each_revision_doubles_it_up_to_the_longest_wait() -> None:
    waits = [quiet_seconds(Config(), None, "", n) for n in range(1, 100)]
    assert waits[:7] == [10, 20, 40, 80, 160, 320, 640]
    assert set(waits[7:]) == {900.0}


def test_a_quiet_time_over_the_longest_wait_is_not_cut_down() -> None:
    config = Config(completion=Completion(quiet_s=2000.0))
    assert quiet_seconds(config, None, "", 1) == quiet_seconds(config, None, "", 9) == 2000.0
