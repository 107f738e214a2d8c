"""What retention deletes, would delete, and why it does not: `ctnode retention`."""

from __future__ import annotations

import time
from dataclasses import asdict

import click

from ctnode.archive.database import Database
from ctnode.archive.layout import series_name
from ctnode.archive.timeline import iso
from ctnode.cli.show import Settings, as_json, pairs, print_json, print_table
from ctnode.config import Retention
from ctnode.flow.retaining import plan_all


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would go now, and why the rest stays.")
@as_json
@click.pass_obj
def retention(settings: Settings, dry_run: bool, json_wanted: bool) -> None:
    """Show the rules of retention and what they have deleted; deletes nothing itself, the keeper does."""
    config, layout, database = settings.reading()
    if not dry_run:
        _show(database, config.retention, json_wanted=json_wanted)
        return
    plans = plan_all(database, layout, config.retention, time.time())
    going = [one for plan in plans for one in plan.going]
    staying = [one for plan in plans for one in plan.staying]
    if json_wanted:
        print_json(
            {
                "going": [{**asdict(one.unit), "rule": one.rule} for one in going],
                "staying": [{**asdict(one.unit), "why": one.why} for one in staying],
            }
        )
        return
    rows = [("goes", one.unit, one.rule) for one in going] + [("stays", one.unit, one.why) for one in staying]
    print_table(
        ("", "what", "series", "files", "MB", "last", "why"),
        [
            (word, unit.kind, unit.name, unit.objects, f"{unit.bytes / 1e6:.1f}", iso(unit.settled_at), why)
            for word, unit, why in rows
        ],
        empty="nothing is there",
    )
    click.echo(
        f"{len(going)} would go, {sum(one.unit.bytes for one in going) / 1e6:.1f} MB; {len(staying)} stay"
        + ("" if config.retention.is_on else "; retention is off")
    )


def _show(database: Database, rules: Retention, *, json_wanted: bool) -> None:
    counters = database.counters()
    counted = {
        "images deleted": counters.get("retention.originals", 0),
        "results deleted": counters.get("retention.results", 0),
        "bytes deleted": counters.get("retention.bytes", 0),
    }
    going = database.rows(
        "SELECT series.uid, series.split, removals.revision_id, removals.rule, removals.began_at, removals.objects"
        " FROM removals JOIN series ON series.id = removals.series_id WHERE removals.ended_at IS NULL"
    )
    if json_wanted:
        print_json({"rules": rules.model_dump(), **counted, "going": going})
        return
    pairs({**rules.model_dump(), **counted})
    for row in going:
        what = "originals" if row["revision_id"] is None else "results"
        click.echo(f"going: {what} of {series_name(row['uid'], row['split'])}, {row['objects']} so far, {row['rule']}")


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    group.add_command(retention)
