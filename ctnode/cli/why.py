"""``ctnode series why UID``: the whole life of a series, from who sent it to the status of each delivery."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Final

import click

from ctnode.archive import catalog, counts, evidence, jobs
from ctnode.archive.findings import Finding
from ctnode.archive.history import Event, history
from ctnode.archive.life import Chapter, chapters
from ctnode.archive.outbox import Delivery
from ctnode.archive.timeline import iso
from ctnode.cli.show import Settings, as_json, as_times, print_json
from ctnode.flow.claims import describe_headers
from ctnode.words import Issue, RevisionState, StudyState

# What is awaited in a state in which only the node itself has something to do.
_AWAITED: Final = {
    RevisionState.QUEUED: "a worker",
    RevisionState.PROCESSING: "the end of its job",
}


@click.command("why")
@click.argument("uid")
@click.option("--study", help="StudyInstanceUID, where several studies hold the series.")
@as_json
@click.pass_obj
def why_series(settings: Settings, uid: str, study: str | None, json_wanted: bool) -> None:
    """Tell the life of a series: all that happened in order, why it counted as complete, attempts, deliveries."""
    _, layout, database = settings.reading()
    series = catalog.find(database, uid, study=study)
    senders = catalog.associations_of(database, series.id)
    told = chapters(database, layout, series)
    known = evidence.of_series(database, series.id)
    happened = history(database, series)
    study_state = catalog.study_state(database, series.id)
    headers = describe_headers(counts.of_series(database, series.id))
    if json_wanted:
        whole = {
            "study": series.study, "series": series.name, "modality": series.modality, "instances": series.instances,
            "duplicates": series.duplicates, "flags": series.flags, "hold": series.hold,
            "associations": [as_times(row) for row in senders],
            "study_state": str(study_state), "headers": list(headers),
            "history": [as_times(asdict(event)) for event in happened],
            "evidence": [as_times(asdict(one)) for one in known],
            "revisions": [_chapter_as_json(chapter, series.hold, study_state) for chapter in told],
        }  # fmt: skip
        print_json(whole)
        return
    click.echo(f"series {series.name}\nstudy  {series.study}, {study_state}")
    resends = f", {series.duplicates} identical resends dropped" if series.duplicates else ""
    flags = f", {' '.join(series.flags)}" if series.flags else ""
    click.echo(f"{series.modality}, {series.instances} instances{resends}{flags}")
    _section("sent by", map(_sender, senders))
    _section("by the headers", headers)
    _section("what happened", map(_event, happened))
    for chapter in told:
        _section(f"revision {chapter.n}: {chapter.state}", _lines(chapter, series.hold, study_state))


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


def awaited(chapter: Chapter, hold: str, study: StudyState) -> str:
    """Return what a revision waits for now, in words; empty where it waits for nothing."""
    if chapter.state is RevisionState.RECEIVING:
        return chapter.awaits or "the end of the quiet time"
    if chapter.state is RevisionState.COMPLETE:
        if hold:
            return f"the operator, for it is held ({hold}): `ctnode series release UID` runs it"
        if study is StudyState.OPEN:
            return "its study, which a route wants whole"
        return "the end of an older revision"
    return _AWAITED.get(chapter.state, "")


def _lines(chapter: Chapter, hold: str, study: StudyState) -> Iterator[str]:
    if chapter.verdict:
        why = f"{chapter.verdict}: {'; '.join(chapter.evidence)}"
        yield f"{iso(chapter.verdict_at)}  complete with {chapter.instances} instances, {why}"
    elif chapter.state is RevisionState.RECEIVING:
        yield f"not complete yet: last instance {iso(chapter.last_arrival_at)}, waits until {iso(chapter.deadline)}"
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


def ranges(numbers: Sequence[int]) -> str:
    """Return whole numbers in words, neighbours as a range: ``3-5, 9``."""
    ordered = sorted(set(numbers))
    cuts = [0, *(place for place, (a, b) in enumerate(pairwise(ordered), 1) if b != a + 1), len(ordered)]
    parts = [ordered[start:stop] for start, stop in pairwise(cuts) if stop > start]
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _delivery(delivery: Delivery) -> str:
    status = "" if delivery.status is None else f", status {delivery.status:04X}H"
    comment = f", {delivery.comment}" if delivery.comment else ""
    return f"{delivery.kind} to {delivery.target} {delivery.state}: {delivery.attempt} attempts{status}{comment}"


def _chapter_as_json(chapter: Chapter, hold: str, study: StudyState) -> dict[str, Any]:
    return {
        **as_times(asdict(chapter)),
        "awaits": awaited(chapter, hold, study),
        "jobs": [as_times(asdict(job)) for job in chapter.jobs],
        "deliveries": [
            {**as_times(asdict(one)), "status": None if one.status is None else f"{one.status:04X}H"}
            for one in chapter.deliveries
        ],
        "timeline": [as_times(asdict(entry)) for entry in chapter.timeline],
    }
