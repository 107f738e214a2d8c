"""The commands of ctnode."""

from __future__ import annotations

import importlib
import os
import sqlite3
import sys
from pathlib import Path
from typing import Final

import click

from ctnode import __version__
from ctnode.cli.show import Settings
from ctnode.config import Log
from ctnode.ops import log
from ctnode.words import CtnodeError, ExitCode

# What a shell calls the end by Ctrl-C.
INTERRUPTED: Final = 130


# Which module has which command: only that of the command that is given is imported.
COMMANDS: Final = {
    "running": ("deliver", "demo", "keep", "receive", "run", "web", "work"),
    "files": ("import", "process", "send"),
    "operate": ("backup", "check-config", "doctor", "echo", "rebuild-index", "status"),
    "series": ("jobs", "series"),
    "routes": ("route",),
    "verify": ("verify",),
    "associations": ("associations",),
    "commitments": ("commitments",),
    "deliveries": ("deliveries",),
    "retention": ("retention",),
    "forget": ("forget",),
    "metrics": ("metrics",),
    "notify": ("notify",),
    "trail": ("audit",),
    "users": ("user",),
}
_MODULES: Final = {command: module for module, commands in COMMANDS.items() for command in commands}


class Commands(click.Group):
    """The commands by their names; a role that starts does not wait for what the others need."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted(_MODULES)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """Import a command and return it, or None if there is none of this name."""
        if name not in _MODULES:
            return None
        if name not in self.commands:
            importlib.import_module(f"ctnode.cli.{_MODULES[name]}").register(self)
        return self.commands[name]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file (default: $CTNODE_CONFIG, ./config.toml, /etc/ctnode/config.toml, built-in defaults).",
)
@click.version_option(__version__, message="ctnode %(version)s - research use only, not a medical device")
@click.pass_context
def cli(context: click.Context, config_file: Path | None) -> None:
    """Run a DICOM network node for CT: receive, complete, convert, segment lungs, send back.

    Research use only; not a medical device. Exit codes: 0 done, 1 finished with findings, 2 usage, 69 unavailable,
    78 bad configuration.
    """
    context.obj = Settings(config_file)
    # A role configures logging anew; for the other commands this keeps libraries from quoting values of data sets.
    log.configure(Log(level="error"), role="cli")


def main() -> None:
    """Run the command line; errors become one line and an exit code."""
    try:
        # Outside of its standalone mode click returns the code of an Exit instead of raising it.
        sys.exit(cli(standalone_mode=False) or ExitCode.OK)
    except click.exceptions.Abort:
        sys.exit(INTERRUPTED)
    except click.ClickException as usage:
        usage.show()
        sys.exit(usage.exit_code)
    except BrokenPipeError:
        # Whoever read our output has seen enough; what Python would flush at the end has no reader either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.FINDINGS)
    except (sqlite3.Error, OSError) as error:
        click.echo(f"ctnode: {error}", err=True)
        click.echo("        see `ctnode doctor`", err=True)
        sys.exit(ExitCode.UNAVAILABLE)
    except CtnodeError as error:
        click.echo(f"ctnode: {error.message}", err=True)
        if error.hint:
            click.echo(f"        {error.hint}", err=True)
        sys.exit(error.exit_code)
