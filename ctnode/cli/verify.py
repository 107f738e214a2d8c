"""Do the files still hold what was acknowledged and published? `ctnode verify`."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict
from typing import Final

import click

from ctnode.archive import verified
from ctnode.archive.scrub import Pace, Scrubbed, scrub
from ctnode.archive.scrub_results import scrub_results
from ctnode.cli.show import Settings, as_json, print_json
from ctnode.cli.steps import Steps
from ctnode.words import ExitCode

ALL: Final = "all"
READERS: Final = {"originals": scrub, "results": scrub_results}


@click.command()
@click.option("--rate", "rate_mb_s", default=50.0, show_default=True, type=click.FloatRange(min=0),
              help="Megabytes a second that are read at most; 0: as fast as the disk is.")  # fmt: skip
@click.option("--only", default=ALL, type=click.Choice([ALL, *verified.KINDS]), show_default=True,
              help="Which of them.")  # fmt: skip
@as_json
@click.pass_obj
def verify(settings: Settings, rate_mb_s: float, only: str, json_wanted: bool) -> None:
    """Read every stored image and published result and compare it with its checksum; exit code 1 if one differs.

    Changes nothing of them; `ctnode doctor` tells what the last one found.
    """
    _, layout, database = settings.reading()
    pace = Pace(rate_mb_s * 1e6)
    faults: list[Scrubbed] = []
    files = size = 0
    for kind in verified.KINDS:
        if only not in {ALL, kind}:
            continue
        count = read = 0
        wrong: list[Scrubbed] = []
        total = database.counters().get("instances", 0) if kind == "originals" else 0
        with Steps("verify", kind, is_quiet=json_wanted) as steps:
            for one in READERS[kind](database, layout, pace):
                count += 1
                read += one.bytes
                steps.at(count, max(count, total), f"{read / 1e6:.0f} MB")
                if one.fault:
                    wrong.append(one)
                    if not json_wanted:
                        click.echo(f"{one.path}: {one.fault}")
        # Who may only look can look all the same.
        with suppress(PermissionError):
            verified.note(layout, kind, time.time(), count, read, wrong)
        files, size, faults = files + count, size + read, [*faults, *wrong]
    if json_wanted:
        print_json({"files": files, "bytes": size, "faults": [asdict(fault) for fault in faults]})
    else:
        click.echo(f"{files} files, {size / 1e6:.1f} MB read, {len(faults)} differ")
    raise click.exceptions.Exit(ExitCode.FINDINGS if faults else ExitCode.OK)


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    group.add_command(verify)
