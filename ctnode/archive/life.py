"""The life of a series, revision by revision: why it counted as complete, what was tried, made and sent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ctnode.archive import catalog, findings, jobs, outbox, timeline
from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.words import RevisionState


@dataclass(frozen=True, slots=True)
class Chapter:
    """One revision with everything that hangs on it.

    Parameters
    ----------
    n, state, reason
        The revision, and why it is in its state where that needs a reason.
    opened_at, last_arrival_at, deadline
        Seconds since 1970 in UTC: when it began, its last instance, and until when it waits or waited.
    verdict, verdict_at, evidence
        Why it counted as complete; ``''``, None and empty as long as it does not.
    rule, otherwise, awaits
        The rule that gave the verdict, what would have changed it; what is awaited as long as there is none.
    policy
        The rule of the configuration that it waits or waited by; ``''`` where none fits.
    instances
        How many instances were frozen by the verdict.
    jobs, deliveries
        What was to be computed and what is owed, oldest first.
    volumes
        What was made, each with its issues.
    results, files
        The published folder and the names in it; ``''`` and empty where there is none.
    timeline
        What happened, oldest first.
    """

    n: int
    state: RevisionState
    reason: str
    opened_at: float
    last_arrival_at: float
    deadline: float
    verdict: str
    verdict_at: float | None
    evidence: tuple[str, ...]
    rule: str
    otherwise: str
    awaits: str
    policy: str
    instances: int
    jobs: tuple[jobs.Job, ...]
    volumes: tuple[findings.Finding, ...]
    results: str
    files: tuple[str, ...]
    deliveries: tuple[outbox.Delivery, ...]
    timeline: tuple[timeline.Entry, ...]


def chapters(database: Database, layout: Layout, series: catalog.Series) -> tuple[Chapter, ...]:
    """Return the revisions of ``series``, oldest first."""
    with database.at_once():
        all_jobs = jobs.of_series(database, series.id)
        all_deliveries = outbox.of_series(database, series.id)
        entries = timeline.read(database, series.id)
        rows = database.rows(
            "SELECT id, n, state, reason, opened_at, last_arrival AS last_arrival_at, deadline, verdict, verdict_at,"
            " evidence, rule, otherwise, awaits, policy, instances FROM revisions WHERE series_id = ? ORDER BY n",
            (series.id,),
        )
    found = []
    for row in rows:
        revision_id = row.pop("id")
        folder = layout.result_directory(series.study, series.uid, series.split, row["n"])
        row["state"] = RevisionState(row["state"])
        row["evidence"] = tuple(json.loads(row["evidence"]))
        row["instances"] = len(json.loads(row["instances"]))
        found.append(
            Chapter(
                **row,
                jobs=tuple(job for job in all_jobs if job.revision == row["n"]),
                volumes=findings.of_revision(database, revision_id),
                results=str(folder) if folder.is_dir() else "",
                files=_names(folder),
                deliveries=tuple(one for one in all_deliveries if one.revision_id == revision_id),
                timeline=tuple(entry for entry in entries if entry.revision == row["n"]),
            )
        )
    return tuple(found)


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ()
