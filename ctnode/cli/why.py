"""``ctnode series why UID``: the whole life of a series, from who sent it to the status of each delivery."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import click

from ctnode.archive import catalog, jobs
from ctnode.archive.findings import Finding
from ctnode.archive.life import Chapter
from ctnode.archive.outbox import Delivery
from ctnode.archive.timeline import iso
from ctnode.cli.show import Settings, as_json, print_json
from ctnode.flow.why import ranges, why, why_as_json
from ctnode.words import Evidence, Issue, RevisionState

# What is told elsewhere in the same answer, with more.
_TOLD: Final = frozenset({"opened", "association", "complete"})


@click.command("why")
@click.argument("uid")
@click.option("--study", help="StudyInstanceUID, where several studies hold the series.")
@as_json
@click.pass_obj
def why_series(settings: Settings, uid: str, study: str | None, json_wanted: bool) -> None:
    """Tell the life of a series: its senders, why it counted as complete, attempts, issues, deliveries."""
    _, layout, database = settings.reading()
    series = catalog.find(database, uid, study=study)
    told = why(database, layout, series)
    if json_wanted:
        print_json(why_as_json(told))
        return
    click.echo(f"series {series.name}\nstudy  {series.study}")
    resends = f", {series.duplicates} identical resends dropped" if series.duplicates else ""
    flags = f", {' '.join(series.flags)}" if series.flags else ""
    click.echo(f"{series.modality}, {series.instances} instances{resends}{flags}")
    _section("sent by", map(_sender, told.senders))
    if told.evidence:
        _section("said of it", map(_signal, told.evidence))
    for chapter in told.chapters:
        _section(f"revision {chapter.n}: {chapter.state}", _lines(chapter, series.hold))


def _section(title: str, lines: Iterable[str]) -> None:
    click.echo(f"\n{title}")
    for line in lines:
        click.echo(f"  {line}")


def _sender(row: dict[str, Any]) -> str:
    who = f"{row['calling_ae']} at {row['peer_address']}" if row["calling_ae"] else f"door {row['door']}"
    how = row["how"] or "still open"
    return f"{iso(row['opened_at'])}  {who}: {row['instances']} instances, {how} (association {row['association']})"


def _signal(one: Evidence) -> str:
    named = len(one.instances) or one.count
    what = f": {named} instances" if named is not None else ""
    failed = f", {one.failed} failed" if one.failed else ""
    return f"{iso(one.at)}  {one.kind.replace('_', ' ')} from {one.source}{what}{failed}"


def _lines(chapter: Chapter, hold: str) -> Iterator[str]:
    if chapter.verdict:
        why = f"{chapter.verdict}: {'; '.join(chapter.evidence)}"
        yield f"{iso(chapter.verdict_at)}  complete with {chapter.instances} instances, {why}"
        if chapter.rule:
            yield f"by the rule: {chapter.rule}; it would have been changed by {chapter.otherwise}"
    elif chapter.state is RevisionState.RECEIVING:
        yield f"not complete yet: last instance {iso(chapter.last_arrival_at)}, waits until {iso(chapter.deadline)}"
        yield f"awaited now: {chapter.awaits or 'the end of the quiet time'}"
    if hold and chapter.state is RevisionState.COMPLETE:
        yield f"held ({hold}): `ctnode series release UID` runs it"
    if chapter.reason:
        yield f"because {chapter.reason}"
    for entry in chapter.timeline:
        if entry.kind not in _TOLD:
            yield f"{iso(entry.at)}  {entry.kind}: {entry.text}"
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
