"""The whole life of a series in one record, as ``ctnode series why``, the page and the API tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final

from ctnode.archive import catalog, counts, evidence
from ctnode.archive.database import Database
from ctnode.archive.history import Event, history
from ctnode.archive.layout import Layout
from ctnode.archive.life import Chapter, chapters
from ctnode.archive.timeline import iso
from ctnode.flow.claims import describe_headers
from ctnode.words import Evidence, RevisionState, StudyState

# What is awaited in a state in which only the node itself has something to do.
_AWAITED: Final = {
    RevisionState.QUEUED: "a worker",
    RevisionState.PROCESSING: "the end of its job",
}


@dataclass(frozen=True, slots=True)
class Why:
    """A series, who sent it, what was said of it, what happened, and what became of each revision, oldest first.

    ``headers`` says in words what the images themselves tell of the whole, ``history`` all events in order of time.
    """

    series: catalog.Series
    senders: tuple[dict[str, Any], ...]
    evidence: tuple[Evidence, ...]
    chapters: tuple[Chapter, ...]
    history: tuple[Event, ...]
    headers: tuple[str, ...]
    study_state: StudyState


def why(database: Database, layout: Layout, series: catalog.Series) -> Why:
    """Return the life of a series."""
    with database.at_once():
        senders = catalog.associations_of(database, series.id)
        said = tuple(evidence.of_series(database, series.id))
        study_state = catalog.study_state(database, series.id)
    # These read each instance of the series: each for itself, so that no commit waits for both.
    events = tuple(history(database, series))
    headers = tuple(describe_headers(counts.of_series(database, series.id)))
    return Why(series, senders, said, chapters(database, layout, series), events, headers, study_state)


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


def why_as_json(told: Why) -> dict[str, Any]:
    """Return what ``ctnode series why --json`` prints."""
    series = told.series
    return {
        "study": series.study, "series": series.name, "modality": series.modality, "instances": series.instances,
        "duplicates": series.duplicates, "flags": series.flags, "hold": series.hold,
        "associations": [as_times(row) for row in told.senders],
        "study_state": str(told.study_state), "headers": list(told.headers),
        "history": [as_times(asdict(event)) for event in told.history],
        "evidence": [as_times(asdict(one)) for one in told.evidence],
        "revisions": [_chapter_as_json(chapter, series.hold, told.study_state) for chapter in told.chapters],
    }  # fmt: skip


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


def as_times(record: Mapping[str, Any], names: Sequence[str] = ()) -> dict[str, Any]:
    """Return a record for JSON with its times (``..._at``, ``deadline``, ``at``) as ISO 8601."""
    return {key: iso(value) if is_time(key) or key in names else value for key, value in record.items()}


def is_time(name: str) -> bool:
    """Return whether a field of a record is a time, by its name."""
    return name == "at" or name.endswith("_at") or name == "deadline"


def ranges(numbers: Sequence[int]) -> str:
    """Return whole numbers in words, neighbours as a range: ``3-5, 9``."""
    ordered = sorted(set(numbers))
    cuts = [0, *(place for place, (a, b) in enumerate(pairwise(ordered), 1) if b != a + 1), len(ordered)]
    parts = [ordered[start:stop] for start, stop in pairwise(cuts) if stop > start]
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
