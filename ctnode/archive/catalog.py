"""Reading the index: series by name, lists by key, everything about one series."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from ctnode.archive.database import Database
from ctnode.archive.layout import parse_series_name, series_name
from ctnode.words import NotFound, RevisionState, StudyState, WrongState


@dataclass(frozen=True, slots=True)
class Series:
    """A split of a series with its newest revision."""

    id: int
    study: str
    name: str
    uid: str
    split: int
    modality: str
    instances: int
    bytes: int
    duplicates: int
    flags: tuple[str, ...]
    hold: str
    last_at: float
    revision: int
    state: RevisionState
    verdict: str
    evidence: tuple[str, ...]
    reason: str
    deadline: float
    ct_instances: int
    own_instances: int
    # Images that retention deleted.
    deleted: int
    # When somebody took its newest revision off the list of problems.
    acknowledged_at: float | None


_SELECT: Final = (
    "SELECT series.id, studies.uid AS study, series.uid, series.split, series.modality, series.instances, series.bytes,"
    " series.duplicates, series.deleted, series.flags, series.hold, series.last_at, series.ct_instances,"
    " series.own_instances, revisions.n AS revision, revisions.state, revisions.verdict, revisions.evidence,"
    " revisions.reason, revisions.deadline, revisions.acknowledged_at"
    " FROM series JOIN studies ON studies.id = series.study_id"
    " JOIN revisions ON revisions.series_id = series.id"
    " AND revisions.n = (SELECT max(n) FROM revisions WHERE series_id = series.id)"
)


def _record(row: dict[str, object]) -> Series:
    return Series(
        **{
            **row,
            "name": series_name(str(row["uid"]), int(str(row["split"]))),
            "flags": tuple(json.loads(str(row["flags"]))),
            "evidence": tuple(json.loads(str(row["evidence"]))),
            "state": RevisionState(str(row["state"])),
        }  # type: ignore[arg-type]
    )


def by_id(database: Database, series_id: int) -> Series:
    """Return a series by id."""
    row = database.row(f"{_SELECT} WHERE series.id = ?", (series_id,))
    if row is None:
        raise NotFound(f"no series {series_id}")
    return _record(row)


def find(database: Database, name: str, *, study: str | None = None) -> Series:
    """Return the series of a name (``UID`` or ``UID~n``).

    Raises
    ------
    NotFound
        If there is none.
    WrongState
        If several studies hold a series of this name and ``study`` does not say which.
    """
    uid, split = parse_series_name(name)
    rows = database.rows(f"{_SELECT} WHERE series.uid = ? AND series.split = ? LIMIT 20", (uid, split))
    found = [record for record in map(_record, rows) if study in {None, record.study}]
    if not found:
        raise NotFound(f"no series {name}", hint="`ctnode series list` shows what is there")
    if len(found) > 1:
        studies = ", ".join(record.study for record in found)
        raise WrongState(f"series {name} stands in several studies", hint=f"add --study, one of {studies}")
    return found[0]


def listing(database: Database, *, state: RevisionState | None = None, limit: int = 50) -> tuple[Series, ...]:
    """Return the newest series first, by id."""
    where = "WHERE revisions.state = ?" if state else ""
    rows = database.rows(f"{_SELECT} {where} ORDER BY series.id DESC LIMIT ?", (*((state,) if state else ()), limit))
    return tuple(map(_record, rows))


def study_state(database: Database, series_id: int) -> StudyState:
    """Return whether the study of a series is complete."""
    (state,) = database.execute(
        "SELECT studies.state FROM series JOIN studies ON studies.id = series.study_id WHERE series.id = ?",
        (series_id,),
    ).fetchone()
    return StudyState(state)


def associations_of(database: Database, series_id: int) -> tuple[dict[str, object], ...]:
    """Return the associations that fed a series, oldest first, as shown by ``series show``."""
    return tuple(
        database.rows(
            "SELECT a.name AS association, a.door, a.calling_ae, a.called_ae, a.peer_address, a.opened_at, a.ended_at,"
            " a.how, fed.instances FROM association_series AS fed JOIN associations AS a ON a.id = fed.association_id"
            " WHERE fed.series_id = ? ORDER BY a.id",
            (series_id,),
        )
    )
