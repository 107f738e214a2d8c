"""Forgetting: `ctnode forget`."""

from __future__ import annotations

import os
import pwd
import time

import click

from ctnode.archive import erasure
from ctnode.archive.database import Database
from ctnode.archive.doorbell import Doorbell
from ctnode.archive.layout import Layout
from ctnode.cli.show import Settings, as_json, as_times, print_json, print_table
from ctnode.cli.steps import Steps
from ctnode.cli.trail import did
from ctnode.flow import forgetting
from ctnode.ops import audit
from ctnode.ops.durable import is_locked, lock
from ctnode.words import ExitCode, Unavailable

WAIT_S = 900.0
TRY_AGAIN_S = 0.2


@click.command()
@click.argument("uid", required=False)
@click.option("--patient", help="Patient ID, instead of a UID: everything of this patient.")
@click.option("--issuer", default="", help="Issuer of the Patient ID; without it, the ID of any issuer.")
@click.option("--study", help="StudyInstanceUID, where several studies hold the series.")
@click.option("--reason", help="Why; it is kept for ever, so no patient's name.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--list", "listed", is_flag=True, help="Show what was forgotten so far.")
@as_json
@click.pass_obj
def forget(
    settings: Settings, uid: str | None, patient: str | None, issuer: str, study: str | None, reason: str | None,
    yes: bool, listed: bool, json_wanted: bool,
) -> None:  # fmt: skip
    """Erase a series or study by UID, or a patient, everywhere the node keeps it; this cannot be undone."""
    if listed:
        _list(settings, json_wanted=json_wanted)
        return
    if (uid is None) == (patient is None):
        raise click.UsageError("name a UID, or --patient ID")
    if not (reason or "").strip():
        raise click.UsageError("give a --reason")
    assert reason is not None
    named = [word for word in (uid, patient) if word]
    if any(word.lower() in reason.lower() for word in named):
        raise click.UsageError("the reason is kept for ever: do not name in it what is to be forgotten")
    who = _who()
    config, layout, database = settings.writing()
    if uid is not None:
        series_ids = forgetting.find_uid(database, uid, study)
    else:
        assert patient is not None
        series_ids = forgetting.find_patient(database, layout, patient, issuer)
    chosen = forgetting.survey(database, layout, series_ids)
    words = f"{len(series_ids)} series of {chosen.studies} studies, {chosen.images} images, {chosen.results} results"
    if not yes:
        click.confirm(f"Erase {words}? This cannot be undone.", abort=True)
    request = _ask(database, layout, forgetting.order(chosen, who, reason.strip()))
    with Steps("forget", "seconds", is_quiet=json_wanted) as steps:
        _await(database, layout, request, steps)
    # Without what it was: that is forgotten.
    event, action = audit.Event.STUDY_DELETED, audit.Action.DELETE
    did(config, "forget", event=event, action=action, instances=chosen.images)
    left = list(forgetting.unreached(config, database, layout, chosen))
    if json_wanted:
        print_json({**_counted(chosen), "not_reached": left})
    else:
        click.echo(f"forgotten: {words}")
        click.echo("not reached:")
        for line in left:
            click.echo(f"  {line}")


def _counted(chosen: forgetting.Chosen) -> dict[str, int]:
    return {
        "series": len(chosen.series_ids),
        "studies": chosen.studies,
        "images": chosen.images,
        "results": chosen.results,
    }


def _who() -> str:
    """Return the name of the user who asks; behind sudo, of the one before it."""
    before = os.environ.get("SUDO_USER")
    if before:
        return before
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"


def _ask(database: Database, layout: Layout, argument: str) -> int:
    with database.immediate():
        request = database.insert(
            "INSERT INTO requests (kind, argument, asked_at) VALUES (?, ?, ?)",
            (forgetting.REQUEST, argument, time.time()),
        )
    Doorbell(layout.run).ring()
    return request


def _await(database: Database, layout: Layout, request: int, steps: Steps) -> None:
    """Let the keeper do it, or do it here where none runs."""
    began = time.monotonic()
    deadline = began + WAIT_S
    is_ours = False
    while time.monotonic() < deadline:
        if not is_ours and not is_locked(layout.run / "keep.lock"):
            lock(layout.run / "keep.lock", owner="keeper")
            is_ours = True
        (ended_at,) = database.execute("SELECT ended_at FROM requests WHERE id = ?", (request,)).fetchone()
        if ended_at is not None or (is_ours and forgetting.carry_out(database, layout, request)):
            return
        steps.at(round(time.monotonic() - began), None, "it is erased" if is_ours else "the keeper erases")
        time.sleep(TRY_AGAIN_S)
    raise Unavailable(
        "a part of it is still on its way to a destination or being asked for",
        hint="the keeper goes on with it by itself; `ctnode forget --list` shows when it is done",
    )


def _list(settings: Settings, *, json_wanted: bool) -> None:
    _, _, database = settings.reading()
    found = [as_times(entry) for entry in erasure.entries(database)]
    if json_wanted:
        print_json(found)
        return
    print_table(
        ("at", "who", "reason", "studies", "series", "images", "results", "deliveries"),
        [tuple(entry.values()) for entry in found],
        empty="nothing was forgotten",
    )
    raise click.exceptions.Exit(ExitCode.OK)


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    group.add_command(forget)
