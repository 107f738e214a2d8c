"""The whole life of a series in one record, as ``ctnode series why``, the page and the API tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from ctnode.archive import catalog, evidence
from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.archive.life import Chapter, chapters
from ctnode.archive.timeline import iso
from ctnode.words import Evidence


@dataclass(frozen=True, slots=True)
class Why:
    """A series, who sent it, what was said of it, and what became of each revision, oldest first."""

    series: catalog.Series
    senders: tuple[dict[str, Any], ...]
    evidence: tuple[Evidence, ...]
    chapters: tuple[Chapter, ...]


def why(database: Database, layout: Layout, series: catalog.Series) -> Why:
    """Return the life of a series."""
    return Why(
        series,
        catalog.associations_of(database, series.id),
        tuple(evidence.of_series(database, series.id)),
        chapters(database, layout, series),
    )


def why_as_json(told: Why) -> dict[str, Any]:
    """Return what ``ctnode series why --json`` prints."""
    series = told.series
    return {
        "study": series.study, "series": series.name, "modality": series.modality, "instances": series.instances,
        "duplicates": series.duplicates, "flags": series.flags, "hold": series.hold,
        "associations": [as_times(row) for row in told.senders],
        "evidence": [as_times(asdict(one)) for one in told.evidence],
        "revisions": [_chapter_as_json(chapter) for chapter in told.chapters],
    }  # fmt: skip


def _chapter_as_json(chapter: Chapter) -> dict[str, Any]:
    return {
        **as_times(asdict(chapter)),
        "jobs": [as_times(asdict(job)) for job in chapter.jobs],
        "deliveries": [
            {**as_times(asdict(one)), "status": None if one.status is None else f"{one.status:04X}H"}
            for one in chapter.deliveries
        ],
        "timeline": [as_times(asdict(entry)) for entry in chapter.timeline],
    }


def as_times(record: Mapping[str, Any], names: Sequence[str] = ()) -> dict[str, Any]:
    """Return a record for JSON with its times (``..._at``, ``deadline``, ``at``) as ISO 8601."""
    return {
        key: iso(value) if key == "at" or key.endswith("_at") or key in {"deadline", *names} else value
        for key, value in record.items()
    }


def ranges(numbers: Sequence[int]) -> str:
    """Return whole numbers in words, neighbours as a range: ``3-5, 9``."""
    ordered = sorted(set(numbers))
    cuts = [0, *(place for place, (a, b) in enumerate(pairwise(ordered), 1) if b != a + 1), len(ordered)]
    parts = [ordered[start:stop] for start, stop in pairwise(cuts) if stop > start]
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
