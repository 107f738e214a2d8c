"""Lists for the page: series by filter and by key, a bounded piece of the index with each statement.

Without WAL a reader blocks every commit, so no statement reads more than ``PIECE`` series whatever the filter; a filter
that fits rarely takes several statements, and a page that grew too long to search says where to go on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ctnode.archive.database import Database
from ctnode.archive.layout import parse_series_name, series_name
from ctnode.words import RevisionState

PAGE: Final = 50
PIECE: Final = 500
PIECES_LIMIT: Final = 24
NEWEST: Final = 1 << 62
_UID_LIKE: Final = re.compile(r"[0-9]+(\.[0-9]*)+(~[0-9]+)?|x-[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Filter:
    """What a list shows; empty texts let everything through.

    Parameters
    ----------
    text
        A series, study or instance UID or the beginning of one, an AE title, or the name of a peer.
    is_open
        Only what nobody has acknowledged.
    """

    text: str = ""
    state: str = ""
    verdict: str = ""
    modality: str = ""
    flag: str = ""
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of the list: a series with its newest revision and what became of its volumes."""

    id: int
    study: str
    name: str
    modality: str
    instances: int
    bytes: int
    flags: tuple[str, ...]
    hold: str
    first_at: float
    last_at: float
    revision_id: int
    revision: int
    state: RevisionState
    verdict: str
    reason: str
    sender: str = ""
    volumes: tuple[str, ...] = ()
    lungs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A piece of the list; ``before`` is the key of the next one, None at its end."""

    lines: tuple[Listed, ...]
    before: int | None
    is_cut: bool


_COLUMNS: Final = (
    "series.id, studies.uid AS study, series.uid, series.split, series.modality, series.instances, series.bytes,"
    " series.flags, series.hold, series.first_at, series.last_at, r.id AS revision_id, r.n AS revision, r.state,"
    " r.verdict, r.reason"
)
_IS_NEWEST: Final = "r.n = (SELECT max(n) FROM revisions WHERE series_id = r.series_id)"
_IS_SENT_BY: Final = (
    "EXISTS (SELECT 1 FROM association_series AS fed JOIN associations AS a ON a.id = fed.association_id"
    " WHERE fed.series_id = series.id AND (a.calling_ae = :text OR a.peer = :text OR a.door = :text))"
)


def series(database: Database, wanted: Filter, *, before: int = NEWEST, limit: int = PAGE) -> Page:
    """Return series that fit, the newest first, from key ``before`` on."""
    exact = _ids_of_uid(database, wanted.text)
    if exact is not None:
        wanted = replace(wanted, text="")
    found: list[Listed] = []
    position: int | None = before
    for _ in range(PIECES_LIMIT):
        assert position is not None
        with database.at_once():
            lines, position = _piece(database, wanted, exact, position, limit - len(found))
            found += _with_more(database, lines)
        if position is None or len(found) >= limit:
            break
    is_cut = position is not None and len(found) < limit
    return Page(tuple(found), position, is_cut)


def _piece(
    database: Database, wanted: Filter, exact: Sequence[int] | None, before: int, limit: int
) -> tuple[list[Listed], int | None]:
    """Return what fits of the next piece, and the key behind what was looked at; None at the end."""
    # The rarest of what is asked for leads: its index gives the candidates.
    source, values = "SELECT id AS series_id FROM series WHERE id < :before", dict[str, Any](before=before)
    if exact is not None:
        source += " AND id IN (SELECT value FROM json_each(:ids))"
        values["ids"] = json.dumps(list(exact))
    elif wanted.flag == "held":
        source += " AND hold <> ''"
    elif wanted.flag:
        source += " AND flags <> '[]'"
    elif wanted.is_open and (wanted.verdict or wanted.state):
        # The words themselves and no parameters: only so the small indices of what is open can be taken.
        is_bad = "verdict = 'SUSPECT'" if wanted.verdict else "state = 'FAILED'"
        source = (
            f"SELECT DISTINCT series_id FROM revisions WHERE {is_bad} AND acknowledged_at IS NULL"
            " AND series_id < :before"
        )
    elif wanted.verdict:
        source = "SELECT DISTINCT series_id FROM revisions WHERE verdict = :verdict AND series_id < :before"
    elif wanted.state:
        source = "SELECT DISTINCT series_id FROM revisions WHERE state = :state AND series_id < :before"
    source += f" ORDER BY {'series_id' if 'revisions' in source else 'id'} DESC LIMIT {PIECE}"
    conditions = [_IS_NEWEST, "r.acknowledged_at IS NULL"] if wanted.is_open else [_IS_NEWEST]
    for column, value in (
        ("r.state", wanted.state),
        ("r.verdict", wanted.verdict),
        ("series.modality", wanted.modality),
    ):
        if value:
            conditions.append(f"{column} = :{column.rpartition('.')[2]}")
            values[column.rpartition(".")[2]] = value
    if wanted.text:
        conditions.append(_IS_SENT_BY)
        values["text"] = wanted.text
    candidates = [row[0] for row in database.execute(source, values)]
    if not candidates:
        return [], None
    rows = database.rows(
        f"SELECT {_COLUMNS} FROM series JOIN studies ON studies.id = series.study_id"
        f" JOIN revisions AS r ON r.series_id = series.id WHERE series.id IN (SELECT value FROM json_each(:some))"
        f" AND {' AND '.join(conditions)} ORDER BY series.id DESC LIMIT :limit",
        {**values, "some": json.dumps(candidates), "limit": limit},
    )
    if len(rows) == limit:
        return [_listed(row) for row in rows], int(rows[-1]["id"])
    is_end = len(candidates) < PIECE
    return [_listed(row) for row in rows], None if is_end else candidates[-1]


def _ids_of_uid(database: Database, text: str) -> tuple[int, ...] | None:
    """Return the series that a UID or its beginning means; None if the text is no UID."""
    if not _UID_LIKE.fullmatch(text):
        return None
    uid, split = parse_series_name(text)
    beyond = f"{uid}\U0010ffff"
    ids = {
        row[0]
        for row in database.execute(
            "SELECT id FROM series WHERE uid >= ? AND uid < ? AND (? = 1 OR split = ?) LIMIT ?",
            (uid, beyond, split, split, PIECE),
        )
    }
    ids |= {
        row[0]
        for row in database.execute(
            "SELECT series.id FROM studies JOIN series ON series.study_id = studies.id"
            " WHERE studies.uid >= ? AND studies.uid < ? LIMIT ?",
            (uid, beyond, PIECE),
        )
    }
    if not ids:
        ids |= {
            row[0]
            for row in database.execute("SELECT series_id FROM instances WHERE sop_instance = ? LIMIT ?", (uid, PIECE))
        }
    return tuple(ids)


def _listed(row: dict[str, Any]) -> Listed:
    name = series_name(row.pop("uid"), row.pop("split"))
    flags = tuple(json.loads(row.pop("flags")))
    return Listed(**{**row, "state": RevisionState(row["state"])}, name=name, flags=flags)


def _with_more(database: Database, found: Sequence[Listed]) -> tuple[Listed, ...]:
    """Return the lines with who sent each series last, and what became of its volumes."""
    if not found:
        return ()
    fed = database.execute(
        "SELECT fed.series_id, CASE WHEN a.calling_ae <> '' THEN a.calling_ae ELSE a.door END"
        " FROM association_series AS fed JOIN associations AS a ON a.id = fed.association_id"
        " WHERE fed.series_id IN (SELECT value FROM json_each(?)) ORDER BY a.id",
        (json.dumps([line.id for line in found]),),
    )
    # The latest sender stays.
    senders: dict[int, str] = dict(fed.fetchall())
    volumes: dict[int, list[tuple[str, str]]] = {}
    for revision_id, status, lungs in database.execute(
        "SELECT revision_id, status, lungs FROM volumes WHERE revision_id IN (SELECT value FROM json_each(?))"
        " ORDER BY revision_id, volume",
        (json.dumps([line.revision_id for line in found]),),
    ):
        volumes.setdefault(revision_id, []).append((status, lungs))
    return tuple(
        replace(
            line,
            sender=senders.get(line.id, ""),
            volumes=tuple(status for status, _ in volumes.get(line.revision_id, ())),
            lungs=tuple(lungs for _, lungs in volumes.get(line.revision_id, ())),
        )
        for line in found
    )
