"""Commands that run something: the node, one of its roles, the demonstration."""

from __future__ import annotations

from pathlib import Path

import click

from ctnode.cli.show import Settings, act_as_owner
from ctnode.config import Config


def _loader(settings: Settings) -> Config:
    return settings.config()


@click.command()
@click.pass_obj
def run(settings: Settings) -> None:
    """Run the whole node until SIGTERM; SIGHUP reloads the configuration."""
    from ctnode.node import run_node

    act_as_owner(settings.config().root)
    raise click.exceptions.Exit(run_node(lambda: _loader(settings), settings.config_file))


def _role_command(name: str, meaning: str) -> click.Command:
    @click.command(name, help=f"Run only {meaning}, for split operation under a service manager.")
    @click.option("--supervised", hidden=True, default="", help="PID:FD of the supervisor.")
    @click.pass_obj
    def command(settings: Settings, supervised: str) -> None:
        from ctnode.node import run_role

        pid, _, descriptor = supervised.partition(":")
        supervisor = (int(pid), int(descriptor)) if supervised else None
        act_as_owner(settings.config().root)
        raise click.exceptions.Exit(run_role(name, lambda: _loader(settings), supervisor=supervisor))

    return command


@click.command()
@click.argument("directory", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--keep", is_flag=True, help="Leave the node running until Ctrl-C.")
@click.option("--slices", default=60, show_default=True, help="Slices of the synthetic chest.")
def demo(directory: Path | None, keep: bool, slices: int) -> None:
    """Show everything once: start a node, push a chest CT to it, see the results arrive at a second node.

    DIRECTORY holds DICOM files to push instead of the synthetic chest.
    """
    from ctnode.demo import show

    raise click.exceptions.Exit(show(directory, keep=keep, slices=slices))


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    group.add_command(run)
    group.add_command(demo)
    for name, meaning in (
        ("receive", "the DICOM port"),
        ("keep", "the keeper of journal, index and completeness"),
        ("work", "one worker"),
        ("deliver", "the sender of results"),
        ("web", "the operator's page and its API"),
    ):
        group.add_command(_role_command(name, meaning))
