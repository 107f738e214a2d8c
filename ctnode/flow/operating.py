"""What an operator does to series, jobs and deliveries, by command or by page: one function each, one line in the life.

Each writes down who did it in the timeline of the series.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from ctnode.archive import jobs, lanes, outbox, revisions, timeline
from ctnode.archive.database import Database
from ctnode.archive.outbox import Delivery
from ctnode.archive.revisions import Revision
from ctnode.config import Config
from ctnode.words import NotFound

if TYPE_CHECKING:
    from ctnode.wire.sender import EchoResult

COMMAND: Final = "a command"
BY_OPERATOR: Final = "by the operator"


def requeue(database: Database, series_id: int, by: str) -> Revision:
    """Run the pipeline on a series again; lifts a hold.

    Raises
    ------
    WrongState
        If it is still receiving, or queued or running already.
    """
    revision = revisions.requeue(database, series_id)
    return _noted(database, revision, f"requeued by {by}")


def hold(database: Database, series_id: int, reason: str, by: str) -> Revision:
    """Keep a series from being processed."""
    return _noted(database, revisions.hold(database, series_id, reason or BY_OPERATOR), f"held by {by}")


def release(database: Database, series_id: int, by: str) -> Revision:
    """Lift a hold.

    Raises
    ------
    WrongState
        If nothing holds the series.
    """
    return _noted(database, revisions.release(database, series_id), f"released by {by}")


def complete(database: Database, series_id: int, by: str) -> Revision:
    """Say that all of a series has come.

    Raises
    ------
    WrongState
        If it has its verdict already.
    """
    return _noted(database, revisions.tell_complete(database, series_id), f"told complete by {by}")


def retry_job(database: Database, job_id: int, by: str) -> Revision:
    """Queue a DEAD, DONE or cancelled job again.

    Raises
    ------
    NotFound, WrongState
        If there is none, or it cannot be queued now.
    """
    return requeue(database, jobs.series_of(database, job_id), by)


def cancel_job(database: Database, job_id: int, by: str) -> None:
    """Cancel a job; its series stays stored.

    Raises
    ------
    NotFound, WrongState
        If there is none, or it has ended.
    """
    series_id = jobs.series_of(database, job_id)
    jobs.cancel(database, job_id)
    _noted(database, revisions.newest(database, series_id), f"job {job_id} cancelled by {by}")


def retry_delivery(database: Database, delivery: Delivery, by: str) -> None:
    """Try a delivery again now, inside the current transaction.

    Raises
    ------
    WrongState
        If it is under way or has arrived.
    """
    outbox.requeue(database, delivery.id, BY_OPERATOR)
    lanes.hurry(database, delivery.lane)
    _note_delivery(database, delivery, f"tried again by {by}")


def cancel_delivery(database: Database, delivery: Delivery, by: str) -> None:
    """Give up a delivery that waits, inside the current transaction.

    Raises
    ------
    WrongState
        If it is under way or has ended.
    """
    outbox.cancel(database, delivery.id, "cancelled by the operator")
    _note_delivery(database, delivery, f"cancelled by {by}")


def neighbours(config: Config) -> Mapping[str, Callable[[], EchoResult]]:
    """Return how to ask each peer with a port, and each target, whether it is there; by name."""
    from ctnode.flow.carrier import carrier_of
    from ctnode.wire.sender import Destination
    from ctnode.wire.sender import echo as verify

    known: dict[str, Callable[[], EchoResult]] = {
        p.name: partial(
            verify, Destination(p.name, p.ae_title, p.host, p.port), config.node.ae_title, config.delivery.timeout_s
        )
        for p in config.peers
        if p.port is not None
    }
    carriers = {target.name: carrier_of(config, target.name) for target in config.targets if target.kind != "sender"}
    return known | {name: carrier.ping for name, carrier in carriers.items() if carrier is not None}


def neighbour(config: Config, name: str | None) -> Callable[[], EchoResult]:
    """Return how to ask one of them.

    Raises
    ------
    NotFound
        If none has this name.
    """
    known = neighbours(config)
    if name is None or name not in known:
        names = ", ".join(known) or "none is configured with a port"
        raise NotFound(f"no peer or target {name or ''}".rstrip(), hint=f"known: {names}")
    return known[name]


def _noted(database: Database, revision: Revision, words: str) -> Revision:
    with database.immediate():
        timeline.note(database, revision.series_id, revision.n, "operator", words)
    return revision


def _note_delivery(database: Database, delivery: Delivery, words: str) -> None:
    n = revisions.get(database, delivery.revision_id).n
    whole = f"{delivery.kind} to {delivery.lane}: {words}"
    timeline.note(database, delivery.series_id, n, "operator", whole, at=time.time())
