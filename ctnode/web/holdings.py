"""What the node can show of a study: the originals that the index knows, and the objects in published results.

Each statement asks the index for a page by key, so that it stays within milliseconds at any size. A split of a series
is named ``UID~n``, as everywhere in the node: two patients who share a UID are never shown as one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from ctnode.archive.database import Database
from ctnode.archive.header import SERIES, SOP_CLASS, SOP_INSTANCE, read_meta
from ctnode.archive.layout import Layout, parse_series_name, series_name
from ctnode.archive.values import read_values
from ctnode.words import BadInstance

_MODALITY: Final = 0x00080060
_PAGE: Final = 500
_AHEAD: Final = 50
_META_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Study:
    """A study by its place in the index and its UID."""

    id: int
    uid: str


@dataclass(frozen=True, slots=True)
class Instance:
    """One object that can be given out."""

    study: str
    series: str
    sop_instance: str
    sop_class: str
    transfer_syntax: str
    path: Path


@dataclass(frozen=True, slots=True)
class Series:
    """A series that can be shown.

    Parameters
    ----------
    study, name
        Study Instance UID, and ``UID`` or ``UID~n``.
    modality, count
        Modality, and how many instances there are.
    row
        Its row in the index; that of the source for a series of results.
    first
        The instance whose header speaks for it, where its study was asked.
    results
        Its objects if it is one of results, else empty.
    """

    study: str
    name: str
    modality: str
    count: int
    row: int
    first: Instance | None = None
    results: tuple[Instance, ...] = ()


@dataclass(frozen=True, slots=True)
class _SeriesRow:
    """A row of the index with the newest revision that has results, and the row of its first instance."""

    row: dict[str, Any]
    published: int | None
    first: dict[str, Any] | None


class Holdings:
    """The studies of one node, as one connection sees them."""

    def __init__(self, database: Database, layout: Layout) -> None:
        self._database = database
        self._layout = layout
        self._ahead: dict[int, list[_SeriesRow]] = {}

    def studies(self, *, skip: int = 0) -> Iterator[Study]:
        """Yield all studies, newest first; ``skip`` of them are passed over."""
        last = 1 << 62
        while True:
            rows = self._database.rows(
                "SELECT id, uid FROM studies WHERE id < ? ORDER BY id DESC LIMIT ? OFFSET ?", (last, _PAGE, skip)
            )
            found = [Study(**row) for row in rows]
            for start in range(0, len(found), _AHEAD):
                some = found[start : start + _AHEAD]
                self._read_ahead(some)
                yield from some
            if len(rows) < _PAGE:
                return
            last, skip = rows[-1]["id"], 0

    def _read_ahead(self, studies: Sequence[Study]) -> None:
        """Read what the index has of some studies and their series, a bounded piece under one lock."""
        rows = self._database.rows(
            "SELECT study_id, id, uid, split, modality, instances, ct_instances, flags FROM series"
            " WHERE study_id IN (SELECT value FROM json_each(?)) ORDER BY id",
            (json.dumps([study.id for study in studies]),),
        )
        self._ahead = {study.id: [] for study in studies}
        for start in range(0, len(rows), _PAGE):
            some = rows[start : start + _PAGE]
            ids = json.dumps([row["id"] for row in some])
            with self._database.at_once():
                published, firsts = self._published(ids), self._firsts(ids)
            for row in some:
                found = _SeriesRow(row, published.get(row["id"]), firsts.get(row["id"]))
                self._ahead[row["study_id"]].append(found)

    def _published(self, ids: str) -> dict[int, int]:
        """Return the newest revision with results of each series that has one."""
        found = self._database.execute(
            "SELECT series_id, max(n) FROM revisions WHERE series_id IN (SELECT value FROM json_each(?))"
            " AND state = 'DONE' GROUP BY series_id",
            (ids,),
        )
        return dict(found.fetchall())

    def _firsts(self, ids: str) -> dict[int, dict[str, Any]]:
        """Return the first instance of each series, whose header speaks for it."""
        rows = self._database.rows(
            "SELECT i.series_id, i.sop_instance, i.sop_class, i.transfer_syntax, i.path FROM json_each(?)"
            " JOIN instances AS i ON i.id = (SELECT f.id FROM instances AS f"
            " WHERE f.series_id = json_each.value AND f.is_current ORDER BY f.sop_instance LIMIT 1)",
            (ids,),
        )
        return {row["series_id"]: row for row in rows}

    def study(self, uid: str) -> Study | None:
        """Return a study by its UID."""
        row = self._database.row("SELECT id, uid FROM studies WHERE uid = ?", (uid,))
        return Study(**row) if row else None

    def series(self, study: Study) -> list[Series]:
        """Return the series of a study, each followed by those of its published results."""
        if study.id not in self._ahead:
            self._read_ahead([study])
        rows = self._ahead[study.id]
        known = {one.row["uid"] for one in rows}
        found = []
        for one in rows:
            row = one.row
            name = series_name(row["uid"], row["split"])
            if row["instances"]:
                made = Series(study.uid, name, row["modality"], self._count(row), row["id"])
                found.append(replace(made, first=self._instance(made, one.first) if one.first else None))
            if row["ct_instances"] and one.published is not None:
                # Results that came back from elsewhere are in the index already.
                found += [result for result in self._results(study, row, one.published) if result.name not in known]
        return found

    def one_series(self, study_uid: str, name: str) -> Series | None:
        """Return a series of a study by its name."""
        study = self.study(study_uid)
        if study is None:
            return None
        uid, split = parse_series_name(name)
        row = self._database.row(
            "SELECT id, uid, split, modality, instances, flags FROM series"
            " WHERE study_id = ? AND uid = ? AND split = ?",
            (study.id, uid, split),
        )
        if row is not None:
            count = self._count(row)
            return Series(study_uid, name, row["modality"], count, row["id"]) if count else None
        return next((one for one in self.series(study) if one.results and one.name == name), None)

    def instances(self, series: Series) -> Iterator[Instance]:
        """Yield the instances of a series, the current bytes of each, in the order of their UIDs."""
        if series.results:
            yield from series.results
            return
        last = ""
        while True:
            rows = self._database.rows(
                "SELECT sop_instance, sop_class, transfer_syntax, path, is_current FROM instances"
                " WHERE series_id = ? AND sop_instance > ? ORDER BY sop_instance LIMIT ?",
                (series.row, last, _PAGE),
            )
            # A page may end inside the versions of one instance; its current one may stand on the next.
            whole = (
                rows if len(rows) < _PAGE else [row for row in rows if row["sop_instance"] != rows[-1]["sop_instance"]]
            )
            whole = whole or rows
            yield from (self._instance(series, row) for row in whole if row["is_current"])
            if len(rows) < _PAGE:
                return
            last = whole[-1]["sop_instance"]

    def instance(self, series: Series, sop_instance: str) -> Instance | None:
        """Return one instance of a series."""
        if series.results:
            return next((one for one in series.results if one.sop_instance == sop_instance), None)
        row = self._database.row(
            "SELECT sop_instance, sop_class, transfer_syntax, path FROM instances"
            " WHERE series_id = ? AND sop_instance = ? AND is_current",
            (series.row, sop_instance),
        )
        return self._instance(series, row) if row else None

    def _instance(self, series: Series, row: dict[str, str]) -> Instance:
        path = self._layout.store / row["path"]
        return Instance(series.study, series.name, row["sop_instance"], row["sop_class"], row["transfer_syntax"], path)

    def _count(self, row: dict[str, Any]) -> int:
        """Return how many instances a series has; the counter of the index also counts older bytes of the same UID."""
        if "CONFLICT" not in row["flags"]:
            return int(row["instances"])
        current = self._database.row(
            "SELECT count(*) AS n FROM instances WHERE series_id = ? AND is_current", (row["id"],)
        )
        return int(current["n"]) if current else 0

    def _results(self, study: Study, row: dict[str, Any], newest: int) -> list[Series]:
        """Return the series in the newest published folder of a series, one for each of its series UIDs."""
        folder = self._layout.result_directory(study.uid, row["uid"], row["split"], newest)
        found: dict[str, list[tuple[str, Instance]]] = {}
        for path in sorted(folder.glob("*.dcm")):
            try:
                modality, instance = _object(path, path.stat().st_mtime_ns)
            except (BadInstance, OSError):  # the folder is being replaced, or somebody else wrote into it
                continue
            found.setdefault(instance.series, []).append((modality, instance))
        return [
            Series(study.uid, name, objects[0][0], len(objects), row["id"], parts[0], parts)
            for name, objects in found.items()
            for parts in [tuple(one for _, one in objects)]
        ]


@lru_cache(maxsize=8192)
def _object(path: Path, _changed: int) -> tuple[str, Instance]:
    """Return modality and identity of an object that we published."""
    with path.open("rb") as file:
        meta = read_meta(file.read(_META_BYTES))
    if meta is None:
        raise BadInstance("the file has no preamble")
    study = 0x0020000D
    wanted = {SOP_CLASS: "UI", SOP_INSTANCE: "UI", study: "UI", SERIES: "UI", _MODALITY: "CS"}
    values = {tag: str(value[0]) for tag, value in read_values(path, wanted).items()}
    if not {SERIES, SOP_INSTANCE} <= values.keys():
        raise BadInstance("the object has no UIDs")
    return values.get(_MODALITY, ""), Instance(
        values.get(study, ""),
        values[SERIES],
        values[SOP_INSTANCE],
        values.get(SOP_CLASS, ""),
        meta.transfer_syntax,
        path,
    )
