"""What a person did at the command line goes into the audit trail; the command that reads the trail."""

from __future__ import annotations

from collections import deque

import click

from ctnode.archive.catalog import Series
from ctnode.cli.show import Settings, as_json, print_json, print_table
from ctnode.config import Config, require_root
from ctnode.ops import audit


def did_to_series(config: Config, what: str, series: Series) -> None:
    """Write down that the operator did something to a series."""
    record = audit.Record(
        audit.Event.INSTANCES_ACCESSED, audit.Action.UPDATE, audit.operator(), what,
        studies=(series.study,), series=(series.uid,),
    )  # fmt: skip
    audit.write(config.root, record, enabled=config.audit.enabled)


def did(
    config: Config,
    what: str,
    *,
    event: audit.Event = audit.Event.APPLICATION_ACTIVITY,
    action: audit.Action = audit.Action.EXECUTE,
    target: str = "",
    reference: str = "",
    instances: int | None = None,
) -> None:
    """Write down that the operator did something else."""
    record = audit.Record(
        event, action, audit.operator(), what, target=target, reference=reference, instances=instances
    )
    audit.write(config.root, record, enabled=config.audit.enabled)


@click.group("audit")
def audit_group() -> None:
    """Look at the audit trail: who did, sent, exported or erased what."""


@audit_group.command("list")
@click.option("--limit", default=50, show_default=True, help="At most so many, the newest.")
@as_json
@click.pass_obj
def list_trail(settings: Settings, limit: int, json_wanted: bool) -> None:
    """List entries of the trail, oldest first."""
    config = settings.config()
    require_root(config)
    entries = deque(audit.read(config.root), maxlen=limit)
    if json_wanted:
        print_json(list(entries))
        return
    print_table(
        ("at", "event", "who", "what", "outcome", "target", "series", "instances"),
        [
            (
                entry["at"], entry["event"], entry["who"], entry["what"], entry["outcome"], entry.get("target", ""),
                " ".join(entry.get("series", ())), entry.get("instances", ""),
            )
            for entry in entries
        ],
        empty="nothing was written down",
    )  # fmt: skip


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    group.add_command(audit_group)
