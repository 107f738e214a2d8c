"""Is the series complete? A pure decision over what is known, and the quiet time that policy gives it.

A list of instances from the sender (MPPS, commitment request, availability notice, an answer to a query, the end of a
retrieve) that is held whole and names all that is held is a proof, and there is nothing to wait for. Without one the
quiet time has to pass, and no association that fed the series may still be open, whatever else it sends meanwhile: it
may come back to the series. Its end by itself means nothing (PS3.4 B.4.1).
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ctnode.config import Config, Peer
from ctnode.flow.policy import Sender, policy_of
from ctnode.words import Acquisition, Verdict

GAP_RATIO: Final = 1.5
HELD_LOOK_S: Final = 1.0
NAMED_HOLES: Final = 5
NAMED_FEEDERS: Final = 3
PROOF: Final = "a list of the sender is held whole"
OPERATOR: Final = "the operator's word"
# These need no quiet time.
AT_ONCE: Final = frozenset({PROOF, OPERATOR})


@dataclass(frozen=True, slots=True)
class Feeder:
    """An open association that brought instances of the series.

    Parameters
    ----------
    association_id
        Its row.
    words
        Which one it is, for people.
    silent_s
        Seconds since the last new instance of the series; what it may be storing of it now has ended them.
    """

    association_id: int
    words: str
    silent_s: float


@dataclass(frozen=True, slots=True)
class Claim:
    """What somebody says the series consists of, compared with what is held.

    Parameters
    ----------
    words
        Who says it and how, for people.
    missing
        How many instances it names that are not held.
    covers
        Whether it names everything that is held of the series.
    is_early
        Whether it may have been made while its source was itself still receiving, as an answer to a query before the
        quiet time had passed: then it proves nothing.
    """

    words: str
    missing: int
    covers: bool
    is_early: bool = False


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of a revision that waits; every time is in seconds.

    ``waited_s`` counts from the last new instance, ``silent_s`` from the last arrival, identical resends included.

    Parameters
    ----------
    positions_mm
        Slice positions along the normal, of the images that have one and are no localizers.
    numbers
        The InstanceNumbers of the images that have one.
    acquisitions
        The acquisitions whose images state how many there are.
    claims
        What others say the series consists of.
    in_progress
        The procedure step of its modality that has not ended, in words; empty where there is none.
    discontinued
        The procedure step that was broken off without all that it lists being here, in words.
    asked
        Whose answer to an active check is awaited; empty where none is.
    notes
        What is worth telling and changes nothing.
    is_told
        Whether the operator said that it is complete.
    is_all_there
        Whether it came only by imports, of which each took all that there was.
    """

    silent_s: float
    waited_s: float
    quiet_s: float
    feeders: tuple[Feeder, ...]
    aborted: int
    positions_mm: tuple[float, ...]
    claims: tuple[Claim, ...] = ()
    in_progress: str = ""
    is_told: bool = False
    numbers: tuple[int, ...] = ()
    acquisitions: tuple[Acquisition, ...] = ()
    discontinued: str = ""
    asked: str = ""
    notes: tuple[str, ...] = ()
    is_all_there: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet; look again after ``seconds``, and when one of the associations ``held_by`` has ended."""

    seconds: float
    reason: str
    held_by: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Decision:
    """Complete, how surely, why, by which rule, and what would have changed it."""

    verdict: Verdict
    evidence: tuple[str, ...]
    rule: str
    otherwise: str


def decide(situation: Situation, *, max_wait_s: float, association_hold_s: float) -> Wait | Decision:
    """Decide whether a revision is complete.

    Parameters
    ----------
    situation
        What is known.
    max_wait_s
        Seconds since the last new instance after which there is a verdict in any case.
    association_hold_s
        Seconds without a new instance of the series after which an association that is still open no longer holds it.
    """
    missing = [claim for claim in situation.claims if claim.missing]
    proofs = [claim for claim in situation.claims if claim.covers and not claim.missing and not claim.is_early]
    if proofs and not missing:
        lists = tuple(claim.words for claim in proofs)
        otherwise = "an instance that the list does not name, or one of it that had not come"
        return Decision(Verdict.COMPLETE, (*lists, *_doubts(situation)), PROOF, otherwise)
    if situation.is_told:
        return _unproven(
            situation, "the operator said that it is complete", OPERATOR, "a list of the sender that is held whole"
        )
    longest = f"waited {max_wait_s:g} s, the longest that is allowed"
    if situation.waited_s >= max_wait_s:
        return _unproven(situation, longest, "longest wait", "a new instance within this time")
    left_s = max_wait_s - situation.waited_s
    rest_s = min(situation.quiet_s - situation.silent_s, left_s)
    if rest_s > 0:
        return Wait(rest_s, "quiet time has not passed")
    if holding := [feeder for feeder in situation.feeders if feeder.silent_s < association_hold_s]:
        # What is in the middle of a C-STORE holds beyond that time; the end of the C-STORE rings no bell.
        hold_s = max(association_hold_s - situation.waited_s, HELD_LOOK_S)
        more = f" and {len(holding) - NAMED_FEEDERS} more" if len(holding) > NAMED_FEEDERS else ""
        which = ", ".join(feeder.words for feeder in holding[:NAMED_FEEDERS]) + more
        held_by = frozenset(feeder.association_id for feeder in holding)
        return Wait(min(hold_s, left_s), f"an association that is still open feeds it: {which}", held_by)
    if missing:
        return Wait(left_s, "; ".join(_short(claim) for claim in missing))
    if situation.in_progress:
        return Wait(left_s, f"{situation.in_progress} has not ended")
    if situation.asked:
        # The end of a question that got no answer rings no bell.
        return Wait(min(HELD_LOOK_S, left_s), f"the answer of {situation.asked} to what it holds is awaited")
    if not situation.is_all_there and (holes := describe_holes(situation)):
        # A series beside it may bring what an acquisition still lacks.
        until_s = max(situation.quiet_s, HELD_LOOK_S) if situation.acquisitions else left_s
        return Wait(min(until_s, left_s), f"what is missing may still come: {'; '.join(holes)}")
    quiet = f"quiet for {situation.quiet_s:g} s, no open association feeds it"
    return _unproven(
        situation, quiet, "quiet time", "an instance or an association that feeds it within the quiet time"
    )


def _unproven(situation: Situation, because: str, rule: str, otherwise: str) -> Decision:
    """Complete without a proof: LIKELY where nothing speaks against it."""
    missing = tuple(_short(claim) for claim in situation.claims if claim.missing)
    doubts = (*missing, *_doubts(situation))
    if doubts:
        return Decision(Verdict.SUSPECT, (because, *doubts, *situation.notes), rule, otherwise)
    spacing = ("slices evenly spaced",) if len(set(situation.positions_mm)) > 2 else ()
    return Decision(Verdict.LIKELY, (because, *spacing, *_weak(situation), *situation.notes), rule, otherwise)


def _short(claim: Claim) -> str:
    return f"{claim.words}: {claim.missing} of its instances have not come"


def _doubts(situation: Situation) -> tuple[str, ...]:
    aborted = f"{situation.aborted} association(s) that fed it were aborted" if situation.aborted else ""
    geometry = describe_gap(situation.positions_mm)
    holes = tuple(hole for hole in describe_holes(situation) if hole != geometry)
    return tuple(text for text in (geometry, *holes, situation.discontinued, aborted) if text)


def _weak(situation: Situation) -> tuple[str, ...]:
    """Return what alone casts no doubt: many senders number over several series."""
    first = min(situation.numbers, default=1)
    return (f"instance numbers begin with {first}",) if first > 1 else ()


def describe_holes(situation: Situation) -> tuple[str, ...]:
    """Return what is missing by the headers and may still come, in words.

    Where the numbers of the instances have no gap, one in the positions is how the scan was made: no slice between two
    others is missing, and there is nothing to wait for.
    """
    numbers, geometry = describe_number_gaps(situation.numbers), describe_gap(situation.positions_mm)
    if geometry and not numbers and is_unbroken(situation.numbers, len(situation.positions_mm)):
        geometry = ""
    short = tuple(
        f"{one.held_in_study} of {one.stated} images in acquisition {'' if one.number is None else one.number}".rstrip()
        for one in situation.acquisitions
        if one.held_in_study < one.stated
    )
    return tuple(text for text in (geometry, numbers, *short) if text)


def is_unbroken(numbers: Sequence[int], count: int) -> bool:
    """Return whether each of at least ``count`` instances has a number of its own and none in between is missing."""
    return len(numbers) >= max(count, 2) and max(numbers) - min(numbers) + 1 == len(set(numbers)) == len(numbers)


def describe_number_gaps(numbers: Sequence[int]) -> str:
    """Return which InstanceNumbers are missing between others, or an empty text.

    Numbers without a common step tell nothing. A hole that is larger than all that is there begins another block of
    numbers, as senders with several acquisitions make them. That they do not begin with 1 says little.
    """
    ordered = sorted(set(numbers))
    steps = [after - before for before, after in itertools.pairwise(ordered)]
    if len(steps) < 2:
        return ""
    step = statistics.multimode(sorted(steps))[0]
    if 2 * steps.count(step) < len(steps):
        return ""
    holes = [
        range(before + step, after, step)
        for before, after in itertools.pairwise(ordered)
        if step < after - before <= step * len(ordered)
    ]
    count = sum(map(len, holes))
    if not count:
        return ""
    named = ", ".join(f"{hole[0]}-{hole[-1]}" if len(hole) > 1 else str(hole[0]) for hole in holes[:NAMED_HOLES])
    more = " and more" if len(holes) > NAMED_HOLES else ""
    return f"{count} instance number(s) missing between {ordered[0]} and {ordered[-1]}: {named}{more}"


def describe_gap(positions_mm: Sequence[float], *, same_mm: float = 0.01, gap_ratio: float = GAP_RATIO) -> str:
    """Return what is odd about the spacing of the slices, or an empty text.

    Parameters
    ----------
    positions_mm
        Projections of the slice positions on the normal, in any order.
    same_mm
        Positions closer than this are one.
    gap_ratio
        A step longer than this many median steps is a gap.
    """
    ordered = sorted(positions_mm)
    steps = [after - before for before, after in itertools.pairwise(ordered) if after - before > same_mm]
    if len(steps) < 2:
        return ""
    # Of an even count the lower one: a missing slice makes a step longer, never shorter.
    median = statistics.median_low(steps)
    gaps = sum(step > gap_ratio * median for step in steps)
    return f"{gaps} gap(s) in the slice positions, median step {median:.3f} mm" if gaps else ""


def quiet_seconds(config: Config, peer: Peer | None, called_ae: str, revision: int, modality: str = "") -> float:
    """Return the quiet time of a sender's series: its rule's, else the peer's, the called AE's, the default.

    Each further revision doubles it, up to ``max_wait_s``, so that a slow sender makes no storm of revisions.
    """
    base = config.completion.called_ae_quiet_s.get(called_ae, config.completion.quiet_s)
    if peer is not None and peer.quiet_s is not None:
        base = peer.quiet_s
    sender = Sender(called_ae, "" if peer is None else peer.name, modality)
    policy = policy_of(config.completion, config.completion_rules, sender)
    if policy.quiet_s is not None:
        base = policy.quiet_s
    return float(min(base * 2.0 ** min(revision - 1, 30), max(base, policy.max_wait_s)))
