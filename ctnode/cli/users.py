"""``ctnode user NAME``: who may log in to the page."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ctnode.cli.show import Settings, act_as_owner
from ctnode.ops.durable import write_durable
from ctnode.web.users import Role, password_line, read_users, token_line
from ctnode.words import NotFound


@click.command("user")
@click.argument("name")
@click.option(
    "--role", type=click.Choice([str(role) for role in Role]), default="operate", show_default=True,
    help="Only look, or act as well.",
)  # fmt: skip
@click.option("--token", "is_token", is_flag=True, help="Make a token for a program, instead of a password.")
@click.option("--remove", is_flag=True, help="Take NAME out of the file.")
@click.pass_obj
def user(settings: Settings, name: str, role: str, is_token: bool, remove: bool) -> None:
    """Let NAME log in to the page: writes a line into web.users, or prints it where that is not set.

    The password is asked for, or read from standard input. Who is taken out is out at once.
    """
    config = settings.config()
    file = Path(config.web.users) if config.web.users else None
    known = dict(read_users(file)) if file is not None and file.is_file() else {}
    token = ""
    if remove:
        if name not in known:
            raise NotFound(f"no user {name}", hint=f"known: {', '.join(known) or 'nobody'}")
        line = ""
    elif is_token:
        line, token = token_line(name, Role(role))
    else:
        line = password_line(name, Role(role), _password())
    if file is None:
        click.echo(line)
    else:
        act_as_owner(config.root)
        lines = [f"{one.name} {one.role} {one.secret}" for one in known.values() if one.name != name]
        write_durable(file, "".join(f"{one}\n" for one in [*lines, line] if one).encode(), mode=0o600)
        click.echo(f"{name} is {'no longer' if remove else 'now'} in {file}", err=True)
    if token:
        click.echo(token if file is not None else f"token: {token}", err=file is None)


def _password() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\n")


def register(group: click.Group) -> None:
    """Add the command of this module."""
    group.add_command(user)
