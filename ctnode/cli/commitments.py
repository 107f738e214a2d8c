"""Commands about storage commitment: what peers asked the node to vouch for, and whether they know the answer."""

from __future__ import annotations

from dataclasses import asdict

import click

from ctnode.archive import commitments
from ctnode.archive.commitments import Commitment
from ctnode.archive.timeline import iso
from ctnode.cli.show import Settings, as_json, as_times, print_json, print_table


@click.group("commitments")
def commitments_group() -> None:
    """Look at what peers asked the node to vouch for."""


@commitments_group.command("list")
@click.option("--limit", default=50, show_default=True, help="At most so many.")
@as_json
@click.pass_obj
def list_commitments(settings: Settings, limit: int, json_wanted: bool) -> None:
    """List storage commitment transactions, newest first."""
    _, _, database = settings.reading()
    found = commitments.listing(database, limit=limit)
    if json_wanted:
        print_json([as_times(asdict(one), ("asked_at", "due_at")) for one in found])
        return
    print_table(
        ("asked", "transaction", "from", "state", "instances", "failed", "tries", "comment"),
        [
            (
                iso(one.asked_at), one.transaction, one.peer or one.calling_ae, str(one.state), len(one.references),
                _failed(one), one.attempt, one.comment,
            )
            for one in found
        ],
        empty="nobody has asked for storage commitment",
    )  # fmt: skip


def _failed(commitment: Commitment) -> str:
    return "not verified yet" if commitment.failures is None else str(len(commitment.failures))


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    group.add_command(commitments_group)
