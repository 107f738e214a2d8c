"""All that happened to a series in order of time: arrivals, associations, signals, questions, decisions, actions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ctnode.archive import evidence, timeline
from ctnode.archive.catalog import Series
from ctnode.archive.database import Database
from ctnode.archive.rows import instances
from ctnode.words import Evidence, EvidenceKind

# Entries of the timeline that the arrivals and signals tell with more.
_TOLD: Final = frozenset({"association", "listed"})
# Signals that the timeline tells with more, each time they came.
_NOTED: Final = frozenset({EvidenceKind.OPERATOR, EvidenceKind.QUERY_RESULT, EvidenceKind.RETRIEVE_FINAL})


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Parameters
    ----------
    at
        Seconds since 1970 in UTC.
    revision
        Of the series; 0 for what belongs to none.
    kind
        ``arrival``, ``association``, ``signal``, ``report``, or the kind of an entry of the timeline.
    text
        In words.
    """

    at: float
    revision: int
    kind: str
    text: str


def history(database: Database, series: Series) -> tuple[Event, ...]:
    """Return what happened to a series, oldest first."""
    events = [
        *_arrivals(database, series.id),
        *_associations(database, series.id),
        *(_signal(one) for one in evidence.of_series(database, series.id) if one.kind not in _NOTED),
        *_reports(database, series.id),
        *(
            Event(entry.at, entry.revision, entry.kind, entry.text)
            for entry in timeline.read(database, series.id)
            if entry.kind not in _TOLD
        ),
    ]
    return tuple(sorted(events, key=lambda event: event.at))


def _arrivals(database: Database, series_id: int) -> Iterator[Event]:
    found: dict[tuple[int, int], list[float]] = {}
    for association, revision, at in instances(database, series_id, "association_id, revision, arrived_at"):
        found.setdefault((association, revision), []).append(at)
    names = dict(
        database.execute(
            "SELECT id, name FROM associations WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(sorted({association for association, _ in found})),),
        ).fetchall()
    )
    for (association, revision), times in found.items():
        name, count = names[association], len(times)
        if count > 1:
            yield Event(min(times), revision, "arrival", f"the first of {count} instances, association {name}")
            yield Event(max(times), revision, "arrival", f"the last of {count} instances, association {name}")
        else:
            yield Event(times[0], revision, "arrival", f"one instance, association {name}")


def _associations(database: Database, series_id: int) -> Iterator[Event]:
    for name, door, calling, address, opened_at, ended_at, how, resent in database.execute(
        "SELECT a.name, a.door, a.calling_ae, a.peer_address, a.opened_at, a.ended_at, a.how,"
        " a.duplicates FROM association_series AS fed JOIN associations AS a ON a.id = fed.association_id"
        " WHERE fed.series_id = ?",
        (series_id,),
    ).fetchall():
        who = f"{calling} at {address}" if calling else f"door {door}"
        yield Event(opened_at, 0, "association", f"{name} opened by {who}")
        if ended_at is not None:
            again = f", {resent} of its instances were here already" if resent else ""
            yield Event(ended_at, 0, "association", f"{name} {how}{again}")


def _signal(one: Evidence) -> Event:
    named = len(one.instances) or one.count
    what = f": {named} instances" if named is not None else ""
    failed = f", {one.failed} failed" if one.failed else ""
    modality = f" ({one.modality})" if one.modality else ""
    return Event(one.at, 0, "signal", f"{one.kind.replace('_', ' ')}{modality} from {one.source}{what}{failed}")


def _reports(database: Database, series_id: int) -> Iterator[Event]:
    """Tell how the commitment requests that name an instance of the series were answered."""
    for caller, state, ended_at, comment in database.execute(
        "SELECT DISTINCT c.calling_ae, c.state, c.ended_at, c.comment FROM instances"
        " JOIN evidence_instances AS named USING (sop_instance) JOIN evidence AS e ON e.id = named.evidence_id"
        " JOIN commitments AS c ON c.transaction_uid = e.name"
        " WHERE instances.series_id = ? AND e.kind = ? AND c.ended_at IS NOT NULL",
        (series_id, EvidenceKind.COMMITMENT_REQUEST),
    ).fetchall():
        yield Event(ended_at, 0, "report", f"commitment report to {caller} {state}{f': {comment}' if comment else ''}")
