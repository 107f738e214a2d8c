"""What becomes of a notice, inside the transaction that says it was heard."""

from __future__ import annotations

from ctnode.archive import commitments
from ctnode.archive.associations import Association
from ctnode.archive.database import Database
from ctnode.archive.notices import Notice, NoticeKind


def take_notice(database: Database, association: Association, notice: Notice) -> None:
    """Give a commitment request its row."""
    if notice.kind is NoticeKind.COMMITMENT:
        commitments.take(database, association, notice)
