"""Commands about what the node owes to its destinations."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from ctnode.archive import lanes, outbox
from ctnode.archive.database import Database
from ctnode.archive.outbox import Delivery
from ctnode.archive.timeline import iso
from ctnode.cli.show import Settings, as_json, as_times, print_json, print_table
from ctnode.cli.steps import Steps
from ctnode.cli.trail import did
from ctnode.flow import operating
from ctnode.words import DeliveryState, ExitCode, NotFound, WrongState

PAGE = 1000

_target = click.option("--to", "target", help="Only those for this target.")
_state = click.option("--state", type=click.Choice([str(state) for state in DeliveryState]), help="Only this state.")
_ids = click.argument("ids", nargs=-1, type=int)


@click.group("deliveries")
def deliveries_group() -> None:
    """Look at what is owed to destinations, try it again, give it up, or pause a destination."""


@deliveries_group.command("list")
@_target
@_state
@click.option("--after", default=0, help="Only those with a larger number.")
@click.option("--limit", default=50, show_default=True, help="At most so many.")
@as_json
@click.pass_obj
def list_deliveries(
    settings: Settings, target: str | None, state: str | None, after: int, limit: int, json_wanted: bool
) -> None:
    """List destinations with what waits for them, and deliveries, oldest first."""
    config, _, database = settings.reading()
    found = outbox.listed(database, target=target, state=state, after=after, limit=limit)
    every = [(lane, lanes.backlog(database, lane.name, config.delivery.late_s)) for lane in lanes.every(database)]
    if json_wanted:
        print_json(
            {
                "destinations": [
                    {
                        **as_times(asdict(lane), ("failing_since", "paused_until")),
                        "waiting": backlog.waiting, "late": backlog.late, "paused": _is_paused(lane),
                    }
                    for lane, backlog in every
                ],
                "deliveries": [
                    {**as_times(asdict(one)), "attempts": [as_times(asdict(a)) for a in _attempts(database, one)]}
                    for one in found
                ],
            }
        )  # fmt: skip
        return
    for lane, backlog in every:
        click.echo(f"{lane.name}: {', '.join(_fares(lane, backlog))}")
    if every:
        click.echo("")
    print_table(
        ("number", "target", "kind", "object", "state", "attempts", "next try", "status", "comment"),
        [
            (one.id, one.lane, one.kind, one.path, one.state, one.attempt,
             iso(one.due_at) if one.state is DeliveryState.RETRY else "",
             "" if one.status is None else f"{one.status:04X}H", one.comment)
            for one in found
        ],
        empty="no deliveries",
    )  # fmt: skip


def _attempts(database: Database, delivery: Delivery) -> tuple[outbox.Attempt, ...]:
    return outbox.attempts(database, delivery.id)


def _is_paused(lane: lanes.Lane) -> bool:
    return lane.paused_until is not None and lane.paused_until > time.time()


def _fares(lane: lanes.Lane, backlog: lanes.Backlog) -> Iterator[str]:
    more = " or more" if backlog.waiting == lanes.COUNT_LIMIT else ""
    yield f"{backlog.waiting}{more} waiting"
    if backlog.late and backlog.oldest_at is not None:
        yield f"{backlog.late} late, the oldest since {iso(backlog.oldest_at)}"
    if lane.failing_since is not None:
        yield f"fails since {iso(lane.failing_since)}: {lane.comment}"
        yield f"next try {iso(max(lane.due_at, time.time()))}"
    if _is_paused(lane) and lane.paused_until is not None:
        yield "paused" if lane.paused_until >= lanes.FOR_EVER else f"paused until {iso(lane.paused_until)}"


@deliveries_group.command("retry")
@_ids
@_target
@_state
@click.pass_obj
def retry_deliveries(settings: Settings, ids: tuple[int, ...], target: str | None, state: str | None) -> None:
    """Try again now: the numbers IDS, or with --to all that was given up (DEAD) or waits for that target."""
    config, _, database = settings.writing()
    wanted = [DeliveryState(state)] if state else [DeliveryState.DEAD, DeliveryState.RETRY]
    by = operating.by_command(config)

    def again(delivery: Delivery) -> None:
        operating.retry_delivery(database, delivery, by)

    _each(by, database, ids, target, wanted, again, "tried again")


@deliveries_group.command("cancel")
@_ids
@_target
@click.pass_obj
def cancel_deliveries(settings: Settings, ids: tuple[int, ...], target: str | None) -> None:
    """Give up what waits or is DEAD: the numbers IDS, or with --to all that waits for that target.

    Nothing is taken back. What is DEAD is no problem any more then; with --to it stays as it is.
    """
    config, _, database = settings.writing()
    by = operating.by_command(config)

    def give_up(delivery: Delivery) -> None:
        operating.cancel_delivery(database, delivery, by)

    _each(by, database, ids, target, [DeliveryState.PENDING, DeliveryState.RETRY], give_up, "cancelled")


def _each(
    by: operating.Operator,
    database: Database,
    ids: tuple[int, ...],
    target: str | None,
    states: list[DeliveryState],
    act: Any,
    done: str,
) -> None:
    """Act on deliveries by number, or page by page on all of a target in these states; say what could not be."""
    if not ids and target is None:
        raise click.UsageError("name numbers of deliveries, or a target with --to")
    if target is not None and not outbox.listed(database, target=target, limit=1):
        raise NotFound(f"nothing was ever owed to {target}", hint="`ctnode deliveries list` shows the destinations")
    count, failures = 0, 0
    with Steps("deliveries", "objects") as steps:
        for page in _pages(database, ids, target, states):
            with database.immediate():
                for delivery in page:
                    try:
                        act(delivery)
                        count += 1
                    except WrongState as error:
                        failures += 1
                        click.echo(f"{delivery.id}: {error.message}", err=True)
            steps.at(count)
    operating.note_deliveries(by, done, ids, target=target or "", count=count)
    click.echo(f"{count} {done}")
    raise click.exceptions.Exit(ExitCode.FINDINGS if failures else ExitCode.OK)


def _pages(
    database: Database, ids: tuple[int, ...], target: str | None, states: list[DeliveryState]
) -> Iterator[tuple[Delivery, ...]]:
    if ids:
        yield tuple(outbox.get(database, number) for number in ids)
        return
    for state in states:
        after = 0
        while page := outbox.listed(database, target=target, state=state, after=after, limit=PAGE):
            after = page[-1].id
            yield page


@deliveries_group.command("pause")
@click.argument("name")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="End by itself after so many hours.")
@click.pass_obj
def pause_target(settings: Settings, name: str, hours: float | None) -> None:
    """Send nothing to the target NAME for now; what is owed to it waits."""
    until = lanes.FOR_EVER if hours is None else time.time() + 3600.0 * hours
    _pause(settings, name, until)
    click.echo(f"{name} is paused" + (f" until {iso(until)}" if hours is not None else ""))


@deliveries_group.command("resume")
@click.argument("name")
@click.pass_obj
def resume_target(settings: Settings, name: str) -> None:
    """End the pause of the target NAME."""
    _pause(settings, name, None)
    click.echo(f"{name} is served again")


def _pause(settings: Settings, name: str, until: float | None) -> None:
    config, _, database = settings.writing()
    known = {target.name for target in config.targets} | {lane.name for lane in lanes.every(database)}
    if name not in known:
        raise NotFound(f"no target {name}", hint=f"known: {', '.join(sorted(known)) or 'none is configured'}")
    with database.immediate():
        lanes.pause(database, name, until)
        if until is None:
            lanes.hurry(database, name)
    did(config, "destination resumed" if until is None else "destination paused", target=name)


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    group.add_command(deliveries_group)
