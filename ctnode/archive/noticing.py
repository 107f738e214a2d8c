"""What becomes of a notice, inside the transaction that says it was heard."""

from __future__ import annotations

from ctnode.archive import commitments, proofs
from ctnode.archive.associations import Association
from ctnode.archive.database import Database
from ctnode.archive.notices import Notice, NoticeKind


def take_notice(database: Database, association: Association, notice: Notice) -> None:
    """Give a commitment request its row, and let the report on one of ours confirm what was sent."""
    if notice.kind is NoticeKind.COMMITMENT:
        commitments.take(database, association, notice)
    elif notice.kind is NoticeKind.REPORT:
        proofs.reported(database, notice.uid, {reference.sop_instance for reference in notice.references})
