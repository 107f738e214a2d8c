"""When a study is complete: none of its series waits, and it was quiet itself, so that a next series may begin.

A proof completes a series within a second, at which the next one of its study may not have begun; so the study has a
quiet time of its own. It runs on the monotonic clock as the waits of the series do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ctnode.archive import evidence, revisions
from ctnode.archive.database import Database
from ctnode.archive.settle import Open
from ctnode.config import Completion, CompletionRule
from ctnode.flow.policy import Sender, policy_of
from ctnode.flow.waiting import Clock, unfed_s

LOOK_S: Final = 1.0


@dataclass(slots=True)
class _Wait:
    last_arrival: float
    quiet_s: float
    look_at: float


class StudyRoom:
    """The studies that something came for and that are not complete yet."""

    def __init__(self, database: Database, *, monotonic: Clock = time.monotonic, wall: Clock = time.time) -> None:
        self.database = database
        self.monotonic = monotonic
        self.wall = wall
        self._waits: dict[int, _Wait] = {}

    def restore(self) -> None:
        """Take over the open studies of the index; no wait exceeds the quiet time, and a known one gets no shorter."""
        now, wall = self.monotonic(), self.wall()
        for study_id, last_at, quiet_s in self.database.execute(
            "SELECT studies.id, studies.last_at, max(revisions.quiet_s) FROM studies"
            " JOIN series ON series.study_id = studies.id JOIN revisions ON revisions.series_id = series.id"
            " WHERE studies.state = 'OPEN' GROUP BY studies.id"
        ).fetchall():
            silent_s = max(wall - last_at, 0.0)
            known = self._waits.get(study_id)
            if known is None or (silent_s < quiet_s and now - silent_s > known.last_arrival):
                self._waits[study_id] = _Wait(now - silent_s, quiet_s, now + max(quiet_s - silent_s, 0.0))

    def forget(self) -> None:
        """Forget the studies that are no longer there, before their numbers are given again."""
        there = {row[0] for row in self.database.execute("SELECT id FROM studies WHERE state = 'OPEN'")}
        self._waits = {study_id: wait for study_id, wait in self._waits.items() if study_id in there}

    def touch(self, series_ids: Collection[int]) -> None:
        """Restart the wait of the studies of series that something arrived for."""
        if not series_ids:
            return
        now = self.monotonic()
        for study_id, quiet_s in self.database.execute(
            "SELECT series.study_id, max(revisions.quiet_s) FROM series"
            " JOIN revisions ON revisions.series_id = series.id AND revisions.state = 'RECEIVING'"
            " WHERE series.id IN (SELECT value FROM json_each(?)) GROUP BY series.study_id",
            (json.dumps(sorted(series_ids)),),
        ).fetchall():
            self._waits[study_id] = _Wait(now, quiet_s, now + quiet_s)

    def __len__(self) -> int:
        return len(self._waits)

    def next_look_s(self) -> float | None:
        """Return the seconds until a study has to be looked at; None when none waits."""
        if not self._waits:
            return None
        return max(0.0, min(wait.look_at for wait in self._waits.values()) - self.monotonic())

    def settle(
        self, scan_began: float, opened: Iterable[Open], settings: Completion, rules: Sequence[CompletionRule] = ()
    ) -> tuple[int, ...]:
        """Complete what is quiet after a whole scan that began after its deadline, and return those studies.

        Parameters
        ----------
        scan_began
            Monotonic time at which the scan of the journal began.
        opened
            Associations that are still open.
        settings, rules
            The configuration of completion; of the rules only how long an open association holds.
        """
        due = [study_id for study_id, wait in self._waits.items() if wait.look_at <= scan_began]
        if not due:
            return ()
        by_id = {association.association_id: association for association in opened}
        settled = []
        for study_id in due:
            wait = self._waits[study_id]
            now = self.monotonic()
            silent_s = now - wait.last_arrival
            is_held = evidence.is_in_progress(self.database, study_id) or self._is_fed(
                study_id, silent_s, by_id, settings, rules
            )
            if is_held and silent_s < settings.max_wait_s:
                wait.look_at = now + LOOK_S
                continue
            with self.database.immediate():
                if revisions.is_study_receiving(self.database, study_id):
                    wait.look_at = now + LOOK_S
                    continue
                revisions.settle_study(self.database, study_id)
            del self._waits[study_id]
            settled.append(study_id)
        return tuple(settled)

    def _is_fed(
        self,
        study_id: int,
        silent_s: float,
        opened: Mapping[int, Open],
        settings: Completion,
        rules: Sequence[CompletionRule],
    ) -> bool:
        """Return whether an association that fed the study may go on with it."""
        rows = self.database.execute(
            "SELECT fed.association_id, max(fed.last_arrival), a.called_ae, a.peer, series.modality"
            " FROM association_series AS fed JOIN series ON series.id = fed.series_id"
            " JOIN associations AS a ON a.id = fed.association_id"
            " WHERE fed.association_id IN (SELECT value FROM json_each(?)) AND series.study_id = ?"
            " GROUP BY fed.association_id, series.modality",
            (json.dumps(list(opened)), study_id),
        ).fetchall()
        return any(
            unfed_s(opened[association_id], brought_at, silent_s)
            < policy_of(settings, rules, Sender(*sender)).association_hold_s
            for association_id, brought_at, *sender in rows
        )
