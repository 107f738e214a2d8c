"""What an operator does to series, jobs and deliveries, by command or by page: one function each.

Each writes down who did it in the timeline of the series and in the audit trail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from ctnode.archive import catalog, jobs, lanes, outbox, revisions, timeline
from ctnode.archive.database import Database
from ctnode.archive.outbox import Delivery
from ctnode.archive.revisions import Revision
from ctnode.config import Config
from ctnode.ops import audit
from ctnode.words import NotFound

if TYPE_CHECKING:
    from ctnode.wire.sender import EchoResult

COMMAND: Final = "a command"
BY_OPERATOR: Final = "by the operator"


@dataclass(frozen=True, slots=True)
class Operator:
    """Who acts.

    Parameters
    ----------
    name
        As the audit trail calls them.
    way
        As the timeline of a series calls them.
    keep
        Writes an entry of the audit trail.
    """

    name: str
    way: str
    keep: Callable[[audit.Record], None]


def by_command(config: Config) -> Operator:
    """Return whoever runs this process; a command fails if the trail takes nothing."""
    return Operator(
        audit.operator(), COMMAND, lambda record: audit.write(config.root, record, enabled=config.audit.enabled)
    )


def by_page(config: Config, name: str) -> Operator:
    """Return a user of the page or of the API, for whom a trail that takes nothing is an error in the log."""
    return Operator(
        name, f"{name} on the page", lambda record: audit.note(config.root, record, enabled=config.audit.enabled)
    )


def requeue(database: Database, series_id: int, by: Operator) -> Revision:
    """Run the pipeline on a series again; lifts a hold.

    Raises
    ------
    NotFound, WrongState
        If there is no such series, or it is still receiving, or queued or running already.
    """
    series = catalog.by_id(database, series_id)
    return _noted(database, series, revisions.requeue(database, series_id), by, "requeue", "requeued")


def hold(database: Database, series_id: int, reason: str, by: Operator) -> Revision:
    """Keep a series from being processed.

    Raises
    ------
    NotFound
        If there is no such series.
    """
    series = catalog.by_id(database, series_id)
    return _noted(database, series, revisions.hold(database, series_id, reason or BY_OPERATOR), by, "hold", "held")


def release(database: Database, series_id: int, by: Operator) -> Revision:
    """Lift a hold.

    Raises
    ------
    NotFound, WrongState
        If there is no such series, or nothing holds it.
    """
    series = catalog.by_id(database, series_id)
    return _noted(database, series, revisions.release(database, series_id), by, "release", "released")


def complete(database: Database, series_id: int, by: Operator) -> Revision:
    """Say that all of a series has come.

    Raises
    ------
    NotFound, WrongState
        If there is no such series, or it has its verdict already.
    """
    series = catalog.by_id(database, series_id)
    return _noted(database, series, revisions.tell_complete(database, series_id), by, "complete", "told complete")


def acknowledge(database: Database, series_id: int, reason: str, by: Operator) -> Revision:
    """Take a series that was seen off the list of problems; it changes nothing else, and the next fault shows again.

    Raises
    ------
    NotFound, WrongState
        If there is no such series, or it is still receiving or was acknowledged already.
    """
    series = catalog.by_id(database, series_id)
    revision = revisions.acknowledge(database, series_id)
    return _noted(database, series, revision, by, "acknowledge", "acknowledged", reason=reason)


def retry_job(database: Database, job_id: int, by: Operator) -> Revision:
    """Queue a DEAD, DONE or cancelled job again.

    Raises
    ------
    NotFound, WrongState
        If there is none, or it cannot be queued now.
    """
    series = catalog.by_id(database, jobs.series_of(database, job_id))
    revision = revisions.requeue(database, series.id)
    return _noted(database, series, revision, by, "retry job", "requeued", reference=str(job_id))


def cancel_job(database: Database, job_id: int, by: Operator) -> None:
    """Cancel a job; its series stays stored.

    Raises
    ------
    NotFound, WrongState
        If there is none, or it has ended.
    """
    series = catalog.by_id(database, jobs.series_of(database, job_id))
    jobs.cancel(database, job_id)
    revision = revisions.newest(database, series.id)
    _noted(database, series, revision, by, "cancel job", f"job {job_id} cancelled", reference=str(job_id))


def retry_delivery(database: Database, delivery: Delivery, by: Operator) -> None:
    """Try a delivery again now, inside the current transaction; the trail hears of it from ``note_deliveries``.

    Raises
    ------
    WrongState
        If it is under way or has arrived.
    """
    outbox.requeue(database, delivery.id, BY_OPERATOR)
    lanes.hurry(database, delivery.lane)
    _note_delivery(database, delivery, f"tried again by {by.way}")


def cancel_delivery(database: Database, delivery: Delivery, by: Operator) -> None:
    """Give up a delivery that waits or is DEAD, inside the current transaction; then ``note_deliveries``.

    Raises
    ------
    WrongState
        If it is under way, has arrived or is cancelled.
    """
    outbox.cancel(database, delivery.id, "cancelled by the operator")
    _note_delivery(database, delivery, f"cancelled by {by.way}")


def note_deliveries(by: Operator, done: str, numbers: Sequence[int], *, target: str = "", count: int = 1) -> None:
    """Write into the trail what was done to deliveries, after their transaction."""
    event, action, numbers_ = audit.Event.APPLICATION_ACTIVITY, audit.Action.EXECUTE, " ".join(map(str, numbers))
    what = f"deliveries {done}"
    by.keep(audit.Record(event, action, by.name, what, target=target, reference=numbers_, instances=count))


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


def _noted(
    database: Database,
    series: catalog.Series,
    revision: Revision,
    by: Operator,
    what: str,
    done: str,
    *,
    reason: str = "",
    reference: str = "",
) -> Revision:
    """Write down what was done, in the life of the series and in the trail."""
    words = f"{done} by {by.way}" + (f": {reason}" if reason else "")
    with database.immediate():
        timeline.note(database, revision.series_id, revision.n, "operator", words)
    event, action = audit.Event.INSTANCES_ACCESSED, audit.Action.UPDATE
    by.keep(
        audit.Record(event, action, by.name, what, studies=(series.study,), series=(series.uid,), reference=reference)
    )
    return revision


def _note_delivery(database: Database, delivery: Delivery, words: str) -> None:
    n = revisions.get(database, delivery.revision_id).n
    whole = f"{delivery.kind} to {delivery.lane}: {words}"
    timeline.note(database, delivery.series_id, n, "operator", whole, at=time.time())
