"""What becomes of a notice, inside the transaction that says it was heard."""

from __future__ import annotations

from collections.abc import Iterator

from ctnode.archive import commitments, listings, timeline
from ctnode.archive.associations import Association
from ctnode.archive.database import Database
from ctnode.archive.listings import Listing
from ctnode.archive.notices import Notice, NoticeKind


def take_notice(database: Database, association: Association, notice: Notice) -> None:
    """Write down what a notice lists, by series, and owe a report for a request to vouch for instances."""
    if notice.kind is NoticeKind.COMMITMENT:
        commitments.take(database, association, notice)
    who = association.peer or association.calling_ae
    for listing in _listings(database, notice, who):
        listings.add(database, listing)
        status = f", {listing.status}" if listing.status else ""
        words = f"{who} lists {listing.count} instances ({listing.source}{status})"
        for series_id, revision in database.execute(
            "SELECT series.id, max(revisions.n) FROM series JOIN revisions ON revisions.series_id = series.id"
            " WHERE series.uid = ? GROUP BY series.id",
            (listing.series,),
        ).fetchall():
            timeline.note(database, series_id, revision, "listed", words, at=notice.at)


def _listings(database: Database, notice: Notice, who: str) -> Iterator[Listing]:
    by_series = {one.series: tuple(r.sop_instance for r in one.references) for one in notice.listed}
    if notice.kind is NoticeKind.COMMITMENT:
        # It names no series; what was asked for came before, so the index knows most of it.
        by_series = listings.series_of_instances(database, [one.sop_instance for one in notice.references])
    for series, instances in by_series.items():
        yield Listing(series, str(notice.kind), notice.uid, notice.status, who, notice.at, instances, len(instances))
