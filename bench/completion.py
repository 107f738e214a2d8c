"""When a series counts as complete, beside the fixed rules of other systems; and what the index costs when it is large.

    python bench/completion.py                # the scenarios of docs/scenarios.md, replayed
    python bench/completion.py --node         # a real node: from list and last instance to the queue
    python bench/completion.py --scheduler    # 1 M instances in 10,000 settled series in the index

The replay takes the arrivals of each scenario. The column of ctnode is what its own keeper decided in simulated time.
The others are rules: quiet for 5 s (MONAI), 10 s, 60 s (mercure, Orthanc), and the end of an association (oxidicom and
most scripts). ``early``: a verdict before the last instance of what the sender sent in one piece; ``split``: a series
that was started more than once for one piece; ``waited``: seconds from the true last instance to the last verdict.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import large_index
from ctnode.flow.completion import PROOF
from tests.acceptance.test_completeness import PEER, ROUTES, Sender
from tests.harness import Node
from tests.scenarios import Played, Scenario, play, read_page

PROVEN = 20


@dataclass(frozen=True)
class Unit:
    """One series of one scenario: when its instances came in pieces, and how its sender behaved."""

    words: str
    pieces: tuple[tuple[float, ...], ...]
    ends_s: tuple[float, ...]
    kind: str
    starts_s: tuple[float, ...]
    told_s: tuple[float, ...]


@dataclass(frozen=True)
class Score:
    """What a rule made of one unit; ``waited_s`` is None where it never decided after the last instance."""

    early: bool
    split: bool
    waited_s: float | None


def pieces_of(times: Sequence[float], count: int) -> tuple[tuple[float, ...], ...]:
    """Cut at the longest pauses: what the sender itself sent as a series of its own."""
    gaps = sorted(range(1, len(times)), key=lambda place: times[place - 1] - times[place])[: count - 1]
    cuts = [0, *sorted(gaps), len(times)]
    return tuple(tuple(times[a:b]) for a, b in itertools.pairwise(cuts) if a < b)


def units(scenario: Scenario, played: Played) -> list[Unit]:
    """Return the series of a scenario that got instances."""
    arrived: dict[tuple[str, int], list[tuple[float, str]]] = defaultdict(list)
    for arrival in played.arrivals:
        if arrival.series:
            arrived[arrival.series, arrival.split].append((arrival.at_s, arrival.association))
    ended = {arrival.association: arrival.at_s for arrival in played.arrivals if not arrival.series}
    found = []
    for key, came in arrived.items():
        verdicts = [verdict for verdict in played.verdicts if (verdict.series, verdict.split) == key]
        pieces = pieces_of([at for at, _ in came], scenario.pieces)
        longest_s = float(str(scenario.settings.get("max_wait_s", 900.0)))
        if verdicts and verdicts[-1].rule == PROOF:
            kind = "proof"
        elif all(is_held(came, ended, pieces, longest_s)):
            kind = "open"
        else:
            kind = "doubt"
        ends = tuple(at for who, at in ended.items() if any(who == association for _, association in came))
        starts = tuple(verdict.at_s for verdict in verdicts)
        told = (*played.told_s, *(arrival.at_s for arrival in played.arrivals if arrival.series))
        found.append(Unit(scenario.words, pieces, ends, kind, starts, told))
    return found


def is_held(
    came: Sequence[tuple[float, str]],
    ended: dict[str, float],
    pieces: Sequence[Sequence[float]],
    longest_s: float,
) -> list[bool]:
    """Tell of each pause inside a piece whether an association that had fed the series was open all along."""
    firsts = {piece[0] for piece in pieces}
    told = []
    for place in range(1, len(came)):
        before, after = came[place - 1][0], came[place][0]
        if after in firsts or after - before <= 5.0:
            continue
        is_open = any(ended.get(who, float("inf")) >= after for _, who in came[:place])
        told.append(is_open and after - before < longest_s)
    return told


def quiet(unit: Unit, quiet_s: float) -> list[float]:
    """Return when a series that was quiet for so long is started."""
    times = [at for piece in unit.pieces for at in piece]
    return [at + quiet_s for at, after in zip(times, [*times[1:], float("inf")], strict=True) if after - at > quiet_s]


def at_ends(unit: Unit) -> list[float]:
    """Return when the ends of associations start it, each with what came since the last."""
    times, starts, done = [at for piece in unit.pieces for at in piece], [], 0
    for end in sorted(unit.ends_s):
        so_far = sum(at <= end for at in times)
        if so_far > done:
            starts.append(end)
            done = so_far
    return starts


def score(unit: Unit, starts: Sequence[float]) -> Score:
    early = any(piece[0] <= start < piece[-1] for piece in unit.pieces for start in starts)
    last = unit.pieces[-1][-1]
    after = [start - last for start in starts if start >= last]
    return Score(early, len(starts) > len(unit.pieces), after[0] if after else None)


RULES = {
    "ctnode": lambda unit: list(unit.starts_s),
    "quiet 5 s": lambda unit: quiet(unit, 5.0),
    "quiet 10 s": lambda unit: quiet(unit, 10.0),
    "quiet 60 s": lambda unit: quiet(unit, 60.0),
    "association end": at_ends,
}
KINDS = {
    "proof": "a list of the sender is held whole",
    "open": "no list; every pause shorter than the longest wait, while an association that fed the series is open",
    "doubt": "no list; a pause without such an association, or longer than the longest wait",
}


def replay() -> None:
    # One scenario is about the change to summer time.
    os.environ["TZ"] = "Europe/Berlin"
    time.tzset()
    found: list[Unit] = []
    with tempfile.TemporaryDirectory() as folder:
        for place, scenario in enumerate(read_page()):
            found += units(scenario, play(scenario, Path(folder) / str(place)))
    print(f"{len(read_page())} scenarios, {len(found)} series\n")
    totals: dict[str, list[Score]] = defaultdict(list)
    for kind, words in KINDS.items():
        of_kind = [unit for unit in found if unit.kind == kind]
        print(f"{words}: {len(of_kind)} series")
        print(f"{'':<18}{'early':>7}{'split':>7}{'never':>7}{'median wait s':>15}{'mean wait s':>13}")
        for name, rule in RULES.items():
            scores = [score(unit, rule(unit)) for unit in of_kind]
            totals[name] += scores
            row(name, scores)
        if kind == "proof":
            waits = [unit.starts_s[-1] - proof_s(unit) for unit in of_kind]
            print(f"ctnode after list and instances were there: median {statistics.median(waits):.3f} s, longest"
                  f" {max(waits):.3f} s")  # fmt: skip
        early = [unit.words for unit in of_kind if score(unit, unit.starts_s).early]
        print("ctnode early: " + ("; ".join(early) or "none") + "\n")
    print("all")
    for name, scores in totals.items():
        row(name, scores)
    ours = totals.pop("ctnode")
    print("\nctnode / rule" + "".join(f"{what:>16}" for what in ("early", "split", "mean wait")))
    for name, scores in totals.items():
        print(f"{name:<18}" + "".join(f"{ratio:>14}" for ratio in ratios(ours, scores)))


def row(name: str, scores: Sequence[Score]) -> None:
    waits = [one.waited_s for one in scores if one.waited_s is not None]
    print(f"{name:<18}{sum(one.early for one in scores):>7}{sum(one.split for one in scores):>7}"
          f"{len(scores) - len(waits):>7}{statistics.median(waits):>15.1f}{statistics.mean(waits):>13.1f}")  # fmt: skip


def ratios(ours: Sequence[Score], theirs: Sequence[Score]) -> list[str]:
    def mean(scores: Sequence[Score]) -> float:
        return statistics.mean(one.waited_s for one in scores if one.waited_s is not None)

    pairs = [
        (sum(one.early for one in ours), sum(one.early for one in theirs)),
        (sum(one.split for one in ours), sum(one.split for one in theirs)),
        (mean(ours), mean(theirs)),
    ]
    return [f"{a / b:.2f}" if b else "-" for a, b in pairs]


def proof_s(unit: Unit) -> float:
    """Return when the last instance and the list that names it were both there, as the last of them came."""
    return max(at for at in unit.told_s if at <= unit.starts_s[-1])


def real_node() -> None:
    """Let a real scanner tell of its step before or after its last slice, and read what the node wrote down."""
    waits: dict[str, list[float]] = defaultdict(list)
    quiet = {"quiet_s": 60.0}
    with (
        tempfile.TemporaryDirectory() as folder,
        Node(Path(folder), completion=quiet, peers=[PEER], routes=ROUTES) as node,
    ):
        for number in range(PROVEN):
            sender, is_before = Sender(node, number), number % 2 == 0
            sender.begin_step()
            if is_before:
                sender.end_step(range(1, 21))
            with sender.association() as peer:
                sender.store(peer, range(1, 21))
                if not is_before:
                    sender.end_step(range(1, 21))
                sender.wait()
            ((verdict, wait_s),) = node.query(
                "SELECT verdict, verdict_at - max(r.last_arrival, e.at) FROM revisions AS r"
                " JOIN series ON series.id = r.series_id JOIN evidence AS e ON e.series = series.uid WHERE uid = ?",
                sender.series,
            )
            assert verdict == "COMPLETE"
            waits["last slice" if is_before else "list"].append(wait_s)
    for what, found in waits.items():
        print(f"{len(found)} series of 20 slices, from the {what} to the verdict:"
              f" median {statistics.median(found):.2f} s, longest {max(found):.2f} s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheduler", action="store_true", help="measure the keeper beside a large index")
    parser.add_argument("--node", action="store_true", help="measure a real node that is given proof")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if options.node:
        real_node()
    elif options.scheduler:
        large_index.measure()
    else:
        replay()


if __name__ == "__main__":
    main()
