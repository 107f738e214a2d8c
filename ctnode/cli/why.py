"""``ctnode series why UID``: the whole life of a series, from who sent it to the status of each delivery."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import click

from ctnode.archive import catalog, jobs
from ctnode.archive.findings import Finding
from ctnode.archive.history import Event
from ctnode.archive.life import Chapter
from ctnode.archive.outbox import Delivery
from ctnode.archive.timeline import iso
from ctnode.cli.show import Settings, as_json, print_json
from ctnode.flow.why import awaited, ranges, why, why_as_json
from ctnode.words import Issue, RevisionState, StudyState


@click.command("why")
@click.argument("uid")
@click.option("--study", help="StudyInstanceUID, where several studies hold the series.")
@as_json
@click.pass_obj
def why_series(settings: Settings, uid: str, study: str | None, json_wanted: bool) -> None:
    """Tell the life of a series: all that happened in order, why it counted as complete, attempts, deliveries."""
    _, layout, database = settings.reading()
    series = catalog.find(database, uid, study=study)
    told = why(database, layout, series)
    if json_wanted:
        print_json(why_as_json(told))
        return
    click.echo(f"series {series.name}\nstudy  {series.study}, {told.study_state}")
    resends = f", {series.duplicates} identical resends dropped" if series.duplicates else ""
    flags = f", {' '.join(series.flags)}" if series.flags else ""
    click.echo(f"{series.modality}, {series.instances} instances{resends}{flags}")
    _section("sent by", map(_sender, told.senders))
    _section("by the headers", told.headers)
    _section("what happened", map(_event, told.history))
    for chapter in told.chapters:
        _section(f"revision {chapter.n}: {chapter.state}", _lines(chapter, series.hold, told.study_state))


def _section(title: str, lines: Iterable[str]) -> None:
    click.echo(f"\n{title}")
    for line in lines:
        click.echo(f"  {line}")


def _sender(row: dict[str, Any]) -> str:
    who = f"{row['calling_ae']} at {row['peer_address']}" if row["calling_ae"] else f"door {row['door']}"
    how = row["how"] or "still open"
    return f"{iso(row['opened_at'])}  {who}: {row['instances']} instances, {how} (association {row['association']})"


def _event(event: Event) -> str:
    revision = f"r{event.revision}" if event.revision else "  "
    return f"{iso(event.at)}  {revision}  {event.kind:<11} {event.text}"


def _lines(chapter: Chapter, hold: str, study: StudyState) -> Iterator[str]:
    if chapter.verdict:
        why = f"{chapter.verdict}: {'; '.join(chapter.evidence)}"
        yield f"{iso(chapter.verdict_at)}  complete with {chapter.instances} instances, {why}"
    elif chapter.state is RevisionState.RECEIVING:
        last_at, quiet_at = iso(chapter.last_arrival_at), iso(chapter.deadline)
        yield f"not complete yet: last instance {last_at}, quiet time until {quiet_at}"
    if chapter.rule:
        yield f"by the rule: {chapter.rule}; it would have been changed by {chapter.otherwise}"
    if chapter.policy:
        yield f"by the policy of [[completion_rules]] {chapter.policy}"
    if waits := awaited(chapter, hold, study):
        yield f"awaited now: {waits}"
    if chapter.reason:
        yield f"because {chapter.reason}"
    yield from map(_job, chapter.jobs)
    if chapter.results:
        yield f"results in {chapter.results}: {' '.join(chapter.files)}"
    for finding in chapter.volumes:
        yield from _finding(finding)
    yield from map(_delivery, chapter.deliveries)


def _job(job: jobs.Job) -> str:
    counts = f"{job.attempt} attempts, {job.failures} failed, {job.interruptions} cut short"
    return f"job {job.id} {job.state}: {counts}{f'; {job.message}' if job.message else ''}"


def _finding(finding: Finding) -> Iterator[str]:
    what = f"volume {finding.volume} {finding.status}" if finding.volume else f"no volume, {finding.status}"
    yield f"{what}, lungs {finding.lungs}{'' if finding.issues else ', no issues'}"
    for issue in finding.issues:
        yield f"  {issue.severity} {issue.code}{_slices(issue)}: {issue.action}"
    for reason in finding.reasons:
        yield f"  lungs: {reason}"


def _slices(issue: Issue) -> str:
    return f" (slices {ranges(issue.frames)})" if issue.frames else ""


def _delivery(delivery: Delivery) -> str:
    status = "" if delivery.status is None else f", status {delivery.status:04X}H"
    comment = f", {delivery.comment}" if delivery.comment else ""
    return f"{delivery.kind} to {delivery.target} {delivery.state}: {delivery.attempt} attempts{status}{comment}"
