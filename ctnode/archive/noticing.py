"""What becomes of a notice, inside the transaction that says it was heard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from ctnode.archive import commitments, evidence, proofs, timeline
from ctnode.archive.associations import Association
from ctnode.archive.database import Database
from ctnode.archive.notices import Notice, NoticeKind
from ctnode.words import Evidence, EvidenceKind

_STEPS: Final = {
    "COMPLETED": EvidenceKind.MPPS_COMPLETED,
    "DISCONTINUED": EvidenceKind.MPPS_DISCONTINUED,
}


def take_notice(database: Database, association: Association, notice: Notice) -> None:
    """Keep what a notice says of series, owe a report to who asks for one, confirm what an answer vouches for."""
    if notice.kind is NoticeKind.COMMITMENT:
        commitments.take(database, association, notice)
    elif notice.kind is NoticeKind.REPORT:
        proofs.reported(database, notice.uid, {reference.sop_instance for reference in notice.references})
        return
    who = association.peer or association.calling_ae
    if notice.kind is NoticeKind.STEP:
        notice = _with_beginning(database, notice)
    for one in _evidence(notice, who):
        evidence.record(database, one)
        words = f"{who} lists {one.count} instances ({one.kind})"
        for series_id, revision in database.execute(
            "SELECT series.id, max(revisions.n) FROM series JOIN revisions ON revisions.series_id = series.id"
            " WHERE series.uid = ? GROUP BY series.id",
            (one.series,),
        ).fetchall():
            timeline.note(database, series_id, revision, "listed", words, at=notice.at)


def _with_beginning(database: Database, notice: Notice) -> Notice:
    """Return what changes or ends a procedure step with the study and modality that only its beginning tells."""
    row = database.execute(
        "SELECT max(study), max(modality) FROM evidence WHERE name = ? AND kind IN (?, ?, ?)",
        (notice.uid, EvidenceKind.MPPS_IN_PROGRESS, *_STEPS.values()),
    ).fetchone()
    return replace(notice, study=notice.study or row[0] or "", modality=notice.modality or row[1] or "")


def _evidence(notice: Notice, who: str) -> Iterator[Evidence]:
    kind = {
        NoticeKind.STEP: _STEPS.get(notice.status, EvidenceKind.MPPS_IN_PROGRESS),
        NoticeKind.COMMITMENT: EvidenceKind.COMMITMENT_REQUEST,
        NoticeKind.AVAILABILITY: EvidenceKind.AVAILABILITY_NOTICE,
    }[notice.kind]
    for listed in notice.listed:
        names = tuple(sorted({reference.sop_instance for reference in listed.references}))
        study = notice.study if listed.series else ""
        yield Evidence(
            kind, notice.at, who, study, listed.series, notice.uid, len(names), names, modality=notice.modality
        )
    if not notice.listed and notice.study:
        # A step that has begun speaks of its study until it tells the series.
        yield Evidence(kind, notice.at, who, notice.study, "", notice.uid, modality=notice.modality)
