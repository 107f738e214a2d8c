"""What needs somebody, out of the index: each list by its own index, the newest first, never longer than a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ctnode.archive import browse, jobs, outbox
from ctnode.archive.browse import Filter, Listed
from ctnode.archive.database import Database
from ctnode.archive.layout import series_name
from ctnode.words import DeliveryState

SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A file that could not be settled."""

    path: str
    association: str
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A volume that could not be made without guessing, with the first reason that refused it."""

    series_id: int
    series: str
    revision: int
    volume: int
    code: str
    action: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """Everything that will not get better by itself, as far as the index knows."""

    failed: tuple[Listed, ...]
    suspect: tuple[Listed, ...]
    held: tuple[Listed, ...]
    flagged: tuple[Listed, ...]
    refused: tuple[Refused, ...]
    dead_jobs: tuple[jobs.Job, ...]
    dead_deliveries: tuple[outbox.Delivery, ...]
    quarantined: tuple[Quarantined, ...]

    @property
    def is_none(self) -> bool:
        """Return whether there is nothing."""
        return not any(getattr(self, name) for name in self.__dataclass_fields__)


def trouble(database: Database, *, limit: int = SHOWN) -> Trouble:
    """Return what needs somebody."""

    def lines(wanted: Filter) -> tuple[Listed, ...]:
        return browse.series(database, wanted, limit=limit).lines

    return Trouble(
        failed=lines(Filter(state="FAILED", is_open=True)),
        suspect=lines(Filter(verdict="SUSPECT", is_open=True)),
        held=lines(Filter(flag="held")),
        flagged=lines(Filter(flag="flagged", is_open=True)),
        refused=_refused(database, limit),
        dead_jobs=jobs.unseen(database, limit=limit),
        dead_deliveries=outbox.listed(database, state=DeliveryState.DEAD, limit=limit),
        quarantined=_quarantined(database, limit),
    )


def _refused(database: Database, limit: int) -> tuple[Refused, ...]:
    rows = database.rows(
        "SELECT series.id AS series_id, series.uid, series.split, r.n AS revision, v.volume,"
        " coalesce((SELECT code FROM issues WHERE revision_id = v.revision_id AND volume = v.volume"
        " ORDER BY place LIMIT 1), '') AS code,"
        " coalesce((SELECT action FROM issues WHERE revision_id = v.revision_id AND volume = v.volume"
        " ORDER BY place LIMIT 1), '') AS action"
        " FROM (SELECT revision_id, volume FROM volumes WHERE status = 'REFUSED'"
        f" ORDER BY revision_id DESC LIMIT {jobs.UNSEEN_AMONG}) AS v"
        " JOIN revisions AS r ON r.id = v.revision_id JOIN series ON series.id = r.series_id"
        " WHERE r.state <> 'SUPERSEDED' AND r.acknowledged_at IS NULL ORDER BY v.revision_id DESC LIMIT ?",
        (limit,),
    )
    return tuple(
        Refused(
            row["series_id"], series_name(row["uid"], row["split"]), row["revision"], row["volume"], row["code"],
            row["action"],
        )
        for row in rows
    )  # fmt: skip


def failures(database: Database) -> int:
    """Return how many series failed that nobody has acknowledged, up to ``jobs.UNSEEN_AMONG``."""
    row = database.execute(
        "SELECT count(*) FROM (SELECT 1 FROM revisions WHERE state = 'FAILED' AND acknowledged_at IS NULL"
        f" LIMIT {jobs.UNSEEN_AMONG})"
    ).fetchone()
    return int(row[0])


def _quarantined(database: Database, limit: int) -> tuple[Quarantined, ...]:
    rows = database.rows(
        "SELECT path, association, reason, at FROM quarantine WHERE state = 'FAILED' ORDER BY id DESC LIMIT ?", (limit,)
    )
    return tuple(Quarantined(**row) for row in rows)
