"""Do the files still hold what was acknowledged? `ctnode verify`."""

from __future__ import annotations

from dataclasses import asdict

import click

from ctnode.archive.scrub import Pace, scrub
from ctnode.cli.show import Settings, as_json, print_json
from ctnode.cli.steps import Steps
from ctnode.words import ExitCode


@click.command()
@click.option("--rate", "rate_mb_s", default=50.0, show_default=True, type=click.FloatRange(min=0),
              help="Megabytes a second that are read at most; 0: as fast as the disk is.")  # fmt: skip
@as_json
@click.pass_obj
def verify(settings: Settings, rate_mb_s: float, json_wanted: bool) -> None:
    """Read every stored image and compare it with its checksum; exit code 1 if one differs. Changes nothing."""
    _, layout, database = settings.reading()
    faults = []
    files = size = 0
    with Steps("verify", "files", is_quiet=json_wanted) as steps:
        total = database.counters().get("instances", 0)
        for one in scrub(database, layout, Pace(rate_mb_s * 1e6)):
            files += 1
            size += one.bytes
            steps.at(files, max(files, total), f"{size / 1e6:.0f} MB")
            if one.fault:
                faults.append(one)
                if not json_wanted:
                    click.echo(f"{one.path}: {one.fault}")
    if json_wanted:
        print_json({"files": files, "bytes": size, "faults": [asdict(fault) for fault in faults]})
    else:
        click.echo(f"{files} files, {size / 1e6:.1f} MB read, {len(faults)} differ")
    raise click.exceptions.Exit(ExitCode.FINDINGS if faults else ExitCode.OK)


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    group.add_command(verify)
