"""Commands about files: process without a node, import into one, send to a destination."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ctnode.archive import catalog, lanes, outbox, revisions, tombstones
from ctnode.archive.database import Database
from ctnode.archive.layout import Layout, is_strict_uid, parse_series_name
from ctnode.cli.show import Settings, act_as_owner, as_json
from ctnode.cli.steps import Steps
from ctnode.cli.trail import did, did_to_series
from ctnode.config import Config, Target
from ctnode.ops import audit
from ctnode.words import DeliveryState, ExitCode, NotFound, VolumeReport, VolumeStatus, WrongState

if TYPE_CHECKING:
    from ctnode.flow.offline import Progress

SEND_WAIT_S = 60.0
SKIPPED_SHOWN = 10

_paths = click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))


@click.command()
@_paths
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the results.")
@click.option(
    "--set",
    "words",
    multiple=True,
    metavar="KEY=VALUE",
    help="A key of the configuration for this run, such as pipeline.spacing_mm=keep or outputs.png16=true.",
)
@as_json
@click.pass_obj
def process(settings: Settings, paths: tuple[Path, ...], out: Path, words: tuple[str, ...], json_wanted: bool) -> None:
    """Turn DICOM files, folders or zips into volumes, lungs and pictures; needs no node."""
    from ctnode.flow.workshop import Workshop

    config = settings.load(words).config
    reports: list[VolumeReport] = []
    # The workshop first: it starts while everything else is still imported.
    with Workshop(config.worker, config.outputs) as workshop, _Bar(is_quiet=json_wanted) as bar:
        from ctnode.flow.offline import process as process_offline

        for report in process_offline(paths, out, config, bar.note, workshop):
            reports.append(report)
            click.echo(json.dumps(report.as_json()) if json_wanted else _line(report))
    for skipped in [] if json_wanted else bar.skipped[:SKIPPED_SHOWN]:
        click.echo(f"skipped {skipped}", err=True)
    if len(bar.skipped) > SKIPPED_SHOWN and not json_wanted:
        click.echo(f"and {len(bar.skipped) - SKIPPED_SHOWN} more files skipped", err=True)
    if not reports:
        raise NotFound("no DICOM image found", hint="name files, folders or zips that hold CT images")
    refused = any(report.status is VolumeStatus.REFUSED for report in reports)
    raise click.exceptions.Exit(ExitCode.FINDINGS if refused else ExitCode.OK)


class _Bar(Steps):
    """How far ``process`` is, and what it left aside."""

    def __init__(self, *, is_quiet: bool) -> None:
        super().__init__("process", "series", is_quiet=is_quiet)
        self.skipped: list[str] = []

    def note(self, progress: Progress) -> None:
        """Show one step of the work."""
        if progress.phase == "skipped":
            self.skipped.append(progress.label)
        elif progress.phase == "read":
            self.at(0, None, f"read {progress.done} files")
        else:
            self.at(progress.done, progress.total or None, progress.label)


def _line(report: VolumeReport) -> str:
    lines = [
        report.series,
        f"    volume {report.status}, lungs {report.lungs}, {sum(report.seconds.values()):.1f} s",
        f"    {report.directory}",
        *(f"    lungs: {reason}" for reason in report.reasons),
        *(f"    {issue.severity} {issue.code}: {issue.action}" for issue in report.issues),
    ]
    return "\n".join(lines)


@click.command("import")
@_paths
@as_json
@click.pass_obj
def import_files(settings: Settings, paths: tuple[Path, ...], json_wanted: bool) -> None:
    """Bring DICOM files, folders or zips into the node, as if they had been sent; the files stay where they are."""
    from ctnode.flow.importing import Outcome, import_paths

    config = settings.config()
    act_as_owner(config.root)
    layout = Layout(config.root, config.results)
    layout.create()
    counts = dict.fromkeys(Outcome, 0)
    with Steps("import", "files", is_quiet=json_wanted) as steps:
        for imported in import_paths(layout, paths, door="import"):
            counts[imported.outcome] += 1
            steps.at(sum(counts.values()))
            if json_wanted:
                record = {"file": imported.name, "outcome": str(imported.outcome), "reason": imported.reason}
                click.echo(json.dumps(record))
            elif imported.outcome is Outcome.REFUSED:
                click.echo(f"refused {imported.name}: {imported.reason}", err=True)
    if any(counts.values()):
        taken = sum(counts.values()) - counts[Outcome.REFUSED]
        did(config, "import", event=audit.Event.IMPORT, action=audit.Action.CREATE, instances=taken)
    if not json_wanted:
        click.echo(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    raise click.exceptions.Exit(ExitCode.FINDINGS if counts[Outcome.REFUSED] else ExitCode.OK)


@click.command()
@click.argument("what")
@click.option("--to", "name", required=True, help="Name of a [[targets]] entry.")
@click.option("--study", help="StudyInstanceUID, where several studies hold the series.")
@click.option("--originals", is_flag=True, help="The images of the series, and not its results.")
@click.pass_obj
def send(settings: Settings, what: str, name: str, study: str | None, originals: bool) -> None:
    """Send to a target: WHAT is a SeriesInstanceUID (its results, recorded and tried again) or a file or folder."""
    config = settings.config()
    target = next((target for target in config.targets if target.name == name), None)
    if target is None:
        known = ", ".join(target.name for target in config.targets) or "none is configured"
        raise NotFound(f"no target {name}", hint=f"known: {known}")
    is_series = is_strict_uid(parse_series_name(what)[0]) and not Path(what).exists()
    if is_series:
        ok = _send_series(settings, target, what, study, originals=originals)
    else:
        ok = _send_files(config, target, Path(what))
    raise click.exceptions.Exit(ExitCode.OK if ok else ExitCode.FINDINGS)


def _send_files(config: Config, target: Target, path: Path) -> bool:
    from ctnode.flow.carrier import carrier_of
    from ctnode.flow.outgoing import is_rewritten
    from ctnode.wire.sender import Outcome

    if not path.exists():
        raise NotFound(f"no file, folder or series {path}")
    if is_rewritten(target):
        raise WrongState(
            f"{target.name} gets only what is de-identified",
            hint="send the series by its UID: it is de-identified on its way",
        )
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    carrier = carrier_of(config, target.name)
    assert carrier is not None
    base = path if path.is_dir() else path.parent
    ok, sent = True, 0
    for result in carrier.send({file: str(file.relative_to(base)) for file in files}):
        status = "" if result.status is None else f" status {result.status:04X}H"
        click.echo(f"{result.path}: {result.outcome}{status} {result.comment}".rstrip())
        ok = ok and result.outcome is Outcome.SENT
        sent += result.outcome is Outcome.SENT
    if sent and (config.root / "ctnode.db").is_file():
        record = audit.Record(
            audit.Event.EXPORT, audit.Action.READ, audit.operator(), "send", target=target.name, instances=sent
        )
        audit.note(config.root, record, enabled=config.audit.enabled)
    return ok


def _send_series(settings: Settings, target: Target, uid: str, study: str | None, *, originals: bool) -> bool:
    """Owe the results or images of a series once more, and wait a little for the deliverer."""
    from ctnode.flow.dispatch import current_images
    from ctnode.flow.parcels import parcels_of

    config, layout, database = settings.writing()
    record = catalog.find(database, uid, study=study)
    revision = revisions.newest(database, record.id)
    if originals:
        images = current_images(database, revision)
        parcels = [outbox.Parcel(target.name, outbox.ORIGINAL, path, digest) for path, digest in images]
        if not parcels:
            raise WrongState(f"revision {revision.n} of {record.name} is not complete yet")
    else:
        folder = layout.result_directory(record.study, record.uid, record.split, revision.n)
        parcels = parcels_of([target], [file.name for file in folder.glob("*")], folder, folder, layout.results)
        if not parcels:
            kinds = f"revision {revision.n} of {record.name} has no results of the kinds that {target.name} takes"
            raise WrongState(kinds)
    with database.immediate():
        tombstones.require_unmoved(database, record.id)
        outbox.post(database, revision.id, parcels, again=True)
        lanes.hurry(database, target.name)
    did_to_series(config, f"send to {target.name}", record)
    return _await_deliveries(database, layout, record.id, target.name)


def _await_deliveries(database: Database, layout: Layout, series_id: int, target: str) -> bool:
    from ctnode.ops.durable import is_locked

    deadline = time.monotonic() + SEND_WAIT_S
    has_deliverer = is_locked(layout.run / "deliver.lock")
    with Steps("send", "objects") as steps:
        while True:
            owed = [delivery for delivery in outbox.of_series(database, series_id) if delivery.target == target]
            moving = [d for d in owed if d.state in {DeliveryState.PENDING, DeliveryState.SENDING}]
            if not moving or not has_deliverer or time.monotonic() > deadline:
                break
            steps.at(len(owed) - len(moving), len(owed), target)
            time.sleep(0.1)
    for delivery in owed:
        click.echo(f"{delivery.path}: {delivery.state} {delivery.comment}".rstrip())
    if moving and not has_deliverer:
        click.echo("queued; no deliverer runs at the moment")
    return all(delivery.state in {DeliveryState.SENT, DeliveryState.CONFIRMED} for delivery in owed)


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    for command in (process, import_files, send):
        group.add_command(command)
