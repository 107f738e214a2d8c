"""The command that prints the metrics, also for the textfile collector of node_exporter."""

from __future__ import annotations

import click

from ctnode.cli.show import Settings


@click.command()
@click.pass_obj
def metrics(settings: Settings) -> None:
    """Print the metrics of the node in the text format of Prometheus."""
    from ctnode.flow.metrics import exposition

    config, _, database = settings.reading()
    with database:
        click.echo(exposition(config, database), nl=False)


def register(group: click.Group) -> None:
    """Add the command of this module."""
    group.add_command(metrics)
