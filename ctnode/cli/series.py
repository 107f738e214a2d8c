"""Commands about series and jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from ctnode.archive import catalog, jobs, outbox, timeline
from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.archive.revisions import Revision
from ctnode.cli.show import Settings, as_json, as_times, pairs, print_json, print_table
from ctnode.cli.why import why_series
from ctnode.flow import operating
from ctnode.words import JobState, RevisionState

_study = click.option("--study", help="StudyInstanceUID, where several studies hold the series.")
_limit = click.option("--limit", default=50, show_default=True, help="At most so many.")


@click.group("series")
def series_group() -> None:
    """Look at what the node holds, and at what became of it."""


@series_group.command("list")
@click.option("--state", type=click.Choice([str(state) for state in RevisionState]), help="Only this state.")
@_limit
@as_json
@click.pass_obj
def list_series(settings: Settings, state: str | None, limit: int, json_wanted: bool) -> None:
    """List series, newest first."""
    _, _, database = settings.reading()
    found = catalog.listing(database, state=RevisionState(state) if state else None, limit=limit)
    if json_wanted:
        print_json([as_times(asdict(record)) for record in found])
        return
    print_table(
        ("series", "modality", "instances", "revision", "state", "verdict", "flags"),
        [
            (record.name, record.modality, record.instances, record.revision, _state(record), record.verdict,
             " ".join(record.flags))
            for record in found
        ],
        empty="no series yet",
    )  # fmt: skip


def _state(record: catalog.Series) -> str:
    return f"{record.state} (held: {record.hold})" if record.hold else str(record.state)


@series_group.command("show")
@click.argument("uid")
@_study
@as_json
@click.pass_obj
def show_series(settings: Settings, uid: str, study: str | None, json_wanted: bool) -> None:
    """Show everything about a series: who sent it, what was decided, each attempt, each delivery."""
    _, layout, database = settings.reading()
    record = catalog.find(database, uid, study=study)
    whole = _whole(database, layout, record)
    if json_wanted:
        print_json(whole)
        return
    pairs(
        {
            "study": record.study,
            "series": record.name,
            "modality": record.modality,
            "instances": f"{record.instances}, {record.bytes / 1e6:.1f} MB",
            "deleted": f"{record.deleted} images, by a rule of retention",
            "resends": f"{record.duplicates} identical ones dropped",
            "flags": " ".join(record.flags) or "none",
            "state": f"revision {record.revision} {_state(record)} {record.reason}".strip(),
            "verdict": f"{record.verdict}: {'; '.join(record.evidence)}" if record.verdict else "not yet",
            "results": whole["results"] or "none",
        }
    )
    click.echo("\ntimeline")
    for entry in timeline.read(database, record.id):
        click.echo(f"  {timeline.iso(entry.at)}  r{entry.revision}  {entry.kind:<11} {entry.text}")


def _whole(database: Database, layout: Layout, record: catalog.Series) -> dict[str, Any]:
    results = layout.result_directory(record.study, record.uid, record.split, record.revision)
    return {
        **as_times(asdict(record)),
        "results": str(results) if results.is_dir() else "",
        "associations": [as_times(row) for row in catalog.associations_of(database, record.id)],
        "jobs": [as_times(asdict(job)) for job in jobs.of_series(database, record.id)],
        "deliveries": [as_times(asdict(delivery)) for delivery in outbox.of_series(database, record.id)],
        "timeline": [as_times(asdict(entry)) for entry in timeline.read(database, record.id)],
    }


def _act(
    settings: Settings, uid: str, study: str | None, act: Callable[[Database, int, operating.Operator], Revision]
) -> tuple[catalog.Series, Revision]:
    config, _, database = settings.writing()
    record = catalog.find(database, uid, study=study)
    return record, act(database, record.id, operating.by_command(config))


@series_group.command("requeue")
@click.argument("uid")
@_study
@click.pass_obj
def requeue_series(settings: Settings, uid: str, study: str | None) -> None:
    """Run the pipeline on a series again; lifts a hold."""
    record, revision = _act(settings, uid, study, operating.requeue)
    click.echo(f"{record.name}: revision {revision.n} is {revision.state}")


@series_group.command("hold")
@click.argument("uid")
@_study
@click.option("--reason", default="by the operator", show_default=True, help="Why; it is shown, so no patient's name.")
@click.pass_obj
def hold_series(settings: Settings, uid: str, study: str | None, reason: str) -> None:
    """Keep a series from being processed; it goes on receiving, and what is queued already goes on."""

    def hold(database: Database, series_id: int, by: operating.Operator) -> Revision:
        return operating.hold(database, series_id, reason, by)

    record, revision = _act(settings, uid, study, hold)
    click.echo(f"{record.name}: revision {revision.n} is {revision.state}, held")


@series_group.command("release")
@click.argument("uid")
@_study
@click.pass_obj
def release_series(settings: Settings, uid: str, study: str | None) -> None:
    """Lift a hold; the series goes on from where it was."""
    record, revision = _act(settings, uid, study, operating.release)
    click.echo(f"{record.name}: revision {revision.n} is {revision.state}, no longer held")


@series_group.command("complete")
@click.argument("uid")
@_study
@click.pass_obj
def complete_series(settings: Settings, uid: str, study: str | None) -> None:
    """Say that all of a series has come, instead of waiting."""
    record, revision = _act(settings, uid, study, operating.complete)
    click.echo(f"{record.name}: revision {revision.n} waits no longer")


@series_group.command("acknowledge")
@click.argument("uid")
@_study
@click.option("--reason", default="", help="Why; it is shown, so no patient's name.")
@click.pass_obj
def acknowledge_series(settings: Settings, uid: str, study: str | None, reason: str) -> None:
    """Take a series that was seen off the list of problems; its marks stay, and the next fault shows again."""

    def acknowledge(database: Database, series_id: int, by: operating.Operator) -> Revision:
        return operating.acknowledge(database, series_id, reason, by)

    record, revision = _act(settings, uid, study, acknowledge)
    click.echo(f"{record.name}: revision {revision.n} is acknowledged")


@click.group("jobs")
def jobs_group() -> None:
    """Look at the queue of the workers, and change it."""


@jobs_group.command("list")
@click.option("--state", type=click.Choice([str(state) for state in JobState]), help="Only this state.")
@_limit
@as_json
@click.pass_obj
def list_jobs(settings: Settings, state: str | None, limit: int, json_wanted: bool) -> None:
    """List jobs, newest first."""
    _, _, database = settings.reading()
    found = jobs.listing(database, state=JobState(state) if state else None, limit=limit)
    if json_wanted:
        print_json([as_times(asdict(job)) for job in found])
        return
    print_table(
        ("job", "series", "revision", "state", "attempt", "failures", "message"),
        [(job.id, job.series, job.revision, job.state, job.attempt, job.failures, job.message) for job in found],
        empty="no jobs",
    )


@jobs_group.command("retry")
@click.argument("job", type=int)
@click.pass_obj
def retry_job(settings: Settings, job: int) -> None:
    """Queue a DEAD, DONE or cancelled job again, with its counts anew."""
    config, _, database = settings.writing()
    revision = operating.retry_job(database, job, operating.by_command(config))
    click.echo(f"job {job}: revision {revision.n} is {revision.state}")


@jobs_group.command("cancel")
@click.argument("job", type=int)
@click.pass_obj
def cancel_job(settings: Settings, job: int) -> None:
    """Cancel a job; its series stays stored."""
    config, _, database = settings.writing()
    operating.cancel_job(database, job, operating.by_command(config))
    click.echo(f"job {job}: CANCELLED")


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    series_group.add_command(why_series)
    group.add_command(series_group)
    group.add_command(jobs_group)
