"""Which routes would a series take, and why: `ctnode route test`."""

from __future__ import annotations

from pathlib import Path

import click

from ctnode.archive import catalog, findings, revisions
from ctnode.archive.database import Database
from ctnode.archive.layout import Layout
from ctnode.cli.show import Settings, as_json, print_json
from ctnode.config import Config
from ctnode.config.when import Facts
from ctnode.flow import facts
from ctnode.flow.dispatch import decide_finished, decide_study
from ctnode.flow.routes import NO_ROUTE, Decision, decide
from ctnode.words import ExitCode, NotFound, RevisionState


@click.group("route")
def route_group() -> None:
    """Look at [[routes]]."""


@route_group.command("test")
@click.argument("what")
@click.option("--study", help="StudyInstanceUID, where several studies hold the series.")
@as_json
@click.pass_obj
def test_route(settings: Settings, what: str, study: str | None, json_wanted: bool) -> None:
    """Show for each route whether it fires and which part of its condition decided.

    WHAT is a DICOM file or folder, of which only the attributes are known, or the UID of a series that the node holds.
    Exit code 1 if no route fires. Nothing is queued or sent.
    """
    config = settings.config()
    if not config.routes:
        raise NotFound("no [[routes]] are configured", hint="every CT series is computed and sent as [[targets]] say")
    path = Path(what)
    decision = _of_path(config, path) if path.exists() else _of_series(settings, what, study)
    if json_wanted:
        print_json(
            [
                {
                    "route": step.route.name,
                    "level": step.route.level,
                    "outcome": step.outcome.name,
                    "decided_by": list(step.because),
                    "run": step.route.run,
                    "send": list(step.route.send),
                    "to": list(step.route.to),
                }
                for step in decision.steps
            ]
        )
    for step in [] if json_wanted else decision.steps:
        click.echo(f"{step.route.name}: {step.outcome}")
        for part in step.because:
            click.echo(f"    {part}")
    fires = bool(decision.fired or decision.open)
    if not fires and not json_wanted:
        click.echo(f"{NO_ROUTE}: the series would be KEPT")
    raise click.exceptions.Exit(ExitCode.OK if fires else ExitCode.FINDINGS)


def _of_path(config: Config, path: Path) -> Decision:
    file = path if path.is_file() else next((one for one in sorted(path.rglob("*")) if one.is_file()), None)
    if file is None:
        raise NotFound(f"no file below {path}")
    known = Facts(facts.of_file(file, config.routes))
    series = decide(config.routes, config.routing, [known], results_to_come=True)
    study = decide(config.routes, config.routing, [known], results_to_come=False, level="study")
    return Decision((*series.steps, *study.steps))


def _of_series(settings: Settings, uid: str, study: str | None) -> Decision:
    config, layout, database = settings.reading()
    series = catalog.find(database, uid, study=study)
    return _decision(config, layout, database, series)


def _decision(config: Config, layout: Layout, database: Database, series: catalog.Series) -> Decision:
    revision = revisions.newest(database, series.id)
    if revision.state is RevisionState.DONE:
        folder = layout.result_directory(series.study, series.uid, series.split, revision.n)
        reports = [
            {
                "status": volume.status,
                "lungs": volume.lungs,
                "issues": [{"code": issue.code} for issue in volume.issues],
            }
            for volume in findings.of_revision(database, revision.id)
        ]
        return decide_finished(database, layout, config, revision, reports, folder)
    known = facts.of_series(database, layout, revision, config.routes)
    own = decide(config.routes, config.routing, [known], results_to_come=bool(series.ct_instances))
    return Decision((*own.steps, *decide_study(database, layout, config, series.id).steps))


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    group.add_command(route_group)
