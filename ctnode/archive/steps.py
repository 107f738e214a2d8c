"""What waits for a time of the wall clock keeps its wait when somebody sets that clock.

Times lie in the index in UTC, so that they mean the same after a restart and to every process. A process that waits by
them watches the clock that only runs forward beside the one on the wall: when the two part, the wall clock was set, and
what lies in the index is moved by as much.
"""

from __future__ import annotations

import time
from typing import Final

from ctnode.archive.database import Database
from ctnode.archive.jobs import LEASE_S, MAX_RETRY_S
from ctnode.archive.lanes import FOR_EVER

# What a clock is drawn by little by little is no step; nobody waits so exactly.
LEAST_STEP_S: Final = 2.0

# By the conditions of the partial indices; :by is the step, :latest what no wait goes beyond.
_OUTWARD: Final = (
    "UPDATE lanes SET due_at = min(due_at + :by, :latest) WHERE due_at > 0",
    "UPDATE lanes SET failing_since = failing_since + :by WHERE failing_since IS NOT NULL",
    "UPDATE lanes SET paused_until = paused_until + :by WHERE paused_until < :for_ever",
    (
        "UPDATE delivery_attempts SET ended_at = ended_at + :by WHERE delivery_id IN"
        " (SELECT id FROM deliveries WHERE state IN ('SENDING', 'RETRY'))"
    ),
    (
        "UPDATE deliveries SET due_at = min(due_at + :by, :latest), lease_until = lease_until + :by,"
        " posted_at = posted_at + :by WHERE state IN ('SENDING', 'RETRY')"
    ),
    "UPDATE deliveries SET proof_at = min(proof_at + :by, :latest) WHERE state = 'SENT' AND proof_at IS NOT NULL",
    (
        "UPDATE commitments SET asked_at = asked_at + :by, due_at = min(due_at + :by, :latest)"
        " WHERE state IN ('PENDING', 'SENDING', 'RETRY')"
    ),
    (
        "UPDATE jobs SET due_at = min(due_at + :by, :latest), lease_until = lease_until + :by"
        " WHERE state IN ('QUEUED', 'RUNNING', 'RETRY') AND kind = 'ask'"
    ),
    (
        "UPDATE jobs SET started_at = started_at + :by WHERE kind = 'ask' AND revision_id IN"
        " (SELECT id FROM revisions WHERE state IN ('RECEIVING', 'COMPLETE') AND state = 'RECEIVING')"
    ),
    "UPDATE channels SET due_at = min(due_at + :by, :latest), sent_at = sent_at + :by",
)
_INWARD: Final = (
    (
        "UPDATE jobs SET due_at = min(due_at + :by, :now + :retry), lease_until = min(lease_until + :by, :now + :lease)"
        " WHERE state IN ('QUEUED', 'RUNNING', 'RETRY') AND kind <> 'ask'"
    ),
    (
        "UPDATE revisions SET last_arrival = min(last_arrival + :by, :now), renewed_at = min(renewed_at + :by, :now),"
        " deadline = min(deadline + :by, :now + quiet_s)"
        " WHERE state IN ('RECEIVING', 'COMPLETE') AND state = 'RECEIVING'"
    ),
)


class StepWatch:
    """Tells by how much the wall clock was set since that was last made good."""

    def __init__(self) -> None:
        self._apart_s = time.time() - time.monotonic()

    def step_s(self) -> float:
        """Return the step in seconds, negative when the clock was set back; zero for what is none."""
        step_s = time.time() - time.monotonic() - self._apart_s
        return step_s if abs(step_s) >= LEAST_STEP_S else 0.0

    def made_good(self, step_s: float) -> None:
        """Take note that what waits was moved by so much."""
        self._apart_s += step_s


def shift_outward(database: Database, step_s: float, longest_s: float) -> None:
    """Move what the ``deliver`` role waits for by a step of the clock; nothing is put off by more than ``longest_s``.

    With a step of zero only the latter, as at a start: nobody knows what the clock did in the meantime.
    """
    _run(database, _OUTWARD, by=step_s, latest=time.time() + longest_s, for_ever=FOR_EVER)


def shift_waiting(database: Database, step_s: float) -> None:
    """Move the times of the revisions that wait, and of the jobs that wait or run, by a step of the clock."""
    _run(database, _INWARD, by=step_s, now=time.time(), retry=MAX_RETRY_S, lease=LEASE_S)


def _run(database: Database, statements: tuple[str, ...], **values: float) -> None:
    with database.immediate():
        for statement in statements:
            database.connection.execute(statement, values)
