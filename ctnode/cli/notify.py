"""Commands about being told: whom, how far, and whether it would work."""

from __future__ import annotations

import time
from dataclasses import asdict

import click

from ctnode.archive import alerts
from ctnode.archive.timeline import iso
from ctnode.cli.show import Settings, as_json, as_times, print_json, print_table
from ctnode.words import ExitCode, NotFound


@click.group("notify")
def notify_group() -> None:
    """Look at what needs a person and who was told, or try a channel."""


@notify_group.command("test")
@click.argument("name", required=False)
@click.pass_obj
def test_channels(settings: Settings, name: str | None) -> None:
    """Send a test message to the channel NAME of [[notify]], or to all; needs no running node."""
    from ctnode.flow.telling import NotTold, compose, tell

    config = settings.config()
    channels = [channel for channel in config.notify if name in {None, channel.name}]
    if not channels:
        known = ", ".join(channel.name for channel in config.notify) or "no [[notify]] is configured"
        raise NotFound(f"no channel {name or ''}".rstrip(), hint=f"known: {known}")
    alert = alerts.Alert(0, time.time(), "test", config.node.ae_title, "sent by `ctnode notify test`", 1)
    message = compose(config.node.ae_title, alerts.Digest({"test": 1}, (alert,), alert.at, 0))
    is_well = True
    for channel in channels:
        try:
            tell(channel, message)
            click.echo(f"{channel.name}: told")
        except NotTold as fault:
            is_well = False
            click.echo(f"{channel.name}: NOT told: {fault}")
    raise click.exceptions.Exit(ExitCode.OK if is_well else ExitCode.FINDINGS)


@notify_group.command("list")
@click.option("--limit", default=20, show_default=True, help="At most so many alerts.")
@as_json
@click.pass_obj
def list_alerts(settings: Settings, limit: int, json_wanted: bool) -> None:
    """List the channels, and what needed a person, newest first."""
    config, _, database = settings.reading()
    channels = alerts.channels(database, [channel.name for channel in config.notify])
    found = alerts.latest(database, limit)
    if json_wanted:
        print_json(
            {
                "channels": [as_times(asdict(channel)) for channel in channels],
                "alerts": [as_times(asdict(alert)) for alert in found],
            }
        )
        return
    for channel in channels:
        last = "never told" if channel.sent_at is None else f"told last {iso(channel.sent_at)}"
        fault = f", fails {channel.failures} times: {channel.comment}" if channel.failures else ""
        click.echo(f"{channel.name}: {last}{fault}")
    print_table(
        ("at", "kind", "what", "text", "times"),
        [(iso(alert.at), alert.kind, alert.subject, alert.text, alert.count) for alert in found],
        empty="nothing needed anybody",
    )


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    group.add_command(notify_group)
