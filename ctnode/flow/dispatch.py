"""The step out of COMPLETE: each revision is queued, kept with its reason, or waits for its study; routes decide.

Without [[routes]] every CT series is queued, and what targets ask for is sent. With them a series goes where its
routes say; one that none takes is KEPT with the reason "no route", never dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import structlog

from ctnode.archive import catalog, outbox, revisions, timeline
from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.archive.outbox import Parcel
from ctnode.archive.revisions import Revision
from ctnode.config import ORIGINALS, Config, Route
from ctnode.config.when import Facts
from ctnode.flow import facts
from ctnode.flow.parcels import parcels_of
from ctnode.flow.routes import NO_ROUTE, PRIORITIES, Decision, decide
from ctnode.ops import log
from ctnode.words import RevisionEvent, RevisionState, StudyState

_SETTLED: Final = frozenset({RevisionState.KEPT, RevisionState.DONE, RevisionState.QUEUED, RevisionState.PROCESSING})
ROUTED: Final = "nothing to run"


class Dispatcher:
    """Starts what is complete; used by the keeper alone."""

    def __init__(self, database: Database, layout: Layout) -> None:
        self.database = database
        self.layout = layout
        # Revisions that wait for their study, with how far it was when they were looked at, so that their files are
        # read only when that has changed.
        self._waiting: dict[int, float] = {}
        # Studies that fired before they were complete.
        self._early: set[int] = set()
        self._log: structlog.typing.FilteringBoundLogger = log.get()

    def start_complete(self, config: Config) -> None:
        """Queue or keep each complete revision that nothing holds back, and route the studies that are complete."""
        for revision in revisions.startable(self.database):
            series = catalog.by_id(self.database, revision.series_id)
            if config.routes and not series.own_instances:
                self._route(config, revision, series)
            else:
                self._start(revision, reason_to_keep(series), Decision(()), (), "")
        self._route_studies(config)

    def forget_waiting(self) -> None:
        """Look at every revision anew, as after a change of the configuration."""
        self._waiting.clear()

    def _route(self, config: Config, revision: Revision, series: catalog.Series) -> None:
        has_study_routes = any(route.level == "study" for route in config.routes)
        study = _study(self.database, series.id) if has_study_routes else None
        is_open = study is not None and study.state is not StudyState.COMPLETE
        if study is not None and is_open and self._waiting.get(revision.id) == study.newest_verdict_at:
            return
        known = facts.of_series(self.database, self.layout, revision, config.routes)
        decision = decide(config.routes, config.routing, [known], results_to_come=bool(series.ct_instances))
        if study is not None:
            of_study = decide_study(self.database, self.layout, config, series.id)
            decision = Decision((*decision.steps, *of_study.steps))
            if is_open and of_study.fired:
                self._early.add(study.id)
            if is_open and not decision.fired and not decision.open:
                self._waiting[revision.id] = study.newest_verdict_at
                return
        self._waiting.pop(revision.id, None)
        reason = reason_to_keep(series) if series.own_instances else ""
        if not decision.fired and not decision.open:
            reason = f"{NO_ROUTE}: {decision.words()}"
        elif not decision.runs:
            reason = f"{ROUTED}: {decision.words()}"
        elif not series.ct_instances:
            reason = f"{reason_to_keep(series)}; {decision.words()}"
        parcels = originals_for(self.database, revision, decision.fired)
        self._start(revision, reason, decision, parcels, decision.words())

    def _start(
        self, revision: Revision, reason: str, decision: Decision, parcels: Sequence[Parcel], words: str
    ) -> None:
        with self.database.immediate():
            if words:
                timeline.note(self.database, revision.series_id, revision.n, "routes", words)
            if reason:
                revisions.keep(self.database, revision, reason)
            else:
                revisions.queue(self.database, revision, priority=decision.priority)
            if parcels:
                outbox.post(self.database, revision.id, parcels)

    def _route_studies(self, config: Config) -> None:
        rows = self.database.execute(
            "SELECT id FROM studies WHERE is_routed = 0 AND state = 'COMPLETE' ORDER BY id LIMIT 100"
        ).fetchall()
        for study_id in self._early - {row[0] for row in rows}:
            self._route_study(config, study_id)
        self._early.clear()
        for (study_id,) in rows:
            if any(route.level == "study" for route in config.routes):
                self._route_study(config, study_id)
            with self.database.immediate():
                self.database.execute("UPDATE studies SET is_routed = 1 WHERE id = ?", (study_id,))

    def _route_study(self, config: Config, study_id: int) -> None:
        """Owe what study routes want of the series that were started before the study was complete."""
        members = [row[0] for row in self.database.execute("SELECT id FROM series WHERE study_id = ?", (study_id,))]
        for series_id in members:
            revision = revisions.newest(self.database, series_id)
            series = catalog.by_id(self.database, series_id)
            if revision.state not in _SETTLED or series.own_instances or series.hold or series.deleted:
                continue
            decision = decide_study(self.database, self.layout, config, series_id)
            parcels = [*originals_for(self.database, revision, decision.fired)]
            if revision.state is RevisionState.DONE:
                folder = self.layout.result_directory(series.study, series.uid, series.split, revision.n)
                names = [file.name for file in folder.glob("*")]
                parcels += results_for(config, decision.fired, names, folder, folder, self.layout.results)
            is_left = series.reason.startswith((ROUTED, NO_ROUTE)) and bool(series.ct_instances)
            with self.database.immediate():
                if parcels:
                    outbox.post(self.database, revision.id, parcels)
                if revision.state is RevisionState.KEPT and decision.runs and is_left:
                    revisions.queue(self.database, revision, RevisionEvent.REQUEUE, priority=decision.priority)


def reason_to_keep(series: catalog.Series) -> str:
    """Return why nothing is to run for a series, or an empty text."""
    if series.own_instances:
        return "own result: made by ctnode, never processed"
    if not series.ct_instances:
        return f"not CT: no CT image object, modality {series.modality or 'unknown'}"
    return ""


@dataclass(frozen=True, slots=True)
class _Study:
    """The study of a series, and when the newest verdict was given in it."""

    id: int
    state: StudyState
    newest_verdict_at: float


def _study(database: Database, series_id: int) -> _Study:
    study_id, state, newest = database.execute(
        "SELECT studies.id, studies.state, coalesce(max(revisions.verdict_at), 0) FROM studies"
        " JOIN series ON series.study_id = studies.id JOIN revisions ON revisions.series_id = series.id"
        " WHERE studies.id = (SELECT study_id FROM series WHERE id = ?)",
        (series_id,),
    ).fetchone()
    return _Study(study_id, StudyState(state), newest)


def decide_study(database: Database, layout: Layout, config: Config, series_id: int) -> Decision:
    """Return what the study routes decide for the study of a series.

    While it is not complete only those count that name the series they require, and only series that are complete.
    """
    study = _study(database, series_id)
    is_complete = study.state is StudyState.COMPLETE
    routes = [route for route in config.routes if route.level == "study" and (is_complete or route.required)]
    if not routes:
        return Decision(())
    members = database.execute(
        "SELECT id FROM series WHERE study_id = ? AND own_instances = 0 AND NOT EXISTS (SELECT 1 FROM revisions"
        " WHERE revisions.series_id = series.id AND revisions.state = 'RECEIVING')",
        (study.id,),
    ).fetchall()
    known: list[Facts] = [
        facts.of_series(database, layout, revisions.newest(database, member), config.routes) for (member,) in members
    ]
    return decide(routes, config.routing, known, results_to_come=False, level="study")


def decide_finished(
    database: Database, layout: Layout, config: Config, revision: Revision, reports: Sequence[Mapping[str, Any]],
    folder: Path,
) -> Decision:  # fmt: skip
    """Return what all routes decide for a revision whose results lie in ``folder``."""
    file = folder / "measurements.json"
    measurements = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    known = facts.of_series(database, layout, revision, config.routes, reports, measurements)
    decision = decide(config.routes, config.routing, [known], results_to_come=False)
    if any(route.level == "study" for route in config.routes):
        of_study = decide_study(database, layout, config, revision.series_id)
        decision = Decision((*decision.steps, *of_study.steps))
    return decision


def originals_for(database: Database, revision: Revision, routes: Iterable[Route]) -> list[Parcel]:
    """Return the current instances of a revision for the targets of those routes that send originals."""
    wanted = [route for route in routes if ORIGINALS in route.send]
    if not wanted:
        return []
    rows = current_images(database, revision)
    return _each_once(
        Parcel(target, outbox.ORIGINAL, path, digest, PRIORITIES[route.priority])
        for route in wanted
        for target in route.to
        for path, digest in rows
    )


def current_images(database: Database, revision: Revision) -> list[tuple[str, str]]:
    """Return path and digest of the images of a revision, by number; of one that came twice only what counts."""
    return database.execute(
        "SELECT path, digest FROM instances WHERE series_id = ? AND is_current AND id IN (SELECT value FROM json_each("
        "(SELECT instances FROM revisions WHERE id = ?))) ORDER BY coalesce(instance_number, 1 << 40), id",
        (revision.series_id, revision.id),
    ).fetchall()


def results_for(
    config: Config, routes: Iterable[Route], outputs: Sequence[str], folder: Path, final: Path, results: Path
) -> list[Parcel]:
    """Return the results in ``folder``, which is or will be ``final``, for the targets of routes."""
    found: list[Parcel] = []
    for route in routes:
        kinds = tuple(kind for kind in route.send if kind != ORIGINALS)
        targets = [target.model_copy(update={"send": kinds}) for target in config.targets if target.name in route.to]
        owed = parcels_of(targets, outputs, folder, final, results)
        found += [replace(parcel, priority=PRIORITIES[route.priority]) for parcel in owed]
    return _each_once(found)


def _each_once(parcels: Iterable[Parcel]) -> list[Parcel]:
    """Return each object once a target, with the highest of its priorities, in the order of the first."""
    found: dict[tuple[str, str], Parcel] = {}
    for parcel in parcels:
        key = (parcel.target, parcel.path)
        before = found.get(key)
        found[key] = parcel if before is None else replace(before, priority=max(before.priority, parcel.priority))
    return list(found.values())
