"""The revisions that wait for a verdict, on a clock that only runs forward.

Deadlines live in the index in UTC, so that a restart changes nothing; while the keeper runs it waits on the monotonic
clock, so that a step of the wall clock neither completes a series nor starves it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ctnode.archive import asks, associations, catalog, counts, evidence, revisions
from ctnode.archive.database import Database
from ctnode.archive.revisions import Revision, get, receiving
from ctnode.archive.settle import Open
from ctnode.config import Completion, CompletionRule
from ctnode.flow.claims import claims, discontinued, in_progress, notes, of_concatenations
from ctnode.flow.completion import AT_ONCE, Decision, Feeder, Situation, Wait, decide
from ctnode.flow.policy import Policy, policy_of, sender_of
from ctnode.words import Evidence, EvidenceKind

Clock = Callable[[], float]

# The door of `ctnode import`, behind which nobody sends more.
IMPORT: Final = "import"
# So long a question may take from the end of the quiet time to its row.
PLAN_S: Final = 15.0


@dataclass(slots=True)
class _Wait:
    series_id: int
    last_arrival: float
    renewed: float
    look_at: float
    # The longest wait that its policy allows; not known before the first look.
    longest_s: float | None = None
    # A list that names it lacks instances: what comes for another series may complete it.
    is_short: bool = False
    # Open associations, at whose end it is to be looked at before that time.
    held_by: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Ripe:
    """A revision that got its verdict."""

    revision: Revision
    decision: Decision
    policy: Policy


class WaitingRoom:
    """What waits, and when to look again; its cost grows with what waits, not with what has settled."""

    def __init__(self, database: Database, *, monotonic: Clock = time.monotonic, wall: Clock = time.time) -> None:
        self.database = database
        self.monotonic = monotonic
        self.wall = wall
        self._waits: dict[int, _Wait] = {}
        # Series that something came for since the last look, which may have completed a list.
        self._fresh: set[int] = set()
        self._version = -1
        # The least of all policies, as it was at the last look.
        self._max_wait_s = math.inf

    def restore(self) -> None:
        """Take over the waits of the index, as after a restart or a turn that failed half-way.

        What remains of a wait is never under zero nor over its full length; of one that is known it grows no shorter.
        """
        now, wall = self.monotonic(), self.wall()
        for revision in receiving(self.database):
            remaining_s = min(max(revision.deadline - wall, 0.0), revision.quiet_s)
            last_arrival = now + remaining_s - revision.quiet_s
            renewed = now - max(wall - revision.renewed_at, 0.0)
            if (known := self._waits.get(revision.id)) is not None:
                if remaining_s <= 0 or last_arrival <= known.last_arrival:
                    continue
                # It got something in the turn that failed, of which nobody was told.
                renewed = max(renewed, known.renewed)
            self._waits[revision.id] = _Wait(revision.series_id, last_arrival, renewed, now + remaining_s)
            if revision.deadline - wall > revision.quiet_s:
                with self.database.immediate():
                    self.database.execute(
                        "UPDATE revisions SET deadline = ? WHERE id = ?", (wall + revision.quiet_s, revision.id)
                    )

    def touch(self, series_ids: Iterable[int], resent: Collection[int] = ()) -> None:
        """Restart the wait of the series that something arrived for.

        Parameters
        ----------
        series_ids
            What something arrived for.
        resent
            Those that got nothing but what they had: it restarts their quiet time, not their longest wait.
        """
        now = self.monotonic()
        for series_id in set(series_ids):
            row = self.database.execute(
                "SELECT id, quiet_s FROM revisions WHERE series_id = ? AND state = 'RECEIVING'", (series_id,)
            ).fetchone()
            if row is None:
                continue
            wait = self._waits.get(row[0])
            renewed = wait.renewed if wait is not None and series_id in resent else now
            longest_s = wait.longest_s if wait is not None else None
            self._waits[row[0]] = _Wait(series_id, now, renewed, now + row[1], longest_s)
            self._fresh.add(series_id)

    def next_look_s(self) -> float | None:
        """Return the seconds until a wait has to be looked at; None when nothing waits."""
        if not self._waits:
            return None
        return max(0.0, min(map(self._look_at, self._waits.values())) - self.monotonic())

    def _look_at(self, wait: _Wait) -> float:
        # Resends may put off the quiet time for ever; the longest wait they do not.
        longest_s = self._max_wait_s if wait.longest_s is None else wait.longest_s
        return min(wait.look_at, wait.renewed + longest_s)

    def __len__(self) -> int:
        return len(self._waits)

    def look_again(self) -> None:
        """Look at all that waits in the next turn, as after a change of the configuration or a turn that failed."""
        now = self.monotonic()
        for wait in self._waits.values():
            wait.look_at, wait.longest_s = min(wait.look_at, now), None

    def ripe(
        self,
        scan_began: float,
        opened: Iterable[Open],
        settings: Completion,
        rules: Sequence[CompletionRule] = (),
        asked: Collection[str] = (),
    ) -> list[Ripe]:
        """Return the revisions that are complete after a whole scan that began after their deadline.

        What the scan found has to be told to ``touch`` before: it puts the deadline off.

        Parameters
        ----------
        scan_began
            Monotonic time at which the scan of the journal began.
        opened
            Associations that are still open.
        settings, rules
            The configuration of completion.
        asked
            Names of the peers that are asked what they hold.
        """
        ripe = []
        awaits: list[tuple[int, str, str]] = []
        own = [rule.max_wait_s for rule in rules if rule.max_wait_s is not None]
        self._max_wait_s = min(settings.max_wait_s, *own) if own else settings.max_wait_s
        by_id = {association.association_id: association for association in opened}
        version = evidence.version(self.database)
        is_told, self._version = version != self._version, version
        fresh, self._fresh = (self._fresh if version else set()), set()
        for revision_id, wait in list(self._waits.items()):
            is_due = self._look_at(wait) <= scan_began or not wait.held_by <= by_id.keys()
            may_be_whole = wait.series_id in fresh or (wait.is_short and fresh)
            if not is_due and not is_told and not may_be_whole:
                continue
            known = evidence.of_series(self.database, wait.series_id) if version else ()
            if not is_due and not known:
                # Nobody has said anything of it: without quiet it has no verdict.
                continue
            revision = get(self.database, revision_id)
            sender = sender_of(self.database, revision.series_id)
            policy = policy_of(settings, rules, sender)
            wait.longest_s = policy.max_wait_s
            answerer = sender.peer if sender.peer in asked else ""
            situation = self._situation(revision, wait, known, by_id, policy, answerer)
            wait.is_short = any(claim.missing for claim in situation.claims)
            decision = decide(
                situation,
                max_wait_s=policy.max_wait_s,
                association_hold_s=policy.association_hold_s,
            )
            # What was not due can only be complete by a list or by the operator's word: both need no quiet.
            if isinstance(decision, Decision) and (is_due or decision.rule in AT_ONCE):
                ripe.append(Ripe(revision, decision, policy))
            elif isinstance(decision, Wait) and is_due:
                wait.look_at, wait.held_by = self.monotonic() + decision.seconds, decision.held_by
                if decision.reason != revision.awaits:
                    awaits.append((revision_id, decision.reason, policy.rule))
        if awaits:
            revisions.await_next(self.database, awaits)
        return ripe

    def leave(self, revision_id: int) -> None:
        """Forget a revision that got its verdict."""
        self._waits.pop(revision_id, None)

    def forget(self) -> None:
        """Forget the revisions that are no longer there, and take over those that wait under their numbers."""
        there = {revision.id: revision.series_id for revision in receiving(self.database)}
        self._waits = {
            revision_id: wait for revision_id, wait in self._waits.items() if there.get(revision_id) == wait.series_id
        }
        self.restore()

    def _situation(
        self,
        revision: Revision,
        wait: _Wait,
        known: Sequence[Evidence],
        opened: dict[int, Open],
        policy: Policy,
        answerer: str,
    ) -> Situation:
        now = self.monotonic()
        waited_s = now - wait.renewed
        feeders, broken, idle = [], 0, 0
        doors: set[str] = set()
        for association_id, how, door, name, calling_ae, called_ae, brought_at in self.database.execute(
            "SELECT fed.association_id, a.how, a.door, a.name, a.calling_ae, a.called_ae, fed.last_arrival"
            " FROM association_series AS fed JOIN associations AS a ON a.id = fed.association_id"
            " WHERE fed.series_id = ?",
            (revision.series_id,),
        ).fetchall():
            broken += how in associations.BROKEN
            idle += how == "idle"
            doors.add(door)
            association = opened.get(association_id)
            if association is not None:
                who = f"{calling_ae} to {called_ae}" if calling_ae else f"door {door}"
                words = f"{who} (association {name})"
                feeders.append(Feeder(association_id, words, unfed_s(association, brought_at, waited_s)))
        is_mended = bool(broken) and associations.is_mended(self.database, revision.series_id)
        silent_s = now - wait.last_arrival
        content = counts.of_series(self.database, revision.series_id)
        modality = catalog.by_id(self.database, revision.series_id).modality
        return Situation(
            is_all_there=doors == {IMPORT},
            silent_s=silent_s,
            waited_s=waited_s,
            quiet_s=revision.quiet_s,
            feeders=tuple(feeders),
            aborted=0 if is_mended else broken,
            positions_mm=content.positions_mm,
            claims=(
                *claims(self.database, revision, known, is_quiet=silent_s >= revision.quiet_s),
                *of_concatenations(content.concatenations),
            ),
            in_progress=in_progress(known, modality),
            is_told=any(one.kind is EvidenceKind.OPERATOR and one.name == f"r{revision.n}" for one in known),
            numbers=content.numbers,
            acquisitions=content.acquisitions if policy.count_images else (),
            discontinued=discontinued(self.database, known, modality),
            asked=asks.awaited(
                self.database,
                revision,
                answerer,
                is_fresh=now - wait.last_arrival < revision.quiet_s + PLAN_S,
            ),
            notes=(
                *notes(content),
                *([f"{broken} association(s) that fed it were aborted, and all of it came again"] if is_mended else ()),
                *([f"{idle} association(s) that fed it were ended by the node for their silence"] if idle else ()),
            ),
        )


def unfed_s(association: Open, brought_at: float, silent_s: float) -> float:
    """Return the seconds of silence after which an open association may have gone on with a series or study.

    One in the middle of a C-STORE began it after its last arrival of whatever series. That of one which had sent others
    for long by then is most likely of another again; else it may be of this one, and end its silence.

    Parameters
    ----------
    association
        As the scan of the journal found it.
    brought_at
        When it last brought something for the series or study, on the clock of the journal.
    silent_s
        Since when nothing new came for it.
    """
    if not association.is_storing:
        return silent_s
    return min(silent_s, max(0.0, association.last_arrival - brought_at))
